"""An object as plain data: what ``userbpf inspect`` prints and gives as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from userbpf import isa
from userbpf.btf import Btf
from userbpf.btf.types import DataSec, Var
from userbpf.cli.typed import c_declaration, c_definitions, decode_value
from userbpf.errors import BtfError
from userbpf.object import MapSpec, Object, Program
from userbpf.tables.helpers import HELPER_NAMES, HELPERS
from userbpf.tables.maps import MapFlag, MapType

_CALL = 0x85
_DECLARED = "map"


def describe_object(obj: Object, *, disassemble: set[str]) -> dict[str, Any]:
    """Everything about ``obj``; instructions only of the programs named in ``disassemble``."""
    return {
        "name": obj.name,
        "license": obj.license,
        "kernel_version": obj.kversion,
        "programs": [describe_program(prog, with_code=name in disassemble) for name, prog in obj.programs.items()],
        "unusable": [{"name": name, "reason": str(error)} for name, error in obj.errors.items()],
        "maps": [describe_map(spec) for spec in obj.maps.values() if spec.kind == _DECLARED],
        "globals": [describe_globals(spec) for spec in obj.maps.values() if spec.kind != _DECLARED],
        "btf": describe_btf(obj.btf) if obj.btf is not None else None,
    }


def helpers_of(prog: Program) -> list[str]:
    """Names of the helpers that a program calls, in order of id; ``#ID`` for those of no known kernel."""
    ids = {insn.imm for insn in prog.insns if insn.op == _CALL and insn.src == 0}
    return [HELPER_NAMES.get(number, f"#{number}") for number in sorted(ids)]


def missing_helpers_of(prog: Program) -> list[str]:
    """Those of :func:`helpers_of` that userbpf does not offer."""
    offered = {HELPER_NAMES[number] for number, helper in HELPERS.items() if helper.native is not None}
    return [name for name in helpers_of(prog) if name not in offered]


def describe_program(prog: Program, *, with_code: bool) -> dict[str, Any]:
    section = prog.section
    described: dict[str, Any] = {
        "name": prog.name,
        "section": section.name,
        "kind": section.kind,
        "type": section.prog_type.name.lower(),
        "insns": len(prog.insns),
        "subprogs": [
            {"name": sub.name, "start": sub.start, "insns": sub.end - sub.start, "global": sub.is_global}
            for sub in prog.subprogs
        ],
        "maps": [spec.name for spec in prog.maps],
        "helpers": helpers_of(prog),
        "helpers_not_offered": missing_helpers_of(prog),
        "ksyms": [{"name": sym.name, "kind": sym.kind, "weak": sym.weak} for sym in prog.ksyms],
    }
    if with_code:
        described["code"] = code_of(prog)
    return described


def code_of(prog: Program) -> list[dict[str, Any]]:
    """One entry a slot: its index, text, the subprogram that starts there, the source line that starts there."""
    symbols = isa.Symbols(
        helpers=HELPER_NAMES,
        maps=dict(enumerate(spec.name for spec in prog.maps)),
        subprogs={sub.start: sub.name for sub in prog.subprogs},
    )
    starts = {sub.start: sub.name for sub in prog.subprogs}
    lines = {line.insn: line for line in prog.lines}
    code: list[dict[str, Any]] = []
    shown: tuple[str, int] | None = None
    for index, text in enumerate(isa.disassemble(prog.insns, symbols=symbols)):
        if not text:
            continue
        entry: dict[str, Any] = {"insn": index, "text": text}
        if index in starts:
            entry["subprog"] = starts[index]
            shown = None
        line = lines.get(index)
        if line is not None and (line.file, line.line) != shown:
            entry["source"] = {"file": line.file, "line": line.line, "column": line.column, "text": line.text.strip()}
            shown = (line.file, line.line)
        code.append(entry)
    return code


def _map_type(number: int) -> str:
    try:
        return MapType(number).name.lower()
    except ValueError:
        return f"type {number}"


def _flag_names(flags: int) -> list[str]:
    known = [flag.name.lower() for flag in MapFlag if flag & flags and flag.name is not None]
    rest = flags & ~sum(MapFlag)
    return [*known, hex(rest)] if rest else known


def describe_map(spec: MapSpec) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": spec.name,
        "type": _map_type(spec.type),
        "key_size": spec.key_size,
        "value_size": spec.value_size,
        "max_entries": spec.max_entries,
        "flags": _flag_names(spec.flags),
        "key": c_declaration(spec.btf, spec.key_btf),
        "value": c_declaration(spec.btf, spec.value_btf),
        "types": c_definitions(spec.btf, [spec.key_btf, spec.value_btf]),
        "pinning": {0: None, 1: "by name"}.get(spec.pinning, str(spec.pinning)),
    }
    if spec.inner is not None:
        described["inner"] = describe_map(spec.inner)
    if spec.values:
        described["initial"] = [{"index": item.index, item.kind: item.target} for item in spec.values]
    return described


def describe_globals(spec: MapSpec) -> dict[str, Any]:
    return {
        "section": spec.name,
        "kind": spec.kind,
        "bytes": spec.value_size,
        "variables": list(_variables(spec)),
    }


def _variables(spec: MapSpec) -> list[dict[str, Any]]:
    btf, initial = spec.btf, spec.initial or b""
    if btf is None or not spec.datasec:
        return []
    found = []
    for row in btf.expect(spec.datasec, DataSec).vars:
        var = btf.expect(row.type, Var)
        data = initial[row.offset : row.offset + row.size].ljust(row.size, b"\0")
        found.append(
            {
                "name": var.name,
                "declaration": c_declaration(btf, var.type, var.name),
                "offset": row.offset,
                "size": row.size,
                "value": decode_value(btf, var.type, data),
            }
        )
    return found


def describe_btf(btf: Btf) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    for type_id in btf.ids():
        try:
            kinds[btf.kind(type_id).name.lower()] += 1
        except BtfError:
            kinds["malformed"] += 1
    return {"types": len(btf) - 1, "bytes": len(btf.raw), "kinds": dict(sorted(kinds.items()))}
