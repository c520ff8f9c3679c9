"""BTF as C: a whole compilable header (``vmlinux.h``), or one declaration.

A C declaration may stand only behind those it needs, so types are printed depth first: what is contained by value
must be complete, a record behind a pointer needs a forward declaration only. Gaps become unnamed bitfields,
which are not in the BTF of a program that includes the header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from userbpf.btf.btf import Btf
from userbpf.btf.layout import Layout
from userbpf.btf.types import (
    Array,
    Const,
    Enum,
    Enum64,
    Float,
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
    Void,
    Volatile,
)
from userbpf.errors import BtfError

__all__ = ["c_decl", "dump_c"]

MAX_NESTING = 64
"""Deepest nesting of types by value, parameters and typedefs that is printed."""
BIG_GAP = 512
"""Gaps of more bytes are printed as an array: as bitfields they would take pages."""

_QUALIFIERS: dict[type[Type], str] = {Const: "const", Volatile: "volatile", Restrict: "restrict"}
_ENUM_MODE = {1: "byte", 2: "HI", 8: "word"}
_BUILTIN = frozenset(("__builtin_va_list",))
"""Typedefs that the compiler has already, with another size for BPF: what they stand for is printed instead."""
_WORDS = ((64, "long"), (32, "int"), (16, "short"), (8, "char"))

_HEAD = """#ifndef __VMLINUX_H__
#define __VMLINUX_H__

#ifndef BPF_NO_PRESERVE_ACCESS_INDEX
#pragma clang attribute push (__attribute__((preserve_access_index)), apply_to = record)
#endif

"""
_TAIL = """
#ifndef BPF_NO_PRESERVE_ACCESS_INDEX
#pragma clang attribute pop
#endif

