"""Map: typed access, events, sharing, and files that are not what they seem."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from userbpf.btf import Btf
from userbpf.btf.builder import Builder
from userbpf.btf.types import Array, DataSec, DataSecVar, Int, Linkage, Member, Struct, Var
from userbpf.errors import MapError
from userbpf.maps import Map
from userbpf.maps.map import NOEXIST
from userbpf.native import library, possible_cpus
from userbpf.native.abi import MapHeader, Run
from userbpf.object.model import MapSpec
from userbpf.tables.maps import MapFlag, MapType

np = pytest.importorskip("numpy", reason="numpy is an optional extra")


class Types:
    """A small object's BTF."""

    def __init__(self) -> None:
        b = Builder()
        self.u32 = b.add(Int("unsigned int", 4, 32))
        self.u64 = b.add(Int("unsigned long", 8, 64))
        self.char = b.add(Int("char", 1, 8, signed=True))
        self.comm = b.add(Array(self.char, self.u32, 8))
        members = (Member("count", self.u64, 0), Member("comm", self.comm, 64))
        self.event = b.add(Struct("event", 16, members))
        self.limit = b.add(Var("limit", self.u32, Linkage.GLOBAL))
        self.total = b.add(Var("total", self.u64, Linkage.GLOBAL))
        rows = (DataSecVar(self.limit, 0, 4), DataSecVar(self.total, 8, 8))
        self.data = b.add(DataSec(".data", 16, rows))
        self.btf = Btf.parse(b.build())


@pytest.fixture(scope="module")
def types() -> Types:
    return Types()


def emit(bpf_map: Map, data: bytes, flags: int = 0) -> int:
    """What a program's bpf_ringbuf_output does."""
    function = library().raw.ub_helper_ringbuf_output
    function.restype = ctypes.c_int64
    base = c_void_p(bpf_map._memory.address)
    size = ctypes.c_uint64(len(data))
    return int(function(byref(Run()), byref(bpf_map.definition), base, data, size, ctypes.c_uint64(flags)))


def test_entries_are_python_values_by_btf(types: Types) -> None:
    spec = MapSpec("counts", MapType.HASH, 4, 16, 10, key_btf=types.u32, value_btf=types.event, btf=types.btf)
    with Map.create(spec) as counts:
        counts[7] = {"count": 3, "comm": "bash"}
        assert counts[7] == {"count": 3, "comm": "bash"}
        assert dict(counts.items()) == {7: {"count": 3, "comm": "bash"}}
        assert list(counts) == [7] and len(counts) == 1 and 7 in counts and 8 not in counts
        assert counts.get(8) is None
        assert counts.lookup(b"\7\0\0\0") == struct.pack("<Q8s", 3, b"bash")
        counts.update({1: counts[7], 2: counts[7]})
        assert counts.pop(1)["count"] == 3
        with pytest.raises(KeyError):
            del counts[1]
        counts.clear()
        assert len(counts) == 0 and counts


def test_entries_without_btf_are_bytes_of_the_right_size() -> None:
    with Map.create("plain", MapType.HASH, 4, 8, 2) as plain:
        plain[b"abcd"] = b"12345678"
        assert plain[b"abcd"] == b"12345678"
        with pytest.raises(MapError, match="the key has 3 bytes, the map's has 4"):
            plain[b"abc"] = b"12345678"
        with pytest.raises(MapError, match="the value is 8 bytes without a type, not int"):
            plain[b"abcd"] = 5
        with pytest.raises(MapError, match="EEXIST") as caught:
            plain.update(b"abcd", b"12345678", NOEXIST)
        assert caught.value.errno == errno.EEXIST


def test_percpu_values_are_lists(types: Types) -> None:
    spec = MapSpec("hits", MapType.PERCPU_ARRAY, 4, 4, 3, value_btf=types.u32, btf=types.btf)
    with Map.create(spec) as hits:
        hits[1] = list(range(possible_cpus()))
        assert hits[1] == list(range(possible_cpus())) and hits[0] == [0] * possible_cpus()
        assert hits.to_numpy()[:, 1].tolist() == hits[1]
        with pytest.raises(MapError, match="one for each possible CPU"):
            hits[1] = [1] * (possible_cpus() + 1)
        with pytest.raises(KeyError):
            hits[3]
        with pytest.raises(MapError, match="E2BIG"):
            hits[3] = hits[1]
        with pytest.raises(MapError, match="EINVAL"):
            del hits[1]


