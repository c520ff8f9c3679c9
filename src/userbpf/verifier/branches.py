"""Conditional jumps: which ways can be taken, and what each of them says of the registers compared.

Rules of kernel/bpf/verifier.c: check_cond_jmp_op, mark_ptr_or_null_regs, sync_linked_regs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from userbpf.isa.opcodes import BPF_JEQ, BPF_JMP32, BPF_JNE, BPF_X

from . import bounds, compare, precision, transfer
from .facts import Kind
from .state import UNINIT, Reg, Slot, State, const_scalar, reg_bit, slot_bit

if TYPE_CHECKING:
    from userbpf.isa import Insn

    from .env import Env

__all__ = ["jump", "release"]

_NEVER_NULL = frozenset({Kind.MAP_VALUE, Kind.MEM, Kind.MAP})


def jump(env: Env, insn: Insn) -> tuple[int, State | None]:
    """Walk a conditional jump.

    Returns where the current path goes on, and a copy of the state for the jump's target when both ways are
    possible (the current path then goes on behind the jump).
    """
    op = insn.op & 0xF0
    is32 = insn.op & 7 == BPF_JMP32
    dst = env.read(insn.dst)
    by_reg = bool(insn.op & BPF_X)
    source = env.read(insn.src) if by_reg else const_scalar(insn.imm)
    here, target = env.pc + 1, env.pc + 1 + insn.off
    if dst.kind is Kind.SCALAR and source.kind is Kind.SCALAR:
        return _numbers(env, insn, op, dst, source, is32=is32)
    state = env.state
    if op in (BPF_JEQ, BPF_JNE) and not is32:
        pointer = dst if source.is_zero else source if dst.is_zero else None
        if pointer is not None and pointer.is_pointer:
            if not pointer.null and pointer.kind in _NEVER_NULL:
                if by_reg:
                    precision.mark(env, insn.src)
                    precision.mark(env, insn.dst)
                state.history = (state.history, env.pc, 0)
                return (target if op == BPF_JNE else here), None
            if by_reg:
                precision.mark(env, insn.src)
                precision.mark(env, insn.dst)
            state.history = (state.history, env.pc, 0)
            other = state.fork()
            if pointer.null:
                _settle_null(state, pointer.id, is_null=op == BPF_JNE)
                _settle_null(other, pointer.id, is_null=op == BPF_JEQ)
            return here, other
    state.history = (state.history, env.pc, 0)
    other = state.fork()
    if op in (BPF_JEQ, BPF_JNE) and not is32 and by_reg and dst.null != source.null and dst.kind is source.kind:
        # Equal to a pointer that is not NULL (reg_not_null of the one says it of the other).
        maybe = dst if dst.null else source
        if maybe.kind in _NEVER_NULL:
            _settle_null(other if op == BPF_JEQ else state, maybe.id, is_null=False)
    return here, other


def _numbers(env: Env, insn: Insn, op: int, dst: Reg, source: Reg, *, is32: bool) -> tuple[int, State | None]:
    here, target = env.pc + 1, env.pc + 1 + insn.off
    taken, skipped = compare.outcomes(op, dst.rng, source.rng, is32=is32)
    state = env.state
    by_reg = bool(insn.op & BPF_X)
    if taken is None or skipped is None:
        precision.mark(env, insn.dst)
        if by_reg:
            precision.mark(env, insn.src)
        state.history = (state.history, env.pc, 0)
        return (here if taken is None else target), None
    if insn.off == 0:
        # Both ways lead to the same place with the same knowledge.
        state.history = (state.history, env.pc, 0)
        return here, None
    linked = 0
    ids = {reg.id for reg in ((dst, source) if by_reg else (dst,)) if reg.id}
    if ids:
        linked = _linked(state, ids)
    state.history = (state.history, env.pc, -linked)
    other = state.fork()
    depth = env.depth
    _learn(other, depth, insn.dst, dst, taken[0])
    _learn(state, depth, insn.dst, dst, skipped[0])
    if by_reg:
        _learn(other, depth, insn.src, source, taken[1])
        _learn(state, depth, insn.src, source, skipped[1])
    return here, other


def _linked(state: State, ids: set[int]) -> int:
    """Bit set, as a history note, of the registers and slots with one of these ids; 0 when there is only one."""
    regs = slots = count = 0
    for number, frame in enumerate(state.frames):
        for index, reg in enumerate(frame.regs):
            if reg.id in ids and reg.kind is Kind.SCALAR:
                regs |= reg_bit(number, index)
                count += 1
        for index, slot in frame.stack.items():
            held = slot.spilled
            if held is not None and held.id in ids and held.kind is Kind.SCALAR:
                slots |= slot_bit(number, index)
                count += 1
    return regs << precision.LINK_SHIFT | slots if count > 1 else 0


def _learn(state: State, depth: int, number: int, old: Reg, rng: bounds.Range) -> None:
    """A compared register has this range now, and so have the copies of it, at their distance."""
    if rng is old.rng:
        return
    new = Reg(Kind.SCALAR, rng, id=old.id, delta=old.delta)
    state.frames[depth].regs[number] = new
    if not old.id:
        return
    for frame in state.frames:
        regs = frame.regs
        for index, reg in enumerate(regs):
            if reg.id == old.id and reg is not new and reg.kind is Kind.SCALAR:
                regs[index] = _shifted(reg, new)
        for index, slot in frame.stack.items():
            held = slot.spilled
            if held is not None and held.id == old.id and held.kind is Kind.SCALAR:
                frame.stack[index] = Slot(slot.types, _shifted(held, new))


def _shifted(reg: Reg, known: Reg) -> Reg:
    if reg.delta == known.delta:
        return known
    rng = transfer.add(known.rng, bounds.const(reg.delta - known.delta))
    return Reg(Kind.SCALAR, rng, id=reg.id, delta=reg.delta)


def _settle_null(state: State, id: int, *, is_null: bool) -> None:
    """Every copy of the pointer is NULL, or is not."""
    zero = const_scalar(0)
    ref = 0
    for frame in state.frames:
        regs = frame.regs
        for index, reg in enumerate(regs):
            if reg.null and reg.id == id:
                ref = reg.ref
                regs[index] = zero if is_null else reg.tested()
        for slot_index, slot in frame.stack.items():
            held = slot.spilled
            if held is not None and held.null and held.id == id:
                ref = held.ref
                frame.stack[slot_index] = Slot(slot.types, zero if is_null else held.tested())
    if ref and is_null:
        state.refs = tuple(entry for entry in state.refs if entry[0] != ref)


def release(state: State, ref: int) -> None:
    """A reference is given back: nothing that came with it can be used any more."""
    state.refs = tuple(entry for entry in state.refs if entry[0] != ref)
    for frame in state.frames:
        for index, reg in enumerate(frame.regs):
            if reg.ref == ref:
                frame.regs[index] = UNINIT
        for slot_index, slot in frame.stack.items():
            if slot.reg is not None and slot.reg.ref == ref:
                frame.stack[slot_index] = Slot(slot.scrubbed())
