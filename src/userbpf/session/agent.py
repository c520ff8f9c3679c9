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

from userbpf.attach.guard import build_guard, guard_size, replan_guard
from userbpf.codegen import CodeImage, link
from userbpf.errors import AttachError, ProcessError
from userbpf.native import agent_object
from userbpf.native.abi import (
    ROWS,
    SHADOW_BYTES,
    TID_OFF_UNKNOWN,
    Guard,
    Proc,
    Shadow,
    ShadowEntry,
    ShadowSlot,
    Threads,
)

if TYPE_CHECKING:
    from userbpf.attach import Injector, Patch, SitePlan
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
GUARDED: Final = (
    ("sigaction", "ub_agent_sigaction", (SIGBUS, SIGSEGV)),
    ("pthread_sigmask", "ub_agent_sigmask", ()),
)
"""Functions of the C library, what stands before them, and for which first arguments (none: for all)."""
C_LIBRARIES: Final = ("libc.so", "libc-", "libpthread", "ld-musl-", "libc.musl-")
RESTORER_CODE: Final = bytes.fromhex("48c7c00f0000000f05")
"""mov $15, %rax; syscall (rt_sigreturn)."""
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


def enter(stopped: Stopped, injector: Injector) -> Agent:
    """The agent of the process, mapped now if it is not there; counts this attachment.

    ``injector`` owns what was mapped until this returns, so that a failure on the way can be undone.
    """
    process = stopped.process
    agent = find(process) or _map(stopped, injector)
    sessions = _read_field(process, agent.proc, "sessions")
    _write_field(process, agent.proc, "sessions", sessions + 1)
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
    head.tp_self = stopped.thread_pointers_are_self()
    injector.write(proc, bytes(head)[: Proc.shadows.offset])
    return Agent(region.addr, proc, threads)


def catch_faults(process: Process, agent: Agent) -> None:
    """From now on a faulting read of a program gives it -EFAULT instead of killing the process.

    Our handler stands before the application's for SIGSEGV and SIGBUS, and guards before the C library's functions
    that would displace it or block those signals. In a program whose C library has no such symbols (static and
    stripped, or Go) there are no guards: it must not change its handlers while programs read faulting memory.
    """
    from userbpf.attach import apply

    if _read_field(process, agent.proc, "faults"):
        return
    wanted = [
        (kind, plan)
        for kind, (name, _, _) in enumerate(GUARDED)
        for plan in [_plan_guard(process, name)]
        if plan is not None
    ]
    restorer = _find_restorer(process)
    with process.stop() as stopped:
        if _read_field(process, agent.proc, "faults"):
            return
        _write_field(process, agent.proc, "restorer", restorer)
        region = _map_guards(stopped, agent, wanted)
        _install_handlers(stopped, agent)
    patches = []
    for kind, plan in wanted:
        patch = _guard_patch(agent, kind, plan, region)
        region += guard_size(plan, GUARDED[kind][2])
        process.write(patch.addr, patch.code)
        _record_guard(process, agent, kind, patch)
        patches.append(patch)
    apply(process, patches)


def _plan_guard(process: Process, name: str) -> SitePlan | None:
    """Where the C library of the process has the function, None when it has none that can be patched."""
    from userbpf.attach import plan_site

    for module in process.modules():
        if module.path != process.exe and not module.name.startswith(C_LIBRARIES):
            continue
        if module.elf.find(name) is None:
            continue
        function = module.function(name)
        try:
            plan = plan_site(process, module, function.addr, function)
        except AttachError:
            continue
        if plan.island is None and sum(insn.size for insn in plan.insns) <= Guard.original.size:
            return plan
    return None


def _find_restorer(process: Process) -> int:
    """Address of the C library's return from signal handlers: the one sequence that unwinders know. 0: none found."""
    for module in process.modules():
        if module.path != process.exe and not module.name.startswith(C_LIBRARIES):
            continue
        for mapping in module.mappings:
            if mapping.executable and mapping.readable:
                at = process.read(mapping.start, mapping.size).find(RESTORER_CODE)
                if at >= 0:
                    return mapping.start + at
    return 0


