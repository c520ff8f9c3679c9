"""Bytes of a typed value ↔ Python values.

============================  ==========================================================================
C                             Python
============================  ==========================================================================
integer, pointer              int
``_Bool``                     bool
float, double                 float
enum                          the name of the value, or int when it has none
``char[n]``                   str up to the NUL when that is printable UTF-8, else all n bytes
other array                   list
struct, union                 dict by member; members of anonymous members stand in the outer dict
data section                  dict by variable
============================  ==========================================================================

All is little-endian. Encoding takes what decoding gives; members that are left out are zero.
"""

from __future__ import annotations

import operator
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeAlias, Union

from userbpf.btf.btf import MAX_DEPTH, Btf
from userbpf.btf.types import Array, DataSec, Enum, Enum64, Float, Int, Member, Ptr, Struct, Type, Var
from userbpf.btf.types import Union as UnionType
from userbpf.errors import BtfError

__all__ = ["Decoder", "Value"]

Value: TypeAlias = Union[bool, int, float, str, bytes, list["Value"], dict[str, "Value"]]  # noqa: UP007  # recursive
Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_EMPTY = 1 << 16
"""Most elements of an array whose elements take no bytes."""


class Decoder:
    """Translates values of one BTF type. ``size`` is the bytes of a value.

    Raises BtfError when the type has no values (functions, void, incomplete records).
    """

    def __init__(self, btf: Btf, type_id: int) -> None:
        self._codec = _Maker(btf).make(type_id, 0)
        self.size = self._codec.size

    def decode(self, data: Buffer) -> Value:
        """The value in the first ``size`` bytes of ``data``."""
        if len(data) < self.size:
            raise BtfError(f"a value takes {self.size} bytes, there are {len(data)}")
        return self._codec.decode(memoryview(data), 0)

    def encode(self, value: object) -> bytes:
        """The bytes of ``value``. Raises BtfError with the member that does not fit."""
        out = bytearray(self.size)
        self._codec.encode(out, 0, value, "")
        return bytes(out)


class _Codec(ABC):
    """A type that can be read at, and written to, an offset of a buffer. ``path`` names the member in errors."""

    size: int

    @abstractmethod
    def decode(self, data: memoryview, at: int) -> Value: ...

    @abstractmethod
    def encode(self, out: bytearray, at: int, value: object, path: str) -> None: ...


def _misfit(path: str, value: object, wanted: str) -> BtfError:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return BtfError(f"{path or 'the value'} is {shown}, expected {wanted}")


class _IntCodec(_Codec):
    def __init__(self, size: int, signed: bool) -> None:
        self.size, self.signed = size, signed

    def decode(self, data: memoryview, at: int) -> Value:
        return int.from_bytes(data[at : at + self.size], "little", signed=self.signed)

    def encode(self, out: bytearray, at: int, value: object, path: str) -> None:
        number = _whole(value, self.size * 8, path)
        out[at : at + self.size] = number.to_bytes(self.size, "little")


