"""What verification learns about each instruction, for the code generators.

The verifier visits an instruction many times; a fact holds for all visits. Paths that were pruned are covered by
the state that they were pruned against: a register or stack slot that is compared loosely there is one that no
later instruction reads, or a number whose value no fact depends on (numbers that a fact depends on are marked
precise, see :mod:`.precision`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from userbpf.object.model import Program

    from .state import Frame

__all__ = ["Call", "Facts", "Kind", "Mem", "Recorder", "Stats", "Verified"]


class Kind(IntEnum):
    """What a register holds. A pointer that may still be 0 (not yet compared) has its pointer's kind."""

    NONE = 0
    SCALAR = 1
    CTX = 2
    STACK = 3
    MAP = 4
    MAP_VALUE = 5
    MEM = 6
    FUNC = 7
    MIXED = 8


@dataclass(frozen=True, slots=True)
class Mem:
    """One load, store or atomic: the region, the map (index into ``Program.maps``), and the constant offset from
    the region's start (stack: from the frame's top, negative). None where it differs between visits."""

    kind: Kind
    map: int | None
    offset: int | None


@dataclass(frozen=True, slots=True)
class Call:
    """One helper call. ``consts[n]``: value of argument n as a signed number when it is the same on every visit.

    Sizes are always there when constant; other numbers when an instruction just before the call sets them.
    """

    helper: int
    map: int | None
    consts: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """regs[i]: kinds of r0 … r10 before instruction i; None when no path reaches it (also second slots).

    mem, calls: by instruction index. ctx_reads: (offset, size) of every constant-offset read of the context.
    ctx_escapes: a pointer to the context goes where its reads are not in ctx_reads: into a helper that reads
    memory, into memory of a map or of a record. stack: bytes of frame of each subprogram, by their order in the
    program. zero_stack: the subprogram may read bytes of its frame that it has not written, so the frame must be
    zeroed at entry.
    """

    regs: tuple[tuple[Kind, ...] | None, ...]
    mem: dict[int, Mem]
    calls: dict[int, Call]
    ctx_reads: frozenset[tuple[int, int]]
    ctx_escapes: bool
    stack: tuple[int, ...]
    zero_stack: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Stats:
    """visited: instructions walked; states: stored for pruning; pruned: paths that ended in an equal state;
    peak_pending: most branches waiting at a time; seconds of wall clock."""

    visited: int
    states: int
    pruned: int
    peak_pending: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Verified:
    """A program that was accepted, with what is known about it."""

    program: Program
    facts: Facts
    stats: Stats


class Recorder:
    """Collects facts while the program is walked."""

    __slots__ = ("_kinds", "calls", "ctx_escapes", "ctx_reads", "mem", "stack", "zero_stack")

    def __init__(self, length: int, subprogs: int) -> None:
        self._kinds: list[set[tuple[Kind, ...]] | None] = [None] * length
        self.mem: dict[int, Mem] = {}
        self.calls: dict[int, Call] = {}
        self.ctx_reads: set[tuple[int, int]] = set()
        self.ctx_escapes = False
        self.stack = [0] * subprogs
        self.zero_stack = [False] * subprogs

    def visit(self, index: int, frame: Frame) -> None:
        """Before instruction ``index`` is walked in ``frame``."""
        kinds = tuple([reg.kind for reg in frame.regs])
        seen = self._kinds[index]
        if seen is None:
            self._kinds[index] = {kinds}
        elif kinds not in seen:
            seen.add(kinds)

    def access(self, index: int, kind: Kind, map_index: int | None, offset: int | None) -> None:
        old = self.mem.get(index)
        if old is None:
            self.mem[index] = Mem(kind, map_index, offset)
        elif old.kind != kind or old.map != map_index or old.offset != offset:
            same = old.kind == kind
            self.mem[index] = Mem(
                kind if same else Kind.MIXED,
                map_index if same and old.map == map_index else None,
                offset if same and old.map == map_index and old.offset == offset else None,
            )

    def call(self, index: int, helper: int, map_index: int | None, consts: Sequence[int | None]) -> None:
        old = self.calls.get(index)
        if old is None:
            self.calls[index] = Call(helper, map_index, tuple(consts))
            return
        self.calls[index] = Call(
            helper,
            map_index if old.map == map_index else None,
            tuple(a if a == b else None for a, b in zip(old.consts, consts, strict=True)),
        )

    def frame_bytes(self, subprog: int, size: int) -> None:
        if size > self.stack[subprog]:
            self.stack[subprog] = size

    def finish(self) -> Facts:
        return Facts(
            tuple(None if seen is None else _join(seen) for seen in self._kinds),
            self.mem,
            self.calls,
            frozenset(self.ctx_reads),
            self.ctx_escapes,
            tuple(self.stack),
            tuple(self.zero_stack),
        )


def _join(seen: set[tuple[Kind, ...]]) -> tuple[Kind, ...]:
    """One Kind per register over all visits.

    Visits where the register was never set do not count: on their way nobody reads it before it is written.
    """
    joined = []
    for column in zip(*seen, strict=True):
        kinds = set(column) - {Kind.NONE}
        joined.append(kinds.pop() if len(kinds) == 1 else Kind.MIXED if kinds else Kind.NONE)
    return tuple(joined)
