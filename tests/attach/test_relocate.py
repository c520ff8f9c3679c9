"""Moved instructions do what the originals do: both run natively, with the same registers and flags."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import struct
from pathlib import Path

import pytest

from userbpf.attach.decode import decode_all
from userbpf.attach.relocate_x86 import relocate, relocated_size
from userbpf.errors import AttachError

# Offsets in the page of code: where things lie.
CODE, EXIT0, EXIT1, CALLED, DATA, POINTER, MOVED = 0x1000, 0x100, 0x120, 0x140, 0x200, 0x280, 0x8000
ARITHMETIC_FLAGS = 0x8D5 | 0x400


def rel8(opcode: bytes, target: int, at: int = CODE) -> bytes:
    return opcode + struct.pack("<b", target - at - len(opcode) - 1)


def rel32(opcode: bytes, target: int, at: int = CODE, tail: bytes = b"") -> bytes:
    return opcode + struct.pack("<i", target - at - len(opcode) - 4 - len(tail)) + tail


NEAR_EXIT1 = CODE + 0x40
SNIPPETS: dict[str, bytes] = {
    "push, mov": bytes.fromhex("554889e5"),
    "endbr64": bytes.fromhex("f30f1efa"),
    "lea rax, [rip+x]": rel32(b"\x48\x8d\x05", DATA),
    "mov r9, [rip+x]": rel32(b"\x4c\x8b\x0d", DATA),
    "cmp [rip+x], imm8": rel32(b"\x83\x3d", DATA, tail=b"\x07"),
    "cmp [rip+x], imm32": rel32(b"\x48\x81\x3d", DATA, tail=b"\x44\x33\x22\x11"),
    "add word [rip+x], imm16": rel32(b"\x66\x81\x05", DATA, tail=b"\x34\x12"),
    "xor, test": bytes.fromhex("31c04885ff"),
    "rep stosb of nothing": bytes.fromhex("31c9f3aa"),
    "jmp rel8": rel8(b"\xeb", NEAR_EXIT1),
    "jmp rel32": rel32(b"\xe9", EXIT1),
    "jmp [rip+x]": rel32(b"\xff\x25", POINTER),
    "call rel32": rel32(b"\xe8", CALLED),
    "call [rip+x]": rel32(b"\xff\x15", POINTER + 8),
    "call rbx": b"\xff\xd3",
    "call r12": b"\x41\xff\xd4",
    "call [r13+8]": b"\x41\xff\x55\x08",
    "push, call": b"\x50" + rel32(b"\xe8", CALLED, CODE + 1),
    "call next": rel32(b"\xe8", CODE + 5),
    "loop": rel8(b"\xe2", NEAR_EXIT1),
    "loope": rel8(b"\xe1", NEAR_EXIT1),
    "loopne": rel8(b"\xe0", NEAR_EXIT1),
    "jrcxz": rel8(b"\xe3", NEAR_EXIT1),
    "jecxz": rel8(b"\x67\xe3", NEAR_EXIT1),
    "cmp, jne": b"\x48\x39\xf7" + rel8(b"\x75", NEAR_EXIT1, CODE + 3),
}
SNIPPETS |= {f"jcc8 {cc:x}": rel8(bytes([0x70 | cc]), NEAR_EXIT1) for cc in range(16)}
SNIPPETS |= {f"jcc32 {cc:x}": rel32(bytes([0x0F, 0x80 | cc]), EXIT1) for cc in range(16)}


def in_child(harness: Path) -> dict[str, list[list[list[int]]]]:
    """Results of every snippet, original and moved, for several register sets; runs in a forked child."""
    library = ctypes.CDLL(str(harness))
    page = mmap.mmap(-1, 0x10000, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    base = ctypes.addressof(ctypes.c_char.from_buffer(page))
    library.ub_result.restype = ctypes.POINTER(ctypes.c_uint64)
    out = library.ub_result()
    address = {n: ctypes.cast(getattr(library, n), ctypes.c_void_p).value or 0 for n in ("ub_exit0", "ub_exit1")}
    called = ctypes.cast(library.ub_called, ctypes.c_void_p).value or 0

    def stub(at: int, target: int) -> None:
        page[at : at + 14] = b"\xff\x25\x00\x00\x00\x00" + struct.pack("<Q", target)

    stub(EXIT0, address["ub_exit0"])
    stub(EXIT1, address["ub_exit1"])
    stub(CALLED, called)
    page[POINTER : POINTER + 16] = struct.pack("<QQ", base + EXIT1, base + CALLED)
    results: dict[str, list[list[list[int]]]] = {}
    chance = random.Random(1)
    for name, snippet in SNIPPETS.items():
        page[CODE : CODE + 0x80] = snippet + b"\xcc" * (0x80 - len(snippet))
        stub(CODE + len(snippet), address["ub_exit0"])
        stub(NEAR_EXIT1, address["ub_exit1"])
        insns = decode_all(snippet, base + CODE)
        moved = relocate(insns, base + MOVED, resume=base + CODE + len(snippet))
        assert len(moved.code) <= relocated_size(insns)
        page[MOVED : MOVED + len(moved.code)] = moved.code
        results[name] = []
        for _ in range(12):
            regs = [chance.choice((0, 1, 2, chance.getrandbits(64))) for _ in range(16)]
            regs[3] = regs[12] = base + CALLED  # rbx, r12: for indirect calls
            regs[13] = base + POINTER
            flags = chance.getrandbits(12) & ARITHMETIC_FLAGS | 0x202
            results[name].append([])
            for start in (CODE, MOVED):
                page[DATA : DATA + 16] = struct.pack("<QQ", 0x1122334411223344, 7)
                out[18] = 0
                library.ub_run(ctypes.c_void_p(base + start), (ctypes.c_uint64 * 17)(*regs, flags), None)
                results[name][-1].append([*out[:19], *struct.unpack("<QQ", page[DATA : DATA + 16])])
    return results


@pytest.fixture(scope="module")
def results(harness: Path) -> dict[str, list[list[list[int]]]]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with open(writer, "w") as file:
            file.write(json.dumps(in_child(harness)))
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the moved code ended the process: {status}"
    loaded: dict[str, list[list[list[int]]]] = json.loads(text)
    return loaded


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_moved_instruction_has_the_same_effect(name: str, results: dict[str, list[list[list[int]]]]) -> None:
    for original, moved in results[name]:
        assert moved == original
    if name.startswith(("jcc", "loop")):  # both ways were taken, or one of them cannot be
        assert {original[17] for original, _ in results[name]} == {0, 1}


def test_every_boundary_of_moved_code_is_mapped_to_the_original() -> None:
    code = bytes.fromhex("55 4889e5") + rel32(b"\xe8", 0x7F00_0000_0140, 0x7F00_0000_1004)
    insns = decode_all(code, 0x7F00_0000_1000)
    moved = relocate(insns, 0x7F00_0000_8000, resume=insns[-1].end)
    boundaries = {insn.addr for insn in decode_all(moved.code, 0x7F00_0000_8000)}
    assert boundaries == set(moved.places)
    # Behind the push of a call's return address the stack pointer is 8 lower than in the original.
    deltas = [moved.places[a].sp_delta for a in sorted(boundaries)]
    assert deltas == [0, 0, 0, 8, 8, 0]
    assert set(moved.starts) == {i.addr for i in insns} | {insns[-1].end}


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("0f0b", "raises a signal"),
        ("cc", "raises a signal"),
        ("ffd0 4889c3", "return into the bytes that are patched"),
        ("ff542408", "calls through the stack"),
        ("c7f800000000", "hardware transaction"),
    ],
)
def test_instructions_that_cannot_be_moved_are_refused(code: str, why: str) -> None:
    insns = decode_all(bytes.fromhex(code), 0x1000)
    with pytest.raises(AttachError, match=why):
        relocate(insns, 0x100000, resume=0x2000)


def test_an_operand_out_of_reach_is_refused() -> None:
    insns = decode_all(rel32(b"\x48\x8d\x05", DATA), CODE)
    with pytest.raises(AttachError, match="more than 2 GB"):
        relocate(insns, 1 << 40, resume=0x2000)


def test_a_process_with_shadow_stacks_keeps_real_calls() -> None:
    insns = decode_all(rel32(b"\xe8", CALLED), CODE)
    moved = relocate(insns, MOVED, resume=CODE + 5, shadow_stack=True)
    assert [i.text.split()[0] for i in decode_all(moved.code, MOVED)] == ["call", "jmp"]
