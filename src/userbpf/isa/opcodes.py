"""The opcode table: every instruction that userbpf knows, in one place.

Names are those of ``include/uapi/linux/bpf.h`` and ``bpf_common.h``; semantics are RFC 9669 (sections 4 and 5).
The checker, the disassembler and both assembler syntaxes are driven by :data:`OPCODES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

# Instruction classes: low three bits of the opcode (RFC 9669 section 3.1).
BPF_LD: Final = 0x00
BPF_LDX: Final = 0x01
BPF_ST: Final = 0x02
BPF_STX: Final = 0x03
BPF_ALU: Final = 0x04
BPF_JMP: Final = 0x05
BPF_JMP32: Final = 0x06
BPF_ALU64: Final = 0x07

# Source operand of arithmetic and jumps: immediate or register (section 4).
BPF_K: Final = 0x00
BPF_X: Final = 0x08

# Size of memory accesses (section 5, table 9).
BPF_W: Final = 0x00
BPF_H: Final = 0x08
BPF_B: Final = 0x10
BPF_DW: Final = 0x18

# Mode of memory accesses (section 5, table 8).
BPF_IMM: Final = 0x00
BPF_ABS: Final = 0x20
BPF_IND: Final = 0x40
BPF_MEM: Final = 0x60
BPF_MEMSX: Final = 0x80
BPF_ATOMIC: Final = 0xC0

# Arithmetic operations (section 4.1, table 6).
BPF_ADD: Final = 0x00
BPF_SUB: Final = 0x10
BPF_MUL: Final = 0x20
BPF_DIV: Final = 0x30
BPF_OR: Final = 0x40
BPF_AND: Final = 0x50
BPF_LSH: Final = 0x60
BPF_RSH: Final = 0x70
BPF_NEG: Final = 0x80
BPF_MOD: Final = 0x90
BPF_XOR: Final = 0xA0
BPF_MOV: Final = 0xB0
BPF_ARSH: Final = 0xC0
BPF_END: Final = 0xD0
BPF_TO_LE: Final = 0x00
BPF_TO_BE: Final = 0x08

# Jumps (section 4.3, table 7).
BPF_JA: Final = 0x00
BPF_JEQ: Final = 0x10
BPF_JGT: Final = 0x20
BPF_JGE: Final = 0x30
BPF_JSET: Final = 0x40
BPF_JNE: Final = 0x50
BPF_JSGT: Final = 0x60
BPF_JSGE: Final = 0x70
BPF_CALL: Final = 0x80
BPF_EXIT: Final = 0x90
BPF_JLT: Final = 0xA0
BPF_JLE: Final = 0xB0
BPF_JSLT: Final = 0xC0
BPF_JSLE: Final = 0xD0

# Atomic operations, in ``imm`` (section 5.3, tables 11 and 12).
BPF_FETCH: Final = 0x01
BPF_XCHG: Final = 0xE0 | BPF_FETCH
BPF_CMPXCHG: Final = 0xF0 | BPF_FETCH

# ``src`` of a wide load (section 5.4, table 13; bpf.h).
BPF_PSEUDO_MAP_FD: Final = 1
BPF_PSEUDO_MAP_VALUE: Final = 2
BPF_PSEUDO_BTF_ID: Final = 3
BPF_PSEUDO_FUNC: Final = 4
BPF_PSEUDO_MAP_IDX: Final = 5
BPF_PSEUDO_MAP_IDX_VALUE: Final = 6

# ``src`` of a call (section 4.3.1).
BPF_PSEUDO_CALL: Final = 1
BPF_PSEUDO_KFUNC_CALL: Final = 2

BPF_REG_FP: Final = 10
MAX_REG: Final = 10
LDDW: Final = BPF_LD | BPF_IMM | BPF_DW
CALL: Final = BPF_JMP | BPF_CALL
CALLX: Final = BPF_JMP | BPF_CALL | BPF_X
EXIT: Final = BPF_JMP | BPF_EXIT
JA: Final = BPF_JMP | BPF_JA
JA32: Final = BPF_JMP32 | BPF_JA

ATOMIC_OPS: Final[Mapping[int, str]] = MappingProxyType(
    {
        BPF_ADD: "add",
        BPF_OR: "or",
        BPF_AND: "and",
        BPF_XOR: "xor",
        BPF_ADD | BPF_FETCH: "fetch_add",
        BPF_OR | BPF_FETCH: "fetch_or",
        BPF_AND | BPF_FETCH: "fetch_and",
        BPF_XOR | BPF_FETCH: "fetch_xor",
        BPF_XCHG: "xchg",
        BPF_CMPXCHG: "cmpxchg",
    }
)
"""``imm`` of an atomic instruction → the operation's name."""


