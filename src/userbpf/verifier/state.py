"""The abstract machine: registers, stack slots, frames, and a state of all of them.

Registers and stack slots are never changed after they were made: an instruction puts new ones in their place. So
a branch copies lists and dictionaries of references, and stored states share everything with the walk.

Bit sets over all frames are plain integers: register r of frame f is bit ``16 * f + r``, stack slot s of frame f
is bit ``64 * f + s``. Slot s holds the bytes ``-8 * (s + 1)`` … ``-8 * s - 1`` from the frame's top.
"""

from __future__ import annotations

from typing import Final

from . import bounds
from .bounds import Range
from .facts import Kind

__all__ = [
    "FRAME_SLOTS",
    "INVALID",
    "MISC",
    "EMPTY_SLOT",
    "MISC_SLOT",
    "SPILL",
    "UNINIT",
    "UNKNOWN_SCALAR",
    "ZERO",
    "ZERO_SCALAR",
    "Frame",
    "History",
    "Reg",
    "Slot",
    "State",
    "const_scalar",
    "reg_bit",
    "scalar",
    "slot_bit",
    "slot_byte",
]

FRAME_SLOTS: Final = (1 << 64) - 1
"""All stack slots of frame 0."""


def reg_bit(frame: int, reg: int) -> int:
    return 1 << (16 * frame + reg)


def slot_bit(frame: int, slot: int) -> int:
    return 1 << (64 * frame + slot)


def slot_byte(offset: int) -> tuple[int, int]:
    """Slot and byte in it (0 is the lowest address) of a stack offset, which is negative."""
    return (-offset - 1) >> 3, offset & 7


class Reg:
    """What a register (or a spilled one) holds. Immutable.

    rng: the number; of a pointer, the variable part of its offset, and ``off`` the constant part.
    id: scalars with one id came from one value by moves, and differ by ``delta``; pointers that may be NULL and
    have one id are NULL together. null: may be 0 instead. ref: the reference that it owns, 0 none.
    map: index into the program's maps. size: bytes of MEM. frame: whose stack. insn: of FUNC, the entry.
    """

    __slots__ = ("delta", "frame", "id", "insn", "kind", "map", "null", "off", "ref", "rng", "size")

    def __init__(
        self,
        kind: Kind,
        rng: Range = bounds.ZERO,
        *,
        off: int = 0,
        id: int = 0,
        delta: int = 0,
        null: bool = False,
        ref: int = 0,
        map: int = -1,
        size: int = 0,
        frame: int = 0,
        insn: int = 0,
    ) -> None:
        self.kind = kind
        self.rng = rng
        self.off = off
        self.id = id
        self.delta = delta
        self.null = null
        self.ref = ref
        self.map = map
        self.size = size
        self.frame = frame
        self.insn = insn

    def moved(self, rng: Range, off: int) -> Reg:
        """The same pointer at another offset."""
        return self._copy(rng, off, self.id, self.null)

    def tested(self) -> Reg:
        """The same pointer, now known not to be NULL."""
        return self._copy(self.rng, self.off, 0, False)

    def _copy(self, rng: Range, off: int, id: int, null: bool) -> Reg:
        return Reg(
            self.kind,
            rng,
            off=off,
            id=id,
            null=null,
            ref=self.ref,
            map=self.map,
            size=self.size,
            frame=self.frame,
            insn=self.insn,
        )

    @property
    def is_pointer(self) -> bool:
        return self.kind is not Kind.SCALAR and self.kind is not Kind.NONE

    @property
    def is_zero(self) -> bool:
        return self.kind is Kind.SCALAR and self.rng.tnum == (0, 0)

    @property
    def offset(self) -> int | None:
        """The constant offset of a pointer, None when it varies."""
        return self.off + bounds.signed(self.rng.tnum[0]) if not self.rng.tnum[1] else None

    def same_shape(self, other: Reg) -> bool:
        """Equal in everything that has to be equal, ids (which are only names) left out."""
        return (
            self.kind is other.kind
            and self.off == other.off
            and self.null == other.null
            and self.map == other.map
            and self.size == other.size
            and self.frame == other.frame
            and self.insn == other.insn
            and (self.rng is other.rng or self.rng == other.rng)
        )

    def describe(self) -> str:
        """For people: what is known of the value."""
        if self.kind is Kind.SCALAR:
            return str(self.rng)
        if self.kind is Kind.NONE:
            return "never set"
        names = {
            Kind.CTX: "the context",
            Kind.STACK: "a pointer to the stack",
            Kind.MAP: "a map",
            Kind.MAP_VALUE: "a pointer to a map value",
            Kind.MEM: "a pointer to reserved memory",
            Kind.FUNC: "a function",
        }
        text = names[self.kind]
        if self.null:
            text += " or NULL"
        if self.kind in (Kind.MAP, Kind.FUNC) or (self.offset == 0 and self.kind is not Kind.STACK):
            return text
        if self.offset is not None:
            return f"{text} at offset {self.offset}"
        least, most = self.off + self.rng.smin, self.off + self.rng.smax
        if least < -(1 << 31) or most > 1 << 31:
            return f"{text} at an unbounded offset"
        return f"{text} at offset {least} … {most}"


