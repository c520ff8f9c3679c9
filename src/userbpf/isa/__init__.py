"""The instruction set: RFC 9669 with the additions of cpu v4."""

from __future__ import annotations

from userbpf.isa.asm import assemble
from userbpf.isa.check import check
from userbpf.isa.disasm import Symbols, disassemble
from userbpf.isa.insn import INSN_SIZE, Insn, decode, encode, imm64, wide

__all__ = [
    "INSN_SIZE",
    "Insn",
    "Symbols",
    "assemble",
    "check",
    "decode",
    "disassemble",
    "encode",
    "imm64",
    "wide",
]
