"""The programs that people run first: the demo, and the benchmarks in their quick form."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*args: str) -> str:
    result = subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def figures(name: str) -> dict[str, Any]:
    value = json.loads(run(f"bench/{name}.py", "--quick", "--json"))
    assert isinstance(value, dict)
    assert value["machine"]["userbpf"]
    return value


def test_demo_keeps_every_claim() -> None:
    text = run("examples/demo.py")
    assert "✗" not in text
    assert "malloc is what it was" in text
    assert "with userbpf" in text


def test_uprobe_benchmark_prints_the_agreed_figures() -> None:
    value = figures("uprobe")
    for name in ("bare", "empty", "array_count", "hash_count"):
        assert value[f"{name}_ns"] > 0
    assert {"kernel_empty_ns", "kernel_hash_count_ns"} <= set(value)
    assert value["bare_ns"] <= value["empty_ns"]


@pytest.mark.parametrize(("name", "keys"), [("footprint", ("added_bytes", "map_bytes"))])
def test_other_benchmarks_print_their_figures(name: str, keys: tuple[str, ...]) -> None:
    value = figures(name)
    assert all(value[key] > 0 for key in keys)
    assert value["added_bytes"] <= 400 << 10
