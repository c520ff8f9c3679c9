"""The notation, both ways: golden lines, both syntaxes, errors with line and column."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userbpf.errors import IsaError
from userbpf.isa import Insn, Symbols, assemble, check, disassemble

GOLDEN = [
    ("r1 = *(u64 *)(r10 -8)", Insn(0x79, 1, 10, -8, 0)),
    ("r1 = *(u8 *)(r2 +255)", Insn(0x71, 1, 2, 255, 0)),
    ("r3 = *(s16 *)(r4 +0)", Insn(0x89, 3, 4, 0, 0)),
    ("*(u32 *)(r10 -4) = r0", Insn(0x63, 10, 0, -4, 0)),
    ("*(u16 *)(r1 +2) = -7", Insn(0x6A, 1, 0, 2, -7)),
    ("lock *(u64 *)(r1 +0) += r2", Insn(0xDB, 1, 2, 0, 0x00)),
    ("lock *(u32 *)(r1 +4) ^= w2", Insn(0xC3, 1, 2, 4, 0xA0)),
    ("r2 = atomic64_fetch_or((u64 *)(r1 +8), r2)", Insn(0xDB, 1, 2, 8, 0x41)),
    ("w2 = atomic_xchg((u32 *)(r1 -8), w2)", Insn(0xC3, 1, 2, -8, 0xE1)),
    ("r0 = atomic64_cmpxchg((u64 *)(r1 +0), r0, r3)", Insn(0xDB, 1, 3, 0, 0xF1)),
    ("r1 += r2", Insn(0x0F, 1, 2, 0, 0)),
    ("w1 -= 5", Insn(0x14, 1, 0, 0, 5)),
    ("r1 s>>= 63", Insn(0xC7, 1, 0, 0, 63)),
    ("r1 s/= r2", Insn(0x3F, 1, 2, 1, 0)),
    ("w1 s%= -3", Insn(0x94, 1, 0, 1, -3)),
    ("r1 = (s32)r2", Insn(0xBF, 1, 2, 32, 0)),
    ("w1 = (s8)w2", Insn(0xBC, 1, 2, 8, 0)),
    ("r4 = -r4", Insn(0x87, 4, 0, 0, 0)),
    ("r1 = be16 r1", Insn(0xDC, 1, 0, 0, 16)),
    ("r1 = le64 r1", Insn(0xD4, 1, 0, 0, 64)),
    ("r1 = bswap32 r1", Insn(0xD7, 1, 0, 0, 32)),
    ("if w0 s> 0x5 goto +3", Insn(0x66, 0, 0, 3, 5)),
    ("if r1 == 0xffffffff goto -1", Insn(0x15, 1, 0, -1, -1)),
    ("if r1 & r2 goto +0", Insn(0x4D, 1, 2, 0, 0)),
    ("goto +3", Insn(0x05, 0, 0, 3, 0)),
    ("gotol -70000", Insn(0x06, 0, 0, 0, -70000)),
    ("call helper#1", Insn(0x85, 0, 0, 0, 1)),
    ("call pc+5", Insn(0x85, 0, 1, 0, 5)),
    ("call kfunc[0]#77", Insn(0x85, 0, 2, 0, 77)),
    ("callx r3", Insn(0x8D, 3, 0, 0, 0)),
    ("exit", Insn(0x95, 0, 0, 0, 0)),
    ("r0 = *(u16 *)skb[12]", Insn(0x28, 0, 0, 0, 12)),
    ("r0 = *(u8 *)skb[r7 +14]", Insn(0x50, 0, 7, 0, 14)),
    (".insn 0x00000001000000ff", Insn(0xFF, 0, 0, 0, 1)),
]


@pytest.mark.parametrize(("text", "insn"), GOLDEN, ids=[text for text, _ in GOLDEN])
def test_golden_lines_both_ways(text: str, insn: Insn) -> None:
    assert disassemble([insn]) == [text]
    assert assemble(text) == (insn,)


def test_wide_instructions_have_an_empty_second_line() -> None:
    insns = assemble(
        "r1 = 0x1122334455667788 ll\nr2 = map[fd:9]\nr3 = map[idx:1][0]+16\n"
        "r4 = subprog[+1]\nr5 = btf[id:5][fd:0]\nexit"
    )
    assert [insn.src for insn in insns[::2]] == [0, 1, 6, 4, 3, 0]
    lines = disassemble(insns)
    assert lines[1::2] == [""] * 5
    assert lines[0] == "r1 = 0x1122334455667788 ll"


def test_symbols_name_helpers_maps_and_subprograms() -> None:
    insns = assemble("r1 = map[idx:0]\nr2 = map[idx:1][0]+8\ncall 1\ncall pc+1\nexit\nr0 = 0\nexit")
    symbols = Symbols(helpers={1: "bpf_map_lookup_elem"}, maps={0: "counts", 1: ".bss"}, subprogs={7: "add"})
    lines = [line for line in disassemble(insns, symbols=symbols) if line]
    assert lines[:4] == [
        "r1 = map[idx:0]#counts",
        "r2 = map[idx:1][0]+8#.bss",
        "call bpf_map_lookup_elem#1",
        "call pc+1#add",
    ]
    assert assemble("\n".join(lines)) == insns


MNEMONICS = """
# every family of the mnemonic notation
start:  mov %r0, 1          // a comment
        mov32 %r1, %r0
        add %r0, -1
        sdiv32 %r0, 3
        neg %r0
        be16 %r0
        swap64 %r0
        movsx832 %r0, %r1
        lddw %r2, 0x123456789abcdef0
        ldxdw %r0, [%r1+8]
        ldxsb %r0, [%r1]
        stxw [%r10-4], %r0
        stb [%r10-5], 0xff
        lock fetch add32 [%r10-8], %r1
        lock or [%r10-8], %r1
        lock cmpxchg [%r10-8], %r1
        jeq %r0, 0, start
        jsgt32 %r0, %r1, +1
        ja exit
        ja32 last
        call 7
        call local function
