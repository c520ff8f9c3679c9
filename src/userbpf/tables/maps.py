"""Map types: the kernel's numbers, and one row for each type that userbpf offers.

Flags and size rules are those of kernel/bpf/arraymap.c, hashtab.c, ringbuf.c and syscall.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import Final


class MapType(IntEnum):
    """``enum bpf_map_type`` of include/uapi/linux/bpf.h."""

    UNSPEC = 0
    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    STACK_TRACE = 7
    CGROUP_ARRAY = 8
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    SOCKMAP = 15
    CPUMAP = 16
    XSKMAP = 17
    SOCKHASH = 18
    CGROUP_STORAGE = 19
    REUSEPORT_SOCKARRAY = 20
    PERCPU_CGROUP_STORAGE = 21
    QUEUE = 22
    STACK = 23
    SK_STORAGE = 24
    DEVMAP_HASH = 25
    STRUCT_OPS = 26
    RINGBUF = 27
    INODE_STORAGE = 28
    TASK_STORAGE = 29
    BLOOM_FILTER = 30
    USER_RINGBUF = 31
    CGRP_STORAGE = 32
    ARENA = 33


class MapFlag(IntFlag):
    """``BPF_F_*`` flags of map creation (bpf.h)."""

    NO_PREALLOC = 1 << 0
    NO_COMMON_LRU = 1 << 1
    NUMA_NODE = 1 << 2
    RDONLY = 1 << 3
    WRONLY = 1 << 4
    STACK_BUILD_ID = 1 << 5
    ZERO_SEED = 1 << 6
    RDONLY_PROG = 1 << 7
    WRONLY_PROG = 1 << 8
    CLONE = 1 << 9
    MMAPABLE = 1 << 10
    PRESERVE_ELEMS = 1 << 11
    INNER_MAP = 1 << 12
    LINK = 1 << 13
    PATH_FD = 1 << 14
    VTYPE_BTF_OBJ_FD = 1 << 15
    TOKEN_FD = 1 << 16
    SEGV_ON_FAULT = 1 << 17
    NO_USER_CONV = 1 << 18


# Flags of bpf_map_update_elem (bpf.h).
BPF_ANY: Final = 0
BPF_NOEXIST: Final = 1
BPF_EXIST: Final = 2
BPF_F_LOCK: Final = 4


class KeyRule(IntEnum):
    """What the key of a map type may be."""

    ANY = 0
    """1 or more bytes, chosen at creation."""
    INDEX = 1
    """A u32 index below max_entries."""
    NONE = 2
    """The type has no keys: key_size is 0."""


@dataclass(frozen=True, slots=True)
class MapTypeInfo:
    """What userbpf offers for one map type.

    flags: the flags allowed at creation. helpers: names (without ``bpf_``) of the helpers that take the type.
    direct_value: the verifier lets a program point into the first value (globals). percpu: one value per CPU.
    value_size: the only size allowed, None when free.
    """

    type: MapType
    flags: MapFlag
    helpers: frozenset[str]
    key: KeyRule
    value_size: int | None = None
    percpu: bool = False
    direct_value: bool = False
    doc: str = ""


_ACCESS: Final = MapFlag.RDONLY | MapFlag.WRONLY | MapFlag.RDONLY_PROG | MapFlag.WRONLY_PROG
_LOOKUP_UPDATE: Final = frozenset({"map_lookup_elem", "map_update_elem"})
_ALL_ELEM: Final = _LOOKUP_UPDATE | {"map_delete_elem"}

_ROWS: Final = (
    MapTypeInfo(
        MapType.HASH,
        MapFlag.NO_PREALLOC | MapFlag.NUMA_NODE | MapFlag.ZERO_SEED | _ACCESS,
        _ALL_ELEM,
        KeyRule.ANY,
        doc="Keys of any size to values; bounded by max_entries.",
    ),
    MapTypeInfo(
        MapType.ARRAY,
        MapFlag.NUMA_NODE | MapFlag.MMAPABLE | MapFlag.INNER_MAP | _ACCESS,
        _ALL_ELEM,
        KeyRule.INDEX,
        direct_value=True,
        doc="Values by index, all present and zero from the start; delete fails with EINVAL.",
    ),
    MapTypeInfo(
        MapType.PERF_EVENT_ARRAY,
        MapFlag.NUMA_NODE | MapFlag.RDONLY | MapFlag.WRONLY | MapFlag.PRESERVE_ELEMS,
        frozenset({"perf_event_output"}),
        KeyRule.INDEX,
        value_size=4,
        doc="One ring of perf records for each CPU.",
    ),
    MapTypeInfo(
        MapType.PERCPU_HASH,
        MapFlag.NO_PREALLOC | MapFlag.ZERO_SEED | _ACCESS,
        _ALL_ELEM,
        KeyRule.ANY,
        percpu=True,
        doc="A hash whose values exist once for each CPU.",
    ),
    MapTypeInfo(
        MapType.PERCPU_ARRAY,
        _ACCESS,
        _ALL_ELEM,
        KeyRule.INDEX,
        percpu=True,
        doc="An array whose values exist once for each CPU.",
    ),
    MapTypeInfo(
        MapType.RINGBUF,
        MapFlag.NUMA_NODE,
        frozenset({"ringbuf_output", "ringbuf_reserve", "ringbuf_submit", "ringbuf_discard", "ringbuf_query"}),
        KeyRule.NONE,
        value_size=0,
        doc="One ring of records for all CPUs; max_entries is its size in bytes, a power of two of whole pages.",
    ),
)

MAP_TYPES: Final[Mapping[MapType, MapTypeInfo]] = MappingProxyType({row.type: row for row in _ROWS})
"""The map types that userbpf offers."""


def type_name(number: int) -> str:
    """``hash``, ``percpu_array``, …: the name that bpftool prints; ``type 99`` for an unknown number."""
    try:
        return MapType(number).name.lower()
    except ValueError:
        return f"type {number}"
