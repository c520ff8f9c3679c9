"""When a path may end because a state like it was walked before (states_equal in kernel/bpf/verifier.c).

A stored state whose paths are all finished covers the current one when every concrete state of the current one
is, in all that later instructions look at, a concrete state of the stored one. What they look at is known by
then: live registers (:mod:`.cfg`), stack slots read, numbers marked precise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .bounds import within
from .facts import Kind
from .state import INVALID, MISC, SPILL, ZERO, Reg, Slot, State

if TYPE_CHECKING:
    from .cfg import Shape

__all__ = ["covers", "same"]

_CALLER_SAVED = 0x3F


class _Ids:
    """Correspondence of ids: equal ids of the old state must be equal ids in the new one."""

    __slots__ = ("_fresh", "_known")

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._fresh = 0

    def match(self, old: int, new: int) -> bool:
        if not old:
            return True
        if not new:
            # The new one is linked to nothing: it gets a name of its own.
            self._fresh -= 1
            new = self._fresh
        return self._known.setdefault(old, new) == new


def _reg_covers(old: Reg, new: Reg, ids: _Ids, *, precise: bool) -> bool:
    """regsafe()."""
    if old is new and not old.id and not old.ref:
        return True
    kind = old.kind
    if kind is Kind.NONE:
        return True
    if kind is not new.kind:
        return False
    if kind is Kind.SCALAR:
        if not precise:
            return True
        return within(old.rng, new.rng) and (not old.id or (old.delta == new.delta and ids.match(old.id, new.id)))
    if old.off != new.off or old.null != new.null or old.map != new.map or old.size != new.size:
        return False
    if old.frame != new.frame or old.insn != new.insn:
        return False
    if kind is Kind.MAP_VALUE or kind is Kind.MEM:
        return (
            within(old.rng, new.rng)
            and ids.match(old.id, new.id)
            and bool(old.ref) == bool(new.ref)
            and ids.match(old.ref, new.ref)
        )
    return old.rng == new.rng


def _reg_same(old: Reg, new: Reg, ids: _Ids) -> bool:
    return old is new or (
        old.same_shape(new)
        and old.delta == new.delta
        and bool(old.id) == bool(new.id)
        and ids.match(old.id, new.id)
        and bool(old.ref) == bool(new.ref)
        and ids.match(old.ref, new.ref)
    )


def _slot_covers(old: Slot, new: Slot | None, ids: _Ids, *, precise: bool) -> bool:
    """stacksafe() for one slot that is read later."""
    if old is new and (old.reg is None or not (old.reg.id or old.reg.ref)):
        return True
    new_types = new.types if new is not None else bytes(8)
    held = old.spilled
    loose = held is not None and held.kind is Kind.SCALAR and not precise
    for before, now in zip(old.types, new_types, strict=True):
        if before in (INVALID, now):
            continue
        if before == MISC and now != INVALID:
            continue
        if before == SPILL and loose and now in (MISC, ZERO):
            continue
        return False
    if held is None:
        return True
    other = new.spilled if new is not None else None
    if other is None:
        return loose
    return _reg_covers(held, other, ids, precise=precise)


def _comparable(old: State, new: State) -> bool:
    if len(old.frames) != len(new.frames) or len(old.refs) != len(new.refs):
        return False
    return all(a.callsite == b.callsite and a.subprog == b.subprog for a, b in zip(old.frames, new.frames, strict=True))


def _live(shape: Shape, state: State, number: int, pc: int) -> int:
    """Registers of a frame that are read later: of a caller, after the call returns."""
    if number == len(state.frames) - 1:
        return shape.live[pc]
    return shape.live[state.frames[number + 1].callsite] & ~_CALLER_SAVED


def covers(shape: Shape, old: State, new: State, pc: int) -> bool:
    """Whether the finished state ``old`` covers ``new`` at ``pc``."""
    if not _comparable(old, new):
        return False
    ids = _Ids()
    for number, (a, b) in enumerate(zip(old.frames, new.frames, strict=True)):
        live = _live(shape, new, number, pc)
        precise = old.precise_regs >> (16 * number)
        old_regs, new_regs = a.regs, b.regs
        for index in range(10):
            if live >> index & 1:
                one, other = old_regs[index], new_regs[index]
                if not _reg_covers(one, other, ids, precise=bool(precise >> index & 1)):
                    return False
        read = (old.read >> (64 * number)) & ((1 << 64) - 1)
        if read:
            precise = old.precise_slots >> (64 * number)
            for slot, held in a.stack.items():
                if read >> slot & 1 and not _slot_covers(
                    held, b.stack.get(slot), ids, precise=bool(precise >> slot & 1)
                ):
                    return False
    return all(ids.match(a[0], b[0]) for a, b in zip(old.refs, new.refs, strict=True))


def same(shape: Shape, old: State, new: State, pc: int) -> bool:
    """Whether the two are equal in every value: reached from itself, the walk would never end."""
    if not _comparable(old, new):
        return False
    ids = _Ids()
    for number, (a, b) in enumerate(zip(old.frames, new.frames, strict=True)):
        live = _live(shape, new, number, pc)
        for index in range(10):
            if live >> index & 1 and not _reg_same(a.regs[index], b.regs[index], ids):
                return False
        if a.stack.keys() != b.stack.keys():
            return False
        for slot, held in a.stack.items():
            other = b.stack[slot]
            if held is other:
                continue
            if held.types != other.types:
                return False
            if (held.reg is None) != (other.reg is None):
                return False
            if held.reg is not None and other.reg is not None and not _reg_same(held.reg, other.reg, ids):
                return False
    return all(ids.match(a[0], b[0]) for a, b in zip(old.refs, new.refs, strict=True))
