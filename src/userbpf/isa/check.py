"""Structure of a program: what can be said without following its values (RFC 9669 sections 2 to 5).

The kernel does the same in check_subprogs, check_insn_fields and resolve_pseudo_ldimm64 of kernel/bpf/verifier.c.
"""

from __future__ import annotations

from collections.abc import Sequence

from userbpf.errors import IsaError, Place
from userbpf.isa.insn import Insn
from userbpf.isa.opcodes import (
    BPF_PSEUDO_CALL,
    BPF_PSEUDO_FUNC,
    BPF_PSEUDO_KFUNC_CALL,
    BPF_PSEUDO_MAP_FD,
    BPF_PSEUDO_MAP_IDX,
    BPF_PSEUDO_MAP_IDX_VALUE,
    CALL,
    CALLX,
    EXIT,
    JA,
    JA32,
    LDDW,
    MAX_REG,
    OPCODES,
    Form,
    Opcode,
)

_UNUSED_HINT = "the field must be zero in this instruction; the compiler or the file is damaged"
_ENDS = frozenset({EXIT, JA, JA32})
_ONE_WORD_PSEUDO = frozenset({BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_IDX, BPF_PSEUDO_FUNC})


def check(insns: Sequence[Insn]) -> None:
    """Refuse a program whose structure is broken.

    Demands: known opcodes, zero in unused fields, whole wide instructions, registers up to r10, branches and local
    calls that land on an instruction of the program, branches that stay in their subprogram, and an ``exit`` or an
    unconditional branch at the end of every subprogram. Raises IsaError with the instruction index and the field.
    """
    if not insns:
        raise IsaError("the program is empty", hint="a program has at least one instruction: exit")
    second_halves = _check_fields(insns)
    starts = _check_calls(insns, second_halves)
    _check_jumps(insns, second_halves, starts)


def _check_fields(insns: Sequence[Insn]) -> frozenset[int]:
    """All fields of all instructions; returns the indices of second halves of wide instructions."""
    halves: set[int] = set()
    skip = False
    count = len(insns)
    seen: set[tuple[int, int, int]] = set()
    for i, insn in enumerate(insns):
        if skip:
            skip = False
            continue
        op, dst, src, off, imm = insn
        row = OPCODES.get(op)
        if row is None:
            raise IsaError(
                f"{op:#04x} is not an opcode",
                place=Place(insn=i),
                hint="RFC 9669 section 4 and 5 list the opcodes; compile with -mcpu=v1 to v4",
            )
        if op == LDDW:
            _check_wide(insns, i, count)
            halves.add(i + 1)
            skip = True
            continue
        if (op, dst, src) not in seen:
            _check_registers(i, insn, row)
            seen.add((op, dst, src))
        if row.offs is not None and off not in row.offs:
            raise _bad_field(i, row, "off", off, row.offs)
        if row.imms is not None and imm not in row.imms:
            raise _bad_field(i, row, "imm", imm, row.imms)
        if op == CALL and off and src != BPF_PSEUDO_KFUNC_CALL:
            raise _bad_field(i, row, "off", off, frozenset({0}))
    return frozenset(halves)


def _bad_field(index: int, row: Opcode, field: str, value: int, allowed: frozenset[int]) -> IsaError:
    listed = " or ".join(f"{n:#x}" if n > 64 else str(n) for n in sorted(allowed))
    return IsaError(
        f"the field {field} of {row.name} (opcode {row.code:#04x}) is {value}, it must be {listed}",
        place=Place(insn=index),
        hint=_UNUSED_HINT if allowed == frozenset({0}) else "see RFC 9669 for the values of this field",
    )


