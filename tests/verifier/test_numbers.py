"""The numeric domain is sound: results of members are members. Exhaustive for small tnums, random for the rest."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userbpf.isa.opcodes import (
    BPF_ADD,
    BPF_AND,
    BPF_ARSH,
    BPF_DIV,
    BPF_JSET,
    BPF_LSH,
    BPF_MOD,
    BPF_MUL,
    BPF_OR,
    BPF_RSH,
    BPF_SUB,
    BPF_XOR,
)
from userbpf.verifier import bounds, compare, tnum, transfer
from userbpf.verifier.bounds import U32, U64, Range, signed, signed32

SMALL = [(value, mask) for mask in range(8) for value in range(8) if not value & mask]
EDGES = (0, 1, 1 << 7, 1 << 8, 1 << 15, 1 << 16, 1 << 31, 1 << 32, 1 << 33, 1 << 63, U32, U64)


def members(bits: tnum.Tnum) -> list[int]:
    value, mask = bits
    return [value | part for part in range(mask + 1) if part & ~mask == 0]


def in_tnum(bits: tnum.Tnum, value: int) -> bool:
    return value & U64 & ~bits[1] == bits[0]


@pytest.mark.parametrize(
    ("abstract", "concrete"),
    [
        (tnum.add, lambda a, b: a + b),
        (tnum.sub, lambda a, b: a - b),
        (tnum.and_, lambda a, b: a & b),
        (tnum.or_, lambda a, b: a | b),
        (tnum.xor, lambda a, b: a ^ b),
        (tnum.mul, lambda a, b: a * b),
    ],
    ids=["add", "sub", "and", "or", "xor", "mul"],
)
def test_tnum_operations_hold_all_results(
    abstract: Callable[[tnum.Tnum, tnum.Tnum], tnum.Tnum], concrete: Callable[[int, int], int]
) -> None:
    """Every pair of tnums of three bits, and the same high up, where sums carry out of 64 bits."""
    for a, b in itertools.product(SMALL, SMALL):
        for shift in (0, 61):
            wide_a, wide_b = tnum.lshift(a, shift), tnum.lshift(b, shift)
            result = abstract(wide_a, wide_b)
            assert not result[0] & result[1]
            for x, y in itertools.product(members(a), members(b)):
                assert in_tnum(result, concrete(x << shift, y << shift)), (a, b, x, y, result)


def test_tnum_add_and_sub_are_exact_on_small_numbers() -> None:
    """They are optimal (Vishwanathan et al., CGO 2022): no unknown bit that could be known."""
    for a, b in itertools.product(SMALL, SMALL):
        for abstract, sign in ((tnum.add, 1), (tnum.sub, -1)):
            results = [(x + sign * y) & U64 for x, y in itertools.product(members(a), members(b))]
            best = tnum.const(results[0])
            for value in results[1:]:
                best = tnum.union(best, tnum.const(value))
            assert abstract(a, b) == best


def test_tnum_sets() -> None:
    for a, b in itertools.product(SMALL, SMALL):
        left, right = set(members(a)), set(members(b))
        assert tnum.overlap(a, b) == bool(left & right)
        assert tnum.contains(a, b) == (right <= left)
        assert left | right <= set(members(tnum.union(a, b)))
        if left & right:
            assert set(members(tnum.intersect(a, b))) == left & right


def test_tnum_range_and_shifts() -> None:
    for low in range(20):
        for high in range(low, 20):
            assert all(in_tnum(tnum.range_(low, high), value) for value in range(low, high + 1))
    for a in SMALL:
        high = tnum.lshift(a, 61)
        for count in range(64):
            result = tnum.arshift(high, count, 64)
            assert all(in_tnum(result, signed(x << 61) >> count) for x in members(a))
    assert tnum.is_aligned((8, 16), 8)
    assert not tnum.is_aligned((8, 20), 8)


@st.composite
def number(draw: st.DrawFn) -> int:
    base = draw(st.sampled_from(EDGES))
    return (base + draw(st.integers(-20, 20))) & U64 if draw(st.booleans()) else draw(st.integers(0, U64))


@st.composite
def numbers(draw: st.DrawFn) -> tuple[list[int], Range]:
    """Some values and a Range that holds them: the tightest one, or with some views unknown."""
    values = draw(st.lists(number(), min_size=1, max_size=3))
    bits = tnum.const(values[0])
    for value in values:
        bits = tnum.union(bits, tnum.const(value))
    s, low, s_low = [signed(v) for v in values], [v & U32 for v in values], [signed32(v) for v in values]
    views = [min(values), max(values), min(s), max(s), min(low), max(low), min(s_low), max(s_low)]
    for index, unknown in enumerate(bounds.UNKNOWN.views()):
        if draw(st.integers(0, 3)) == 0:
            views[index] = unknown
    made = bounds.make(bits if draw(st.booleans()) else tnum.UNKNOWN, *views)
    assert made is not None, "a Range of existing values is not empty"
    return values, made


CONCRETE: dict[int, Callable[[int, int], int]] = {
    BPF_ADD: lambda a, b: a + b,
    BPF_SUB: lambda a, b: a - b,
    BPF_MUL: lambda a, b: a * b,
    BPF_AND: lambda a, b: a & b,
    BPF_OR: lambda a, b: a | b,
    BPF_XOR: lambda a, b: a ^ b,
    BPF_DIV: lambda a, b: a // b if b else 0,
    BPF_MOD: lambda a, b: a % b if b else a,
}


@settings(max_examples=400, deadline=None, derandomize=True)
@given(a=numbers(), b=numbers(), is32=st.booleans(), op=st.sampled_from(sorted(CONCRETE)))
def test_arithmetic_holds_all_results(
    a: tuple[list[int], Range], b: tuple[list[int], Range], is32: bool, op: int
) -> None:
    mask = U32 if is32 else U64
    result = transfer.alu(op, a[1], b[1], is32=is32)
    for x, y in itertools.product(a[0], b[0]):
        assert a[1].holds(x)
        assert result.holds(CONCRETE[op](x & mask, y & mask) & mask)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(a=numbers(), count=st.integers(0, 63), is32=st.booleans(), op=st.sampled_from((BPF_LSH, BPF_RSH, BPF_ARSH)))
def test_shifts_hold_all_results(a: tuple[list[int], Range], count: int, is32: bool, op: int) -> None:
    mask = U32 if is32 else U64
    count &= 31 if is32 else 63
    result = transfer.alu(op, a[1], bounds.const(count), is32=is32)
    for value in a[0]:
        x = value & mask
        shifted = {
            BPF_LSH: x << count,
            BPF_RSH: x >> count,
            BPF_ARSH: (signed32(x) if is32 else signed(x)) >> count,
        }[op]
        assert result.holds(shifted & mask)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(a=numbers(), size=st.sampled_from((1, 2, 4)))
def test_truncation_and_extension_hold_all_results(a: tuple[list[int], Range], size: int) -> None:
    sign = 1 << (8 * size - 1)
    for value in a[0]:
        low = value & ((1 << 8 * size) - 1)
        assert bounds.trunc(a[1], size).holds(low)
        assert bounds.sext(a[1], size).holds((low ^ sign) - sign)
        assert transfer.neg(a[1]).holds(-value)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(a=numbers(), b=numbers(), is32=st.booleans(), op=st.sampled_from((*sorted(compare.INVERSE), BPF_JSET)))
def test_branches_keep_all_values_that_take_them(
    a: tuple[list[int], Range], b: tuple[list[int], Range], is32: bool, op: int
) -> None:
    taken, skipped = compare.outcomes(op, a[1], b[1], is32=is32)
    for x, y in itertools.product(a[0], b[0]):
        way = taken if compare.holds(op, x, y, is32=is32) else skipped
        assert way is not None, "an outcome that happens was called impossible"
        assert way[0].holds(x)
        assert way[1].holds(y)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(a=numbers(), b=numbers())
def test_within_means_that_all_values_are_held(a: tuple[list[int], Range], b: tuple[list[int], Range]) -> None:
    assert bounds.within(a[1], a[1])
    assert bounds.within(bounds.UNKNOWN, a[1])
    if bounds.within(a[1], b[1]):
        assert all(a[1].holds(value) for value in b[0])


def test_ranges_read_well() -> None:
    assert str(bounds.const(5)) == "5"
    assert str(bounds.of_unsigned(0, 63)) == "0 … 63"
    assert str(bounds.UNKNOWN) == "any value"
    assert str(bounds.of_tnum((0, 0x38))) == "0 … 56 in steps of 8"
