"""Makes an object's BTF loadable: what libbpf's btf sanitising does for the parts that a compiler leaves open.

clang writes data sections with size 0 and no offsets, and extern variables with a linkage that the kernel does
not take (kernel/bpf/btf.c, btf_datasec_check_meta and btf_var_check_meta). No program refers to either, so
sections become empty structs and all variables become allocated ones; every type keeps its id.
"""

from __future__ import annotations

import struct
from typing import Final

from userbpf.btf import Kind

_HEADER: Final = struct.Struct("=HBBIIIII")
_TYPE: Final = struct.Struct("=III")
_GLOBAL_ALLOCATED: Final = 1
_FIXED_EXTRA: Final = {Kind.INT: 4, Kind.ARRAY: 12, Kind.VAR: 4, Kind.DECL_TAG: 4}
_EACH_EXTRA: Final = {
    Kind.STRUCT: 12,
    Kind.UNION: 12,
    Kind.ENUM: 8,
    Kind.FUNC_PROTO: 8,
    Kind.DATASEC: 12,
    Kind.ENUM64: 12,
}


def loadable(raw: bytes) -> bytes:
    """``raw`` is BTF that :class:`userbpf.btf.Btf` has accepted; the result is the same types for BPF_BTF_LOAD."""
    magic, version, flags, hdr_len, type_off, type_len, str_off, str_len = _HEADER.unpack_from(raw)
    types = memoryview(raw)[hdr_len + type_off : hdr_len + type_off + type_len]
    strings = raw[hdr_len + str_off : hdr_len + str_off + str_len]
    out = bytearray()
    at = 0
    while at < len(types):
        _name, info, _size = _TYPE.unpack_from(types, at)
        kind = Kind(info >> 24 & 0x1F)
        end = at + _TYPE.size + _FIXED_EXTRA.get(kind, 0) + _EACH_EXTRA.get(kind, 0) * (info & 0xFFFF)
        if kind is Kind.DATASEC:
            out += _TYPE.pack(0, Kind.STRUCT << 24, 0)
        elif kind is Kind.VAR:
            out += bytes(types[at : at + _TYPE.size]) + struct.pack("=I", _GLOBAL_ALLOCATED)
        else:
            out += types[at:end]
        at = end
    header = _HEADER.pack(magic, version, flags, _HEADER.size, 0, len(out), len(out), len(strings))
    return header + bytes(out) + strings
