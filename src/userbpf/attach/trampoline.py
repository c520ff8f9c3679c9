"""The trampoline of a site: cells that call the hooks, the moved instructions, the jump back.

Layout of a cell and of the code behind it: native/include/userbpf.h, struct ub_cell. Cells are data in pages that are
never written while they run, so they do not disturb the processor's instruction cache.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from userbpf.attach.relocate_x86 import Place, jump, relocate, relocated_size
from userbpf.attach.site import SitePlan
from userbpf.errors import AttachError

__all__ = ["ALIGNMENT", "CELL_SIZE", "Cell", "Patch", "Write", "build_trampoline", "trampoline_size"]

CELL_SIZE: Final = 64
"""UB_CELL_SIZE."""
ALIGNMENT: Final = 16
RED_ZONE: Final = 128

_SKIP_RED_ZONE: Final = b"\x48\x8d\x64\x24\x80"  # lea -128(%rsp), %rsp: leaves the flags alone
_UNSKIP_RED_ZONE: Final = b"\x48\x8d\xa4\x24\x80\x00\x00\x00"  # lea 128(%rsp), %rsp
_CALL_CODE_ROOM: Final = 32
"""Upper bound of the code behind a cell and of what aligns the next one."""


@dataclass(frozen=True, slots=True)
class Cell:
    """struct ub_cell: one link at one site. Addresses are the target's."""

    hook: int
    site: int
    func: int
    link: int
    cookie: int = 0
    body: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        return struct.pack(
            "<5Q2I2Q", self.hook, self.body, self.site, self.func, self.cookie, self.link, self.flags, 0, 0
        )


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes to exchange in the target's own code."""

    addr: int
    old: bytes
    new: bytes


@dataclass(frozen=True)
class Patch:
    """A site with its finished trampoline. ``code`` belongs at ``addr``; ``writes`` arm it, in that order."""

    plan: SitePlan
    addr: int
    code: bytes
    writes: tuple[Write, ...]
    places: dict[int, Place]
    """Every instruction boundary of the trampoline: where in the original program a thread is that stands there."""
    starts: dict[int, int]
    """Address of every moved instruction, and of the end: where it is in the trampoline."""

    @property
    def end(self) -> int:
        return self.addr + len(self.code)


def trampoline_size(plan: SitePlan, n_cells: int) -> int:
    """Bytes to reserve for a site's trampoline; a multiple of ALIGNMENT."""
    size = n_cells * (CELL_SIZE + _CALL_CODE_ROOM) + relocated_size(plan.insns)
    return (size + ALIGNMENT - 1) & -ALIGNMENT


def _call_code(plan: SitePlan, cell_addr: int, places: dict[int, Place]) -> bytes:
    """The code behind a cell; its return address is UB_CELL_RET_ENTRY or UB_CELL_RET_INNER bytes behind the cell."""
    site = plan.addr
    at = cell_addr + CELL_SIZE
    places[at] = Place(site)
    code = b""
    if plan.inner:
        code = _SKIP_RED_ZONE
        places[at + len(code)] = Place(site, RED_ZONE)
    length = len(code) + 6
    code += b"\xff\x15" + struct.pack("<i", -(CELL_SIZE + length))  # call *hook(%rip)
    if plan.inner:
        places[at + length] = Place(site, RED_ZONE)
        code += _UNSKIP_RED_ZONE
    places[at + len(code)] = Place(site)
    return code


def build_trampoline(plan: SitePlan, cells: Sequence[Cell], addr: int) -> Patch:
    """Build the trampoline of ``plan`` for ``addr``: the cells' hooks are called in order, then the program goes on."""
    if not cells or addr % ALIGNMENT:
        raise AttachError(f"a trampoline needs a cell and an address that is a multiple of {ALIGNMENT}")
    places: dict[int, Place] = {}
    code = bytearray()
    for index, cell in enumerate(cells):
        here = addr + len(code)
        code += cell.pack() + _call_code(plan, here, places)
        if index + 1 < len(cells):
            behind_jump = len(code) + 2
            following = (behind_jump + ALIGNMENT - 1) & -ALIGNMENT
            code += bytes((0xEB, following + CELL_SIZE - behind_jump)) + b"\xcc" * (following - behind_jump)
    moved = relocate(plan.insns, addr + len(code), resume=plan.resume, shadow_stack=plan.shadow_stack)
    code += moved.code
    # The first moved instruction stands for the site itself: a thread there has passed the hooks.
    places.update(moved.places)
    entry = addr + CELL_SIZE
    if plan.island is None:
        writes: tuple[Write, ...] = (Write(plan.addr, plan.original, jump(plan.addr, entry)),)
    else:
        places[plan.island] = Place(plan.addr)
        hop = bytes((0xEB, (plan.island - plan.addr - 2) & 0xFF))
        writes = (
            Write(plan.island, plan.island_original, jump(plan.island, entry)),
            Write(plan.addr, plan.original, hop),
        )
    return Patch(plan, addr, bytes(code), writes, places, moved.starts)