class Form(Enum):
    """What the operands of an opcode are; each form has one line of assembly syntax."""

    ALU_REG = "dst op= src"
    ALU_IMM = "dst op= imm"
    NEG = "dst = -dst"
    END = "dst = endian<imm> dst"
    LDX = "dst = *(size *)(src + off)"
    STX = "*(size *)(dst + off) = src"
    ST = "*(size *)(dst + off) = imm"
    ATOMIC = "lock *(size *)(dst + off) op= src"
    LDDW = "dst = imm64"
    LD_ABS = "r0 = *(size *)skb[imm]"
    LD_IND = "r0 = *(size *)skb[src + imm]"
    JA = "goto off"
    JA32 = "goto imm"
    JCC_REG = "if dst op src goto off"
    JCC_IMM = "if dst op imm goto off"
    CALL = "call imm"
    CALLX = "call dst"
    EXIT = "exit"


@dataclass(frozen=True, slots=True)
class Opcode:
    """One row of the table.

    name: mnemonic without operand size (``add``, ``ldx``); symbol: the operator in the kernel's notation;
    size: operand size in bytes; offs, imms: the values that ``off`` and ``imm`` may have, None when free;
    uses_dst, uses_src: False when the register field is reserved (zero).
    """

    code: int
    name: str
    form: Form
    symbol: str
    size: int
    uses_dst: bool
    uses_src: bool
    offs: frozenset[int] | None
    imms: frozenset[int] | None
    signed: bool = False

    @property
    def is_jump(self) -> bool:
        """A branch within the program: not call, not exit."""
        return self.form in _JUMPS


_JUMPS: Final = frozenset({Form.JA, Form.JA32, Form.JCC_REG, Form.JCC_IMM})
_ZERO: Final = frozenset({0})
_ALU_SYMBOLS: Final = {
    BPF_ADD: ("add", "+="),
    BPF_SUB: ("sub", "-="),
    BPF_MUL: ("mul", "*="),
    BPF_DIV: ("div", "/="),
    BPF_OR: ("or", "|="),
    BPF_AND: ("and", "&="),
    BPF_LSH: ("lsh", "<<="),
    BPF_RSH: ("rsh", ">>="),
    BPF_MOD: ("mod", "%="),
    BPF_XOR: ("xor", "^="),
    BPF_MOV: ("mov", "="),
    BPF_ARSH: ("arsh", "s>>="),
}
_JMP_SYMBOLS: Final = {
    BPF_JEQ: ("jeq", "=="),
    BPF_JGT: ("jgt", ">"),
    BPF_JGE: ("jge", ">="),
    BPF_JSET: ("jset", "&"),
    BPF_JNE: ("jne", "!="),
    BPF_JSGT: ("jsgt", "s>"),
    BPF_JSGE: ("jsge", "s>="),
    BPF_JLT: ("jlt", "<"),
    BPF_JLE: ("jle", "<="),
    BPF_JSLT: ("jslt", "s<"),
    BPF_JSLE: ("jsle", "s<="),
}
SIZES: Final[Mapping[int, int]] = MappingProxyType({BPF_B: 1, BPF_H: 2, BPF_W: 4, BPF_DW: 8})
"""Size bits of a memory opcode → bytes."""
SIZE_BITS: Final[Mapping[int, int]] = MappingProxyType({size: bits for bits, size in SIZES.items()})


