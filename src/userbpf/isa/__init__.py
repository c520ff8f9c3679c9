"""The instruction set: RFC 9669 with the additions of cpu v4."""

from __future__ import annotations

from userbpf.isa.check import check
from userbpf.isa.insn import INSN_SIZE, Insn, decode, encode, imm64, wide

__all__ = [
    "INSN_SIZE",
    "Insn",
    "check",
    "decode",
    "encode",
    "imm64",
    "wide",
]
