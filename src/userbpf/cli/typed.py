"""BTF types as C for people, and values of global variables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from userbpf.btf import Btf
from userbpf.btf.dump import c_decl
from userbpf.btf.format import Decoder
from userbpf.btf.types import Array, Struct, Union
from userbpf.errors import BtfError

_MAX_DEFINITIONS = 64


def c_declaration(btf: Btf | None, type_id: int, name: str = "") -> str | None:
    """``name`` declared with the type, the type alone without a name; None where there is no type."""
    if btf is None or not type_id:
        return None
    try:
        return c_decl(btf, type_id, name).strip()
    except BtfError:
        return None


def c_definitions(btf: Btf | None, type_ids: Iterable[int]) -> list[str]:
    """The named structs and unions among the types and inside them by value, each defined in C, innermost first."""
    if btf is None:
        return []
    found: dict[int, str] = {}
    try:
        for type_id in type_ids:
            for inner in _by_value(btf, type_id, set()):
                if inner not in found and len(found) < _MAX_DEFINITIONS:
                    found[inner] = _definition(btf, inner)
    except BtfError:
        return list(found.values())
    return list(found.values())


def _by_value(btf: Btf, type_id: int, seen: set[int]) -> Iterator[int]:
    type_id = btf.resolve(type_id)
    if type_id in seen:
        return
    seen.add(type_id)
    found = btf.type(type_id)
    if isinstance(found, Array):
        yield from _by_value(btf, found.type, seen)
    elif isinstance(found, Struct | Union):
        for member in found.members:
            yield from _by_value(btf, member.type, seen)
        if found.name:
            yield type_id


def _definition(btf: Btf, type_id: int) -> str:
    found = btf.type(type_id)
    if not isinstance(found, Struct | Union):
        raise BtfError(f"BTF type {type_id} is no struct")
    word = "struct" if isinstance(found, Struct) else "union"
    lines = [f"{word} {found.name} {{"]
    for member in found.members:
        bits = f" : {member.bit_size}" if member.bit_size else ""
        declared = c_decl(btf, member.type, member.name).strip().replace("\n", "\n    ")
        lines.append(f"    {declared}{bits};")
    lines.append(f"}}; /* {found.size} bytes */")
    return "\n".join(lines)


def decode_value(btf: Btf, type_id: int, data: bytes) -> Any:
    """A variable's value in Python's types; its bytes where the type cannot be decoded (a forward declaration)."""
    try:
        return Decoder(btf, type_id).decode(data)
    except BtfError:
        return data
