"""BPF C → object file, by the clang that ziglang carries or by one of the system."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from userbpf.errors import Place, ToolchainError
from userbpf.toolchain.vmlinux import vmlinux_dir

INCLUDE_DIR: Final = Path(__file__).parents[1] / "include"
"""Our headers for BPF programs: ``bpf/bpf_helpers.h`` and its companions."""

TIMEOUT: Final = 120.0
"""Seconds after which a compiler is given up."""

_MACHINES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        # machine: (libbpf's __TARGET_ARCH_ name, ziglang's directory of asm/*.h)
        "x86_64": ("x86", "x86-linux-any"),
        "aarch64": ("arm64", "aarch64-linux-any"),
    }
)
_ALIASES: Final = MappingProxyType({"x86": "x86_64", "amd64": "x86_64", "arm64": "aarch64"})
_NO_COMPILER_HINT: Final = "install the package ziglang with pip, or clang 12 or newer and set USERBPF_CLANG to it"
_DIAGNOSTIC: Final = re.compile(
    r"(?P<file>[^\n:]+):(?P<line>\d+):(?P<column>\d+): (?:fatal )?error: (?P<message>[^\n]*)"
)
_MISSING_TYPE: Final = re.compile(r"unknown type name '(__)?[us](8|16|32|64)'|undeclared identifier 'BPF_MAP_TYPE_")
_NO_VMLINUX: Final = "'vmlinux.h' file not found"


@dataclass(frozen=True)
class Compiler:
    """A clang. command: how it is started; include_args: where its own and the kernel's user headers are."""

    name: str
    command: tuple[str, ...]
    include_args: tuple[str, ...]


def target_machine(arch: str | None = None) -> str:
    """``x86_64`` or ``aarch64``: the machine whose registers the program reads; this one by default."""
    name = arch if arch is not None else platform.machine()
    machine = _ALIASES.get(name, name)
    if machine not in _MACHINES:
        raise ToolchainError(f'the machine "{name}" is not supported', hint="choose x86_64 or aarch64")
    return machine


def find_compiler(compiler: str | None = None, machine: str | None = None) -> Compiler:
    """The compiler that will be used.

    compiler: name or path of a clang, or ``zig``; default is ``$USERBPF_CLANG``, then ziglang, then ``clang``.
    Raises ToolchainError when there is none.
    """
    machine = target_machine(machine)
    asked = compiler if compiler is not None else os.environ.get("USERBPF_CLANG")
    if asked and asked != "zig":
        path = shutil.which(asked)
        if path is None:
            raise ToolchainError(f'the compiler "{asked}" cannot be run', hint=_NO_COMPILER_HINT)
        return _system_clang(path, machine)
    zig = _find_zig()
    if zig is not None:
        builtin = zig.parent / "lib" / "include"
        # "zig clang" is the clang driver itself: no cache directory, no flags of zig's own.
        args = ("-nostdinc", "-isystem", str(builtin), *_kernel_headers(zig, machine))
        return Compiler("ziglang", (str(zig), "clang"), args)
    path = shutil.which("clang") if asked != "zig" else None
    if path is None:
        raise ToolchainError("no C compiler for BPF was found", hint=_NO_COMPILER_HINT)
    return _system_clang(path, machine)


def _system_clang(path: str, machine: str) -> Compiler:
    zig = _find_zig()
    headers = _kernel_headers(zig, machine) if zig is not None else _system_headers(machine)
    return Compiler(path, (path,), headers)


