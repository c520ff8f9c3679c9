"""Instructions → text in the notation of the kernel's verifier log and of bpftool (kernel/bpf/disasm.c).

Differences, so that the text can be assembled again: a wide constant ends in ``ll`` as clang writes it, branches are
``goto +3`` without ``pc``, and names come behind a ``#``. What is no instruction is written as ``.insn WORD``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from userbpf.isa.insn import Insn, imm64
from userbpf.isa.opcodes import (
    ATOMIC_OPS,
    BPF_CMPXCHG,
    BPF_FETCH,
    BPF_PSEUDO_BTF_ID,
    BPF_PSEUDO_CALL,
    BPF_PSEUDO_FUNC,
    BPF_PSEUDO_KFUNC_CALL,
    BPF_PSEUDO_MAP_FD,
    BPF_PSEUDO_MAP_IDX,
    BPF_PSEUDO_MAP_IDX_VALUE,
    BPF_PSEUDO_MAP_VALUE,
    LDDW,
    OPCODES,
    Form,
    Opcode,
)


@dataclass(frozen=True)
class Symbols:
    """Names for the disassembler; all are optional.

    helpers: by helper id (``tables.HELPER_NAMES``); maps: by index into the program's maps; subprogs: by the index
    of their first instruction; kfuncs: by BTF id.
    """

    helpers: Mapping[int, str] = field(default_factory=dict)
    maps: Mapping[int, str] = field(default_factory=dict)
    subprogs: Mapping[int, str] = field(default_factory=dict)
    kfuncs: Mapping[int, str] = field(default_factory=dict)


_NO_SYMBOLS: Final = Symbols()


def disassemble(insns: Sequence[Insn], *, symbols: Symbols | None = None) -> list[str]:
    """One string for each slot; '' for the second slot of a wide instruction. Never fails: bad slots become .insn."""
    names = symbols or _NO_SYMBOLS
    out: list[str] = []
    skip = False
    for i, insn in enumerate(insns):
        if skip:
            skip = False
            out.append("")
            continue
        row = OPCODES.get(insn.op)
        if row is None:
            out.append(_raw(insn))
        elif row.code == LDDW:
            if i + 1 < len(insns) and insns[i + 1].op == 0:
                out.append(_wide(insns, i, names))
                skip = True
            else:
                out.append(_raw(insn))
        elif row.form is Form.CALL:
            out.append(_call(insn, i, names))
        else:
            out.append(_FORMS[row.form](row, insn))
    return out


def _raw(insn: Insn) -> str:
    op, dst, src, off, imm = insn
    (word,) = struct.unpack("<Q", struct.pack("<BBhi", op, dst | src << 4, off, imm))
    return f".insn {word:#018x}"


def _named(text: str, name: str | None) -> str:
    return f"{text}#{name}" if name else text


def _wide(insns: Sequence[Insn], index: int, names: Symbols) -> str:
    insn, second = insns[index], insns[index + 1].imm
    dst, imm = insn.dst, insn.imm
    match insn.src:
        case 0:
            return f"r{dst} = {imm64(insns, index):#x} ll"
        case n if n == BPF_PSEUDO_MAP_FD:
            return f"r{dst} = map[fd:{imm}]"
        case n if n == BPF_PSEUDO_MAP_VALUE:
            return f"r{dst} = map[fd:{imm}][0]{second:+d}"
        case n if n == BPF_PSEUDO_MAP_IDX:
            return _named(f"r{dst} = map[idx:{imm}]", names.maps.get(imm))
        case n if n == BPF_PSEUDO_MAP_IDX_VALUE:
            return _named(f"r{dst} = map[idx:{imm}][0]{second:+d}", names.maps.get(imm))
        case n if n == BPF_PSEUDO_BTF_ID:
            return f"r{dst} = btf[id:{imm}][fd:{second}]"
        case n if n == BPF_PSEUDO_FUNC:
            return _named(f"r{dst} = subprog[{imm:+d}]", names.subprogs.get(index + 1 + imm))
        case _:
            return _raw(insn)


def _call(insn: Insn, index: int, names: Symbols) -> str:
    if insn.src == BPF_PSEUDO_CALL:
        return _named(f"call pc{insn.imm:+d}", names.subprogs.get(index + 1 + insn.imm))
    if insn.src == BPF_PSEUDO_KFUNC_CALL:
        return f"call kfunc[{insn.off}]#{insn.imm}" + _named("", names.kfuncs.get(insn.imm))
    if insn.src:
        return _raw(insn)
    return f"call {names.helpers.get(insn.imm, 'helper')}#{insn.imm}"


def _reg(row: Opcode, number: int) -> str:
    return f"r{number}" if row.size == 8 else f"w{number}"


def _alu_reg(row: Opcode, insn: Insn) -> str:
    dst, src = _reg(row, insn.dst), _reg(row, insn.src)
    if row.name == "mov" and insn.off:
        return f"{dst} = (s{insn.off}){src}"
    return f"{dst} {_signed(row, insn)} {src}"


def _alu_imm(row: Opcode, insn: Insn) -> str:
    return f"{_reg(row, insn.dst)} {_signed(row, insn)} {insn.imm}"


def _signed(row: Opcode, insn: Insn) -> str:
    return f"s{row.symbol}" if insn.off == 1 and row.name in ("div", "mod") else row.symbol


def _neg(row: Opcode, insn: Insn) -> str:
    dst = _reg(row, insn.dst)
    return f"{dst} = -{dst}"


def _end(row: Opcode, insn: Insn) -> str:
    return f"r{insn.dst} = {row.name}{insn.imm} r{insn.dst}"


def _memory(row: Opcode, register: int, off: int) -> str:
    sign = "s" if row.signed else "u"
    return f"({sign}{row.size * 8} *)(r{register} {off:+d})"


def _ldx(row: Opcode, insn: Insn) -> str:
    return f"r{insn.dst} = *{_memory(row, insn.src, insn.off)}"


def _stx(row: Opcode, insn: Insn) -> str:
    return f"*{_memory(row, insn.dst, insn.off)} = r{insn.src}"


def _st(row: Opcode, insn: Insn) -> str:
    return f"*{_memory(row, insn.dst, insn.off)} = {insn.imm}"


_LOCK_SYMBOLS: Final = {"add": "+=", "or": "|=", "and": "&=", "xor": "^="}


def _atomic(row: Opcode, insn: Insn) -> str:
    name = ATOMIC_OPS.get(insn.imm)
    if name is None:
        return _raw(insn)
    where = _memory(row, insn.dst, insn.off)
    register = "r" if row.size == 8 else "w"
    src = f"{register}{insn.src}"
    if not insn.imm & BPF_FETCH:
        return f"lock *{where} {_LOCK_SYMBOLS[name]} {src}"
    function = f"atomic{'64' if row.size == 8 else ''}_{name}"
    if insn.imm == BPF_CMPXCHG:
        return f"{register}0 = {function}({where}, {register}0, {src})"
    return f"{src} = {function}({where}, {src})"


def _ld_abs(row: Opcode, insn: Insn) -> str:
    return f"r0 = *(u{row.size * 8} *)skb[{insn.imm}]"


def _ld_ind(row: Opcode, insn: Insn) -> str:
    return f"r0 = *(u{row.size * 8} *)skb[r{insn.src} {insn.imm:+d}]"


def _jcc_reg(row: Opcode, insn: Insn) -> str:
    return f"if {_reg(row, insn.dst)} {row.symbol} {_reg(row, insn.src)} goto {insn.off:+d}"


def _jcc_imm(row: Opcode, insn: Insn) -> str:
    return f"if {_reg(row, insn.dst)} {row.symbol} {insn.imm & 0xFFFFFFFF:#x} goto {insn.off:+d}"


_FORMS: Final[Mapping[Form, Callable[[Opcode, Insn], str]]] = MappingProxyType(
    {
        Form.ALU_REG: _alu_reg,
        Form.ALU_IMM: _alu_imm,
        Form.NEG: _neg,
        Form.END: _end,
        Form.LDX: _ldx,
        Form.STX: _stx,
        Form.ST: _st,
        Form.ATOMIC: _atomic,
        Form.LD_ABS: _ld_abs,
        Form.LD_IND: _ld_ind,
        Form.JA: lambda row, insn: f"goto {insn.off:+d}",
        Form.JA32: lambda row, insn: f"gotol {insn.imm:+d}",
        Form.JCC_REG: _jcc_reg,
        Form.JCC_IMM: _jcc_imm,
        Form.CALLX: lambda row, insn: f"callx r{insn.dst}",
        Form.EXIT: lambda row, insn: "exit",
    }
)
