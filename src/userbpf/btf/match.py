"""When a type of the program and a type of the target are the same for CO-RE.

Three relations, as libbpf's ``relo_core.c`` draws them: fields (``bpf_core_fields_are_compat``), types by kind
(``bpf_core_types_are_compat``, behind ``bpf_core_type_exists``), and types by content
(``__bpf_core_types_match``, behind ``bpf_core_type_matches``).
"""

from __future__ import annotations

from userbpf.btf.btf import MAX_DEPTH, Btf, essential_name
from userbpf.btf.types import (
    Array,
    Enum,
    Enum64,
    Float,
    FuncProto,
    Fwd,
    Int,
    Kind,
    Ptr,
    Struct,
    Type,
    Union,
    Void,
)
from userbpf.errors import BtfError

__all__ = ["fields_compatible", "names_match", "same_kind", "types_compatible", "types_match"]

_ENUMS = (Kind.ENUM, Kind.ENUM64)


def same_kind(a: Kind, b: Kind) -> bool:
    """Equal kinds; 32- and 64-bit enums count as one."""
    return a == b or (a in _ENUMS and b in _ENUMS)


def names_match(local: str, target: str) -> bool:
    """Equal names, flavors aside."""
    return essential_name(local) == essential_name(target)


def fields_compatible(local: Btf, local_id: int, target: Btf, target_id: int) -> bool:
    """May a member of the one type stand for a member of the other? Sizes and signedness may differ."""
    for _ in range(MAX_DEPTH):
        ours, theirs = local.resolved(local_id), target.resolved(target_id)
        match ours, theirs:
            case (Struct() | Union(), Struct() | Union()) | (Ptr(), Ptr()) | (Float(), Float()):
                return True
            case (Enum() | Enum64(), Enum() | Enum64()) | (Fwd(), Fwd()):
                return not ours.name or not theirs.name or names_match(ours.name, theirs.name)
            case Int(), Int():
                return ours.offset == 0 and theirs.offset == 0
            case Array(), Array():
                local_id, target_id = ours.type, theirs.type
            case _:
                return False
    raise BtfError(f"BTF type {local_id} has more than {MAX_DEPTH} array dimensions")


def types_compatible(local: Btf, local_id: int, target: Btf, target_id: int, depth: int = 0) -> bool:
    """Same kinds all the way through pointers, arrays and prototypes; members are not compared."""
    if not same_kind(local.kind(local_id), target.kind(target_id)) and depth == 0:
        return False
    while depth <= MAX_DEPTH:
        depth += 1
        ours, theirs = local.resolved(local_id), target.resolved(target_id)
        match ours, theirs:
            case (Void(), Void()) | (Struct(), Struct()) | (Union(), Union()) | (Fwd(), Fwd()):
                return True
            case (Enum() | Enum64(), Enum() | Enum64()):
                return True
            case Int(), Int():
                return ours.offset == 0 and theirs.offset == 0
            case Ptr(), Ptr():
                local_id, target_id = ours.type, theirs.type
            case Array(), Array():
                local_id, target_id = ours.type, theirs.type
            case FuncProto(), FuncProto():
                if len(ours.params) != len(theirs.params):
                    return False
                for mine, other in zip(ours.params, theirs.params, strict=True):
                    if not types_compatible(local, mine.type, target, other.type, depth):
                        return False
                local_id, target_id = ours.ret, theirs.ret
            case _:
                return False
    raise BtfError(f"BTF type {local_id} is nested more than {MAX_DEPTH} deep")


def types_match(
    local: Btf, local_id: int, target: Btf, target_id: int, *, behind_pointer: bool = False, depth: int = 0
) -> bool:
    """Every member and enumerator of the local type is in the target's, with matching type.

    Behind a pointer only kind and name of records count, and a forward declaration stands for its record.
    """
    while depth <= MAX_DEPTH:
        depth += 1
        ours, theirs = local.resolved(local_id), target.resolved(target_id)
        if not names_match(ours.name, theirs.name):
            return False
        match ours, theirs:
            case Void(), Void():
                return True
            case (Fwd() | Struct() | Union(), Fwd() | Struct() | Union()) if behind_pointer:
                return _is_union(ours) == _is_union(theirs)
            case Fwd(), Fwd():
                return ours.is_union == theirs.is_union
            case (Enum() | Enum64(), Enum() | Enum64()):
                known = {essential_name(value.name) for value in theirs.values}
                return all(essential_name(value.name) in known for value in ours.values)
            case Struct(), Struct():
                return _members_match(local, ours, target, theirs, depth)
            case Union(), Union():
                return _members_match(local, ours, target, theirs, depth)
            case Int(), Int():
                return ours.signed == theirs.signed
            case Ptr(), Ptr():
                behind_pointer = True
                local_id, target_id = ours.type, theirs.type
            case Array(), Array():
                if ours.nelems != theirs.nelems:
                    return False
                local_id, target_id = ours.type, theirs.type
            case FuncProto(), FuncProto():
                if len(ours.params) != len(theirs.params):
                    return False
                for mine, other in zip(ours.params, theirs.params, strict=True):
                    if not types_match(
                        local, mine.type, target, other.type, behind_pointer=behind_pointer, depth=depth
                    ):
                        return False
                local_id, target_id = ours.ret, theirs.ret
            case _:
                return False
    raise BtfError(f"BTF type {local_id} is nested more than {MAX_DEPTH} deep")


def _is_union(found: Type) -> bool:
    return found.is_union if isinstance(found, Fwd) else isinstance(found, Union)


def _members_match(local: Btf, ours: Struct | Union, target: Btf, theirs: Struct | Union, depth: int) -> bool:
    if len(ours.members) > len(theirs.members):
        return False
    return all(
        any(
            names_match(mine.name, other.name) and types_match(local, mine.type, target, other.type, depth=depth)
            for other in theirs.members
        )
        for mine in ours.members
    )