last:   exit
function: mov r0, 5
        exit
"""
IN_KERNEL_NOTATION = """
r0 = 1
w1 = w0
r0 += -1
w0 s/= 3
r0 = -r0
r0 = be16 r0
r0 = bswap64 r0
w0 = (s8)w1
r2 = 0x123456789abcdef0 ll
r0 = *(u64 *)(r1 +8)
r0 = *(s8 *)(r1 +0)
*(u32 *)(r10 -4) = r0
*(u8 *)(r10 -5) = 255
w1 = atomic_fetch_add((u32 *)(r10 -8), w1)
lock *(u64 *)(r10 -8) |= r1
r0 = atomic64_cmpxchg((u64 *)(r10 -8), r0, r1)
if r0 == 0 goto -18
if w0 s> w1 goto +1
goto +5
gotol +2
call 7
call pc+1
exit
r0 = 5
exit
"""


def test_mnemonic_notation_means_the_same_as_the_kernels() -> None:
    program = assemble(MNEMONICS)
    assert program == assemble(IN_KERNEL_NOTATION)
    check(assemble("mov %r0, 2\njne %r0, 2, exit\nadd %r0, 1\nexit"))


def test_labels_work_in_the_kernels_notation() -> None:
    assert assemble("again: r0 += 1\nif r0 < 10 goto again\ncall local f\nexit\nf: exit")[1].off == -2


def test_helpers_are_called_by_name_when_known() -> None:
    assert assemble("call bpf_ktime_get_ns", helpers={"bpf_ktime_get_ns": 5}) == (Insn(0x85, 0, 0, 0, 5),)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("r0 = 1\nfoo %r0", 2, 1),
        ("r0 += r11", 1, 7),
        ("r0 += w1", 1, 7),
        ("r0 =", 1, 5),
        ("r0 = 0x100000000", 1, 6),
        ("r1 = *(u64 *)(r10 -40000)", 1, 19),
        ("r1 = *(s64 *)(r10 -8)", 1, 8),
        ("goto nowhere", 1, 6),
        ("a: exit\na: exit", 2, 1),
        ("exit exit", 1, 6),
        ("r0 = 1 @", 1, 8),
        ("if r0 ~ 3 goto +1", 1, 7),
        ("call bpf_unknown", 1, 6),
        ("lock nand [%r1], %r2", 1, 6),
        ("jeq %r0, 1", 1, 11),
        ("mov %r0, 0x1ffffffff", 1, 10),
        ("lock *(u8 *)(r1 +0) += r2", 1, 8),
        (".insn 0x10000000000000000", 1, 7),
        ("r1 = -r2", 1, 7),
        ("r1 = map[file:3]", 1, 10),
    ],
)
def test_errors_name_line_and_column(text: str, line: int, column: int) -> None:
    with pytest.raises(IsaError) as caught:
        assemble(text, file="prog.s")
    assert (caught.value.place.line, caught.value.place.column) == (line, column)
    assert str(caught.value).startswith(f"prog.s:{line}:{column}: ")


def test_a_label_too_far_for_16_bits_is_refused() -> None:
    with pytest.raises(IsaError, match="too far"):
        assemble("goto end\n" + "r0 += 1\n" * 33_000 + "end: exit")
    assert assemble("gotol end\n" + "r0 += 1\n" * 33_000 + "end: exit")[0].imm == 33_000


@given(st.text(alphabet="rw01 =*()u64+-%#[],.:;/xlgotifcallexitskbmapidx\n", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_assembles_or_gives_an_isa_error(text: str) -> None:
    try:
        insns = assemble(text)
    except IsaError:
        return
    assert all(isinstance(insn, Insn) for insn in insns)
