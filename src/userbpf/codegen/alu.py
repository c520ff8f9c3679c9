"""Arithmetic and comparisons: RFC 9669 sections 4.1 to 4.3 in LLVM IR.

All functions take operands as IR values of the operation's width and give a value of the same width.
"""

from __future__ import annotations

from typing import Final

from userbpf.codegen.ir import FunctionWriter
from userbpf.isa import opcodes as op

_SIMPLE: Final = {
    op.BPF_ADD: "add",
    op.BPF_SUB: "sub",
    op.BPF_MUL: "mul",
    op.BPF_OR: "or",
    op.BPF_AND: "and",
    op.BPF_XOR: "xor",
}
_SHIFTS: Final = {op.BPF_LSH: "shl", op.BPF_RSH: "lshr", op.BPF_ARSH: "ashr"}

_PREDICATES: Final = {
    op.BPF_JEQ: "eq",
    op.BPF_JNE: "ne",
    op.BPF_JGT: "ugt",
    op.BPF_JGE: "uge",
    op.BPF_JLT: "ult",
    op.BPF_JLE: "ule",
    op.BPF_JSGT: "sgt",
    op.BPF_JSGE: "sge",
    op.BPF_JSLT: "slt",
    op.BPF_JSLE: "sle",
}


def binary(w: FunctionWriter, operation: int, width: int, dst: str, src: str, *, signed: bool) -> str:
    """``dst = dst operation src`` for the two-operand arithmetic operations but moves.

    ``signed`` selects SDIV and SMOD (offset 1). Shift counts are masked (section 4.1).
    """
    ty = f"i{width}"
    if operation in _SIMPLE:
        return w.op(f"{_SIMPLE[operation]} {ty} {dst}, {src}")
    if operation in _SHIFTS:
        count = str(int(src) & (width - 1)) if _is_literal(src) else w.op(f"and {ty} {src}, {width - 1}")
        return w.op(f"{_SHIFTS[operation]} {ty} {dst}, {count}")
    return _divide(w, operation == op.BPF_MOD, ty, width, dst, src, signed=signed)


def _divide(w: FunctionWriter, modulo: bool, ty: str, width: int, dst: str, src: str, *, signed: bool) -> str:
    """Division by zero gives 0, modulo by zero leaves dst; the signed overflow gives dst, or 0 for modulo."""
    name = ("s" if signed else "u") + ("rem" if modulo else "div")
    if _is_literal(src) and int(src) not in (0, -1):
        return w.op(f"{name} {ty} {dst}, {src}")
    zero = w.op(f"icmp eq {ty} {src}, 0")
    safe = w.op(f"select i1 {zero}, {ty} 1, {ty} {src}")
    if signed:
        # INT_MIN / -1 traps on x86: x / -1 is -x with wrap-around, x % -1 is 0.
        minus = w.op(f"icmp eq {ty} {safe}, -1")
        safe = w.op(f"select i1 {minus}, {ty} 1, {ty} {safe}")
        value = w.op(f"{name} {ty} {dst}, {safe}")
        if not modulo:
            negated = w.op(f"sub {ty} 0, {dst}")
            value = w.op(f"select i1 {minus}, {ty} {negated}, {ty} {value}")
    else:
        value = w.op(f"{name} {ty} {dst}, {safe}")
    return w.op(f"select i1 {zero}, {ty} {dst if modulo else 0}, {ty} {value}")


def byte_order(w: FunctionWriter, insn_op: int, imm: int, value: str) -> str:
    """BPF_END on an i64 value (section 4.2); hosts are little-endian. ``imm``: 16, 32 or 64 bits."""
    swap = insn_op & 0x07 == op.BPF_ALU64 or bool(insn_op & op.BPF_X)
    if imm == 64:
        return w.op(f"call i64 @llvm.bswap.i64(i64 {value})") if swap else value
    short = w.op(f"trunc i64 {value} to i{imm}")
    if swap:
        short = w.op(f"call i{imm} @llvm.bswap.i{imm}(i{imm} {short})")
    return w.op(f"zext i{imm} {short} to i64")


def compare(w: FunctionWriter, operation: int, ty: str, left: str, right: str) -> str:
    """An i1 that says whether the jump is taken. ``ty`` is i32, i64, or ptr for equality."""
    if operation == op.BPF_JSET:
        both = w.op(f"and {ty} {left}, {right}")
        return w.op(f"icmp ne {ty} {both}, 0")
    return w.op(f"icmp {_PREDICATES[operation]} {ty} {left}, {right}")


def _is_literal(value: str) -> bool:
    return not value.startswith(("%", "@"))
