"""Uprobes of the kernel: perf_event_open(2) with the uprobe PMU, and a BPF link on the event."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from types import TracebackType
from typing import Final, Self

from userbpf.kernel import syscall
from userbpf.kernel.syscall import KernelError, address_of, check

_PMU: Final = "/sys/bus/event_source/devices/uprobe"
_ATTR_SIZE: Final = 112  # PERF_ATTR_SIZE_VER5
_BPF_PERF_EVENT: Final = 41  # enum bpf_attach_type


def _pmu_number(name: str) -> int:
    """A number of the PMU's sysfs folder: its type, or the bit in ``format/retprobe`` (``config:0``)."""
    try:
        with open(f"{_PMU}/{name}", encoding="ascii") as file:
            return int(file.read().strip().rpartition(":")[2])
    except (OSError, ValueError) as error:
        raise KernelError(
            f"the kernel has no uprobe events: cannot read {_PMU}/{name}",
            errno=errno.ENODEV,
            hint="needs CONFIG_UPROBE_EVENTS and a mounted sysfs",
        ) from error


class UprobeLink:
    """One program on one place of one file, in one process or in all. Closing it detaches."""

    def __init__(self, perf_fd: int, link_fd: int) -> None:
        self._fds = [link_fd, perf_fd]

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def attach_uprobe(
    prog_fd: int, *, pid: int | None, path: str, file_offset: int, is_return: bool = False, cookie: int = 0
) -> UprobeLink:
    """Attaches the program ``prog_fd`` at ``file_offset`` of ``path``.

    pid: all threads of that process (the kernel filters by address space), or None for every process.
    is_return: when the function returns. cookie: what ``bpf_get_attach_cookie`` gives.
    """
    path_buffer = ctypes.create_string_buffer(os.fsencode(path))
    config = int(is_return) << _pmu_number("format/retprobe")
    # struct perf_event_attr (include/uapi/linux/perf_event.h): type, size, config, sample_period, sample_type,
    # read_format, flags, wakeup_events, bp_type, config1 = path, config2 = offset
    attr = struct.pack(
        "=IIQQQQQIIQQ",
        *(_pmu_number("type"), _ATTR_SIZE, config, 0, 0, 0, 0, 0, 0),
        *(address_of(path_buffer), file_offset),
    ).ljust(_ATTR_SIZE, b"\0")
    where = f"{path}+{file_offset:#x}"
    target = (-1, 0) if pid is None else (pid, -1)
    perf_fd = check(
        syscall.perf_event_open(attr, *target),
        f"the kernel does not place a uprobe at {where}",
        hint="needs root or CAP_PERFMON; the offset must be an instruction of an executable segment",
    )
    try:
        # prog_fd, target_fd, attach_type, flags, perf_event.bpf_cookie; the event starts enabled
        link_attr = struct.pack("=IIIIQ", prog_fd, perf_fd, _BPF_PERF_EVENT, 0, cookie)
        link_fd = check(
            syscall.bpf(syscall.LINK_CREATE, link_attr), f"the kernel does not attach the program at {where}"
        )
    except KernelError:
        os.close(perf_fd)
        raise
    return UprobeLink(perf_fd, link_fd)
