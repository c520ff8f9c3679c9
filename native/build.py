"""Builds the native runtime: libuserbpf.so, runtime.bc and agent.o from the C sources beside this file.

Needs the compiler of the ``ziglang`` package (clang 22: the bitcode's LLVM version must be that of llvmlite).
The shared library may be built by another compiler: ``$CC``. Each product is one translation unit.

As a program: ``python native/build.py [OUT_DIR]``; as a library: :func:`build`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
SRC = NATIVE / "src"
DEFAULT_OUT = NATIVE.parent / "src" / "userbpf" / "native" / "lib"

PRODUCTS = ("libuserbpf.so", "runtime.bc", "agent.o")

COMMON = ("-std=gnu11", "-O2", "-g0", f"-I{NATIVE / 'include'}", f"-I{SRC}")
WARNINGS = ("-Wall", "-Wextra", "-Werror")

# In a target: general registers only, so that a hook never saves vector registers. (-mgeneral-regs-only alone is
# undone by the feature list that zig passes.) no_caller_saved_registers functions may call those that are not.
FREESTANDING = (
    "-ffreestanding",
    "-fno-builtin",
    "-fno-stack-protector",
    "-fno-sanitize=all",
    "-fno-asynchronous-unwind-tables",
    "-fomit-frame-pointer",
    "-fno-vectorize",
    "-fno-slp-vectorize",
    "-fPIC",
    "-mcmodel=small",
)
TARGET = ("-target", "x86_64-linux-none", "-mcpu=x86_64-sse-sse2-mmx-x87+soft_float+fsgsbase+rdpid")
LIBRARY = (
    "-shared",
    "-fPIC",
    "-nostdlib",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-stack-protector",
    "-fno-semantic-interposition",
    "-Wl,-Bsymbolic",
)


class BuildError(Exception):
    """A compiler is missing or failed; the message is one that a person can act on."""


def zig_cc() -> list[str]:
    """The command of ziglang's C compiler."""
    try:
        import ziglang  # noqa: F401
    except ImportError:
        raise BuildError("the ziglang package is not installed: pip install ziglang") from None
    return [sys.executable, "-m", "ziglang", "cc"]


def _run(command: Sequence[str], what: str) -> None:
    """Zig keeps caches: in a temporary directory when the user's own cannot be written."""
    env = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="userbpf-zig-") as scratch:
        cache = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        if not os.access(cache if cache.exists() else cache.parent, os.W_OK):
            env.setdefault("ZIG_GLOBAL_CACHE_DIR", scratch)
        env.setdefault("ZIG_LOCAL_CACHE_DIR", scratch)
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        except OSError as error:
            raise BuildError(f"cannot run the C compiler {command[0]}: {error.strerror}") from None
    if done.returncode != 0:
        raise BuildError(f"building {what} failed:\n$ {shlex.join(command)}\n{done.stderr or done.stdout}")


def build_library(output: Path, cc: Sequence[str] | None = None) -> None:
    """libuserbpf.so: maps for the controller. It needs no libc, so glibc and musl processes can load it."""
    target = ["-target", "x86_64-linux-gnu", "-mcpu=x86_64", "-fno-sanitize=all", "-s", *WARNINGS]
    command = list(cc) if cc else [*zig_cc(), *target]
    _run([*command, *COMMON, *LIBRARY, "-fvisibility=hidden", "-o", str(output), str(SRC / "library.c")], output.name)


def build_bitcode(output: Path) -> None:
    """runtime.bc: linked into every program by the code generator."""
    flags = [*TARGET, *COMMON, *WARNINGS, *FREESTANDING, "-fvisibility=hidden", "-DUB_BITCODE", "-emit-llvm", "-c"]
    _run([*zig_cc(), *flags, "-o", str(output), str(SRC / "runtime.c")], output.name)


def build_agent(output: Path) -> None:
    """agent.o: what lives once in each target, all agent_*.c as one unit."""
    unity = "".join(f'#include "{path.name}"\n' for path in sorted(SRC.glob("agent_*.c")))
    with tempfile.TemporaryDirectory(prefix="userbpf-agent-") as scratch:
        source = Path(scratch) / "agent.c"
        source.write_text(unity)
        flags = [*TARGET, *COMMON, *WARNINGS, *FREESTANDING, "-fvisibility=hidden", "-DUB_AGENT", "-c"]
        _run([*zig_cc(), *flags, "-o", str(output), str(source)], output.name)


def build(out_dir: Path = DEFAULT_OUT, cc: Sequence[str] | None = None) -> list[Path]:
    """Builds everything into out_dir and returns the files. ``cc`` (or ``$CC``) compiles the shared library only.

    Each file appears whole: a build that fails or is interrupted leaves the old one.
    """
    if cc is None and os.environ.get("CC"):
        cc = shlex.split(os.environ["CC"])
    out_dir.mkdir(parents=True, exist_ok=True)
    outputs = [out_dir / name for name in PRODUCTS]
    with tempfile.TemporaryDirectory(prefix=".build-", dir=out_dir) as scratch:
        made = [Path(scratch) / name for name in PRODUCTS]
        build_library(made[0], cc)
        build_bitcode(made[1])
        build_agent(made[2])
        for new, output in zip(made, outputs, strict=True):
            os.replace(new, output)
    return outputs


def main() -> int:
    out_dir = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_OUT
    try:
        for path in build(out_dir):
            print(f"{path} ({path.stat().st_size} bytes)")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
