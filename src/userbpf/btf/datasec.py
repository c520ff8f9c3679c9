"""Data sections in the BTF of an object: clang leaves their sizes, and offsets of variables, to the loader.

As libbpf's ``btf_fixup_datasec``: sizes come from the section headers, offsets from the symbol table.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from userbpf.btf.btf import MAX_SIZE, Btf
from userbpf.btf.types import DataSec, DataSecVar, Kind, Linkage, Var
from userbpf.errors import BtfError

__all__ = ["fix_datasecs"]


def fix_datasecs(btf: Btf, sections: Mapping[str, int], symbols: Mapping[str, int]) -> Btf:
    """The same types with data sections completed: ``sections`` are sizes, ``symbols`` offsets of global variables.

    Offsets of static variables are in the file already. Variables are put in order of offset.
    """
    raw = bytearray(btf.raw)
    changed = False
    for type_id in btf.ids():
        if btf.kind(type_id) != Kind.DATASEC:
            continue
        datasec = btf.expect(type_id, DataSec)
        size = datasec.size or sections.get(datasec.name, 0)
        rows = []
        for row in datasec.vars:
            var = btf.type(row.type)
            known = isinstance(var, Var) and var.linkage != Linkage.STATIC
            offset = symbols.get(var.name, row.offset) if known else row.offset
            if offset + row.size >= MAX_SIZE:
                raise BtfError(f"a variable lies at {offset} of section {datasec.name}, beyond any section")
            rows.append(DataSecVar(row.type, offset, row.size))
        rows.sort(key=lambda row: row.offset)
        at = btf.position(type_id)
        struct.pack_into("<I", raw, at + 8, size)
        for i, row in enumerate(rows):
            struct.pack_into("<III", raw, at + 12 + 12 * i, row.type, row.offset, row.size)
        changed = True
    return Btf.parse(bytes(raw), btf.base) if changed else btf
