"""Functions of the target's libraries that the agent stands before, so that they do not meet what we changed.

A guard belongs to the agent, not to one attachment: it is recorded in the agent's data, from which whoever removes
the agent undoes it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

from userbpf.attach.guard import Guarded, build_guard, guard_size, replan_guard
from userbpf.attach.site import JUMP_SIZE
from userbpf.errors import AttachError, ProcessError
from userbpf.native.abi import Guard, Proc

if TYPE_CHECKING:
    from userbpf.attach import Injector, Patch, SitePlan
    from userbpf.process import Module, Process
    from userbpf.session.agent import Agent

SIGNALS: Final = (
    Guarded("sigaction", "ub_agent_sigaction", values=(7, 11)),
    Guarded("pthread_sigmask", "ub_agent_sigmask"),
)
"""For programs that read memory which may fault: SIGBUS and SIGSEGV stay ours, and are never blocked."""
UNWINDERS: Final = tuple(
    Guarded(name, "ub_agent_unwinding", first=True)
    for name in ("_Unwind_RaiseException", "_Unwind_Resume_or_Rethrow", "_Unwind_ForcedUnwind", "_Unwind_Backtrace")
)
"""For return probes: who walks the stack meets the real return addresses."""
GUARDED: Final = (*SIGNALS, *UNWINDERS)

C_LIBRARIES: Final = ("libc.so", "libc-", "libpthread", "ld-musl-", "libc.musl-")
_UNWINDING_LIBRARIES: Final = ("libgcc_s", "libunwind", "libc++abi")
_RECORD: Final = ctypes.sizeof(Guard)


def install(process: Process, agent: Agent, wanted: Sequence[Guarded], sites: Collection[int]) -> None:
    """Puts the guards in place that are not there yet, in every library that has the function.

    sites: addresses that are to be probed as well: AttachError when a guard needs one of them. A process without
    such functions (static and stripped, or Go) gets no guards.
    """
    from userbpf.attach import Injector

    records = [record if _is_armed(process, record) else Guard() for record in _records(process, agent)]
    present = {(record.kind, record.site) for record in records if record.site}
    libraries = C_LIBRARIES if wanted is SIGNALS else _UNWINDING_LIBRARIES
    plans = [
        (guarded, plan)
        for guarded in wanted
        for plan in _plans(process, guarded.function, libraries)
        if (GUARDED.index(guarded), plan.addr) not in present
    ]
    free = [slot for slot, record in enumerate(records) if not record.site]
    if not plans:
        return
    for guarded, plan in plans:
        if plan.addr in sites:
            raise AttachError(
                f"{guarded.function} ({plan.addr:#x}) cannot be probed: userbpf stands before it for these programs",
                hint="probe it with an object of its own, whose programs neither read memory nor run at returns",
            )
    if len(plans) > len(free):
        raise AttachError(
            f"process {process.pid} ({process.name}) has more unwinders and C libraries than userbpf can stand before",
            hint="choose programs that neither read memory nor run at returns",
        )
    injector = Injector(process)
    slots = free[: len(plans)]
    try:
        _install(process, agent, plans, slots, injector)
    except BaseException:
        for slot in slots:
            _write_record(process, agent, slot, Guard())
        with process.stop() as stopped:
            injector.unmap_all(stopped)
        raise


def _install(
    process: Process,
    agent: Agent,
    plans: Sequence[tuple[Guarded, SitePlan]],
    slots: Sequence[int],
    injector: Injector,
) -> None:
    from userbpf.attach import apply

    with process.stop() as stopped:
        regions = [injector.map_trampolines(stopped, plan.module, guard_size(plan, guarded)) for guarded, plan in plans]
    patches = []
    for (guarded, plan), region, slot in zip(plans, regions, slots, strict=True):
        patch = build_guard(plan, region.addr, guarded, agent.symbol(guarded.handler))
        injector.write(region.addr, patch.code)
        original = b"".join(insn.raw for insn in plan.insns)
        padded = tuple(original.ljust(Guard.original.size, b"\0"))
        record = Guard(plan.addr, region.addr, region.size, padded, len(original), GUARDED.index(guarded))
        _write_record(process, agent, slot, record)
        patches.append(patch)
    apply(process, patches)


def _is_armed(process: Process, record: Guard) -> bool:
    """False for a record that is free, or was written by a userbpf that was killed before it patched the function."""
    size = min(record.length, JUMP_SIZE)
    try:
        return bool(record.site) and process.read(record.site, size) != bytes(record.original[:size])
    except ProcessError:
        return False  # the library was unloaded, and the guard with it


def _plans(process: Process, name: str, libraries: tuple[str, ...]) -> list[SitePlan]:
    """Where the process has the function; places that cannot be patched are left out."""
    from userbpf.attach import plan_site

    found = []
    for module in process.modules():
        if not _may_have(process, module, libraries) or module.elf.find(name) is None:
            continue
        function = module.function(name)
        try:
            plan = plan_site(process, module, function.addr, function)
        except AttachError:
            continue
        if plan.island is None and sum(insn.size for insn in plan.insns) <= Guard.original.size:
            found.append(plan)
    return found


def _may_have(process: Process, module: Module, libraries: tuple[str, ...]) -> bool:
    return module.path == process.exe or module.name.startswith(libraries)


def _records(process: Process, agent: Agent) -> list[Guard]:
    data = process.read(agent.proc + Proc.guards.offset, Proc.guards.size)
    return [Guard.from_buffer_copy(data, at) for at in range(0, len(data), _RECORD)]


def _write_record(process: Process, agent: Agent, slot: int, record: Guard) -> None:
    process.write(agent.proc + Proc.guards.offset + slot * _RECORD, bytes(record))


def installed(process: Process, agent: Agent, injector: Injector) -> list[Patch]:
    """The guards that are in place, from the agent's own records; their pages become regions of ``injector``."""
    from userbpf.attach import Region

    patches = []
    for record in _records(process, agent):
        module = process.module_at(record.site) if record.site else None
        if module is None or record.kind >= len(GUARDED):
            continue
        original = bytes(record.original[: record.length])
        plan = replan_guard(module, record.site, original, shadow_stack=process.shadow_stack)
        guarded = GUARDED[record.kind]
        patches.append(build_guard(plan, record.trampoline, guarded, agent.symbol(guarded.handler)))
        injector.regions.append(Region(record.trampoline, record.size, "trampoline", "guard", record.size))
    return patches
