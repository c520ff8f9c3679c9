"""The memory file of a map: made, described, sealed, opened, mapped."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import struct
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from userbpf.btf import Btf
from userbpf.errors import BtfError, MapError
from userbpf.native import library
from userbpf.native.abi import MapDef, MapHeader
from userbpf.object.model import MapKind

__all__ = ["MapInfo", "MapMemory"]

NAME_PREFIX: Final = "userbpf-map:"
_META_LIMIT: Final = 64 << 20
_META_HEAD: Final = struct.Struct("<II")
"""Description: sizes of the JSON text and of the BTF that follow."""

# fcntl(2); Python 3.11 has names for the first four only
F_ADD_SEALS: Final = 1033
F_GET_SEALS: Final = 1034
SEAL_SEAL: Final = 0x1
SEAL_SHRINK: Final = 0x2
SEAL_GROW: Final = 0x4
SEAL_FUTURE_WRITE: Final = 0x10


@dataclass(frozen=True)
class MapInfo:
    """What the controller knows of a map beyond its geometry: its name and its BTF.

    key_btf, value_btf: type ids in ``btf``, 0 for none. ``kind``, ``datasec``: as in ``MapSpec``.
    """

    name: str
    kind: MapKind = "map"
    key_btf: int = 0
    value_btf: int = 0
    datasec: int = 0
    btf: Btf | None = field(default=None, repr=False, compare=False)

    def encode(self) -> bytes:
        """The bytes that stand behind the map in its file."""
        raw = self.btf.raw if self.btf is not None else b""
        text = json.dumps(
            {
                "name": self.name,
                "kind": self.kind,
                "key_btf": self.key_btf,
                "value_btf": self.value_btf,
                "datasec": self.datasec,
            }
        ).encode()
        return _META_HEAD.pack(len(text), len(raw)) + text + raw

    @classmethod
    def decode(cls, data: bytes, default_name: str) -> MapInfo:
        """The description as somebody wrote it; what is not right in it is left out."""
        if len(data) < _META_HEAD.size:
            return cls(default_name)
        text_size, btf_size = _META_HEAD.unpack_from(data)
        text = data[_META_HEAD.size : _META_HEAD.size + text_size]
        raw = data[_META_HEAD.size + text_size : _META_HEAD.size + text_size + btf_size]
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            return cls(default_name)
        if not isinstance(fields, dict):
            return cls(default_name)
        btf: Btf | None = None
        with contextlib.suppress(BtfError):
            btf = Btf.parse(raw) if raw else None
        name, kind = fields.get("name"), fields.get("kind")
        return cls(
            name if isinstance(name, str) and name else default_name,
            next((known for known in get_args(MapKind) if known == kind), "map"),
            _type_id(fields, "key_btf", btf),
            _type_id(fields, "value_btf", btf),
            _type_id(fields, "datasec", btf),
            btf,
        )


def _type_id(fields: dict[str, Any], key: str, btf: Btf | None) -> int:
    value = fields.get(key)
    if btf is None or not isinstance(value, int) or isinstance(value, bool) or value not in btf.ids():
        return 0
    return value


class MapMemory:
    """A map's file, mapped here. Owns the descriptor and the mapping.

    ``definition`` is derived from the header when the file is opened and never read again. ``frozen``: the
    file is sealed against writing, and this mapping is a copy of what it will always be.
    """

    def __init__(self, fd: int, definition: MapDef, info: MapInfo, *, frozen: bool = False) -> None:
        self.fd = fd
        self.definition = definition
        self.info = info
        self.frozen = frozen
        access = mmap.ACCESS_COPY if frozen else mmap.ACCESS_WRITE
        try:
            self._mmap: mmap.mmap | None = mmap.mmap(fd, definition.size, access=access)
        except (OSError, ValueError, OverflowError) as error:
            number = getattr(error, "errno", None) or errno.ENOMEM
            raise MapError(f"the map {info.name!r} cannot be mapped: {error}", errno=number) from None
        self._anchor: ctypes.c_char | None = ctypes.c_char.from_buffer(self._mmap)
        self.address = ctypes.addressof(self._anchor)

    @classmethod
    def create(cls, definition: MapDef, info: MapInfo) -> MapMemory:
        """A new map, zeroed. Its file can neither shrink nor grow: nobody can take memory from under its users."""
        description = info.encode()
        if len(description) > _META_LIMIT:
            raise MapError(f"the BTF of the map {info.name!r} is too large", errno=errno.E2BIG)
        name = (NAME_PREFIX + info.name).encode()[:240].decode(errors="ignore")
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            try:
                os.ftruncate(fd, definition.size + len(description))
                os.pwrite(fd, description, definition.size)
            except OSError as error:
                raise MapError(
                    f"no memory for the map {info.name!r} of {definition.size} bytes: {error.strerror}",
                    errno=error.errno or errno.ENOMEM,
                ) from None
            keep = SEAL_SHRINK | SEAL_GROW
            fcntl.fcntl(fd, F_ADD_SEALS, keep if info.kind == "rodata" else keep | SEAL_SEAL)
            memory = cls(fd, definition, info)
        except BaseException:
            os.close(fd)
            raise
        library().raw.ub_map_create(ctypes.byref(definition), memory.address, definition.size, len(description))
        return memory

    @classmethod
    def open(cls, fd: int) -> MapMemory:
        """The map in a file that somebody gave us: checked as hostile input. On success owns the descriptor.

        A file that could be cut off while it is mapped (which would kill this process) is opened as a copy.
        """
        try:
            size = os.fstat(fd).st_size
            sealed = _seal_size(fd)
            if not sealed:
                copy = _copy(fd, size)
                try:
                    memory = cls._open_sealed(copy, size)
                except BaseException:
                    os.close(copy)
                    raise
                os.close(fd)
                return memory
        except OSError as error:
            raise MapError(f"this file is not a userbpf map: {error.strerror}", errno=error.errno or 22) from None
        return cls._open_sealed(fd, size)

    @classmethod
    def _open_sealed(cls, fd: int, size: int) -> MapMemory:
        head = os.pread(fd, ctypes.sizeof(MapHeader), 0)
        page = ctypes.create_string_buffer(head, mmap.PAGESIZE)
        definition = library().check(ctypes.addressof(page), size)
        header = MapHeader.from_buffer_copy(page)
        name = os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)").rpartition(NAME_PREFIX)[2]
        info = MapInfo(name)
        if definition.size <= header.meta_off < size and header.meta_size <= min(_META_LIMIT, size - header.meta_off):
            info = MapInfo.decode(os.pread(fd, header.meta_size, header.meta_off), name)
        return cls(fd, definition, info, frozen=bool(_seals(fd) & SEAL_FUTURE_WRITE))

    def view(self, offset: int, size: int) -> memoryview:
        """The mapped bytes themselves. They stay mapped as long as the view lives."""
        if self._mmap is None:
            raise closed_error(self.info.name)
        return memoryview(self._mmap)[offset : offset + size]

    @property
    def header(self) -> MapHeader:
        """The header as it is now: counters in it change."""
        return MapHeader.from_buffer_copy(self.view(0, ctypes.sizeof(MapHeader)))

    @property
    def closed(self) -> bool:
        return self._mmap is None

    def freeze(self) -> None:
        """No new mapping of the file can be written to (F_SEAL_FUTURE_WRITE, Linux 5.1); ours becomes a copy."""
        if self.frozen or self._mmap is None:
            return
        try:
            fcntl.fcntl(self.fd, F_ADD_SEALS, SEAL_FUTURE_WRITE | SEAL_SEAL)
        except OSError as error:
            raise MapError(
                f"the map {self.info.name!r} cannot be frozen: {error.strerror}", errno=error.errno or errno.EPERM
            ) from None
        self._release()
        self._mmap = mmap.mmap(self.fd, self.definition.size, access=mmap.ACCESS_COPY)
        self._anchor = ctypes.c_char.from_buffer(self._mmap)
        self.address = ctypes.addressof(self._anchor)
        self.frozen = True

    def _release(self) -> None:
        """Unmaps; where a view (a NumPy array) is still in use, the memory goes with the last of them."""
        self.address = 0
        self._anchor = None
        if self._mmap is not None:
            with contextlib.suppress(BufferError):
                self._mmap.close()
        self._mmap = None

    def close(self) -> None:
        """Unmaps here and closes the descriptor; the map lives on in whoever else has it."""
        self._release()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def closed_error(name: str) -> MapError:
    return MapError(f"the map {name!r} is closed", errno=errno.EBADF)


def _seals(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, F_GET_SEALS)
    except OSError:
        return 0  # not a memfd


def _seal_size(fd: int) -> bool:
    """True when nobody can cut the file off any more."""
    if not _seals(fd) & SEAL_SHRINK:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, F_ADD_SEALS, SEAL_SHRINK)
    return bool(_seals(fd) & SEAL_SHRINK)


def _copy(fd: int, size: int) -> int:
    """A sealed memfd with the same bytes; holes stay holes (lseek(2) SEEK_DATA)."""
    copy = os.memfd_create("userbpf-copy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(copy, size)
        at = 0
        while at < size:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            data = os.pread(fd, 1 << 20, at)
            if not data:
                break
            os.pwrite(copy, data, at)
            at += len(data)
        fcntl.fcntl(copy, F_ADD_SEALS, SEAL_SHRINK | SEAL_GROW | SEAL_SEAL)
    except BaseException:
        os.close(copy)
        raise
    return copy
