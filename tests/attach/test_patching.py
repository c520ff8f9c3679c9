"""Patching real processes under load: every call is right, every byte comes back, nothing is left behind."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

from userbpf.attach import Cell, Injector, apply, build_trampoline, plan_site, remove, trampoline_size
from userbpf.attach.trampoline import CELL_SIZE
from userbpf.errors import AttachError
from userbpf.process import Module, Process, ProcessExitedError, Registers
from userbpf.process.tracer import thread_state

from ..process.programs import as_nobody, finish, running, snapshot
from .hooks import NOTHING, Probes

ROUNDS = 125


def code_of(process: Process) -> bytes:
    return b"".join(process.read(m.start, m.size) for m in process.main_module().mappings if m.executable)


def rounds(program: Path, count: int) -> None:
    """``count`` times attach and detach a hook that does nothing, on both hot functions of the target."""
    with running([str(program)]) as child, Process(child.pid) as process:
        module = process.main_module()
        sites = [(module, module.function("work").addr), (module, module.function("leaf").addr)]
        maps, code = snapshot(child.pid), code_of(process)
        for _ in range(count):
            report = Probes(process, sites, code=NOTHING).remove()
            assert not report.left_mapped
            assert not report.conflicts
        assert snapshot(child.pid) == maps
        assert code_of(process) == code
        calls, naps, wrong, alarms = finish(child)
        assert wrong == 0
        assert calls > 1000
        assert naps > 1
        assert alarms > 1


def test_many_rounds_on_a_busy_process_lose_nothing(busy: Path) -> None:
    rounds(busy, ROUNDS)


def test_rounds_as_an_ordinary_user(busy: Path) -> None:
    as_nobody(lambda: rounds(busy, 40))


def test_every_call_is_counted_while_attached(busy: Path) -> None:
    with running([str(busy)]) as child, Process(child.pid) as process:
        module = process.main_module()
        work, leaf = module.function("work").addr, module.function("leaf").addr
        # `leaf` keeps its data in the red zone: its inner sites are the hardest.
        inner = [i.end for i in plan_site(process, module, leaf).insns][-1]
        probes = Probes(process, [(module, work), (module, leaf), (module, inner)])
        deadline = time.monotonic() + 10
        while min(probes.counts()) < 100_000:
            assert time.monotonic() < deadline, probes.counts()
        assert not probes.remove().left_mapped
        assert finish(child)[2] == 0


@pytest.mark.parametrize("command", [["python3", "-c", "while True: str(1)"], ["bash", "-c", "while :; do :; done"]])
def test_programs_of_others_run_on_unharmed(command: list[str]) -> None:
    with subprocess.Popen(command) as child:
        deadline = time.monotonic() + 10
        while not {"libc.so.6"} <= {os.path.basename(line) for line in _mapped(child.pid)} or _cpu(child.pid) < 5:
            assert time.monotonic() < deadline
        with Process(child.pid) as process:
            libc = process.resolve_library("libc.so.6")
            names = ("malloc", "free", "realloc", "sigprocmask", "getpid")
            before = process.read(libc.mappings[1].start, libc.mappings[1].size)
            probes = Probes(process, [(libc, libc.function(name).addr) for name in names])
            used = _cpu(child.pid)
            while _cpu(child.pid) < used + 5:
                assert time.monotonic() < deadline
            assert not probes.remove().left_mapped
            assert process.read(libc.mappings[1].start, libc.mappings[1].size) == before
            assert not any("userbpf" in m.path for m in process.mappings())
        assert child.poll() is None
        child.kill()


def _mapped(pid: int) -> list[str]:
    return [line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]


def _cpu(pid: int) -> int:
    """Clock ticks that the process has run."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_a_thousand_sites_are_patched_in_one_short_stop(shapes: Path) -> None:
    with running([str(shapes)]) as child, Process(child.pid) as process:
        libc = process.resolve_library("libc.so.6")
        vaddrs = sorted({s.vaddr for s in libc.functions if not s.ifunc and s.size >= 16})
        plans = []
        for vaddr in vaddrs:
            try:
                plans.append(plan_site(process, libc, libc.addr(vaddr), beside=plans))
            except AttachError:
                continue
            if len(plans) == 1000:
                break
        probes = Probes(process, [], code=NOTHING, plans=plans)
        report = probes.remove()
        assert not report.left_mapped
        assert finish(child) == [0]
        print(f"{len(plans)} sites: {probes.stop.longest_ns / 1e6:.1f} ms in, {report.longest_ns / 1e6:.1f} ms out")
        # A bound that only a change of kind would break, on any machine; figures are in the benchmarks.
        assert probes.stop.stops < 10
        assert probes.stop.longest_ns < 2_000_000_000


