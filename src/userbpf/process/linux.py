"""A Linux process as an object: who it is, what it has mapped, its threads and its memory.

Everything is read from proc(5) when asked, because a process changes under us. Stopping it is in ``stop.py``.
"""

from __future__ import annotations

import errno
import os
import pwd
import select
import signal
import struct
import time
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from userbpf.errors import ProcessError
from userbpf.process import sys as psys
from userbpf.process.elf import parse_elf
from userbpf.process.errors import ProcessExitedError
from userbpf.process.linux_x86_64 import ELF_MACHINE
from userbpf.process.mappings import Mapping, find_gap, parse_maps
from userbpf.process.modules import Module, find_library, group_modules
from userbpf.process.stop import Stopped, stop_process

__all__ = ["Process", "Thread"]

_PF_KTHREAD: Final = 0x00200000
_AT_ENTRY: Final = 9
_EI_CLASS_64: Final = 2
_MACHINES: Final = {3: "32-bit x86", 40: "32-bit Arm", 62: "x86-64", 183: "AArch64", 243: "RISC-V"}


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread; ``ns_tid`` is the id that the thread itself sees (its own pid namespace)."""

    tid: int
    ns_tid: int
    name: str
    state: str


def read_status(path: str) -> dict[str, str]:
    """The fields of a ``status`` file (proc_pid_status(5)); :class:`OSError` when the task is gone."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}


