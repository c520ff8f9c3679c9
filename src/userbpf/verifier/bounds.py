"""Ranges of scalars: a tnum with unsigned and signed bounds, of the 64-bit value and of its low 32 bits.

A :class:`Range` never changes after it was made, so states share it freely. Every constructor here ends in
:func:`make`, which applies the kernel's deduction rules (kernel/bpf/verifier.c: ``reg_bounds_sync`` with
``__update_reg_bounds``, ``__reg32_deduce_bounds``, ``__reg64_deduce_bounds``, ``__reg_deduce_mixed_bounds``,
``__reg_bound_offset``): each of the five views tightens the others.

``make`` returns None when the views exclude each other: no concrete value is left. That happens only when a
branch condition is assumed that cannot hold, and says that the branch is dead.
"""

from __future__ import annotations

from . import tnum
from .tnum import Tnum

__all__ = [
    "S32_MAX",
    "S32_MIN",
    "S64_MAX",
    "S64_MIN",
    "U32",
    "U64",
    "UNKNOWN",
    "ZERO",
    "Range",
    "const",
    "make",
    "of_tnum",
    "of_unsigned",
    "settle",
    "sext",
    "signed",
    "signed32",
    "trunc",
    "within",
    "zext32",
]

U64 = (1 << 64) - 1
U32 = (1 << 32) - 1
S64_MIN, S64_MAX = -(1 << 63), (1 << 63) - 1
S32_MIN, S32_MAX = -(1 << 31), (1 << 31) - 1
_SIGN64 = 1 << 63
_SIGN32 = 1 << 31


def signed(value: int) -> int:
    """The low 64 bits as a signed number."""
    return ((value & U64) ^ _SIGN64) - _SIGN64


def signed32(value: int) -> int:
    """The low 32 bits as a signed number."""
    return ((value & U32) ^ _SIGN32) - _SIGN32


class Range:
    """What is known of a 64-bit number. Immutable; made by :func:`make` and :func:`const`."""

    __slots__ = ("s32max", "s32min", "smax", "smin", "tnum", "u32max", "u32min", "umax", "umin")

    def __init__(
        self,
        bits: Tnum,
        umin: int,
        umax: int,
        smin: int,
        smax: int,
        u32min: int,
        u32max: int,
        s32min: int,
        s32max: int,
    ) -> None:
        self.tnum = bits
        self.umin = umin
        self.umax = umax
        self.smin = smin
        self.smax = smax
        self.u32min = u32min
        self.u32max = u32max
        self.s32min = s32min
        self.s32max = s32max

    @property
    def is_const(self) -> bool:
        return not self.tnum[1]

    @property
    def value(self) -> int:
        """The unsigned value; only of a constant."""
        return self.tnum[0]

    @property
    def const32(self) -> int | None:
        """The value of the low 32 bits when they are known."""
        return self.tnum[0] & U32 if not self.tnum[1] & U32 else None

    def key(self) -> tuple[Tnum, int, int, int, int, int, int, int, int]:
        return (
            self.tnum,
            self.umin,
            self.umax,
            self.smin,
            self.smax,
            self.u32min,
            self.u32max,
            self.s32min,
            self.s32max,
        )

    def views(self) -> list[int]:
        """The eight bounds, in the order that :func:`make` takes them."""
        return [self.umin, self.umax, self.smin, self.smax, self.u32min, self.u32max, self.s32min, self.s32max]

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Range) and self.key() == other.key())

    def __hash__(self) -> int:
        return hash(self.key())

    def holds(self, value: int) -> bool:
        """Whether the concrete 64-bit value is one of these: the meaning of a Range, for tests."""
        value &= U64
        low = value & U32
        bits, mask = self.tnum
        return (
            value & ~mask & U64 == bits
            and self.umin <= value <= self.umax
            and self.smin <= signed(value) <= self.smax
            and self.u32min <= low <= self.u32max
            and self.s32min <= signed32(low) <= self.s32max
        )

    def fits(
        self, umin: int, umax: int, smin: int, smax: int, u32min: int, u32max: int, s32min: int, s32max: int
    ) -> bool:
        """Whether this constant lies in every one of the given views."""
        return (
            umin <= self.umin <= umax
            and smin <= self.smin <= smax
            and u32min <= self.u32min <= u32max
            and s32min <= self.s32min <= s32max
        )

    def __str__(self) -> str:
        if self.is_const:
            return _number(signed(self.value))
        if self.umin == 0 and self.umax == U64:
            return "any value" if self.smin == S64_MIN else f"{_number(self.smin)} … {_number(self.smax)}"
        if self.smin < 0:
            return f"{_number(self.smin)} … {_number(self.smax)}"
        step = (self.tnum[0] | self.tnum[1]) & -(self.tnum[0] | self.tnum[1])
        text = f"{_number(self.umin)} … {_number(self.umax)}"
        return f"{text} in steps of {step}" if step > 1 else text

    def __repr__(self) -> str:
        return f"Range({self.key()})"


def _number(value: int) -> str:
    return str(value) if abs(value) < 1 << 20 else f"{value:#x}"


