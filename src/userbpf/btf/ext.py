"""``.BTF.ext``: what clang says about functions, source lines and CO-RE relocations, per program section.

Format: Linux ``Documentation/bpf/btf.rst``, section 4.2; records may be longer than what is known here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from userbpf.btf.btf import BTF_MAGIC, Btf
from userbpf.errors import BtfError

__all__ = ["CoreKind", "CoreReloc", "Ext", "FuncRecord", "LineRecord"]

_HEADER = struct.Struct("<HBBIIIII")
_U32 = struct.Struct("<I")
_SECTION = struct.Struct("<II")


class CoreKind(IntEnum):
    """``enum bpf_core_relo_kind`` of ``include/uapi/linux/bpf.h``."""

    FIELD_BYTE_OFFSET = 0
    FIELD_BYTE_SIZE = 1
    FIELD_EXISTS = 2
    FIELD_SIGNED = 3
    FIELD_LSHIFT_U64 = 4
    FIELD_RSHIFT_U64 = 5
    TYPE_ID_LOCAL = 6
    TYPE_ID_TARGET = 7
    TYPE_EXISTS = 8
    TYPE_SIZE = 9
    ENUMVAL_EXISTS = 10
    ENUMVAL_VALUE = 11
    TYPE_MATCHES = 12


@dataclass(frozen=True, slots=True)
class FuncRecord:
    """A function starts at byte ``offset`` of its section; ``type_id`` is its BTF Func."""

    offset: int
    type_id: int


@dataclass(frozen=True, slots=True)
class LineRecord:
    """Source position from byte ``offset`` of the section on."""

    offset: int
    file: str
    text: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class CoreReloc:
    """The instruction at byte ``offset`` depends on ``access`` (such as ``0:1:3``) into local type ``type_id``."""

    offset: int
    type_id: int
    access: str
    kind: CoreKind


_Record = TypeVar("_Record", FuncRecord, LineRecord, CoreReloc)


@dataclass(frozen=True)
class Ext:
    """The three tables, each by ELF section name, in order of offset."""

    funcs: dict[str, tuple[FuncRecord, ...]]
    lines: dict[str, tuple[LineRecord, ...]]
    core: dict[str, tuple[CoreReloc, ...]]

    @classmethod
    def parse(cls, data: bytes, btf: Btf) -> Ext:
        """Read a ``.BTF.ext`` section; ``btf`` holds its strings. Raises BtfError when it is malformed."""
        if len(data) < _HEADER.size:
            raise BtfError(f".BTF.ext ends inside its header ({len(data)} bytes)")
        magic, version, _flags, hdr_len, func_off, func_len, line_off, line_len = _HEADER.unpack_from(data)
        if magic == 0x9FEB:
            raise BtfError(".BTF.ext is big-endian", hint="compile for little-endian BPF (clang -target bpfel)")
        if magic != BTF_MAGIC or version != 1:
            raise BtfError(f".BTF.ext has magic {magic:#06x} and version {version}, expected 0xeb9f and 1")
        if hdr_len < _HEADER.size or hdr_len > len(data):
            raise BtfError(f".BTF.ext header length {hdr_len} is out of range")
        core_off = core_len = 0
        if hdr_len >= 32:
            core_off, core_len = _SECTION.unpack_from(data, 24)

        def area(what: str, off: int, length: int) -> bytes:
            if hdr_len + off + length > len(data):
                raise BtfError(f".BTF.ext {what} [{off}, +{length}] lies outside the section")
            return data[hdr_len + off : hdr_len + off + length]

        funcs: dict[str, list[FuncRecord]] = {}
        for section, rows in _sections(area("func_info", func_off, func_len), 8, btf):
            funcs.setdefault(section, []).extend(FuncRecord(row[0], row[1]) for row in rows)
        lines: dict[str, list[LineRecord]] = {}
        for section, rows in _sections(area("line_info", line_off, line_len), 16, btf):
            lines.setdefault(section, []).extend(_line(row, btf) for row in rows)
        core: dict[str, list[CoreReloc]] = {}
        for section, rows in _sections(area("core_relo", core_off, core_len), 16, btf):
            core.setdefault(section, []).extend(_core(row, btf) for row in rows)
        return cls(_in_order(funcs), _in_order(lines), _in_order(core))


def _in_order(table: dict[str, list[_Record]]) -> dict[str, tuple[_Record, ...]]:
    return {section: tuple(sorted(rows, key=lambda row: row.offset)) for section, rows in table.items()}


def _line(row: tuple[int, ...], btf: Btf) -> LineRecord:
    offset, file, text, position = row
    return LineRecord(offset, btf.string(file), btf.string(text), position >> 10, position & 0x3FF)


def _core(row: tuple[int, ...], btf: Btf) -> CoreReloc:
    offset, type_id, access, kind = row
    try:
        return CoreReloc(offset, type_id, btf.string(access), CoreKind(kind))
    except ValueError:
        raise BtfError(f".BTF.ext has a CO-RE relocation of unknown kind {kind}") from None


def _sections(area: bytes, known: int, btf: Btf) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    """Yield (section name, records cut to the ``known`` bytes) of one table."""
    if not area:
        return
    if len(area) < 4:
        raise BtfError(".BTF.ext table ends inside its record size")
    (record,) = _U32.unpack_from(area)
    if record < known or record % 4:
        raise BtfError(f".BTF.ext record size {record} is not a multiple of 4 of at least {known}")
    words = struct.Struct(f"<{known // 4}I")
    pos = 4
    while pos < len(area):
        if pos + _SECTION.size > len(area):
            raise BtfError(".BTF.ext table ends inside a section header")
        name, count = _SECTION.unpack_from(area, pos)
        pos += _SECTION.size
        end = pos + count * record
        if count == 0 or end > len(area):
            raise BtfError(
                f".BTF.ext table of {btf.string(name)!r} has {count} records of {record} bytes: out of range"
            )
        yield btf.string(name), [words.unpack_from(area, at) for at in range(pos, end, record)]
        pos = end
