"""What was promised holds: accepted programs are run on concrete values, and every step is checked.

The random programs are made to be rejected at first: the instruction that is at fault is taken out until the
verifier is satisfied. So they stand close to the border of what is accepted, where mistakes would show.
"""

from __future__ import annotations

import random

import pytest
from concrete import Machine, Regs, Violation
from corpus import CASES, MAPS, Case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_programs import generate

from userbpf.isa import Insn
from userbpf.object.model import Program, Subprog
from userbpf.tables.programs import parse_section
from userbpf.verifier import Facts, Limits, RejectedError, explore, verify
from userbpf.verifier.facts import Kind, Recorder
from userbpf.verifier.state import Frame, Reg

NOP = Insn(0x05, 0, 0, 0, 0)
LIMITS = Limits(visited=5_000, store_often=True)


def as_program(insns: tuple[Insn, ...], subprogs: tuple[Subprog, ...]) -> Program:
    return Program("random", parse_section("uprobe"), insns, MAPS, subprogs, (), None, "GPL", "random")


def repaired(insns: tuple[Insn, ...], subprogs: tuple[Subprog, ...]) -> tuple[Program, Facts] | None:
    """The program without the instructions that it is rejected for."""
    for _ in range(60):
        program = as_program(insns, subprogs)
        try:
            return program, verify(program, limits=LIMITS).facts
        except RejectedError as error:
            at = error.diagnosis.insn
            if insns[at].op == 0x95 or error.diagnosis.code in ("too-complex", "stack-too-deep"):
                return None
            wide = insns[at].op == 0x18
            insns = (*insns[:at], NOP, *((NOP,) if wide else ()), *insns[at + (2 if wide else 1) :])
    return None


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_random_programs_keep_their_promises(seed: int) -> None:
    rng = random.Random(seed)
    found = repaired(*generate(rng))
    if found is None:
        return
    program, facts = found
    for _ in range(6):
        Machine(program, facts, rng).run()


@pytest.mark.parametrize("case", [case for case in CASES if case.accepted], ids=lambda case: case.name)
def test_accepted_cases_keep_their_promises(case: Case) -> None:
    program = case.program()
    facts = verify(program, limits=Limits(store_often=True)).facts
    for seed in range(5):
        Machine(program, facts, random.Random(seed)).run()


class Tracing(Recorder):
    """Keeps the registers of every visit."""

    states: dict[int, list[list[Reg]]]

    def visit(self, index: int, frame: Frame) -> None:
        super().visit(index, frame)
        Tracing.states.setdefault(index, []).append(frame.regs[:])


def holds(state: list[Reg], regs: Regs) -> bool:
    """Whether the concrete registers are one instance of an abstract state."""
    bases: dict[int, int] = {}
    for reg, value in zip(state, regs, strict=True):
        if reg.kind is not Kind.SCALAR:
            continue
        if value is None or not reg.rng.holds(value):
            return False
        # Numbers with one id come from one value, at a known distance.
        base = (value - reg.delta) % (1 << 64)
        if reg.id and bases.setdefault(reg.id, base) != base:
            return False
    return True


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 1 << 32))
def test_concrete_values_stay_in_the_abstract_states(seed: int) -> None:
    """Without pruning every path is walked: at each step some abstract state holds the concrete registers."""
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        Tracing.states = {}
        patch.setattr(explore, "Recorder", Tracing)
        patch.setattr(explore.Walk, "_met", lambda self, pc: False)
        found = repaired(*generate(rng))
        if found is None:
            return
        program, facts = found
        Tracing.states.clear()
        verify(program, limits=LIMITS)
        for _ in range(4):
            machine = Machine(program, facts, rng)
            machine.run()
            for pc, regs in machine.seen:
                if not any(holds(state, regs) for state in Tracing.states.get(pc, ())):
                    raise Violation(f"instruction {pc}: {regs} is in no abstract state")


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_damaged_programs_get_a_verdict(seed: int) -> None:
    """Whatever a program holds: it is accepted, or rejected with a diagnosis that can be printed."""
    rng = random.Random(seed)
    insns, subprogs = generate(rng)
    damaged = list(insns)
    for _ in range(rng.randrange(1, 4)):
        index = rng.randrange(len(damaged))
        name = rng.choice(("op", "dst", "src", "off", "imm", "dst", "imm"))
        value = {"op": rng.randrange(256), "dst": rng.randrange(12), "src": rng.randrange(12)}
        damaged[index] = damaged[index]._replace(**{name: value.get(name, rng.randrange(-40, 220))})
    try:
        verify(as_program(tuple(damaged), subprogs), limits=LIMITS)
    except RejectedError as error:
        assert str(error).startswith("error[")