def _whole(value: object, bits: int, path: str) -> int:
    """``value`` as an unsigned number of ``bits`` bits; both signed and unsigned values are taken."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # whatever is no integer raises TypeError
    except TypeError:
        number = 1 << bits
    if not -(1 << bits - 1) <= number < 1 << bits:
        raise _misfit(path, value, f"an integer of {bits} bits")
    return number & (1 << bits) - 1


class _BoolCodec(_Codec):
    def __init__(self, size: int) -> None:
        self.size = size

    def decode(self, data: memoryview, at: int) -> Value:
        return any(data[at : at + self.size])

    def encode(self, out: bytearray, at: int, value: object, path: str) -> None:
        if not isinstance(value, int) or value not in (0, 1):
            raise _misfit(path, value, "true or false")
        out[at] = int(value)


class _FloatCodec(_Codec):
    def __init__(self, size: int) -> None:
        self.size = size
        self.layout = struct.Struct({2: "<e", 4: "<f", 8: "<d"}[size])

    def decode(self, data: memoryview, at: int) -> Value:
        value: float = self.layout.unpack_from(data, at)[0]
        return value

    def encode(self, out: bytearray, at: int, value: object, path: str) -> None:
        if not isinstance(value, int | float):
            raise _misfit(path, value, "a number")
        try:
            self.layout.pack_into(out, at, value)
        except (OverflowError, struct.error):
            raise _misfit(path, value, f"a number that fits into {self.size} bytes") from None


class _EnumCodec(_Codec):
    def __init__(self, enum: Enum | Enum64) -> None:
        self.size = enum.size
        self.number = _IntCodec(enum.size, enum.signed)
        self.names: dict[object, str] = {value.value: value.name for value in reversed(enum.values)}
        self.values = {value.name: value.value for value in enum.values}

    def decode(self, data: memoryview, at: int) -> Value:
        number = self.number.decode(data, at)
        return self.names.get(number, number)

    def encode(self, out: bytearray, at: int, value: object, path: str) -> None:
        if isinstance(value, str):
            if value not in self.values:
                raise _misfit(path, value, f"one of {', '.join(list(self.values)[:8])}")
            value = self.values[value]
        self.number.encode(out, at, value, path)


class _BitfieldCodec(_Codec):
    """A bitfield: the bytes that hold it are read as one number. ``of`` interprets the number."""

    def __init__(self, shift: int, bits: int, of: Int | Enum | Enum64) -> None:
        self.shift, self.bits = shift, bits
        self.size = (shift + bits + 7) // 8
        self.signed = of.signed
        self.is_bool = isinstance(of, Int) and of.bool_
        self.enum = _EnumCodec(of) if isinstance(of, Enum | Enum64) else None

    def decode(self, data: memoryview, at: int) -> Value:
        number = int.from_bytes(data[at : at + self.size], "little") >> self.shift & (1 << self.bits) - 1
        if self.signed and number >> self.bits - 1:
            number -= 1 << self.bits
        if self.is_bool:
            return bool(number)
        return self.enum.names.get(number, number) if self.enum is not None else number

    def encode(self, out: bytearray, at: int, value: object, path: str) -> None:
        if self.enum is not None and isinstance(value, str):
            value = self.enum.values.get(value, value)
        number = _whole(value, self.bits, path)
        old = int.from_bytes(out[at : at + self.size], "little")
        mask = (1 << self.bits) - 1 << self.shift
        out[at : at + self.size] = (old & ~mask | number << self.shift).to_bytes(self.size, "little")


class _TextCodec(_Codec):
    """``char[n]``."""

    def __init__(self, size: int) -> None:
        self.size = size

    def decode(self, data: memoryview, at: int) -> Value:
        raw = bytes(data[at : at + self.size])
        text, end, _ = raw.partition(b"\0")
        try:
            decoded = text.decode()
        except UnicodeDecodeError:
            return raw
        return decoded if end and all(c.isprintable() or c in "\t\n\r" for c in decoded) else raw

    def encode(self, out: bytearray, at: int, value: object, path: str) -> None:
        raw = value.encode() if isinstance(value, str) else value
        if not isinstance(raw, bytes | bytearray | memoryview) or len(raw) > self.size:
            raise _misfit(path, value, f"text or bytes, at most {self.size}")
        out[at : at + len(raw)] = raw


class _ArrayCodec(_Codec):
    def __init__(self, element: _Codec, count: int) -> None:
        self.element, self.count = element, count
        self.size = element.size * count

    def decode(self, data: memoryview, at: int) -> Value:
        step, decode = self.element.size, self.element.decode
        return [decode(data, at + i * step) for i in range(self.count)]

    def encode(self, out: bytearray, at: int, value: object, path: str) -> None:
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > self.count:
            raise _misfit(path, value, f"a list of at most {self.count} values")
        for i, item in enumerate(value):
            self.element.encode(out, at + i * self.element.size, item, f"{path}[{i}]")


class _RecordCodec(_Codec):
    """struct, union or data section: parts by name, each at its offset."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.parts: dict[str, tuple[int, _Codec]] = {}

    def decode(self, data: memoryview, at: int) -> Value:
        return {name: part.decode(data, at + offset) for name, (offset, part) in self.parts.items()}

    def encode(self, out: bytearray, at: int, value: object, path: str) -> None:
        if not isinstance(value, Mapping):
            raise _misfit(path, value, f"a dict of {', '.join(list(self.parts)[:8])}")
        for name, item in value.items():
            if name not in self.parts:
                raise BtfError(
                    f"{path or 'the value'} has no member {name!r}", hint=f"it has {', '.join(list(self.parts)[:8])}"
                )
            offset, part = self.parts[name]
            part.encode(out, at + offset, item, f"{path}.{name}" if path else name)


