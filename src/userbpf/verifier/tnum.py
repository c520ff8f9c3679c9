"""Tristate numbers: what is known of each bit of a 64-bit value.

A tnum is a pair ``(value, mask)``: a bit set in ``mask`` is unknown, and is then 0 in ``value``; every other bit
is as in ``value``. The operations are those of the kernel (kernel/bpf/tnum.c; soundness and optimality of
addition and subtraction are proved in Vishwanathan et al., CGO 2022). They work on plain tuples of unsigned
integers because the verifier creates millions of them.
"""

from __future__ import annotations

__all__ = [
    "UNKNOWN",
    "Tnum",
    "add",
    "and_",
    "arshift",
    "cast",
    "const",
    "contains",
    "intersect",
    "is_aligned",
    "lshift",
    "mul",
    "neg",
    "or_",
    "overlap",
    "range_",
    "rshift",
    "sub",
    "union",
    "xor",
]

U64 = (1 << 64) - 1

Tnum = tuple[int, int]

UNKNOWN: Tnum = (0, U64)


def const(value: int) -> Tnum:
    """The tnum of exactly one value."""
    return value & U64, 0


def range_(low: int, high: int) -> Tnum:
    """The best tnum that holds every value of the unsigned range low … high."""
    bits = (low ^ high).bit_length()
    delta = (1 << bits) - 1
    return low & ~delta, delta


def add(a: Tnum, b: Tnum) -> Tnum:
    av, am = a
    bv, bm = b
    total = av + bv
    mu = ((total + am + bm) ^ total) | am | bm
    return total & ~mu & U64, mu & U64


def sub(a: Tnum, b: Tnum) -> Tnum:
    av, am = a
    bv, bm = b
    diff = av - bv
    mu = ((diff + am) ^ (diff - bm)) | am | bm
    return diff & ~mu & U64, mu & U64


def neg(a: Tnum) -> Tnum:
    return sub((0, 0), a)


def and_(a: Tnum, b: Tnum) -> Tnum:
    av, am = a
    bv, bm = b
    value = av & bv
    return value, (av | am) & (bv | bm) & ~value


def or_(a: Tnum, b: Tnum) -> Tnum:
    value = a[0] | b[0]
    return value, (a[1] | b[1]) & ~value


def xor(a: Tnum, b: Tnum) -> Tnum:
    mu = a[1] | b[1]
    return (a[0] ^ b[0]) & ~mu, mu


def _trailing_zeros(a: Tnum) -> int:
    """Number of low bits that are known to be zero (64 for the constant 0)."""
    bits = a[0] | a[1]
    return (bits & -bits).bit_length() - 1 if bits else 64


def mul(a: Tnum, b: Tnum) -> Tnum:
    """Product, by long multiplication with an uncertain bit taken as the union of both outcomes."""
    if not a[1] and not b[1]:
        return (a[0] * b[0]) & U64, 0
    if a[1] == U64 or b[1] == U64 or (a[1] and b[1] and a[1].bit_length() + b[1].bit_length() > 64):
        zeros = _trailing_zeros(a) + _trailing_zeros(b)
        return (0, (U64 << zeros) & U64) if zeros < 64 else (0, 0)
    if a[1] and not b[1]:
        a, b = b, a
    acc: Tnum = (0, 0)
    av, am = a
    bv, bm = b
    while av or am:
        if av & 1:
            acc = add(acc, (bv, bm))
        elif am & 1:
            acc = union(acc, add(acc, (bv, bm)))
        av >>= 1
        am >>= 1
        bv = (bv << 1) & U64
        bm = (bm << 1) & U64
    return acc


def lshift(a: Tnum, count: int) -> Tnum:
    return (a[0] << count) & U64, (a[1] << count) & U64


def rshift(a: Tnum, count: int) -> Tnum:
    return a[0] >> count, a[1] >> count


def arshift(a: Tnum, count: int, bits: int) -> Tnum:
    """Arithmetic right shift of the low ``bits`` (32 or 64); the sign bit's knowledge is what is shifted in."""
    limit = (1 << bits) - 1
    sign = 1 << (bits - 1)
    value, mask = a[0] & limit, a[1] & limit
    value = ((value ^ sign) - sign) >> count
    mask = ((mask ^ sign) - sign) >> count
    return value & limit & ~mask, mask & limit


def intersect(a: Tnum, b: Tnum) -> Tnum:
    """Knowledge of both; meaningless when they exclude each other (see :func:`overlap`)."""
    mu = a[1] & b[1]
    return (a[0] | b[0]) & ~mu, mu


def overlap(a: Tnum, b: Tnum) -> bool:
    """Whether some value is in both."""
    return not (a[0] ^ b[0]) & ~(a[1] | b[1])


def union(a: Tnum, b: Tnum) -> Tnum:
    """The best tnum that holds both."""
    mu = (a[0] ^ b[0]) | a[1] | b[1]
    return a[0] & b[0] & ~mu, mu


def cast(a: Tnum, size: int) -> Tnum:
    """The low ``size`` bytes, zero-extended."""
    limit = (1 << (8 * size)) - 1
    return a[0] & limit, a[1] & limit


def contains(a: Tnum, b: Tnum) -> bool:
    """Whether every value of b is one of a."""
    return not b[1] & ~a[1] and (b[0] & ~a[1]) == a[0]


def is_aligned(a: Tnum, size: int) -> bool:
    """Whether every value of a is a multiple of ``size`` (a power of two)."""
    return not (a[0] | a[1]) & (size - 1)
