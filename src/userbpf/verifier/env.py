"""What all rules share while a program is walked: the program, the current state, and small services."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .diagnosis import Reject
from .facts import Kind
from .state import UNINIT, Frame, Reg, State

if TYPE_CHECKING:
    from userbpf.isa import Insn
    from userbpf.object.model import MapSpec, Program
    from userbpf.tables.contexts import Context
    from userbpf.tables.prog_types import ProgType

    from .facts import Recorder
    from .limits import Limits

__all__ = ["Env"]


class Env:
    """The walk's current position. ``note`` is what the instruction at ``pc`` leaves in the history;
    ``joins`` are the instructions that jumps lead to."""

    __slots__ = (
        "_ids",
        "context",
        "facts",
        "frame",
        "insns",
        "joins",
        "limits",
        "maps",
        "note",
        "pc",
        "prog_type",
        "program",
        "regs",
        "state",
    )

    def __init__(
        self, program: Program, prog_type: ProgType, context: Context, limits: Limits, facts: Recorder, state: State
    ) -> None:
        self.program = program
        self.prog_type = prog_type
        self.context = context
        self.limits = limits
        self.facts = facts
        self.insns: tuple[Insn, ...] = program.insns
        self.maps: tuple[MapSpec, ...] = program.maps
        self.joins: frozenset[int] = frozenset()
        self.pc = 0
        self.note = 0
        self._ids = 0
        self.state = state
        self.frame: Frame = state.frames[-1]
        self.regs: list[Reg] = self.frame.regs

    def enter(self, state: State) -> None:
        """Go on with another state, or in another frame of the same."""
        self.state = state
        self.frame = state.frames[-1]
        self.regs = self.frame.regs

    @property
    def depth(self) -> int:
        """Number of the current frame."""
        return len(self.state.frames) - 1

    def new_id(self) -> int:
        self._ids += 1
        return self._ids

    def read(self, number: int) -> Reg:
        """A register that is read: it must have been set."""
        reg = self.regs[number]
        if reg.kind is Kind.NONE:
            raise Reject(
                "uninit-reg", f"r{number} is read but was not set on this path{self._why_unset(number)}", reg=number
            )
        return reg

    def _why_unset(self, number: int) -> str:
        node = self.state.history
        for _ in range(64):
            if node is None:
                break
            insn = self.insns[node[1]]
            if insn.op == 0x85:
                return f": the call at instruction {node[1]} clears r0 … r5" if 1 <= number <= 5 else ""
            node = node[0]
        return ""

    def write(self, number: int, reg: Reg) -> None:
        self.regs[number] = reg

    def linkable(self, number: int) -> Reg:
        """A scalar about to be copied: it gets an id, so that what is learned of one copy holds for all
        (``assign_scalar_id_before_mov``)."""
        reg = self.regs[number]
        if reg.kind is not Kind.SCALAR or reg.rng.is_const:
            return reg
        if reg.delta:
            reg = Reg(Kind.SCALAR, reg.rng)
        if not reg.id:
            reg = Reg(Kind.SCALAR, reg.rng, id=self.new_id())
            self.regs[number] = reg
        return reg

    def clear_call_regs(self) -> None:
        """r0 … r5 do not survive a call."""
        regs = self.regs
        for number in range(6):
            regs[number] = UNINIT
