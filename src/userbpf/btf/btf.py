"""Reading BTF: one pass over the headers, types built when they are asked for.

The wire format is Linux ``Documentation/bpf/btf.rst`` and ``include/uapi/linux/btf.h``. The kernel's own BTF
has more than 100,000 types, of which a program needs a handful, so :meth:`Btf.parse` notes only where each
type starts and what its name offset is.
"""

from __future__ import annotations

import builtins
import struct
from array import array
from collections.abc import Iterator
from typing import TypeVar

from userbpf.btf.types import (
    VOID,
    Array,
    Const,
    DataSec,
    DataSecVar,
    DeclTag,
    Enum,
    Enum64,
    Enumerator,
    Float,
    Func,
    FuncProto,
    Fwd,
    Int,
    Kind,
    Member,
    Param,
    Ptr,
    Restrict,
    Struct,
    Type,
    Typedef,
    TypeTag,
    Union,
    Var,
    Void,
    Volatile,
)
from userbpf.errors import BtfError

__all__ = ["BTF_MAGIC", "Btf", "essential_name"]

BTF_MAGIC = 0xEB9F
POINTER_SIZE = 8
MAX_DEPTH = 32
"""Longest chain of modifiers and array dimensions followed; the kernel's MAX_RESOLVE_DEPTH (kernel/bpf/btf.c)."""
MAX_SIZE = 1 << 32
"""No type is larger: sizes are u32 on the wire, and the kernel refuses arrays beyond U32_MAX."""

_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_U32 = struct.Struct("<I")
_TRIPLE = struct.Struct("<III")
_PAIR = struct.Struct("<II")
_ENUM_S = struct.Struct("<Ii")

# Bytes behind the 12-byte header of a type: a fixed part and one per vlen, by kind.
_FIXED = (0, 4, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 4, 0, 0)
_PER_ITEM = (0, 0, 0, 0, 12, 12, 8, 0, 0, 0, 0, 0, 0, 8, 0, 12, 0, 0, 0, 12)

_QUALIFIERS = frozenset((Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG))
_SIZED = frozenset((Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.FLOAT, Kind.DATASEC))

_SEARCHES_BEFORE_TABLE = 8

_T = TypeVar("_T")


def essential_name(name: str) -> str:
    """The name without its CO-RE flavor: ``task_struct___old`` is a flavor of ``task_struct``.

    A flavor starts at the last ``___`` that has another character than ``_`` on both sides
    (libbpf's ``bpf_core_essential_name_len``).
    """
    for i in range(len(name) - 5, -1, -1):
        if name[i] != "_" and name[i + 1 : i + 4] == "___" and name[i + 4] != "_":
            return name[: i + 1]
    return name


def _occurrences(text: bytes, part: bytes) -> Iterator[int]:
    """Every offset at which ``part`` begins: a string may also be the end of another one."""
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


