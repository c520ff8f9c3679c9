"""BTF: read, write, print as C, decode values, and match types for CO-RE."""

from userbpf.btf.btf import Btf, essential_name
from userbpf.btf.builder import Builder
from userbpf.btf.dump import c_decl, dump_c
from userbpf.btf.ext import CoreKind, CoreReloc, Ext
from userbpf.btf.format import Decoder, Value
from userbpf.btf.types import Kind

__all__ = [
    "Btf",
    "Builder",
    "CoreKind",
    "CoreReloc",
    "Decoder",
    "Ext",
    "Kind",
    "Value",
    "c_decl",
    "dump_c",
    "essential_name",
]
