"""Arithmetic on ranges: for every operation of RFC 9669 section 4.1, the Range of its results.

Each function takes the Ranges of both operands and returns one that holds every result of their members. The
rules are those of kernel/bpf/verifier.c (``adjust_scalar_min_max_vals`` and the ``scalar_min_max_*`` functions),
32-bit forms included; :func:`alu` is the entry. Division and modulo are not tracked, as in Linux 6.18.
"""

from __future__ import annotations

from collections.abc import Callable

from userbpf.isa.opcodes import (
    BPF_ADD,
    BPF_AND,
    BPF_ARSH,
    BPF_LSH,
    BPF_MUL,
    BPF_OR,
    BPF_RSH,
    BPF_SUB,
    BPF_XOR,
)

from . import bounds, tnum
from .bounds import (
    S32_MAX,
    S32_MIN,
    S64_MAX,
    S64_MIN,
    U32,
    U64,
    UNKNOWN,
    Range,
    const,
    make,
    settle,
)

__all__ = ["add", "alu", "and_", "arsh", "lsh", "mul", "neg", "or_", "rsh", "sub", "xor"]


def _wrap_unsigned(low: int, high: int, limit: int) -> tuple[int, int]:
    """The unsigned range low … high modulo limit + 1: exact when both ends wrap equally often, else everything."""
    if low >> limit.bit_length() == high >> limit.bit_length():
        return low & limit, high & limit
    return 0, limit


def _fit_signed(low: int, high: int, least: int, most: int) -> tuple[int, int]:
    return (low, high) if low >= least and high <= most else (least, most)


def add(a: Range, b: Range) -> Range:
    if not a.tnum[1] and not b.tnum[1]:
        return const(a.tnum[0] + b.tnum[0])
    return settle(
        make(
            tnum.add(a.tnum, b.tnum),
            *_wrap_unsigned(a.umin + b.umin, a.umax + b.umax, U64),
            *_fit_signed(a.smin + b.smin, a.smax + b.smax, S64_MIN, S64_MAX),
            *_wrap_unsigned(a.u32min + b.u32min, a.u32max + b.u32max, U32),
            *_fit_signed(a.s32min + b.s32min, a.s32max + b.s32max, S32_MIN, S32_MAX),
        )
    )


def sub(a: Range, b: Range) -> Range:
    if not a.tnum[1] and not b.tnum[1]:
        return const(a.tnum[0] - b.tnum[0])
    return settle(
        make(
            tnum.sub(a.tnum, b.tnum),
            *_wrap_unsigned(a.umin - b.umax, a.umax - b.umin, U64),
            *_fit_signed(a.smin - b.smax, a.smax - b.smin, S64_MIN, S64_MAX),
            *_wrap_unsigned(a.u32min - b.u32max, a.u32max - b.u32min, U32),
            *_fit_signed(a.s32min - b.s32max, a.s32max - b.s32min, S32_MIN, S32_MAX),
        )
    )


def neg(a: Range) -> Range:
    return sub(bounds.ZERO, a)


def mul(a: Range, b: Range) -> Range:
    if not a.tnum[1] and not b.tnum[1]:
        return const(a.tnum[0] * b.tnum[0])
    unsigned = (0, U64) if a.umax * b.umax > U64 else (a.umin * b.umin, a.umax * b.umax)
    unsigned32 = (0, U32) if a.u32max * b.u32max > U32 else (a.u32min * b.u32min, a.u32max * b.u32max)
    corners = (a.smin * b.smin, a.smin * b.smax, a.smax * b.smin, a.smax * b.smax)
    corners32 = (a.s32min * b.s32min, a.s32min * b.s32max, a.s32max * b.s32min, a.s32max * b.s32max)
    return settle(
        make(
            tnum.mul(a.tnum, b.tnum),
            *unsigned,
            *_fit_signed(min(corners), max(corners), S64_MIN, S64_MAX),
            *unsigned32,
            *_fit_signed(min(corners32), max(corners32), S32_MIN, S32_MAX),
        )
    )


def and_(a: Range, b: Range) -> Range:
    bits = tnum.and_(a.tnum, b.tnum)
    if not bits[1]:
        return const(bits[0])
    return settle(make(bits, 0, min(a.umax, b.umax), S64_MIN, S64_MAX, 0, min(a.u32max, b.u32max), S32_MIN, S32_MAX))


def or_(a: Range, b: Range) -> Range:
    bits = tnum.or_(a.tnum, b.tnum)
    if not bits[1]:
        return const(bits[0])
    return settle(
        make(bits, max(a.umin, b.umin), U64, S64_MIN, S64_MAX, max(a.u32min, b.u32min), U32, S32_MIN, S32_MAX)
    )


