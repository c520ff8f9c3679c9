"""Targets that are compiled for the tests, and what is asked about them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534


def compile_program(source: Path, *flags: str) -> Path:
    """Build a C program with ziglang into a directory that every user can read; the caller removes the directory."""
    folder = Path(tempfile.mkdtemp(prefix="userbpf-test-"))
    folder.chmod(0o755)
    output = folder / source.stem
    command = [sys.executable, "-m", "ziglang", "cc", "-O1", "-Wall", "-Werror", *flags, "-o", str(output)]
    done = subprocess.run([*command, str(source), "-lpthread"], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(folder)
        pytest.fail(f"{source.name} does not compile: {done.stderr}")
    output.chmod(0o755)
    return output


@contextmanager
def running(argv: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A target that printed its first line (`ready`); it is ended by whoever asks first, at the latest here."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def finish(child: subprocess.Popen[str]) -> list[int]:
    """End a target of ours by its protocol and return the numbers it prints; its exit status must be 0."""
    output, _ = child.communicate("end\n", timeout=20)
    assert child.returncode == 0, (child.returncode, output)
    return [int(word) for word in output.split()]


def snapshot(pid: int) -> tuple[str, list[str]]:
    """The address space and the descriptors of a process."""
    return Path(f"/proc/{pid}/maps").read_text(), sorted(os.listdir(f"/proc/{pid}/fd"))


def as_nobody(function: Callable[[], None]) -> None:
    """Run ``function`` in a forked child as an ordinary user; its exception fails the test."""
    if os.geteuid() != 0:
        function()
        return
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            function()
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        problem = file.read().decode(errors="replace")
    os.waitpid(pid, 0)
    assert not problem, problem
