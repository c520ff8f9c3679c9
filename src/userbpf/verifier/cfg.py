"""The program's shape: subprograms, jump targets, where states are compared, and which registers are live.

Liveness is the classic backward dataflow (kernel/bpf/verifier.c: compute_live_registers), with one refinement:
a call of a subprogram reads only the argument registers that are live at its entry.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from userbpf.errors import IsaError
from userbpf.isa import check as check_isa
from userbpf.isa.opcodes import (
    BPF_ALU,
    BPF_ALU64,
    BPF_ATOMIC,
    BPF_CMPXCHG,
    BPF_END,
    BPF_FETCH,
    BPF_JMP,
    BPF_JMP32,
    BPF_LD,
    BPF_LDX,
    BPF_MOV,
    BPF_NEG,
    BPF_PSEUDO_CALL,
    BPF_ST,
    BPF_STX,
    BPF_X,
    CALL,
    EXIT,
    JA,
    JA32,
    LDDW,
)
from userbpf.tables.helpers import HELPERS

from .diagnosis import Reject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from userbpf.isa import Insn
    from userbpf.object.model import Program

__all__ = ["Shape", "ShapeError", "analyse"]


class ShapeError(Reject):
    """The structure is broken at an instruction."""

    def __init__(self, insn: int, message: str) -> None:
        super().__init__("structure", message)
        self.insn = insn


@dataclass(frozen=True, slots=True)
class Shape:
    """starts: entry of each subprogram, in order. live[i]: bit set of registers read at or after i before they are
    written. joins: targets of jumps. prune: where states are stored and compared."""

    starts: tuple[int, ...]
    live: tuple[int, ...]
    joins: frozenset[int]
    prune: frozenset[int]

    def subprog_at(self, insn: int) -> int:
        return bisect_right(self.starts, insn) - 1


def analyse(program: Program) -> Shape:
    """Check the structure and derive the shape. Raises ShapeError."""
    insns = program.insns
    if not insns:
        raise ShapeError(0, "the program has no instructions")
    try:
        check_isa(insns)
    except IsaError as error:
        raise ShapeError(error.place.insn or 0, error.message) from None
    for index, insn in enumerate(insns):
        if _writes_frame_pointer(insn):
            raise ShapeError(index, "r10 is written, and it is the read-only frame pointer")
    starts = _starts(program)
    successors = _successors(insns, starts)
    joins: set[int] = set()
    prune: set[int] = set()
    for index, follow in enumerate(successors):
        insn = insns[index]
        if insn.op in (JA, JA32):
            joins.update(follow)
            prune.update(follow)
        elif len(follow) == 2:
            joins.add(follow[1])
            prune.update((index, follow[1]))
        elif insn.op == CALL and insn.src == BPF_PSEUDO_CALL:
            prune.update(follow)
    return Shape(starts, _liveness(insns, successors), frozenset(joins | set(starts)), frozenset(prune))


def _writes_frame_pointer(insn: Insn) -> bool:
    cls = insn.op & 7
    if cls in (BPF_ALU, BPF_ALU64, BPF_LDX) or insn.op == LDDW:
        return insn.dst == 10
    fetches = cls == BPF_STX and insn.op & 0xE0 == BPF_ATOMIC and insn.imm & BPF_FETCH
    return bool(fetches) and insn.src == 10 and insn.imm != BPF_CMPXCHG


def _starts(program: Program) -> tuple[int, ...]:
    """Entries: those that the object declares, and those that calls and function pointers name."""
    insns = program.insns
    starts = {0, *(subprog.start for subprog in program.subprogs)}
    starts.update(i + 1 + insn.imm for i, insn in enumerate(insns) if insn.op == CALL and insn.src == BPF_PSEUDO_CALL)
    for start in starts:
        if not 0 <= start < len(insns):
            raise ShapeError(0, f"a subprogram starts at instruction {start}, outside of the program")
    return tuple(sorted(starts))


def _successors(insns: Sequence[Insn], starts: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Where each instruction goes: (next), (next, jump target) or nothing. Jumps stay in their subprogram."""
    length = len(insns)
    ends = [*starts[1:], length]
    result: list[tuple[int, ...]] = []
    current = 0
    skip = False
    for index, insn in enumerate(insns):
        if index >= ends[current]:
            current += 1
        if skip:
            skip = False
            result.append(())
            continue
        follow: tuple[int, ...] = (index + 1,)
        cls = insn.op & 7
        if insn.op == LDDW:
            skip = True
            follow = (index + 2,)
        elif insn.op == EXIT:
            follow = ()
        elif insn.op == JA:
            follow = (index + 1 + insn.off,)
        elif insn.op == JA32:
            follow = (index + 1 + insn.imm,)
        elif cls in (BPF_JMP, BPF_JMP32) and insn.op != CALL:
            follow = (index + 1, index + 1 + insn.off)
        for target in follow:
            if not starts[current] <= target < ends[current]:
                raise ShapeError(index, f"control goes from instruction {index} to {target}, out of its function")
        result.append(follow)
    return result


def _use_def(insn: Insn) -> tuple[int, int]:
    """Registers that an instruction reads and writes, calls of subprograms left out."""
    op, dst, src = insn.op, 1 << insn.dst, 1 << insn.src
    cls = op & 7
    if cls in (BPF_ALU, BPF_ALU64):
        kind = op & 0xF0
        if kind == BPF_MOV:
            return (src if op & BPF_X else 0), dst
        if kind in (BPF_NEG, BPF_END) or not op & BPF_X:
            return dst, dst
        return dst | src, dst
    if cls == BPF_LDX:
        return src, dst
    if cls == BPF_ST:
        return dst, 0
    if cls == BPF_STX:
        extra = 1 if op & 0xE0 == BPF_ATOMIC and insn.imm == BPF_CMPXCHG else 0
        return dst | src | extra, 0
    if cls == BPF_LD:
        return (0, dst) if op == LDDW else (1 << 6 | src, 0x3F)
    if op == CALL:
        helper = HELPERS.get(insn.imm)
        count = len(helper.args) if helper is not None and helper.offered else 5
        return ((1 << (count + 1)) - 2, 0x3F)
    if op == EXIT:
        return 1, 0
    if op in (JA, JA32):
        return 0, 0
    return (dst | src if op & BPF_X else dst), 0


def _liveness(insns: Sequence[Insn], successors: list[tuple[int, ...]]) -> tuple[int, ...]:
    live = [0] * len(insns)
    effects = [_use_def(insn) for insn in insns]
    order = [index for index in range(len(insns) - 1, -1, -1) if successors[index] or insns[index].op == EXIT]
    changed = True
    while changed:
        changed = False
        for index in order:
            after = 0
            for target in successors[index]:
                after |= live[target]
            use, kill = effects[index]
            insn = insns[index]
            if insn.op == CALL and insn.src == BPF_PSEUDO_CALL:
                use, kill = live[index + 1 + insn.imm] & 0x3E, 0x3F
            before = use | (after & ~kill)
            if before != live[index]:
                live[index] = before
                changed = True
    return tuple(live)
