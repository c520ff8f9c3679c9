"""BPF C to object files: finding a compiler, our headers, and ``vmlinux.h``."""

from __future__ import annotations

from userbpf.toolchain.compiler import INCLUDE_DIR, Compiler, compile_c, find_compiler, target_machine
from userbpf.toolchain.vmlinux import vmlinux_dir

__all__ = ["INCLUDE_DIR", "Compiler", "compile_c", "find_compiler", "target_machine", "vmlinux_dir"]