class Btf:
    """A set of types. ``len(btf)`` counts all ids including void and those of ``base``.

    Made by :meth:`parse`; ``base`` is the BTF that a split one (a kernel module's) continues.
    """

    def __init__(self, types: bytes, strings: bytes, base: Btf | None, raw: bytes, types_at: int) -> None:
        self.base = base
        self.raw = raw
        self._types_at = types_at
        self.first_id = len(base) if base is not None else 1
        self._types = types
        self._strings = strings
        self._first_string: int = base._end_string if base is not None else 0
        self._end_string: int = self._first_string + len(strings)
        self._offsets: array[int] = array("I")
        self._heads: array[int] = array("I")  # name offset, info: two a type
        self._cache: dict[int, Type] = {}
        self._by_name: dict[str, list[int]] | None = None
        self._searches = 0
        self._flavors: dict[str, list[int]] = {}
        self._index()

    @classmethod
    def parse(cls, data: bytes, base: Btf | None = None) -> Btf:
        """Read the contents of a ``.BTF`` section or of ``/sys/kernel/btf/*``.

        Raises BtfError when the header, the type area or the string area is malformed. What a single type
        refers to is checked when that type is used.
        """
        if len(data) < _HEADER.size:
            raise BtfError(f"BTF data ends inside its header ({len(data)} bytes)")
        magic, version, _flags, hdr_len, type_off, type_len, str_off, str_len = _HEADER.unpack_from(data)
        if magic == 0x9FEB:
            raise BtfError("the BTF is big-endian", hint="compile for little-endian BPF (clang -target bpfel)")
        if magic != BTF_MAGIC:
            raise BtfError(f"this is not BTF: magic {magic:#06x}, expected {BTF_MAGIC:#06x}")
        if version != 1:
            raise BtfError(f"BTF version {version} is not known, only 1 is")
        if hdr_len < _HEADER.size or hdr_len > len(data):
            raise BtfError(f"BTF header length {hdr_len} is out of range")
        body = len(data) - hdr_len
        if type_off % 4 or type_off + type_len > body:
            raise BtfError(f"BTF type area [{type_off}, +{type_len}] lies outside its {body} bytes")
        if str_off + str_len > body:
            raise BtfError(f"BTF string area [{str_off}, +{str_len}] lies outside its {body} bytes")
        strings = data[hdr_len + str_off : hdr_len + str_off + str_len]
        if strings[-1:] != b"\0" and (base is None or strings):
            raise BtfError("the BTF string area does not end with NUL")
        if base is None and strings[:1] != b"\0":
            raise BtfError("the BTF string area does not start with the empty string")
        types = data[hdr_len + type_off : hdr_len + type_off + type_len]
        return cls(types, strings, base, data, hdr_len + type_off)

    def _index(self) -> None:
        """Note offset, name and kind of each type, checking that every record lies inside the type area."""
        data, unpack, fixed, per_item = self._types, _TYPE.unpack_from, _FIXED, _PER_ITEM
        end, pos = len(data), 0
        offsets: list[int] = []
        heads: list[int] = []
        note, note_head = offsets.append, heads.extend
        try:
            while pos < end:
                name, info, _ = unpack(data, pos)
                kind = info >> 24 & 31
                note(pos)
                note_head((name, info))
                pos += 12 + fixed[kind] + per_item[kind] * (info & 0xFFFF)
        except (IndexError, struct.error):
            raise BtfError(f"BTF type {self.first_id + len(offsets)} is malformed") from None
        if pos != end:
            raise BtfError(f"BTF type {self.first_id + len(offsets) - 1} ends outside the type area")
        self._offsets = array("I", offsets)
        self._heads = array("I", heads)
        if 0 in (info >> 24 & 31 for info in self._heads[1::2]):
            raise BtfError("a BTF type has kind 0")

    def __len__(self) -> int:
        return self.first_id + len(self._offsets)

    def ids(self) -> range:
        """The ids of this BTF's own types: without void and without those of ``base``."""
        return range(self.first_id, len(self))

    def position(self, type_id: int) -> int:
        """Where in ``raw`` the record of this type starts."""
        return self._types_at + self._offsets[self._slot(type_id)]

    def __repr__(self) -> str:
        return f"<Btf {len(self._offsets)} types>"

    # ---- names and kinds ------------------------------------------------------------------------

    def string(self, offset: int) -> str:
        """The string at ``offset`` of the string area (counted through ``base``)."""
        if offset < self._first_string and self.base is not None:
            return self.base.string(offset)
        start = offset - self._first_string
        if not 0 <= start < len(self._strings):
            if offset == 0:
                return ""
            raise BtfError(f"BTF string offset {offset} lies outside the string area")
        return self._strings[start : self._strings.index(b"\0", start)].decode("utf-8", "replace")

    def kind(self, type_id: int) -> Kind:
        """The kind of a type, without building it."""
        if type_id == 0:
            return Kind.VOID
        if 0 < type_id < self.first_id and self.base is not None:
            return self.base.kind(type_id)
        return Kind(self._heads[2 * self._slot(type_id) + 1] >> 24 & 31)

    def name(self, type_id: int) -> str:
        """The name of a type, '' when it has none; without building it."""
        if type_id == 0:
            return ""
        if 0 < type_id < self.first_id and self.base is not None:
            return self.base.name(type_id)
        if self.kind(type_id) == Kind.ARRAY:
            return ""
        return self.string(self._heads[2 * self._slot(type_id)])

    def _slot(self, type_id: int) -> int:
        slot = type_id - self.first_id
        if not 0 <= slot < len(self._offsets):
            raise BtfError(f"there is no BTF type {type_id}: ids end at {len(self) - 1}")
        return slot

    def _own_names(self) -> dict[str, list[int]]:
        """Own ids by name; fills ``_flavors`` on the way: ids of flavored types by name without flavor."""
        if self._by_name is None:
            texts: dict[int, str] = {}
            table: dict[str, list[int]] = {}
            for type_id, offset in enumerate(self._heads[::2], self.first_id):
                if not offset:
                    continue
                text = texts.get(offset)
                if text is None:
                    text = texts[offset] = self.string(offset)
                table.setdefault(text, []).append(type_id)
            for text in [text for text in table if "___" in text]:
                essential = essential_name(text)
                if essential != text:
                    self._flavors.setdefault(essential, []).extend(table[text])
            self._by_name = table
        return self._by_name

    def _search(self, name: str) -> tuple[list[int], list[int]]:
        """Own ids called ``name``, and those of its flavors.

        The first few questions are answered by searching the string area, in 6 ms for a kernel's BTF; the table
        of all names, which costs 70 ms there, is made for who asks more.
        """
        self._searches += 1
        if self._by_name is not None or self._searches > _SEARCHES_BEFORE_TABLE or not name:
            names = self._own_names()
            return names.get(name, []), self._flavors.get(name, [])
        exact, flavored = self._spellings(name)
        found: tuple[list[int], list[int]] = ([], [])
        if exact or flavored:
            for type_id, offset in enumerate(self._heads[::2], self.first_id):
                if offset in exact:
                    found[0].append(type_id)
                elif offset in flavored:
                    found[1].append(type_id)
        return found

    def _spellings(self, name: str) -> tuple[set[int], set[int]]:
        """String offsets of ``name`` and of its flavors; a split BTF's types may be named in its base's strings."""
        exact, flavored = self.base._spellings(name) if self.base is not None else (set(), set())
        text, first = name.encode(), self._first_string
        exact.update(first + at for at in _occurrences(self._strings, text + b"\0"))
        for at in _occurrences(self._strings, text + b"___"):
            whole = self._strings[at : self._strings.index(b"\0", at)].decode("utf-8", "replace")
            if essential_name(whole) == name:
                flavored.add(first + at)
        return exact, flavored

    def find_all(self, name: str, kind: Kind | None = None) -> list[int]:
        """All ids of types called ``name`` (of ``kind`` when given), in order, those of ``base`` first."""
        found = self.base.find_all(name, kind) if self.base is not None else []
        own = self._search(name)[0]
        return found + [i for i in own if kind is None or self.kind(i) == kind]

    def find(self, name: str, kind: Kind | None = None) -> int | None:
        """The first id of a type called ``name`` (of ``kind`` when given), or None."""
        found = self.find_all(name, kind)
        return found[0] if found else None

    def find_flavors(self, name: str) -> list[int]:
        """All ids whose name without flavor is ``name`` (itself without flavor), in order: CO-RE's candidates."""
        found = self.base.find_flavors(name) if self.base is not None else []
        exact, flavored = self._search(name)
        return found + sorted([*exact, *flavored])

    # ---- types ----------------------------------------------------------------------------------

    def type(self, type_id: int) -> Type:
        """The type with this id; raises BtfError when there is none."""
        if type_id == 0:
            return VOID
        if 0 < type_id < self.first_id and self.base is not None:
            return self.base.type(type_id)
        found = self._cache.get(type_id)
        if found is None:
            found = self._cache[type_id] = self._build(self._slot(type_id))
        return found

    __getitem__ = type

    def expect(self, type_id: int, cls: builtins.type[_T]) -> _T:
        """The type with this id, which must be a ``cls``."""
        found = self.type(type_id)
        if not isinstance(found, cls):
            raise BtfError(f"BTF type {type_id} is a {found.__class__.__name__}, expected {cls.__name__}")
        return found

    def _build(self, slot: int) -> Type:
        pos = self._offsets[slot]
        name_off, info, size = _TYPE.unpack_from(self._types, pos)
        kind, vlen, flag = Kind(info >> 24 & 31), info & 0xFFFF, bool(info >> 31)
        name = "" if kind == Kind.ARRAY else self.string(name_off)
        pos += 12
        match kind:
            case Kind.INT:
                return self._int(name, size, pos)
            case Kind.PTR:
                return Ptr(size)
            case Kind.ARRAY:
                return Array(*_TRIPLE.unpack_from(self._types, pos))
            case Kind.STRUCT:
                return Struct(name, size, self._members(pos, vlen, flag))
            case Kind.UNION:
                return Union(name, size, self._members(pos, vlen, flag))
            case Kind.ENUM:
                layout = _ENUM_S if flag else _PAIR
                items = layout.iter_unpack(self._types[pos : pos + 8 * vlen])
                return Enum(name, size, flag, tuple(Enumerator(self.string(n), v) for n, v in items))
            case Kind.ENUM64:
                return Enum64(name, size, flag, self._enum64(pos, vlen, flag))
            case Kind.FWD:
                return Fwd(name, flag)
            case Kind.TYPEDEF:
                return Typedef(name, size)
            case Kind.VOLATILE:
                return Volatile(size)
            case Kind.CONST:
                return Const(size)
            case Kind.RESTRICT:
                return Restrict(size)
            case Kind.FUNC:
                return Func(name, size, vlen)
            case Kind.FUNC_PROTO:
                pairs = _PAIR.iter_unpack(self._types[pos : pos + 8 * vlen])
                return FuncProto(size, tuple(Param(self.string(n), t) for n, t in pairs))
            case Kind.VAR:
                return Var(name, size, *_U32.unpack_from(self._types, pos))
            case Kind.DATASEC:
                triples = _TRIPLE.iter_unpack(self._types[pos : pos + 12 * vlen])
                return DataSec(name, size, tuple(DataSecVar(*t) for t in triples))
            case Kind.FLOAT:
                return Float(name, size)
            case Kind.DECL_TAG:
                component = struct.unpack_from("<i", self._types, pos)[0]
                return DeclTag(name, size, component, flag)
            case Kind.TYPE_TAG:
                return TypeTag(name, size, flag)
            case Kind.VOID:
                return Void()

    def _int(self, name: str, size: int, pos: int) -> Int:
        (word,) = _U32.unpack_from(self._types, pos)
        bits, offset, encoding = word & 0xFF, word >> 16 & 0xFF, word >> 24 & 0xF
        if size not in (1, 2, 4, 8, 16) or bits + offset > size * 8:
            raise BtfError(f"BTF integer {name!r} has {bits} bits at {offset} in {size} bytes")
        return Int(name, size, bits, bool(encoding & 1), bool(encoding & 2), bool(encoding & 4), offset)

    def _members(self, pos: int, vlen: int, bitfields: bool) -> tuple[Member, ...]:
        triples = _TRIPLE.iter_unpack(self._types[pos : pos + 12 * vlen])
        if bitfields:
            return tuple(Member(self.string(n), t, o & 0xFFFFFF, o >> 24) for n, t, o in triples)
        return tuple(Member(self.string(n), t, o) for n, t, o in triples)

    def _enum64(self, pos: int, vlen: int, signed: bool) -> tuple[Enumerator, ...]:
        values = []
        for name, low, high in _TRIPLE.iter_unpack(self._types[pos : pos + 12 * vlen]):
            value = high << 32 | low
            if signed and value >> 63:
                value -= 1 << 64
            values.append(Enumerator(self.string(name), value))
        return tuple(values)

    # ---- properties of types --------------------------------------------------------------------

    def resolve(self, type_id: int) -> int:
        """The id behind typedefs, qualifiers and type tags; raises BtfError on a cycle."""
        for _ in range(MAX_DEPTH):
            if self.kind(type_id) not in _QUALIFIERS:
                return type_id
            type_id = self._third(type_id)
        raise BtfError(f"BTF type {type_id} is part of a chain of more than {MAX_DEPTH} typedefs or qualifiers")

    def resolved(self, type_id: int) -> Type:
        """``type(resolve(type_id))``."""
        return self.type(self.resolve(type_id))

    def _third(self, type_id: int) -> int:
        """The third word of a type's header: its size, or the id it refers to."""
        if type_id < self.first_id and self.base is not None:
            return self.base._third(type_id)
        word: int = _U32.unpack_from(self._types, self._offsets[self._slot(type_id)] + 8)[0]
        return word

    def size_of(self, type_id: int) -> int:
        """Bytes that a value of this type takes; raises BtfError for functions, void and incomplete types."""
        count, start = 1, type_id
        for _ in range(MAX_DEPTH):
            type_id = self.resolve(type_id)
            kind = self.kind(type_id)
            if kind == Kind.ARRAY:
                dimension = self.expect(type_id, Array)
                count *= dimension.nelems
                type_id = dimension.type
                continue
            if kind == Kind.VAR:
                type_id = self._third(type_id)
                continue
            if kind == Kind.PTR:
                size = POINTER_SIZE
            elif kind in _SIZED:
                size = self._third(type_id)
            else:
                raise BtfError(f"BTF type {start} ({kind.name.lower()}) has no size")
            if count * size > MAX_SIZE:
                raise BtfError(f"BTF type {start} is larger than {MAX_SIZE} bytes")
            return count * size
        raise BtfError(f"BTF type {start} has more than {MAX_DEPTH} array dimensions")

    def word_of(self, member: Member) -> int:
        """Bytes of the integer that the bitfield ``member`` is declared with; raises BtfError when it is none."""
        found = self.resolved(member.type)
        if not isinstance(found, Int | Enum | Enum64) or found.size not in (1, 2, 4, 8, 16):
            raise BtfError(f"the bitfield {member.name!r} is no integer")
        return found.size

    def align_of(self, type_id: int) -> int:
        """Natural alignment of a type in bytes, at most 8; a record with misplaced members is packed: 1.

        Follows libbpf's ``btf__align_of``.
        """
        return self._align(type_id, 0)

    def _align(self, type_id: int, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise BtfError(f"BTF type {type_id} is nested more than {MAX_DEPTH} deep")
        found = self.resolved(type_id)
        if isinstance(found, Int | Enum | Enum64 | Float):
            return min(POINTER_SIZE, found.size) or 1
        if isinstance(found, Ptr):
            return POINTER_SIZE
        if isinstance(found, Array | Var):
            return self._align(found.type, depth + 1)
        if not isinstance(found, Struct | Union):
            raise BtfError(f"BTF type {type_id} ({found.__class__.__name__.lower()}) has no alignment")
        largest = 1
        for member in found.members:
            align = self._align(member.type, depth + 1)
            largest = max(largest, align)
            if member.bit_size == 0 and member.bit_offset % (8 * align):
                return 1
        return largest if found.size % largest == 0 else 1
