"""``userbpf map``: maps of other processes, found by the names of their memfds."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from userbpf.maps import Map
from userbpf.object import MapSpec
from userbpf.tables.maps import MapType

MAPPER = """
import mmap, os, sys
fd, size = int(sys.argv[1]), int(sys.argv[2])
memory = mmap.mmap(fd, size)
os.close(fd)
print(flush=True)
sys.stdin.read()
"""


def userbpf(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "userbpf.cli.app", "map", *args], capture_output=True, text=True, check=False
    )


def answer(*args: str) -> Any:
    result = userbpf(*args, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@contextmanager
def mapped_elsewhere(opened: Map) -> Iterator[int]:
    """Another process that has the map mapped and holds no descriptor, as a target whose controller died."""
    # A descriptor of its own kind: mmap.mmap keeps a duplicate, so the child closes that as well.
    script = MAPPER.replace(
        "memory = mmap.mmap(fd, size)\nos.close(fd)",
        "import ctypes; libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p\n"
        "libc.mmap(None, ctypes.c_size_t(size), 3, 1, fd, ctypes.c_long(0)); os.close(fd)",
    )
    size = (os.fstat(opened.fd).st_size + mmap.PAGESIZE - 1) & -mmap.PAGESIZE
    with subprocess.Popen(
        [sys.executable, "-c", script, str(opened.fd), str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[opened.fd],
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
        yield child.pid


@pytest.fixture
def counts() -> Iterator[Map]:
    """A hash map of ours with two entries and a name that nobody else uses."""
    with Map.create(MapSpec(f"counts{os.getpid()}", int(MapType.HASH), 4, 8, 16)) as opened:
        opened[(1).to_bytes(4, "little")] = (10).to_bytes(8, "little")
        opened[(2).to_bytes(4, "little")] = (20).to_bytes(8, "little")
        yield opened


def test_list_shows_the_map_of_a_running_controller(counts: Map) -> None:
    (row,) = (row for row in answer("list", "--pid", str(os.getpid())) if row["name"] == counts.name)
    assert (row["type"], row["key_size"], row["value_size"], row["max_entries"]) == ("hash", 4, 8, 16)
    assert row["pids"] == [os.getpid()]
    assert row["held"]


def test_dump_prints_the_entries(counts: Map) -> None:
    dumped = answer("dump", counts.name)
    assert len(dumped["entries"]) == 2
    assert {str(entry["value"]) for entry in dumped["entries"]} == {"0a" + "00" * 7, "14" + "00" * 7}
    assert userbpf("dump", counts.name).stdout.splitlines()[0].split() == ["key", "value"]


def test_map_that_only_a_target_has_is_read_from_its_memory(counts: Map) -> None:
    with mapped_elsewhere(counts) as pid:
        name = counts.name
        counts.close()
        dumped = answer("dump", name, "--pid", str(pid))
    assert len(dumped["entries"]) == 2


def test_unknown_map_is_one_sentence_with_near_names(counts: Map) -> None:
    result = userbpf("dump", counts.name + "x")
    assert result.returncode == 1
    assert counts.name in result.stderr
    assert "Traceback" not in result.stderr


def test_two_maps_of_one_name_are_told_apart_by_id(counts: Map) -> None:
    with Map.create(MapSpec(counts.name, int(MapType.ARRAY), 4, 8, 2)):
        result = userbpf("dump", counts.name)
        assert result.returncode == 1
        assert "give the id" in result.stderr
        ids = {row["id"]: row["type"] for row in answer("list") if row["name"] == counts.name}
        assert sorted(ids.values()) == ["array", "hash"]
        array = next(number for number, kind in ids.items() if kind == "array")
        assert len(answer("dump", str(array))["entries"]) == 2


def test_stream_is_not_dumped() -> None:
    with Map.create(MapSpec(f"stream{os.getpid()}", int(MapType.RINGBUF), 0, 0, 4096)) as ring:
        result = userbpf("dump", ring.name)
    assert result.returncode == 1
    assert "ringbuf" in result.stderr
