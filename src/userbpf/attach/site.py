"""Where a probe goes: what is moved away at an instruction so that a jump fits, and the proof that it may be.

Everything here happens while the target runs. Code is decoded from the file that is mapped, and the bytes in memory
are compared with it, so other patchers are seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from userbpf.attach.decode import Insn, decode_all, is_padding, padding_length
from userbpf.attach.relocate_x86 import relocate
from userbpf.errors import AttachError, Place
from userbpf.process import Function, Mapping, Module, Process

__all__ = ["JUMP_SIZE", "SitePlan", "plan_site", "who_patched"]

JUMP_SIZE: Final = 5
_SHORT_JUMP_SIZE: Final = 2
_UNKNOWN_EXTENT: Final = 4096
"""How much is decoded of a function whose end nobody knows."""


@dataclass(frozen=True)
class SitePlan:
    """One instruction that can be probed, and what that takes."""

    module: Module
    addr: int
    func: Function
    insns: tuple[Insn, ...]
    """The instructions that are moved, the probed one first."""
    original: bytes
    """What the patched bytes at ``addr`` are now: 5 bytes, or 2 with an island."""
    island: int | None
    """Where in the padding between functions the 5-byte jump goes when only a 2-byte one fits at ``addr``."""
    island_original: bytes
    shadow_stack: bool

    @property
    def inner(self) -> bool:
        """Not the function's entry: the red zone below the stack pointer may be in use."""
        return self.addr != self.func.addr

    @property
    def size(self) -> int:
        return len(self.original)

    @property
    def patched(self) -> list[int]:
        """Every address whose byte the patch changes."""
        island = range(self.island, self.island + JUMP_SIZE) if self.island is not None else range(0)
        return [*range(self.addr, self.addr + self.size), *island]

    @property
    def resume(self) -> int:
        """Where the program goes on behind the moved instructions."""
        return self.insns[-1].end


@dataclass(frozen=True)
class _Code:
    """The function around a site, decoded from the file, and the bytes behind it up to the next function."""

    insns: tuple[Insn, ...]
    end: int
    limit: int


def _refuse(module: Module, func: Function, addr: int, why: str, hint: str) -> AttachError:
    where = func.name if addr == func.addr else f"{func.name}+{addr - func.addr:#x}"
    return AttachError(f"{where} ({addr:#x}) cannot be probed: {why}", place=Place(file=module.path), hint=hint)


def who_patched(mappings: list[Mapping], addr: int, live: bytes) -> str:
    """Who changed the code at ``addr``, as far as its bytes tell."""
    if live[:1] == b"\xcc":
        return "a breakpoint (a debugger, or a kernel uprobe) is set here"
    if live[:1] != b"\xe9" or len(live) < JUMP_SIZE:
        return "other bytes than the file's are here"
    target = addr + JUMP_SIZE + int.from_bytes(live[1:5], "little", signed=True)
    owner = next((m.path for m in mappings if target in m), "")
    if "userbpf" in owner:
        return "userbpf has already patched it, from another session"
    return f"somebody has patched it with a jump to {target:#x} ({owner or 'unnamed memory'})"


def _function_of(module: Module, addr: int, function: Function | None) -> Function:
    func = function if function is not None else module.function_around(addr)
    if func is None:
        vaddr = module.vaddr(addr)
        before = [start for start in module.elf.starts if start <= vaddr]
        if not before:
            raise AttachError(
                f"no function is known around {addr:#x} of {module.path}",
                place=Place(file=module.path),
                hint="give a function's name or its entry",
            )
        func = Function(f"sub_{before[-1]:x}", module.addr(before[-1]), 0)
    return func


def _decode(module: Module, func: Function) -> _Code:
    elf = module.elf
    start = module.vaddr(func.addr)
    size = func.size
    if not size:
        extent = elf.frame_extent(start)
        size = extent[0] + extent[1] - start if extent is not None else 0
    following = elf.next_start(start)
    segment_end = next((s.vaddr + s.file_size for s in elf.segments if s.vaddr <= start < s.vaddr + s.file_size), start)
    limit = segment_end
    if following is not None and following >= start + size:
        limit = min(limit, following)
    if not size:
        size = min(limit - start, _UNKNOWN_EXTENT)
    insns = decode_all(elf.read(start, size), func.addr)
    return _Code(tuple(insns), func.addr + size, module.addr(limit))


