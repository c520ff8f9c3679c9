"""Text → instructions. Takes what :func:`userbpf.isa.disassemble` writes and the mnemonics of bpf_conformance.

Each line is judged by itself, so both notations may be mixed. Labels stand alone or before an instruction
(``name:``). Comments begin with ``//``, ``;`` or ``#`` after a space.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from userbpf.isa.asm_kernel import is_kernel_syntax, parse_kernel
from userbpf.isa.asm_mnemonic import parse_mnemonic
from userbpf.isa.insn import Insn
from userbpf.isa.lexer import Cursor, LabelRef
from userbpf.isa.opcodes import EXIT

_NO_HELPERS: Final[Mapping[str, int]] = MappingProxyType({})
_LIMITS: Final = MappingProxyType({"off": 1 << 15, "imm": 1 << 31})


def assemble(text: str, *, helpers: Mapping[str, int] = _NO_HELPERS, file: str = "<assembly>") -> tuple[Insn, ...]:
    """Assemble a program.

    helpers: ids of helpers that are called by name alone (``call bpf_ktime_get_ns``). file: name for errors.
    A branch to the label ``exit``, when there is none, goes to the last ``exit`` instruction.
    Raises IsaError with line and column. The result is not checked: see :func:`userbpf.isa.check`.
    """
    insns: list[Insn] = []
    labels: dict[str, int] = {}
    pending: list[tuple[int, LabelRef, Cursor]] = []
    for number, line in enumerate(text.splitlines(), 1):
        cursor = Cursor(line, number, file)
        while cursor.peek().kind == "word" and cursor.peek(1).text == ":":
            label = cursor.take()
            if label.text in labels:
                cursor.fail(f'the label "{label.text}" is defined twice', label.column)
            labels[label.text] = len(insns)
            cursor.expect(":")
        if cursor.peek().kind == "end":
            continue
        parsed = parse_kernel(cursor, helpers) if is_kernel_syntax(cursor) else parse_mnemonic(cursor, helpers)
        cursor.end()
        if parsed.ref is not None:
            pending.append((len(insns), parsed.ref, cursor))
        insns.extend(parsed.insns)
    if "exit" not in labels:
        exits = [i for i, insn in enumerate(insns) if insn.op == EXIT]
        if exits:
            labels["exit"] = exits[-1]
    for index, ref, cursor in pending:
        insns[index] = _resolve(insns[index], index, ref, labels, cursor)
    return tuple(insns)


def _resolve(insn: Insn, index: int, ref: LabelRef, labels: Mapping[str, int], cursor: Cursor) -> Insn:
    target = labels.get(ref.label)
    if target is None:
        cursor.fail(f'the label "{ref.label}" is not defined', ref.column)
    distance = target - index - 1
    limit = _LIMITS[ref.field]
    if not -limit <= distance < limit:
        cursor.fail(f'the label "{ref.label}" is {distance} instructions away, too far', ref.column, "use gotol")
    return insn._replace(off=distance) if ref.field == "off" else insn._replace(imm=distance)
