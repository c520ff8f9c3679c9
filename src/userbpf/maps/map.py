"""Map: the one class for all map types."""

from __future__ import annotations

import ctypes
import errno
import secrets
from collections.abc import Callable, ItemsView, Iterator, MutableMapping, ValuesView
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from userbpf.errors import MapError
from userbpf.maps.codec import ARRAYS, EVENTS, PERCPU, Variables, as_bytes, event_codec, key_codec, value_codec
from userbpf.maps.events import EventReader
from userbpf.maps.memory import MapInfo, MapMemory, closed_error
from userbpf.native import geometry, library, possible_cpus
from userbpf.native.abi import PAGE, MapDef
from userbpf.native.library import errno_name
from userbpf.object.model import MapSpec
from userbpf.tables.maps import MapFlag, MapType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray

__all__ = ["ANY", "EXIST", "NOEXIST", "Map"]

ANY: Final = 0
NOEXIST: Final = 1
EXIST: Final = 2
_BATCH_BYTES: Final = 1 << 20


class Map(MutableMapping[Any, Any]):
    """A map, shared with the programs that use it.

    Data maps are dict-like: keys and values are Python values by the map's BTF, bytes where it has none; an array's
    key is its index; a per-cpu value is a list with one value for each possible CPU. Maps of events (ring buffer,
    perf event array) are iterated: ``for event in map`` waits for each next one. A map of global data has
    ``variables``.

    Raw access (``lookup``, ``update``, ``delete``, ``next_key``, ``batches``) is that of bpf(2), with its errors as
    MapError.errno. A closed map raises EBADF.
    """

    def __init__(self, memory: MapMemory) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self._memory = memory
        definition = memory.definition
        self._ref = ctypes.byref(definition)
        self._value_bytes: int = library().raw.ub_map_value_bytes(self._ref)
        self._keys = key_codec(definition, memory.info)
        self._values = value_codec(definition, memory.info)
        self._reader: EventReader | None = None
        if definition.type in EVENTS:
            self._reader = EventReader(memory)
            self._reader.set_type(event_codec(memory.info, None))

    # ---- life ----------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        spec: MapSpec | str,
        type: int = 0,
        key_size: int = 0,
        value_size: int = 0,
        max_entries: int = 0,
        flags: int = 0,
        *,
        n_cpus: int | None = None,
    ) -> Map:
        """A new map, from what an object declares (with libbpf's adjustments) or from a name and bpf(2)'s numbers.

        MapError with the kernel's errno when the kernel would refuse it.
        """
        if isinstance(spec, str):
            spec = MapSpec(spec, type, key_size, value_size, max_entries, flags)
        else:
            spec = _as_libbpf_creates(spec, possible_cpus() if n_cpus is None else n_cpus)
        definition = geometry(
            spec.type,
            spec.key_size,
            spec.value_size,
            spec.max_entries,
            spec.flags,
            n_cpus=n_cpus,
            seed=secrets.randbits(64),
        )
        info = MapInfo(spec.name, spec.kind, spec.key_btf, spec.value_btf, spec.datasec, spec.btf)
        result = cls(MapMemory.create(definition, info))
        if spec.initial is not None:
            try:
                initial = as_bytes(spec.initial.ljust(spec.value_size, b"\0"), spec.value_size, "initial data")
                result._memory.view(definition.data_off, spec.value_size)[:] = initial
            except BaseException:
                result.close()
                raise
        return result

    @classmethod
    def open(cls, fd: int) -> Map:
        """The map behind a descriptor that came from anywhere; owns the descriptor when it succeeds.

        MapError when the file is not a map. A file that is not sealed against shrinking is opened as a copy.
        """
        return cls(MapMemory.open(fd))

    def close(self) -> None:
        """Ends iterations over events, unmaps the map here and closes the descriptor. Programs go on with it."""
        if self._reader is not None:
            self._reader.close()
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def freeze(self) -> None:
        """Makes the content final, as bpf(2) BPF_MAP_FREEZE: nobody can map the file for writing from now on.

        Programs must not have it mapped yet. For read-only data, whose file is left open to this.
        """
        self._memory.freeze()

    # ---- what it is ----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._memory.info.name

    @property
    def info(self) -> MapInfo:
        """Name, kind and BTF."""
        return self._memory.info

    @property
    def fd(self) -> int:
        """Descriptor of the memory file, -1 when closed."""
        return self._memory.fd

    @property
    def definition(self) -> MapDef:
        """``struct ub_map_def``: ``bytes(map.definition)`` is what the code generator takes."""
        return self._memory.definition

    @property
    def memory_size(self) -> int:
        """Bytes that a process maps to use it."""
        return int(self.definition.size)

    @property
    def readonly(self) -> bool:
        """True when programs must not write to it, so that their process maps it for reading only."""
        return self.frozen or bool(self.definition.flags & MapFlag.RDONLY_PROG)

    @property
    def type(self) -> MapType:
        return MapType(self.definition.type)

    @property
    def frozen(self) -> bool:
        return self._memory.frozen

    @property
    def is_events(self) -> bool:
        """True for ring buffers and perf event arrays."""
        return self._reader is not None

    @property
    def dropped(self) -> int:
        """Events that programs could not write: the ring buffer was full, or perf rings were (once read)."""
        return int(self._memory.header.dropped) + (self._reader.lost if self._reader else 0)

    @property
    def skipped_runs(self) -> int:
        """Per-cpu maps: runs of programs that found no free CPU slot."""
        return int(self._memory.header.skipped)

    def __repr__(self) -> str:
        state = " closed" if self._memory.closed else ""
        return f"<Map {self.name!r} {self.type.name}{state}>"

    # ---- raw access: bpf(2) --------------------------------------------------------------------

    def _base(self, forbidden: MapFlag) -> int:
        if self._memory.closed:
            raise closed_error(self.name)
        if self.definition.flags & forbidden:
            raise self._error(errno.EPERM, "access")
        return self._memory.address

    def _writable(self) -> int:
        if self._memory.frozen:
            raise self._error(errno.EPERM, "update")
        return self._base(MapFlag.RDONLY)

    def _error(self, number: int, what: str) -> MapError:
        return MapError(f"{what} of the map {self.name!r} failed: {errno_name(number)}", errno=number)

    def lookup(self, key: bytes) -> bytes | None:
        """A copy of the value (per-cpu maps: of all CPUs, each 8-aligned), None when there is no such key."""
        base = self._base(MapFlag.WRONLY)
        out = ctypes.create_string_buffer(self._value_bytes)
        error = library().raw.ub_map_lookup(self._ref, base, as_bytes(key, self.definition.key_size, "key"), out)
        if error == -errno.ENOENT:
            return None
        if error:
            raise self._error(-error, "lookup")
        return out.raw

    def update(self, key: Any, value: Any = None, flags: int = ANY, **others: Any) -> None:  # type: ignore[override]
        """Sets one raw value; flags ANY, NOEXIST (EEXIST when there), EXIST (ENOENT when not). E2BIG: full.

        With a mapping or an iterable of pairs, dict's update by typed keys and values.
        """
        if not isinstance(key, bytes | bytearray | memoryview):
            super().update(key, **others)
            return
        base = self._writable()
        key = as_bytes(key, self.definition.key_size, "key")
        value = as_bytes(value, self._value_bytes, "value")
        error = library().raw.ub_map_update(self._ref, base, key, value, flags)
        if error:
            raise self._error(-error, "update")

    def delete(self, key: bytes) -> None:
        """Removes a raw key. MapError: ENOENT when it is not there, EINVAL for arrays."""
        base = self._writable()
        error = library().raw.ub_map_delete(self._ref, base, as_bytes(key, self.definition.key_size, "key"))
        if error:
            raise self._error(-error, "delete")

    def next_key(self, key: bytes | None = None) -> bytes | None:
        """The raw key behind this one (None, or one that is not there: the first key), None after the last."""
        base = self._base(MapFlag.WRONLY)
        out = ctypes.create_string_buffer(self.definition.key_size)
        known = None if key is None else as_bytes(key, self.definition.key_size, "key")
        error = library().raw.ub_map_next_key(self._ref, base, known, out)
        if error == -errno.ENOENT:
            return None
        if error:
            raise self._error(-error, "next_key")
        return out.raw

    def batches(self) -> Iterator[list[tuple[bytes, bytes]]]:
        """All raw entries in large batches. Entries of one bucket are of one moment, and none is seen twice."""
        key_size, value_size = int(self.definition.key_size), self._value_bytes
        room = max(16, _BATCH_BYTES // (key_size + value_size))
        cursor = ctypes.c_uint64(0)
        while True:
            base = self._base(MapFlag.WRONLY)
            keys = ctypes.create_string_buffer(room * key_size)
            values = ctypes.create_string_buffer(room * value_size)
            count = library().raw.ub_map_dump(self._ref, base, ctypes.byref(cursor), keys, values, room)
            if count == -errno.ENOSPC:
                room *= 2
                continue
            if count < 0:
                raise self._error(-count, "dump")
            if count == 0:
                return
            all_keys, all_values = keys.raw, values.raw
            yield [
                (all_keys[i * key_size : (i + 1) * key_size], all_values[i * value_size : (i + 1) * value_size])
                for i in range(count)
            ]

    # ---- a dict --------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        raw = self.lookup(self._keys.encode(key))
        if raw is None:
            raise KeyError(key)
        return self._values.decode(raw)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.update(self._keys.encode(key), self._values.encode(value))

    def __delitem__(self, key: Any) -> None:
        try:
            self.delete(self._keys.encode(key))
        except MapError as error:
            if error.errno == errno.ENOENT:
                raise KeyError(key) from None
            raise

    def __iter__(self) -> Iterator[Any]:
        if self._reader is not None:
            return iter(self._reader)
        return (self._keys.decode(key) for batch in self.batches() for key, _ in batch)

    def __len__(self) -> int:
        if self._reader is not None:
            # TypeError, because list() asks for a length and goes on without one only then.
            raise TypeError(f"the map {self.name!r} has events, which cannot be counted")
        count = int(library().raw.ub_map_count(self._ref, self._base(MapFlag(0))))
        if count < 0:
            raise self._error(-count, "counting the entries")
        return count

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def items(self) -> ItemsView[Any, Any]:
        """Typed entries. Each iteration reads the map anew, in batches."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """Typed values. Each iteration reads the map anew, in batches."""
        return _Values(self)

    def _entries(self) -> Iterator[tuple[Any, Any]]:
        for batch in self.batches():
            for key, value in batch:
                yield self._keys.decode(key), self._values.decode(value)

    def clear(self) -> None:
        """Removes every key (arrays: EINVAL)."""
        for batch in self.batches():
            for key, _ in batch:
                try:
                    self.delete(key)
                except MapError as error:
                    if error.errno != errno.ENOENT:
                        raise

    @property
    def variables(self) -> Variables:
        """Global variables by name, for maps of data sections; empty for other maps."""
        if self._memory.closed:
            raise closed_error(self.name)
        return Variables(self._memory)

    # ---- events --------------------------------------------------------------------------------

    @property
    def events(self) -> EventReader:
        """The reader of a map of events."""
        if self._memory.closed:
            raise closed_error(self.name)
        if self._reader is None:
            raise MapError(f"the map {self.name!r} has entries, not events", errno=errno.EOPNOTSUPP, hint="use items()")
        return self._reader

    def read(self, timeout: float | None = None) -> list[Any]:
        """The events that are there; waits for the first one at most ``timeout`` seconds (None: without limit)."""
        return self.events.read(timeout)

    def poll(self, callback: Callable[[Any], object], timeout: float | None = None) -> int:
        """Calls back for each event that :meth:`read` returns; their number."""
        events = self.read(timeout)
        for event in events:
            callback(event)
        return len(events)

    def typed(self, type_name: str) -> Self:
        """From now on events are decoded as this type of the map's BTF (``"event"``, ``"struct event"``)."""
        self.events.set_type(event_codec(self.info, type_name))
        return self

    def finish(self) -> None:
        """No program writes events any more: iterations end when what is there has been read."""
        self.events.finish()

    # ---- NumPy ---------------------------------------------------------------------------------

    def to_numpy(self, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """The values of an array map themselves, no copy: (max_entries,), or (n_cpus, max_entries) when per-cpu.

        dtype: of one value; default an unsigned integer of the value's size, else bytes as ``np.void``. The array
        keeps the memory mapped when the map is closed.
        """
        import numpy as np

        if self.definition.type not in ARRAYS:
            raise MapError(f"the map {self.name!r} is not an array", errno=errno.EOPNOTSUPP)
        self._base(MapFlag.WRONLY)
        d = self.definition
        item: np.dtype[Any]
        if dtype is None:
            item = np.dtype(f"<u{d.value_size}") if d.value_size in (1, 2, 4, 8) else np.dtype((np.void, d.value_size))
        else:
            item = np.dtype(dtype)
        if item.itemsize != d.value_size:
            raise MapError(f"the dtype has {item.itemsize} bytes, a value has {d.value_size}", errno=errno.EINVAL)
        shape: tuple[int, ...] = (d.max_entries,)
        strides: tuple[int, ...] = (d.value_stride,)
        if d.type in PERCPU:
            shape = (d.n_cpus, d.max_entries)
            strides = ((d.max_entries * d.value_stride + 63) // 64 * 64, d.value_stride)
        # frombuffer() keeps the memory mapped; ndarray(buffer=…) alone would not
        memory = np.frombuffer(self._memory.view(d.data_off, d.size - d.data_off), np.uint8)
        array: NDArray[Any] = np.ndarray(shape, item, buffer=memory, strides=strides)
        if self.frozen or d.flags & MapFlag.RDONLY:
            array.flags.writeable = False
        return array


class _Items(ItemsView[Any, Any]):
    _mapping: Map

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._entries()

    def __repr__(self) -> str:
        return repr(list(self))


class _Values(ValuesView[Any]):
    _mapping: Map

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._mapping._entries())

    def __repr__(self) -> str:
        return repr(list(self))


def _as_libbpf_creates(spec: MapSpec, n_cpus: int) -> MapSpec:
    """libbpf's adjustments: map_set_def_max_entries for perf event arrays, adjust_ringbuf_sz for ring buffers."""
    if spec.type == MapType.PERF_EVENT_ARRAY and spec.max_entries == 0:
        return replace(spec, max_entries=n_cpus)
    if spec.type == MapType.RINGBUF:
        size = spec.max_entries
        if size and (size % PAGE or size & (size - 1)):
            size = max(PAGE, 1 << (size - 1).bit_length())
        return replace(spec, max_entries=size, key_size=0, value_size=0)
    return spec
