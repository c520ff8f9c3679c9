"""BTF printed as C compiles, and the compiler finds every member where the BTF says it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from userbpf.btf import Btf, Builder, Kind, c_decl, dump_c
from userbpf.btf.types import (
    Array,
    Const,
    Enum,
    Enum64,
    Enumerator,
    FuncProto,
    Fwd,
    Int,
    Member,
    Param,
    Ptr,
    Struct,
    Type,
    Typedef,
    Union,
    Volatile,
)
from userbpf.errors import BtfError

RECORD = re.compile(r"^(struct|union) (\w+) \{", re.MULTILINE)


def build(*types: Type) -> Btf:
    builder = Builder()
    for new in types:
        builder.add(new)
    return Btf.parse(builder.build())


def layout_checks(btf: Btf, header: str) -> Iterator[str]:
    """A static assertion for the size of each named record and the offset of each of its members."""
    printed = {match[2] for match in RECORD.finditer(header)}
    for type_id in btf.ids():
        record = btf.type(type_id)
        if not isinstance(record, Struct | Union) or btf.find(record.name, btf.kind(type_id)) != type_id:
            continue
        if record.name not in printed:
            continue
        tag = f"{'struct' if isinstance(record, Struct) else 'union'} {record.name}"
        yield f'_Static_assert(sizeof({tag}) == {record.size}, "sizeof {tag}");'
        for member in record.members:
            if member.name and not member.bit_size:
                at = f"__builtin_offsetof({tag}, {member.name}) == {member.bit_offset // 8}"
                yield f'_Static_assert({at}, "{tag}.{member.name}");'


def test_clang_lays_out_the_whole_kernel_as_its_btf_says(
    vmlinux: Btf, vmlinux_h: str, bpf_cc: Callable[..., bytes]
) -> None:
    checks = list(layout_checks(vmlinux, vmlinux_h))
    assert len(checks) > 10_000
    bpf_cc(vmlinux_h + "\n".join(checks), "-DBPF_NO_PRESERVE_ACCESS_INDEX", "-Wno-everything")


def test_kernel_header_makes_core_relocations(vmlinux_h: str, bpf_cc: Callable[..., bytes]) -> None:
    source = vmlinux_h + "int pid(struct task_struct *task) { return task->pid; }"
    assert b"task_struct" in bpf_cc(source, "-Wno-everything")


def test_every_odd_layout_is_reproduced(bpf_cc: Callable[..., bytes]) -> None:
    btf = build(
        Int("int", 4, 32, signed=True),
        Int("char", 1, 8, signed=True),
        Int("long", 8, 64, signed=True),
        Struct("packed", 5, (Member("c", 2, 0), Member("i", 1, 8))),
        Struct("gap", 192, (Member("a", 1, 0), Member("b", 1, 512), Member("c", 2, 1024))),
        Struct("wide_gap", 8192, (Member("a", 1, 0), Member("b", 3, 8000 * 8))),
        Struct("late", 4096, (Member("a", 1, 0, 3), Member("b", 1, 4000 * 8))),
        Struct("bits", 16, (Member("a", 1, 3, 5), Member("b", 1, 8, 24), Member("c", 3, 70, 50))),
        Struct("packed_bits", 6, (Member("a", 1, 0, 24), Member("b", 1, 24, 24))),
        Union("aligned_union", 64, (Member("a", 1, 0), Member("g", 3, 0))),
        Union("odd_union", 12, (Member("a", 1, 0), Member("c", 2, 0))),
        Struct("holds_union", 128, (Member("c", 2, 0), Member("u", 10, 512))),
        Struct("empty", 0, ()),
        Array(1, 1, 0),
        Struct("flexible", 4, (Member("n", 1, 0), Member("tail", 14, 32))),
        Struct("holds_packed", 12, (Member("i", 1, 0), Member("p", 4, 32))),
        Array(4, 1, 3),
        Struct("array_of_packed", 16, (Member("c", 2, 0), Member("p", 17, 8))),
        Struct("only_padding", 24, ()),
    )
    header = dump_c(btf)
    bpf_cc(header + "\n".join(layout_checks(btf, header)), "-DBPF_NO_PRESERVE_ACCESS_INDEX", "-Wno-everything")
    assert header.count("packed))") == 2


def test_order_and_names_make_it_compile(bpf_cc: Callable[..., bytes]) -> None:
    btf = build(
        Int("int", 4, 32, signed=True),
        Struct("holder", 24, (Member("inner", 3, 0), Member("back", 5, 64), Member("call", 8, 128))),
        Typedef("inner_t", 4),
        Struct("inner", 8, (Member("p", 6, 0),)),
        Ptr(2),
        Ptr(3),
        FuncProto(5, (Param("", 6), Param("", 9), Param("", 0))),
        Ptr(7),
        Ptr(10),
        Fwd("unknown"),
        Enum("color", 4, True, (Enumerator("RED", -1), Enumerator("same", 1))),
        Enum("color", 1, False, (Enumerator("same", 2),)),
        Enum64("big", 8, False, (Enumerator("HUGE", 0xFFFFFFFFFFFFFFFF),)),
        Enum("", 4, False, (Enumerator("ALONE", 0xFFFFFFFF),)),
        Struct("holder", 1, ()),
        Struct("a b;c", 4, (Member("int x", 1, 0),)),
        Typedef("anon_t", 18),
        Struct("", 8, (Member("", 19, 0), Member("tail", 1, 32))),
        Union("", 4, (Member("x", 1, 0), Member("y", 1, 0))),
        Fwd("inner"),
    )
    header = dump_c(btf)
    checks = [
        '_Static_assert(sizeof(struct holder___2) == 1 && sizeof(anon_t) == 8 && sizeof(enum color___2) == 1, "");',
        '_Static_assert(same___2 == 2 && RED == -1 && HUGE == ~0ULL && ALONE == 0xffffffffU, "");',
    ]
    bpf_cc(header + "\n".join(checks))
    assert "struct _a_b_c {" in header


def test_declarations_read_as_people_write_them() -> None:
    btf = build(
        Int("int", 4, 32, signed=True),
        Ptr(1),
        Array(2, 1, 3),
        Ptr(3),
        FuncProto(4, (Param("", 2), Param("", 0))),
        Ptr(5),
        Const(1),
        Ptr(7),
        Const(8),
        Volatile(7),
        Array(6, 1, 2),
        FuncProto(0, ()),
        Struct("", 4, (Member("x", 1, 0),)),
    )
    assert c_decl(btf, 1, "n") == "int n"
    assert c_decl(btf, 3, "table") == "int *table[3]"
    assert c_decl(btf, 4, "row") == "int *(*row)[3]"
    assert c_decl(btf, 6, "call") == "int *(*(*call)(int *, ...))[3]"
    assert c_decl(btf, 9, "p") == "const int *const p"
    assert c_decl(btf, 10) == "const volatile int"
    assert c_decl(btf, 11, "v") == "int *(*(*v[2])(int *, ...))[3]"
    assert c_decl(btf, 12, "f") == "void f(void)"
    assert c_decl(btf, 13, "s") == "struct {\n\tint x;\n} s"


@pytest.mark.parametrize(
    "types",
    [
        (Struct("s", 4, (Member("s", 1, 0),)),),
        (Struct("", 4, (Member("s", 1, 0),)), Typedef("t", 1)),
        (Int("int", 4, 32), *[Struct("", 4, (Member("", i + 1, 0),)) for i in range(200)], Typedef("t", 201)),
        (Struct("s", 8, (Member("f", 2, 0),)), FuncProto(0, ())),
        (Struct("", 0, ()), Struct("s", 8, (Member("f", 1, 0, 3),))),
    ],
)
def test_types_that_c_cannot_express_are_refused(types: tuple[Type, ...]) -> None:
    with pytest.raises(BtfError):
        dump_c(build(*types))


def test_duplicate_names_in_the_kernel_become_flavors(vmlinux: Btf, vmlinux_h: str) -> None:
    tags = [match[0] for match in RECORD.finditer(vmlinux_h)]
    assert len(tags) == len(set(tags))
    assert vmlinux.find("task_struct", Kind.STRUCT) is not None and "struct task_struct {" in tags
