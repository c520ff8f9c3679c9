"""Arithmetic instructions: moves, numbers, and pointer arithmetic (RFC 9669 section 4.1).

Pointer rules of kernel/bpf/verifier.c, ``adjust_reg_min_max_vals`` and ``adjust_ptr_min_max_vals``, as for a
program with CAP_PERFMON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from userbpf.isa.opcodes import (
    BPF_ADD,
    BPF_ALU,
    BPF_ARSH,
    BPF_DIV,
    BPF_END,
    BPF_LSH,
    BPF_MOD,
    BPF_MOV,
    BPF_NEG,
    BPF_RSH,
    BPF_SUB,
    BPF_X,
    OPCODES,
)

from . import bounds, precision, transfer
from .diagnosis import Reject
from .facts import Kind
from .state import UNKNOWN_SCALAR, Reg, const_scalar, scalar

if TYPE_CHECKING:
    from userbpf.isa import Insn

    from .env import Env

__all__ = ["MAX_OFFSET", "alu", "check_offset"]

MAX_OFFSET: Final = 1 << 29
"""BPF_MAX_VAR_OFF: a pointer never moves further than this from its region's start."""


def alu(env: Env, insn: Insn) -> None:
    """Walk one instruction of class ALU or ALU64."""
    op = insn.op & 0xF0
    is32 = insn.op & 7 == BPF_ALU
    if op == BPF_MOV:
        _move(env, insn, is32=is32)
    elif op == BPF_END:
        env.read(insn.dst)
        env.write(insn.dst, UNKNOWN_SCALAR)
    elif op == BPF_NEG:
        old = env.read(insn.dst)
        if old.is_pointer:
            env.write(insn.dst, UNKNOWN_SCALAR)
        else:
            env.write(insn.dst, scalar(transfer.alu(BPF_SUB, bounds.ZERO, old.rng, is32=is32)))
    else:
        _binary(env, insn, op, is32=is32)


def _move(env: Env, insn: Insn, *, is32: bool) -> None:
    if not insn.op & BPF_X:
        env.write(insn.dst, const_scalar(insn.imm & bounds.U32 if is32 else insn.imm))
        return
    source = env.read(insn.src)
    if insn.off:
        # Sign-extending move of 8, 16 or 32 bits.
        if source.is_pointer:
            env.write(insn.dst, UNKNOWN_SCALAR)
        else:
            _move_signed(env, insn, source, is32=is32)
    elif not is32:
        env.write(insn.dst, env.linkable(insn.src))
    elif source.is_pointer:
        # The low half of an address is just a number.
        env.write(insn.dst, scalar(bounds.zext32(bounds.UNKNOWN)))
    elif source.rng.umax <= bounds.U32:
        env.write(insn.dst, env.linkable(insn.src))
    else:
        env.write(insn.dst, scalar(bounds.zext32(source.rng)))


