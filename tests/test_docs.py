"""Every fenced code block of README.md and docs/*.md is executed, in order, in one folder per page.

console: lines with ``$ `` are commands of one shell; they must succeed, and the lines below each are its output,
where ``...`` stands for any text and a line of ``...`` for any lines. python: run as a script. c: the first line is
a comment with the file's name; written, and compiled when it is BPF. json: must parse. text: a picture.
``make`` targets are only checked to exist: the tests are one of them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("README.md"), *sorted((ROOT / "docs").glob("*.md"))]
TIMEOUT = 120


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks with the line of their first line of text."""
    fence: re.Match[str] | None = None
    body: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if fence is None:
            fence = re.match(r"^( *)```(\w*)", line)
            body = []
        elif line.strip() == "```":
            yield Block(page.name, number - len(body), fence[2], "\n".join(body))
            fence = None
        else:
            body.append(line.removeprefix(fence[1]))
    assert fence is None, f"{page.name}: the last code block is not closed"


def environment(folder: Path) -> dict[str, str]:
    """As after ``. .venv/bin/activate``: the package that is being tested comes first."""
    beside = Path(sys.executable).parent
    if not (beside / "userbpf").exists():  # tested from the source tree, not installed
        python = beside / "python3"
        beside = folder / ".bin"
        beside.mkdir(exist_ok=True)
        for name, module in (("userbpf", "-m userbpf.cli.app"), ("python3", "")):
            command = beside / name
            command.write_text(f'#!/bin/sh\nexec {shlex.quote(str(python))} {module} "$@"\n')
            command.chmod(0o755)
    paths = [str(beside), os.environ.get("PATH", "")]
    return {**os.environ, "PATH": os.pathsep.join(paths), "HOME": str(folder), "COLUMNS": "120", "NO_COLOR": "1"}


def matches(expected: list[str], actual: list[str]) -> bool:
    """Whole lines; ``...`` in a line is any text, a line of ``...`` any number of lines. Columns move with what is
    in them, so runs of blanks are as one."""

    def squeeze(line: str) -> str:
        return re.sub(r"[ \t]+", " ", line).strip()

    pattern = []
    for line in expected:
        if line.strip() == "...":
            pattern.append(r"(?:[^\n]*\n)*")
        else:
            pattern.append(".*".join(map(re.escape, squeeze(line).split("..."))) + r"\n")
    return re.fullmatch("".join(pattern), "".join(squeeze(line) + "\n" for line in actual)) is not None


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """(command, expected output) pairs; a command goes on in the next line after a backslash."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found and not found[-1][1] and found[-1][0].endswith("\\"):
            found[-1] = (f"{found[-1][0]}\n{line}", [])
        elif found:
            found[-1][1].append(line)
    return [(command, expected) for command, expected in found]


def run_console(block: Block, folder: Path) -> None:
    mark = "userbpf-docs-command-ends"
    script = ["trap 'for job in $(jobs -p); do kill $job; done 2>/dev/null || true; wait || true' EXIT", "set -e"]
    steps = commands(block)
    for command, _ in steps:
        if command.startswith("make"):
            command = f"make -n -C {shlex.quote(str(ROOT))} {command.removeprefix('make')} >/dev/null"
        script += [command, f"printf '\\n{mark}\\n'"]
    result = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    where = f"{block.page}:{block.line}"
    assert result.returncode == 0, f"{where}: exit status {result.returncode}\n{result.stdout}"
    outputs = result.stdout.split(f"\n{mark}\n")
    for (command, expected), output in zip(steps, outputs, strict=False):
        while expected and not expected[-1].strip():
            expected.pop()
        if expected and not command.startswith("make"):
            actual = output.rstrip("\n").splitlines()
            assert matches(expected, actual), f"{where}: $ {command}\nthe page says otherwise than\n{output}"


def run_c(block: Block, folder: Path) -> None:
    first = block.text.partition("\n")[0]
    name = re.fullmatch(r"\s*(?://|/\*)\s*([\w.-]+\.[ch])\b.*", first)
    assert name is not None, f"{block.page}:{block.line}: the first line must be a comment with the file's name"
    (folder / name[1]).write_text(block.text + "\n")
    if name[1].endswith(".bpf.c"):
        from userbpf.toolchain import compile_c

        compile_c(folder / name[1])


def run_python(block: Block, folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert result.returncode == 0, f"{block.page}:{block.line}: {result.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_of_the_page_do_what_it_says(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.language == "console":
            run_console(block, tmp_path)
        elif block.language == "python":
            run_python(block, tmp_path)
        elif block.language == "c":
            run_c(block, tmp_path)
        elif block.language == "json":
            json.loads(block.text)
        else:
            assert block.language == "text", (
                f"{page.name}:{block.line}: no way to execute {block.language or 'nothing'}"
            )


def test_wildcards_match_text_and_lines() -> None:
    assert matches(["a ... c", "...", "end"], ["a b c", "x", "y", "end"])
    assert matches(["...", "end"], ["end"])
    assert matches(["name  ... hits"], ["name        x       hits"])
    assert not matches(["a ... c"], ["a b d"])
    assert not matches(["a"], ["a", "b"])