def _alu_rows() -> list[Opcode]:
    rows: list[Opcode] = []
    for cls, size in ((BPF_ALU, 4), (BPF_ALU64, 8)):
        for op, (name, symbol) in _ALU_SYMBOLS.items():
            # off 1 selects the signed division; off 8, 16, 32 the sign-extending move (RFC 9669 section 4.1).
            offs = frozenset({0, 1}) if op in (BPF_DIV, BPF_MOD) else _ZERO
            widths = frozenset({0, 8, 16, 32} if size == 8 else {0, 8, 16})
            reg_offs = widths if op == BPF_MOV else offs
            rows.append(Opcode(cls | op | BPF_X, name, Form.ALU_REG, symbol, size, True, True, reg_offs, _ZERO))
            rows.append(Opcode(cls | op | BPF_K, name, Form.ALU_IMM, symbol, size, True, False, offs, None))
        rows.append(Opcode(cls | BPF_NEG, "neg", Form.NEG, "-", size, True, False, _ZERO, _ZERO))
    widths = frozenset({16, 32, 64})
    for code, name in (
        (BPF_ALU | BPF_END | BPF_TO_LE, "le"),
        (BPF_ALU | BPF_END | BPF_TO_BE, "be"),
        (BPF_ALU64 | BPF_END, "bswap"),
    ):
        rows.append(Opcode(code, name, Form.END, name, 8, True, False, _ZERO, widths))
    return rows


def _jump_rows() -> list[Opcode]:
    rows: list[Opcode] = []
    for cls, size in ((BPF_JMP, 8), (BPF_JMP32, 4)):
        for op, (name, symbol) in _JMP_SYMBOLS.items():
            rows.append(Opcode(cls | op | BPF_X, name, Form.JCC_REG, symbol, size, True, True, None, _ZERO))
            rows.append(Opcode(cls | op | BPF_K, name, Form.JCC_IMM, symbol, size, True, False, None, None))
    rows.append(Opcode(JA, "ja", Form.JA, "goto", 8, False, False, None, _ZERO))
    rows.append(Opcode(JA32, "ja32", Form.JA32, "gotol", 4, False, False, _ZERO, None))
    # The src field of a call is checked on its own: it is a selector, not a register.
    rows.append(Opcode(CALL, "call", Form.CALL, "call", 8, False, True, None, None))
    rows.append(Opcode(CALLX, "callx", Form.CALLX, "callx", 8, True, False, _ZERO, _ZERO))
    rows.append(Opcode(EXIT, "exit", Form.EXIT, "exit", 8, False, False, _ZERO, _ZERO))
    return rows


def _memory_rows() -> list[Opcode]:
    rows: list[Opcode] = []
    for bits, size in SIZES.items():
        rows.append(Opcode(BPF_LDX | BPF_MEM | bits, "ldx", Form.LDX, "=", size, True, True, None, _ZERO))
        rows.append(Opcode(BPF_STX | BPF_MEM | bits, "stx", Form.STX, "=", size, True, True, None, _ZERO))
        rows.append(Opcode(BPF_ST | BPF_MEM | bits, "st", Form.ST, "=", size, True, False, None, None))
        if size < 8:
            code = BPF_LDX | BPF_MEMSX | bits
            rows.append(Opcode(code, "ldxs", Form.LDX, "=", size, True, True, None, _ZERO, signed=True))
            rows.append(Opcode(BPF_LD | BPF_ABS | bits, "ldabs", Form.LD_ABS, "=", size, False, False, _ZERO, None))
            rows.append(Opcode(BPF_LD | BPF_IND | bits, "ldind", Form.LD_IND, "=", size, False, True, _ZERO, None))
        if size >= 4:
            code = BPF_STX | BPF_ATOMIC | bits
            imms = frozenset(ATOMIC_OPS)
            rows.append(Opcode(code, "lock", Form.ATOMIC, "lock", size, True, True, None, imms))
    rows.append(Opcode(LDDW, "lddw", Form.LDDW, "=", 8, True, True, _ZERO, None))
    return rows


OPCODES: Final[Mapping[int, Opcode]] = MappingProxyType(
    {row.code: row for row in sorted(_alu_rows() + _jump_rows() + _memory_rows(), key=lambda row: row.code)}
)
"""Opcode byte → its row. A byte that is not here is not an instruction."""