def _map_guards(stopped: Stopped, agent: Agent, wanted: Sequence[tuple[int, SitePlan]]) -> int:
    from userbpf.attach import Injector

    if not wanted:
        return 0
    size = sum(guard_size(plan, GUARDED[kind][2]) for kind, plan in wanted)
    region = Injector(stopped.process).map_trampolines(stopped, wanted[0][1].module, size)
    _write_field(stopped.process, agent.proc, "guard_region", region.addr)
    _write_field(stopped.process, agent.proc, "guard_region_size", region.size)
    return region.addr


def _guard_patch(agent: Agent, kind: int, plan: SitePlan, addr: int) -> Patch:
    _, handler, values = GUARDED[kind]
    return build_guard(plan, addr, agent.symbol(handler), values)


def _record_guard(process: Process, agent: Agent, kind: int, patch: Patch) -> None:
    original = b"".join(insn.raw for insn in patch.plan.insns)
    record = Guard(patch.plan.addr, patch.addr, tuple(original.ljust(Guard.original.size, b"\0")), len(original), kind)
    process.write(agent.proc + Proc.guards.offset + kind * ctypes.sizeof(Guard), bytes(record))


def _guards(process: Process, agent: Agent) -> list[Patch]:
    """The guards that are in place, from the agent's own records."""
    data = process.read(agent.proc + Proc.guards.offset, Proc.guards.size)
    patches = []
    for at in range(0, len(data), ctypes.sizeof(Guard)):
        record = Guard.from_buffer_copy(data, at)
        module = process.module_at(record.site) if record.site else None
        if module is None or record.kind >= len(GUARDED):
            continue
        original = bytes(record.original[: record.length])
        plan = replan_guard(module, record.site, original, shadow_stack=process.shadow_stack)
        patches.append(_guard_patch(agent, record.kind, plan, record.trampoline))
    return patches


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
        flags |= SA_SIGINFO | SA_RESTORER
        stopped.write(scratch, _SIGACTION.pack(agent.symbol("ub_agent_on_fault"), flags, restorer, mask))
        stopped.syscall(NR_RT_SIGACTION, signal_number, scratch, 0, 8)
    stopped.unblock_signals((SIGSEGV, SIGBUS))
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
        if _read_field(process, agent.proc, "faults") and not _remove_handlers(stopped, agent):
            return
    guards = _guards(process, agent)
    image = agent_image()
    injector = Injector(process)
    injector.regions.append(Region(agent.code, image.size, "image", NAME, len(image.code)))
    injector.regions.append(Region(agent.threads, _page_up(ctypes.sizeof(Threads)), "memory", "threads"))
    region = _read_field(process, agent.proc, "guard_region")
    if region:
        size = _read_field(process, agent.proc, "guard_region_size")
        injector.regions.append(Region(region, size, "trampoline", "guards", size))

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

    remove(process, guards, injector, before_scan=before_unmapping)


def _remove_handlers(stopped: Stopped, agent: Agent) -> bool:
    """The application's handlers as if we had never been. False when one returns through the agent: it must stay."""
    process = stopped.process
    gone = True
    scratch = agent.proc + Proc.reserved.offset
    for slot, signal_number in enumerate((SIGSEGV, SIGBUS)):
        stopped.syscall(NR_RT_SIGACTION, signal_number, 0, scratch, 8)
        handler = _SIGACTION.unpack(process.read(scratch, _SIGACTION.size))[0]
        if handler == agent.symbol("ub_agent_on_fault"):
            old_at = agent.proc + Proc.old.offset + slot * _SIGACTION.size
            stopped.syscall(NR_RT_SIGACTION, signal_number, old_at, 0, 8)
            app_handler, _, restorer, _ = _SIGACTION.unpack(process.read(old_at, _SIGACTION.size))
            gone = gone and (app_handler <= 1 or restorer != agent.symbol("ub_agent_restorer"))
    _write_field(process, agent.proc, "faults", 0)
    return gone


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
