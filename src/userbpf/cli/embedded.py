"""BPF objects inside other files: programs built with a libbpf skeleton carry theirs as a string constant."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Literal

_IDENT: Final = b"\x7fELF\x02\x01\x01"  # 64-bit, little-endian, version 1
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_ET_REL: Final = 1
_EM_BPF: Final = 247
_EM_NONE: Final = 0  # what clang before 4 wrote
_BIG_ENDIAN: Final = 2
_SHT_NOBITS: Final = 8


@dataclass(frozen=True)
class Embedded:
    """One BPF object: where it starts in the file, and its bytes."""

    offset: int
    data: bytes


def is_elf(data: bytes) -> bool:
    return data.startswith(b"\x7fELF")


def is_bpf_object(data: bytes) -> bool:
    """True for anything that the object reader should judge: BPF of either byte order, or no ELF file at all."""
    if not is_elf(data) or len(data) < _HEADER.size:
        return True
    order: Literal["big", "little"] = "big" if data[5] == _BIG_ENDIAN else "little"
    return int.from_bytes(data[18:20], order) in (_EM_BPF, _EM_NONE)


def find_embedded(data: bytes) -> list[Embedded]:
    """All whole BPF objects inside ``data``, in the order of their place. Hostile bytes give no match, no error."""
    found: list[Embedded] = []
    at = data.find(_IDENT, 1)
    while at >= 0:
        size = _object_size(data, at)
        if size:
            found.append(Embedded(at, data[at : at + size]))
        at = data.find(_IDENT, at + max(size, 1))
    return found


def _object_size(data: bytes, at: int) -> int:
    """Bytes of the relocatable BPF object at ``at``: to the end of its last section; 0 when there is none."""
    room = len(data) - at
    if room < _HEADER.size:
        return 0
    fields = _HEADER.unpack_from(data, at)
    kind, arch, table, entry_size, count = fields[1], fields[2], fields[6], fields[11], fields[12]
    if kind != _ET_REL or arch != _EM_BPF or entry_size != _SECTION.size:
        return 0
    end: int = table + entry_size * count
    if end > room:
        return 0
    for index in range(count):
        section = _SECTION.unpack_from(data, at + table + index * entry_size)
        if section[1] != _SHT_NOBITS:
            end = max(end, section[4] + section[5])
    return end if end <= room else 0
