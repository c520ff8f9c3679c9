"""Writing BTF: types in, the bytes of a ``.BTF`` section out."""

from __future__ import annotations

import struct

from userbpf.btf.btf import BTF_MAGIC
from userbpf.btf.types import (
    Array,
    Const,
    DataSec,
    DeclTag,
    Enum,
    Enum64,
    Float,
    Func,
    FuncProto,
    Fwd,
    Int,
    Kind,
    Member,
    Ptr,
    Restrict,
    Struct,
    Type,
    Typedef,
    TypeTag,
    Union,
    Var,
    Volatile,
)
from userbpf.errors import BtfError

__all__ = ["Builder"]


class Builder:
    """Collects types; a type's id is what :meth:`add` returns, counted from 1 in the order of adding.

    Types may refer to ids that are added later (:attr:`next_id` foretells them).
    """

    def __init__(self) -> None:
        self._types = bytearray()
        self._strings = bytearray(b"\0")
        self._offsets: dict[str, int] = {"": 0}
        self.next_id = 1

    def string(self, text: str) -> int:
        """The offset of ``text`` in the string area; equal strings are stored once."""
        offset = self._offsets.get(text)
        if offset is None:
            offset = self._offsets[text] = len(self._strings)
            self._strings += text.encode() + b"\0"
        return offset

    def add(self, new: Type) -> int:
        """Append a type; its id. Raises BtfError when a number does not fit into its field."""
        try:
            self._types += self._encode(new)
        except struct.error as error:
            raise BtfError(f"{new.__class__.__name__} {new.name!r} cannot be written as BTF: {error}") from error
        self.next_id += 1
        return self.next_id - 1

    def build(self) -> bytes:
        """The section's bytes, little-endian."""
        types, strings = bytes(self._types), bytes(self._strings)
        return struct.pack("<HBBIIIII", BTF_MAGIC, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings

    def _encode(self, new: Type) -> bytes:
        match new:
            case Int():
                encoding = new.signed | new.char << 1 | new.bool_ << 2
                word = encoding << 24 | new.offset << 16 | new.bits
                return self._head(new.name, Kind.INT, new.size) + struct.pack("<I", word)
            case Ptr():
                return self._head("", Kind.PTR, new.type)
            case Array():
                return self._head("", Kind.ARRAY, 0) + struct.pack("<III", new.type, new.index_type, new.nelems)
            case Struct():
                return self._record(Kind.STRUCT, new)
            case Union():
                return self._record(Kind.UNION, new)
            case Enum():
                head = self._head(new.name, Kind.ENUM, new.size, len(new.values), new.signed)
                layout = struct.Struct("<Ii" if new.signed else "<II")
                return head + b"".join(layout.pack(self.string(v.name), v.value) for v in new.values)
            case Enum64():
                head = self._head(new.name, Kind.ENUM64, new.size, len(new.values), new.signed)
                layout = struct.Struct("<Iq" if new.signed else "<IQ")
                return head + b"".join(layout.pack(self.string(v.name), v.value) for v in new.values)
            case Fwd():
                return self._head(new.name, Kind.FWD, 0, 0, new.is_union)
            case FuncProto():
                rows = b"".join(struct.pack("<II", self.string(p.name), p.type) for p in new.params)
                return self._head("", Kind.FUNC_PROTO, new.ret, len(new.params)) + rows
            case Var():
                return self._head(new.name, Kind.VAR, new.type) + struct.pack("<I", new.linkage)
            case DataSec():
                rows = b"".join(struct.pack("<III", v.type, v.offset, v.size) for v in new.vars)
                return self._head(new.name, Kind.DATASEC, new.size, len(new.vars)) + rows
            case DeclTag():
                head = self._head(new.name, Kind.DECL_TAG, new.type, 0, new.attribute)
                return head + struct.pack("<i", new.component)
            case _:
                return self._plain(new)

    def _plain(self, new: Type) -> bytes:
        """Types that are only a header."""
        match new:
            case Typedef():
                return self._head(new.name, Kind.TYPEDEF, new.type)
            case Volatile():
                return self._head("", Kind.VOLATILE, new.type)
            case Const():
                return self._head("", Kind.CONST, new.type)
            case Restrict():
                return self._head("", Kind.RESTRICT, new.type)
            case Func():
                return self._head(new.name, Kind.FUNC, new.type, new.linkage)
            case Float():
                return self._head(new.name, Kind.FLOAT, new.size)
            case TypeTag():
                return self._head(new.name, Kind.TYPE_TAG, new.type, 0, new.attribute)
            case _:
                raise BtfError("void is type id 0 and cannot be added")

    def _head(self, name: str, kind: Kind, third: int, vlen: int = 0, flag: bool = False) -> bytes:
        if vlen > 0xFFFF:
            raise BtfError(f"{kind.name.lower()} {name!r} has {vlen} parts, 65535 are the most")
        return struct.pack("<III", self.string(name), flag << 31 | kind << 24 | vlen, third)

    def _record(self, kind: Kind, new: Struct | Union) -> bytes:
        bitfields = any(member.bit_size for member in new.members)
        rows = b"".join(self._member(member, bitfields) for member in new.members)
        return self._head(new.name, kind, new.size, len(new.members), bitfields) + rows

    def _member(self, member: Member, bitfields: bool) -> bytes:
        if bitfields and member.bit_offset >> 24:
            raise BtfError(f"member {member.name!r} is too far from the start of a record with bitfields")
        return struct.pack("<III", self.string(member.name), member.type, member.bit_size << 24 | member.bit_offset)
