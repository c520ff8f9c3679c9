"""Lines of bpf_printk: what the kernel writes to trace_pipe."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from userbpf.native.abi import Trace

if TYPE_CHECKING:
    from userbpf.maps import Map


@dataclass(frozen=True)
class TraceLine:
    """One line. time_ns: CLOCK_MONOTONIC. pid and tid as the process sees them. cpu: where it was written."""

    time_ns: int
    pid: int
    tid: int
    cpu: int
    comm: str
    text: str

    def __str__(self) -> str:
        seconds, fraction = divmod(self.time_ns // 1000, 1_000_000)
        return f"{self.comm:>16}-{self.tid:<7} [{self.cpu:03d}] {seconds}.{fraction:06d}: bpf_trace_printk: {self.text}"


def parse_trace(record: bytes) -> TraceLine:
    """One record of the trace ring: ``struct ub_trace`` and its text."""
    head = Trace.from_buffer_copy(record)
    size = ctypes.sizeof(Trace)
    text = record[size : size + head.len].decode("utf-8", "replace").rstrip("\n\0")
    return TraceLine(head.ktime, head.pid, head.tid, head.cpu, head.comm.decode("utf-8", "replace"), text)


def read_trace(trace_map: Map, timeout: float | None = 0) -> list[TraceLine]:
    """The lines that are there; waits for the first one at most ``timeout`` seconds (None: without limit)."""
    return [parse_trace(record) for record in trace_map.read(timeout)]
