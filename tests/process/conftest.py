"""Targets of the process tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .programs import compile_program


@pytest.fixture(scope="session")
def blocked() -> Iterator[Path]:
    """A program whose threads wait in system calls: blocked.c."""
    program = compile_program(Path(__file__).parent / "blocked.c")
    yield program
    shutil.rmtree(program.parent)
