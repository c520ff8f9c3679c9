"""Stopping threads with ptrace(2), and running one system call in a stopped thread.

Facts that shape this (ptrace(2); kernel/signal.c, kernel/ptrace.c, kernel/entry/common.c):

* ptrace requests are accepted only from the *thread* that attached. All of one stop are made by one worker thread, so
  an interrupt of Python's main thread cannot break a sequence in the middle, and whatever happens, the end of that
  thread (or of the whole controller) makes the kernel detach what is still attached.
* A thread that waits in a system call stops with the call's restart code in its registers; the restart happens when it
  leaves the signal code. So every thread is brought to, and let go from, a PTRACE_EVENT_STOP, which lies inside it.
* A signal that has been taken from the queue when the thread stops is put back by the kernel with its siginfo when the
  thread blocks it at that moment (ptrace_signal() requeues).
* During a remote call all signals are blocked, so the call is not interrupted; registers and mask are restored before
  the next one. A controller that is killed in that window (about 30 µs) leaves the thread with changed registers.
  Between calls the thread waits in a system call's exit stop, outside the signal code: should the controller die there,
  registers that make the interrupted call again are in place ("parked").
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import queue
import signal
import struct
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final, TypeVar

from userbpf.process import sys as psys
from userbpf.process.linux_x86_64 import Registers, parked, point_at_syscall

__all__ = ["Gone", "Tracer", "UnexpectedStop"]

T = TypeVar("T")

_NT_PRSTATUS: Final = 1
_SYSCALL_TRAP: Final = signal.SIGTRAP | 0x80
_STOP_SIGNALS: Final = frozenset((signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU))
_ENDED: Final = frozenset((os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED))
_ALL_SIGNALS: Final = ctypes.c_uint64(0xFFFF_FFFF_FFFF_FFFF)
_SPINS: Final = 128
CALL_TIMEOUT: Final = 30.0
"""Seconds for one remote system call; none of those that are made can block."""


class Gone(Exception):
    """The thread has ended."""


class UnexpectedStop(Exception):
    """The thread stopped for something that a remote system call does not cause: ``signal`` tells."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


