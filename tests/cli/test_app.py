"""The frame of the command line: quick help, one sentence for an error, honest exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

VERBS = ("attach", "cc", "inspect", "map", "doctor")


def userbpf(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "userbpf.cli.app", *args],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        **options,  # type: ignore[call-overload]
    )


def test_help_names_every_verb() -> None:
    result = userbpf("--help")
    assert result.returncode == 0
    assert all(verb in result.stdout for verb in VERBS)


def test_help_imports_no_verb_and_no_llvm() -> None:
    script = (
        "import sys; sys.argv = ['userbpf', '--help']\n"
        "from userbpf.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = ('llvmlite', 'iced_x86', 'numpy', 'rich', 'userbpf.cli.inspect', 'userbpf.object')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", [["link", "list"], ["map", "list"], ["detach", "--all"]])
def test_verbs_that_compile_nothing_do_not_import_llvm(verb: list[str]) -> None:
    script = (
        f"import sys; sys.argv = ['userbpf', *{verb!r}]\n"
        "from userbpf.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('llvmlite' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "False"


def test_unknown_verb_is_a_usage_error() -> None:
    result = userbpf("atach")
    assert result.returncode == 2
    assert "atach" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("verb", ["cc", "inspect"])
def test_missing_file_is_one_sentence(verb: str, tmp_path: Path) -> None:
    result = userbpf(verb, str(tmp_path / "nowhere.bpf.c"))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "nowhere.bpf.c" in result.stderr
    assert "Traceback" not in result.stderr


def test_traceback_is_shown_when_asked_for(tmp_path: Path) -> None:
    result = userbpf("--traceback", "inspect", str(tmp_path / "nowhere.o"))
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen(
        [sys.executable, "-m", "userbpf.cli.app", "doctor", "--json"], stdout=write, stderr=subprocess.PIPE
    ) as process:
        os.close(write)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode in (1, 141)


def test_interrupt_ends_quietly() -> None:
    script = (
        "import sys, os, signal; sys.argv = ['userbpf', 'doctor']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job inherits it ignored
        "import userbpf.cli.checks as checks\n"
        "checks.CHECKS = (lambda: os.kill(os.getpid(), signal.SIGINT),)\n"
        "from userbpf.cli.app import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in result.stderr
