"""The target, compiled once, and the object with the probes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


class Target:
    """A running tests/session/target.c."""

    def __init__(self, path: Path, user: int | None = None) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, user=user, group=user
        )
        self.pid = self.process.pid
        assert self._line().startswith("ready")

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> str:
        """The answer without ``done``; a target that has died fails the test."""
        self.tell(command)
        line = self._line()
        assert line, f"the target died in {command!r}: status {self.process.wait(5)}"
        return line.removeprefix("done").strip()

    def at(self, function: str) -> str:
        """``PATH:SYMBOL`` for attach."""
        return f"{self.path}:{function}"

    def state(self) -> tuple[str, list[str]]:
        """Address space and descriptors."""
        return Path(f"/proc/{self.pid}/maps").read_text(), sorted(os.listdir(f"/proc/{self.pid}/fd"))

    def end(self) -> int:
        with contextlib.suppress(BrokenPipeError):
            self.tell("quit")
        try:
            return self.process.wait(10)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            assert self.process.stdin is not None and self.process.stdout is not None
            self.process.stdin.close()
            self.process.stdout.close()


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = Path("/tmp") / f"userbpf-session-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    output = folder / "target"
    command = [sys.executable, "-m", "ziglang", "cc", "-O2", "-fno-sanitize=all", "-Wall", "-Werror"]
    done = subprocess.run(
        [*command, "-o", str(output), str(HERE / "target.c"), "-lpthread"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    folder.chmod(0o755)
    output.chmod(0o755)
    yield output
    shutil.rmtree(folder)


@pytest.fixture
def target(program: Path) -> Iterator[Target]:
    running = Target(program)
    yield running
    assert running.end() == 0, "the target did not survive"


@pytest.fixture(scope="session")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from userbpf.toolchain import compile_c

    output = tmp_path_factory.mktemp("probes") / "probes.bpf.o"
    output.write_bytes(compile_c(HERE / "probes.bpf.c"))
    return output