UNINIT: Final = Reg(Kind.NONE)
UNKNOWN_SCALAR: Final = Reg(Kind.SCALAR, bounds.UNKNOWN)
ZERO_SCALAR: Final = Reg(Kind.SCALAR, bounds.ZERO)


def scalar(rng: Range) -> Reg:
    return UNKNOWN_SCALAR if rng is bounds.UNKNOWN else Reg(Kind.SCALAR, rng)


def const_scalar(value: int) -> Reg:
    return Reg(Kind.SCALAR, bounds.const(value))


# What a byte of stack holds (enum bpf_stack_slot_type).
INVALID: Final = 0
SPILL: Final = 1
MISC: Final = 2
ZERO: Final = 3


class Slot:
    """Eight bytes of stack. ``types[i]``: what byte i holds; ``reg``: the register whose low bytes are spilled."""

    __slots__ = ("reg", "types")

    def __init__(self, types: bytes, reg: Reg | None = None) -> None:
        self.types = types
        self.reg = reg

    @property
    def spilled(self) -> Reg | None:
        """The spilled register, when its first byte is still there."""
        return self.reg if self.types[0] == SPILL else None

    @property
    def spill_size(self) -> int:
        return self.types.count(SPILL)

    def scrubbed(self) -> bytes:
        """The bytes when the spilled register is no longer known (scrub_spilled_slot)."""
        return self.types.replace(b"\1", b"\2")


EMPTY_SLOT: Final = Slot(bytes(8))
MISC_SLOT: Final = Slot(bytes([MISC]) * 8)


class Frame:
    """One activation of a subprogram."""

    __slots__ = ("callsite", "regs", "stack", "subprog")

    def __init__(self, regs: list[Reg], subprog: int, callsite: int, stack: dict[int, Slot] | None = None) -> None:
        self.regs = regs
        self.subprog = subprog
        self.callsite = callsite
        self.stack: dict[int, Slot] = {} if stack is None else stack

    @classmethod
    def entered(cls, subprog: int, callsite: int, number: int) -> Frame:
        """A new frame: nothing is set but r10."""
        regs = [UNINIT] * 11
        regs[10] = Reg(Kind.STACK, frame=number)
        return cls(regs, subprog, callsite)

    def copy(self) -> Frame:
        return Frame(self.regs[:], self.subprog, self.callsite, self.stack.copy())


History = tuple["History | None", int, int]
"""The instructions walked, newest first: (rest, instruction, note).

note > 0: the stack slots read or written as whole registers, as a bit set. note < 0: ``-note`` is a bit set of
registers (shifted by the width of all frames' slots: registers above, slots below) whose ranges were refined
together by this jump. 0: nothing.
"""


class State:
    """Everything known at one point of one path.

    parent: the stored state that this path passed last. history: see above; it runs on past stored states.
    written: stack slots overwritten since ``parent``. branches: paths from here that are not finished.
    Stored states only: read: slots read later; precise_regs, precise_slots: numbers whose exact range some later
    check relied on.
    """

    __slots__ = (
        "branches",
        "frames",
        "history",
        "hits",
        "misses",
        "parent",
        "precise_regs",
        "precise_slots",
        "read",
        "refs",
        "written",
    )

    def __init__(
        self,
        frames: list[Frame],
        refs: tuple[tuple[int, int], ...] = (),
        parent: State | None = None,
        history: History | None = None,
        written: int = 0,
    ) -> None:
        self.frames = frames
        self.refs = refs
        self.parent = parent
        self.history = history
        self.written = written
        self.branches = 1
        self.read = 0
        self.precise_regs = 0
        self.precise_slots = 0
        self.hits = 0
        self.misses = 0

    def fork(self) -> State:
        """A copy that goes its own way from here."""
        return State([frame.copy() for frame in self.frames], self.refs, self.parent, self.history, self.written)

    def mark_read(self, slots: int) -> None:
        """Slots are read: every stored state on the way back to where they were written needs them.

        Liveness as in ``mark_reg_read`` of earlier kernels; a state's ``written`` screens its ancestors.
        """
        state = self
        while True:
            slots &= ~state.written
            parent = state.parent
            if parent is None:
                return
            slots &= ~parent.read
            if not slots:
                return
            parent.read |= slots
            state = parent
