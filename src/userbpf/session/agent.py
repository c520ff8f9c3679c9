"""The agent in a target: one for all attachments to that process, found again by its name in the list of mappings.

It is mapped by the first attachment and goes with the last. Everything here is done while all threads are stopped,
and only one process can stop a target at a time, so attachments of different controllers never meet in it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from userbpf.codegen import CodeImage, link
from userbpf.errors import AttachError, ProcessError
from userbpf.native import agent_object
from userbpf.native.abi import ROWS, SHADOW_BYTES, TID_OFF_UNKNOWN, Proc, Shadow, ShadowEntry, ShadowSlot, Threads

if TYPE_CHECKING:
    from userbpf.attach import Injector
    from userbpf.process import Process, Stopped

NAME: Final = "agent-1"
"""Name of the agent's image; the number is that of its memory layout."""

MADV_WIPEONFORK: Final = 18


@cache
def agent_image() -> CodeImage:
    """The agent's code; its data area is ``struct ub_proc``."""
    return link(agent_object(), {"ub_proc": 0}, ctypes.sizeof(Proc))


@dataclass(frozen=True)
class Agent:
    """The agent as it lies in one process: addresses of its code, its data and the thread table."""

    code: int
    proc: int
    threads: int

    @property
    def span(self) -> tuple[int, int]:
        """Start and end of its code, which the code of attachments calls."""
        return self.code, self.code + len(agent_image().code)

    def symbol(self, name: str) -> int:
        """Address of one of its functions."""
        return self.code + agent_image().symbols[name]

    @property
    def trampoline(self) -> int:
        """What stands on stacks in place of return addresses."""
        return self.symbol("ub_agent_ret_trampoline")


def find(process: Process) -> Agent | None:
    """The agent that is already in the process, None when there is none."""
    image = agent_image()
    for mapping in process.mappings():
        if mapping.executable and f"userbpf-image:{NAME}" in mapping.path:
            proc = mapping.start + len(image.code)
            threads = read_field(process, proc, "threads")
            return Agent(mapping.start, proc, threads)
    return None


def enter(stopped: Stopped, injector: Injector) -> Agent:
    """The agent of the process, mapped now if it is not there; counts this attachment.

    ``injector`` owns what was mapped until this returns, so that a failure on the way can be undone.
    """
    process = stopped.process
    agent = find(process) or _map(stopped, injector)
    sessions = read_field(process, agent.proc, "sessions")
    write_field(process, agent.proc, "sessions", sessions + 1)
    return agent


def _map(stopped: Stopped, injector: Injector) -> Agent:
    from userbpf.attach import SealedImage

    process, image = stopped.process, agent_image()
    with SealedImage(NAME, image) as sealed:
        region = injector.map_image(stopped, sealed)
    threads = injector.map_anonymous(stopped, ctypes.sizeof(Threads), "threads").addr
    try:
        stopped.madvise(threads, page_up(ctypes.sizeof(Threads)), MADV_WIPEONFORK)
    except OSError as error:
        raise AttachError(
            "the kernel cannot keep a forked child from using its parent's thread table (MADV_WIPEONFORK)",
            hint="Linux 4.14 or newer is needed",
        ) from error
    table = Threads()
    table.tgid = process.ns_pid
    offset = stopped.thread_id_offset()
    table.tid_off = TID_OFF_UNKNOWN if offset is None else offset
    table.shared.row = ROWS - 1
    injector.write(threads, bytes(table)[: Threads.slots.offset])
    proc = region.addr + len(image.code)
    head = Proc()
    head.abi = 1
    head.threads = threads
    head.tp_self = stopped.thread_pointers_are_self()
    injector.write(proc, bytes(head)[: Proc.shadows.offset])
    return Agent(region.addr, proc, threads)


def forget_returns(stopped: Stopped, agent: Agent, cells: Sequence[range]) -> None:
    """Empties the entries of frames that wait in a return probe whose cell lies in ``cells``.

    The frames still return through the agent, which finds nothing to run for them.
    """
    process = stopped.process
    for at, entry in _entries(process, agent):
        if any(entry.cell in addresses for addresses in cells):
            process.write(at + ShadowEntry.cell.offset, bytes(8))


def restore_returns(stopped: Stopped, agent: Agent) -> None:
    """Puts the real return addresses back onto all stacks, so that no frame needs the agent any more."""
    process, trampoline = stopped.process, agent.trampoline
    for _, entry in _entries(process, agent):
        if entry.ret != trampoline and _word(process, entry.sp) == trampoline:
            process.write(entry.sp, entry.ret.to_bytes(8, "little"))


def shadow_tables(process: Process, agent: Agent) -> list[int]:
    """Addresses of the tables of replaced return addresses, one for each thread that had any."""
    size = ctypes.sizeof(ShadowSlot)
    data = process.read(agent.proc + Proc.shadows.offset, Proc.shadows.size)
    slots = [ShadowSlot.from_buffer_copy(data, at) for at in range(0, len(data), size)]
    return [slot.table for slot in slots if slot.table]


def _entries(process: Process, agent: Agent) -> Iterator[tuple[int, ShadowEntry]]:
    """All live entries of all threads, each with its address."""
    width, first = ctypes.sizeof(ShadowEntry), ctypes.sizeof(Shadow)
    for table in shadow_tables(process, agent):
        head = Shadow.from_buffer_copy(process.read(table, first))
        count = min(head.n, (SHADOW_BYTES - first) // width)
        data = process.read(table + first, count * width) if count else b""
        for n in range(count):
            entry = ShadowEntry.from_buffer_copy(data, n * width)
            if entry.sp > 1:
                yield table + first + n * width, entry


def _word(process: Process, addr: int) -> int | None:
    try:
        return int.from_bytes(process.read(addr, 8), "little")
    except ProcessError:
        return None


def read_field(process: Process, base: int, name: str) -> int:
    """A field of the agent's ``struct ub_proc`` at ``base``."""
    field = getattr(Proc, name)
    return int.from_bytes(process.read(base + field.offset, field.size), "little")


def write_field(process: Process, base: int, name: str, value: int | bytes) -> None:
    """Changes a field of the agent's ``struct ub_proc`` at ``base``."""
    field = getattr(Proc, name)
    data = value if isinstance(value, bytes) else value.to_bytes(field.size, "little")
    process.write(base + field.offset, data)


def page_up(size: int) -> int:
    """Rounded up to whole pages."""
    return (size + 4095) // 4096 * 4096
