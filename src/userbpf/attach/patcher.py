"""Writing patches into a stopped target and taking them out again: all of them, or none.

A patch replaces bytes that threads may be executing. While all are stopped, each thread's position decides: inside the
patched bytes it is moved to the same instruction in the trampoline, and back when the patch goes. What a signal
handler will return to lies on the stacks: they are searched (see stacks.py), and while a thread is in the way the
target runs on and is stopped again a little later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from userbpf.attach.injector import Injector, Region
from userbpf.attach.relocate_x86 import Place
from userbpf.attach.site import who_patched
from userbpf.attach.stacks import hits, read_stacks
from userbpf.attach.trampoline import Patch, Write
from userbpf.errors import AttachError, ProcessError
from userbpf.errors import Place as ErrorPlace
from userbpf.process import Mapping, Process, ProcessExitedError, Registers, Stopped

__all__ = ["RemoveReport", "StopReport", "apply", "remove"]

_SYSCALL_SIZE: Final = 2
_FIRST_PAUSE: Final = 0.0005
_LONGEST_PAUSE: Final = 0.05


@dataclass
class StopReport:
    """How often and how long the target stood still."""

    stops: int = 0
    longest_ns: int = 0
    total_ns: int = 0

    def count(self, elapsed_ns: int) -> None:
        self.stops += 1
        self.longest_ns = max(self.longest_ns, elapsed_ns)
        self.total_ns += elapsed_ns


@dataclass
class RemoveReport(StopReport):
    """What removing did. ``left_mapped``: regions that a thread still needs; ``conflicts``: sites that were not
    restored because somebody else changed them after us, with the sentence that says so; ``gone``: the process ended.
    """

    left_mapped: list[Region] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    gone: bool = False


class _Busy(Exception):
    """A thread is at a place where it cannot be helped; its message says where."""


def _inside(patches: Iterable[Patch]) -> dict[int, Patch]:
    """Every address strictly inside patched bytes."""
    return {addr: p for p in patches for addr in range(p.plan.addr + 1, p.plan.addr + p.plan.size)}


def _merge(addresses: Sequence[int]) -> list[tuple[int, int]]:
    """Sorted addresses as half-open ranges."""
    spans: list[tuple[int, int]] = []
    for addr in addresses:
        if spans and spans[-1][1] == addr:
            spans[-1] = (spans[-1][0], addr + 1)
        else:
            spans.append((addr, addr + 1))
    return spans


def _check_overlaps(patches: Sequence[Patch]) -> None:
    writes = sorted((w for p in patches for w in p.writes), key=lambda w: w.addr)
    for first, second in zip(writes, writes[1:], strict=False):
        if first.addr + len(first.old) > second.addr:
            raise AttachError(
                f"the patches at {first.addr:#x} and {second.addr:#x} overlap",
                hint="probe only one of two places that are less than 5 bytes apart",
            )


def _compare(process: Process, patches: Sequence[Patch], *, armed: bool) -> list[tuple[Patch, str]]:
    """Patches whose bytes in the target are not as we left them, with who changed them.

    Of patches that should be armed, any write may still (or again) be the original: who armed them may have been
    killed in the midst of it.
    """
    writes = [(p, w) for p in patches for w in p.writes]
    live = process.read_many([(w.addr, len(w.old)) for _, w in writes])
    wrong: dict[int, tuple[Patch, str]] = {}
    mappings: list[Mapping] = []
    for (patch, write), found in zip(writes, live, strict=True):
        expected = (write.new, write.old) if armed else (write.old,)
        if found not in expected and id(patch) not in wrong:
            mappings = mappings or process.mappings()
            wrong[id(patch)] = (patch, who_patched(mappings, write.addr, found))
    return list(wrong.values())


def _armed_writes(process: Process, patches: Sequence[Patch]) -> list[Write]:
    """The writes that are in place, in the order in which they are to be undone."""
    writes = [w for p in patches for w in reversed(p.writes)]
    live = process.read_many([(w.addr, len(w.old)) for w in writes]) if writes else []
    return [write for write, found in zip(writes, live, strict=True) if found == write.new]


def _describe(patch: Patch, why: str) -> str:
    return f"{patch.plan.func.name} ({patch.plan.addr:#x}): {why}"


def _move_in(stopped: Stopped, inside: dict[int, Patch], patches: Sequence[Patch]) -> dict[int, Registers]:
    """New registers for the threads that stand inside patched bytes. Raises _Busy."""
    # A thread behind a moved `syscall` may be sent back over it (restart): it has to be in the moved copy, too.
    behind = {p.plan.resume: p for p in patches if p.plan.insns[-1].is_syscall}
    moves: dict[int, Registers] = {}
    for tid, regs in stopped.threads.items():
        patch = inside.get(regs.ip)
        if patch is None and regs.in_syscall and regs.ip - _SYSCALL_SIZE in inside:
            patch = behind.get(regs.ip)
        if patch is None:
            continue
        if regs.ip not in patch.starts or stopped.in_critical_section(tid):
            raise _Busy(f"thread {tid} stands at {regs.ip:#x}, inside the bytes to be patched")
        moved = regs.copy()
        moved.ip = patch.starts[regs.ip]
        moves[tid] = moved
    return moves


def _write_all(process: Process, writes: Sequence[Write], *, arm: bool) -> None:
    """Write the new (or the old) bytes and read them back; on failure what was written is undone."""
    done: list[Write] = []
    try:
        for write in writes:
            process.write(write.addr, write.new if arm else write.old)
            done.append(write)
        live = process.read_many([(w.addr, len(w.old)) for w in writes])
        if any(found != (w.new if arm else w.old) for w, found in zip(writes, live, strict=True)):
            raise AttachError("the patched bytes read back differently", hint="another tool patches this process now")
    except (ProcessError, AttachError):
        for write in reversed(done):
            process.write(write.addr, write.old if arm else write.new)
        raise


def apply(process: Process, patches: Sequence[Patch], *, timeout: float = 2.0) -> StopReport:
    """Arm all patches in one short stop. Their trampolines have to be in place.

    timeout: seconds to keep trying while a thread is in the way. AttachError when nothing was changed.
    """
    _check_overlaps(patches)
    report = StopReport()
    inside = _inside(patches)
    behind = [a + _SYSCALL_SIZE for a in inside]
    spans = _merge(sorted(inside))
    writes = [write for patch in patches for write in patch.writes]
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        busy = ""
        with process.stop(timeout) as stopped:
            wrong = _compare(process, patches, armed=False)
            if wrong:
                raise AttachError(
                    f"{_describe(*wrong[0])}; nothing was patched",
                    place=ErrorPlace(file=wrong[0][0].plan.module.path),
                    hint="detach the other tool first",
                )
            try:
                near = any(r.ip in inside or r.ip in behind for r in stopped.threads.values())
                moves = _move_in(stopped, inside, patches) if near else {}
                for stack in read_stacks(stopped, process.mappings()):
                    for hit in hits(stack.data, spans):
                        if hit.framed:
                            raise _Busy(f"a signal handler will return to {hit.value:#x}, inside the patched bytes")
                _write_all(process, writes, arm=True)
                for tid, regs in moves.items():
                    stopped.set_registers(tid, regs)
            except _Busy as problem:
                busy = str(problem)
        report.count(stopped.elapsed_ns)
        if not busy:
            return report
        if time.monotonic() > deadline:
            raise AttachError(f"the target could not be patched: {busy}", hint="try again; nothing was changed")
        time.sleep(pause)  # let the target run on before looking again: the loop, not the pause, decides
        pause = min(pause * 2, _LONGEST_PAUSE)


def _move_out(stopped: Stopped, patches: Sequence[Patch], regions: Sequence[Region]) -> bool:
    """Take threads out of trampolines. False while one stands in other code of ours."""
    places: dict[int, Place] = {}
    clear = True
    for tid, regs in list(stopped.threads.items()):
        region = next((r for r in regions if r.addr <= regs.ip < r.addr + r.code_size), None)
        islands = any(p.plan.island == regs.ip for p in patches)
        if region is None and not islands:
            continue
        if not places:
            places = {addr: place for p in patches for addr, place in p.places.items()}
        place = places.get(regs.ip)
        if place is None:
            clear = False
            continue
        moved = regs.copy()
        moved.ip = place.addr
        moved.sp = regs.sp + place.sp_delta
        stopped.set_registers(tid, moved)
    return clear


def remove(
    process: Process,
    patches: Sequence[Patch],
    injector: Injector,
    *,
    timeout: float = 2.0,
    before_scan: Callable[[Stopped], None] | None = None,
    callees: Sequence[tuple[int, int]] = (),
) -> RemoveReport:
    """Restore the original bytes and, as soon as no thread needs them, give all regions of ``injector`` back.

    The bytes are restored in the first stop. before_scan is called in every stop before the threads are looked at:
    it takes what refers to our code off the stacks, which is a must where return probes were armed, and may add
    regions. callees: (start, end) of code outside of our regions that ours calls: a thread in there may come back.
    timeout: how long to wait for threads that are still in our code or will return to it; then their regions
    stay mapped and the report says so. A process that has ended is no error.
    """
    report = RemoveReport()
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    restored = False
    kept: list[Patch] = []
    try:
        while True:
            with process.stop(timeout) as stopped:
                if not restored:
                    wrong = _compare(process, patches, armed=True)
                    report.conflicts = [_describe(*conflict) for conflict in wrong]
                    kept = [patch for patch, _ in wrong]
                    ours = [p for p in patches if all(p is not k for k in kept)]
                    _write_all(process, _armed_writes(process, ours), arm=False)
                    restored = True
                if before_scan is not None:
                    before_scan(stopped)
                if not kept and _may_unmap(stopped, ours, injector, callees):
                    injector.unmap_all(stopped)
            report.count(stopped.elapsed_ns)
            if not injector.regions:
                return report
            if kept or time.monotonic() > deadline:
                report.left_mapped = list(injector.regions)
                return report
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
    except ProcessExitedError:
        report.gone = True
        injector.regions.clear()
        return report


def _may_unmap(
    stopped: Stopped, patches: Sequence[Patch], injector: Injector, callees: Sequence[tuple[int, int]]
) -> bool:
    """True when no thread is in our code, nor will return to it; threads in trampolines are moved out."""
    code = [(r.addr, r.addr + r.code_size) for r in injector.regions if r.code_size]
    if not code:
        return True
    if not _move_out(stopped, patches, injector.regions):
        return False
    if any(low <= regs.ip < high for regs in stopped.threads.values() for low, high in callees):
        return False
    mappings = stopped.process.mappings()
    vdso = [(m.start, m.end) for m in mappings if m.path == "[vdso]"]
    for stack in read_stacks(stopped, mappings):
        found = list(hits(stack.data, code))
        if any(hit.framed for hit in found) or (callees and any(hit.framed for hit in hits(stack.data, callees))):
            return False
        if not found or not vdso:
            continue
        (low, high) = vdso[0]
        if low <= stack.regs.ip < high or any(hit.framed for hit in hits(stack.data, vdso)):
            return False
    return True
