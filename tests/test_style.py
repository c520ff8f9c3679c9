"""House rules that a machine can check: sizes, marks of unfinished work, names of machines."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_MODULE = 700
MAX_FUNCTION = 90

PYTHON = [path for folder in ("src", "bench", "examples", "native", "tests") for path in (ROOT / folder).rglob("*.py")]
C = [
    path
    for folder in ("native", "src", "examples", "bench")
    for suffix in ("*.c", "*.h")
    for path in (ROOT / folder).rglob(suffix)
]
TEXT = [*PYTHON, *C, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "hatch_build.py", *(ROOT / "docs").glob("*.md")]
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")


def generated(path: Path) -> bool:
    """Generated sources and headers that are data (built-in vmlinux.h) are checked by their generators."""
    return "_gen" in path.parts or "fallback" in path.parts


def test_modules_have_at_most_700_lines() -> None:
    sizes = {path: len(path.read_text().splitlines()) for path in [*PYTHON, *C] if not generated(path)}
    wrong = [f"{path.relative_to(ROOT)}: {size} lines" for path, size in sizes.items() if size > MAX_MODULE]
    assert not wrong, "\n".join(wrong)


def test_functions_have_at_most_90_lines() -> None:
    wrong = []
    for path in PYTHON:
        if generated(path):
            continue
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > MAX_FUNCTION:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {size} lines")
    assert not wrong, "\n".join(wrong)


def test_no_mark_of_unfinished_work() -> None:
    wrong = []
    for path in TEXT:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if UNFINISHED.search(line) or "raise NotImplemented" + "Error" in line:
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not wrong, "\n".join(wrong)


def test_every_package_module_has_a_docstring() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in PYTHON
        if path.is_relative_to(ROOT / "src") and path.read_text().strip() and not generated(path)
        if ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert not wrong, "\n".join(wrong)
