"""bpf(2) and perf_event_open(2) through ctypes: the numbers, the attribute blocks, the errors.

``union bpf_attr`` (include/uapi/linux/bpf.h) is built with ``struct`` formats: each command uses a prefix of
it, and the kernel takes the bytes that are left out as zero.
"""

from __future__ import annotations

import ctypes
import errno as errno_names
import functools
import os
import platform
import struct
from typing import ClassVar, Final

from userbpf.errors import UserBpfError

_NUMBERS: Final = {"x86_64": (321, 298), "aarch64": (280, 241), "riscv64": (280, 241)}

# enum bpf_cmd
MAP_CREATE: Final = 0
MAP_LOOKUP_ELEM: Final = 1
MAP_UPDATE_ELEM: Final = 2
MAP_DELETE_ELEM: Final = 3
MAP_GET_NEXT_KEY: Final = 4
PROG_LOAD: Final = 5
PROG_TEST_RUN: Final = 10
BTF_LOAD: Final = 18
MAP_FREEZE: Final = 22
LINK_CREATE: Final = 28

PERF_FLAG_FD_CLOEXEC: Final = 8
# _IO('$', 0) and _IO('$', 1), the same on every architecture that is in _NUMBERS
PERF_EVENT_IOC_ENABLE: Final = 0x2400
PERF_EVENT_IOC_DISABLE: Final = 0x2401


class KernelError(UserBpfError):
    """The kernel refused. ``errno`` is its number; ``log`` the verifier's log where there is one."""

    code: ClassVar[str] = "kernel"

    def __init__(self, message: str, *, errno: int, hint: str | None = None, log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.errno = errno
        self.log = log


@functools.cache
def _syscall() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    return function


def _numbers() -> tuple[int, int]:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        raise KernelError(f"the kernel client does not know the machine {platform.machine()!r}", errno=0)
    return numbers


def address_of(buffer: ctypes.Array[ctypes.c_char] | None) -> int:
    """Address of a ctypes buffer for a ``__aligned_u64`` field; 0 for none. The caller keeps it alive."""
    return 0 if buffer is None else ctypes.addressof(buffer)


def bpf(command: int, attr: bytes) -> int:
    """One bpf(2) call. Returns its value, or ``-errno``: expected failures are the caller's to tell apart."""
    return bpf_inout(command, ctypes.create_string_buffer(attr, len(attr)))


def bpf_inout(command: int, attr: ctypes.Array[ctypes.c_char]) -> int:
    """As :func:`bpf`, for commands that also write into their attributes."""
    number = ctypes.c_long(_numbers()[0])
    value = int(_syscall()(number, ctypes.c_long(command), ctypes.byref(attr), ctypes.c_long(len(attr))))
    return value if value >= 0 else -ctypes.get_errno()


def check(value: int, what: str, *, hint: str | None = None, log: str = "") -> int:
    """``value`` of :func:`bpf` when it is not an error, else :class:`KernelError` that says ``what`` failed."""
    if value >= 0:
        return value
    raise KernelError(f"{what}: {describe(-value)}", errno=-value, hint=hint, log=log)


def describe(errno: int) -> str:
    return f"{os.strerror(errno)} ({errno_names.errorcode.get(errno, errno)})"


def perf_event_open(attr: bytes, pid: int, cpu: int) -> int:
    """perf_event_open(2), close-on-exec, no group. Returns the descriptor, or ``-errno``."""
    block = ctypes.create_string_buffer(attr, len(attr))
    args = [ctypes.c_long(value) for value in (pid, cpu, -1, PERF_FLAG_FD_CLOEXEC)]
    value = int(_syscall()(ctypes.c_long(_numbers()[1]), ctypes.byref(block), *args))
    return value if value >= 0 else -ctypes.get_errno()


def load_btf(data: bytes) -> int:
    """BPF_BTF_LOAD. Returns a descriptor; the kernel's log goes into the error."""
    blob = ctypes.create_string_buffer(data, len(data))
    log = ctypes.create_string_buffer(1 << 16)
    # btf, btf_log_buf, btf_size, btf_log_size, btf_log_level
    quiet = struct.pack("=QQIII", address_of(blob), 0, len(data), 0, 0)
    fd = bpf(BTF_LOAD, quiet)
    if fd >= 0:
        return fd
    loud = struct.pack("=QQIII", address_of(blob), address_of(log), len(data), len(log), 1)
    return check(bpf(BTF_LOAD, loud), "the kernel rejects the BTF", log=log.value.decode(errors="replace"))


def available() -> str | None:
    """None when bpf(2) takes programs from us, else the reason as a sentence.

    It loads the smallest tracing program there is (``r0 = 0; exit``), which needs the rights that uprobes need.
    """
    if platform.system() != "Linux":
        return f"bpf(2) is Linux's, and this is {platform.system()}"
    if platform.machine() not in _NUMBERS:
        return f"the kernel client does not know the machine {platform.machine()!r}"
    insns = ctypes.create_string_buffer(bytes.fromhex("b7000000000000009500000000000000"), 16)
    gpl = ctypes.create_string_buffer(b"GPL")
    kprobe = 2
    fd = bpf(PROG_LOAD, struct.pack("=IIQQ", kprobe, 2, address_of(insns), address_of(gpl)).ljust(72, b"\0"))
    if fd >= 0:
        os.close(fd)
        return None
    if -fd in (errno_names.EPERM, errno_names.EACCES):
        return "bpf(2) refuses us: it needs root or CAP_BPF and CAP_PERFMON"
    if -fd == errno_names.ENOSYS:
        return "the kernel has no bpf(2), or a seccomp filter hides it"
    return f"bpf(2) refuses the smallest program: {describe(-fd)}"
