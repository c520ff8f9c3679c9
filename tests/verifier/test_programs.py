"""C programs as people write them, compiled: accepted, run, compared with the kernel; and the mistakes, diagnosed."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest
from concrete import Machine
from kernel_oracle import Oracle

from userbpf.object import Object
from userbpf.object.model import Program
from userbpf.toolchain import compile_c
from userbpf.verifier import Limits, RejectedError, verify

PROGS = Path(__file__).parent / "progs"
EXPECTED = re.compile(r"// ([a-z-]+)$")


@pytest.fixture(scope="module")
def accepted() -> dict[str, Program]:
    return load("accepted.bpf.c")


@pytest.fixture(scope="module")
def rejected() -> dict[str, Program]:
    return load("rejected.bpf.c")


def load(name: str) -> dict[str, Program]:
    obj = Object.parse(compile_c(PROGS / name), name=name, kernel_btf=lambda: None)
    assert not obj.errors
    return obj.programs


def expectations() -> dict[str, tuple[int, str]]:
    """Function → line and code of the rejection that its comment asks for."""
    found = {}
    function = ""
    for number, line in enumerate((PROGS / "rejected.bpf.c").read_text().splitlines(), 1):
        if line.startswith("int "):
            function = line[4 : line.index("(")]
        match = EXPECTED.search(line)
        if match is not None:
            found[function] = (number, match[1])
    return found


def test_typical_programs_are_accepted_and_keep_their_promises(accepted: dict[str, Program]) -> None:
    assert len(accepted) >= 20
    for program in accepted.values():
        facts = verify(program).facts
        for seed in range(4):
            Machine(program, facts, random.Random(seed)).run()


@pytest.mark.usefixtures("kernel_bpf")
def test_the_kernel_accepts_them_too(accepted: dict[str, Program]) -> None:
    oracle = Oracle()
    verdicts = {name: oracle.verdict(program) for name, program in accepted.items()}
    assert not {name: log for name, (fine, log) in verdicts.items() if not fine}


def test_a_typical_program_takes_milliseconds(accepted: dict[str, Program]) -> None:
    """The bound is ten times the aim, for machines under load; bench/ measures."""
    begin = time.process_time()
    verify(accepted["record_in_ring"])
    assert time.process_time() - begin < 0.5


@pytest.mark.parametrize("name", expectations())
def test_mistakes_are_found_on_their_line(rejected: dict[str, Program], name: str) -> None:
    line, code = expectations()[name]
    with pytest.raises(RejectedError) as caught:
        verify(rejected[name], limits=Limits(visited=20_000))
    diagnosis = caught.value.diagnosis
    assert diagnosis.code == code
    assert diagnosis.line is not None
    # The epilogue of a function is the line of its closing brace.
    assert diagnosis.line.line in (line, line + 1)
    assert caught.value.place.line == diagnosis.line.line


def test_a_diagnosis_reads_like_a_compilers(rejected: dict[str, Program]) -> None:
    with pytest.raises(RejectedError) as caught:
        verify(rejected["index_too_large"])
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "error[mem-out-of-bounds]: the write of 8 bytes at an offset up to 256 ends behind the global variables '.bss'"
    )
    number = caught.value.place.line
    assert lines[1].endswith(f"rejected.bpf.c:{number}:14 (program index_too_large)")
    assert lines[3].startswith(f"{number} |     table[i] = 1;")
    assert lines[4].strip() == "|     ^^^^^^^^^^^^"
    text = str(caught.value)
    assert "= known: the global variables '.bss' has 256 bytes" in text
    assert "= path: rejected.bpf.c:45: if (i > 32) (jump not taken at instruction" in text
    assert "= help: bound the index before the access" in text


def test_a_reservation_that_leaks_is_named(rejected: dict[str, Program]) -> None:
    with pytest.raises(RejectedError) as caught:
        verify(rejected["forgets_a_record"])
    assert any("bpf_ringbuf_reserve(&ring, 8, 0)" in fact for fact in caught.value.diagnosis.known)
    assert [step.taken for step in caught.value.diagnosis.path] == [False, True]


def test_a_loop_without_bound_is_named_once(rejected: dict[str, Program]) -> None:
    with pytest.raises(RejectedError) as caught:
        verify(rejected["unbounded_loop"], limits=Limits(visited=20_000))
    *before, last = caught.value.diagnosis.path
    assert len(before) <= 1
    assert last.times > 100