def _jumps_out(module: Module, code: _Code, func: Function) -> Iterator[Insn]:
    """The branches of a function and of the fragments that it jumps to (``.cold`` parts jump back into it)."""
    yield from code.insns
    seen: set[int] = set()
    for insn in code.insns:
        target = insn.branch_target
        if target is None or insn.is_call or func.addr <= target < code.end:
            continue
        extent = module.elf.extent(module.vaddr(target))
        if extent is not None and extent[0] not in seen:
            seen.add(extent[0])
            yield from decode_all(module.elf.read(*extent), module.addr(extent[0]))


def _is_table_jump(insn: Insn) -> bool:
    """An indirect jump that may be a switch. Through a fixed slot (``jmp *slot(%rip)``) it is a tail call."""
    return insn.is_indirect_jump and insn.rip_target is None


class _Planner:
    """The questions about one site."""

    def __init__(self, process: Process, module: Module, addr: int, func: Function) -> None:
        self.process = process
        self.module = module
        self.addr = addr
        self.func = func
        self.code = _decode(module, func)
        self.targets = {
            t for i in _jumps_out(module, self.code, func) if (t := i.branch_target) is not None and not i.is_call
        }

    def refuse(self, why: str, hint: str = "probe another place") -> AttachError:
        return _refuse(self.module, self.func, self.addr, why, hint)

    def insns_from_site(self) -> list[Insn]:
        insns = self.code.insns
        for index, insn in enumerate(insns):
            if insn.addr == self.addr:
                return list(insns[index:])
            if insn.addr > self.addr:
                before = insns[index - 1]
                raise self.refuse(
                    "it lies in the middle of an instruction",
                    f"instructions begin at +{before.addr - self.func.addr:#x} and +{insn.addr - self.func.addr:#x}",
                )
        raise self.refuse("it is not reached by decoding the function from its start", "this may be data, not code")

    def cover(self, insns: list[Insn], size: int) -> tuple[tuple[Insn, ...], str]:
        """The instructions that ``size`` patched bytes touch, and why they may not be patched ('' when they may)."""
        taken: list[Insn] = []
        end = self.addr + size
        for insn in insns:
            if taken and taken[-1].end >= end:
                break
            if taken and taken[-1].ends_flow and not is_padding(self._file(taken[-1].end, end), taken[-1].end):
                return tuple(taken), f"only {taken[-1].end - self.addr} bytes belong to it before other code begins"
            if taken and taken[-1].ends_flow:
                break
            taken.append(insn)
        covered = taken[-1].end
        if covered < end:
            if end > self.code.limit or not is_padding(self._file(covered, end), covered):
                return tuple(taken), f"it has {covered - self.addr} bytes, and what follows is not padding"
            if not taken[-1].ends_flow:
                return tuple(taken), "the program would run into the padding behind it"
        inside = sorted(t for t in self.targets if self.addr < t < end)
        if inside:
            return tuple(taken), f"the function jumps to {inside[0]:#x}, into the bytes that would be patched"
        try:
            relocate(taken, self.module.end, resume=taken[-1].end, shadow_stack=False)
        except AttachError as error:
            return tuple(taken), error.message
        return tuple(taken), ""

    def _file(self, start: int, end: int) -> bytes:
        return self.module.elf.read(self.module.vaddr(start), end - start)

    def island(self, beside: Sequence[SitePlan]) -> int | None:
        """Five bytes of padding between two functions that a 2-byte jump at the site reaches."""
        elf = self.module.elf
        used = {place for plan in beside for place in plan.patched}
        low = self.module.vaddr(self.addr) + _SHORT_JUMP_SIZE - 128
        high = low + 255
        for start in elf.starts:
            if start < low:
                continue
            if start > high + 64:
                break
            end = self._padding_before(start)
            if end is None:
                continue
            # Nothing runs through padding, so the jump may begin anywhere in it. Its end is taken, because a patch of
            # the short function before it may use its start.
            place = min(start - JUMP_SIZE, high)
            addr = self.module.addr(place)
            while place >= max(end, low) and not used.isdisjoint(range(addr, addr + JUMP_SIZE)):
                place, addr = place - 1, addr - 1
            if place < max(end, low):
                continue
            if self.process.read(addr, JUMP_SIZE) == elf.read(place, JUMP_SIZE):
                return addr
        return None

    def _padding_before(self, start: int) -> int | None:
        """Where the padding before the function at ``start`` begins, None when there is none."""
        elf = self.module.elf
        previous = elf.extent(start - 1)
        if previous is not None:  # start - 1 belongs to a function
            return None
        earlier = [s for s in elf.starts if start - 4096 <= s < start]
        if not earlier:
            return None
        extent = elf.extent(earlier[-1])
        if extent is None:
            return None
        end = extent[0] + extent[1]
        padding = elf.read(end, start - end)
        return end if padding and padding_length(padding, end) == len(padding) else None

    def check_live(self, mappings: list[Mapping], size: int) -> None:
        live = self.process.read(self.addr, size)
        if live != self._file(self.addr, self.addr + size):
            who = who_patched(mappings, self.addr, live)
            ours = f"see `userbpf link list`; `userbpf detach --pid {self.process.pid}` removes what a killed one left"
            raise self.refuse(who, ours if who.startswith("userbpf") else "detach the other tool first")


