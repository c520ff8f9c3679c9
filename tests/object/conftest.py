"""A compiler for small BPF sources, the kernel's facts, and the objects that installed packages carry."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from userbpf.btf import Btf
from userbpf.object import Kernel, parse_kconfig

VMLINUX = Path("/sys/kernel/btf/vmlinux")
PACKAGES = ("libbpf-tools", "golang-github-cilium-ebpf-dev", "libxdp1", "xdp-tools")
HELPERS = """
#define SEC(name) __attribute__((section(name), used))
#define __uint(name, val) int (*name)[val]
#define __ulong(name, val) enum { unique_##name = val } name
#define __type(name, val) typeof(val) *name
#define __array(name, val) typeof(val) *name[]
#define noinline __attribute__((noinline))
typedef unsigned int u32;
typedef unsigned long long u64;
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_loop)(u32 n, void *cb, void *ctx, u64 flags) = (void *)181;
char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture(scope="session")
def vmlinux() -> Btf:
    """The running kernel's BTF; skips where there is none."""
    if not VMLINUX.exists():
        pytest.skip(f"{VMLINUX} does not exist: the kernel has no BTF")
    return Btf.parse(VMLINUX.read_bytes())


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """The running kernel's version and configuration (empty where it does not show it)."""

    def config() -> Mapping[str, str]:
        path = Path("/proc/config.gz")
        return parse_kconfig(gzip.decompress(path.read_bytes()).decode()) if path.exists() else {}

    major, minor, patch = (int("".join(c for c in part if c.isdigit())) for part in os.uname().release.split(".")[:3])
    return Kernel(major << 16 | minor << 8 | min(patch, 255), config)


@pytest.fixture(scope="session")
def bpf_cc(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """``bpf_cc(source, *flags)``: the object of ``source`` behind the macros of HELPERS. A warning is no error."""
    pytest.importorskip("ziglang", reason="ziglang is not installed: nothing to compile with")
    folder = tmp_path_factory.mktemp("bpf_cc")

    def compile_source(source: str, *flags: str) -> bytes:
        path, out = folder / "test.bpf.c", folder / "test.bpf.o"
        path.write_text(HELPERS + source)
        command = [sys.executable, "-m", "ziglang", "cc", "-target", "bpfel-freestanding", "-O2", "-mcpu=v3", "-g"]
        run = subprocess.run([*command, *flags, "-c", path, "-o", out], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        return out.read_bytes()

    return compile_source


def embedded(data: bytes) -> Iterator[bytes]:
    """BPF objects inside another file: the skeletons that libbpf-tools are built with."""
    at = data.find(b"\x7fELF", 4)
    while at >= 0:
        if len(data) >= at + 64 and struct.unpack_from("<H", data, at + 18)[0] == 247:
            (table,), (entry, count) = struct.unpack_from("<Q", data, at + 40), struct.unpack_from("<HH", data, at + 58)
            yield data[at : at + table + entry * count]
        at = data.find(b"\x7fELF", at + 4)


@pytest.fixture(scope="session")
def foreign() -> dict[str, bytes]:
    """Objects that others compiled, by file name; skips when none of the packages is installed."""
    found: dict[str, bytes] = {}
    for package in PACKAGES:
        run = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=False)
        for path in {Path(line).resolve() for line in run.stdout.splitlines()}:
            data = path.read_bytes() if path.is_file() else b""
            if data[:4] != b"\x7fELF":
                continue
            if data[18:20] in (b"\xf7\0", b"\0\xf7"):
                found[str(path)] = data
            else:
                found |= {f"{path}#{number}": part for number, part in enumerate(embedded(data))}
    if not found:
        pytest.skip(f"none of the packages {', '.join(PACKAGES)} is installed")
    return dict(sorted(found.items()))