def make(
    bits: Tnum,
    umin: int,
    umax: int,
    smin: int,
    smax: int,
    u32min: int,
    u32max: int,
    s32min: int,
    s32max: int,
) -> Range | None:
    """The tightest Range for the given views, None when they contradict each other."""
    value, mask = bits
    if not mask:
        known = const(value)
        return known if known.fits(umin, umax, smin, smax, u32min, u32max, s32min, s32max) else None
    # __update_reg_bounds: the numbers a tnum can make
    umin, umax, smin, smax, u32min, u32max, s32min, s32max = _from_bits(
        value, mask, umin, umax, smin, smax, u32min, u32max, s32min, s32max
    )
    for _ in range(2):
        before = (umin, umax, smin, smax, u32min, u32max, s32min, s32max)
        u32min, u32max, s32min, s32max = _deduce32(umin, umax, smin, smax, u32min, u32max, s32min, s32max)
        umin, umax, smin, smax = _deduce64(umin, umax, smin, smax)
        umin, umax, smin, smax = _deduce_mixed(umin, umax, smin, smax, u32min, u32max, s32min, s32max)
        if before == (umin, umax, smin, smax, u32min, u32max, s32min, s32max):
            break
    if umin > umax or smin > smax or u32min > u32max or s32min > s32max:
        return None
    # __reg_bound_offset: the bits that all numbers of the ranges share
    wide = tnum.range_(umin, umax)
    if not tnum.overlap(bits, wide):
        return None
    value, mask = tnum.intersect(bits, wide)
    narrow = tnum.range_(u32min, u32max)
    low = (value & U32, mask & U32)
    if not tnum.overlap(low, narrow):
        return None
    low = tnum.intersect(low, narrow)
    value, mask = (value & ~U32) | low[0], (mask & ~U32) | low[1]
    umin, umax, smin, smax, u32min, u32max, s32min, s32max = _from_bits(
        value, mask, umin, umax, smin, smax, u32min, u32max, s32min, s32max
    )
    if umin > umax or smin > smax or u32min > u32max or s32min > s32max:
        return None
    if not mask:
        return const(value)
    return Range((value, mask), umin, umax, smin, smax, u32min, u32max, s32min, s32max)


_Views = tuple[int, int, int, int, int, int, int, int]


def _from_bits(
    value: int,
    mask: int,
    umin: int,
    umax: int,
    smin: int,
    smax: int,
    u32min: int,
    u32max: int,
    s32min: int,
    s32max: int,
) -> _Views:
    most = value | mask
    if value > umin:
        umin = value
    if most < umax:
        umax = most
    low = signed(value | (mask & _SIGN64))
    if low > smin:
        smin = low
    high = signed(value | (mask & ~_SIGN64))
    if high < smax:
        smax = high
    value &= U32
    mask &= U32
    most = value | mask
    if value > u32min:
        u32min = value
    if most < u32max:
        u32max = most
    low = signed32(value | (mask & _SIGN32))
    if low > s32min:
        s32min = low
    high = signed32(value | (mask & ~_SIGN32))
    if high < s32max:
        s32max = high
    return umin, umax, smin, smax, u32min, u32max, s32min, s32max


def _deduce32(
    umin: int, umax: int, smin: int, smax: int, u32min: int, u32max: int, s32min: int, s32max: int
) -> tuple[int, int, int, int]:
    """__reg32_deduce_bounds: what the 64-bit ranges say of the low half, and its two views of each other."""
    for low, high in ((umin, umax), (smin, smax)):
        low_s, high_s = signed32(low), signed32(high)
        if low >> 32 == high >> 32:
            low_u, high_u = low & U32, high & U32
            if low_u <= high_u:
                u32min, u32max = max(u32min, low_u), min(u32max, high_u)
            if low_s <= high_s:
                s32min, s32max = max(s32min, low_s), min(s32max, high_s)
        elif 0 <= high - low <= U32 and low_s < 0 <= high_s:
            # The upper half takes two neighbouring values: the low half runs from negative to positive.
            s32min, s32max = max(s32min, low_s), min(s32max, high_s)
    if signed32(u32min) <= signed32(u32max):
        s32min, s32max = max(s32min, signed32(u32min)), min(s32max, signed32(u32max))
    if s32min & U32 <= s32max & U32:
        u32min, u32max = max(u32min, s32min & U32), min(u32max, s32max & U32)
    return u32min, u32max, s32min, s32max


def _deduce64(umin: int, umax: int, smin: int, smax: int) -> tuple[int, int, int, int]:
    """__reg64_deduce_bounds."""
    if signed(umin) <= signed(umax):
        smin, smax = max(smin, signed(umin)), min(smax, signed(umax))
    if smin & U64 <= smax & U64:
        umin, umax = max(umin, smin & U64), min(umax, smax & U64)
    elif umax < smin & U64:
        # The signed range wraps in unsigned order; the unsigned one meets only its non-negative end.
        smin, umax = max(smin, 0), min(umax, smax & U64)
    elif smax & U64 < umin:
        smax, umin = min(smax, -1), max(umin, smin & U64)
    return umin, umax, smin, smax


