"""``userbpf inspect`` and ``userbpf cc`` on our own example and on objects that others compiled."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from userbpf.cli.embedded import find_embedded, is_bpf_object

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "libcstat.bpf.c"
DEBIAN = {
    "libbpf-tools": "/usr/sbin/*",
    "xdp-tools and libxdp1": "/usr/lib/*/bpf/*.o",
    "golang-github-cilium-ebpf-dev": "/usr/share/gocode/src/github.com/cilium/ebpf/**/*.elf",
}


def userbpf(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "userbpf.cli.app", *args], capture_output=True, text=True, check=False)


def inspected(*args: str) -> dict[str, Any]:
    result = userbpf("inspect", *args, "--json")
    assert result.returncode == 0, result.stderr
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "libcstat.bpf.o"
    result = userbpf("cc", str(EXAMPLE), "-o", str(path), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["bytes"] == path.stat().st_size
    return path


def test_programs_maps_and_globals_are_described(compiled: Path) -> None:
    described = inspected(str(compiled))
    (prog,) = described["programs"]
    assert (prog["name"], prog["section"], prog["type"]) == ("count_malloc", "uprobe/libc.so.6:malloc", "kprobe")
    assert {"bpf_map_lookup_elem", "bpf_ringbuf_reserve"} <= set(prog["helpers"])
    maps = {item["name"]: item for item in described["maps"]}
    assert (maps["stats"]["type"], maps["stats"]["value"]) == ("hash", "struct thread_stat")
    assert any("sizes[24]" in text for text in maps["stats"]["types"])
    (rodata,) = (section for section in described["globals"] if section["section"] == ".rodata")
    assert {"name": "large", "value": 262144}.items() <= rodata["variables"][0].items()
    assert described["btf"]["types"] > 10


def test_disassembly_has_the_source_lines_between(compiled: Path) -> None:
    result = userbpf("inspect", str(compiled))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    source = next(i for i, line in enumerate(lines) if line.startswith("; stat->calls++;"))
    assert lines[source].endswith("// libcstat.bpf.c:" + lines[source].rpartition(":")[2])
    assert "*(u64 *)" in lines[source + 1] or "*(u64 *)" in lines[source + 2]
    assert "goto" in result.stdout
    assert "count_malloc" not in userbpf("inspect", str(compiled), "--no-disasm").stdout.partition("stats")[2]


def test_unknown_program_names_those_there_are(compiled: Path) -> None:
    result = userbpf("inspect", str(compiled), "--prog", "nope")
    assert result.returncode == 1
    assert "count_malloc" in result.stderr


def test_objects_inside_an_executable_are_listed_and_chosen(compiled: Path, tmp_path: Path) -> None:
    data = compiled.read_bytes()
    carrier = tmp_path / "carrier"
    carrier.write_bytes(Path(sys.executable).resolve().read_bytes() + b"pad" + data + b"pad" + data)
    listed = inspected(str(carrier))
    assert [item["bytes"] for item in listed["embedded"]] == [len(find_embedded(carrier.read_bytes())[0].data)] * 2
    assert inspected(str(carrier), "--embedded", "1")["programs"][0]["name"] == "count_malloc"
    wrong = userbpf("inspect", str(carrier), "--embedded", "2")
    assert wrong.returncode == 1
    assert "carries 2" in wrong.stderr


def test_executable_without_an_object_is_one_sentence() -> None:
    result = userbpf("inspect", str(Path(sys.executable).resolve()))
    assert result.returncode == 1
    assert "carries no BPF object" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("keep", [0, 3, 40, 64, 500, -100, -1])
def test_truncated_object_is_one_sentence_or_still_readable(compiled: Path, tmp_path: Path, keep: int) -> None:
    cut = tmp_path / "cut.o"
    cut.write_bytes(compiled.read_bytes()[:keep])
    result = userbpf("inspect", str(cut), "--json")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert "internal error" not in result.stderr


def test_compiler_errors_keep_their_place(tmp_path: Path) -> None:
    source = tmp_path / "broken.bpf.c"
    source.write_text("int x = ;\n")
    result = userbpf("cc", str(source), "-o", str(tmp_path / "broken.o"))
    assert result.returncode == 1
    assert "broken.bpf.c:1" in result.stderr
    assert not (tmp_path / "broken.o").exists()


@pytest.mark.parametrize("package", DEBIAN)
def test_every_object_of_a_debian_package_is_described_or_says_why_not(package: str) -> None:
    from userbpf.cli.describe import describe_object
    from userbpf.cli.output import jsonable
    from userbpf.errors import BtfError, ObjectError
    from userbpf.kernel.host import kernel_btf, running_kernel
    from userbpf.object import Object

    described = refused = 0
    for path in Path("/").glob(DEBIAN[package].removeprefix("/")):
        if not path.is_file() or path.is_symlink():
            continue
        data = path.read_bytes()
        if not data.startswith(b"\x7fELF"):
            continue
        for item in [data] if is_bpf_object(data) else [found.data for found in find_embedded(data)]:
            try:
                obj = Object.parse(item, name=path.name, kernel_btf=kernel_btf, kernel=running_kernel())
                json.dumps(jsonable(describe_object(obj, disassemble=set(obj.programs))))
                described += 1
            except (ObjectError, BtfError) as error:
                assert error.message
                refused += 1
    if not described + refused:
        pytest.skip(f"needs the Debian package {package}")
    assert described > refused or package.startswith("golang")
