"""The kernel's notation: ``r1 = *(u64 *)(r10 -8)``, ``if w0 s> 0x5 goto +3``, ``call bpf_map_lookup_elem#1``."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from userbpf.isa.insn import Insn, wide
from userbpf.isa.lexer import Cursor, LabelRef, Statement
from userbpf.isa.opcodes import (
    ATOMIC_OPS,
    BPF_ABS,
    BPF_ADD,
    BPF_ALU,
    BPF_ALU64,
    BPF_AND,
    BPF_ATOMIC,
    BPF_CMPXCHG,
    BPF_END,
    BPF_IND,
    BPF_JMP,
    BPF_JMP32,
    BPF_LD,
    BPF_LDX,
    BPF_MEM,
    BPF_MEMSX,
    BPF_MOV,
    BPF_NEG,
    BPF_OR,
    BPF_PSEUDO_BTF_ID,
    BPF_PSEUDO_CALL,
    BPF_PSEUDO_FUNC,
    BPF_PSEUDO_KFUNC_CALL,
    BPF_PSEUDO_MAP_FD,
    BPF_PSEUDO_MAP_IDX,
    BPF_PSEUDO_MAP_IDX_VALUE,
    BPF_PSEUDO_MAP_VALUE,
    BPF_ST,
    BPF_STX,
    BPF_TO_BE,
    BPF_X,
    BPF_XOR,
    CALL,
    CALLX,
    EXIT,
    JA,
    JA32,
    OPCODES,
    SIZE_BITS,
    Form,
)

_STARTERS: Final = frozenset({"if", "goto", "gotol", "call", "callx", "exit", ".insn", "*"})
_ALU_CODES: Final[Mapping[str, int]] = MappingProxyType(
    {row.symbol: row.code & 0xF0 for row in OPCODES.values() if row.form is Form.ALU_IMM}
)
_SIGNED_ALU: Final = frozenset({"/=", "%="})
_JUMP_CODES: Final[Mapping[str, int]] = MappingProxyType(
    {row.symbol: row.code & 0xF0 for row in OPCODES.values() if row.form is Form.JCC_IMM}
)
_LOCK_CODES: Final = MappingProxyType({"+=": BPF_ADD, "|=": BPF_OR, "&=": BPF_AND, "^=": BPF_XOR})
_ATOMIC_CODES: Final = MappingProxyType({name: code for code, name in ATOMIC_OPS.items()})
_END_CODES: Final = MappingProxyType(
    {"le": BPF_ALU | BPF_END, "be": BPF_ALU | BPF_END | BPF_TO_BE, "bswap": BPF_ALU64 | BPF_END}
)
_SWAP: Final = re.compile(r"(le|be|bswap)(16|32|64)")
_TYPE: Final = re.compile(r"([us])(8|16|32|64)")
_ATOMIC: Final = re.compile(r"atomic(64)?_(\w+)")
_MAP_KINDS: Final = MappingProxyType(
    {
        "fd": (BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE),
        "idx": (BPF_PSEUDO_MAP_IDX, BPF_PSEUDO_MAP_IDX_VALUE),
    }
)


def is_kernel_syntax(cursor: Cursor) -> bool:
    """Does the line begin as the kernel's notation does?"""
    first, second = cursor.peek(), cursor.peek(1)
    if first.text == "lock":
        return second.text == "*"
    return first.text in _STARTERS or cursor.at_register()


def parse_kernel(cursor: Cursor, helpers: Mapping[str, int]) -> Statement:
    """One statement."""
    first = cursor.peek()
    match first.text:
        case "exit":
            cursor.take()
            return Statement((Insn(EXIT, 0, 0, 0, 0),))
        case "call":
            cursor.take()
            return parse_call(cursor, helpers)
        case "callx":
            cursor.take()
            return Statement((Insn(CALLX, cursor.register()[0], 0, 0, 0),))
        case "goto" | "gotol":
            cursor.take()
            return _goto(cursor, first.text)
        case "if":
            cursor.take()
            return _branch(cursor)
        case "*":
            return _store(cursor)
        case "lock":
            cursor.take()
            return _lock(cursor)
        case ".insn":
            cursor.take()
            word = cursor.integer(0, (1 << 64) - 1, "the instruction word")
            op, regs, off, imm = struct.unpack("<BBhi", struct.pack("<Q", word))
            return Statement((Insn(op, regs & 15, regs >> 4, off, imm),))
        case _:
            return _assignment(cursor)


