"""Helpers, called through the library: results and errors are the kernel's."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from ctypes import byref, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import pytest

from userbpf.maps import Map
from userbpf.native import library, possible_cpus
from userbpf.native.abi import Run, Trace
from userbpf.tables.maps import MapType

EFAULT, EINVAL, E2BIG, ENOENT, EAGAIN, ENOSPC, EOPNOTSUPP = 14, 22, 7, 2, 11, 28, 95
BAD = 0x10
COMM = Path("/proc/thread-self/comm")


def call(name: str, *arguments: Any, pointer: bool = False) -> int:
    """ub_helper_NAME as a signed number, or an address (0 for NULL)."""
    function = getattr(library().raw, f"ub_helper_{name}")
    function.restype = c_void_p if pointer else ctypes.c_int64
    converted = [c_uint64(a & (1 << 64) - 1) if isinstance(a, int) else a for a in arguments]
    return int(function(*converted) or 0)


@pytest.fixture
def run() -> Run:
    return Run(cpu=0)


@pytest.fixture
def trace() -> Iterator[Map]:
    with Map.create(".trace", MapType.RINGBUF, 0, 0, 1 << 16) as trace:
        yield trace


def of(bpf_map: Map) -> tuple[Any, Any]:
    """The two arguments that a CONST_MAP_PTR becomes."""
    return byref(bpf_map.definition), c_void_p(bpf_map._memory.address)


def printk(run: Run, trace: Map, fmt: bytes, *args: Any) -> int:
    padded = [*args, 0, 0, 0][:3]
    return call("trace_printk", byref(run), *of(trace), fmt + b"\0", len(fmt) + 1, *padded)


TEXT = ctypes.create_string_buffer(b"text")


@pytest.mark.parametrize(
    ("fmt", "args", "expected"),
    [
        (b"plain", (), b"plain"),
        (b"%d %u %x", (-1, -1, 0xDEADBEEF), b"-1 4294967295 deadbeef"),
        (b"%i %X%%", (7, 0xAB), b"7 AB%"),
        (b"%ld %lld %llu", (-5, -6, (1 << 64) - 1), b"-5 -6 18446744073709551615"),
        (b"%lx|%llx", (1 << 40, (1 << 64) - 1), b"10000000000|ffffffffffffffff"),
        (b"%5d|%-5d|%05d", (42, 42, -42), b"   42|42   |-0042"),
        (b"%+d|% d|%+d", (5, 5, -5), b"+5| 5|-5"),
        (b"%c%c", (65, 66), b"AB"),
        (b"%s|%8s|%-6s|", (ctypes.addressof(TEXT),) * 3, b"text|    text|text  |"),
        (b"%pks", (ctypes.addressof(TEXT),), b"text"),
        (b"%px %p", (0x1234, 0x5678), b"0000000000001234 0000000000005678"),
        (b"[%s]", (BAD,), b"[]"),
        (b"line\n", (), b"line\n"),
    ],
)
def test_trace_printk_formats_as_the_kernel(
    run: Run, trace: Map, fmt: bytes, args: tuple[int, ...], expected: bytes
) -> None:
    assert printk(run, trace, fmt, *args) == len(expected)
    (record,) = trace.read(0)
    head = Trace.from_buffer_copy(record)
    assert record[ctypes.sizeof(Trace) :] == expected
    assert (head.len, head.pid, head.tid) == (len(expected), os.getpid(), threading.get_native_id())
    assert head.comm.decode() == COMM.read_text().strip()
    assert abs(time.monotonic_ns() - head.ktime) < 60_000_000_000


@pytest.mark.parametrize("fmt", [b"%z", b"%", b"%d %d %d %d", b"\xff", b"\x01", b"%hd", b"%lld%llld", b"%pZ", b"%5"])
def test_trace_printk_refuses_what_the_kernel_refuses(run: Run, trace: Map, fmt: bytes) -> None:
    assert printk(run, trace, fmt, 1, 2, 3) == -EINVAL
    assert trace.read(0) == []


def test_trace_printk_needs_the_nul_inside_the_size(run: Run, trace: Map) -> None:
    assert call("trace_printk", byref(run), *of(trace), b"abc", 3, 0, 0, 0) == -EINVAL
    assert call("trace_printk", byref(run), *of(trace), b"abc", 0, 0, 0, 0) == -EINVAL


def test_trace_vprintk_takes_up_to_twelve_arguments(run: Run, trace: Map) -> None:
    args = (c_uint64 * 12)(*range(12))
    fmt = b" ".join([b"%d"] * 12) + b"\0"
    assert call("trace_vprintk", byref(run), *of(trace), fmt, len(fmt), args, 96) > 0
    assert trace.read(0)[0].endswith(b"0 1 2 3 4 5 6 7 8 9 10 11")
    for size in (97, 104, 4):
        assert call("trace_vprintk", byref(run), *of(trace), fmt, len(fmt), args, size) == -EINVAL


def test_long_lines_are_cut(run: Run, trace: Map) -> None:
    assert printk(run, trace, b"%500d%500d", 1, 2) == 512
    assert len(trace.read(0)[0]) == ctypes.sizeof(Trace) + 512


@pytest.mark.parametrize("name", ["probe_read", "probe_read_user", "probe_read_kernel"])
def test_probe_read_copies_or_clears(run: Run, name: str) -> None:
    source, out = ctypes.create_string_buffer(b"0123456789"), ctypes.create_string_buffer(b"x" * 10)
    assert call(name, byref(run), out, 7, ctypes.addressof(source)) == 0
    assert out.raw[:8] == b"0123456x"
    assert call(name, byref(run), out, 7, BAD) == -EFAULT
    assert out.raw[:8] == b"\0" * 7 + b"x"
    assert call(name, byref(run), out, 0, BAD) == 0


@pytest.mark.parametrize("name", ["probe_read_str", "probe_read_user_str", "probe_read_kernel_str"])
def test_probe_read_str_counts_the_nul(run: Run, name: str) -> None:
    source, out = ctypes.create_string_buffer(b"hello"), ctypes.create_string_buffer(16)
    assert call(name, byref(run), out, 16, ctypes.addressof(source)) == 6
    assert out.value == b"hello"
    assert call(name, byref(run), out, 3, ctypes.addressof(source)) == 3
    assert out.raw[:3] == b"he\0"
    assert call(name, byref(run), out, 16, BAD) == -EFAULT
    assert out.raw[:16] == bytes(16)


def test_time_and_task(run: Run) -> None:
    before = time.monotonic_ns()
    assert before <= call("ktime_get_ns", byref(run)) <= time.monotonic_ns()
    assert call("ktime_get_boot_ns", byref(run)) <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert 0 <= before - call("ktime_get_coarse_ns", byref(run)) < 1_000_000_000
    assert call("get_current_pid_tgid", byref(run)) == os.getpid() << 32 | threading.get_native_id()
    assert call("get_current_uid_gid", byref(run)) == os.getgid() << 32 | os.getuid()
    assert call("get_smp_processor_id", byref(Run(cpu=7))) == 7
    assert 0 <= library().raw.ub_current_cpu() < max(possible_cpus(), 1)


def test_identity_follows_threads_and_forks(run: Run) -> None:
    seen: list[tuple[int, int]] = []
    thread = threading.Thread(
        target=lambda: seen.append((call("get_current_pid_tgid", byref(run)), threading.get_native_id()))
    )
    thread.start()
    thread.join()
    assert seen[0][0] == os.getpid() << 32 | seen[0][1]
    child = os.fork()
    if child == 0:
        os._exit(0 if call("get_current_pid_tgid", byref(run)) == os.getpid() << 32 | os.getpid() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_comm_fills_the_buffer_and_ends_with_nul(run: Run) -> None:
    name = COMM.read_text().strip().encode()
    for size in (16, 4, 32, 1):
        out = ctypes.create_string_buffer(b"x" * 40)
        assert call("get_current_comm", byref(run), out, size) == 0
        expected = name[: min(size, 16) - 1]
        assert out.raw[:size] == expected.ljust(size, b"\0")
        assert out.raw[size] == ord("x")


def test_prandom_is_spread_over_all_bits(run: Run) -> None:
    values = [call("get_prandom_u32", byref(run)) for _ in range(4000)]
    assert all(0 <= value < 1 << 32 for value in values)
    assert len(set(values)) > 3990
    for bit in range(32):
        assert 1700 < sum(value >> bit & 1 for value in values) < 2300


def test_ringbuf_reserve_submit_discard_query(run: Run) -> None:
    with Map.create("ring", MapType.RINGBUF, 0, 0, 4096) as ring:
        first = call("ringbuf_reserve", byref(run), *of(ring), 8, 0, pointer=True)
        second = call("ringbuf_reserve", byref(run), *of(ring), 8, 0, pointer=True)
        ctypes.memmove(second, b"second..", 8)
        call("ringbuf_submit", byref(run), c_void_p(second), 0)
        assert ring.read(0) == []
        call("ringbuf_discard", byref(run), c_void_p(first), 0)
        assert call("ringbuf_query", byref(run), *of(ring), 0) == 32
        assert ring.read(0) == [b"second.."]
        assert [call("ringbuf_query", byref(run), *of(ring), q) for q in range(5)] == [0, 4096, 32, 32, 0]
        assert call("ringbuf_reserve", byref(run), *of(ring), 8, 1, pointer=True) == 0
        assert call("ringbuf_reserve", byref(run), *of(ring), 4096, 0, pointer=True) == 0
        assert call("ringbuf_output", byref(run), *of(ring), b"x" * 8, 8, 4) == -EINVAL


def test_ringbuf_is_full_drops_and_goes_on(run: Run) -> None:
    with Map.create("ring", MapType.RINGBUF, 0, 0, 4096) as ring:
        results = [call("ringbuf_output", byref(run), *of(ring), b"x" * 1000, 1000, 0) for _ in range(6)]
        assert results == [0, 0, 0, 0, -EAGAIN, -EAGAIN]
        assert ring.dropped == 2
        assert len(ring.read(0)) == 4
        for size in (1, 9, 2000, 3000, 4080) * 4:  # records of more than half the ring, at every position
            while call("ringbuf_output", byref(run), *of(ring), b"y" * size, size, 0) == -EAGAIN:
                assert ring.read(0) == []
            assert ring.read(0) == [b"y" * size]


def test_a_forged_record_leads_nowhere(run: Run) -> None:
    with Map.create("ring", MapType.RINGBUF, 0, 0, 4096) as ring:
        sample = call("ringbuf_reserve", byref(run), *of(ring), 8, 0, pointer=True)
        ctypes.memmove(sample - 4, b"\xff\xff\xff\x7f", 4)
        assert call("ringbuf_submit", byref(run), c_void_p(sample), 0) == 0
        assert ring.read(0) == []


def test_perf_event_output_checks_its_index_and_counts_losses() -> None:
    with Map.create("perf", MapType.PERF_EVENT_ARRAY, 4, 4, possible_cpus() + 1) as perf:
        run, current = byref(Run(cpu=0)), 0xFFFFFFFF
        assert call("perf_event_output", run, None, *of(perf), current, b"abcde", 5) == 0
        assert call("perf_event_output", run, None, *of(perf), 0, b"f", 1) == 0
        assert call("perf_event_output", run, None, *of(perf), possible_cpus(), b"f", 1) == -ENOENT
        assert call("perf_event_output", run, None, *of(perf), possible_cpus() + 1, b"f", 1) == -E2BIG
        assert call("perf_event_output", run, None, *of(perf), 1 << 32, b"f", 1) == -EINVAL
        if possible_cpus() > 1:
            assert call("perf_event_output", run, None, *of(perf), 1, b"f", 1) == -EOPNOTSUPP
        events = perf.read(0)
        assert [event.rstrip(b"\0") for event in events] == [b"abcde", b"f"]
        assert [len(event) for event in events] == [12, 4]  # padded, as the kernel's raw samples
        data, sent = b"z" * 60000, 0
        while call("perf_event_output", run, None, *of(perf), current, data, len(data)) == 0:
            sent += 1
        assert sent == 4
        assert len(perf.read(0)) == sent
        assert call("perf_event_output", run, None, *of(perf), current, b"after", 5) == 0
        assert [event.rstrip(b"\0") for event in perf.read(0)] == [b"after"]
        assert perf.dropped == 1


def test_percpu_enter_finds_a_free_slot_and_shares_its_own_when_there_is_none() -> None:
    enter, leave = library().raw.ub_percpu_enter, library().raw.ub_percpu_exit
    enter.restype = ctypes.c_uint32
    with Map.create("percpu", MapType.PERCPU_ARRAY, 4, 8, 1) as percpu:
        defs = (c_void_p * 1)(ctypes.addressof(percpu.definition))
        bases = (c_void_p * 1)(percpu._memory.address)
        runs = [Run() for _ in range(possible_cpus() + 1)]
        for run in runs:
            run.cpu = enter(byref(run), defs, bases, 1)
        *held, nested = runs
        assert sorted(run.cpu for run in held) == list(range(possible_cpus()))
        assert nested.flags == 1 and nested.cpu < possible_cpus()
        outcome: list[int] = []
        other = threading.Thread(target=lambda: outcome.append(enter(byref(Run()), defs, bases, 1)))
        other.start()
        other.join()
        assert outcome == [0xFFFFFFFF]
        assert percpu.skipped_runs == 1
        for run in reversed(runs):
            leave(byref(run), defs, bases, 1)
        other = threading.Thread(target=lambda: outcome.append(enter(byref(Run()), defs, bases, 1)))
        other.start()
        other.join()
        assert outcome[1] < possible_cpus()
