"""CO-RE: what is written into instructions is what the target's compiler would have put there."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from userbpf.btf import Btf, Builder, CoreKind, CoreReloc, Decoder
from userbpf.btf.core import CORE_POISON, Resolution, Resolver, patch, relocate
from userbpf.btf.types import (
    Array,
    Enum,
    Enumerator,
    Func,
    FuncProto,
    Int,
    Member,
    Param,
    Ptr,
    Struct,
    Type,
    Typedef,
    Union,
)
from userbpf.errors import BtfError
from userbpf.isa import Insn, wide
from userbpf.object import Object

MOV, LOAD64, LOAD32, LOAD16 = 0xB7, 0x79, 0x61, 0x69
CALL = 0x85

KERNEL_FIELDS = [
    ("task_struct", "pid", "int"),
    ("task_struct", "comm", "char %s[16]"),
    ("task_struct", "real_parent", "void *"),
    ("mm_struct", "total_vm", "unsigned long"),
    ("file", "f_inode", "void *"),
    ("inode", "i_ino", "unsigned long"),
    ("dentry", "d_parent", "void *"),
    ("super_block", "s_magic", "unsigned long"),
    ("vm_area_struct", "vm_flags", "unsigned long"),
    ("signal_struct", "nr_threads", "int"),
    ("files_struct", "next_fd", "unsigned int"),
    ("cred", "securebits", "unsigned int"),
    ("nsproxy", "mnt_ns", "void *"),
    ("sk_buff", "len", "unsigned int"),
    ("net_device", "ifindex", "int"),
    ("sock", "sk_priority", "unsigned int"),
    ("rq", "nr_running", "unsigned int"),
    ("cgroup", "level", "int"),
    ("bpf_map", "max_entries", "unsigned int"),
    ("bpf_prog", "len", "unsigned int"),
    ("pt_regs", "sp", "unsigned long"),
    ("module", "name", "char %s[56]"),
    ("sched_entity", "vruntime", "unsigned long"),
]


def build(*types: Type) -> Btf:
    builder = Builder()
    for new in types:
        builder.add(new)
    return Btf.parse(builder.build())


def declared(field: str, ctype: str) -> str:
    return ctype % field if "%s" in ctype else f"{ctype} {field}"


def test_kernel_offsets_equal_those_of_the_compiler(vmlinux: Btf, vmlinux_h: str, bpf_cc: Callable[..., bytes]) -> None:
    """Fields seen through one-member structs of the same name, against offsetof and sizeof in the printed header."""
    fields = [row for row in KERNEL_FIELDS if f"struct {row[0]} {{" in vmlinux_h]
    assert len(fields) >= 20
    local = ["#pragma clang attribute push (__attribute__((preserve_access_index)), apply_to = record)"]
    local += [f"struct {s}___{i} {{ {declared(f, t)}; }};" for i, (s, f, t) in enumerate(fields)]
    local += [
        "#pragma clang attribute pop",
        "volatile unsigned long out;",
    ]
    local += ['__attribute__((section("uprobe"))) int prog(void *ctx) {']
    for i, (s, f, _) in enumerate(fields):
        for kind in (0, 1, 2):
            local.append(f"out = __builtin_preserve_field_info(((struct {s}___{i} *)ctx)->{f}, {kind});")
    source = "\n".join([*local, "return 0; }"])
    program = Object.parse(bpf_cc(source), name="fields.o", kernel_btf=lambda: vmlinux).programs["prog"]
    assert not program.core_failures
    found = [insn.imm for insn in program.insns if insn.op == MOV][: 3 * len(fields)]
    rows = ", ".join(f"__builtin_offsetof(struct {s}, {f}), sizeof(((struct {s} *)0)->{f}), 1" for s, f, _ in fields)
    table = f"{vmlinux_h}\nconst unsigned long table[] = {{ {rows} }};"
    compiled = bpf_cc(table, "-DBPF_NO_PRESERVE_ACCESS_INDEX", "-Wno-everything")
    raw = Object.parse(compiled, name="table.o").maps[".rodata"].initial
    assert raw is not None
    expected = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)]
    assert found == expected


def test_bitfields_are_read_where_the_target_has_them() -> None:
    """Offset, size, shifts and sign together read any bitfield of any target, as bpf_core_read_bitfield does."""
    rng = random.Random(3)
    for _ in range(200):
        width, word, bits = rng.choice((1, 2, 4, 8)), rng.randrange(3), 1
        bits = rng.randint(1, width * 8)
        shift = rng.randint(0, width * 8 - bits)
        signed = rng.random() < 0.5
        number = Int("number", width, width * 8, signed=signed)
        local = build(number, Struct("s", 8, (Member("f", 1, 0, bits),)))
        offset = word * 64 + shift
        target = build(number, Struct("s", 32, (Member("f", 1, offset, bits),)))
        resolver = Resolver(local, target)

        def ask(kind: CoreKind, resolver: Resolver = resolver) -> int:
            return resolver.resolve(CoreReloc(0, 2, "0:0", kind)).value

        at, size = ask(CoreKind.FIELD_BYTE_OFFSET), ask(CoreKind.FIELD_BYTE_SIZE)
        assert at % size == 0
        data = rng.randbytes(32)
        value = int.from_bytes(data[at : at + size], "little") << ask(CoreKind.FIELD_LSHIFT_U64) & (1 << 64) - 1
        if ask(CoreKind.FIELD_SIGNED) and value >> 63:
            value -= 1 << 64
        value >>= ask(CoreKind.FIELD_RSHIFT_U64)
        assert {"f": value} == Decoder(target, 2).decode(data)


LOCAL = build(
    Int("int", 4, 32, signed=True),
    Int("unsigned int", 4, 32),
    Struct("s___mine", 16, (Member("x", 1, 0), Member("y", 2, 32), Member("arr", 4, 64))),
    Array(2, 1, 2),
    Enum("e___mine", 4, False, (Enumerator("A___x", 0), Enumerator("GONE", 1))),
    Struct("only_here", 4, (Member("x", 1, 0),)),
    Typedef("t", 2),
    Struct("narrow", 4, (Member("s", 1, 0),)),
    Struct("twice", 4, (Member("x", 1, 0),)),
    Ptr(3),
    FuncProto(1, (Param("", 10),)),
    Typedef("handler", 11),
    Struct("flex", 4, (Member("n", 1, 0), Member("tail", 14, 32))),
    Array(2, 1, 0),
)
TARGET = build(
    Int("int", 4, 32, signed=True),
    Int("long", 8, 64),
    Struct("s", 64, (Member("", 4, 64), Member("arr", 5, 256))),
    Union("", 8, (Member("y", 2, 0), Member("x", 1, 0))),
    Array(2, 1, 4),
    Enum("e", 4, False, (Enumerator("B", 1), Enumerator("A", 41))),
    Typedef("t", 1),
    Struct("narrow", 8, (Member("s", 9, 0),)),
    Int("slong", 8, 64, signed=True),
    Struct("twice", 8, (Member("x", 1, 0),)),
    Struct("twice___b", 8, (Member("x", 1, 32),)),
    Ptr(0),
    FuncProto(1, (Param("", 12),)),
    Typedef("handler", 13),
    Func("f", 13),
    Struct("flex", 8, (Member("n", 1, 0), Member("more", 1, 32), Member("tail", 17, 64))),
    Array(1, 1, 0),
)


@pytest.mark.parametrize(
    ("type_id", "access", "kind", "value"),
    [
        (3, "0:0", CoreKind.FIELD_BYTE_OFFSET, 8),
        (3, "0:1", CoreKind.FIELD_BYTE_OFFSET, 8),
        (3, "0:1", CoreKind.FIELD_BYTE_SIZE, 8),
        (3, "0:2:1", CoreKind.FIELD_BYTE_OFFSET, 40),
        (3, "2:2:1", CoreKind.FIELD_BYTE_OFFSET, 168),
        (3, "0:0", CoreKind.FIELD_SIGNED, 1),
        (3, "0:1", CoreKind.FIELD_SIGNED, 0),
        (3, "0:2", CoreKind.FIELD_EXISTS, 1),
        (6, "0:0", CoreKind.FIELD_EXISTS, 0),
        (3, "0", CoreKind.TYPE_ID_LOCAL, 3),
        (3, "0", CoreKind.TYPE_ID_TARGET, 3),
        (3, "0", CoreKind.TYPE_EXISTS, 1),
        (3, "0", CoreKind.TYPE_SIZE, 64),
        (6, "0", CoreKind.TYPE_EXISTS, 0),
        (7, "0", CoreKind.TYPE_EXISTS, 1),
        (7, "0", CoreKind.TYPE_MATCHES, 0),
        (12, "0", CoreKind.TYPE_EXISTS, 0),
        (5, "0", CoreKind.ENUMVAL_EXISTS, 1),
        (5, "1", CoreKind.ENUMVAL_EXISTS, 0),
        (5, "0", CoreKind.ENUMVAL_VALUE, 41),
        (13, "0:1:3", CoreKind.FIELD_BYTE_OFFSET, 20),
    ],
)
def test_questions_are_answered_by_the_target(type_id: int, access: str, kind: CoreKind, value: int) -> None:
    answer = Resolver(LOCAL, TARGET).resolve(CoreReloc(0, type_id, access, kind))
    assert (answer.value, answer.poison) == (value, "")


@pytest.mark.parametrize(
    ("type_id", "access", "kind"),
    [
        (6, "0:0", CoreKind.FIELD_BYTE_OFFSET),
        (6, "0", CoreKind.TYPE_SIZE),
        (6, "0", CoreKind.TYPE_ID_TARGET),
        (5, "1", CoreKind.ENUMVAL_VALUE),
    ],
)
def test_what_the_target_lacks_becomes_an_invalid_call(type_id: int, access: str, kind: CoreKind) -> None:
    reloc = CoreReloc(8, type_id, access, kind)
    code = [Insn(MOV, 0, 0, 0, 0), Insn(MOV, 1, 0, 0, 0), *wide(1, 0)]
    out = relocate(code, [reloc, reloc.__class__(16, type_id, access, kind)], Resolver(LOCAL, TARGET))
    assert out[0] == code[0]
    assert out[1:] == [Insn(CALL, 0, 0, 0, CORE_POISON)] * 3


@pytest.mark.parametrize(
    ("type_id", "access", "kind", "says"),
    [
        (9, "0:0", CoreKind.FIELD_BYTE_OFFSET, "ambiguous"),
        (3, "0:9", CoreKind.FIELD_EXISTS, "beyond the members"),
        (3, "0:2:9", CoreKind.FIELD_EXISTS, "beyond an array"),
        (3, "0:0:0", CoreKind.FIELD_EXISTS, "no parts"),
        (3, "x", CoreKind.FIELD_EXISTS, "numbers"),
        (3, "0:-1", CoreKind.FIELD_EXISTS, "negative"),
        (3, "", CoreKind.FIELD_EXISTS, "numbers"),
        (3, "1", CoreKind.TYPE_EXISTS, "whole type"),
        (5, "7", CoreKind.ENUMVAL_VALUE, "does not name a value"),
        (4, "0", CoreKind.TYPE_EXISTS, "anonymous"),
        (99, "0", CoreKind.TYPE_EXISTS, "no BTF type"),
        (3, ":".join(["0"] * 65), CoreKind.FIELD_EXISTS, "too deep"),
    ],
)
def test_malformed_and_ambiguous_relocations_are_errors(type_id: int, access: str, kind: CoreKind, says: str) -> None:
    with pytest.raises(BtfError, match=says):
        Resolver(LOCAL, TARGET).resolve(CoreReloc(0, type_id, access, kind))


def test_the_programs_own_types_give_the_compilers_values() -> None:
    resolver = Resolver(LOCAL, LOCAL)
    for access, kind in (("0:1", CoreKind.FIELD_BYTE_OFFSET), ("0:2:1", CoreKind.FIELD_BYTE_OFFSET)):
        answer = resolver.resolve(CoreReloc(0, 3, access, kind))
        assert answer.value == answer.original and not answer.poison
    assert resolver.resolve(CoreReloc(0, 3, "0", CoreKind.TYPE_MATCHES)).value == 1


def test_loads_are_resized_only_where_zero_extension_is_right() -> None:
    resolver = Resolver(LOCAL, TARGET)
    unsigned = relocate([Insn(LOAD32, 1, 2, 4, 0)], [CoreReloc(0, 3, "0:1", CoreKind.FIELD_BYTE_OFFSET)], resolver)
    assert unsigned == [Insn(LOAD64, 1, 2, 8, 0)]
    signed = relocate([Insn(LOAD32, 1, 2, 0, 0)], [CoreReloc(0, 8, "0:0", CoreKind.FIELD_BYTE_OFFSET)], resolver)
    assert signed == [Insn(CALL, 0, 0, 0, CORE_POISON)]


@pytest.mark.parametrize(
    ("insns", "answer", "says"),
    [
        ([Insn(MOV, 1, 0, 0, 5)], Resolution(4, 8), "should have put 4"),
        ([Insn(LOAD32, 1, 2, 5, 0)], Resolution(4, 8), "should have put 4"),
        ([Insn(LOAD32, 1, 2, 4, 0)], Resolution(4, 1 << 15), "beyond the reach"),
        ([Insn(LOAD16, 1, 2, 4, 0)], Resolution(4, 8, old_size=4, new_size=8), "cannot be loaded"),
        ([Insn(0x95, 0, 0, 0, 0)], Resolution(4, 8), "cannot hold"),
        ([Insn(0x18, 0, 0, 0, 4)], Resolution(4, 8), "half a wide"),
    ],
)
def test_instructions_that_do_not_fit_are_refused(insns: list[Insn], answer: Resolution, says: str) -> None:
    with pytest.raises(BtfError, match=says):
        patch(insns, 0, answer)


def test_wide_constants_are_patched_in_both_halves() -> None:
    insns = list(wide(3, 7))
    patch(insns, 0, Resolution(7, 0xFFFFFFFF_00000001))
    assert insns == list(wide(3, 0xFFFFFFFF_00000001))
