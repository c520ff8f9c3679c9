"""From verified programs to machine code (LLVM), in one format for every use."""

from userbpf.codegen.compiler import TRACE, MapBinding, Request, compile_programs, helpers_of, needs_trace, optimised_ir
from userbpf.codegen.image import PAGE, CodeImage, Entry, HookKind
from userbpf.codegen.linker import link
from userbpf.codegen.local import LocalImage

__all__ = [
    "PAGE",
    "TRACE",
    "CodeImage",
    "Entry",
    "HookKind",
    "LocalImage",
    "MapBinding",
    "Request",
    "compile_programs",
    "helpers_of",
    "link",
    "needs_trace",
    "optimised_ir",
]
