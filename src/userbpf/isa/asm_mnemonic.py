"""The mnemonic notation of bpf_conformance and ubpf: ``mov %r0, 1``, ``ldxdw %r0, [%r1+8]``, ``jeq %r1, 0, label``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from userbpf.isa.asm_kernel import parse_call
from userbpf.isa.insn import Insn, wide
from userbpf.isa.lexer import Cursor, LabelRef, Statement
from userbpf.isa.opcodes import (
    ATOMIC_OPS,
    BPF_ALU,
    BPF_ALU64,
    BPF_ATOMIC,
    BPF_DW,
    BPF_END,
    BPF_LDX,
    BPF_MEM,
    BPF_MEMSX,
    BPF_MOV,
    BPF_NEG,
    BPF_ST,
    BPF_STX,
    BPF_TO_BE,
    BPF_W,
    BPF_X,
    JA,
    JA32,
    OPCODES,
    SIZE_BITS,
    Form,
)

_Parser = Callable[[Cursor], Statement]
_SUFFIX: Final = MappingProxyType({"b": 1, "h": 2, "w": 4, "dw": 8})
_ATOMIC_CODES: Final = MappingProxyType({name: code for code, name in ATOMIC_OPS.items()})
_ATOMIC_NAME: Final = re.compile(r"(add|or|and|xor|xchg|cmpxchg)(32)?")


def parse_mnemonic(cursor: Cursor, helpers: Mapping[str, int]) -> Statement:
    """One statement."""
    token = cursor.word("an instruction")
    if token.text == "call":
        return parse_call(cursor, helpers)
    parser = _MNEMONICS.get(token.text)
    if parser is None:
        cursor.fail(f'the instruction "{token.text}" is not known', token.column)
    return parser(cursor)


def _alu(op: int, off: int) -> _Parser:
    def parse(cursor: Cursor) -> Statement:
        dst, _ = cursor.register()
        if cursor.at_register():
            return Statement((Insn(op | BPF_X, dst, cursor.register()[0], off, 0),))
        return Statement((Insn(op, dst, 0, off, cursor.imm32()),))

    return parse


def _move_sign_extended(op: int, width: int) -> _Parser:
    def parse(cursor: Cursor) -> Statement:
        dst, _ = cursor.register()
        return Statement((Insn(op | BPF_X, dst, cursor.register()[0], width, 0),))

    return parse


def _unary(op: int, imm: int) -> _Parser:
    def parse(cursor: Cursor) -> Statement:
        return Statement((Insn(op, cursor.register()[0], 0, 0, imm),))

    return parse


def _jump(op: int) -> _Parser:
    def parse(cursor: Cursor) -> Statement:
        dst, _ = cursor.register()
        if cursor.at_register():
            insn = Insn(op | BPF_X, dst, cursor.register()[0], 0, 0)
        else:
            insn = Insn(op, dst, 0, 0, cursor.imm32())
        return _aim(insn, cursor.target("off"))

    return parse


def _aim(insn: Insn, target: int | LabelRef) -> Statement:
    if isinstance(target, LabelRef):
        return Statement((insn,), target)
    return Statement((insn._replace(imm=target) if insn.op == JA32 else insn._replace(off=target),))


def _address(cursor: Cursor) -> tuple[int, int]:
    cursor.expect("[")
    register, _ = cursor.register()
    off = cursor.off16() if cursor.at_number() else 0
    cursor.expect("]")
    return register, off


def _load(op: int) -> _Parser:
    def parse(cursor: Cursor) -> Statement:
        dst, _ = cursor.register()
        src, off = _address(cursor)
        return Statement((Insn(op, dst, src, off, 0),))

    return parse


def _store(op: int) -> _Parser:
    def parse(cursor: Cursor) -> Statement:
        dst, off = _address(cursor)
        if op & 0x07 == BPF_STX:
            return Statement((Insn(op, dst, cursor.register()[0], off, 0),))
        return Statement((Insn(op, dst, 0, off, cursor.imm32()),))

    return parse


def _lddw(cursor: Cursor) -> Statement:
    dst, _ = cursor.register()
    return Statement(wide(dst, cursor.imm64()))


def _lock(cursor: Cursor) -> Statement:
    fetch = cursor.accept("fetch")
    token = cursor.word("an atomic operation")
    match = _ATOMIC_NAME.fullmatch(token.text)
    if match is None:
        cursor.fail(f'"{token.text}" is not an atomic operation', token.column)
    name = match[1]
    if name not in ("xchg", "cmpxchg") and fetch:
        name = f"fetch_{name}"
    dst, off = _address(cursor)
    op = BPF_STX | BPF_ATOMIC | (BPF_W if match[2] else BPF_DW)
    return Statement((Insn(op, dst, cursor.register()[0], off, _ATOMIC_CODES[name]),))


def _build() -> Mapping[str, _Parser]:
    table: dict[str, _Parser] = {"lddw": _lddw, "lock": _lock}
    for row in OPCODES.values():
        narrow = "32" if row.size == 4 else ""
        if row.form is Form.ALU_IMM:
            table[row.name + narrow] = _alu(row.code, 0)
            if row.name in ("div", "mod"):
                table[f"s{row.name}{narrow}"] = _alu(row.code, 1)
        elif row.form is Form.JCC_IMM:
            table[row.name + narrow] = _jump(row.code)
    for width in (8, 16, 32):
        table[f"movsx{width}64"] = _move_sign_extended(BPF_ALU64 | BPF_MOV, width)
        if width < 32:
            table[f"movsx{width}32"] = _move_sign_extended(BPF_ALU | BPF_MOV, width)
    for width in (16, 32, 64):
        table[f"le{width}"] = _unary(BPF_ALU | BPF_END, width)
        table[f"be{width}"] = _unary(BPF_ALU | BPF_END | BPF_TO_BE, width)
        table[f"swap{width}"] = table[f"bswap{width}"] = _unary(BPF_ALU64 | BPF_END, width)
    table["neg"] = _unary(BPF_ALU64 | BPF_NEG, 0)
    table["neg32"] = _unary(BPF_ALU | BPF_NEG, 0)
    for suffix, size in _SUFFIX.items():
        bits = SIZE_BITS[size]
        table[f"ldx{suffix}"] = _load(BPF_LDX | BPF_MEM | bits)
        table[f"stx{suffix}"] = _store(BPF_STX | BPF_MEM | bits)
        table[f"st{suffix}"] = _store(BPF_ST | BPF_MEM | bits)
        if size < 8:
            table[f"ldxs{suffix}"] = _load(BPF_LDX | BPF_MEMSX | bits)
    table["ja"] = lambda cursor: _aim(Insn(JA, 0, 0, 0, 0), cursor.target("off"))
    table["ja32"] = lambda cursor: _aim(Insn(JA32, 0, 0, 0, 0), cursor.target("imm"))
    return MappingProxyType(table)


_MNEMONICS: Final = _build()
