"""From a broken rule to a diagnosis: the source line, the values, where they come from, the path."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from userbpf.errors import IsaError
from userbpf.isa import disassemble
from userbpf.isa.opcodes import (
    BPF_ALU,
    BPF_ALU64,
    BPF_ATOMIC,
    BPF_FETCH,
    BPF_JMP,
    BPF_JMP32,
    BPF_LD,
    BPF_LDX,
    BPF_STX,
    CALL,
    CALLX,
    EXIT,
    JA,
    JA32,
    LDDW,
)

from .diagnosis import Diagnosis, PathStep, Reject, RejectedError, help_for, line_at

if TYPE_CHECKING:
    from userbpf.isa import Insn
    from userbpf.object.model import LineInfo, Program

    from .env import Env
    from .state import History

__all__ = ["rejected"]

_PATH_STEPS = 8
_HISTORY = 20_000


def rejected(program: Program, error: Reject, insn: int, env: Env | None) -> RejectedError:
    """The error to raise for a rule broken at instruction ``insn``; ``env`` is None before the walk."""
    known = list(error.known)
    path: tuple[PathStep, ...] = ()
    if error.since is not None:
        known.append(f"it was reserved at instruction {error.since}{_source(program, error.since)}")
    if env is not None:
        if error.code == "too-complex":
            insn = _busiest(env, insn, known)
        if error.reg is not None and error.reg != 10:
            origin = _origin(env, error.reg, env.state.history)
            if origin is not None:
                known.append(origin)
        path = _path(program, env.state.history, insn)
    diagnosis = Diagnosis(
        error.code,
        error.message,
        program.name,
        insn,
        _text(program, insn),
        line_at(program.lines, insn),
        tuple(known),
        path,
        error.help or help_for(error.code),
    )
    return RejectedError(diagnosis, section=program.section.name)


def _text(program: Program, insn: int) -> str:
    """The instruction in the kernel's notation."""
    if not 0 <= insn < len(program.insns):
        return "(behind the end of the program)"
    try:
        return disassemble(program.insns)[insn]
    except IsaError:
        one = program.insns[insn]
        return f"(op={one.op:#04x} dst={one.dst} src={one.src} off={one.off} imm={one.imm})"


def _writes(insn: Insn, reg: int) -> bool:
    cls = insn.op & 7
    if cls in (BPF_ALU, BPF_ALU64, BPF_LDX) or insn.op == LDDW:
        return insn.dst == reg
    if cls == BPF_STX and insn.op & 0xE0 == BPF_ATOMIC and insn.imm & BPF_FETCH:
        return insn.src == reg
    return insn.op == CALL and reg == 0 or cls == BPF_LD and reg == 0


def _origin(env: Env, reg: int, node: History | None) -> str | None:
    """Where a register got its value: the last instruction of this path, in this function, that wrote it."""
    depth = 0
    for _ in range(_HISTORY):
        if node is None:
            return None
        insn = env.insns[node[1]]
        if insn.op == EXIT:
            depth += 1
        elif insn.op == CALL and insn.src == 1:
            depth -= 1
            if depth < 0:
                return None
        if depth == 0 and _writes(insn, reg):
            return f"r{reg} was set at instruction {node[1]}{_source(env.program, node[1])}"
        node = node[0]
    return None


def _busiest(env: Env, insn: int, known: list[str]) -> int:
    """The branch that the paths went through most often of late: the loop that makes the program too complex."""
    counts: dict[int, int] = {}
    node = env.state.history
    length = 0
    while node is not None and length < _HISTORY:
        if _is_branch(env.insns[node[1]]):
            counts[node[1]] = counts.get(node[1], 0) + 1
        node = node[0]
        length += 1
    if not counts:
        return insn
    branch = max(counts, key=lambda index: counts[index])
    known.append(f"this branch was walked {counts[branch]} times in the last {length} instructions of this path")
    return branch


def _is_branch(insn: Insn) -> bool:
    return insn.op & 7 in (BPF_JMP, BPF_JMP32) and insn.op not in (CALL, CALLX, EXIT, JA, JA32)


def _source(program: Program, insn: int) -> str:
    """``: file:line: text`` of an instruction, or the instruction itself."""
    line = line_at(program.lines, insn)
    return f", {_where(line)}: {line.text.strip()}" if line is not None else f": {_text(program, insn)}"


def _where(line: LineInfo) -> str:
    """The file without its folders: the diagnosis has named it in full."""
    return f"{line.file.rpartition('/')[2]}:{line.line}"


def _path(program: Program, node: History | None, later: int) -> tuple[PathStep, ...]:
    """The last branches of this path, oldest first."""
    steps: list[PathStep] = []
    for _ in range(_HISTORY):
        if node is None or len(steps) == _PATH_STEPS:
            break
        index = node[1]
        insn = program.insns[index]
        if _is_branch(insn):
            line = line_at(program.lines, index)
            where = _where(line) if line is not None else program.name
            text = line.text.strip() if line is not None and line.text.strip() else _text(program, index)
            step = PathStep(index, later != index + 1, where, text)
            if steps and replace(steps[-1], times=1) == step:
                steps[-1] = replace(step, times=steps[-1].times + 1)
            else:
                steps.append(step)
        later = index
        node = node[0]
    return tuple(reversed(steps))
