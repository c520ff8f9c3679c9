"""The packages stand in the order of docs/architecture.md, and the pure ones are pure."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "userbpf"

PURE = ("isa", "tables", "btf", "object", "verifier")
"""Bytes and dataclasses: no operating system, no LLVM (docs/architecture.md)."""

IMPURE_MODULES = {
    *("os", "ctypes", "subprocess", "mmap", "socket", "signal", "shutil", "tempfile", "fcntl", "resource", "select"),
    *("llvmlite", "ziglang", "iced_x86", "numpy", "typer", "rich"),
}
NOT_ON_IMPORT = ("llvmlite", "iced_x86", "numpy", "typer", "rich")


def documented_order() -> list[str]:
    text = (ROOT / "docs" / "architecture.md").read_text()
    match = re.search(r"^ +(errors → .*)$", text, re.MULTILINE)
    assert match is not None, "docs/architecture.md no longer states the package order"
    return [name.strip() for name in match[1].split("→")]


def modules() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def type_checking_only(tree: ast.Module) -> set[int]:
    """Ids of the import nodes below ``if TYPE_CHECKING:``."""
    guarded = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    return {id(inner) for node in guarded for inner in ast.walk(node)}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute dotted names that a module imports, also inside functions, with the line."""
    package = ["userbpf", *path.relative_to(SRC).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def test_every_room_is_in_the_documented_order() -> None:
    rooms = {
        entry.name.removesuffix(".py") for entry in SRC.iterdir() if entry.suffix == ".py" or any(entry.rglob("*.py"))
    }
    assert rooms - {"__init__"} <= set(documented_order())


def test_rooms_import_only_from_rooms_above_them() -> None:
    order = documented_order()
    wrong = []
    for path in modules():
        room = room_of(path)
        if room == "__init__":
            continue
        for name, line in imports(path):
            parts = name.split(".")
            if parts[0] != "userbpf" or len(parts) < 2 or parts[1] == room:
                continue
            if parts[1] not in order:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: imports {name} through the top of the package")
            elif order.index(parts[1]) > order.index(room):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} imports {name}, which stands below it")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", PURE)
def test_pure_room_imports_no_operating_system(room: str) -> None:
    wrong = []
    for path in (path for path in modules() if room_of(path) == room):
        for name, line in imports(path):
            if name.split(".")[0] in IMPURE_MODULES:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: imports {name}")
    assert not wrong, "\n".join(wrong)


def test_modules_import_each_other_without_a_cycle() -> None:
    """Within rooms too: top-level imports only, since those inside functions cannot deadlock an import."""
    names = {".".join(("userbpf", *path.relative_to(SRC).with_suffix("").parts)): path for path in modules()}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text(), str(path))
        skipped = type_checking_only(tree)
        edges: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module and id(node) not in skipped:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    edges.add(full if full in names else node.module)
        graph[name] = {edge for edge in edges if edge in names and edge != name}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "import cycle: " + " → ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for edge in sorted(graph[name]):
                visit(edge, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_importing_userbpf_imports_no_heavy_package() -> None:
    script = f"import sys, userbpf; print([name for name in {NOT_ON_IMPORT!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
