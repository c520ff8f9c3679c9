"""System calls that Python's standard library does not offer: ptrace(2), process_vm_readv(2), pidfd_getfd(2).

Every function raises :class:`OSError` with the kernel's errno; meaning is given to it by the callers.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

__all__ = [
    "PTRACE_CONT",
    "PTRACE_DETACH",
    "PTRACE_EVENT_EXEC",
    "PTRACE_EVENT_STOP",
    "PTRACE_GETREGSET",
    "PTRACE_GETSIGINFO",
    "PTRACE_GETSIGMASK",
    "PTRACE_GET_RSEQ_CONFIGURATION",
    "PTRACE_INTERRUPT",
    "PTRACE_O_SUSPEND_SECCOMP",
    "PTRACE_O_TRACEEXEC",
    "PTRACE_O_TRACESYSGOOD",
    "PTRACE_SEIZE",
    "PTRACE_SETREGSET",
    "PTRACE_SETSIGMASK",
    "PTRACE_SYSCALL",
    "WALL",
    "IoVec",
    "pidfd_getfd",
    "process_vm_readv",
    "ptrace",
]

# include/uapi/linux/ptrace.h
PTRACE_CONT = 7
PTRACE_DETACH = 17
PTRACE_SYSCALL = 24
PTRACE_GETSIGINFO = 0x4202
PTRACE_GETREGSET = 0x4204
PTRACE_SETREGSET = 0x4205
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_GETSIGMASK = 0x420A
PTRACE_SETSIGMASK = 0x420B
PTRACE_GET_RSEQ_CONFIGURATION = 0x420F
PTRACE_O_TRACESYSGOOD = 1
PTRACE_EVENT_EXEC = 4
PTRACE_EVENT_STOP = 128
PTRACE_O_TRACEEXEC = 1 << PTRACE_EVENT_EXEC
PTRACE_O_SUSPEND_SECCOMP = 1 << 21
WALL = 0x40000000
"""``__WALL``: wait for threads as well as processes."""
_SYS_PIDFD_GETFD = 438
_IOV_MAX = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
]
_libc.syscall.restype = ctypes.c_long


class IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


def _failure() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def ptrace(request: int, tid: int, addr: int = 0, data: int = 0) -> int:
    """ptrace(2). Only the thread that attached may call it for a tracee."""
    result = int(_libc.ptrace(request, tid, addr, data))
    if result == -1:
        raise _failure()
    return result


def process_vm_readv(pid: int, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read (address, size) ranges of another process's memory, all or EFAULT."""
    out: list[bytes] = []
    for first in range(0, len(ranges), _IOV_MAX):
        batch = ranges[first : first + _IOV_MAX]
        total = sum(size for _, size in batch)
        if total == 0:
            out.extend(b"" for _ in batch)
            continue
        buffer = ctypes.create_string_buffer(total)
        local = IoVec(ctypes.addressof(buffer), total)
        remote = (IoVec * len(batch))(*[IoVec(addr, size) for addr, size in batch])
        done = int(_libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.addressof(remote), len(batch), 0))
        if done < 0:
            raise _failure()
        if done != total:  # a partial transfer stops at the first page that is not mapped: process_vm_readv(2)
            raise OSError(14, os.strerror(14))
        raw = buffer.raw
        position = 0
        for _, size in batch:
            out.append(raw[position : position + size])
            position += size
    return out


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """Copy a descriptor of another process into this one: pidfd_getfd(2)."""
    result = int(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0))
    if result < 0:
        raise _failure()
    return result
