"""A stopped process: its threads' registers, and what can be done inside it while it stands still."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from userbpf.errors import ProcessError
from userbpf.process import sys as psys
from userbpf.process.errors import ProcessExitedError
from userbpf.process.linux_x86_64 import NR, SYSCALL_INSN, Registers, hide_interruption, restarts_with_block
from userbpf.process.mappings import PAGE, Mapping, page_up
from userbpf.process.tracer import Gone, Tracer, UnexpectedStop, thread_state

if TYPE_CHECKING:
    from userbpf.process.linux import Process

__all__ = ["Stopped", "stop_process"]

PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC = 0, 1, 2, 4
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_FIXED_NOREPLACE = 0x01, 0x02, 0x10, 0x20, 0x100000
_FDS_PER_MESSAGE: Final = 253
"""SCM_MAX_FD of include/net/scm.h."""
_TCB_BYTES: Final = 4096
_GLIBC_TID_OFFSET: Final = 0x2D0
"""Where glibc on x86-64 keeps struct pthread.tid (nptl/descr.h); taken when several places hold the same number."""


class Stopped:
    """All threads of a process, stopped. Made by :meth:`Process.stop`; every thread goes on when the block ends."""

    def __init__(self, process: Process, tracer: Tracer) -> None:
        self.process = process
        self.threads: dict[int, Registers] = {}
        """Registers of every thread by thread id, as they are while it is stopped."""
        self.elapsed_ns = 0
        """How long the process stood still; known after the block."""
        self._began = 0
        self._tracer = tracer
        self._attached: set[int] = set()
        self._syscall_insn = 0
        self._caller: int | None = None
        self._parked = False
        self._page = 0
        self._sockets: tuple[int, int] | None = None
        self._sender: socket.socket | None = None

    # -- stop and release, in the worker -----------------------------------------------------------

    def _stop_all(self, deadline: float) -> None:
        options = psys.PTRACE_O_TRACESYSGOOD
        if self._filters() > _own_filters():
            options |= psys.PTRACE_O_SUSPEND_SECCOMP
        self._began = time.monotonic_ns()
        seen: set[int] = set()
        while new := [tid for tid in self.process.thread_ids() if tid not in seen]:
            seen.update(new)
            for tid in new:
                self._seize(tid, options)
            for tid in new:
                if tid in self._attached:
                    self._settle(tid, deadline)
        if not self.threads:
            raise ProcessExitedError(f"process {self.process.pid} ({self.process.name}) has ended")

    def _seize(self, tid: int, options: int) -> None:
        try:
            if self._tracer.seize(tid, options):
                self._attached.add(tid)
        except OSError as error:
            if options & psys.PTRACE_O_SUSPEND_SECCOMP and error.errno in (errno.EPERM, errno.EINVAL, errno.EIO):
                raise ProcessError(
                    f"process {self.process.pid} ({self.process.name}) runs under a seccomp filter, which could answer "
                    "a system call made for us by killing it",
                    hint="run as root, which may suspend the filter, or start the program without its sandbox",
                ) from None
            raise self.process.denied("stopped", error) from None

    def _settle(self, tid: int, deadline: float) -> None:
        try:
            self._tracer.settle(tid, deadline)
            regs = self._tracer.get_registers(tid)
            if hide_interruption(regs):
                self._tracer.set_registers(tid, regs)
        except (Gone, ProcessLookupError):
            self._attached.discard(tid)
            return
        except TimeoutError:
            stuck = thread_state(tid) == "D"
            waits = "waits uninterruptibly (state D: in vfork, or for a disk)" if stuck else "runs on"
            raise ProcessError(
                f"thread {tid} of process {self.process.pid} ({self.process.name}) did not stop in time: it {waits}",
                hint="try again in a moment; nothing was changed",
            ) from None
        self.threads[tid] = regs

    def _release(self) -> None:
        with contextlib.suppress(Gone, UnexpectedStop, TimeoutError):
            self._close_channel()
        with contextlib.suppress(Gone, TimeoutError):
            self._unpark()
        for tid in self.threads:
            self._tracer.detach(tid)
        self._attached.clear()
        self.elapsed_ns = time.monotonic_ns() - self._began
        self.process.longest_stop_ns = max(self.process.longest_stop_ns, self.elapsed_ns)

    def _filters(self) -> int:
        status = self.process.status()
        if status.get("Seccomp") == "1":
            return 1 << 30  # strict mode kills on anything but read, write, exit and sigreturn
        return int(status.get("Seccomp_filters", "0"))

    # -- registers ---------------------------------------------------------------------------------

    def _unpark(self) -> None:
        """In the worker: the thread that made system calls for us is where it was."""
        if self._parked and self._caller is not None:
            self._parked = False
            self._tracer.unpark(self._caller, self.threads[self._caller])

    def set_registers(self, tid: int, regs: Registers) -> None:
        """Change the registers with which a thread goes on."""
        try:
            if tid == self._caller:
                self._tracer.run(self._unpark)
            self._tracer.run(self._tracer.set_registers, tid, regs)
        except (Gone, ProcessLookupError):
            raise self._ended() from None
        self.threads[tid] = regs

    def unblock_signals(self, numbers: Iterable[int]) -> None:
        """No thread blocks these signals any more when the process goes on."""
        bits = sum(1 << (number - 1) for number in numbers)
        for tid in self.threads:
            try:
                self._tracer.run(self._tracer.unblock, tid, bits)
            except ProcessLookupError:
                continue  # the thread has ended

    def _ended(self) -> ProcessExitedError:
        return ProcessExitedError(f"process {self.process.pid} ({self.process.name}) ended while it was being changed")

    def in_critical_section(self, tid: int) -> bool:
        """True when a thread stands inside a restartable sequence (rseq(2)), which may not be left unnoticed."""
        regs = self.threads[tid]
        if regs.in_syscall:  # system calls are forbidden inside a restartable sequence
            return False
        area = self._tracer.run(self._tracer.rseq_area, tid)
        if not area:
            return False
        try:
            section = struct.unpack("<Q", self.read(area + 8, 8))[0]
            if not section:
                return False
            start, length = struct.unpack("<QQ", self.read(section + 8, 16))
        except ProcessError:
            return False  # the area is gone with its thread's memory: nothing is registered there any more
        return bool(start <= regs.ip < start + length)

    # -- system calls ------------------------------------------------------------------------------

    def _find_syscall_insn(self) -> int:
        mappings = [m for m in self.process.mappings() if m.executable and m.readable and m.path != "[vsyscall]"]
        mappings.sort(key=lambda m: m.path != "[vdso]")
        for mapping in mappings:
            for start in range(mapping.start, mapping.end, 1 << 20):
                found = self.read(start, min(1 << 20, mapping.end - start)).find(SYSCALL_INSN)
                if found >= 0:
                    return start + found
        raise ProcessError(f"process {self.process.pid} ({self.process.name}) has no syscall instruction to borrow")

    def _choose_caller(self) -> int:
        def cost(tid: int) -> tuple[bool, bool, int]:
            regs = self.threads[tid]
            return restarts_with_block(regs), regs.in_syscall, tid

        for tid in sorted(self.threads, key=cost):
            if not self.in_critical_section(tid):
                return tid
        raise ProcessError(
            f"every thread of process {self.process.pid} ({self.process.name}) stands in a restartable sequence",
            hint="try again",
        )

    def syscall(self, nr: int, *args: int) -> int:
        """Make a system call in the process and return its result; :class:`OSError` when it is an error."""
        if self._caller is None:
            self._syscall_insn = self._find_syscall_insn()
            self._caller = self._choose_caller()
        try:
            result = self._tracer.run(self._call, self._caller, nr, args)
        except Gone:
            raise self._ended() from None
        except UnexpectedStop as stop:
            name = signal.Signals(stop.signal).name
            raise ProcessError(f"a system call made in process {self.process.pid} was answered by {name}") from None
        if -4096 < result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def _call(self, caller: int, nr: int, args: tuple[int, ...]) -> int:
        """In the worker: one system call by one thread; the result as the kernel returns it."""
        self._parked = True
        return self._tracer.syscall(caller, self.threads[caller], self._syscall_insn, nr, args)

    def mmap(self, addr: int, size: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
        """mmap(2) in the process."""
        return self.syscall(NR["mmap"], addr, size, prot, flags, fd, offset) & 0xFFFF_FFFF_FFFF_FFFF

    def munmap(self, addr: int, size: int) -> None:
        """munmap(2) in the process."""
        self.syscall(NR["munmap"], addr, size)

    def mprotect(self, addr: int, size: int, prot: int) -> None:
        """mprotect(2) in the process."""
        self.syscall(NR["mprotect"], addr, size, prot)

    def madvise(self, addr: int, size: int, advice: int) -> None:
        """madvise(2) in the process."""
        self.syscall(NR["madvise"], addr, size, advice)

    def close_fd(self, fd: int) -> None:
        """close(2) in the process."""
        self.syscall(NR["close"], fd)

    # -- memory ------------------------------------------------------------------------------------

    def read(self, addr: int, size: int) -> bytes:
        """As :meth:`Process.read`."""
        return self.process.read(addr, size)

    def write(self, addr: int, data: bytes) -> None:
        """As :meth:`Process.write`: also into memory that is mapped read-only or executable."""
        self.process.write(addr, data)

    # -- descriptors -------------------------------------------------------------------------------

    def send_fds(self, fds: Sequence[int]) -> list[int]:
        """Copy descriptors of ours into the process (close-on-exec) and return their numbers there.

        They go over a socket pair that is made in the process, so no path, namespace or mount is involved.
        """
        out: list[int] = []
        try:
            for first in range(0, len(fds), _FDS_PER_MESSAGE):
                out += self._send_batch(fds[first : first + _FDS_PER_MESSAGE])
        except OSError as error:
            for fd in out:
                self.close_fd(fd)
            hint = "raise its limit of open files" if error.errno in (errno.EMFILE, errno.ENFILE) else None
            who = f"process {self.process.pid} ({self.process.name})"
            raise ProcessError(
                f"descriptors could not be handed to {who}: {error.strerror}",
                hint=hint,
            ) from None
        return out

    def _send_batch(self, fds: Sequence[int]) -> list[int]:
        sender, theirs = self._open_channel()
        socket.send_fds(sender, [b"u"], fds)
        return self._receive(self._page, theirs, len(fds))

    def _open_channel(self) -> tuple[socket.socket, int]:
        """A socket pair in the process and a scratch page; they serve until the end of the stop."""
        if not self._page:
            self._page = self.mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
        if self._sockets is None:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
            self.syscall(NR["socketpair"], socket.AF_UNIX, kind, 0, self._page)
            ours, theirs = struct.unpack("<ii", self.read(self._page, 8))
            self._sockets = (ours, theirs)
        if self._sender is None:
            self._sender = socket.socket(fileno=psys.pidfd_getfd(self.process.pidfd, self._sockets[0]))
        return self._sender, self._sockets[1]

    def _close_channel(self) -> None:
        """In the worker, at the end: what :meth:`_open_channel` made goes."""
        if self._sender is not None:
            self._sender.close()
        if self._caller is None or not self._page:
            return
        for fd in self._sockets or ():
            self._call(self._caller, NR["close"], (fd,))
        self._call(self._caller, NR["munmap"], (self._page, PAGE))

    def _receive(self, page: int, sock: int, count: int) -> list[int]:
        # In the page: msghdr at 64, iovec at 128, the byte at 160, control data from 256 (struct cmsghdr is 16 bytes).
        control_size = (16 + 4 * count + 7) & -8
        header = struct.pack("<QI4xQQQQI4x", 0, 0, page + 128, 1, page + 256, control_size, 0)
        self.write(page + 64, header + bytes(64 - len(header)) + struct.pack("<QQ", page + 160, 1))
        self.syscall(NR["recvmsg"], sock, page + 64, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
        length, _level, kind = struct.unpack("<QII", self.read(page + 256, 16))
        fds = list(struct.unpack(f"<{(length - 16) // 4}i", self.read(page + 272, length - 16))) if length > 16 else []
        if kind != socket.SCM_RIGHTS or len(fds) != count:  # truncated: the table of descriptors is full
            for fd in fds:
                self.close_fd(fd)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return fds

    def map_fd(self, fd: int, size: int, prot: int, flags: int, *, addr: int = 0, offset: int = 0) -> int:
        """Map a descriptor *of ours* into the process; nothing stays open there. Returns the address."""
        (remote,) = self.send_fds([fd])
        try:
            return self.mmap(addr, page_up(size), prot, flags, remote, offset)
        finally:
            self.close_fd(remote)

    # -- the C library's thread id -----------------------------------------------------------------

    def thread_pointers_are_self(self) -> bool:
        """True when every thread's pointer stands at the address that it points to, as the ABI of C libraries has it
        (ELF Handling for Thread-Local Storage, variant II)."""
        for regs in self.threads.values():
            try:
                if not regs.thread_pointer or struct.unpack("<Q", self.read(regs.thread_pointer, 8))[0] != (
                    regs.thread_pointer
                ):
                    return False
            except ProcessError:
                return False
        return True

    def thread_id_offset(self) -> int | None:
        """Offset from the thread pointer at which every thread's own id is kept as a u32; None when there is no such.

        Found by looking, so glibc of any version, musl and others are served; a process without threads of a C
        library (Go, for instance) gives None.
        """
        ids = {thread.tid: thread.ns_tid for thread in self.process.threads()}
        mappings = self.process.mappings()
        common: set[int] | None = None
        for tid, regs in self.threads.items():
            if tid not in ids or not regs.thread_pointer:
                return None
            block = self._tcb(mappings, regs.thread_pointer)
            words = struct.unpack(f"<{len(block) // 4}I", block)
            offsets = {4 * i for i, word in enumerate(words) if word == ids[tid]}
            common = offsets if common is None else common & offsets
        if not common:
            return None
        if len(common) == 1:
            return common.pop()
        return _GLIBC_TID_OFFSET if _GLIBC_TID_OFFSET in common else None

    def _tcb(self, mappings: Sequence[Mapping], pointer: int) -> bytes:
        # The block often ends its mapping: read only as far as readable memory goes.
        end = pointer
        for mapping in mappings:
            if mapping.start <= end < mapping.end and mapping.readable:
                end = mapping.end
        return self.read(pointer, min(_TCB_BYTES, end - pointer) & -4)


def _own_filters() -> int:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("Seccomp_filters:"):
                return int(line.split()[1])
    return 0


def _refuse_traced(process: Process) -> None:
    deadline = time.monotonic() + 1.0
    while True:
        tracer = int(process.status().get("TracerPid", "0"))
        if not tracer:
            return
        # TracerPid is a thread's id. A worker of ours that ends may still be letting go.
        ours = os.path.exists(f"/proc/self/task/{tracer}") or not os.path.exists(f"/proc/{tracer}")
        if ours and time.monotonic() < deadline:
            os.sched_yield()
            continue
        try:
            with open(f"/proc/{tracer}/comm", encoding="utf-8", errors="replace") as file:
                name = file.read().strip()
        except OSError:
            name = "?"
        raise ProcessError(
            f"process {process.pid} ({process.name}) is already traced by process {tracer} ({name})",
            hint="detach the debugger or tracer first",
        )


@contextmanager
def stop_process(process: Process, timeout: float) -> Iterator[Stopped]:
    """Stop every thread of ``process``; all go on, unchanged but for what was asked, when the block ends.

    timeout: seconds until all threads must have stopped. A process that was stopped by SIGSTOP stays so afterwards.
    """
    _refuse_traced(process)
    if not process.alive:
        raise ProcessExitedError(f"process {process.pid} ({process.name}) has ended")
    tracer = Tracer()
    stopped = Stopped(process, tracer)
    try:
        tracer.run(stopped._stop_all, time.monotonic() + timeout)
        yield stopped
    finally:
        tracer.finish(stopped._release)