def test_numpy_sees_and_changes_the_map_itself() -> None:
    with Map.create("array", MapType.ARRAY, 4, 8, 100) as array:
        view = array.to_numpy()
        view[5] += 41
        assert array[5] == (41).to_bytes(8, "little")
        array[5] = (42).to_bytes(8, "little")
        assert view[5] == 42 and view.sum() == 42
        assert array.to_numpy(dtype=[("a", "<u4"), ("b", "<u4")])["a"][5] == 42
        with pytest.raises(MapError, match="a value has 8"):
            array.to_numpy(dtype="<u4")
    assert view[5] == 42  # the memory stays as long as the array does
    with pytest.raises(MapError, match="is closed"):
        array.to_numpy()


def test_global_data_by_name(types: Types) -> None:
    initial = struct.pack("<IxxxxQ", 9, 1 << 40)
    spec = MapSpec(
        ".data", MapType.ARRAY, 4, 16, 1, flags=1024, kind="data", btf=types.btf, datasec=types.data, initial=initial
    )
    with Map.create(spec) as data:
        assert dict(data.variables) == {"limit": 9, "total": 1 << 40}
        data.variables["limit"] = 10
        assert data[0] == {"limit": 10, "total": 1 << 40}
        assert data.to_numpy().itemsize == 16
        with pytest.raises(KeyError):
            data.variables["nothing"]


def test_frozen_data_cannot_be_written_by_anyone(types: Types) -> None:
    spec = MapSpec(
        ".rodata", MapType.ARRAY, 4, 16, 1, flags=128, kind="rodata", btf=types.btf, datasec=types.data, initial=b""
    )
    with Map.create(spec) as rodata:
        assert rodata.readonly and not rodata.frozen
        rodata.variables["limit"] = 3
        rodata.freeze()
        assert rodata.variables["limit"] == 3
        with pytest.raises(MapError) as caught:
            rodata.variables["limit"] = 4
        assert caught.value.errno == errno.EPERM
        with pytest.raises(OSError):
            os.pwrite(rodata.fd, b"x", 4096)
        with Map.open(os.dup(rodata.fd)) as again:
            assert again.frozen and dict(again.variables) == {"limit": 3, "total": 0}
            with pytest.raises(MapError):
                again.update(bytes(4), bytes(16))


def test_a_map_is_known_by_its_descriptor_alone(types: Types) -> None:
    spec = MapSpec("counts", MapType.HASH, 4, 16, 10, key_btf=types.u32, value_btf=types.event, btf=types.btf)
    with Map.create(spec) as counts, Map.open(os.dup(counts.fd)) as same:
        counts[1] = {"count": 1, "comm": "x"}
        assert (same.name, same.type) == ("counts", MapType.HASH)
        assert same[1] == {"count": 1, "comm": "x"}
        assert os.readlink(f"/proc/self/fd/{counts.fd}").startswith("/memfd:userbpf-map:counts")
        with pytest.raises(OSError):
            os.ftruncate(same.fd, 0)


def test_access_flags_are_kept() -> None:
    with Map.create("r", MapType.ARRAY, 4, 8, 1, MapFlag.RDONLY) as readable, pytest.raises(MapError, match="EPERM"):
        readable[0] = bytes(8)
    with Map.create("w", MapType.ARRAY, 4, 8, 1, MapFlag.WRONLY) as writable, pytest.raises(MapError, match="EPERM"):
        writable[0]


def test_huge_maps_cost_what_is_touched() -> None:
    with Map.create("huge", MapType.HASH, 8, 64, 50_000_000) as huge:
        assert huge.memory_size > 3 << 30
        huge.update(bytes(8), bytes(64))
        assert os.fstat(huge.fd).st_blocks * 512 < 1 << 20


# ---- events ------------------------------------------------------------------------------------------