class _Maker:
    """Makes codecs, one per type id."""

    def __init__(self, btf: Btf) -> None:
        self.btf = btf
        self._made: dict[int, _Codec] = {}

    def make(self, type_id: int, depth: int) -> _Codec:
        if depth > MAX_DEPTH:
            raise BtfError(f"BTF type {type_id} is nested more than {MAX_DEPTH} deep")
        type_id = self.btf.resolve(type_id)
        codec = self._made.get(type_id)
        if codec is None:
            codec = self._made[type_id] = self._new(type_id, self.btf.type(type_id), depth)
        return codec

    def _new(self, type_id: int, found: Type, depth: int) -> _Codec:
        match found:
            case Int():
                return _BoolCodec(found.size) if found.bool_ else _IntCodec(found.size, found.signed)
            case Ptr():
                return _IntCodec(8, False)
            case Float() if found.size in (2, 4, 8):
                return _FloatCodec(found.size)
            case Float():
                return _TextCodec(found.size)
            case Enum() | Enum64():
                return _EnumCodec(found)
            case Array():
                return self._array(found, depth)
            case Struct() | UnionType():
                record = _RecordCodec(found.size)
                self._members(record, found.members, 0, depth)
                return record
            case Var():
                return self.make(found.type, depth + 1)
            case DataSec():
                section = _RecordCodec(found.size)
                for row in found.vars:
                    var = self.btf.expect(row.type, Var)
                    self._part(section, var.name, row.offset, self.make(var.type, depth + 1))
                return section
            case _:
                raise BtfError(f"BTF type {type_id} ({found.__class__.__name__.lower()}) has no values")

    def _array(self, found: Array, depth: int) -> _Codec:
        element = self.btf.resolved(found.type)
        if isinstance(element, Int) and element.size == 1 and (element.char or element.name == "char"):
            return _TextCodec(found.nelems)
        codec = self.make(found.type, depth + 1)
        if codec.size == 0 and found.nelems > MAX_EMPTY:
            raise BtfError(f"an array has {found.nelems} elements of no size")
        return _ArrayCodec(codec, found.nelems)

    def _members(self, record: _RecordCodec, members: tuple[Member, ...], base: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise BtfError(f"a record is nested more than {MAX_DEPTH} deep")
        for member in members:
            offset = base + member.bit_offset // 8
            found = self.btf.resolved(member.type)
            if not member.name and isinstance(found, Struct | UnionType):
                self._members(record, found.members, offset, depth + 1)
            elif member.bit_size:
                if not isinstance(found, Int | Enum | Enum64):
                    raise BtfError(f"the bitfield {member.name!r} is no integer")
                self._part(record, member.name, offset, _BitfieldCodec(member.bit_offset % 8, member.bit_size, found))
            else:
                self._part(record, member.name, offset, self.make(member.type, depth + 1))

    @staticmethod
    def _part(record: _RecordCodec, name: str, offset: int, codec: _Codec) -> None:
        if offset + codec.size > record.size:
            raise BtfError(f"member {name!r} ends outside its record")
        record.parts[name] = (offset, codec)
