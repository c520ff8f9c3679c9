"""BTF is read as it was written, and hostile bytes give BtfError."""

from __future__ import annotations

import random
import struct

import pytest

from userbpf.btf import Btf, Builder, Kind, essential_name
from userbpf.btf.types import (
    Array,
    Const,
    DataSec,
    DataSecVar,
    DeclTag,
    Enum,
    Enum64,
    Enumerator,
    Float,
    Func,
    FuncProto,
    Fwd,
    Int,
    Linkage,
    Member,
    Param,
    Ptr,
    Restrict,
    Struct,
    Type,
    Typedef,
    TypeTag,
    Union,
    Var,
    Volatile,
)
from userbpf.errors import BtfError

ALL_KINDS: tuple[Type, ...] = (
    Int("int", 4, 32, signed=True),
    Int("_Bool", 1, 8, bool_=True),
    Int("char", 1, 8, char=True),
    Ptr(1),
    Array(1, 1, 7),
    Struct("s", 16, (Member("a", 1, 0), Member("", 7, 64))),
    Union("", 8, (Member("x", 4, 0), Member("y", 1, 0))),
    Struct("bits", 4, (Member("a", 1, 0, 3), Member("b", 1, 3, 29))),
    Enum("e", 4, True, (Enumerator("MINUS", -1), Enumerator("ONE", 1))),
    Enum("u", 4, False, (Enumerator("BIG", 0xFFFFFFFF),)),
    Enum64("e64", 8, False, (Enumerator("HUGE", 1 << 63),)),
    Enum64("s64", 8, True, (Enumerator("LOW", -(1 << 63)),)),
    Fwd("later"),
    Fwd("later_u", is_union=True),
    Typedef("u32", 1),
    Volatile(15),
    Const(16),
    Restrict(4),
    FuncProto(1, (Param("x", 1), Param("", 0))),
    Func("f", 19, Linkage.GLOBAL),
    Var("v", 1, Linkage.GLOBAL),
    DataSec(".data", 4, (DataSecVar(21, 0, 4),)),
    Float("double", 8),
    DeclTag("tag", 6, 1),
    TypeTag("rcu", 1),
    TypeTag("noderef", 1, attribute=True),
)


def build(*types: Type) -> bytes:
    builder = Builder()
    for new in types:
        builder.add(new)
    return builder.build()


def test_every_kind_survives_writing_and_reading() -> None:
    btf = Btf.parse(build(*ALL_KINDS))
    assert [btf.type(i) for i in btf.ids()] == list(ALL_KINDS)
    assert [btf.name(i) for i in btf.ids()] == [new.name for new in ALL_KINDS]
    assert {btf.kind(i) for i in btf.ids()} == set(Kind) - {Kind.VOID}


def test_kernel_btf_survives_writing_and_reading(vmlinux: Btf) -> None:
    ids = [*range(1, 20_000), *range(20_000, len(vmlinux), 97)]
    types = [vmlinux.type(i) for i in ids]
    again = Btf.parse(build(*types))
    assert [again.type(i) for i in again.ids()] == types


def test_kernel_types_are_found_by_name(vmlinux: Btf) -> None:
    found = vmlinux.find("task_struct", Kind.STRUCT)
    assert found is not None
    task = vmlinux.expect(found, Struct)
    assert task.size == vmlinux.size_of(found)
    assert {"pid", "tgid", "comm"} <= {member.name for member in task.members}
    assert vmlinux.find("no such type") is None


def test_names_are_found_by_flavor_and_not_by_part() -> None:
    btf = Btf.parse(
        build(Int("xt", 4, 32), Int("t", 4, 32), Int("t___2", 4, 32), Int("t2", 4, 32), Int("t___2b", 4, 32))
    )
    assert btf.find_all("t") == [2]
    assert btf.find_flavors("t") == [2, 3, 5]
    assert [essential_name(name) for name in ("a___b", "a____b", "a___", "___a", "a___b___c", "a")] == [
        "a",
        "a____b",
        "a___",
        "___a",
        "a___b",
        "a",
    ]


def test_split_btf_continues_ids_and_strings_of_its_base() -> None:
    base = Btf.parse(build(Int("int", 4, 32, signed=True), Typedef("pid_t", 1)))
    strings = b"\0mod\0"
    offset = len(b"\0int\0pid_t\0")
    types = struct.pack("<III", offset + 1, Kind.TYPEDEF << 24, 2) + struct.pack("<III", 1, Kind.TYPEDEF << 24, 1)
    data = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings
    split = Btf.parse(data, base)
    assert list(split.ids()) == [3, 4] and len(split) == 5
    assert split.type(3) == Typedef("mod", 2)
    assert split.type(4) == Typedef("int", 1)
    assert split.find_all("int") == [1, 4]
    assert split.resolve(3) == 1 and split.size_of(3) == 4


def test_size_and_alignment() -> None:
    btf = Btf.parse(build(*ALL_KINDS))
    assert [btf.size_of(i) for i in (1, 4, 5, 6, 7, 11, 17, 21, 22)] == [4, 8, 28, 16, 8, 8, 4, 4, 4]
    assert [btf.align_of(i) for i in (1, 4, 5, 6, 17)] == [4, 8, 4, 8, 4]
    packed = Btf.parse(build(Int("int", 4, 32), Struct("p", 5, (Member("a", 1, 8),))))
    assert packed.align_of(2) == 1
    for i in (13, 19, 20):
        with pytest.raises(BtfError):
            btf.size_of(i)


@pytest.mark.parametrize(
    ("types", "ask"),
    [
        ((Typedef("a", 2), Typedef("b", 1)), "resolve"),
        ((Array(1, 1, 2),), "size_of"),
        ((Struct("s", 4, (Member("s", 1, 0),)),), "align_of"),
        ((Typedef("a", 77),), "size_of"),
        ((Int("int", 4, 32), *[Array(i + 1, 1, 0xFFFFFFFF) for i in range(8)]), "size_of"),
        ((Int("odd", 3, 24),), "size_of_type"),
    ],
)
def test_absurd_types_are_refused(types: tuple[Type, ...], ask: str) -> None:
    btf = Btf.parse(build(*types))
    last = len(types) if ask == "size_of" else 1
    with pytest.raises(BtfError):
        btf.type(1) if ask == "size_of_type" else getattr(btf, ask)(last)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "header"),
        (b"\xeb\x9f" + bytes(30), "big-endian"),
        (b"\x7fELF" + bytes(30), "not BTF"),
        (struct.pack("<HBBIIIII", 0xEB9F, 2, 0, 24, 0, 0, 0, 1) + b"\0", "version"),
        (struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 1 << 31, 0, 1) + b"\0", "outside"),
        (struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"x", "NUL"),
        (struct.pack("<HBBIIIIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1, 0, 31 << 24, 0) + b"\0", "malformed"),
        (struct.pack("<HBBIIIIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 1, 0, 4 << 24 | 0xFFFF, 0) + b"\0", "outside"),
    ],
)
def test_malformed_btf_is_refused_with_a_sentence(data: bytes, says: str) -> None:
    with pytest.raises(BtfError, match=says):
        Btf.parse(data)


def test_damaged_btf_gives_types_or_btf_error() -> None:
    rng = random.Random(1)
    good = build(*ALL_KINDS)
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            btf = Btf.parse(bytes(data))
        except BtfError:
            continue
        for type_id in btf.ids():
            for ask in (btf.type, btf.size_of, btf.align_of, btf.resolve, btf.name):
                try:
                    ask(type_id)
                except BtfError:
                    continue
