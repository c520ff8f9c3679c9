"""Stopping real processes: nothing is lost, nothing is disturbed, everything is let go."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from userbpf.errors import ProcessError
from userbpf.process import Process, ProcessExitedError
from userbpf.process.linux_x86_64 import NR
from userbpf.process.tracer import thread_state

from .programs import as_nobody, finish, running, snapshot

GETPID, GETTID, KILL = 39, 186, 62


def wait_state(pid: int, wanted: str) -> None:
    deadline = time.monotonic() + 10
    while thread_state(pid) not in wanted:
        assert time.monotonic() < deadline, f"{pid} is {thread_state(pid)}, not {wanted}"
        time.sleep(0.001)


def exercise(program: Path) -> None:
    with running([str(program)]) as child, Process(child.pid) as process:
        before = snapshot(child.pid)
        for round_number in range(60):
            os.kill(child.pid, signal.SIGRTMIN)
            with process.stop() as stopped:
                os.kill(child.pid, signal.SIGRTMIN)
                assert stopped.syscall(GETPID) == child.pid
                if round_number % 10 == 0:
                    fd = os.memfd_create("test")
                    os.write(fd, b"hello")
                    addr = stopped.map_fd(fd, 5, 1, 1)
                    os.close(fd)
                    assert stopped.read(addr, 5) == b"hello"
                    stopped.munmap(addr, 4096)
            os.kill(child.pid, signal.SIGRTMIN)
            time.sleep(0.003)  # let the threads wait again: the load of this test, not its condition
        assert snapshot(child.pid) == before
        wrong, *counts, received = finish(child)
        assert wrong == 0
        assert all(counts)
        assert received == 180


def test_stops_and_remote_calls_disturb_no_waiting_thread_and_lose_no_signal(blocked: Path) -> None:
    exercise(blocked)


def test_the_same_as_an_ordinary_user(blocked: Path) -> None:
    as_nobody(lambda: exercise(blocked))


def test_a_remote_call_leaves_every_register_as_it_was(blocked: Path) -> None:
    with running([str(blocked)]) as child, Process(child.pid) as process, process.stop() as stopped:
        tracer = stopped._tracer
        before = {tid: bytes(tracer.run(tracer.get_registers, tid)) for tid in stopped.threads}
        stopped.syscall(GETTID)
        with pytest.raises(OSError, match="Bad file descriptor"):
            stopped.close_fd(12345)
        tracer.run(stopped._unpark)
        assert {tid: bytes(tracer.run(tracer.get_registers, tid)) for tid in stopped.threads} == before


def test_a_process_that_was_stopped_by_sigstop_stays_stopped() -> None:
    with subprocess.Popen(["sleep", "60"]) as child, Process(child.pid) as process:
        os.kill(child.pid, signal.SIGSTOP)
        wait_state(child.pid, "T")
        for _ in range(3):
            with process.stop() as stopped:
                assert stopped.syscall(GETPID) == child.pid
            wait_state(child.pid, "T")
        os.kill(child.pid, signal.SIGCONT)
        wait_state(child.pid, "S")
        child.kill()


def test_a_stop_signal_that_arrives_during_the_stop_is_obeyed() -> None:
    with subprocess.Popen(["sleep", "60"]) as child, Process(child.pid) as process:
        with process.stop() as stopped:
            os.kill(child.pid, signal.SIGSTOP)
            assert stopped.syscall(GETPID) == child.pid
        wait_state(child.pid, "T")
        child.kill()


def test_an_exception_in_the_block_lets_everything_go(blocked: Path) -> None:
    with running([str(blocked)]) as child, Process(child.pid) as process:
        for error in (KeyboardInterrupt, ValueError):
            with pytest.raises(error), process.stop() as stopped:
                stopped.syscall(GETPID)
                raise error
            assert process.status()["TracerPid"] == "0"
        assert finish(child)[0] == 0


def test_interrupts_at_any_moment_let_everything_go(blocked: Path) -> None:
    with running([str(blocked)]) as child, Process(child.pid) as process:
        before = snapshot(child.pid)
        interrupted = 0
        deadline = time.monotonic() + 20
        while interrupted < 40:
            assert time.monotonic() < deadline
            timer = threading.Timer(0.0001 * interrupted, os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                while True:
                    with process.stop() as stopped:
                        stopped.send_fds([])
                        stopped.syscall(GETPID)
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                timer.join()
        gc.collect()
        with process.stop():
            pass
        assert process.status()["TracerPid"] == "0"
        assert snapshot(child.pid) == before
        assert finish(child)[0] == 0


def test_the_death_of_the_controller_lets_everything_go(blocked: Path) -> None:
    with running([str(blocked)]) as child:
        reader, writer = os.pipe()
        controller = os.fork()
        if controller == 0:
            with Process(child.pid) as process, process.stop() as stopped:
                stopped.syscall(GETPID)  # its thread waits outside the signal code now: nobody will restart its call
                os.write(writer, b"s")
                signal.pause()
            os._exit(0)
        assert os.read(reader, 1) == b"s"
        os.close(reader)
        os.close(writer)
        os.kill(controller, signal.SIGKILL)
        os.waitpid(controller, 0)
        assert finish(child)[0] == 0


def test_a_process_that_is_killed_while_stopped_is_reported_as_ended() -> None:
    with subprocess.Popen(["sleep", "60"]) as child, Process(child.pid) as process:
        with pytest.raises(ProcessExitedError, match="ended"), process.stop() as stopped:
            child.kill()
            wait_state(child.pid, "ZX")
            stopped.syscall(GETPID)
        assert child.wait(10) == -signal.SIGKILL
        with pytest.raises(ProcessExitedError, match="has ended"), process.stop():
            pass


def test_an_uninterruptible_process_is_refused_and_released(blocked: Path) -> None:
    with running([str(blocked), "vfork"]) as child:
        wait_state(child.pid, "D")
        with Process(child.pid) as process:
            with pytest.raises(ProcessError, match="did not stop in time.*uninterruptibly"), process.stop(0.05):
                pass
            assert process.status()["TracerPid"] == "0"
        assert finish(child) == [0]


def test_two_tracers_are_refused(blocked: Path) -> None:
    with running([str(blocked)]) as child, Process(child.pid) as process, process.stop():
        reader, writer = os.pipe()
        other = os.fork()
        if other == 0:
            try:
                with Process(child.pid) as second, second.stop():
                    pass
            except ProcessError as error:
                os.write(writer, str(error).encode())
            os._exit(0)
        os.close(writer)
        with open(reader) as file:
            problem = file.read()
        os.waitpid(other, 0)
        assert "is already traced by process" in problem


def test_descriptors_arrive_in_order_and_many(blocked: Path) -> None:
    with running([str(blocked)]) as child, Process(child.pid) as process:
        fds = [os.memfd_create(f"m{i}") for i in range(300)]
        for i, fd in enumerate(fds):
            os.truncate(fd, i + 1)
        before = snapshot(child.pid)
        with process.stop() as stopped:
            remote = stopped.send_fds(fds)
            sizes = [os.stat(f"/proc/{child.pid}/fd/{fd}").st_size for fd in remote]
            for fd in remote:
                stopped.close_fd(fd)
        assert sizes == list(range(1, 301))
        assert snapshot(child.pid) == before
        for fd in fds:
            os.close(fd)


def test_the_thread_id_of_the_c_library_is_found(blocked: Path) -> None:
    with running([str(blocked)]) as child, Process(child.pid) as process:
        offset = process.thread_id_offset()
        assert offset is not None
        with process.stop() as stopped:
            for tid, regs in stopped.threads.items():
                assert int.from_bytes(stopped.read(regs.thread_pointer + offset, 4), "little") == tid


def test_a_seccomp_sandbox_is_suspended_by_root_and_refused_to_others() -> None:
    # The filter allows everything; what counts is that there is one more than ours.
    code = (
        "import ctypes,struct,sys\nlibc=ctypes.CDLL(None)\nlibc.prctl(38,1,0,0,0)\n"
        "f=ctypes.create_string_buffer(struct.pack('<HBBI',6,0,0,0x7fff0000))\n"
        "p=ctypes.create_string_buffer(struct.pack('<H6xQ',1,ctypes.addressof(f)))\n"
        "assert libc.prctl(22,2,p,0,0)==0\nprint('ready',flush=True)\nsys.stdin.readline()"
    )

    def refused() -> None:
        with running(["python3", "-c", code]) as child, Process(child.pid) as process:
            with pytest.raises(ProcessError, match="seccomp"), process.stop():
                pass
            assert process.status()["TracerPid"] == "0"

    as_nobody(refused)
    if os.geteuid() == 0:
        with running(["python3", "-c", code]) as child, Process(child.pid) as process, process.stop() as stopped:
            assert stopped.syscall(GETPID) == child.pid
            assert NR["mmap"] == 9