def _user_name(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


class Process:
    """A running process of 64-bit code that this user may read and change.

    Raises :class:`ProcessError` when it is not: gone, a zombie, a kernel thread, 32-bit, somebody else's, ourselves.
    Use as a context manager, or :meth:`close` it.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.child = False
        """True when the process was started by :func:`userbpf.process.spawn` and has to be waited for."""
        self.longest_stop_ns = 0
        """The longest time that a stop of ours has lasted; whoever wants to measure sets it to 0."""
        self._mem: int | None = None
        self._exit_status: int | None = None
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            raise self._no_such_process(error) from None
        self._finalizer = weakref.finalize(self, os.close, self._pidfd)
        try:
            status = self.status()
            self.name = status["Name"]
            self.ns_pid = int(status.get("NSpid", str(pid)).split()[-1])
            self._check(status)
            self.exe = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
            self._check_machine()
        except OSError as error:
            problem = self.denied("read", error)
            self.close()
            raise problem from None
        except ProcessError:
            self.close()
            raise

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Process({self.pid}, {self.name!r})"

    def close(self) -> None:
        """Let go of the descriptors; the process itself is not touched."""
        self._finalizer()
        if self._mem is not None:
            os.close(self._mem)
            self._mem = None

    # -- who it is ---------------------------------------------------------------------------------

    def _no_such_process(self, error: OSError) -> ProcessError:
        if error.errno in (errno.EINVAL, errno.ENOENT) and self.pid > 0:
            try:
                tgid = int(read_status(f"/proc/{self.pid}/status")["Tgid"])
            except (OSError, KeyError, ValueError):
                tgid = self.pid
            if tgid != self.pid:
                return ProcessError(f"{self.pid} is a thread of process {tgid}", hint=f"give the process: --pid {tgid}")
        return ProcessError(f"there is no process {self.pid}", hint="list processes with: ps -e")

    def _check(self, status: dict[str, str]) -> None:
        who = f"process {self.pid} ({self.name})"
        if int(status["Tgid"]) != self.pid:  # pidfd_open refuses threads before Linux 6.9, and accepts none since
            raise ProcessError(f"{self.pid} is a thread of process {status['Tgid']}", hint="give the process id")
        if self.pid == os.getpid():
            raise ProcessError(f"{who} is this very process", hint="a process cannot stop itself: trace another one")
        if status["State"][0] in "ZX":
            raise ProcessError(f"{who} has ended and is a zombie", hint="its parent has only to collect its status")
        if int(self.stat()[6]) & _PF_KTHREAD:
            raise ProcessError(f"{who} is a thread of the kernel", hint="user-space probes need a user-space process")

    def _check_machine(self) -> None:
        with open(f"/proc/{self.pid}/exe", "rb") as file:
            head = file.read(20)
        machine = struct.unpack_from("<H", head, 18)[0] if len(head) == 20 else 0
        if len(head) < 20 or head[4] != _EI_CLASS_64 or machine != ELF_MACHINE:
            kind = _MACHINES.get(machine, f"machine {machine}")
            raise ProcessError(
                f"process {self.pid} ({self.name}) runs {kind} code", hint="only 64-bit x86-64 processes can be traced"
            )

    def denied(self, verb: str, error: OSError) -> ProcessError:
        """The sentence for a system call about this process that failed with ``error``."""
        who = f"process {self.pid}" + (f" ({self.name})" if hasattr(self, "name") else "")
        if error.errno in (errno.ESRCH, errno.ENOENT) or not self.alive:
            return ProcessExitedError(f"{who} has ended")
        if error.errno not in (errno.EPERM, errno.EACCES):
            return ProcessError(f"{who} could not be {verb}: {error.strerror}")
        try:
            uid = int(read_status(f"/proc/{self.pid}/status")["Uid"].split()[0])
        except (OSError, KeyError, ValueError):
            return ProcessExitedError(f"{who} has ended")
        if uid != os.geteuid() and os.geteuid() != 0:
            return ProcessError(
                f"{who} belongs to {_user_name(uid)}, and you are {_user_name(os.geteuid())}",
                hint="run userbpf as that user, or as root",
            )
        try:
            with open("/proc/sys/kernel/yama/ptrace_scope", encoding="utf-8") as file:
                scope = int(file.read())
        except (OSError, ValueError):
            scope = 0
        if scope:
            return ProcessError(
                f"{who} may not be traced: the system allows ptrace only for child processes (Yama scope {scope})",
                hint="start the program under userbpf (-- COMMAND), or: sysctl kernel.yama.ptrace_scope=0",
            )
        return ProcessError(
            f"{who} may not be {verb}: it is protected (set-user-id, or undumpable), or a container forbids it",
            hint="run as root, in a container with CAP_SYS_PTRACE",
        )

    def status(self) -> dict[str, str]:
        """``/proc/PID/status`` by field name."""
        try:
            return read_status(f"/proc/{self.pid}/status")
        except OSError as error:
            raise self.denied("read", error) from None

    def stat(self) -> list[str]:
        """The fields of ``/proc/PID/stat`` behind the name, the state first: field number n of proc(5) is at n - 3."""
        try:
            with open(f"/proc/{self.pid}/stat", encoding="utf-8", errors="replace") as file:
                return file.read().rpartition(")")[2].split()
        except OSError as error:
            raise self.denied("read", error) from None

    @property
    def alive(self) -> bool:
        """False as soon as the process has ended, also while it is still a zombie."""
        if not self._finalizer.alive:
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    @property
    def pidfd(self) -> int:
        return self._pidfd

    @property
    def shadow_stack(self) -> bool:
        """True when the process runs with hardware shadow stacks (x86_Thread_features: shstk).

        The C library turns them on before there is a second thread, which then inherits them.
        """
        return "shstk" in self._task_status(self.pid).get("x86_Thread_features", "").split()

    @property
    def uid(self) -> int:
        """Real user id."""
        return int(self.status()["Uid"].split()[0])

    @property
    def gid(self) -> int:
        """Real group id."""
        return int(self.status()["Gid"].split()[0])

    # -- threads -----------------------------------------------------------------------------------

    def thread_ids(self) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(f"/proc/{self.pid}/task"))
        except OSError as error:
            raise self.denied("read", error) from None

    def _task_status(self, tid: int) -> dict[str, str]:
        try:
            return read_status(f"/proc/{self.pid}/task/{tid}/status")
        except OSError:
            return {}

    def threads(self) -> list[Thread]:
        """All threads that live now."""
        out = []
        for tid in self.thread_ids():
            status = self._task_status(tid)
            if status:
                ns_tid = int(status.get("NSpid", str(tid)).split()[-1])
                out.append(Thread(tid, ns_tid, status["Name"], status["State"][0]))
        return out

    def thread_id_offset(self) -> int | None:
        """Offset from the thread pointer at which the C library keeps the u32 thread id (see Stopped)."""
        with self.stop() as stopped:
            return stopped.thread_id_offset()

    # -- address space -----------------------------------------------------------------------------

    def mappings(self) -> list[Mapping]:
        try:
            with open(f"/proc/{self.pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
                mappings = parse_maps(file.read())
        except OSError as error:
            raise self.denied("read", error) from None
        if not mappings:  # the address space goes before the process does
            raise ProcessExitedError(f"process {self.pid} ({self.name}) has ended")
        return mappings

    def modules(self) -> list[Module]:
        """ELF files with executable mappings, by address; the executable and every library."""
        return group_modules(self.pid, self.mappings())

    def main_module(self) -> Module:
        """The executable itself."""
        for module in self.modules():
            if module.path == self.exe:
                return module
        raise ProcessError(f"process {self.pid} ({self.name}) no longer maps its executable {self.exe}")

    def resolve_library(self, name: str) -> Module:
        """The module that ``name`` means: a path, a SONAME such as ``libc.so.6``, or a program such as ``bash``."""
        return find_library(self.pid, self.name, self.modules(), name)

    def module_at(self, addr: int) -> Module | None:
        return next((m for m in self.modules() if m.contains(addr)), None)

    def auxv(self) -> dict[int, int]:
        """The auxiliary vector: getauxval(3)."""
        try:
            with open(f"/proc/{self.pid}/auxv", "rb") as file:
                data = file.read()
        except OSError as error:
            raise self.denied("read", error) from None
        return dict(struct.iter_unpack("<QQ", data[: len(data) & -16]))

    @property
    def entry_point(self) -> int:
        """Where the executable's own code begins: AT_ENTRY."""
        auxv = self.auxv()
        if _AT_ENTRY not in auxv:  # the vector goes with the address space
            raise ProcessExitedError(f"process {self.pid} ({self.name}) has ended")
        return auxv[_AT_ENTRY]

    def vdso_symbol(self, name: str) -> int | None:
        """Address of a function of the vDSO, for instance ``__vdso_clock_gettime``; None when there is none."""
        for mapping in self.mappings():
            if mapping.path == "[vdso]":
                symbol = parse_elf(self.read(mapping.start, mapping.size), "[vdso]").find(name)
                return mapping.start + symbol.vaddr if symbol is not None else None
        return None

    def find_gap(self, near: int, size: int, *, near_end: int | None = None) -> int:
        """Free addresses near a module: see :func:`userbpf.process.find_gap`."""
        try:
            with open("/proc/sys/vm/mmap_min_addr", encoding="utf-8") as file:
                min_addr = int(file.read())
        except (OSError, ValueError):
            min_addr = 65536
        brk_start = int(self.stat()[44])
        min_addr = max(min_addr, 65536)
        return find_gap(self.mappings(), near, size, near_end=near_end, min_addr=min_addr, brk_start=brk_start)

    # -- memory ------------------------------------------------------------------------------------

    def _bad_address(self, verb: str, addr: int, size: int, error: OSError) -> ProcessError:
        if error.errno in (errno.EFAULT, errno.EIO):
            return ProcessError(f"{size} bytes at {addr:#x} of process {self.pid} ({self.name}) could not be {verb}")
        return self.denied(verb, error)

    def read(self, addr: int, size: int) -> bytes:
        """Memory that the process itself could read; ProcessError when any of it is not mapped."""
        return self.read_many([(addr, size)])[0]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read (address, size) ranges with as few system calls as possible: process_vm_readv(2)."""
        try:
            return psys.process_vm_readv(self.pid, ranges)
        except OSError as error:
            addr, size = ranges[0] if len(ranges) == 1 else (ranges[0][0], sum(s for _, s in ranges))
            raise self._bad_address("read", addr, size, error) from None

    def write(self, addr: int, data: bytes) -> None:
        """Write memory, also where the process itself may only read or execute (``/proc/PID/mem``, FOLL_FORCE).

        A private mapping gets its own copy of the page. The descriptor belongs to one address space: after an
        execve(2) of the process nothing is written any more.
        """
        try:
            if self._mem is None:
                self._mem = os.open(f"/proc/{self.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
            done = os.pwrite(self._mem, data, addr)
        except OSError as error:
            raise self._bad_address("written", addr, len(data), error) from None
        if done != len(data):
            if done == 0 and data:
                raise ProcessExitedError(f"process {self.pid} ({self.name}) has ended or executes another program")
            raise ProcessError(f"only {done} of {len(data)} bytes at {addr:#x} of process {self.pid} could be written")

    # -- control -----------------------------------------------------------------------------------

    def stop(self, timeout: float = 2.0) -> AbstractContextManager[Stopped]:
        """Stop every thread for the length of the ``with`` block: see :mod:`userbpf.process.stop`."""
        return stop_process(self, timeout)

    def send_signal(self, number: int) -> None:
        """Send a signal; a process that has ended is left in peace (the pidfd knows it from a reused pid)."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return
        except OSError as error:
            raise self.denied("signalled", error) from None

    def resume(self) -> None:
        """Let a process that :func:`userbpf.process.spawn` holds at its entry point run."""
        self.send_signal(signal.SIGCONT)

    def terminate(self, number: int = signal.SIGTERM) -> None:
        """Ask the process to end; one that is held by SIGSTOP is let go so that it can."""
        self.send_signal(number)
        self.send_signal(signal.SIGCONT)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end. Returns the exit status as :mod:`subprocess` counts it, None on timeout.

        Of a process that is not our child only the end can be known, not the status: 0 is returned.
        """
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        deadline = None if timeout is None else time.monotonic() + timeout
        while not poll.poll(None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)):
            if deadline is not None and time.monotonic() >= deadline:
                return None
        if not self.child:
            return self._exit_status if self._exit_status is not None else 0
        _, status = os.waitpid(self.pid, 0)
        self.child = False
        self._exit_status = os.waitstatus_to_exitcode(status)
        return self._exit_status