def _move_signed(env: Env, insn: Insn, source: Reg, *, is32: bool) -> None:
    bits = insn.off
    if not is32 and source.rng.umax < 1 << (bits - 1):
        env.write(insn.dst, env.linkable(insn.src))
        return
    rng = bounds.sext(source.rng, bits // 8)
    env.write(insn.dst, scalar(bounds.zext32(rng) if is32 else rng))


def _binary(env: Env, insn: Insn, op: int, *, is32: bool) -> None:
    dst = env.read(insn.dst)
    source = env.read(insn.src) if insn.op & BPF_X else _immediate(insn, op, is32=is32)
    if not dst.is_pointer and not source.is_pointer:
        rng = transfer.alu(op, dst.rng, source.rng, is32=is32)
        if op == BPF_ADD and not is32 and dst.id and not dst.delta and source.rng.is_const:
            step = source.rng.value
            if 0 < step <= bounds.S32_MAX and not rng.is_const:
                # Still linked to the value that it was copied from, at a known distance.
                env.write(insn.dst, Reg(Kind.SCALAR, rng, id=dst.id, delta=step))
                return
        env.write(insn.dst, scalar(rng))
        return
    if is32 and op == BPF_SUB:
        env.write(insn.dst, UNKNOWN_SCALAR)
        return
    symbol = OPCODES[insn.op].symbol
    if is32:
        pointer, number = (dst, insn.dst) if dst.is_pointer else (source, insn.src)
        raise Reject(
            "bad-pointer-arith",
            f"r{number} is {pointer.describe()}: 32-bit arithmetic ({symbol}) would cut the address",
            reg=number,
        )
    if dst.is_pointer and source.is_pointer:
        if op == BPF_SUB:
            env.write(insn.dst, UNKNOWN_SCALAR)
            return
        raise Reject(
            "bad-pointer-arith",
            f"two pointers are combined with {symbol}: r{insn.dst} is {dst.describe()}, "
            f"r{insn.src} is {source.describe()}",
            reg=insn.dst,
        )
    if dst.is_pointer:
        if insn.op & BPF_X:
            precision.mark(env, insn.src)
        name = f"r{insn.src}" if insn.op & BPF_X else str(insn.imm)
        env.write(insn.dst, _pointer(dst, insn.dst, source, name, op, symbol))
        return
    if op == BPF_SUB:
        raise Reject(
            "bad-pointer-arith",
            f"r{insn.src}, {source.describe()}, is subtracted from a number",
            reg=insn.src,
        )
    precision.mark(env, insn.dst)
    env.write(insn.dst, _pointer(source, insn.src, dst, f"r{insn.dst}", op, symbol))


def _immediate(insn: Insn, op: int, *, is32: bool) -> Reg:
    """The constant operand, which must make sense (check_alu_op)."""
    if op in (BPF_DIV, BPF_MOD) and insn.imm == 0:
        raise Reject("div", "the division is by the constant 0")
    width = 32 if is32 else 64
    if op in (BPF_LSH, BPF_RSH, BPF_ARSH) and not 0 <= insn.imm < width:
        raise Reject("shift", f"the shift is by {insn.imm}, and the operand has {width} bits")
    return const_scalar(insn.imm)


def _pointer(pointer: Reg, number: int, offset: Reg, name: str, op: int, symbol: str) -> Reg:
    """``pointer ± offset`` (adjust_ptr_min_max_vals); ``number`` and ``name`` are for messages."""
    if pointer.null:
        raise Reject(
            "null-deref",
            f"r{number} is {pointer.describe()}: it must be compared with NULL before arithmetic",
            reg=number,
        )
    if op not in (BPF_ADD, BPF_SUB):
        raise Reject(
            "bad-pointer-arith", f"r{number} is {pointer.describe()}: only + and - work on it, not {symbol}", reg=number
        )
    if pointer.kind is Kind.MAP or pointer.kind is Kind.FUNC:
        if op == BPF_ADD and offset.is_zero and pointer.kind is Kind.MAP:
            return pointer
        raise Reject("bad-pointer-arith", f"r{number} is {pointer.describe()}: it cannot be moved", reg=number)
    if op == BPF_SUB and pointer.kind is Kind.STACK:
        raise Reject(
            "bad-pointer-arith",
            f"{name} is subtracted from r{number}, {pointer.describe()}: offsets of the stack are added",
            reg=number,
        )
    check_offset(offset.rng, 0, name)
    check_offset(pointer.rng, pointer.off, f"r{number}")
    if offset.rng.is_const:
        step = bounds.signed(offset.rng.value)
        moved = pointer.moved(pointer.rng, pointer.off + step if op == BPF_ADD else pointer.off - step)
    else:
        combine = transfer.add if op == BPF_ADD else transfer.sub
        moved = pointer.moved(combine(pointer.rng, offset.rng), pointer.off)
    check_offset(moved.rng, moved.off, f"r{number}")
    return moved


def check_offset(rng: bounds.Range, off: int, name: str) -> None:
    """``check_reg_sane_offset``: arithmetic may not lose the bounds of a pointer."""
    if rng.is_const:
        off += bounds.signed(rng.value)
        if -MAX_OFFSET < off < MAX_OFFSET:
            return
        raise Reject("bad-pointer-arith", f"{name} moves a pointer by {off} bytes, which is out of any region")
    if not -MAX_OFFSET < off < MAX_OFFSET:
        raise Reject("bad-pointer-arith", f"{name} is moved by {off} bytes, which is out of any region")
    if rng.smin == bounds.S64_MIN:
        raise Reject(
            "bad-pointer-arith",
            f"the offset {name} has no lower bound, so the pointer could go anywhere",
            known=(f"{name} is {rng}",),
        )
    if not -MAX_OFFSET < rng.smin < MAX_OFFSET:
        raise Reject(
            "bad-pointer-arith",
            f"the offset {name} can be {rng.smin}, which is out of any region",
            known=(f"{name} is {rng}",),
        )
