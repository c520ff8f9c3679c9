"""What the benchmarks share: the machine, the target process, the BPF programs, medians, JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

import userbpf

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Sample:
    """Median and spread of one measurement."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Self:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:10.2f}  ({self.low:.2f} to {self.high:.2f})"


def machine() -> dict[str, Any]:
    """Where and with what a figure was measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    versions = {"userbpf": userbpf.__version__, **{name: metadata.version(name) for name in ("llvmlite", "ziglang")}}
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **versions,
    }


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: seconds, not a figure to quote")
    return parser.parse_args()


def report(options: argparse.Namespace, figures: dict[str, Any], lines: list[str]) -> None:
    """Prints ``figures`` and the machine as JSON, or ``lines`` for people."""
    if options.json:
        print(json.dumps({**figures, "machine": machine()}, indent=2))
        return
    print("  ".join(f"{name} {value}" for name, value in machine().items()))
    for line in lines:
        print(line)


class Target:
    """The running ``target.c``: another process that knows nothing of us."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = subprocess.Popen(
            [str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self._process.pid
        if self._line() != "ready":
            raise SystemExit("the target did not start")

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the target ended with status {self._process.wait()}")
        return line.strip()

    def send(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")

    def ask(self, command: str) -> list[int]:
        self.send(command)
        return self.answer()

    def answer(self) -> list[int]:
        return [int(part) for part in self._line().split()]

    def cost(self, calls: int, rounds: int) -> Sample:
        """Nanoseconds per call of target_fn, the loop's own cost included."""
        self.ask(f"call {calls // 10 + 1}")  # caches, branch predictors, first entries in maps
        return Sample.of([self.ask(f"call {calls}")[0] / calls for _ in range(rounds)])

    def close(self) -> None:
        if self._process.poll() is None:
            self.send("quit")
        if self._process.wait() != 0:
            raise SystemExit(f"the target ended with status {self._process.returncode}")


@contextmanager
def workshop() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="userbpf-bench-") as folder:
        yield Path(folder)


@contextmanager
def running_target(folder: Path) -> Iterator[Target]:
    """Compiles ``target.c`` with the C compiler that ziglang carries, starts it, and ends it."""
    path = folder / "target"
    subprocess.run([sys.executable, "-m", "ziglang", "cc", "-O2", "-o", str(path), str(HERE / "target.c")], check=True)
    target = Target(path)
    try:
        yield target
    finally:
        target.close()


def program(folder: Path, name: str, body: str, target: Path) -> Path:
    """Writes a BPF program with one entry probe on target_fn; ``body`` is what the probe does with ``value``."""
    source = folder / f"{name}.bpf.c"
    source.write_text(
        f"""#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char LICENSE[] SEC("license") = "GPL";

struct {{
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 8);
    __type(key, __u32);
    __type(value, __u64);
}} array_counts SEC(".maps");

struct {{
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 1024);
    __type(key, __u32);
    __type(value, __u64);
}} hash_counts SEC(".maps");

SEC("uprobe/{target}:target_fn")
int BPF_KPROBE(probe, __u64 value)
{{
{body}
    return 0;
}}
"""
    )
    return source


EMPTY = ""
ARRAY_COUNT = """
    __u32 slot = value & 7;
    __u64 *count = bpf_map_lookup_elem(&array_counts, &slot);
    if (count)
        __sync_fetch_and_add(count, 1);
"""
HASH_COUNT = """
    __u32 pid = bpf_get_current_pid_tgid() >> 32;
    __u64 *count = bpf_map_lookup_elem(&hash_counts, &pid);
    if (count) {
        __sync_fetch_and_add(count, 1);
    } else {
        __u64 one = 1;
        bpf_map_update_elem(&hash_counts, &pid, &one, BPF_ANY);
    }
"""


def symbol_offset(path: Path, name: str) -> int:
    """File offset of a function: what the kernel's uprobe takes."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        for section_name in (".symtab", ".dynsym"):
            section = elf.get_section_by_name(section_name)
            found = section.get_symbol_by_name(name) if isinstance(section, SymbolTableSection) else None
            for symbol in found or ():
                address = int(symbol["st_value"])
                for segment in elf.iter_segments("PT_LOAD"):
                    if segment["p_vaddr"] <= address < segment["p_vaddr"] + segment["p_filesz"]:
                        return address - int(segment["p_vaddr"]) + int(segment["p_offset"])
    raise SystemExit(f"{path} has no function {name}")


def in_kernel(source: Path, target_pid: int, path: Path, symbol: str, measure: Callable[[], Sample]) -> Sample | None:
    """``measure()`` while the kernel runs the same program at the same function; None where it cannot."""
    from userbpf import kernel
    from userbpf.session import read_object

    if kernel.available() is not None:
        return None
    with kernel.load_object(read_object(source)) as loaded:
        for prog in loaded.programs:
            loaded.attach_uprobe(prog, target_pid, str(path), symbol_offset(path, symbol))
        return measure()
