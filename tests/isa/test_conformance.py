"""The public bpf_conformance vectors, when ``USERBPF_CONFORMANCE_DIR`` names them: notation and structure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from userbpf.isa import assemble, check, decode, disassemble, encode

DIRECTORY = os.environ.get("USERBPF_CONFORMANCE_DIR")


@pytest.mark.skipif(DIRECTORY is None, reason="USERBPF_CONFORMANCE_DIR is not set: the vectors are optional input")
def test_every_published_program_assembles_and_survives_the_round_trip() -> None:
    assert DIRECTORY is not None
    count = 0
    for path in sorted(Path(DIRECTORY).glob("*.data")):
        _, marker, rest = path.read_text().partition("-- asm\n")
        if not marker:
            continue
        insns = assemble(rest.partition("\n-- ")[0], file=path.name)
        check(insns)
        assert assemble("\n".join(disassemble(insns))) == insns, path.name
        assert decode(encode(insns)) == insns, path.name
        count += 1
    assert count
