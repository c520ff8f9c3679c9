"""The same operations on our maps and on the kernel's: same results, same errors, same contents."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from userbpf.errors import MapError
from userbpf.kernel import syscall
from userbpf.maps import Map
from userbpf.native import geometry, possible_cpus
from userbpf.tables.maps import MapFlag, MapType

MAX_ENTRIES = 6
LIMIT = 64 << 20
PERCPU = {MapType.PERCPU_HASH, MapType.PERCPU_ARRAY}


def kernel_create(map_type: int, key_size: int, value_size: int, max_entries: int, flags: int) -> int:
    """A descriptor, or -errno."""
    attr = struct.pack("=7I16s5IQ", map_type, key_size, value_size, max_entries, flags, 0, 0, b"", *([0] * 5), 0)
    return syscall.bpf(syscall.MAP_CREATE, attr)


class KernelMap:
    """bpf(2) with errors as -errno."""

    def __init__(self, map_type: int, key_size: int, value_size: int, max_entries: int) -> None:
        self.fd = kernel_create(map_type, key_size, value_size, max_entries, 0)
        assert self.fd >= 0
        self.key_size = key_size
        self.value_bytes = (value_size + 7) // 8 * 8 * possible_cpus() if map_type in PERCPU else value_size

    def call(self, command: int, key: bytes | None, value: ctypes.Array[ctypes.c_char] | None, flags: int = 0) -> int:
        key_buffer = None if key is None else ctypes.create_string_buffer(key, len(key))
        at = [0 if buffer is None else ctypes.addressof(buffer) for buffer in (key_buffer, value)]
        return syscall.bpf(command, struct.pack("=IxxxxQQQ", self.fd, *at, flags))

    def lookup(self, key: bytes) -> bytes | int:
        out = ctypes.create_string_buffer(self.value_bytes)
        return self.call(syscall.MAP_LOOKUP_ELEM, key, out) or out.raw

    def update(self, key: bytes, value: bytes, flags: int) -> int:
        return self.call(syscall.MAP_UPDATE_ELEM, key, ctypes.create_string_buffer(value, len(value)), flags)

    def delete(self, key: bytes) -> int:
        return self.call(syscall.MAP_DELETE_ELEM, key, None)

    def next_key(self, key: bytes | None) -> bytes | int:
        out = ctypes.create_string_buffer(self.key_size)
        return self.call(syscall.MAP_GET_NEXT_KEY, key, out) or out.raw


class OurMap:
    """Map with the same face."""

    def __init__(self, map_type: int, key_size: int, value_size: int, max_entries: int) -> None:
        self.map = Map.create("differential", map_type, key_size, value_size, max_entries)

    def lookup(self, key: bytes) -> bytes | int:
        found = self.map.lookup(key)
        return -errno.ENOENT if found is None else found

    def update(self, key: bytes, value: bytes, flags: int) -> int:
        try:
            self.map.update(key, value, flags)
        except MapError as error:
            return -error.errno
        return 0

    def delete(self, key: bytes) -> int:
        try:
            self.map.delete(key)
        except MapError as error:
            return -error.errno
        return 0

    def next_key(self, key: bytes | None) -> bytes | int:
        found = self.map.next_key(key)
        return -errno.ENOENT if found is None else found


def all_keys(bpf_map: KernelMap | OurMap) -> Iterator[bytes]:
    key = bpf_map.next_key(None)
    while isinstance(key, bytes):
        yield key
        key = bpf_map.next_key(key)


class Twins(RuleBasedStateMachine):
    map_type = MapType.HASH
    key_size = 4
    value_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.kernel = KernelMap(self.map_type, self.key_size, self.value_size, MAX_ENTRIES)
        self.ours = OurMap(self.map_type, self.key_size, self.value_size, MAX_ENTRIES)

    def teardown(self) -> None:
        os.close(self.kernel.fd)
        self.ours.map.close()

    def key(self, number: int) -> bytes:
        return number.to_bytes(self.key_size, "little")

    @rule(number=st.integers(0, MAX_ENTRIES + 2), seed=st.binary(min_size=1, max_size=4), flags=st.integers(0, 5))
    def update(self, number: int, seed: bytes, flags: int) -> None:
        size = (self.value_size + 7) // 8 * 8
        one = (seed * self.value_size)[: self.value_size].ljust(size, b"\0")
        value = one * possible_cpus() if self.map_type in PERCPU else one[: self.value_size]
        key = self.key(number)
        assert self.ours.update(key, value, flags) == self.kernel.update(key, value, flags)

    @rule(number=st.integers(0, MAX_ENTRIES + 2))
    def delete(self, number: int) -> None:
        assert self.ours.delete(self.key(number)) == self.kernel.delete(self.key(number))

    @rule(number=st.integers(0, MAX_ENTRIES + 2))
    def next_key_of_unknown_is_first(self, number: int) -> None:
        for bpf_map in (self.ours, self.kernel):
            keys = list(all_keys(bpf_map))
            if keys and self.key(number) not in keys:
                assert bpf_map.next_key(self.key(number)) == keys[0]

    @invariant()
    def contents_are_equal(self) -> None:
        assert sorted(all_keys(self.ours)) == sorted(all_keys(self.kernel))
        for number in range(MAX_ENTRIES + 3):
            assert self.ours.lookup(self.key(number)) == self.kernel.lookup(self.key(number))
        dumped = {key: value for batch in self.ours.map.batches() for key, value in batch}
        assert dumped == {key: self.kernel.lookup(key) for key in all_keys(self.kernel)}
        assert len(self.ours.map) == len(dumped)


@pytest.mark.parametrize(
    ("map_type", "key_size", "value_size"),
    [
        (MapType.HASH, 4, 8),
        (MapType.HASH, 8, 3),
        (MapType.HASH, 21, 40),
        (MapType.ARRAY, 4, 8),
        (MapType.ARRAY, 4, 5),
        (MapType.PERCPU_ARRAY, 4, 12),
        (MapType.PERCPU_HASH, 4, 8),
        (MapType.PERCPU_HASH, 9, 5),
    ],
)
def test_maps_do_what_the_kernels_do(kernel_bpf: None, map_type: MapType, key_size: int, value_size: int) -> None:
    body = {"map_type": map_type, "key_size": key_size, "value_size": value_size}
    machine: type[Twins] = type("TwinsOf" + map_type.name, (Twins,), body)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=10, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


FLAGS = [0, *(1 << bit for bit in range(13)), 1 << 31, MapFlag.RDONLY_PROG | MapFlag.WRONLY_PROG]
OFFERED = [
    MapType.ARRAY,
    MapType.HASH,
    MapType.PERCPU_ARRAY,
    MapType.PERCPU_HASH,
    MapType.RINGBUF,
    MapType.PERF_EVENT_ARRAY,
]


@given(
    map_type=st.sampled_from(OFFERED),
    key_size=st.sampled_from([0, 1, 4, 8, 512, (4 << 20) - 56, (4 << 20) - 57, 4 << 20]),
    value_size=st.sampled_from([0, 1, 4, 8, 32768, 32769, 4 << 20, 1 << 31, (1 << 32) - 1]),
    max_entries=st.sampled_from([0, 1, 3, 4096, 8192, 5000]),
    flags=st.sampled_from(FLAGS),
)
@example(MapType.HASH, (4 << 20) - 56, 8, 1, 0)
@example(MapType.HASH, (4 << 20) - 57, 8, 1, 0)
@example(MapType.PERCPU_ARRAY, 4, 32768, 1, 0)
@example(MapType.PERCPU_ARRAY, 4, 32769, 1, 0)
@example(MapType.ARRAY, 4, 1 << 31, 1, 0)
@example(MapType.RINGBUF, 0, 0, 4096, 0)
@example(MapType.RINGBUF, 0, 0, 5000, 0)
@example(MapType.PERF_EVENT_ARRAY, 4, 4, 3, MapFlag.PRESERVE_ELEMS)
@settings(max_examples=150, deadline=None)
def test_creation_is_refused_with_the_kernels_errors(
    kernel_bpf: None, map_type: MapType, key_size: int, value_size: int, max_entries: int, flags: int
) -> None:
    assume((key_size + value_size) * max_entries * possible_cpus() <= LIMIT or value_size >= 1 << 31)
    fd = kernel_create(map_type, key_size, value_size, max_entries, flags)
    theirs = min(fd, 0)
    if fd >= 0:
        os.close(fd)
    ours = 0
    try:
        geometry(map_type, key_size, value_size, max_entries, flags)
    except MapError as error:
        ours = -error.errno
    assert ours == theirs
