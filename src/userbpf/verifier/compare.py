"""Comparisons on ranges: which outcomes a conditional jump can have, and what each outcome says of the operands.

Rules of kernel/bpf/verifier.c: ``is_scalar_branch_taken`` and ``regs_refine_cond_op``, for 64 and 32 bits. One
function does both: it refines the operands for each outcome, and an outcome whose operands are left with no
value cannot happen.
"""

from __future__ import annotations

from userbpf.isa.opcodes import (
    BPF_JEQ,
    BPF_JGE,
    BPF_JGT,
    BPF_JLE,
    BPF_JLT,
    BPF_JNE,
    BPF_JSET,
    BPF_JSGE,
    BPF_JSGT,
    BPF_JSLE,
    BPF_JSLT,
)

from . import tnum
from .bounds import U32, U64, Range, make, signed, signed32

__all__ = ["INVERSE", "holds", "outcomes", "refine"]

INVERSE = {
    BPF_JEQ: BPF_JNE,
    BPF_JNE: BPF_JEQ,
    BPF_JGT: BPF_JLE,
    BPF_JLE: BPF_JGT,
    BPF_JGE: BPF_JLT,
    BPF_JLT: BPF_JGE,
    BPF_JSGT: BPF_JSLE,
    BPF_JSLE: BPF_JSGT,
    BPF_JSGE: BPF_JSLT,
    BPF_JSLT: BPF_JSGE,
}
"""The condition that holds when another does not (JSET has none)."""

_SWAPPED = {BPF_JGE: BPF_JLE, BPF_JGT: BPF_JLT, BPF_JSGE: BPF_JSLE, BPF_JSGT: BPF_JSLT}

Pair = tuple[Range, Range]


def holds(op: int, a: int, b: int, *, is32: bool) -> bool:
    """The condition on two concrete unsigned 64-bit values (RFC 9669 section 4.3)."""
    if is32:
        a, b = a & U32, b & U32
    if op == BPF_JSET:
        return bool(a & b)
    if op in (BPF_JSGT, BPF_JSGE, BPF_JSLT, BPF_JSLE):
        a, b = (signed32(a), signed32(b)) if is32 else (signed(a), signed(b))
    if op == BPF_JEQ:
        return a == b
    if op == BPF_JNE:
        return a != b
    if op in (BPF_JGT, BPF_JSGT):
        return a > b
    if op in (BPF_JGE, BPF_JSGE):
        return a >= b
    return a < b if op in (BPF_JLT, BPF_JSLT) else a <= b


def outcomes(op: int, a: Range, b: Range, *, is32: bool) -> tuple[Pair | None, Pair | None]:
    """Operands after (taken, not taken); None for an outcome that cannot happen."""
    bits = a.tnum[1] | b.tnum[1]
    if not (bits & U32 if is32 else bits):
        same = (a, b)
        return (same, None) if holds(op, a.tnum[0], b.tnum[0], is32=is32) else (None, same)
    if op == BPF_JSET:
        return _test_bits(a, b, is32=is32)
    return refine(op, a, b, is32=is32), refine(INVERSE[op], a, b, is32=is32)


def refine(op: int, a: Range, b: Range, *, is32: bool) -> Pair | None:
    """The operands when ``a op b`` holds, None when it cannot."""
    swapped = _SWAPPED.get(op)
    if swapped is not None:
        pair = refine(swapped, b, a, is32=is32)
        return None if pair is None else (pair[1], pair[0])
    if op == BPF_JEQ:
        return _equal32(a, b) if is32 else _equal(a, b)
    if op == BPF_JNE:
        return _unequal(a, b, is32=is32)
    va, vb = a.views(), b.views()
    # Views: umin umax smin smax u32min u32max s32min s32max
    low = (4 if is32 else 0) + (2 if op in (BPF_JSLT, BPF_JSLE) else 0)
    gap = 1 if op in (BPF_JLT, BPF_JSLT) else 0
    high_a = vb[low + 1] - gap
    low_b = va[low] + gap
    if va[low] > high_a or low_b > vb[low + 1]:
        return None
    new_a: Range | None = a
    if high_a < va[low + 1]:
        va[low + 1] = high_a
        new_a = make(a.tnum, *va)
    new_b: Range | None = b
    if low_b > vb[low]:
        vb[low] = low_b
        new_b = make(b.tnum, *vb)
    return None if new_a is None or new_b is None else (new_a, new_b)


def _equal(a: Range, b: Range) -> Pair | None:
    if not tnum.overlap(a.tnum, b.tnum):
        return None
    both = make(
        tnum.intersect(a.tnum, b.tnum),
        max(a.umin, b.umin),
        min(a.umax, b.umax),
        max(a.smin, b.smin),
        min(a.smax, b.smax),
        max(a.u32min, b.u32min),
        min(a.u32max, b.u32max),
        max(a.s32min, b.s32min),
        min(a.s32max, b.s32max),
    )
    return None if both is None else (both, both)


def _equal32(a: Range, b: Range) -> Pair | None:
    low_a, low_b = tnum.cast(a.tnum, 4), tnum.cast(b.tnum, 4)
    if not tnum.overlap(low_a, low_b):
        return None
    value, mask = tnum.intersect(low_a, low_b)
    shared = (
        max(a.u32min, b.u32min),
        min(a.u32max, b.u32max),
        max(a.s32min, b.s32min),
        min(a.s32max, b.s32max),
    )
    if shared[0] > shared[1] or shared[2] > shared[3]:
        return None
    result = []
    for old in (a, b):
        bits = ((old.tnum[0] & ~U32) | value, (old.tnum[1] & ~U32) | mask)
        new = make(bits, old.umin, old.umax, old.smin, old.smax, *shared)
        if new is None:
            return None
        result.append(new)
    return result[0], result[1]


def _unequal(a: Range, b: Range, *, is32: bool) -> Pair | None:
    if is32:
        known_a, known_b = a.const32, b.const32
    else:
        known_a = a.value if a.is_const else None
        known_b = b.value if b.is_const else None
    if known_b is not None:
        new = _without(a, known_b, is32=is32)
        return None if new is None else (new, b)
    if known_a is not None:
        new = _without(b, known_a, is32=is32)
        return None if new is None else (a, new)
    return a, b


def _without(a: Range, value: int, *, is32: bool) -> Range | None:
    """A range whose ends are not ``value``: only the ends of a range can express that."""
    views = a.views()
    base = 4 if is32 else 0
    ends = (value, signed32(value) if is32 else signed(value))
    changed = False
    for view, end in enumerate(ends):
        low = base + 2 * view
        if views[low] == end:
            views[low] += 1
            changed = True
        if views[low + 1] == end:
            views[low + 1] -= 1
            changed = True
        if views[low] > views[low + 1]:
            return None
    return make(a.tnum, *views) if changed and not a.is_const else a


def _test_bits(a: Range, b: Range, *, is32: bool) -> tuple[Pair | None, Pair | None]:
    """JSET: a & b, with a known mask in b (the compiler's form)."""
    known = b.const32 if is32 else (b.value if b.is_const else None)
    if known is None:
        return (a, b), (a, b)
    value, mask = a.tnum
    if value & known:
        return (a, b), None
    if not (value | mask) & known:
        return None, (a, b)
    taken: Range | None = a
    if known & (known - 1) == 0:
        taken = make((value | known, mask & ~known), *a.views())
    clear = make((value & ~known & U64, mask & ~known), *a.views())
    return (None if taken is None else (taken, b)), (None if clear is None else (clear, b))
