"""Declarative tables of the kernel's BPF interface: helpers, map types, program types and sections, contexts."""

from __future__ import annotations

from userbpf.tables.contexts import CONTEXTS, PT_REGS_AARCH64, PT_REGS_X86_64, Context, ContextField, context_for
from userbpf.tables.helpers import BY_NAME, HELPER_NAMES, HELPERS, Arg, Helper, Ret
from userbpf.tables.maps import MAP_TYPES, MapFlag, MapType, MapTypeInfo
from userbpf.tables.programs import AttachType, ProgType, Section, parse_section

__all__ = [
    "BY_NAME",
    "CONTEXTS",
    "HELPERS",
    "HELPER_NAMES",
    "MAP_TYPES",
    "PT_REGS_AARCH64",
    "PT_REGS_X86_64",
    "Arg",
    "AttachType",
    "Context",
    "ContextField",
    "Helper",
    "MapFlag",
    "MapType",
    "MapTypeInfo",
    "ProgType",
    "Ret",
    "Section",
    "context_for",
    "parse_section",
]