def test_a_process_stopped_by_sigstop_is_patched_and_stays_stopped(busy: Path) -> None:
    with running([str(busy)]) as child, Process(child.pid) as process:
        os.kill(child.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while thread_state(child.pid) != "T":
            assert time.monotonic() < deadline
        module = process.main_module()
        probes = Probes(process, [(module, module.function("work").addr)])
        deadline = time.monotonic() + 10
        while thread_state(child.pid) != "T":
            assert time.monotonic() < deadline
        assert probes.counts() == [0]
        os.kill(child.pid, signal.SIGCONT)
        while probes.counts() == [0]:
            assert time.monotonic() < deadline
        assert not probes.remove().left_mapped
        assert finish(child)[2] == 0


def frozen_inside(process: Process, module: Module, addr: int, second: int) -> tuple[Probes, int, Registers]:
    """Probes on a stopped process one of whose threads is made to stand at ``second``, and its real registers.

    SIGSTOP may come while a signal handler runs that will return into the bytes to be patched: then never again.
    """
    for _ in range(50):
        os.kill(process.pid, signal.SIGSTOP)
        with process.stop() as stopped:
            tid = max(stopped.threads)
            original = stopped.threads[tid].copy()
            pretended = original.copy()
            pretended.ip, pretended.orig_rax = second, (1 << 64) - 1
            stopped.set_registers(tid, pretended)
        try:
            return Probes(process, [(module, addr)], timeout=0.01), tid, original
        except AttachError as error:
            assert "a signal handler will return" in str(error)
            with process.stop() as stopped:
                stopped.set_registers(tid, original)
            os.kill(process.pid, signal.SIGCONT)
    raise AssertionError("a signal handler was in the way fifty times")


def test_a_thread_inside_the_patched_bytes_is_moved_there_and_back(busy: Path) -> None:
    with running([str(busy)]) as child, Process(child.pid) as process:
        module = process.main_module()
        addr = module.function("work").addr
        second = plan_site(process, module, addr).insns[1].addr
        probes, first_thread, original = frozen_inside(process, module, addr, second)
        with process.stop() as stopped:
            assert stopped.threads[first_thread].ip == probes.patches[0].starts[second]
        assert not probes.remove().left_mapped
        with process.stop() as stopped:
            assert stopped.threads[first_thread].ip == second
            stopped.set_registers(first_thread, original)
        os.kill(child.pid, signal.SIGCONT)
        assert finish(child)[2] == 0


def test_a_signal_handler_that_returns_to_our_code_keeps_it_mapped(busy: Path) -> None:
    with running([str(busy)]) as child, Process(child.pid) as process:
        module = process.main_module()
        maps = snapshot(child.pid)
        probes = Probes(process, [(module, module.function("work").addr)])
        os.kill(child.pid, signal.SIGSTOP)
        with process.stop() as stopped:
            regs = stopped.threads[child.pid]
            slot = regs.sp & -8
            saved = stopped.read(slot, 24)
            # As a signal frame has it: instruction pointer, flags, segments.
            stopped.write(slot, struct.pack("<QQQ", probes.image.addr + 4, 0x246, 0x002B_0000_0000_0033))
        report = probes.remove(timeout=0.02)
        assert report.left_mapped
        assert process.read(probes.plans[0].addr, 5) == probes.plans[0].original
        process.write(slot, saved)
        os.kill(child.pid, signal.SIGCONT)  # another thread may really be in a handler that returns to our code
        report = remove(process, [], probes.injector)
        assert not report.left_mapped
        assert snapshot(child.pid) == maps
        assert finish(child)[2] == 0


def test_a_site_that_somebody_else_changed_is_left_alone(busy: Path) -> None:
    with running([str(busy)]) as child, Process(child.pid) as process:
        module = process.main_module()
        work, leaf = module.function("work").addr, module.function("leaf").addr
        probes = Probes(process, [(module, work), (module, leaf)])
        ours = process.read(leaf, 5)
        os.kill(child.pid, signal.SIGSTOP)
        process.write(leaf + 1, bytes([ours[1] ^ 1]))
        report = probes.remove()
        assert len(report.conflicts) == 1
        assert report.conflicts[0].startswith(f"leaf ({leaf:#x}): ")
        assert report.left_mapped
        assert process.read(work, 5) == probes.plans[0].original
        process.write(leaf, ours)
        os.kill(child.pid, signal.SIGCONT)
        report = remove(process, probes.patches[1:], probes.injector, timeout=5)
        assert not report.left_mapped
        assert finish(child)[2] == 0


def test_changed_bytes_are_seen_before_anything_is_written(busy: Path) -> None:
    with running([str(busy)]) as child, Process(child.pid) as process:
        os.kill(child.pid, signal.SIGSTOP)
        module = process.main_module()
        work, leaf = module.function("work").addr, module.function("leaf").addr
        plans = [plan_site(process, module, addr) for addr in (work, leaf)]
        injector = Injector(process)
        with process.stop() as stopped:
            region = injector.map_trampolines(stopped, module, 4096)
        patches = []
        addr = region.addr
        for plan in plans:
            patches.append(build_trampoline(plan, [Cell(region.addr, plan.addr, plan.addr, 0)], addr))
            addr += trampoline_size(plan, 1)
        process.write(leaf, b"\xcc")
        with pytest.raises(AttachError, match="leaf .* a breakpoint .* nothing was patched"):
            apply(process, patches)
        process.write(leaf, plans[1].original[:1])
        assert [process.read(p.addr, 5) for p in plans] == [p.original for p in plans]
        with pytest.raises(AttachError, match="overlap"):
            apply(process, [patches[0], patches[0]])
        assert not remove(process, [], injector).left_mapped
        os.kill(child.pid, signal.SIGCONT)
        assert finish(child)[2] == 0


def test_a_target_that_ends_while_we_attach_is_an_error_and_no_harm(busy: Path) -> None:
    for delay in (0.0, 0.001, 0.002, 0.004, 0.008):
        with running([str(busy)]) as child, Process(child.pid) as process:
            module = process.main_module()
            sites = [(module, module.function("work").addr)]
            killer = threading.Timer(delay, os.kill, (child.pid, signal.SIGKILL))
            killer.start()
            try:
                with pytest.raises(ProcessExitedError):
                    while True:
                        Probes(process, sites, code=NOTHING).remove()
                        if not process.alive:
                            raise ProcessExitedError("ended between two rounds")
            finally:
                killer.join()
            assert child.wait(10) == -signal.SIGKILL


def test_a_trampoline_of_several_cells_follows_the_header(busy: Path) -> None:
    with running([str(busy)]) as child, Process(child.pid) as process:
        module = process.main_module()
        plan = plan_site(process, module, module.function("work").addr)
        addr = module.end & -4096
        patch = build_trampoline(plan, [Cell(addr, plan.addr, plan.addr, n, cookie=n) for n in range(3)], addr)
        assert len(patch.code) <= trampoline_size(plan, 3)
        position = 0
        for number in range(3):
            assert (addr + position) % 16 == 0
            fields = struct.unpack_from("<5Q2I2Q", patch.code, position)
            assert fields == (addr, 0, plan.addr, plan.addr, number, number, 0, 0, 0)
            # call *hook(%rip), returning to UB_CELL_RET_ENTRY
            assert patch.code[position + CELL_SIZE : position + 70] == b"\xff\x15" + struct.pack("<i", -70)
            if number < 2:
                assert patch.code[position + 70 : position + 72] == b"\xeb" + bytes([8 + CELL_SIZE])
                position += 80
        finish(child)
