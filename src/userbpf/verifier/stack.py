"""The stack: spills and fills, plain bytes, variable offsets, and memory handed to helpers.

Rules of kernel/bpf/verifier.c (check_stack_read/write_fixed_off, _var_off, check_stack_range_initialized) as for
a program with CAP_PERFMON, with two differences. A helper may read initialised bytes only (as all kernels before
6.3). And a plain load of bytes that were never written is allowed, as in Linux, but recorded: the frame is then
zeroed at entry, so that the value is defined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import precision
from .alu import MAX_OFFSET
from .diagnosis import Reject
from .facts import Kind
from .state import (
    EMPTY_SLOT,
    INVALID,
    MISC,
    MISC_SLOT,
    SPILL,
    UNKNOWN_SCALAR,
    ZERO,
    ZERO_SCALAR,
    Reg,
    Slot,
    slot_bit,
    slot_byte,
)

if TYPE_CHECKING:
    from .env import Env

__all__ = ["check_helper", "load", "store"]


def _span(env: Env, pointer: Reg, off: int, size: int, number: int, what: str) -> tuple[int, int]:
    """First byte and the one behind the last that an access can touch, inside the frame."""
    rng = pointer.rng
    if rng.smin <= -MAX_OFFSET or rng.smax >= MAX_OFFSET:
        raise Reject(
            "stack-bounds",
            f"the {what} goes to the stack at an unbounded offset",
            known=(f"r{number} is {pointer.describe()}",),
            reg=number,
        )
    low = pointer.off + off + rng.smin
    high = pointer.off + off + rng.smax + size
    limit = env.limits.frame_bytes
    if low < -limit or high > 0:
        where = f"offset {low}" if rng.is_const else f"offsets {low} … {high - size}"
        side = "above" if high > 0 else "below"
        raise Reject(
            "stack-bounds",
            f"the {what} of {size} byte{'s' if size != 1 else ''} at {where} from the frame's top lies {side} the "
            f"stack frame, which is -{limit} … -1",
            known=(f"r{number} is {pointer.describe()}",),
            reg=number,
        )
    if high > low:
        env.facts.frame_bytes(env.state.frames[pointer.frame].subprog, -low)
    return low, high


def _aligned(pointer: Reg, off: int, size: int, number: int) -> None:
    """Loads and stores of the stack are aligned, so that slots can be followed (check_ptr_alignment)."""
    value, mask = pointer.rng.tnum
    if ((value + pointer.off + off) | mask) & (size - 1):
        raise Reject(
            "stack-unaligned",
            f"{size} bytes of the stack are accessed at an offset that is not a multiple of {size}",
            known=(f"r{number} is {pointer.describe()}",),
            reg=number,
        )


def load(env: Env, pointer: Reg, off: int, size: int, number: int) -> Reg:
    """What a read gives, not yet cut to ``size``."""
    _aligned(pointer, off, size, number)
    low, high = _span(env, pointer, off, size, number, "read")
    frame = env.state.frames[pointer.frame]
    if not pointer.rng.is_const:
        kinds = _bytes(env, pointer.frame, low, high)
        if INVALID in kinds:
            env.facts.zero_stack[frame.subprog] = True
        return ZERO_SCALAR if kinds == {ZERO} else UNKNOWN_SCALAR
    index, byte = slot_byte(low)
    bit = slot_bit(pointer.frame, index)
    env.state.mark_read(bit)
    slot = frame.stack.get(index, EMPTY_SLOT)
    held = slot.spilled
    if held is not None:
        spilled = slot.spill_size
        if size == 8 and spilled == 8:
            env.note = bit
            if held.id == 0 and held.kind is Kind.SCALAR and not held.rng.is_const:
                held = Reg(Kind.SCALAR, held.rng, id=env.new_id())
                frame.stack[index] = Slot(slot.types, held)
            return held
        if held.is_pointer:
            raise Reject(
                "stack-unaligned",
                f"{size} bytes are read from a stack slot that holds {held.describe()}: a pointer is read whole",
                reg=number,
            )
        if byte == 0 and size <= spilled:
            env.note = bit
            return held if held.rng.umax < 1 << (8 * size) else Reg(Kind.SCALAR, held.rng)
        if slot.types[byte : byte + size] == bytes([SPILL]) * size and held.is_zero:
            env.note = bit
            return ZERO_SCALAR
    types = slot.types[byte : byte + size]
    if INVALID in types:
        env.facts.zero_stack[frame.subprog] = True
    return ZERO_SCALAR if types.count(ZERO) == size else UNKNOWN_SCALAR


def _bytes(env: Env, frame: int, low: int, high: int) -> set[int]:
    """Types of the bytes of a range; they count as read, and numbers spilled there as unknown bytes."""
    stack = env.state.frames[frame].stack
    kinds: set[int] = set()
    marked = 0
    for offset in range(low, high):
        index, byte = slot_byte(offset)
        marked |= slot_bit(frame, index)
        kinds.add(stack.get(index, EMPTY_SLOT).types[byte])
    env.state.mark_read(marked)
    return kinds


def store(env: Env, pointer: Reg, off: int, size: int, number: int, value: Reg, source: int) -> None:
    """A write of a register (``source``: its number) or of a constant (``source`` -1)."""
    _aligned(pointer, off, size, number)
    low, high = _span(env, pointer, off, size, number, "write")
    if value.kind is Kind.STACK and pointer.frame != env.depth:
        raise Reject(
            "stack-bounds",
            f"r{source}, a pointer to this function's stack, is stored in the frame of a caller, which outlives it",
            reg=source,
        )
    if not pointer.rng.is_const:
        _store_variable(env, pointer.frame, low, high, value, source)
        return
    frame = env.state.frames[pointer.frame]
    index, byte = slot_byte(low)
    bit = slot_bit(pointer.frame, index)
    old = frame.stack.get(index, EMPTY_SLOT)
    types = bytearray(old.scrubbed())
    if value.kind is Kind.SCALAR and byte == 0:
        if source >= 0 and value.rng.umax < 1 << (8 * size):
            value = env.linkable(source)
        elif value.id:
            value = Reg(Kind.SCALAR, value.rng)
        types[:size] = bytes([SPILL]) * size
        frame.stack[index] = Slot(bytes(types), value)
        env.note = bit
    elif value.is_pointer:
        if size != 8:
            raise Reject(
                "stack-unaligned",
                f"{size} bytes of r{source}, {value.describe()}, are stored: a pointer is stored whole",
                reg=source,
            )
        frame.stack[index] = Slot(bytes([SPILL]) * 8, value)
        env.note = bit
    else:
        if value.is_zero and source >= 0:
            precision.mark(env, source)
        types[byte : byte + size] = bytes([ZERO if value.is_zero else MISC]) * size
        frame.stack[index] = Slot(bytes(types))
    if size == 8:
        env.state.written |= bit


def _store_variable(env: Env, frame: int, low: int, high: int, value: Reg, source: int) -> None:
    """The write goes to some bytes of the range: each may have changed, none is surely initialised."""
    stack = env.state.frames[frame].stack
    kept_zero = False
    for offset in range(low, high):
        index, byte = slot_byte(offset)
        slot = stack.get(index)
        if slot is None:
            continue
        kind = slot.types[byte]
        if value.is_zero and (kind == ZERO or (kind == SPILL and slot.reg is not None and slot.reg.is_zero)):
            kept_zero = True
            if kind == SPILL:
                precision.mark_slot(env, slot_bit(frame, index))
            continue
        if kind == INVALID:
            continue
        types = bytearray(slot.scrubbed())
        types[byte] = MISC
        stack[index] = Slot(bytes(types))
    if kept_zero and source >= 0:
        precision.mark(env, source)


def check_helper(
    env: Env, pointer: Reg, sizes: tuple[int, int], number: int, *, reads: bool, writes: bool, partial: bool
) -> None:
    """Memory of a helper: ``sizes`` is its least and greatest size; ``partial``: it may fill less than it is given."""
    size = sizes[1]
    low, high = _span(env, pointer, 0, size, number, "write" if writes else "read")
    frame = env.state.frames[pointer.frame]
    if reads:
        for offset in range(low, high):
            index, byte = slot_byte(offset)
            if frame.stack.get(index, EMPTY_SLOT).types[byte] == INVALID:
                raise Reject(
                    "uninit-stack",
                    f"argument {number} of the call points to {size} bytes of the stack, and byte {offset - low} of "
                    f"them was never written",
                    known=(f"r{number} is {pointer.describe()}",),
                    reg=number,
                )
        _bytes(env, pointer.frame, low, high)
    if not writes:
        return
    exact = pointer.rng.is_const and sizes[0] == size
    for offset in range(low, high):
        index, byte = slot_byte(offset)
        slot = frame.stack.get(index, EMPTY_SLOT)
        kind = slot.types[byte]
        if kind == INVALID:
            if partial:
                env.facts.zero_stack[frame.subprog] = True
            if not exact:
                continue
        whole = exact and byte == 0 and offset + 8 <= high
        if whole:
            env.state.written |= slot_bit(pointer.frame, index)
            frame.stack[index] = MISC_SLOT
            continue
        types = bytearray(slot.scrubbed())
        types[byte] = MISC
        frame.stack[index] = Slot(bytes(types))