def xor(a: Range, b: Range) -> Range:
    return bounds.of_tnum(tnum.xor(a.tnum, b.tnum))


def lsh(a: Range, b: Range) -> Range:
    """Only a constant count is tracked."""
    if b.tnum[1] or b.tnum[0] > 63:
        return UNKNOWN
    count = b.tnum[0]
    bits = tnum.lshift(a.tnum, count)
    if not bits[1]:
        return const(bits[0])
    smin, smax = S64_MIN, S64_MAX
    if count == 32:
        # The first half of the idiom that sign-extends 32 bits: shift left, then arithmetically right.
        smin, smax = a.s32min << 32, a.s32max << 32
    umin, umax = (a.umin << count, a.umax << count) if a.umax <= 1 << (63 - count) else (0, U64)
    return settle(make(bits, umin, umax & U64, smin, smax, 0, U32, S32_MIN, S32_MAX))


def rsh(a: Range, b: Range) -> Range:
    if b.tnum[1] or b.tnum[0] > 63:
        return UNKNOWN
    count = b.tnum[0]
    bits = tnum.rshift(a.tnum, count)
    return settle(make(bits, a.umin >> count, a.umax >> count, S64_MIN, S64_MAX, 0, U32, S32_MIN, S32_MAX))


def arsh(a: Range, b: Range) -> Range:
    if b.tnum[1] or b.tnum[0] > 63:
        return UNKNOWN
    count = b.tnum[0]
    bits = tnum.arshift(a.tnum, count, 64)
    return settle(make(bits, 0, U64, a.smin >> count, a.smax >> count, 0, U32, S32_MIN, S32_MAX))


def _shift32(a: Range, b: Range, op: int) -> Range:
    if b.tnum[1] & U32 or b.tnum[0] & U32 > 31:
        return bounds.zext32(UNKNOWN)
    count = b.tnum[0] & U32
    value, mask = tnum.cast(a.tnum, 4)
    if op == BPF_LSH:
        low, high = (a.u32min << count, a.u32max << count) if a.u32max <= 1 << (31 - count) else (0, U32)
        bits = tnum.cast(tnum.lshift((value, mask), count), 4)
        return _narrow(bits, low, high & U32, S32_MIN, S32_MAX)
    if op == BPF_RSH:
        return _narrow(tnum.rshift((value, mask), count), a.u32min >> count, a.u32max >> count, S32_MIN, S32_MAX)
    return _narrow(tnum.arshift((value, mask), count, 32), 0, U32, a.s32min >> count, a.s32max >> count)


def _narrow(bits: tnum.Tnum, u32min: int, u32max: int, s32min: int, s32max: int) -> Range:
    """A zero-extended 32-bit result."""
    if not bits[1]:
        return const(bits[0])
    return settle(make(bits, u32min, u32max, u32min, u32max, u32min, u32max, s32min, s32max))


_WIDE: dict[int, Callable[[Range, Range], Range]] = {
    BPF_ADD: add,
    BPF_SUB: sub,
    BPF_MUL: mul,
    BPF_AND: and_,
    BPF_OR: or_,
    BPF_XOR: xor,
    BPF_LSH: lsh,
    BPF_RSH: rsh,
    BPF_ARSH: arsh,
}


def alu(op: int, a: Range, b: Range, *, is32: bool) -> Range:
    """The Range of ``a op b``; ``op`` is the operation's bits of the opcode (BPF_ADD …, not BPF_MOV, BPF_END).

    A 32-bit operation sees the low halves and its result is zero-extended. But for shifts, the low half of the
    64-bit result is the 32-bit result, and the wide functions track it on its own.
    """
    function = _WIDE.get(op)
    if not is32:
        return UNKNOWN if function is None else function(a, b)
    if function is None:
        return bounds.zext32(UNKNOWN)
    if op in (BPF_LSH, BPF_RSH, BPF_ARSH):
        return _shift32(a, b, op)
    known_a, known_b = a.const32, b.const32
    if known_a is not None and known_b is not None:
        return const(_concrete32(op, known_a, known_b))
    return bounds.zext32(function(a, b))


def _concrete32(op: int, a: int, b: int) -> int:
    if op == BPF_ADD:
        return (a + b) & U32
    if op == BPF_SUB:
        return (a - b) & U32
    if op == BPF_MUL:
        return (a * b) & U32
    if op == BPF_AND:
        return a & b
    return a | b if op == BPF_OR else a ^ b