def test_events_are_decoded_by_type(types: Types) -> None:
    spec = MapSpec("events", MapType.RINGBUF, 0, 0, 5000, btf=types.btf)
    with Map.create(spec) as events:
        assert events.definition.max_entries == 8192  # as libbpf rounds
        emit(events, struct.pack("<Q8s", 3, b"bash"))
        assert events.typed("struct event").read(0) == [{"count": 3, "comm": "bash"}]
        emit(events, b"short")
        collected: list[Any] = []
        assert events.poll(collected.append, 1) == 1 and collected == [b"short"]
        with pytest.raises(MapError, match="no type 'nothing'"):
            events.typed("nothing")


def test_iteration_waits_and_ends_when_finished() -> None:
    with Map.create("events", MapType.RINGBUF, 0, 0, 1 << 16) as events:

        def produce() -> None:
            for i in range(1000):
                assert emit(events, i.to_bytes(4, "little")) == 0
            events.finish()

        producer = threading.Thread(target=produce)
        producer.start()
        assert [int.from_bytes(event, "little") for event in events] == list(range(1000))
        producer.join()


def test_close_in_another_thread_ends_iteration() -> None:
    events = Map.create("events", MapType.RINGBUF, 0, 0, 4096)
    emit(events, b"first")
    seen: list[bytes] = []
    first = threading.Event()

    def consume() -> None:
        for event in events:
            seen.append(event)
            first.set()

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert first.wait(10)
    events.close()
    consumer.join(10)
    assert not consumer.is_alive() and seen == [b"first"]


def test_read_returns_at_its_timeout() -> None:
    with Map.create("events", MapType.RINGBUF, 0, 0, 4096) as events:
        start = time.monotonic()
        assert events.read(0.05) == []
        assert 0.05 <= time.monotonic() - start < 5


def test_ctrl_c_ends_a_wait() -> None:
    program = (
        "import sys\nfrom userbpf.maps import Map\n"
        "m = Map.create('e', 27, 0, 0, 4096)\n"
        "try:\n    print('ready', flush=True)\n    for event in m: pass\n"
        "except KeyboardInterrupt:\n    m.close(); print('interrupted')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == "interrupted\n"


def test_large_events_make_the_buffer_grow() -> None:
    with Map.create("events", MapType.RINGBUF, 0, 0, 1 << 20) as events:
        emit(events, b"x" * 900_000)
        assert events.read(0) == [b"x" * 900_000]


def test_what_a_map_has_not_is_said() -> None:
    with Map.create("events", MapType.RINGBUF, 0, 0, 4096) as events, Map.create("a", MapType.ARRAY, 4, 4, 1) as array:
        for action in (lambda: array.read(0), lambda: events.lookup(b""), events.to_numpy):
            with pytest.raises(MapError) as caught:
                action()
            assert caught.value.errno == errno.EOPNOTSUPP
        with pytest.raises(TypeError):
            len(events)
        emit(events, b"last")
        events.finish()
        assert list(events) == [b"last"]
        assert dict(array.variables) == {}


# ---- other processes, other people's files ------------------------------------------------------------


def test_two_processes_share_a_map() -> None:
    with Map.create("shared", MapType.HASH, 4, 8, 1000) as shared:
        child = os.fork()
        if child == 0:
            for i in range(500):
                shared.update(i.to_bytes(4, "little"), os.getpid().to_bytes(8, "little"))
            os._exit(0)
        for i in range(500, 1000):
            shared.update(i.to_bytes(4, "little"), os.getpid().to_bytes(8, "little"))
        assert os.waitpid(child, 0)[1] == 0
        owners = [int.from_bytes(value, "little") for value in shared.values()]
        assert owners.count(child) == 500 and owners.count(os.getpid()) == 500


def test_closed_maps_say_so() -> None:
    closed = Map.create("a", MapType.ARRAY, 4, 8, 1)
    closed.close()
    closed.close()
    assert closed.fd == -1 and "closed" in repr(closed)
    for action in (lambda: closed[0], lambda: list(closed), lambda: closed.update(bytes(4), bytes(8)), closed.next_key):
        with pytest.raises(MapError) as caught:
            action()
        assert caught.value.errno == errno.EBADF


def memfd(data: bytes) -> int:
    fd = os.memfd_create("hostile")
    os.write(fd, data)
    return fd


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"\0" * 8192, b"\x7fELF" + bytes(5000)])
def test_files_that_are_no_maps_are_refused(data: bytes) -> None:
    fd = memfd(data)
    with pytest.raises(MapError, match="not a userbpf map"):
        Map.open(fd)
    os.close(fd)


