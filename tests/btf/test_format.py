"""Typed values: what Python sees of bytes, and back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userbpf.btf import Btf, Builder, Decoder, Kind
from userbpf.btf.types import Array, DataSec, DataSecVar, Enum, Enumerator, Float, Int, Member, Ptr, Struct, Union, Var
from userbpf.errors import BtfError

INT, CHAR, BOOL, U64, TEXT, PTR, ENUM, DOUBLE, INTS, INNER, ANON, REC, BITS, VAR, SEC, GRID = range(1, 17)


@pytest.fixture(scope="module")
def btf() -> Btf:
    builder = Builder()
    for new in (
        Int("int", 4, 32, signed=True),
        Int("char", 1, 8, signed=True),
        Int("_Bool", 1, 8, bool_=True),
        Int("u64", 8, 64),
        Array(CHAR, INT, 8),
        Ptr(0),
        Enum("color", 4, False, (Enumerator("RED", 0), Enumerator("BLUE", 7))),
        Float("double", 8),
        Array(INT, INT, 3),
        Struct("inner", 8, (Member("a", INT, 0), Member("b", INT, 32))),
        Union("", 8, (Member("whole", U64, 0), Member("half", INT, 0))),
        Struct("rec", 48, (Member("in", INNER, 0), Member("", ANON, 64), Member("list", INTS, 128),
                           Member("c", ENUM, 224), Member("text", TEXT, 256), Member("p", PTR, 320))),
        Struct("bits", 4, (Member("x", INT, 0, 3), Member("y", BOOL, 3, 1), Member("z", ENUM, 4, 28))),
        Var("counter", INT, 1),
        DataSec(".bss", 12, (DataSecVar(VAR, 8, 4),)),
        Array(INTS, INT, 2),
    ):  # fmt: skip
        builder.add(new)
    return Btf.parse(builder.build())


def test_values_of_every_kind(btf: Btf) -> None:
    def decode(type_id: int, data: bytes) -> object:
        return Decoder(btf, type_id).decode(data)

    assert decode(INT, b"\xff" * 4) == -1
    assert decode(BOOL, b"\x01") is True
    assert decode(U64, b"\xff" * 8) == (1 << 64) - 1
    assert decode(PTR, b"\1" + bytes(7)) == 1
    assert decode(ENUM, b"\7\0\0\0") == "BLUE"
    assert decode(ENUM, b"\x09\0\0\0") == 9
    assert decode(DOUBLE, bytes(6) + b"\xf8\x3f") == 1.5
    assert decode(GRID, bytes(range(24)))[1][2] == 0x17161514  # type: ignore[index]
    assert decode(SEC, bytes(8) + b"\5\0\0\0") == {"counter": 5}


def test_character_arrays_are_text_only_when_they_are(btf: Btf) -> None:
    text = Decoder(btf, TEXT)
    assert text.decode(b"bash\0\0\0\0") == "bash"
    assert text.decode(b"bash\0junk"[:8]) == "bash"
    assert text.decode("größe\0".encode()[:8].ljust(8, b"\0")) == "größe"
    assert text.decode(b"12345678") == b"12345678"
    assert text.decode(b"\xff\xfe\0\0\0\0\0\0") == b"\xff\xfe\0\0\0\0\0\0"
    assert text.decode(b"\x01a\0\0\0\0\0\0") == b"\x01a\0\0\0\0\0\0"


def test_records_show_members_and_hide_anonymous_layers(btf: Btf) -> None:
    value = {
        "in": {"a": 1, "b": -2},
        "whole": 1 << 32 | 5,
        "half": 5,
        "list": [1, 2, 3],
        "c": "BLUE",
        "text": "hi",
        "p": 0xFFFF888000000000,
    }
    rec = Decoder(btf, REC)
    assert rec.size == 48
    assert rec.decode(rec.encode(value)) == value
    assert rec.decode(rec.encode({"c": 7})) == {
        "in": {"a": 0, "b": 0}, "whole": 0, "half": 0, "list": [0, 0, 0], "c": "BLUE", "text": "", "p": 0
    }  # fmt: skip


def test_bitfields_do_not_disturb_each_other(btf: Btf) -> None:
    bits = Decoder(btf, BITS)
    assert bits.encode({"x": -1}) == b"\x07\0\0\0"
    assert bits.encode({"x": -4, "y": True, "z": "BLUE"}) == b"\x7c\0\0\0"
    assert bits.decode(b"\x7c\0\0\0") == {"x": -4, "y": True, "z": "BLUE"}


@pytest.mark.parametrize(
    ("type_id", "value", "says"),
    [
        (INT, 1 << 32, "integer of 32 bits"),
        (INT, "x", "integer"),
        (INT, 1.5, "integer"),
        (BOOL, 2, "true or false"),
        (TEXT, "too long for it", "at most 8"),
        (INTS, [1, 2, 3, 4], "at most 3"),
        (ENUM, "GREEN", "RED, BLUE"),
        (REC, {"in": {"q": 1}}, "in has no member 'q'"),
        (REC, {"list": [0, "x"]}, r"list\[1\] is 'x'"),
        (REC, 7, "a dict"),
        (BITS, {"x": 8}, "integer of 3 bits"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_member(btf: Btf, type_id: int, value: object, says: str) -> None:
    with pytest.raises(BtfError, match=says):
        Decoder(btf, type_id).encode(value)


def test_short_data_and_types_without_values_are_refused(btf: Btf) -> None:
    with pytest.raises(BtfError, match="takes 4 bytes, there are 3"):
        Decoder(btf, INT).decode(b"\0\0\0")
    with pytest.raises(BtfError, match="void"):
        Decoder(btf, 0)


def test_numpy_integers_are_integers(btf: Btf) -> None:
    numpy = pytest.importorskip("numpy", reason="numpy is not installed")
    assert Decoder(btf, INT).encode(numpy.int64(-5)) == b"\xfb\xff\xff\xff"


@settings(deadline=None)  # other work on the machine is no failure
@given(data=st.binary(min_size=168, max_size=168))
def test_decoding_what_was_encoded_gives_the_same(vmlinux: Btf, data: bytes) -> None:
    found = vmlinux.find("pt_regs", Kind.STRUCT)
    assert found is not None
    codec = Decoder(vmlinux, found)
    value = codec.decode(data)
    assert codec.decode(codec.encode(value)) == value