def plan_site(
    process: Process,
    module: Module,
    addr: int,
    function: Function | None = None,
    *,
    beside: Sequence[SitePlan] = (),
) -> SitePlan:
    """How the instruction at ``addr`` of ``module`` can be probed. :class:`AttachError` says why it cannot.

    function: the function it belongs to, when the caller knows it; else it is looked up. beside: plans that will be
    applied together with this one, whose padding it must not use. A function's entry is taken
    to be free of jump-table targets in its first bytes; at any other instruction a function with an indirect jump is
    refused, because the targets cannot be known. Exception landing pads are not looked at.
    """
    mapping = next((m for m in module.mappings if addr in m), None)
    if mapping is None or not mapping.executable or not module.elf.is_code(module.vaddr(addr)):
        raise AttachError(
            f"{addr:#x} is not code of {module.path}", place=Place(file=module.path), hint="give a function's address"
        )
    func = _function_of(module, addr, function)
    if func.ifunc:
        raise _refuse(
            module, func, addr, "it only chooses an implementation (IFUNC)", "probe the implementation that it chose"
        )
    planner = _Planner(process, module, addr, func)
    insns = planner.insns_from_site()
    if addr != func.addr and any(map(_is_table_jump, planner.code.insns)):
        raise planner.refuse("the function has an indirect jump, whose targets cannot be known", "probe its entry")
    mappings = list(module.mappings) if process.read(addr, 1) == insns[0].raw[:1] else process.mappings()
    island: int | None = None
    taken, problem = planner.cover(insns, JUMP_SIZE)
    if problem:
        short, short_problem = planner.cover(insns, _SHORT_JUMP_SIZE)
        planner.check_live(mappings, min(JUMP_SIZE, taken[-1].end - addr))
        island = planner.island(beside) if not short_problem else None
        if island is None:
            reason = short_problem or f"{problem}, and there is no room for a short jump either"
            raise planner.refuse(reason, "probe its caller, or another instruction")
        taken = short
    size = JUMP_SIZE if island is None else _SHORT_JUMP_SIZE
    planner.check_live(mappings, max(size, taken[-1].end - addr))
    return SitePlan(
        module=module,
        addr=addr,
        func=func,
        insns=taken,
        original=process.read(addr, size),
        island=island,
        island_original=process.read(island, JUMP_SIZE) if island is not None else b"",
        shadow_stack=process.shadow_stack,
    )
