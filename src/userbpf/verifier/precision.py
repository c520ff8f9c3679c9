"""Which numbers matter: precision tracking (kernel/bpf/verifier.c, ``__mark_chain_precision``).

Two states that differ only in the value of a number are equal for pruning, unless some check relied on the
value. When a check does (an offset added to a pointer, a size, a branch whose outcome is known), the walk goes
back over the history and finds where the number came from; in every stored state on the way the registers and
spilled registers that it came from are marked. Marked numbers are compared by range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from userbpf.isa.opcodes import (
    BPF_ALU,
    BPF_ALU64,
    BPF_ATOMIC,
    BPF_CALL,
    BPF_CMPXCHG,
    BPF_END,
    BPF_EXIT,
    BPF_FETCH,
    BPF_JA,
    BPF_JMP,
    BPF_LD,
    BPF_LDX,
    BPF_MOV,
    BPF_NEG,
    BPF_PSEUDO_CALL,
    BPF_ST,
    BPF_STX,
    BPF_X,
)

from .facts import Kind
from .state import State

if TYPE_CHECKING:
    from .env import Env

__all__ = ["LINK_SHIFT", "mark", "mark_slot", "propagate"]

LINK_SHIFT: Final = 512
"""In a history note of linked registers: registers stand above this bit, stack slots below."""

_SLOTS: Final = (1 << 64) - 1
_REGS: Final = (1 << 16) - 1
_EVERYTHING: Final = (1 << LINK_SHIFT) - 1


class _Untraceable(Exception):
    """The origin is hidden (a pointer turned into a number): everything has to be precise."""


class _Trace:
    """Registers and slots, of all frames, whose origin is still sought while walking back."""

    __slots__ = ("env", "frame", "regs", "slots")

    def __init__(self, env: Env, frame: int, regs: int, slots: int) -> None:
        self.env = env
        self.frame = frame
        self.regs = regs
        self.slots = slots

    def back(self, index: int, note: int) -> None:
        """Undo one instruction."""
        if note < 0:
            self._link(-note)
        op, dst, src, _, imm = self.env.insns[index]
        cls = op & 7
        if cls in (BPF_ALU64, BPF_ALU):
            self._alu(op & 0xF0, dst, src if op & BPF_X else -1)
        elif cls == BPF_LDX:
            self._load(dst, note)
        elif cls in (BPF_STX, BPF_ST):
            self._store(op, dst, src, imm, note)
        elif cls == BPF_LD:
            self.regs &= ~(1 << (16 * self.frame + dst))
        else:
            self._jump(op, dst, src)
        if note < 0:
            self._link(-note)

    def _link(self, linked: int) -> None:
        regs, slots = linked >> LINK_SHIFT, linked & _EVERYTHING
        if self.regs & regs or self.slots & slots:
            self.regs |= regs
            self.slots |= slots

    def _alu(self, op: int, dst: int, src: int) -> None:
        base = 16 * self.frame
        bit = 1 << (base + dst)
        if not self.regs & bit or op in (BPF_NEG, BPF_END):
            return
        if op == BPF_MOV:
            self.regs &= ~bit
        if 0 <= src < 10:
            self.regs |= 1 << (base + src)

    def _load(self, dst: int, note: int) -> None:
        bit = 1 << (16 * self.frame + dst)
        if self.regs & bit:
            self.regs &= ~bit
            if note > 0:
                self.slots |= note

    def _store(self, op: int, dst: int, src: int, imm: int, note: int) -> None:
        base = 16 * self.frame
        if op & 0xE0 == BPF_ATOMIC:
            if imm & BPF_FETCH:
                self.regs &= ~(1 << (base + (0 if imm == BPF_CMPXCHG else src)))
            return
        if self.regs & (1 << (base + dst)):
            raise _Untraceable
        if note > 0 and self.slots & note:
            self.slots &= ~note
            if op & 7 == BPF_STX:
                self.regs |= 1 << (base + src)

    def _jump(self, op: int, dst: int, src: int) -> None:
        base = 16 * self.frame
        kind = op & 0xF0
        if kind == BPF_CALL and op & 7 == BPF_JMP:
            if src != BPF_PSEUDO_CALL:
                self.regs &= ~(0x3F << base)
                return
            # Leaving the callee at its entry: what is sought in its r1 … r5 are the caller's.
            args = (self.regs >> base) & 0x3E
            self.regs &= (1 << base) - 1
            self.slots &= (1 << (64 * self.frame)) - 1
            self.frame -= 1
            self.regs |= args << (base - 16)
        elif kind == BPF_EXIT and op & 7 == BPF_JMP:
            # Entering the callee at its end: the caller's r0 is the callee's; r1 … r5 were clobbered.
            wanted = (self.regs >> base) & 1
            self.regs &= ~(0x3F << base)
            self.frame += 1
            self.regs |= wanted << (base + 16)
        elif kind != BPF_JA and op & BPF_X:
            both = 1 << (base + dst) | 1 << (base + src)
            if self.regs & both:
                self.regs |= both

    def settle(self, state: State) -> None:
        """Mark in a stored state what is a number there and not yet marked; the rest needs no more seeking."""
        wanted, found = self.regs & ~state.precise_regs, 0
        for number, frame in enumerate(state.frames):
            bits = (wanted >> (16 * number)) & _REGS
            while bits:
                low = bits & -bits
                bits ^= low
                if frame.regs[low.bit_length() - 1].kind is Kind.SCALAR:
                    found |= low << (16 * number)
        self.regs = found
        wanted_slots, found_slots = self.slots & ~state.precise_slots, 0
        for number, frame in enumerate(state.frames):
            bits = (wanted_slots >> (64 * number)) & _SLOTS
            while bits:
                low = bits & -bits
                bits ^= low
                slot = frame.stack.get(low.bit_length() - 1)
                if slot is not None and slot.spilled is not None and slot.spilled.kind is Kind.SCALAR:
                    found_slots |= low << (64 * number)
        self.slots = found_slots
        state.precise_regs |= found
        state.precise_slots |= found_slots


def _chase(env: Env, frame: int, regs: int, slots: int) -> None:
    trace = _Trace(env, frame, regs, slots)
    state = env.state
    node, parent = state.history, state.parent
    try:
        while trace.regs or trace.slots:
            stop = parent.history if parent is not None else None
            while node is not stop and node is not None:
                trace.back(node[1], node[2])
                if not trace.regs and not trace.slots:
                    return
                node = node[0]
            if parent is None:
                return
            trace.settle(parent)
            parent = parent.parent
    except _Untraceable:
        _mark_all(state)


def _mark_all(state: State) -> None:
    parent = state.parent
    while parent is not None:
        parent.precise_regs = parent.precise_slots = _EVERYTHING
        parent = parent.parent


def mark(env: Env, number: int) -> None:
    """A check relies on the value of this register, now."""
    if env.regs[number].kind is Kind.SCALAR:
        frame = env.depth
        _chase(env, frame, 1 << (16 * frame + number), 0)


def mark_slot(env: Env, slots: int) -> None:
    """A check relies on the values of these spilled registers, now."""
    _chase(env, env.depth, 0, slots)


def propagate(env: Env, old: State) -> None:
    """The path ends here in a state that was walked before: what mattered there matters here."""
    regs = slots = 0
    for number, frame in enumerate(old.frames):
        for reg in range(10):
            if old.precise_regs >> (16 * number + reg) & 1 and frame.regs[reg].kind is Kind.SCALAR:
                regs |= 1 << (16 * number + reg)
        for slot, held in frame.stack.items():
            bit = 1 << (64 * number + slot)
            if old.precise_slots & old.read & bit and held.spilled is not None and held.spilled.kind is Kind.SCALAR:
                slots |= bit
    if regs or slots:
        _chase(env, env.depth, regs, slots)