def _find_zig() -> Path | None:
    """The executable in the ziglang package, found without importing it."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        return None
    zig = Path(spec.origin).with_name("zig")
    return zig if os.access(zig, os.X_OK) else None


def _kernel_headers(zig: Path, machine: str) -> tuple[str, ...]:
    """linux/*.h and asm/*.h from ziglang. The two directories of libc headers are not searched: BPF has no libc."""
    include = zig.parent / "lib" / "libc" / "include"
    return ("-isystem", str(include / _MACHINES[machine][1]), "-isystem", str(include / "any-linux-any"))


def _system_headers(machine: str) -> tuple[str, ...]:
    """Debian keeps asm/*.h in a directory named after the machine, which clang does not search for BPF."""
    multiarch = Path("/usr/include") / f"{machine}-linux-gnu"
    return ("-isystem", str(multiarch)) if multiarch.is_dir() else ()


def compile_c(
    source: Path,
    output: Path | None = None,
    *,
    includes: Sequence[Path] = (),
    defines: Sequence[str] = (),
    arch: str | None = None,
    compiler: str | None = None,
    warn: Callable[[str], None] | None = None,
) -> bytes:
    """Compile one BPF C file to an object file with BTF, line info and CO-RE records, and return its bytes.

    output: also write it there. includes: searched before our headers; the source's own directory comes first.
    defines: ``NAME`` or ``NAME=VALUE``. arch: machine whose registers and system calls the program means.
    compiler: see :func:`find_compiler`. warn: called with the compiler's warnings, when there are some.
    Raises ToolchainError with the compiler's own messages.
    """
    source = Path(source)
    machine = target_machine(arch)
    if not source.is_file():
        what = "is not a file" if source.exists() else "does not exist"
        raise ToolchainError(f"the source file {what}", place=Place(file=str(source)))
    clang = find_compiler(compiler, machine)
    for define in defines:
        if not re.fullmatch(r"[A-Za-z_]\w*(=.*)?", define, re.DOTALL):
            raise ToolchainError(f'"{define}" is not a macro definition', hint="write NAME or NAME=VALUE")
    try:
        data, messages = _compile(clang, source, machine, includes, defines)
    except OSError as error:
        raise ToolchainError(
            f"the compiler's temporary files cannot be written: {error.strerror}",
            hint="set TMPDIR and USERBPF_CACHE to directories of yours with free space",
        ) from None
    if warn is not None and messages:
        warn(messages)
    if output is not None:
        _write(Path(output), data)
    return data


def _compile(
    clang: Compiler, source: Path, machine: str, includes: Sequence[Path], defines: Sequence[str]
) -> tuple[bytes, str]:
    """The object file and the compiler's warnings. Raises OSError when there is no place for temporary files."""
    with tempfile.TemporaryDirectory(prefix="userbpf-cc-") as scratch_name:
        scratch = Path(scratch_name)
        target = scratch / "out.o"
        command = _command(clang, source, target, machine, includes, defines)
        result = _run(clang, command, source)
        if result.returncode and _NO_VMLINUX in result.stderr:
            # Made only when a program asks for it: it takes seconds the first time.
            command.extend(("-isystem", str(vmlinux_dir(scratch, machine))))
            result = _run(clang, command, source)
        if result.returncode:
            raise _compile_error(clang, source, result)
        return target.read_bytes(), result.stderr.strip()


def _command(
    clang: Compiler,
    source: Path,
    target: Path,
    machine: str,
    includes: Sequence[Path],
    defines: Sequence[str],
) -> list[str]:
    command = [*clang.command, "-target", "bpfel", "-mcpu=v3", "-O2", "-g", "-c"]
    command += ["-Wall", "-Wno-unused-function", "-Wno-unused-const-variable", "-Wno-unknown-warning-option"]
    # Sources name what the kernel names in ways that clang finds odd; libbpf's users compile with these as well.
    command += ["-Wno-compare-distinct-pointer-types", "-Wno-missing-declarations", "-Wno-address-of-packed-member"]
    command += ["-fno-stack-protector", "-fno-jump-tables", "-fno-color-diagnostics"]
    command += [f"-D__TARGET_ARCH_{_MACHINES[machine][0]}", *(f"-D{define}" for define in defines)]
    for directory in includes:
        command += ["-I", str(directory)]
    command += ["-isystem", str(INCLUDE_DIR), *clang.include_args]
    path = f"./{source}" if str(source).startswith("-") else str(source)
    return [*command, "-o", str(target), path]


def _run(clang: Compiler, command: Sequence[str], source: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolchainError(
            f"the compiler did not finish within {TIMEOUT:.0f} seconds",
            place=Place(file=str(source)),
            hint="look for macros or initialisers that expand without end",
        ) from None
    except OSError as error:
        raise ToolchainError(
            f"the compiler {clang.name} cannot be run: {error.strerror}", hint=_NO_COMPILER_HINT
        ) from None


def _compile_error(clang: Compiler, source: Path, result: subprocess.CompletedProcess[str]) -> ToolchainError:
    """The first error gives sentence and place; all of the compiler's messages follow."""
    messages = result.stderr.strip()
    first = _DIAGNOSTIC.search(messages)
    if first is None:
        detail = f": {messages}" if messages else f" (exit status {result.returncode})"
        return ToolchainError(f"the compiler {clang.name} failed{detail}", place=Place(file=str(source)))
    place = Place(file=first["file"], line=int(first["line"]), column=int(first["column"]))
    return ToolchainError(f"{first['message']}\n{messages}", place=place, hint=_hint(first["message"]))


def _hint(message: str) -> str | None:
    if "file not found" in message:
        return "give its directory with an include option; bpf/*.h, linux/*.h and vmlinux.h are always there"
    if _MISSING_TYPE.search(message):
        return 'include "vmlinux.h", or <linux/bpf.h> and <linux/types.h>, before <bpf/bpf_helpers.h>'
    if "too many arguments" in message or "stack" in message:
        return "BPF functions take at most 5 arguments and have 512 bytes of stack"
    if "-target-cpu" in message or "unknown target" in message.lower():
        return "this clang has no BPF back end, or is older than clang 12; leave USERBPF_CLANG unset to use ziglang"
    return None


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ToolchainError(
            f"the object file cannot be written: {error.strerror}",
            place=Place(file=str(path)),
            hint="choose another output file",
        ) from None