def _deduce_mixed(
    umin: int, umax: int, smin: int, smax: int, u32min: int, u32max: int, s32min: int, s32max: int
) -> tuple[int, int, int, int]:
    """__reg_deduce_mixed_bounds: what the low half says of the whole."""
    umin = max(umin, (umin & ~U32) | u32min)
    umax = min(umax, (umax & ~U32) | u32max)
    smin = max(smin, (smin & ~U32) | u32min)
    smax = min(smax, (smax & ~U32) | u32max)
    if s32min >= 0 and smin >= S32_MIN and smax <= S32_MAX:
        umin, umax = max(umin, s32min), min(umax, s32max)
        smin, smax = max(smin, s32min), min(smax, s32max)
    return umin, umax, smin, smax


_consts: dict[int, Range] = {}


def const(value: int) -> Range:
    """The Range of one number (signed or unsigned)."""
    value &= U64
    known = _consts.get(value)
    if known is None:
        s, low = signed(value), value & U32
        low_s = signed32(low)
        known = Range((value, 0), value, value, s, s, low, low, low_s, low_s)
        if len(_consts) < 65536:
            _consts[value] = known
    return known


UNKNOWN = Range(tnum.UNKNOWN, 0, U64, S64_MIN, S64_MAX, 0, U32, S32_MIN, S32_MAX)
ZERO = const(0)


def settle(found: Range | None) -> Range:
    """For transfer functions: their views come from one non-empty set and cannot contradict each other.

    Should they (a rule that is not exact enough, as the kernel's own ``reg_bounds_sanity_check`` provides for),
    nothing is known.
    """
    return UNKNOWN if found is None else found


def of_tnum(bits: Tnum) -> Range:
    """All that is known are the bits."""
    return settle(make(bits, 0, U64, S64_MIN, S64_MAX, 0, U32, S32_MIN, S32_MAX))


def of_unsigned(low: int, high: int) -> Range:
    """All that is known is an unsigned range."""
    return settle(make(tnum.UNKNOWN, low, high, S64_MIN, S64_MAX, 0, U32, S32_MIN, S32_MAX))


_ANY_ZEXT = {size: of_unsigned(0, (1 << 8 * size) - 1) for size in (1, 2, 4)}


def trunc(a: Range, size: int) -> Range:
    """The low ``size`` bytes (1, 2, 4, 8), zero-extended (``coerce_reg_to_size``)."""
    if size == 8:
        return a
    limit = (1 << (8 * size)) - 1
    if a.umax <= limit:
        return a
    bits = tnum.cast(a.tnum, size)
    if not bits[1]:
        return const(bits[0])
    if a is UNKNOWN:
        return _ANY_ZEXT[size]
    low, high = 0, limit
    if a.umin & ~limit == a.umax & ~limit:
        low, high = a.umin & limit, a.umax & limit
    if size == 4:
        return settle(make(bits, low, high, low, high, a.u32min, a.u32max, a.s32min, a.s32max))
    if a.u32min & ~limit == a.u32max & ~limit:
        low, high = max(low, a.u32min & limit), min(high, a.u32max & limit)
    return settle(make(bits, low, high, low, high, 0, U32, S32_MIN, S32_MAX))


def zext32(a: Range) -> Range:
    """The low 32 bits, zero-extended: the result of every 32-bit operation (RFC 9669 section 4.1)."""
    return trunc(a, 4)


def sext(a: Range, size: int) -> Range:
    """The low ``size`` bytes (1, 2, 4), sign-extended to 64 bits (``coerce_reg_to_size_sx``)."""
    bits = 8 * size
    sign = 1 << (bits - 1)
    limit = (1 << bits) - 1
    value, mask = a.tnum[0] & limit, a.tnum[1] & limit
    if not mask:
        return const((value ^ sign) - sign)
    known_sign = not mask & sign
    extended: Tnum = (((value ^ sign) - sign) & U64, mask) if known_sign else (value, mask | (U64 & ~limit))
    low, high = -sign, sign - 1
    if size == 4:
        low, high = a.s32min, a.s32max
    elif a.smin >= low and a.smax <= high:
        low, high = a.smin, a.smax
    elif a.smin >> bits == a.smax >> bits:
        first, last = ((a.smin & limit) ^ sign) - sign, ((a.smax & limit) ^ sign) - sign
        if first <= last:
            low, high = first, last
    return settle(make(extended, 0, U64, low, high, 0, U32, S32_MIN, S32_MAX))


def within(old: Range, new: Range) -> bool:
    """Whether every value of new is one of old (``range_within`` and ``tnum_in``)."""
    return old is new or (
        old.umin <= new.umin
        and old.umax >= new.umax
        and old.smin <= new.smin
        and old.smax >= new.smax
        and old.u32min <= new.u32min
        and old.u32max >= new.u32max
        and old.s32min <= new.s32min
        and old.s32max >= new.s32max
        and tnum.contains(old.tnum, new.tnum)
    )
