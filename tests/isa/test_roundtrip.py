"""Properties over the whole opcode table: disassemble → assemble and encode → decode give the same instructions."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from userbpf.isa import Insn, Symbols, assemble, check, decode, disassemble, encode
from userbpf.isa.opcodes import CALL, CALLX, EXIT, LDDW, OPCODES, Opcode

S16 = st.integers(-(1 << 15), (1 << 15) - 1)
S32 = st.integers(-(1 << 31), (1 << 31) - 1)
REG = st.integers(0, 10)
PSEUDO_WITH_TWO_WORDS = (0, 2, 3, 6)


@st.composite
def instructions(draw: st.DrawFn, row: Opcode) -> tuple[Insn, ...]:
    """Any valid instruction of one row of the table."""
    if row.code == LDDW:
        src = draw(st.integers(0, 6))
        second = draw(S32) if src in PSEUDO_WITH_TWO_WORDS else 0
        return (Insn(LDDW, draw(REG), src, 0, draw(S32)), Insn(0, 0, 0, 0, second))
    off = draw(S16 if row.offs is None else st.sampled_from(sorted(row.offs)))
    imm = draw(S32 if row.imms is None else st.sampled_from(sorted(row.imms)))
    src = draw(REG) if row.uses_src else 0
    if row.code == CALL:
        src = draw(st.integers(0, 2))
        off = off if src == 2 else 0
    return (Insn(row.code, draw(REG) if row.uses_dst else 0, src, off, imm),)


PROGRAMS = st.lists(st.sampled_from(list(OPCODES.values())).flatmap(instructions), min_size=1, max_size=40).map(
    lambda parts: tuple(insn for part in parts for insn in part)
)


def text_of(insns: tuple[Insn, ...], symbols: Symbols | None = None) -> str:
    return "\n".join(disassemble(insns, symbols=symbols))


def test_the_table_has_every_opcode_of_rfc_9669() -> None:
    # 2 classes * (12 operations * 2 sources + neg) + 3 byte swaps = 53; 2 * 11 * 2 conditions + ja, ja32, call,
    # callx, exit = 49; loads and stores 3 * 4 + 3 sign-extending + 3 abs + 3 ind + 2 atomic + lddw = 24.
    assert len(OPCODES) == 53 + 49 + 24


@given(PROGRAMS)
@settings(max_examples=150, deadline=None)
def test_assembling_the_disassembly_gives_the_same_program(insns: tuple[Insn, ...]) -> None:
    assert assemble(text_of(insns)) == insns


@given(PROGRAMS)
@settings(max_examples=50, deadline=None)
def test_symbols_change_the_text_but_not_the_program(insns: tuple[Insn, ...]) -> None:
    class Everything(dict[int, str]):
        def get(self, key: int, default: object = None) -> str:
            return f"name_{key & 0xFFFF}"

    every = Everything()
    assert assemble(text_of(insns, Symbols(every, every, every, every))) == insns


@given(PROGRAMS)
@settings(max_examples=100, deadline=None)
def test_decoding_the_encoding_gives_the_same_program(insns: tuple[Insn, ...]) -> None:
    assert decode(encode(insns)) == insns


@given(st.binary(min_size=8, max_size=160).map(lambda data: data[: len(data) // 8 * 8]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_can_be_disassembled_and_encoded_again(data: bytes) -> None:
    insns = decode(data)
    assert encode(insns) == data
    assert len(disassemble(insns)) == len(insns)


@given(
    st.sampled_from([row for row in OPCODES.values() if row.code != CALLX and not row.is_jump]).flatmap(instructions)
)
@settings(max_examples=200, deadline=None)
def test_check_accepts_every_form_of_the_table(insns: tuple[Insn, ...]) -> None:
    exit_insn = Insn(EXIT, 0, 0, 0, 0)
    first = insns[0]
    if (first.op == CALL and first.src == 1) or (first.op == LDDW and first.src == 4):
        # A call or a callback: to the second exit, which is a subprogram of its own.
        insns = (first._replace(imm=len(insns)), *insns[1:])
    check((*insns, exit_insn, exit_insn))


def test_a_million_instructions_take_seconds() -> None:
    insns = assemble("r1 += r2\nif r1 != 0x5 goto +0\nr3 = 0x1122334455667788 ll\n") * 250_000
    data = encode(insns) + encode(assemble("exit"))
    begin = time.process_time()
    program = decode(data)
    check(program)
    assert len(disassemble(program)) == 1_000_001
    assert time.process_time() - begin < 20
