"""The agent in a target: one for all attachments to that process, found again by its name in the list of mappings.

It is mapped by the first attachment and goes with the last. Everything here is done while all threads are stopped,
and only one process can stop a target at a time, so attachments of different controllers never meet in it.
"""

from __future__ import annotations

import ctypes
import struct
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

NR_RT_SIGACTION: Final = 13
MADV_WIPEONFORK: Final = 18
SIGBUS: Final = 7
SIGSEGV: Final = 11
SA_SIGINFO: Final = 0x4
SA_ONSTACK: Final = 0x08000000
SA_RESTORER: Final = 0x04000000
_SIGACTION: Final = struct.Struct("<QQQQ")


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
            threads = _read_field(process, proc, "threads")
            return Agent(mapping.start, proc, threads)
    return None


def enter(stopped: Stopped, injector: Injector, *, faulting: bool) -> Agent:
    """The agent of the process, mapped now if it is not there; counts this attachment.

    ``injector`` owns what was mapped until this returns, so that a failure on the way can be undone.
    """
    process = stopped.process
    agent = find(process) or _map(stopped, injector)
    sessions = _read_field(process, agent.proc, "sessions")
    _write_field(process, agent.proc, "sessions", sessions + 1)
    if faulting and not _read_field(process, agent.proc, "faults"):
        _install_handlers(stopped, agent)
    return agent


def _map(stopped: Stopped, injector: Injector) -> Agent:
    from userbpf.attach import SealedImage

    process, image = stopped.process, agent_image()
    with SealedImage(NAME, image) as sealed:
        region = injector.map_image(stopped, sealed)
    threads = injector.map_anonymous(stopped, ctypes.sizeof(Threads), "threads").addr
    try:
        stopped.madvise(threads, _page_up(ctypes.sizeof(Threads)), MADV_WIPEONFORK)
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
    injector.write(proc, bytes(head)[: Proc.shadows.offset])
    return Agent(region.addr, proc, threads)


def _install_handlers(stopped: Stopped, agent: Agent) -> None:
    """Our handler for SIGSEGV and SIGBUS before the application's, which stays in our table (see agent_fault.c)."""
    process = stopped.process
    scratch = agent.proc + Proc.reserved.offset
    for slot, signal_number in enumerate((SIGSEGV, SIGBUS)):
        old_at = agent.proc + Proc.old.offset + slot * _SIGACTION.size
        stopped.syscall(NR_RT_SIGACTION, signal_number, 0, old_at, 8)
        handler, flags, restorer, mask = _SIGACTION.unpack(process.read(old_at, _SIGACTION.size))
        if handler in (0, 1):
            flags, mask = SA_ONSTACK, 0
        if not flags & SA_RESTORER:
            restorer = agent.symbol("ub_agent_restorer")
        ours = _SIGACTION.pack(agent.symbol("ub_agent_on_fault"), flags | SA_SIGINFO | SA_RESTORER, restorer, mask)
        stopped.write(scratch, ours)
        stopped.syscall(NR_RT_SIGACTION, signal_number, scratch, 0, 8)
    _write_field(process, agent.proc, "faults", 1)


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


def leave(process: Process, agent: Agent) -> None:
    """Ends one attachment's use of the agent; with the last one the agent goes, and its handlers with it."""
    from userbpf.attach import Injector, Region, remove

    with process.stop() as stopped:
        sessions = max(_read_field(process, agent.proc, "sessions") - 1, 0)
        _write_field(process, agent.proc, "sessions", sessions)
        if sessions:
            return
        if _read_field(process, agent.proc, "faults"):
            _remove_handlers(stopped, agent)
    image = agent_image()
    injector = Injector(process)
    injector.regions.append(Region(agent.code, image.size, "image", NAME, len(image.code)))
    injector.regions.append(Region(agent.threads, _page_up(ctypes.sizeof(Threads)), "memory", "threads"))

    def before_unmapping(stopped: Stopped) -> None:
        if _read_field(process, agent.proc, "sessions"):
            # Somebody attached between our two stops and uses the agent: it stays.
            injector.regions.clear()
            return
        restore_returns(stopped, agent)
        known = {region.addr for region in injector.regions}
        for table in _shadow_tables(process, agent):
            if table not in known:
                injector.regions.append(Region(table, SHADOW_BYTES, "memory", "returns"))

    remove(process, [], injector, before_scan=before_unmapping)


def _remove_handlers(stopped: Stopped, agent: Agent) -> None:
    process = stopped.process
    scratch = agent.proc + Proc.reserved.offset
    for slot, signal_number in enumerate((SIGSEGV, SIGBUS)):
        stopped.syscall(NR_RT_SIGACTION, signal_number, 0, scratch, 8)
        handler = _SIGACTION.unpack(process.read(scratch, _SIGACTION.size))[0]
        if handler == agent.symbol("ub_agent_on_fault"):
            old_at = agent.proc + Proc.old.offset + slot * _SIGACTION.size
            stopped.syscall(NR_RT_SIGACTION, signal_number, old_at, 0, 8)
    _write_field(process, agent.proc, "faults", 0)


def _shadow_tables(process: Process, agent: Agent) -> list[int]:
    size = ctypes.sizeof(ShadowSlot)
    data = process.read(agent.proc + Proc.shadows.offset, Proc.shadows.size)
    slots = [ShadowSlot.from_buffer_copy(data, at) for at in range(0, len(data), size)]
    return [slot.table for slot in slots if slot.table]


def _entries(process: Process, agent: Agent) -> Iterator[tuple[int, ShadowEntry]]:
    """All live entries of all threads, each with its address."""
    width, first = ctypes.sizeof(ShadowEntry), ctypes.sizeof(Shadow)
    for table in _shadow_tables(process, agent):
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


def _read_field(process: Process, base: int, name: str) -> int:
    field = getattr(Proc, name)
    return int.from_bytes(process.read(base + field.offset, field.size), "little")


def _write_field(process: Process, base: int, name: str, value: int | bytes) -> None:
    field = getattr(Proc, name)
    data = value if isinstance(value, bytes) else value.to_bytes(field.size, "little")
    process.write(base + field.offset, data)


def _page_up(size: int) -> int:
    return (size + 4095) // 4096 * 4096
