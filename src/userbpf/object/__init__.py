"""BPF object files: ELF in, linked and CO-RE-relocated programs and map declarations out."""

from userbpf.object.externs import Kernel, parse_kconfig
from userbpf.object.model import (
    KFUNC_POISON,
    CoreFailure,
    Initialiser,
    Ksym,
    LineInfo,
    MapSpec,
    Program,
    Subprog,
)
from userbpf.object.object import Object

__all__ = [
    "KFUNC_POISON",
    "CoreFailure",
    "Initialiser",
    "Kernel",
    "Ksym",
    "LineInfo",
    "MapSpec",
    "Object",
    "Program",
    "Subprog",
    "parse_kconfig",
]