def parse_call(cursor: Cursor, helpers: Mapping[str, int]) -> Statement:
    """What follows ``call``, in both notations: a number, ``name#number``, ``pc+3``, ``local label``, ``kfunc``."""
    if cursor.at_number():
        return Statement((Insn(CALL, 0, 0, 0, cursor.imm32()),))
    token = cursor.peek()
    if token.text == "pc" or (token.text == "local" and cursor.peek(1).kind != "end"):
        if token.text == "local":
            cursor.take()
        target = cursor.target("imm")
        cursor.accept_note()
        return _with_target(Insn(CALL, 0, BPF_PSEUDO_CALL, 0, 0), target)
    name = cursor.word("a helper's name or number").text
    if name == "kfunc" and cursor.accept("["):
        off = cursor.off16()
        cursor.expect("]")
        number = _note_number(cursor)
        cursor.accept_note()
        return Statement((Insn(CALL, 0, BPF_PSEUDO_KFUNC_CALL, off, number),))
    if cursor.peek().kind == "note":
        return Statement((Insn(CALL, 0, 0, 0, _note_number(cursor)),))
    helper = helpers.get(name)
    if helper is None:
        cursor.fail(f'the helper "{name}" is not known', token.column, "write its number: call NAME#NUMBER")
    return Statement((Insn(CALL, 0, 0, 0, helper),))


def _note_number(cursor: Cursor) -> int:
    token = cursor.peek()
    text = cursor.accept_note()
    if text is None or not re.fullmatch(r"-?[0-9]{1,10}", text):
        cursor.fail("expected # and the number of the function", token.column)
    value = int(text)
    if not -(1 << 31) <= value < 1 << 31:
        cursor.fail(f"the number {value} does not fit into 32 bits", token.column)
    return value


def _with_target(insn: Insn, target: int | LabelRef) -> Statement:
    field = "imm" if insn.op in (CALL, JA32) else "off"
    if isinstance(target, LabelRef):
        return Statement((insn,), target)
    return Statement((insn._replace(imm=target) if field == "imm" else insn._replace(off=target),))


def _goto(cursor: Cursor, word: str) -> Statement:
    if word == "gotol":
        return _with_target(Insn(JA32, 0, 0, 0, 0), cursor.target("imm"))
    return _with_target(Insn(JA, 0, 0, 0, 0), cursor.target("off"))


def _branch(cursor: Cursor) -> Statement:
    dst, is64 = cursor.register()
    token = cursor.peek()
    code = _JUMP_CODES.get(token.text)
    if code is None:
        cursor.unexpected("a comparison")
    cursor.take()
    op = code | (BPF_JMP if is64 else BPF_JMP32)
    src, imm = 0, 0
    if cursor.at_register():
        src = _same_width(cursor, is64)
        op |= BPF_X
    else:
        imm = cursor.imm32()
    cursor.expect("goto")
    return _with_target(Insn(op, dst, src, 0, imm), cursor.target("off"))


def _same_width(cursor: Cursor, is64: bool) -> int:
    token = cursor.peek()
    number, source64 = cursor.register()
    if source64 != is64:
        cursor.fail("the two registers must have the same width: both r or both w", token.column)
    return number


def _type(cursor: Cursor) -> tuple[int, bool]:
    """``(u64 *)`` → size in bytes, and whether it is signed."""
    cursor.expect("(")
    match = _TYPE.fullmatch(cursor.peek().text)
    if match is None:
        cursor.unexpected("u8, u16, u32, u64 or s8, s16, s32")
    cursor.take()
    cursor.expect("*", ")")
    return int(match[2]) // 8, match[1] == "s"