def test_a_pipe_and_a_file_are_refused(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    for fd in (reading, writing):
        with pytest.raises(MapError):
            Map.open(fd)
        os.close(fd)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["hash", "array", "percpu", "ring", "perf"]),
    spots=st.lists(st.tuples(st.integers(0, 70_000), st.binary(min_size=1, max_size=16)), max_size=12),
    cut=st.integers(0, 300_000),
)
@example(kind="hash", spots=[(4096 + 64 * 4, b"\xff" * 16)], cut=300_000)
def test_a_corrupted_map_gives_errors_and_nothing_worse(kind: str, spots: list[tuple[int, bytes]], cut: int) -> None:
    made = {
        "hash": lambda: Map.create("m", MapType.HASH, 4, 8, 4),
        "array": lambda: Map.create("m", MapType.ARRAY, 4, 8, 4),
        "percpu": lambda: Map.create("m", MapType.PERCPU_HASH, 9, 8, 4),
        "ring": lambda: Map.create("m", MapType.RINGBUF, 0, 0, 4096),
        "perf": lambda: Map.create("m", MapType.PERF_EVENT_ARRAY, 4, 4, 1),
    }[kind]()
    with made:
        if kind == "ring":
            emit(made, b"event")
        elif kind in ("hash", "percpu"):
            for i in range(3):
                made.update(i.to_bytes(made.definition.key_size, "little"), bytes(made._value_bytes))
        data = bytearray(os.pread(made.fd, 1 << 20, 0)[:cut])
    for at, patch in spots:
        if at >= ctypes.sizeof(MapHeader) or at < 8:
            data[at : at + len(patch)] = patch[: max(0, len(data) - at)]
    fd = memfd(bytes(data))
    try:
        opened = Map.open(fd)
    except MapError:
        os.close(fd)
        return
    with opened:
        for action in (
            lambda: list(opened.items()) if not opened.is_events else opened.read(0),
            lambda: [opened.lookup(i.to_bytes(opened.definition.key_size, "little")) for i in range(6)],
            lambda: opened.update(bytes(opened.definition.key_size), bytes(opened._value_bytes)),
            lambda: opened.delete(bytes(opened.definition.key_size)),
            lambda: emit(opened, b"again") if kind == "ring" else None,
        ):
            try:
                action()
            except MapError:
                continue


@pytest.mark.parametrize("link", [1, 2, 3, 0x7FFFFFFF, 0xFFFFFFFF])
def test_chains_that_go_in_circles_or_astray_end(link: int) -> None:
    with Map.create("m", MapType.HASH, 4, 8, 100) as circular:
        for i in range(60):
            circular.update(i.to_bytes(4, "little"), bytes(8))
        d = circular.definition
        circular._memory.view(d.buckets_off, 4 * d.n_buckets)[:] = link.to_bytes(4, "little") * d.n_buckets
        for i in range(d.n_elems):
            circular._memory.view(d.elems_off + i * d.elem_stride, 4)[:] = link.to_bytes(4, "little")
        for action in (lambda: list(circular.items()), lambda: len(circular)):
            if link <= d.n_elems:
                with pytest.raises(MapError) as caught:
                    action()
                assert caught.value.errno == errno.EFAULT
            else:
                assert not action()
        for i in range(100):
            circular.lookup(i.to_bytes(4, "little"))
            circular.next_key(i.to_bytes(4, "little"))
            for change in (lambda k: circular.update(k, bytes(8)), circular.delete):
                try:
                    change(i.to_bytes(4, "little"))
                except MapError as error:
                    assert error.errno in (errno.E2BIG, errno.ENOENT)
