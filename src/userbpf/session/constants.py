"""Read-only globals (``const volatile``): set before a program is verified, final from then on.

The verifier folds them, so that code which a constant switches off does not exist (as in the kernel, where libbpf
freezes ``.rodata`` before the programs are loaded).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from userbpf.btf import Decoder
from userbpf.btf.types import DataSec, Var
from userbpf.errors import BtfError, ObjectError, Place
from userbpf.object import MapSpec, Program


def set_constants(specs: Mapping[str, MapSpec], values: Mapping[str, Any], object_name: str) -> dict[str, MapSpec]:
    """The maps with ``values`` (by variable name) written into their read-only sections.

    Raises ObjectError for a name that is no read-only global, or a value that does not fit its type.
    """
    changed = dict(specs)
    for name, value in values.items():
        found = next((spec for spec in changed.values() if spec.kind == "rodata" and name in _variables(spec)), None)
        if found is None:
            known = sorted(n for spec in specs.values() if spec.kind == "rodata" for n in _names(spec))
            raise ObjectError(
                f"there is no constant {name!r}",
                place=Place(file=object_name),
                hint=f"it has: {', '.join(known)}" if known else "declare it: const volatile int NAME = 0;",
            )
        changed[found.name] = _with_value(found, name, value, object_name)
    return changed


def with_maps(programs: Iterable[Program], specs: Mapping[str, MapSpec]) -> list[Program]:
    """The programs, referring to these maps."""
    return [replace(program, maps=tuple(specs.get(spec.name, spec) for spec in program.maps)) for program in programs]


def _variables(spec: MapSpec) -> dict[str, tuple[int, int, int]]:
    """Name → (offset, size, type id)."""
    if spec.btf is None or not spec.datasec:
        return {}
    section = spec.btf.expect(spec.datasec, DataSec)
    return {(var := spec.btf.expect(row.type, Var)).name: (row.offset, row.size, var.type) for row in section.vars}


def _names(spec: MapSpec) -> list[str]:
    return [name for name in _variables(spec) if "." not in name]


def _with_value(spec: MapSpec, name: str, value: Any, object_name: str) -> MapSpec:
    offset, size, type_id = _variables(spec)[name]
    assert spec.btf is not None
    try:
        data = Decoder(spec.btf, type_id).encode(value)
    except BtfError as error:
        message = f"the constant {name} cannot be {value!r}: {error.message}"
        raise ObjectError(message, place=Place(file=object_name)) from error
    initial = bytearray((spec.initial or b"").ljust(spec.value_size, b"\0"))
    initial[offset : offset + size] = data
    return replace(spec, initial=bytes(initial))