#endif /* __VMLINUX_H__ */
"""


def dump_c(btf: Btf) -> str:
    """All named types, and the constants of anonymous enums, as one header that any C compiler takes.

    Types that share a name (a kernel has some, from different files) get the CO-RE flavors ``___2``, ``___3`` …
    Raises BtfError when a type contains itself by value or is nested absurdly.
    """
    return _HEAD + "".join(_Printer(btf, _Names(btf)).dump()) + _TAIL


def c_decl(btf: Btf, type_id: int, name: str = "") -> str:
    """One declaration, such as ``struct task_struct *parent[2]``; anonymous types are written out."""
    return _Printer(btf, None).declare(type_id, _identifier(name) if name else "", 0, 0)


def _identifier(name: str) -> str:
    """``name`` as a C identifier; names in BTF are anything."""
    return name if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) else "_" + re.sub(r"\W", "_", name, flags=re.ASCII)


class _Names:
    """A C name for each named type: tags and ordinary identifiers are two name spaces (C11 6.2.3)."""

    def __init__(self, btf: Btf) -> None:
        self._count: dict[str, int] = {}
        self._names: dict[int, str] = {}
        tags: dict[str, int] = {}
        kinds: dict[str, Kind] = {}
        forwards: list[int] = []
        for type_id in range(1, len(btf)):
            kind = btf.kind(type_id)
            if kind not in (Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.TYPEDEF, Kind.FWD):
                continue
            name = btf.name(type_id)
            if not name:
                continue
            name = _identifier(name)
            if kind == Kind.FWD:
                forwards.append(type_id)
            elif kind == Kind.TYPEDEF:
                self._names[type_id] = self.unique(name)
            else:
                self._names[type_id] = _next(tags, name)
                kinds.setdefault(name, kind)
        for type_id in forwards:
            name = _identifier(btf.name(type_id))
            kind = Kind.UNION if btf.expect(type_id, Fwd).is_union else Kind.STRUCT
            same = kinds.setdefault(name, kind) == kind
            self._names[type_id] = name if same else _next(tags, name)

    def unique(self, name: str) -> str:
        """``name`` as an ordinary identifier, with a flavor when it is taken."""
        return _next(self._count, name)

    def of(self, type_id: int) -> str:
        return self._names[type_id]


def _next(count: dict[str, int], name: str) -> str:
    number = count[name] = count.get(name, 0) + 1
    return name if number == 1 else f"{name}___{number}"


class _Printer:
    """Prints types of one BTF; ``names`` is None to print single declarations by their bare names."""

    def __init__(self, btf: Btf, names: _Names | None) -> None:
        self.btf = btf
        self.names = names
        self.layout = Layout(btf)
        self._out: list[str] = []
        self._done: set[int] = set()
        self._open: set[int] = set()
        self._forwarded: set[str] = set()
        self._typedefs: set[int] = set()

    def dump(self) -> Iterator[str]:
        for type_id in range(1, len(self.btf)):
            kind = self.btf.kind(type_id)
            if kind in (Kind.STRUCT, Kind.UNION, Kind.TYPEDEF, Kind.FWD):
                if self.btf.name(type_id):
                    self._need(type_id, True, 0)
            elif kind in (Kind.ENUM, Kind.ENUM64):
                if self.btf.name(type_id):
                    self._need(type_id, True, 0)
                elif type_id not in self._done:
                    self._out.append(self._base(type_id, 0, 0) + ";\n\n")
            yield from self._out
            self._out.clear()

    # ---- order ----------------------------------------------------------------------------------

    def _need(self, type_id: int, complete: bool, depth: int) -> None:
        """Print what must stand before a use of this type; ``complete``: it is used by value."""
        if type_id in self._done:
            return
        if depth > MAX_NESTING:
            raise BtfError(f"BTF type {type_id} is nested more than {MAX_NESTING} deep")
        found = self.btf.type(type_id)
        match found:
            case Ptr():
                self._need(found.type, False, depth + 1)
            case Const() | Volatile() | Restrict() | TypeTag():
                self._need(found.type, complete, depth + 1)
            case Array():
                self._need(found.type, True, depth + 1)
            case FuncProto():
                for needed in (found.ret, *(param.type for param in found.params)):
                    self._need(needed, False, depth + 1)
            case Typedef():
                self._typedef(type_id, found, complete, depth)
            case Fwd():
                self._forward(type_id)
            case Struct() | Union():
                if found.name and not complete:
                    self._forward(type_id)
                else:
                    self._record(type_id, found, depth)
            case Enum() | Enum64() if found.name:
                self._done.add(type_id)
                self._out.append(self._enum(type_id, found, 0) + ";\n\n")
            case _:
                pass

    def _forward(self, type_id: int) -> None:
        tag = self._tag(type_id, self.btf.type(type_id))
        if tag not in self._forwarded:
            self._forwarded.add(tag)
            self._out.append(f"{tag};\n\n")

    def _typedef(self, type_id: int, found: Typedef, complete: bool, depth: int) -> None:
        """The typedef first, on a mere forward declaration: its record may point back to it by this name."""
        if type_id in self._open:
            return
        self._open.add(type_id)
        if type_id not in self._typedefs:
            self._need(found.type, False, depth + 1)
            self._typedefs.add(type_id)
            if found.name not in _BUILTIN:
                self._out.append(f"typedef {self.declare(found.type, self._bare(type_id, found), 0, 0)};\n\n")
        if complete:
            self._need(found.type, True, depth + 1)
            self._done.add(type_id)
        self._open.discard(type_id)

    def _record(self, type_id: int, found: Struct | Union, depth: int) -> None:
        if type_id in self._open:
            raise BtfError(f"BTF type {type_id} ({found.name or 'anonymous'}) contains itself by value")
        self._open.add(type_id)
        for member in found.members:
            self._need(member.type, True, depth + 1)
        self._open.discard(type_id)
        if found.name:
            self._done.add(type_id)
            tag = self._tag(type_id, found)
            self._forwarded.add(tag)
            self._out.append(f"{tag} {self._body(type_id, found, 0, 0)};\n\n")

    # ---- text -----------------------------------------------------------------------------------

    def declare(self, type_id: int, declarator: str, indent: int, depth: int) -> str:
        """``declarator`` declared with this type: built from the name outwards (C11 6.7.6)."""
        if depth > MAX_NESTING:
            raise BtfError(f"BTF type {type_id} is nested more than {MAX_NESTING} deep")
        qualifiers: list[str] = []
        for _ in range(MAX_NESTING):
            found = self.btf.type(type_id)
            if isinstance(found, Const | Volatile | Restrict):
                qualifiers.append(_QUALIFIERS[found.__class__])
                type_id = found.type
            elif isinstance(found, TypeTag) or (isinstance(found, Typedef) and found.name in _BUILTIN):
                type_id = found.type
            elif isinstance(found, Ptr):
                space = " " if qualifiers and declarator else ""
                declarator = f"*{' '.join(reversed(qualifiers))}{space}{declarator}"
                qualifiers = []
                type_id = found.type
            elif isinstance(found, Array):
                declarator = f"({declarator})" if declarator.startswith("*") else declarator
                declarator = f"{declarator}[{found.nelems}]"
                type_id = found.type
            elif isinstance(found, FuncProto):
                declarator = f"({declarator})" if declarator.startswith("*") else declarator
                declarator = f"{declarator}({self._params(found, indent, depth + 1)})"
                qualifiers = []
                type_id = found.ret
            else:
                words = [*dict.fromkeys(reversed(qualifiers)), self._base(type_id, indent, depth)]
                if "restrict" in words:
                    words.remove("restrict")
                return " ".join(words) + (f" {declarator}" if declarator else "")
        raise BtfError(f"BTF type {type_id} has a declaration of more than {MAX_NESTING} parts")

    def _params(self, proto: FuncProto, indent: int, depth: int) -> str:
        if not proto.params:
            return "void"
        last = proto.params[-1]
        variadic = last.type == 0 and not last.name
        shown = proto.params[:-1] if variadic else proto.params
        texts = [self.declare(param.type, "", indent, depth) for param in shown]
        return ", ".join([*texts, "..."] if variadic else texts)

    def _base(self, type_id: int, indent: int, depth: int) -> str:
        found = self.btf.type(type_id)
        match found:
            case Void():
                return "void"
            case Int() | Float():
                return found.name if re.fullmatch(r"[A-Za-z_][\w ]*", found.name, re.ASCII) else "char"
            case Struct() | Union() if not found.name:
                keyword = "struct" if isinstance(found, Struct) else "union"
                return f"{keyword} {self._body(type_id, found, indent, depth + 1)}"
            case Enum() | Enum64() if not found.name:
                self._done.add(type_id)
                return self._enum(type_id, found, indent)
            case Struct() | Union() | Enum() | Enum64() | Fwd():
                return self._tag(type_id, found)
            case Typedef():
                return self._bare(type_id, found)
            case _:
                raise BtfError(f"BTF type {type_id} ({found.__class__.__name__}) has no place in a declaration")

    def _tag(self, type_id: int, found: Type) -> str:
        if isinstance(found, Enum | Enum64):
            keyword = "enum"
        else:
            keyword = "union" if isinstance(found, Union) or (isinstance(found, Fwd) and found.is_union) else "struct"
        return f"{keyword} {self._bare(type_id, found)}"

    def _bare(self, type_id: int, found: Type) -> str:
        return self.names.of(type_id) if self.names is not None and found.name else _identifier(found.name)

    def _enum(self, type_id: int, found: Enum | Enum64, indent: int) -> str:
        head = self._tag(type_id, found) if found.name else "enum"
        if not found.values:
            return head
        suffix = ("LL" if found.signed else "ULL") if isinstance(found, Enum64) else ("" if found.signed else "U")
        pad = "\t" * (indent + 1)
        lines = []
        for value in found.values:
            name = _identifier(value.name)
            if self.names is not None:
                name = self.names.unique(name)
            plain = -(1 << 31) < value.value < 1 << 31
            lines.append(f"{pad}{name} = {value.value}{'' if plain else suffix},\n")
        mode = f" __attribute__((mode({_ENUM_MODE[found.size]})))" if found.size in _ENUM_MODE else ""
        return f"{head} {{\n{''.join(lines)}{chr(9) * indent}}}{mode}"

    def _body(self, type_id: int, found: Struct | Union, indent: int, depth: int) -> str:
        """``{ members } attributes`` with gaps filled so that each member is where the BTF says."""
        shape = self.layout.shape(type_id)
        pad = "\t" * (indent + 1)
        lines: list[str] = []
        at = 0
        for index, member in enumerate(found.members):
            if isinstance(found, Struct):
                natural = self.layout.natural_offset(at, member, shape.packed)
                if natural != member.bit_offset:
                    lines.append(_gap(at, member.bit_offset, pad))
                at = member.bit_offset + self._bits(member, index == len(found.members) - 1)
            lines.append(f"{pad}{self._member(member, indent + 1, depth)};\n")
        if isinstance(found, Struct) and shape.tail_gap(at):
            lines.append(_gap(at, found.size * 8, pad))
        if isinstance(found, Union) and shape.filler:
            lines.append(f"{pad}unsigned char __pad[{found.size}];\n")
        attributes = " __attribute__((packed))" if shape.packed else ""
        if shape.aligned:
            attributes += f" __attribute__((aligned({shape.aligned})))"
        return f"{{\n{''.join(lines)}{chr(9) * indent}}}{attributes}"

    def _bits(self, member: Member, last: bool) -> int:
        if member.bit_size:
            return member.bit_size
        kind = self.btf.kind(self.btf.resolve(member.type))
        if last and kind == Kind.ARRAY and self.btf.expect(self.btf.resolve(member.type), Array).nelems == 0:
            return 0
        return self.btf.size_of(member.type) * 8

    def _member(self, member: Member, indent: int, depth: int) -> str:
        name = _identifier(member.name) if member.name else ""
        text = self.declare(member.type, name, indent, depth)
        return f"{text}: {member.bit_size}" if member.bit_size else text


def _gap(start: int, end: int, pad: str) -> str:
    """Unnamed bitfields from bit ``start`` to bit ``end``, each inside an aligned word, so that none moves."""
    lines: list[str] = []
    while start < end:
        if start % 8 == 0 and end - start > BIG_GAP * 8:
            count = (end - start) // 8
            lines.append(f"{pad}unsigned char __pad_{start // 8}[{count}];\n")
            start += count * 8
            continue
        fitting = ((bits, word) for bits, word in _WORDS if start % bits == 0 and start + bits <= end)
        bits, word = next(fitting, (min(8 - start % 8, end - start), "char"))
        lines.append(f"{pad}{word}: {bits};\n")
        start += bits
    return "".join(lines)
