"""The kinds of BTF as frozen dataclasses; a type's id is its index, id 0 is :data:`VOID`.

Layout and meaning: Linux ``Documentation/bpf/btf.rst`` and ``include/uapi/linux/btf.h``.
References between types are ids (``int``) of the same :class:`~userbpf.btf.Btf`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

__all__ = [
    "VOID",
    "Array",
    "Const",
    "DataSec",
    "DataSecVar",
    "DeclTag",
    "Enum",
    "Enum64",
    "Enumerator",
    "Float",
    "Func",
    "FuncProto",
    "Fwd",
    "Int",
    "Kind",
    "Linkage",
    "Member",
    "Param",
    "Ptr",
    "Restrict",
    "Struct",
    "Type",
    "TypeTag",
    "Typedef",
    "Union",
    "Var",
    "Void",
    "Volatile",
]


class Kind(IntEnum):
    """``BTF_KIND_*`` of ``include/uapi/linux/btf.h``."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


class Linkage(IntEnum):
    """Linkage of ``Func`` and ``Var``: ``enum btf_func_linkage`` and ``BTF_VAR_*`` share the numbers."""

    STATIC = 0
    GLOBAL = 1
    EXTERN = 2


@dataclass(frozen=True, slots=True)
class Void:
    """Type id 0: ``void``."""

    name: str = ""


VOID = Void()


@dataclass(frozen=True, slots=True)
class Int:
    """An integer: ``size`` in bytes, ``bits`` of them used from ``offset`` on."""

    name: str
    size: int
    bits: int
    signed: bool = False
    char: bool = False
    bool_: bool = False
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Ptr:
    type: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Array:
    type: int
    index_type: int
    nelems: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """A member at ``bit_offset`` from the start of its record; ``bit_size`` is 0 unless it is a bitfield."""

    name: str
    type: int
    bit_offset: int
    bit_size: int = 0


@dataclass(frozen=True, slots=True)
class Struct:
    name: str
    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Union:
    name: str
    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Enumerator:
    name: str
    value: int


@dataclass(frozen=True, slots=True)
class Enum:
    name: str
    size: int
    signed: bool
    values: tuple[Enumerator, ...]


@dataclass(frozen=True, slots=True)
class Enum64:
    name: str
    size: int
    signed: bool
    values: tuple[Enumerator, ...]


@dataclass(frozen=True, slots=True)
class Fwd:
    name: str
    is_union: bool = False


@dataclass(frozen=True, slots=True)
class Typedef:
    name: str
    type: int


@dataclass(frozen=True, slots=True)
class Volatile:
    type: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Const:
    type: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Restrict:
    type: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Func:
    name: str
    type: int
    linkage: int = Linkage.STATIC


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter of a prototype; the last one with ``type == 0`` and no name means ``...``."""

    name: str
    type: int


@dataclass(frozen=True, slots=True)
class FuncProto:
    ret: int
    params: tuple[Param, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Var:
    name: str
    type: int
    linkage: int = Linkage.STATIC


@dataclass(frozen=True, slots=True)
class DataSecVar:
    """A variable (``type`` is the id of its :class:`Var`) at ``offset`` bytes of its section."""

    type: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class DataSec:
    name: str
    size: int
    vars: tuple[DataSecVar, ...]


@dataclass(frozen=True, slots=True)
class Float:
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class DeclTag:
    """A tag on a declaration; ``component`` is the member or parameter index, -1 the declaration itself."""

    name: str
    type: int
    component: int = -1
    attribute: bool = False


@dataclass(frozen=True, slots=True)
class TypeTag:
    """``btf_type_tag``; with ``attribute`` it stands for any ``__attribute__((name))`` (kind_flag, Linux 6.15)."""

    name: str
    type: int
    attribute: bool = False


Type: TypeAlias = (
    Void
    | Int
    | Ptr
    | Array
    | Struct
    | Union
    | Enum
    | Enum64
    | Fwd
    | Typedef
    | Volatile
    | Const
    | Restrict
    | Func
    | FuncProto
    | Var
    | DataSec
    | Float
    | DeclTag
    | TypeTag
)