def _address(cursor: Cursor) -> tuple[int, int]:
    """``(r10 -8)`` → register and offset."""
    cursor.expect("(")
    register, _ = cursor.register()
    off = cursor.off16() if cursor.at_number() else 0
    cursor.expect(")")
    return register, off


def _unsigned(cursor: Cursor) -> int:
    token = cursor.peek(1)
    size, signed = _type(cursor)
    if signed:
        cursor.fail("only loads have signed types", token.column)
    return SIZE_BITS[size]


def _store(cursor: Cursor) -> Statement:
    cursor.expect("*")
    bits = _unsigned(cursor)
    dst, off = _address(cursor)
    cursor.expect("=")
    if cursor.at_register():
        return Statement((Insn(BPF_STX | BPF_MEM | bits, dst, cursor.register()[0], off, 0),))
    return Statement((Insn(BPF_ST | BPF_MEM | bits, dst, 0, off, cursor.imm32()),))


def _lock(cursor: Cursor) -> Statement:
    cursor.expect("*")
    column = cursor.peek(1).column
    bits = _unsigned(cursor)
    _atomic_size(cursor, bits, column)
    dst, off = _address(cursor)
    code = _LOCK_CODES.get(cursor.peek().text)
    if code is None:
        cursor.unexpected("+=, |=, &= or ^=")
    cursor.take()
    return Statement((Insn(BPF_STX | BPF_ATOMIC | bits, dst, cursor.register()[0], off, code),))


def _atomic_size(cursor: Cursor, bits: int, column: int) -> None:
    if BPF_STX | BPF_ATOMIC | bits not in OPCODES:
        cursor.fail("atomic operations are 32 or 64 bits wide", column)


def _assignment(cursor: Cursor) -> Statement:
    dst, is64 = cursor.register()
    operator = cursor.take()
    symbol, off = operator.text, 0
    if symbol[:1] == "s" and symbol[1:] in _SIGNED_ALU:
        symbol, off = symbol[1:], 1
    code = _ALU_CODES.get(symbol)
    if code is None:
        cursor.fail(f'expected = or an operator such as +=, found "{operator.text}"', operator.column)
    if code == BPF_MOV:
        special = _special_value(cursor, dst, is64)
        if special is not None:
            return special
    op = code | (BPF_ALU64 if is64 else BPF_ALU)
    if cursor.at_register():
        return Statement((Insn(op | BPF_X, dst, _same_width(cursor, is64), off, 0),))
    return Statement((Insn(op, dst, 0, off, cursor.imm32()),))


def _special_value(cursor: Cursor, dst: int, is64: bool) -> Statement | None:
    """Right sides of ``=`` that are not a plain register or 32-bit number."""
    token, second = cursor.peek(), cursor.peek(1)
    if token.text == "*":
        return _load(cursor, dst)
    if token.text == "(":
        return _sign_extend(cursor, dst, is64)
    if token.text == "-" and second.kind == "word":
        cursor.take()
        if _same_width(cursor, is64) != dst:
            cursor.fail("negation works on one register: rN = -rN", second.column)
        return Statement((Insn(BPF_NEG | (BPF_ALU64 if is64 else BPF_ALU), dst, 0, 0, 0),))
    if token.kind == "word" and not cursor.at_register():
        return _named_value(cursor, dst, is64)
    after_number = cursor.peek(2) if token.text in ("-", "+") else second
    if after_number.text == "ll":
        value = cursor.imm64()
        cursor.expect("ll")
        return Statement(wide(dst, value))
    return None


def _load(cursor: Cursor, dst: int) -> Statement:
    cursor.expect("*")
    column = cursor.peek(1).column
    size, signed = _type(cursor)
    bits = SIZE_BITS[size]
    if cursor.accept("skb"):
        if dst or signed or size == 8:
            cursor.fail("packet loads go to r0 and are u8, u16 or u32", column)
        cursor.expect("[")
        if cursor.at_register():
            src, _ = cursor.register()
            insn = Insn(BPF_LD | BPF_IND | bits, 0, src, 0, cursor.imm32())
        else:
            insn = Insn(BPF_LD | BPF_ABS | bits, 0, 0, 0, cursor.imm32())
        cursor.expect("]")
        return Statement((insn,))
    if signed and size == 8:
        cursor.fail("there is no s64 load: it is the same as u64", column)
    src, off = _address(cursor)
    return Statement((Insn(BPF_LDX | (BPF_MEMSX if signed else BPF_MEM) | bits, dst, src, off, 0),))


