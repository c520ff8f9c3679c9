"""What type the events of a buffer have.

Ring buffers and perf event arrays declare no type, but the verifier knows the size of every record that a program
writes. When all have one size, and one struct of the object has it, that struct is the type.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from userbpf.btf import Btf
from userbpf.btf.types import Kind, Struct
from userbpf.tables.helpers import BY_NAME
from userbpf.verifier import Verified

_SIZE_ARGUMENT: Final = {
    BY_NAME["ringbuf_reserve"].id: 1,
    BY_NAME["ringbuf_output"].id: 2,
    BY_NAME["perf_event_output"].id: 4,
}
"""Helpers that write records: which argument is the size."""


def event_types(programs: Iterable[Verified], btf: Btf | None) -> dict[str, str]:
    """Name of the struct that every event of a map is, for the maps where that is certain."""
    if btf is None:
        return {}
    sizes: dict[str, set[int | None]] = {}
    for verified in programs:
        for call in verified.facts.calls.values():
            argument = _SIZE_ARGUMENT.get(call.helper)
            if argument is not None and call.map is not None:
                name = verified.program.maps[call.map].name
                sizes.setdefault(name, set()).add(call.consts[argument])
    named = [
        struct
        for i in btf.ids()
        if btf.kind(i) is Kind.STRUCT and isinstance(struct := btf.type(i), Struct) and struct.name
    ]
    types: dict[str, str] = {}
    for map_name, found in sizes.items():
        size = next(iter(found))
        candidates = {struct.name for struct in named if struct.size == size}
        if len(candidates) > 1:
            candidates = {name for name in candidates if "event" in name}
        if len(found) == 1 and size is not None and len(candidates) == 1:
            types[map_name] = candidates.pop()
    return types
