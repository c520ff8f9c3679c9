"""Machine code from LLVM does what RFC 9669 says: against the kernel, and against a model in Python."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from userbpf.codegen import HookKind, LocalImage, Request, compile_programs
from userbpf.isa import Insn, assemble, encode
from userbpf.kernel import KernelError, available
from userbpf.kernel.loader import KernelProg
from userbpf.kernel.syscall import bpf_inout
from userbpf.object import Program, Subprog
from userbpf.tables.programs import parse_section
from userbpf.verifier import verify

EDGES = (0, 1, 2, 7, 8, 31, 32, 63, 64, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
VALUES = (*EDGES, *((1 << 64) - v for v in EDGES if v), 1 << 63, (1 << 63) - 1, 0x0123456789ABCDEF)
ALU64 = ("+=", "-=", "*=", "/=", "s/=", "%=", "s%=", "|=", "&=", "^=", "<<=", ">>=", "s>>=")


def program(insns: Sequence[Insn], subprogs: Sequence[int] = (0,)) -> Program:
    """A uprobe program without maps."""
    ends = [*subprogs[1:], len(insns)]
    parts = tuple(Subprog(f"f{n}", start, end) for n, (start, end) in enumerate(zip(subprogs, ends, strict=True)))
    return Program("f0", parse_section("uprobe"), tuple(insns), (), parts, (), None, "GPL", "test.o")


def run(insns: Sequence[Insn], context: bytes = bytes(168), subprogs: Sequence[int] = (0,)) -> int:
    verified = verify(program(insns, subprogs))
    image = compile_programs([Request(verified, HookKind.PLAIN)], [])
    with LocalImage(image) as local:
        return local.run(context)


def in_kernel(insns: Sequence[Insn]) -> int:
    """r0 of the same instructions as a socket filter, by BPF_PROG_TEST_RUN (r0 is cut to 32 bits there)."""
    code = ctypes.create_string_buffer(encode(insns))
    log = ctypes.create_string_buffer(65536)
    license_ = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack(
        "<IIQQIIQ", 1, len(insns), ctypes.addressof(code), ctypes.addressof(license_), 1, 65536, ctypes.addressof(log)
    )
    fd = bpf_inout(5, ctypes.create_string_buffer(attr.ljust(120, b"\0")))
    if fd < 0:
        raise KernelError(log.value.decode(), errno=-fd)
    prog = KernelProg("f0", fd, "")
    try:
        return prog.test_run(bytes(64)).retval
    finally:
        prog.close()


def load64(register: int, value: int) -> str:
    return f"r{register} = {value:#x} ll\n"


operation = st.one_of(
    st.tuples(st.sampled_from(ALU64), st.sampled_from("rw"), st.integers(0, 4), st.integers(0, 4)).map(
        lambda t: f"{t[1]}{t[2]} {t[0]} {t[1]}{t[3]}\n"
    ),
    st.tuples(st.sampled_from(ALU64), st.sampled_from("rw"), st.integers(0, 4), st.integers(-(2**31), 2**31 - 1)).map(
        lambda t: (
            f"{t[1]}{t[2]} {t[0]} {t[3] % (64 if t[1] == 'r' else 32) if '<' in t[0] or '>' in t[0] else t[3] or 1}\n"
        )
    ),
    st.tuples(st.sampled_from(("be16", "be32", "be64", "le16", "le32", "le64")), st.integers(0, 4)).map(
        lambda t: f"r{t[1]} = {t[0]} r{t[1]}\n"
    ),
    st.tuples(st.sampled_from(("bswap16", "bswap32", "bswap64")), st.integers(0, 4)).map(
        lambda t: f"r{t[1]} = {t[0]} r{t[1]}\n"
    ),
    st.tuples(st.sampled_from(("s8", "s16", "s32")), st.integers(0, 4), st.integers(0, 4)).map(
        lambda t: f"r{t[1]} = ({t[0]})r{t[2]}\n"
    ),
    st.tuples(st.integers(0, 4)).map(lambda t: f"r{t[0]} = -r{t[0]}\n"),
    st.tuples(st.integers(0, 4)).map(lambda t: f"w{t[0]} = -w{t[0]}\n"),
)
branch = st.tuples(
    st.sampled_from(("==", "!=", ">", ">=", "<", "<=", "s>", "s>=", "s<", "s<=", "&")),
    st.sampled_from("rw"),
    st.integers(0, 4),
    st.integers(0, 4),
    st.lists(operation, min_size=1, max_size=3),
).map(lambda t: f"if {t[1]}{t[2]} {t[0]} {t[1]}{t[3]} goto +{len(t[4])}\n" + "".join(t[4]))


@st.composite
def random_program(draw: st.DrawFn) -> str:
    """Registers from edge values, arithmetic and forward branches, all registers folded into r0 of 32 bits."""
    text = "".join(load64(r, draw(st.sampled_from(VALUES))) for r in range(5))
    text += "".join(draw(st.lists(st.one_of(operation, branch), min_size=1, max_size=12)))
    for register in range(1, 5):
        text += f"r0 *= 31\nr0 ^= r{register}\n"
    return text + "r1 = r0\nr1 >>= 32\nr0 ^= r1\nw0 = w0\nexit\n"


@pytest.mark.usefixtures("kernel_bpf")
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_program())
def test_random_arithmetic_gives_what_the_kernel_gives(text: str) -> None:
    insns = assemble(text)
    assert run(insns) & 0xFFFFFFFF == in_kernel(insns), text


@pytest.mark.parametrize("op", ["/=", "s/=", "%=", "s%="])
@pytest.mark.parametrize("width", ["r", "w"])
def test_division_has_the_results_of_the_rfc_where_processors_trap(op: str, width: str) -> None:
    """RFC 9669 section 4.1: division by zero is 0, modulo by zero keeps dst, INT_MIN / -1 wraps."""
    bits = 64 if width == "r" else 32
    mask, minimum = (1 << bits) - 1, 1 << (bits - 1)
    for dst, src in ((minimum, mask), (minimum, 0), (5, 0), (7, 2), (mask, 1)):
        text = load64(0, dst) + load64(1, src) + f"{width}0 {op} {width}1\nexit\n"
        signed = op.startswith("s")
        left = dst - (1 << bits) if signed and dst >> (bits - 1) else dst
        right = src - (1 << bits) if signed and src >> (bits - 1) else src
        if right == 0:
            expected = dst if "%" in op else 0
        else:
            quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
            expected = (left - quotient * right if "%" in op else quotient) & mask
        assert run(assemble(text)) == expected, text


def test_atomics_return_the_old_value_and_change_memory() -> None:
    text = """
        r1 = 5
        *(u64 *)(r10 -8) = r1
        r2 = 3
        r2 = atomic64_fetch_add((u64 *)(r10 -8), r2)
        r3 = 100
        r3 = atomic64_xchg((u64 *)(r10 -8), r3)
        r0 = 100
        r4 = 7
        r0 = atomic64_cmpxchg((u64 *)(r10 -8), r0, r4)
        r5 = *(u64 *)(r10 -8)
        r0 <<= 8
        r0 += r2
        r0 <<= 8
        r0 += r3
        r0 <<= 8
        r0 += r5
        exit
    """
    assert run(assemble(text)) == (((100 << 8) + 5) << 8 | 8) << 8 | 7


def test_subprograms_keep_the_callers_registers_and_frames() -> None:
    text = """
        r6 = 11
        *(u64 *)(r10 -8) = r6
        r1 = 4
        call pc+4
        r1 = *(u64 *)(r10 -8)
        r0 += r1
        r0 += r6
        exit
        r6 = r1
        *(u64 *)(r10 -8) = r6
        r6 *= r6
        r0 = r6
        exit
    """
    assert run(assemble(text), subprogs=(0, 8)) == 16 + 11 + 11


def test_loops_with_a_bound_run_to_their_end() -> None:
    text = "r0 = 0\nr1 = 0\nr0 += r1\nr1 += 1\nif r1 < 1000 goto -3\nexit\n"
    assert run(assemble(text)) == sum(range(1000))


def test_the_context_is_read_where_it_is() -> None:
    context = struct.pack("<21Q", *range(100, 121))
    assert run(assemble("r0 = *(u64 *)(r1 +112)\nexit\n"), context) == 114
    assert run(assemble("r0 = *(u8 *)(r1 +80)\nexit\n"), context) == 110


def test_the_kernel_oracle_is_used_where_there_is_one() -> None:
    reason = available()
    if reason is not None:
        pytest.skip(reason)
    assert in_kernel(assemble("r0 = 42\nexit\n")) == 42
