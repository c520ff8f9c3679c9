"""The kernel's types, and a compiler for small BPF sources."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from userbpf.btf import Btf, dump_c

VMLINUX = Path("/sys/kernel/btf/vmlinux")


@pytest.fixture(scope="session")
def vmlinux() -> Btf:
    """The running kernel's BTF; skips where there is none."""
    if not VMLINUX.exists():
        pytest.skip(f"{VMLINUX} does not exist: the kernel has no BTF")
    return Btf.parse(VMLINUX.read_bytes())


@pytest.fixture(scope="session")
def vmlinux_h(vmlinux: Btf) -> str:
    """The kernel's types as C."""
    return dump_c(vmlinux)


@pytest.fixture(scope="session")
def bpf_cc(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """``bpf_cc(source, *flags)``: the object that clang makes of it. A warning is an error."""
    pytest.importorskip("ziglang", reason="ziglang is not installed: nothing to compile with")
    folder = tmp_path_factory.mktemp("bpf_cc")

    def compile_source(source: str, *flags: str) -> bytes:
        path, out = folder / "test.bpf.c", folder / "test.bpf.o"
        path.write_text(source)
        command = [sys.executable, "-m", "ziglang", "cc", "-target", "bpfel-freestanding", "-O2", "-g", "-mcpu=v3"]
        run = subprocess.run([*command, *flags, "-c", path, "-o", out], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return out.read_bytes()

    return compile_source
