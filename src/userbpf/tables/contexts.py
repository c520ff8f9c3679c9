"""What a program of each type gets in r1: the layout of its context and which bytes it may read.

Sources: ``struct pt_regs`` of arch/x86/include/uapi/asm/ptrace.h, ``struct user_pt_regs`` of
arch/arm64/include/uapi/asm/ptrace.h, include/uapi/linux/bpf.h, and the ``*_is_valid_access`` functions of
kernel/trace/bpf_trace.c and net/core/filter.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from userbpf.tables.prog_types import ProgType


@dataclass(frozen=True, slots=True)
class ContextField:
    """One field: bytes ``offset`` to ``offset + size``. ``narrow``: parts of it may be read as well."""

    name: str
    offset: int
    size: int
    writable: bool = False
    narrow: bool = True


@dataclass(frozen=True, slots=True)
class Context:
    """The context of a program type. Reads are naturally aligned, within one field, and below ``size``."""

    name: str
    size: int
    fields: tuple[ContextField, ...]

    def field_at(self, offset: int, size: int) -> ContextField | None:
        """The field that an aligned read of ``size`` bytes at ``offset`` lies in, None when there is none."""
        if size not in (1, 2, 4, 8) or offset < 0 or offset % size:
            return None
        for field in self.fields:
            if field.offset <= offset and offset + size <= field.offset + field.size:
                whole = field.offset == offset and field.size == size
                return field if whole or field.narrow else None
        return None


def _words(names: str, size: int = 8, start: int = 0) -> tuple[ContextField, ...]:
    """Consecutive fields of equal size."""
    return tuple(ContextField(name, start + i * size, size) for i, name in enumerate(names.split()))


_X86_64_FIELDS: Final = _words("r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss")
PT_REGS_X86_64: Final = Context("pt_regs", 168, _X86_64_FIELDS)
"""x86-64: the kernel's field names (``rdi`` is ``di``), as in vmlinux.h."""

_AARCH64_FIELDS: Final = _words(" ".join(f"x{i}" for i in range(31)) + " sp pc pstate")
PT_REGS_AARCH64: Final = Context("user_pt_regs", 272, _AARCH64_FIELDS)
"""aarch64: ``regs[0..30]`` are named ``x0`` … ``x30``."""

PT_REGS: Final[Mapping[str, Context]] = MappingProxyType({"x86_64": PT_REGS_X86_64, "aarch64": PT_REGS_AARCH64})
"""Registers of a probe by machine name."""

MAX_FUNC_ARGS: Final = 12
"""MAX_BPF_FUNC_ARGS (include/linux/bpf.h): 64-bit arguments that raw tracepoints and trampolines can have."""

PERF_MAX_TRACE_SIZE: Final = 8192
"""include/linux/trace_events.h: no tracepoint record is longer."""

_TRACEPOINT: Final = Context(
    "trace event record",
    PERF_MAX_TRACE_SIZE,
    # The first 8 bytes (struct trace_entry) are not for programs: tp_prog_is_valid_access. The rest depends on the
    # event; the loader knows its real size.
    (ContextField("record", 8, PERF_MAX_TRACE_SIZE - 8),),
)
_RAW_TRACEPOINT: Final = Context(
    "bpf_raw_tracepoint_args",
    MAX_FUNC_ARGS * 8,
    tuple(ContextField(f"args[{i}]", i * 8, 8) for i in range(MAX_FUNC_ARGS)),
)
_XDP_FIELDS: Final = ("data", "data_end", "data_meta", "ingress_ifindex", "rx_queue_index", "egress_ifindex")
_XDP_MD: Final = Context(
    "xdp_md",
    24,
    tuple(ContextField(name, i * 4, 4, narrow=False) for i, name in enumerate(_XDP_FIELDS)),
)

_SK_BUFF_U32: Final = (
    "len pkt_type mark queue_mapping protocol vlan_present vlan_tci vlan_proto "
    "priority ingress_ifindex ifindex tc_index"
)
_SK_BUFF_TAIL: Final = (
    "family remote_ip4 local_ip4 remote_ip6[0] remote_ip6[1] remote_ip6[2] remote_ip6[3] "
    "local_ip6[0] local_ip6[1] local_ip6[2] local_ip6[3] remote_port local_port data_meta"
)
_SK_BUFF: Final = Context(
    "__sk_buff",
    192,
    (
        *_words(_SK_BUFF_U32, 4),
        *(ContextField(f"cb[{i}]", 48 + 4 * i, 4, writable=True) for i in range(5)),
        *_words("hash tc_classid data data_end napi_id", 4, 68),
        *_words(_SK_BUFF_TAIL, 4, 88),
        ContextField("flow_keys", 144, 8, narrow=False),
        ContextField("tstamp", 152, 8),
        *_words("wire_len gso_segs", 4, 160),
        ContextField("sk", 168, 8, narrow=False),
        ContextField("gso_size", 176, 4),
        ContextField("tstamp_type", 180, 1),
        ContextField("hwtstamp", 184, 8),
    ),
)


def _perf_event(regs: Context) -> Context:
    return Context(
        "bpf_perf_event_data",
        regs.size + 16,
        (
            *regs.fields,
            ContextField("sample_period", regs.size, 8),
            ContextField("addr", regs.size + 8, 8),
        ),
    )


_PER_MACHINE: Final[Mapping[ProgType, Mapping[str, Context]]] = MappingProxyType(
    {
        ProgType.KPROBE: PT_REGS,
        ProgType.PERF_EVENT: MappingProxyType({machine: _perf_event(regs) for machine, regs in PT_REGS.items()}),
    }
)

CONTEXTS: Final[Mapping[ProgType, Context]] = MappingProxyType(
    {
        ProgType.TRACEPOINT: _TRACEPOINT,
        ProgType.RAW_TRACEPOINT: _RAW_TRACEPOINT,
        ProgType.RAW_TRACEPOINT_WRITABLE: _RAW_TRACEPOINT,
        ProgType.TRACING: _RAW_TRACEPOINT,
        ProgType.LSM: _RAW_TRACEPOINT,
        ProgType.XDP: _XDP_MD,
        ProgType.SOCKET_FILTER: _SK_BUFF,
        ProgType.SCHED_CLS: _SK_BUFF,
        ProgType.SCHED_ACT: _SK_BUFF,
    }
)
"""Contexts that are the same on every machine; :func:`context_for` also knows the others."""


def context_for(prog_type: ProgType, machine: str = "x86_64") -> Context | None:
    """The context of a program type on a machine (``x86_64``, ``aarch64``); None when the type is not described."""
    per_machine = _PER_MACHINE.get(prog_type)
    return per_machine.get(machine) if per_machine is not None else CONTEXTS.get(prog_type)
