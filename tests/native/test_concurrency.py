"""C programs that treat maps badly: threads under sanitizers, and writers killed in the midst of an operation."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent.parent / "native"
ZIG = [sys.executable, "-m", "ziglang", "cc"]


def build(compiler: list[str], source: str, output: Path) -> None:
    """Compiles one of the programs here; skips when this compiler has not got the sanitizer."""
    command = [*compiler, "-w", "-g", f"-I{NATIVE / 'include'}", f"-I{NATIVE / 'src'}", "-o", str(output)]
    done = subprocess.run([*command, str(HERE / source), "-lpthread"], capture_output=True, text=True, check=False)
    if done.returncode and ("sanitize" in done.stderr or "san" in done.stderr and "cannot find" in done.stderr):
        pytest.skip(f"{compiler[0]} has no such sanitizer: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120, check=False)
    if "unexpected memory mapping" in done.stderr or "ASLR" in done.stderr:
        pytest.skip(f"the sanitizer does not run on this kernel: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.mark.parametrize(
    ("compiler", "flags"),
    [
        ("zig", ["-O2", "-fsanitize=undefined", "-fno-sanitize-recover=all"]),
        ("gcc", ["-O1", "-fsanitize=thread"]),
        ("gcc", ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]),
    ],
    ids=["undefined", "thread", "address"],
)
def test_threads_on_all_map_types_under_a_sanitizer(tmp_path: Path, compiler: str, flags: list[str]) -> None:
    if compiler == "gcc" and shutil.which("gcc") is None:
        pytest.skip("gcc is not installed: it is only needed for its sanitizers")
    build([*(ZIG if compiler == "zig" else ["gcc"]), *flags], "stress.c", tmp_path / "stress")
    output = run(tmp_path / "stress", "400")
    assert [line.split(":")[0] for line in output.splitlines()] == ["hash", "percpu", "ringbuf", "perf"]


def test_maps_survive_a_writer_that_is_killed_inside_an_operation(tmp_path: Path) -> None:
    build([*ZIG, "-O2", "-fno-sanitize=all"], "crash.c", tmp_path / "crash")
    output = run(tmp_path / "crash", "7")
    assert output.count(": ok, ") == 8, output
