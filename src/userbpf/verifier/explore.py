"""The walk: every path of a program, depth first, until each has ended or met a state that covers it.

The order of the kernel's do_check(): the current path goes on behind a conditional jump, the other way waits. At
jumps and their targets states are stored (is_state_visited) and later paths are compared with them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from userbpf.errors import Place, UnsupportedError
from userbpf.isa import imm64
from userbpf.isa.opcodes import (
    BPF_ALU,
    BPF_ALU64,
    BPF_ATOMIC,
    BPF_LD,
    BPF_LDX,
    BPF_PSEUDO_CALL,
    BPF_PSEUDO_FUNC,
    BPF_PSEUDO_KFUNC_CALL,
    BPF_PSEUDO_MAP_IDX,
    BPF_PSEUDO_MAP_IDX_VALUE,
    BPF_ST,
    BPF_STX,
    CALL,
    CALLX,
    EXIT,
    JA,
    JA32,
    LDDW,
)
from userbpf.tables.contexts import context_for
from userbpf.tables.prog_types import ProgType

from . import alu, branches, calls, memory, precision, pruning
from .cfg import Shape, ShapeError, analyse
from .diagnosis import Reject
from .env import Env
from .facts import Kind, Recorder, Stats, Verified
from .limits import DEFAULT, Limits
from .report import rejected
from .state import FRAME_SLOTS, Frame, Reg, State, const_scalar

if TYPE_CHECKING:
    from userbpf.isa import Insn
    from userbpf.object.model import Program

__all__ = ["verify"]

_TYPES = frozenset({ProgType.KPROBE, ProgType.TRACEPOINT, ProgType.RAW_TRACEPOINT, ProgType.PERF_EVENT})
"""Program types whose context is fully described: a record of numbers that is only read."""


def verify(program: Program, *, limits: Limits = DEFAULT) -> Verified:
    """Prove that a program is safe to run.

    Raises RejectedError with a diagnosis when it is not, or when that cannot be shown; UnsupportedError when the
    program's type is one that this verifier does not know.
    """
    prog_type = program.section.prog_type
    context = context_for(prog_type, limits.machine) if prog_type in _TYPES else None
    if prog_type is None or context is None:
        raise UnsupportedError(
            f"programs of this type ({program.section.name}) cannot be verified yet",
            place=Place(file=program.object_name, section=program.section.name, prog=program.name),
            hint="userbpf runs uprobe, uretprobe and usdt programs",
        )
    begin = time.perf_counter()
    try:
        shape = analyse(program)
    except ShapeError as error:
        raise rejected(program, error, error.insn, None) from None
    start = Frame.entered(0, -1, 0)
    start.regs[1] = Reg(Kind.CTX)
    facts = Recorder(len(program.insns), len(shape.starts))
    env = Env(program, prog_type, context, limits, facts, State([start]))
    env.joins = shape.joins
    walk = Walk(env, shape)
    try:
        walk.run()
        walk.check_stack_chain()
    except Reject as error:
        raise rejected(program, error, env.pc, env) from None
    stats = Stats(walk.visited, walk.stored, walk.pruned, walk.peak, time.perf_counter() - begin)
    return Verified(program, facts.finish(), stats)


class Walk:
    """The depth-first walk over all paths."""

    def __init__(self, env: Env, shape: Shape) -> None:
        self.env = env
        self.shape = shape
        self.visited = self.stored = self.pruned = self.peak = 0
        self._jumps = 0
        self._last_visited = self._last_jumps = 0
        self._pending: list[tuple[int, State]] = []
        self._explored: dict[int, list[State]] = {}

    def run(self) -> None:
        env, insns, prune = self.env, self.env.insns, self.shape.prune
        visit, limit = env.facts.visit, env.limits.visited
        pc = 0
        while True:
            env.pc = pc
            self.visited += 1
            if self.visited > limit:
                raise Reject(
                    "too-complex",
                    f"the program is too complex: its paths are longer than {limit} instructions in all",
                )
            if pc in prune and self._met(pc):
                self.pruned += 1
                following = -1
            else:
                visit(pc, env.frame)
                following = self._step(insns[pc])
            if following < 0:
                waiting = self._finish_path()
                if waiting is None:
                    return
                following, state = waiting
                env.enter(state)
            pc = following

    def _step(self, insn: Insn) -> int:
        """Walk one instruction. Returns the next one, -1 at the end of the path."""
        env = self.env
        op = insn.op
        cls = op & 7
        env.note = 0
        if cls in (BPF_ALU64, BPF_ALU):
            alu.alu(env, insn)
        elif cls == BPF_LDX:
            memory.load(env, insn)
        elif cls == BPF_STX:
            if op & 0xE0 == BPF_ATOMIC:
                memory.atomic(env, insn)
            else:
                memory.store(env, insn)
        elif cls == BPF_ST:
            memory.store(env, insn)
        elif cls == BPF_LD:
            return self._wide(insn)
        else:
            return self._jump(insn, op)
        env.state.history = (env.state.history, env.pc, env.note)
        return env.pc + 1

    def _jump(self, insn: Insn, op: int) -> int:
        env = self.env
        if op == CALL:
            return self._call(insn)
        if op == EXIT:
            return self._exit()
        self._jumps += 1
        if op in (JA, JA32):
            env.state.history = (env.state.history, env.pc, 0)
            return env.pc + 1 + (insn.off if op == JA else insn.imm)
        if op == CALLX:
            raise Reject("unsupported", f"the call goes through r{insn.dst}: indirect calls are not supported")
        following, other = branches.jump(env, insn)
        if other is not None:
            self._push(env.pc + 1 + insn.off, other)
        return following

    def _push(self, pc: int, state: State) -> None:
        pending = self._pending
        if state.parent is not None:
            state.parent.branches += 1
        pending.append((pc, state))
        if len(pending) > self.peak:
            self.peak = len(pending)
            if self.peak > self.env.limits.pending:
                raise Reject(
                    "too-complex", f"the program is too complex: more than {self.env.limits.pending} branches wait"
                )

    def _finish_path(self) -> tuple[int, State] | None:
        """The current path has ended; the next one that waits."""
        state: State | None = self.env.state
        while state is not None:
            state.branches -= 1
            if state.branches:
                break
            state = state.parent
        return self._pending.pop() if self._pending else None

    # ---- instructions that are more than data ------------------------------------------------------------------

    def _wide(self, insn: Insn) -> int:
        env = self.env
        if insn.op != LDDW:
            raise Reject("packet-load", "this instruction loads from a packet, and the program has none")
        if insn.src == 0:
            value = const_scalar(imm64(env.insns, env.pc))
        elif insn.src in (BPF_PSEUDO_MAP_IDX, BPF_PSEUDO_MAP_IDX_VALUE):
            if not 0 <= insn.imm < len(env.maps):
                raise Reject("structure", f"the instruction names map {insn.imm}, and there are {len(env.maps)}")
            if insn.src == BPF_PSEUDO_MAP_IDX:
                value = Reg(Kind.MAP, map=insn.imm)
            else:
                value = memory.direct_value(env, insn.imm, env.insns[env.pc + 1].imm & 0xFFFFFFFF)
        elif insn.src == BPF_PSEUDO_FUNC:
            entry = env.pc + 1 + insn.imm
            if entry not in self.shape.starts:
                raise Reject("structure", f"the function pointer leads to {entry}, where no function starts")
            value = Reg(Kind.FUNC, insn=entry)
        else:
            raise Reject("unsupported", "the constant is an address in the kernel, which a user process does not have")
        env.write(insn.dst, value)
        env.state.history = (env.state.history, env.pc, 0)
        return env.pc + 2

    def _call(self, insn: Insn) -> int:
        env = self.env
        if insn.src == BPF_PSEUDO_KFUNC_CALL:
            raise calls.reject_kfunc(env, insn.imm)
        if insn.src != BPF_PSEUDO_CALL:
            calls.call_helper(env, insn.imm)
            env.state.history = (env.state.history, env.pc, 0)
            return env.pc + 1
        entry = env.pc + 1 + insn.imm
        subprog = self.shape.subprog_at(entry)
        state = env.state
        names = [self._name(frame.subprog) for frame in state.frames]
        if any(frame.subprog == subprog for frame in state.frames):
            raise Reject("recursion", f"{self._name(subprog)} calls itself ({' → '.join(names)})")
        if len(state.frames) >= env.limits.depth:
            raise Reject("stack-too-deep", f"more than {env.limits.depth} functions are nested ({' → '.join(names)})")
        number = len(state.frames)
        callee = Frame.entered(subprog, env.pc, number)
        callee.regs[1:6] = env.regs[1:6]
        env.clear_call_regs()
        state.frames.append(callee)
        state.written |= FRAME_SLOTS << (64 * number)
        state.history = (state.history, env.pc, 0)
        env.enter(state)
        return entry

    def _name(self, subprog: int) -> str:
        start = self.shape.starts[subprog]
        for known in self.env.program.subprogs:
            if known.start == start:
                return f"{known.name}()"
        return self.env.program.name if start == 0 else f"the function at instruction {start}"

    def _exit(self) -> int:
        env = self.env
        state = env.state
        if len(state.frames) == 1:
            env.read(0)
            if state.refs:
                _, index = state.refs[0]
                raise Reject(
                    "unreleased-ref",
                    "the program ends without giving back a record that it reserved",
                    since=index,
                )
            return -1
        value = env.regs[0]
        if value.kind is Kind.STACK:
            raise Reject(
                "stack-bounds", "a function returns a pointer to the stack, which its caller cannot use", reg=0
            )
        callee = state.frames.pop()
        state.history = (state.history, env.pc, 0)
        env.enter(state)
        env.write(0, value)
        return callee.callsite + 1

    # ---- stored states -----------------------------------------------------------------------------------------

    def _met(self, pc: int) -> bool:
        """Compare with the states stored here; store this one when it may help later (is_state_visited)."""
        env, shape = self.env, self.shape
        state = env.state
        often = env.limits.store_often
        keep = often or (self._jumps - self._last_jumps >= 2 and self.visited - self._last_visited >= 8)
        stored = self._explored.setdefault(pc, [])
        for old in stored[:]:
            if old.branches:
                if pruning.same(shape, old, state, pc):
                    raise Reject("infinite-loop", "the loop comes back here with nothing changed: it may never end")
                # Turns of a running loop differ and seldom help each other: store few of them.
                if not often and self._jumps - self._last_jumps < 20 and self.visited - self._last_visited < 100:
                    keep = False
            elif pruning.covers(shape, old, state, pc):
                old.hits += 1
                state.mark_read(old.read)
                precision.propagate(env, old)
                return True
            if keep:
                old.misses += 1
                if old.misses > old.hits * 3 + 3:
                    stored.remove(old)
        if keep:
            self._store(pc, stored)
        return False

    def _store(self, pc: int, stored: list[State]) -> None:
        state = self.env.state
        kept = State([frame.copy() for frame in state.frames], state.refs, state.parent, state.history, state.written)
        state.parent = kept
        state.written = 0
        stored.append(kept)
        self.stored += 1
        self._last_jumps, self._last_visited = self._jumps, self.visited

    # ---- the stack of all frames -------------------------------------------------------------------------------

    def check_stack_chain(self) -> None:
        """The deepest chain of calls fits (check_max_stack_depth); frames are rounded up to 16 as the kernel's are."""
        env = self.env
        callees: dict[int, set[int]] = {}
        for index, insn in enumerate(env.insns):
            if insn.op == CALL and insn.src == BPF_PSEUDO_CALL:
                caller = self.shape.subprog_at(index)
                callees.setdefault(caller, set()).add(self.shape.subprog_at(index + 1 + insn.imm))
        sizes = [max(16, (size + 15) & ~15) for size in env.facts.stack]
        deepest: dict[int, tuple[int, tuple[int, ...]]] = {}

        def measure(subprog: int, above: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
            if subprog not in deepest:
                best: tuple[int, tuple[int, ...]] = (0, ())
                for callee in callees.get(subprog, ()):
                    if callee not in above:
                        best = max(best, measure(callee, (*above, callee)))
                deepest[subprog] = (sizes[subprog] + best[0], (subprog, *best[1]))
            return deepest[subprog]

        total, chain = measure(0, (0,))
        if total > env.limits.total_stack:
            env.pc = 0
            raise Reject(
                "stack-too-deep",
                f"the frames of nested calls take {total} bytes of stack, and there are {env.limits.total_stack}",
                known=tuple(f"{self._name(subprog)} has a frame of {sizes[subprog]} bytes" for subprog in chain),
            )
