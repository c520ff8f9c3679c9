"""Targets of the attach tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..process.programs import compile_program

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="session")
def busy() -> Iterator[Path]:
    """A program under load that checks every result: busy.c."""
    program = compile_program(PROGRAMS / "busy.c")
    yield program
    shutil.rmtree(program.parent)


@pytest.fixture(scope="session")
def shapes() -> Iterator[Path]:
    """A program of functions in all shapes that matter to patching: shapes.c."""
    program = compile_program(PROGRAMS / "shapes.c")
    yield program
    shutil.rmtree(program.parent)


@pytest.fixture(scope="session")
def harness() -> Iterator[Path]:
    """A library that runs machine code with given registers: harness.c."""
    library = compile_program(PROGRAMS / "harness.c", "-shared", "-fPIC")
    yield library
    shutil.rmtree(library.parent)