def _check_registers(index: int, insn: Insn, row: Opcode) -> None:
    for field, number, used in (("dst", insn.dst, row.uses_dst), ("src", insn.src, row.uses_src)):
        if not used and number:
            raise _bad_field(index, row, field, number, frozenset({0}))
        if number > MAX_REG:
            raise IsaError(
                f"the field {field} of {row.name} (opcode {row.code:#04x}) names r{number}, which does not exist",
                place=Place(insn=index),
                hint="registers are r0 to r10",
            )
    if row.form is Form.CALL and insn.src > BPF_PSEUDO_KFUNC_CALL:
        raise _bad_field(index, row, "src", insn.src, frozenset({0, BPF_PSEUDO_CALL, BPF_PSEUDO_KFUNC_CALL}))
    if row.code == CALLX:
        raise IsaError(
            "a call through a register (callx) is not part of RFC 9669",
            place=Place(insn=index),
            hint="compile with -O2 and call functions by name, so that clang makes a direct call",
        )


def _check_wide(insns: Sequence[Insn], index: int, count: int) -> None:
    first, row = insns[index], OPCODES[LDDW]
    if index + 1 >= count:
        raise IsaError(
            "the wide instruction has no second half",
            place=Place(insn=index),
            hint="the program is cut off; compile it again",
        )
    second = insns[index + 1]
    if first.dst > MAX_REG:
        raise IsaError(f"the field dst of lddw names r{first.dst}, which does not exist", place=Place(insn=index))
    if first.src > BPF_PSEUDO_MAP_IDX_VALUE:
        raise _bad_field(index, row, "src", first.src, frozenset(range(BPF_PSEUDO_MAP_IDX_VALUE + 1)))
    if first.off:
        raise _bad_field(index, row, "off", first.off, frozenset({0}))
    for field in ("op", "dst", "src", "off"):
        value: int = getattr(second, field)
        if value:
            raise IsaError(
                f"the field {field} of the second half of a wide instruction is {value}, it must be 0",
                place=Place(insn=index + 1),
                hint=_UNUSED_HINT,
            )
    if first.src in _ONE_WORD_PSEUDO and second.imm:
        raise IsaError(
            f"the upper half of a wide instruction with src {first.src} is {second.imm}, it must be 0",
            place=Place(insn=index + 1),
            hint=_UNUSED_HINT,
        )


def _check_calls(insns: Sequence[Insn], halves: frozenset[int]) -> list[int]:
    """Targets of local calls and callbacks; returns where subprograms start, in order, the program itself first."""
    starts = {0}
    for i, insn in enumerate(insns):
        local = insn.op == CALL and insn.src == BPF_PSEUDO_CALL
        callback = insn.op == LDDW and insn.src == BPF_PSEUDO_FUNC and i not in halves
        if not local and not callback:
            continue
        target = i + 1 + insn.imm
        _check_target(i, "imm", target, len(insns), halves)
        starts.add(target)
    return sorted(starts)


def _check_target(index: int, field: str, target: int, count: int, halves: frozenset[int]) -> None:
    if not 0 <= target < count:
        raise IsaError(
            f"the field {field} leads to instruction {target}, outside of the program of {count} instructions",
            place=Place(insn=index),
            hint="the program is cut off or was not linked",
        )
    if target in halves:
        raise IsaError(
            f"the field {field} leads into the middle of the wide instruction {target - 1}",
            place=Place(insn=index),
            hint="a branch must land on the first half",
        )


def _check_jumps(insns: Sequence[Insn], halves: frozenset[int], starts: list[int]) -> None:
    """Branch targets and the ends of subprograms."""
    jumps = {code: row.form is Form.JA32 for code, row in OPCODES.items() if row.is_jump}
    bounds = [*starts, len(insns)]
    for start, end in zip(bounds, bounds[1:], strict=False):
        for i in range(start, end):
            wide_offset = jumps.get(insns[i].op)
            if wide_offset is None:
                continue
            target = i + 1 + (insns[i].imm if wide_offset else insns[i].off)
            if start <= target < end and target not in halves:
                continue
            field = "imm" if wide_offset else "off"
            _check_target(i, field, target, len(insns), halves)
            raise IsaError(
                f"the field {field} leads to instruction {target}, in another subprogram",
                place=Place(insn=i),
                hint="a branch stays in its own subprogram; only calls leave it",
            )
        if insns[end - 1].op not in _ENDS or end - 1 in halves:
            raise IsaError(
                "the program can run off its end: the last instruction is neither exit nor an unconditional branch",
                place=Place(insn=end - 1),
                hint="end every function with a return",
            )
