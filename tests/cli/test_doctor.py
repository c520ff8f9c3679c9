"""``userbpf doctor``: every check gives a finding, also where something is broken."""

from __future__ import annotations

import json
import subprocess
import sys

from userbpf.cli.checks import CHECKS, Row, attempt
from userbpf.errors import ToolchainError


def test_every_check_gives_a_finding_and_the_status_follows() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "userbpf.cli.app", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    report = json.loads(result.stdout)
    states = {row["name"]: row["state"] for row in report["checks"]}
    assert len(states) == len(CHECKS)
    assert set(states.values()) <= {"ok", "limited", "missing"}
    assert report["ok"] == ("missing" not in states.values())
    assert result.returncode == (0 if report["ok"] else 1)
    assert all(row["advice"] for row in report["checks"] if row["state"] != "ok")
    assert (states["compiler"], states["llvm"], states["native runtime"]) == ("ok", "ok", "ok")


def test_a_check_that_cannot_be_made_is_a_finding() -> None:
    def check_import() -> Row:
        raise ImportError("no module")

    def check_compiler() -> Row:
        raise ToolchainError("no compiler")

    assert attempt(check_import).state == "missing"
    assert "no compiler" in attempt(check_compiler).detail
