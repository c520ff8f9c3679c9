"""BTF: read, write, print as C, decode values, and match types for CO-RE."""

from userbpf.btf.btf import Btf, essential_name
from userbpf.btf.ext import CoreKind, CoreReloc, Ext
from userbpf.btf.types import Kind

__all__ = ["Btf", "CoreKind", "CoreReloc", "Ext", "Kind", "essential_name"]
