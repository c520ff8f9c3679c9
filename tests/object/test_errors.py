"""Files that are no BPF objects are named for what they are."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from userbpf.errors import BtfError, ObjectError
from userbpf.object import Object

Compile = Callable[..., bytes]
PROGRAM = 'int counter; SEC("uprobe") int prog(void *ctx) { counter++; return 0; }'


def parse(data: bytes) -> Object:
    return Object.parse(data, name="input.o")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "the file is empty"),
        (b"#include <linux/bpf.h>\n", "this is C source"),
        (b"BC\xc0\xde" + bytes(60), "LLVM bitcode"),
        (b"hello", "not an ELF file"),
        (b"\x7fELF\2\1\1", "truncated inside its header"),
        (b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 1, 247) + bytes(44), "no sections"),
        (b"\x7fELF\2\2\1" + bytes(9) + struct.pack(">HH", 1, 247) + bytes(44), "BPF object is big-endian"),
        (b"\x7fELF\2\2\1" + bytes(9) + struct.pack(">HH", 1, 22) + bytes(44), "S/390 ELF file is big-endian"),
        (b"\x7fELF\1\1\1" + bytes(9) + struct.pack("<HH", 1, 40) + bytes(44), r"Arm \(32-bit\) object file"),
        (b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 2, 183) + bytes(44), "AArch64 executable"),
        (b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 4, 62) + bytes(44), "x86-64 core dump"),
        (b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 2, 247) + bytes(44), "BPF executable, not a relocatable"),
        (b"\x7fELF\1\1\1" + bytes(9) + struct.pack("<HH", 1, 247) + bytes(44), "32-bit ELF"),
    ],
)
def test_what_the_file_is(data: bytes, says: str) -> None:
    with pytest.raises(ObjectError, match=says) as caught:
        parse(data)
    assert caught.value.place.file == "input.o"


def test_the_python_interpreter_is_no_bpf_object() -> None:
    with pytest.raises(ObjectError, match=r"not a BPF object"):
        parse(Path(sys.executable).resolve().read_bytes())


def test_truncated_objects_say_so(bpf_cc: Compile) -> None:
    data = bpf_cc(PROGRAM)
    for size in (64, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(ObjectError, match="truncated"):
            parse(data[:size])


def test_an_object_of_nothing_is_refused_and_one_of_maps_is_not(bpf_cc: Compile) -> None:
    with pytest.raises(ObjectError, match="neither programs nor maps"):
        parse(
            bpf_cc(
                "static noinline int a(int x) { return x; } int b(int x) { return a(x); } int c(int x) { return a(x); }"
            )
        )
    assert not parse(bpf_cc("int counter = 3;")).programs


def test_damaged_btf_is_named_with_the_file(bpf_cc: Compile) -> None:
    data = bpf_cc(PROGRAM)
    at = data.index(b"\x9f\xeb\x01")
    with pytest.raises(BtfError, match="version 9") as caught:
        parse(data[: at + 2] + b"\x09" + data[at + 3 :])
    assert caught.value.place.file == "input.o"


def test_sections_that_ask_for_all_memory_are_refused(bpf_cc: Compile) -> None:
    data = bytearray(bpf_cc(PROGRAM))
    (table,), (count,) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<H", data, 60)
    for at in range(table, table + 64 * count, 64):
        if struct.unpack_from("<I", data, at + 4)[0] == 8:
            struct.pack_into("<Q", data, at + 32, 1 << 50)
    with pytest.raises(ObjectError, match="asks for 1125899906842624 zero bytes"):
        parse(bytes(data))
