"""Structural checks; the kernel's verifier is asked for the same programs where bpf(2) works."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

import pytest

from userbpf.errors import IsaError
from userbpf.isa import Insn, assemble, check, decode, encode, imm64, wide

EXIT = Insn(0x95, 0, 0, 0, 0)
ZERO = Insn(0xB7, 0, 0, 0, 0)

# (name, program, index of the instruction at fault, words of the message); the kernel refuses each of them.
BROKEN = [
    ("opcode 0xff", (ZERO, Insn(0xFF, 0, 0, 0, 0), EXIT), 1, "not an opcode"),
    ("opcode 0x00", (ZERO, Insn(0x00, 0, 0, 0, 0), EXIT), 1, "not an opcode"),
    ("neg of a register", (ZERO, Insn(0x8F, 0, 0, 0, 0), EXIT), 1, "not an opcode"),
    ("dw sign-extending load", (ZERO, Insn(0x99, 0, 10, -8, 0), EXIT), 1, "not an opcode"),
    ("imm in a register operation", (ZERO, Insn(0x0F, 0, 0, 0, 1), EXIT), 1, "imm"),
    ("src in an immediate operation", (ZERO, Insn(0x07, 0, 1, 0, 1), EXIT), 1, "src"),
    ("off in add", (ZERO, Insn(0x07, 0, 0, 1, 1), EXIT), 1, "off"),
    ("off 2 in div", (ZERO, Insn(0x37, 0, 0, 2, 1), EXIT), 1, "off"),
    ("off 32 in mov32", (ZERO, Insn(0xBC, 0, 0, 32, 0), EXIT), 1, "off"),
    ("register 11", (ZERO, Insn(0xB7, 11, 0, 0, 0), EXIT), 1, "r11"),
    ("swap of 8 bits", (ZERO, Insn(0xDC, 0, 0, 0, 8), EXIT), 1, "imm"),
    ("imm in a load", (ZERO, Insn(0x79, 0, 10, -8, 1), EXIT), 1, "imm"),
    ("atomic operation 0x20", (ZERO, Insn(0xDB, 10, 0, -8, 0x20), EXIT), 1, "imm"),
    ("atomic byte", (ZERO, Insn(0xD3, 10, 0, -8, 0), EXIT), 1, "not an opcode"),
    ("jump behind the end", (ZERO, Insn(0x05, 0, 0, 1, 0), EXIT), 1, "outside"),
    ("jump before the start", (ZERO, Insn(0x05, 0, 0, -3, 0), EXIT), 1, "outside"),
    ("jump into a wide instruction", (ZERO, Insn(0x15, 0, 0, 1, 0), *wide(1, 5), EXIT), 1, "middle"),
    ("imm in ja", (ZERO, Insn(0x05, 0, 0, 0, 1), EXIT), 1, "imm"),
    ("dst in ja", (ZERO, Insn(0x05, 1, 0, 0, 0), EXIT), 1, "dst"),
    ("imm in exit", (ZERO, EXIT._replace(imm=1)), 1, "imm"),
    ("no exit", (ZERO,), 0, "run off its end"),
    ("half a wide instruction", (ZERO, EXIT, wide(1, 5)[0]), 2, "second half"),
    ("second half with opcode", (ZERO, wide(1, 5)[0], Insn(0xB7, 0, 0, 0, 0), EXIT), 2, "second half"),
    ("second half with off", (ZERO, wide(1, 5)[0], Insn(0, 0, 0, 3, 0), EXIT), 2, "second half"),
    ("wide with src 7", (ZERO, *wide(1, 5, src=7), EXIT), 1, "src"),
    ("call src 3", (ZERO, Insn(0x85, 0, 3, 0, 0), EXIT), 1, "src"),
    ("call dst 1", (ZERO, Insn(0x85, 1, 0, 0, 5), EXIT), 1, "dst"),
    ("helper call with off", (ZERO, Insn(0x85, 0, 0, 1, 5), EXIT), 1, "off"),
    ("call behind the end", (ZERO, Insn(0x85, 0, 1, 0, 9), EXIT), 1, "outside"),
    ("jump into another subprogram", (*assemble("call pc+2\nif r0 == 0x0 goto +1\nexit\nr0 = 0\nexit"),), 1, "another"),
    ("subprogram without exit", (*assemble("call pc+2\nr0 = 0\nr0 = 1\nr0 = 0\nexit"),), 2, "run off its end"),
    ("empty program", (), None, "empty"),
]
SOUND = [
    ("smallest", (ZERO, EXIT)),
    ("loop that ends in a jump", assemble("r0 = 0\ngoto +1\nexit\ngoto -2")),
    (
        "signed and sign-extending",
        assemble("r0 = 7\nr0 s/= 2\nw0 s%= 2\nr0 = (s8)r0\nw0 = (s16)w0\nr0 = bswap16 r0\nexit"),
    ),
    ("wide", assemble("r0 = 0x100000000 ll\nexit")),
    ("gotol", assemble("r0 = 0\ngotol +0\nexit")),
    ("local call", assemble("call pc+1\nexit\nr0 = 3\nexit")),
    (
        "atomics",
        assemble(
            "*(u64 *)(r10 -8) = 1\nr0 = 1\nr1 = 2\nlock *(u64 *)(r10 -8) += r1\n"
            "r1 = atomic64_fetch_xor((u64 *)(r10 -8), r1)\nr0 = atomic64_cmpxchg((u64 *)(r10 -8), r0, r1)\nexit"
        ),
    ),
]


@pytest.mark.parametrize(("program", "index", "words"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_broken_structure_is_refused_with_index_and_field(
    program: tuple[Insn, ...], index: int | None, words: str
) -> None:
    with pytest.raises(IsaError, match=words) as caught:
        check(program)
    assert caught.value.place.insn == index


@pytest.mark.parametrize("program", [row[1] for row in SOUND], ids=[row[0] for row in SOUND])
def test_sound_structure_is_accepted(program: tuple[Insn, ...]) -> None:
    check(program)


def test_indirect_call_is_refused_with_a_remedy() -> None:
    with pytest.raises(IsaError, match="callx") as caught:
        check((Insn(0x8D, 1, 0, 0, 0), EXIT))
    assert caught.value.hint is not None


def test_poisoned_call_of_a_failed_relocation_is_sound() -> None:
    # libbpf writes a call of a helper that does not exist; only a verifier can say whether it is reached.
    check((ZERO, Insn(0x85, 0, 0, 0, 0xBAD2310), EXIT))


def test_bytes_that_end_within_an_instruction_are_refused() -> None:
    with pytest.raises(IsaError, match="cut off") as caught:
        decode(encode((ZERO, EXIT)) + b"\x95\0\0")
    assert caught.value.place.insn == 2


@pytest.mark.parametrize(
    ("insn", "field"),
    [
        (Insn(256, 0, 0, 0, 0), "op"),
        (Insn(7, 16, 0, 0, 0), "register"),
        (Insn(7, 0, -1, 0, 0), "register"),
        (Insn(7, 0, 0, 1 << 15, 0), "off"),
        (Insn(7, 0, 0, 0, 1 << 31), "imm"),
    ],
)
def test_fields_that_do_not_fit_are_named(insn: Insn, field: str) -> None:
    with pytest.raises(IsaError, match=field) as caught:
        encode((ZERO, insn))
    assert caught.value.place.insn == 1


def test_wide_constants_are_unsigned() -> None:
    for value in (0, 1, 0xFFFFFFFF, 0x80000000, 0x123456789ABCDEF0, (1 << 64) - 1):
        assert imm64(wide(3, value), 0) == value
    assert imm64(wide(3, -1), 0) == (1 << 64) - 1
    with pytest.raises(IsaError):
        imm64((ZERO,), 0)
    with pytest.raises(IsaError):
        imm64(wide(1, 1)[:1], 0)


SYSCALL_BPF = {"x86_64": 321, "aarch64": 280}
BPF_PROG_LOAD = 5
SOCKET_FILTER = 1


def kernel_accepts(program: tuple[Insn, ...]) -> bool:
    """Load as a socket filter and close again."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(encode(program) or b"\0")
    license_text = ctypes.create_string_buffer(b"GPL")
    head = (SOCKET_FILTER, len(program), ctypes.addressof(code), ctypes.addressof(license_text))
    attr = ctypes.create_string_buffer(struct.pack("<IIQQ", *head), 120)
    fd = libc.syscall(SYSCALL_BPF[platform.machine()], BPF_PROG_LOAD, attr, len(attr))
    if fd >= 0:
        os.close(fd)
        return True
    if ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):
        pytest.skip(f"bpf(2) is not allowed here: {os.strerror(ctypes.get_errno())}")
    return False


@pytest.mark.skipif(platform.machine() not in SYSCALL_BPF, reason="the number of bpf(2) is not known on this machine")
def test_the_kernel_judges_these_programs_as_we_do() -> None:
    for name, program in SOUND:
        assert kernel_accepts(program), name
    for row in BROKEN:
        assert not kernel_accepts(row[1]), row[0]
