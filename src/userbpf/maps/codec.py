"""Keys and values between bytes and Python: by BTF where a map has it, bytes where it has not."""

from __future__ import annotations

import errno
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from userbpf.btf import Btf
from userbpf.btf.types import DataSec, Var
from userbpf.errors import BtfError, MapError
from userbpf.maps.memory import MapInfo, MapMemory
from userbpf.native.abi import MapDef
from userbpf.tables.maps import MapType

__all__ = ["Codec", "Variables", "event_codec", "key_codec", "value_codec"]

PERCPU: Final = frozenset({MapType.PERCPU_ARRAY, MapType.PERCPU_HASH})
ARRAYS: Final = frozenset({MapType.ARRAY, MapType.PERCPU_ARRAY})
EVENTS: Final = frozenset({MapType.RINGBUF, MapType.PERF_EVENT_ARRAY})


class Codec(Protocol):
    """Both directions for one type."""

    def decode(self, data: bytes) -> Any: ...

    def encode(self, value: Any) -> bytes: ...


@dataclass(frozen=True)
class Raw:
    """Bytes as they are, of one size."""

    size: int
    what: str

    def decode(self, data: bytes) -> Any:
        return data

    def encode(self, value: Any) -> bytes:
        return as_bytes(value, self.size, self.what)


@dataclass(frozen=True)
class Index:
    """The index of an array."""

    def decode(self, data: bytes) -> Any:
        return int.from_bytes(data, "little")

    def encode(self, value: Any) -> bytes:
        if isinstance(value, int) and 0 <= value < 1 << 32:
            return value.to_bytes(4, "little")
        if isinstance(value, int):
            raise MapError(f"{value} is not an index of an array", errno=errno.E2BIG)
        return as_bytes(value, 4, "index")


@dataclass(frozen=True)
class Typed:
    """A BTF type of ``size`` bytes. Bytes of that size are taken as they are. BtfError: the value does not fit."""

    codec: Codec
    size: int
    what: str

    def decode(self, data: bytes) -> Any:
        return self.codec.decode(data)

    def encode(self, value: Any) -> bytes:
        if isinstance(value, bytes | bytearray | memoryview):
            return as_bytes(value, self.size, self.what)
        return as_bytes(self.codec.encode(value), self.size, self.what)


@dataclass(frozen=True)
class PerCpu:
    """One value for each CPU slot: a list. The kernel's layout: each value fills up to 8 bytes."""

    item: Codec
    size: int
    stride: int
    n_cpus: int

    def decode(self, data: bytes) -> Any:
        starts = range(0, self.n_cpus * self.stride, self.stride)
        return [self.item.decode(data[start : start + self.size]) for start in starts]

    def encode(self, value: Any) -> bytes:
        if isinstance(value, bytes | bytearray | memoryview):
            return as_bytes(value, self.n_cpus * self.stride, "per-cpu value")
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != self.n_cpus:
            raise MapError(
                f"a per-cpu value is a list of {self.n_cpus} values, one for each possible CPU", errno=errno.EINVAL
            )
        return b"".join(self.item.encode(item).ljust(self.stride, b"\0") for item in value)


def as_bytes(value: Any, size: int, what: str) -> bytes:
    """``value`` as bytes of exactly this size, or a MapError that says what was expected."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise MapError(
            f"the {what} is {size} bytes without a type, not {type(value).__name__}",
            errno=errno.EINVAL,
            hint="give bytes, or build the object with BTF (-g)",
        )
    data = bytes(value)
    if len(data) != size:
        raise MapError(f"the {what} has {len(data)} bytes, the map's has {size}", errno=errno.EINVAL)
    return data


def _typed(btf: Btf | None, type_id: int, size: int, what: str) -> Raw | Typed:
    """By BTF when the type has the map's size; a description that lies is no reason to fail."""
    from userbpf.btf.format import Decoder

    if btf is None or not type_id:
        return Raw(size, what)
    try:
        if btf.size_of(type_id) != size:
            return Raw(size, what)
        return Typed(Decoder(btf, type_id), size, what)
    except BtfError:
        return Raw(size, what)


def key_codec(definition: MapDef, info: MapInfo) -> Codec:
    """Of a map's keys."""
    if definition.type in ARRAYS:
        return Index()
    return _typed(info.btf, info.key_btf, definition.key_size, "key")


def value_codec(definition: MapDef, info: MapInfo) -> Codec:
    """Of a map's values: a list of all CPUs' for per-cpu maps, a dict of the variables for global data."""
    item = _typed(info.btf, info.datasec or info.value_btf, definition.value_size, "value")
    if definition.type in PERCPU:
        return PerCpu(item, definition.value_size, definition.value_stride, definition.n_cpus)
    return item


def event_codec(info: MapInfo, type_name: str | None) -> tuple[Codec, int] | None:
    """The type of a map's events and its size: a struct by name, else the declared value type, else None."""
    from userbpf.btf.format import Decoder

    if info.btf is None:
        if type_name is not None:
            raise MapError(f"the map {info.name!r} has no BTF in which {type_name!r} could be", errno=errno.ENOENT)
        return None
    type_id = info.value_btf
    if type_name is not None:
        found = info.btf.find(type_name.removeprefix("struct ").strip())
        if found is None:
            raise MapError(f"the BTF of the map {info.name!r} has no type {type_name!r}", errno=errno.ENOENT)
        type_id = found
    return (Decoder(info.btf, type_id), info.btf.size_of(type_id)) if type_id else None


def section_variables(info: MapInfo, size: int) -> dict[str, tuple[int, Raw | Typed]]:
    """Name → offset and type of the global variables of a data section; those outside of it are left out."""
    btf = info.btf
    if btf is None or not info.datasec:
        return {}
    try:
        section = btf.expect(info.datasec, DataSec)
        found: dict[str, tuple[int, Raw | Typed]] = {}
        for row in section.vars:
            var = btf.expect(row.type, Var)
            if row.offset + row.size <= size:
                found[var.name] = (row.offset, _typed(btf, var.type, row.size, f"variable {var.name}"))
        return found
    except BtfError:
        return {}


class Variables(MutableMapping[str, Any]):
    """Global variables of a program by name, read from and written to where programs use them."""

    def __init__(self, memory: MapMemory) -> None:
        self._memory = memory
        self._variables = section_variables(memory.info, memory.definition.value_size)

    def _place(self, name: str) -> tuple[memoryview, Raw | Typed]:
        if name not in self._variables:
            raise KeyError(name)
        at, codec = self._variables[name]
        return self._memory.view(self._memory.definition.data_off + at, codec.size), codec

    def __getitem__(self, name: str) -> Any:
        view, codec = self._place(name)
        return codec.decode(bytes(view))

    def __setitem__(self, name: str, value: Any) -> None:
        view, codec = self._place(name)
        if self._memory.frozen:
            raise MapError(f"the map {self._memory.info.name!r} is frozen", errno=errno.EPERM)
        view[:] = codec.encode(value)

    def __delitem__(self, name: str) -> None:
        raise MapError(f"a program's variable cannot be deleted: {name}", errno=errno.EINVAL)

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def __repr__(self) -> str:
        return f"Variables({dict(self)!r})"