def _sign_extend(cursor: Cursor, dst: int, is64: bool) -> Statement:
    cursor.expect("(")
    match = _TYPE.fullmatch(cursor.peek().text)
    widths = (8, 16, 32) if is64 else (8, 16)
    if match is None or match[1] != "s" or int(match[2]) not in widths:
        cursor.unexpected(" or ".join(f"s{width}" for width in widths))
    cursor.take()
    cursor.expect(")")
    op = BPF_MOV | BPF_X | (BPF_ALU64 if is64 else BPF_ALU)
    return Statement((Insn(op, dst, _same_width(cursor, is64), int(match[2]), 0),))


def _named_value(cursor: Cursor, dst: int, is64: bool) -> Statement:
    token = cursor.take()
    swap = _SWAP.fullmatch(token.text)
    if swap is not None:
        if cursor.register()[0] != dst:
            cursor.fail("byte swaps work on one register: rN = be16 rN", token.column)
        return Statement((Insn(_END_CODES[swap[1]], dst, 0, 0, int(swap[2])),))
    atomic = _ATOMIC.fullmatch(token.text)
    if atomic is not None:
        return _fetch(cursor, dst, is64, atomic[2], token.column)
    if not is64:
        cursor.fail("addresses are 64 bits wide: use r, not w", token.column)
    match token.text:
        case "map":
            return _map_address(cursor, dst)
        case "btf":
            cursor.expect("[", "id", ":")
            low = cursor.imm32()
            cursor.expect("]", "[", "fd", ":")
            high = cursor.imm32()
            cursor.expect("]")
            return _pseudo(dst, BPF_PSEUDO_BTF_ID, low, high)
        case "subprog":
            cursor.expect("[")
            target = cursor.target("imm")
            cursor.expect("]")
            cursor.accept_note()
            ref = target if isinstance(target, LabelRef) else None
            low = 0 if isinstance(target, LabelRef) else target
            return Statement(_pseudo(dst, BPF_PSEUDO_FUNC, low, 0).insns, ref)
    raise cursor.error(f'"{token.text}" is not a value', token.column)


def _pseudo(dst: int, src: int, low: int, high: int) -> Statement:
    return Statement(wide(dst, (low & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32, src))


def _map_address(cursor: Cursor, dst: int) -> Statement:
    cursor.expect("[")
    kinds = _MAP_KINDS.get(cursor.peek().text)
    if kinds is None:
        cursor.unexpected("fd or idx")
    cursor.take()
    cursor.expect(":")
    low = cursor.imm32()
    cursor.expect("]")
    src, high = kinds[0], 0
    if cursor.accept("["):
        cursor.expect("0", "]")
        src, high = kinds[1], cursor.imm32()
    cursor.accept_note()
    return _pseudo(dst, src, low, high)


def _fetch(cursor: Cursor, dst: int, is64: bool, name: str, column: int) -> Statement:
    code = _ATOMIC_CODES.get(name)
    if code is None or name in ("add", "or", "and", "xor"):
        cursor.fail(
            f'"{name}" is not an atomic operation', column, "fetch_add, fetch_or, fetch_and, fetch_xor, xchg, cmpxchg"
        )
    cursor.expect("(")
    bits = _unsigned(cursor)
    _atomic_size(cursor, bits, column)
    register, off = _address(cursor)
    if code == BPF_CMPXCHG:
        if dst or _same_width(cursor, is64):
            cursor.fail("cmpxchg compares with and returns in r0", column)
        src = _same_width(cursor, is64)
    else:
        src = _same_width(cursor, is64)
        if src != dst:
            cursor.fail("the old value goes to the register that was stored", column)
    cursor.expect(")")
    return Statement((Insn(BPF_STX | BPF_ATOMIC | bits, register, src, off, code),))