class RseqConfiguration(ctypes.Structure):
    """struct ptrace_rseq_configuration."""

    _fields_ = [
        ("pointer", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("signature", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    ]


def _work(requests: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """The worker thread. It holds no reference to its Tracer while it waits."""
    with contextlib.suppress(PermissionError):  # only root may, and then the target stands still for less long
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -20)
    while (request := requests.get()) is not None:
        request()
        del request


class Tracer:
    """The worker thread, and the ptrace steps that run in it.

    The methods below ``run`` must be called in the worker: ``tracer.run(tracer.settle, tid, deadline)``.
    """

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._requests,), name="userbpf-tracer", daemon=True)
        self._thread.start()
        # An interrupt can keep `finish` from being called; then the worker ends with the last reference to this object.
        weakref.finalize(self, self._requests.put, None)

    def run(self, function: Callable[..., T], *args: object) -> T:
        """Run ``function(*args)`` in the worker and return or raise what it does.

        When the wait is interrupted (KeyboardInterrupt) the function still runs to its end.
        """
        reply: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def request() -> None:
            try:
                reply.put((function(*args), None))
            except BaseException as error:  # handed to the caller, whatever it is
                reply.put((None, error))

        self._requests.put(request)
        value, error = reply.get()
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # the function's own type, or it raised

    def finish(self, release: Callable[[], None]) -> None:
        """Run ``release`` as the last thing and end the worker; an interrupt waits until that is done."""
        self._requests.put(release)
        self._requests.put(None)
        interrupted: KeyboardInterrupt | None = None
        while self._thread.is_alive():
            try:
                self._thread.join()
            except KeyboardInterrupt as error:
                interrupted = error
        # Python's thread ends a little before the kernel's, whose end lets go of what is still traced.
        while os.path.exists(f"/proc/self/task/{self._thread.native_id}"):
            os.sched_yield()
        if interrupted is not None:
            raise interrupted

    # -- steps, in the worker ----------------------------------------------------------------------

    @staticmethod
    def get_registers(tid: int) -> Registers:
        regs = Registers()
        vector = psys.IoVec(ctypes.addressof(regs), ctypes.sizeof(regs))
        psys.ptrace(psys.PTRACE_GETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(vector))
        return regs

    @staticmethod
    def set_registers(tid: int, regs: Registers) -> None:
        vector = psys.IoVec(ctypes.addressof(regs), ctypes.sizeof(regs))
        psys.ptrace(psys.PTRACE_SETREGSET, tid, _NT_PRSTATUS, ctypes.addressof(vector))

    @staticmethod
    def rseq_area(tid: int) -> int:
        """Address of the thread's struct rseq, 0 when it has none (or the kernel, before 5.13, cannot tell)."""
        config = RseqConfiguration()
        try:
            psys.ptrace(psys.PTRACE_GET_RSEQ_CONFIGURATION, tid, ctypes.sizeof(config), ctypes.addressof(config))
        except OSError:
            return 0
        return int(config.pointer)

    @staticmethod
    def wait(tid: int, deadline: float) -> int:
        """Wait for the next stop: signal number | event << 8. Raises Gone, TimeoutError.

        The end of a thread is only looked at, never collected: that is the business of its parent. A stop that another
        thread of this process has collected (Popen.poll() of a child that is traced) is asked for again.
        """
        tries = 0
        taken = False
        while True:
            try:
                info = os.waitid(os.P_PID, tid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT | psys.WALL)
            except ChildProcessError:
                raise Gone from None
            if info is not None:
                if info.si_code in _ENDED:
                    raise Gone
                os.waitid(os.P_PID, tid, os.WSTOPPED | os.WNOHANG | psys.WALL)
                return int(info.si_status)
            tries += 1
            # Most stops take a few microseconds. Giving the processor away meanwhile would make this thread wait
            # behind the target's own threads when they are let go, one stopped and the next not yet.
            if tries <= _SPINS:
                continue
            state = thread_state(tid)
            if state in "ZX":
                raise Gone
            if state == "t" and taken:
                return Tracer._stop_status(tid)
            taken = state == "t"
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(min(0.002, 0.00005 * (tries - _SPINS)))

    @staticmethod
    def _stop_status(tid: int) -> int:
        info = ctypes.create_string_buffer(128)
        try:
            psys.ptrace(psys.PTRACE_GETSIGINFO, tid, 0, ctypes.addressof(info))
        except ProcessLookupError:
            raise Gone from None
        number, _, code = struct.unpack_from("<iii", info)
        if code >> 8 == psys.PTRACE_EVENT_STOP or code == _SYSCALL_TRAP:
            return int(code)
        return int(number)

    def settle(self, tid: int, deadline: float) -> None:
        """Bring a thread that has been interrupted to a PTRACE_EVENT_STOP, with no signal lost and none delivered."""
        while True:
            status = self.wait(tid, deadline)
            number, event = status & 0x7F, status >> 8
            if event == psys.PTRACE_EVENT_STOP:
                return
            try:
                if event or status == _SYSCALL_TRAP or number in _STOP_SIGNALS:
                    psys.ptrace(psys.PTRACE_INTERRUPT, tid)
                    psys.ptrace(psys.PTRACE_CONT, tid, 0, number if number in _STOP_SIGNALS and not event else 0)
                    continue
                mask = ctypes.c_uint64()
                psys.ptrace(psys.PTRACE_GETSIGMASK, tid, 8, ctypes.addressof(mask))
                psys.ptrace(psys.PTRACE_SETSIGMASK, tid, 8, ctypes.addressof(_ALL_SIGNALS))
                psys.ptrace(psys.PTRACE_INTERRUPT, tid)
                psys.ptrace(psys.PTRACE_CONT, tid, 0, number)
                self.settle(tid, deadline)
                psys.ptrace(psys.PTRACE_SETSIGMASK, tid, 8, ctypes.addressof(mask))
            except ProcessLookupError:
                raise Gone from None
            return

    def seize(self, tid: int, options: int) -> bool:
        """Attach to a thread and ask it to stop. False when it has ended meanwhile."""
        try:
            psys.ptrace(psys.PTRACE_SEIZE, tid, 0, options)
            psys.ptrace(psys.PTRACE_INTERRUPT, tid)
        except ProcessLookupError:
            return False
        except PermissionError:
            if thread_state(tid) in "ZX":
                return False
            raise
        return True

    def _to_syscall_stop(self, tid: int, deadline: float) -> None:
        number = 0
        while True:
            psys.ptrace(psys.PTRACE_SYSCALL, tid, 0, number)
            status = self.wait(tid, deadline)
            if status == _SYSCALL_TRAP:
                return
            number = 0
            if status >> 8 == 0:
                # SIGSTOP cannot be blocked: passing it on makes the group stop, of which PTRACE_EVENT_STOP tells next.
                number = status & 0x7F
                if number not in _STOP_SIGNALS:
                    raise UnexpectedStop(number)

    def syscall(self, tid: int, saved: Registers, insn_addr: int, nr: int, args: tuple[int, ...]) -> int:
        """Run one system call in a stopped thread. It is in the call's exit stop afterwards, with registers that it may
        go on with; :meth:`unpark` brings it back to where it was."""
        deadline = time.monotonic() + CALL_TIMEOUT
        mask = ctypes.c_uint64()
        try:
            psys.ptrace(psys.PTRACE_GETSIGMASK, tid, 8, ctypes.addressof(mask))
            psys.ptrace(psys.PTRACE_SETSIGMASK, tid, 8, ctypes.addressof(_ALL_SIGNALS))
            try:
                self.set_registers(tid, point_at_syscall(saved, insn_addr, nr, args))
                self._to_syscall_stop(tid, deadline)
                self._to_syscall_stop(tid, deadline)
                result = self.get_registers(tid).result
            finally:
                self.set_registers(tid, parked(saved))
                psys.ptrace(psys.PTRACE_SETSIGMASK, tid, 8, ctypes.addressof(mask))
        except ProcessLookupError:
            raise Gone from None
        return result

    def unpark(self, tid: int, saved: Registers) -> None:
        """Bring a thread that has made system calls for us back to a PTRACE_EVENT_STOP with its own registers."""
        try:
            psys.ptrace(psys.PTRACE_INTERRUPT, tid)
            psys.ptrace(psys.PTRACE_CONT, tid)
            self.settle(tid, time.monotonic() + CALL_TIMEOUT)
            self.set_registers(tid, saved)
        except ProcessLookupError:
            raise Gone from None

    @staticmethod
    def unblock(tid: int, bits: int) -> None:
        """Take signals (bit n - 1 for signal n) out of a stopped thread's mask of blocked ones."""
        mask = ctypes.c_uint64()
        psys.ptrace(psys.PTRACE_GETSIGMASK, tid, 8, ctypes.addressof(mask))
        if mask.value & bits:
            mask.value &= ~bits
            psys.ptrace(psys.PTRACE_SETSIGMASK, tid, 8, ctypes.addressof(mask))

    @staticmethod
    def detach(tid: int) -> None:
        """Let a stopped thread go on; one that has ended, or never stopped, is left to the kernel."""
        try:
            psys.ptrace(psys.PTRACE_DETACH, tid)
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise


def thread_state(tid: int) -> str:
    """The state letter of a thread (proc_pid_stat(5)); X when there is none."""
    try:
        with open(f"/proc/{tid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "X"
