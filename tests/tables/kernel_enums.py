"""Enums of the running kernel, read from its BTF by the few lines that this needs."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

VMLINUX = Path("/sys/kernel/btf/vmlinux")
ENUM = 6
# Bytes that follow struct btf_type, fixed and for each of vlen (include/uapi/linux/btf.h).
EXTRA = {
    1: (4, 0),
    3: (12, 0),
    4: (0, 12),
    5: (0, 12),
    6: (0, 8),
    13: (0, 8),
    14: (4, 0),
    15: (0, 12),
    17: (4, 0),
    19: (0, 12),
}


@cache
def _enums() -> dict[str, dict[str, int]] | None:
    if not VMLINUX.exists():
        return None
    data = VMLINUX.read_bytes()
    header_len, type_off, type_len, str_off, str_len = struct.unpack_from("<IIIII", data, 4)
    strings = data[header_len + str_off : header_len + str_off + str_len]
    position = header_len + type_off
    end = position + type_len
    found: dict[str, dict[str, int]] = {}
    while position < end:
        name_off, info, _ = struct.unpack_from("<III", data, position)
        position += 12
        kind, count = info >> 24 & 31, info & 0xFFFF
        if kind == ENUM and name_off:
            rows = (struct.unpack_from("<Ii", data, position + 8 * i) for i in range(count))
            found[_text(strings, name_off)] = {_text(strings, name): value for name, value in rows}
        fixed, each = EXTRA.get(kind, (0, 0))
        position += fixed + each * count
    return found


def _text(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode()


def kernel_enum(name: str) -> dict[str, int] | None:
    """Enumerators by name; None when the kernel has no BTF."""
    enums = _enums()
    return None if enums is None else enums[name]
