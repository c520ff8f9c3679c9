"""Helper functions: what a program may call, with which arguments, and what implements it.

All ids of the kernel are here, so that every object can be printed and every call can be named; those with
``native`` are offered. Argument kinds follow ``struct bpf_func_proto`` of kernel/bpf/helpers.c,
kernel/bpf/ringbuf.c and kernel/trace/bpf_trace.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from userbpf.tables.helper_protos import PROTOS
from userbpf.tables.prog_types import TRACING_TYPES, ProgType


class Arg(Enum):
    """Kind of one argument: what the verifier demands and how it is passed to native code.

    Passed as pointers: MAP_KEY to CONST_STR in this list. A CONST_MAP_PTR becomes two arguments,
    ``const struct ub_map_def *def, uint8_t *base``. All others are ``uint64_t``.
    """

    CONST_MAP_PTR = "map"
    """A map, known when the program is compiled."""
    MAP_KEY = "map key"
    """Readable memory of the map's key_size."""
    MAP_VALUE = "map value"
    """Readable memory of the map's value_size."""
    UNINIT_MAP_VALUE = "writable map value"
    """Memory of the map's value_size that the helper fills."""
    MEM = "memory"
    """Readable memory; its size is the next argument."""
    MEM_OR_NULL = "memory or NULL"
    UNINIT_MEM = "writable memory"
    """Memory that the helper fills; its size is the next argument."""
    UNINIT_LONG = "pointer to a writable u64"
    """8 aligned bytes that the helper fills (the kernel's fixed-size memory of 8)."""
    CTX = "context"
    """The program's own context pointer, unchanged."""
    ALLOC_MEM = "reserved memory"
    """The start of memory from a helper that returns ALLOC_MEM_OR_NULL; the call takes it away from the program."""
    CONST_STR = "constant string"
    """A NUL-terminated string in a read-only map."""
    SIZE = "size"
    """Bounded number of bytes of the memory before it, at least 1."""
    SIZE_OR_ZERO = "size or 0"
    CONST_ALLOC_SIZE = "constant size"
    """Number known when the program is compiled: the size of the memory returned."""
    ANYTHING = "any value"
    """Any initialised value."""
    VARARG = "optional value"
    """Not checked: any scalar or pointer, or a register that was never set (0 is passed then)."""


class Ret(Enum):
    """Kind of the value in r0 after a call."""

    INTEGER = "integer"
    VOID = "nothing"
    MAP_VALUE_OR_NULL = "map value or NULL"
    ALLOC_MEM_OR_NULL = "reserved memory or NULL"


CODEGEN: Final = "codegen"
"""``Helper.native`` of helpers that the code generator lowers by itself, because they need the hook."""


@dataclass(frozen=True, slots=True)
class Helper:
    """One helper.

    name is without ``bpf_``. args and ret describe offered helpers (``native`` is not None). since: the first
    kernel that had it. alternative: what to use instead of a helper that is not offered. programs: the program
    types that may call it, None for all. implicit_map: a hidden map whose (def, base) follow ``run`` in the
    native signature. gpl_only: as in the kernel, only for programs with a GPL-compatible license.
    """

    id: int
    name: str
    args: tuple[Arg, ...]
    ret: Ret
    since: str
    native: str | None
    doc: str
    alternative: str | None
    c_proto: str
    programs: frozenset[ProgType] | None = None
    implicit_map: str | None = None
    gpl_only: bool = False

    @property
    def offered(self) -> bool:
        """True when programs may call it under userbpf."""
        return self.native is not None


@dataclass(frozen=True, slots=True)
class _Offer:
    """What userbpf adds to a row of PROTOS."""

    args: tuple[Arg, ...]
    ret: Ret
    doc: str
    native: str | None = None
    tracing: bool = False
    gpl_only: bool = False
    implicit_map: str | None = None


_MAP: Final = Arg.CONST_MAP_PTR
_ANY: Final = Arg.ANYTHING
_INT: Final = Ret.INTEGER
_READ: Final = (Arg.UNINIT_MEM, Arg.SIZE_OR_ZERO, Arg.ANYTHING)


def _read(doc: str) -> _Offer:
    """A faulting read: (dst, size, unsafe pointer)."""
    return _Offer(_READ, _INT, doc, tracing=True, gpl_only=True)


_COPY: Final = "Copies size bytes from any address; 0, or -EFAULT and zeroed memory when it cannot be read."
_COPY_STR: Final = "Copies a string of at most size bytes with its NUL; its length with NUL, or -EFAULT."

_OFFERS: Final[Mapping[str, _Offer]] = MappingProxyType(
    {
        "map_lookup_elem": _Offer((_MAP, Arg.MAP_KEY), Ret.MAP_VALUE_OR_NULL, "Pointer to the value of key, or NULL."),
        "map_update_elem": _Offer(
            (_MAP, Arg.MAP_KEY, Arg.MAP_VALUE, _ANY),
            _INT,
            "Sets the value of key; flags BPF_ANY, BPF_NOEXIST, BPF_EXIST. 0 or a negative errno.",
        ),
        "map_delete_elem": _Offer((_MAP, Arg.MAP_KEY), _INT, "Removes key. 0, or -ENOENT when it is not there."),
        "probe_read": _read(_COPY),
        "ktime_get_ns": _Offer((), _INT, "Nanoseconds of CLOCK_MONOTONIC."),
        "trace_printk": _Offer(
            (Arg.MEM, Arg.SIZE, Arg.VARARG, Arg.VARARG, Arg.VARARG),
            _INT,
            "Writes a formatted line to the trace, with up to three values. Length written or a negative errno.",
            tracing=True,
            gpl_only=True,
            implicit_map="trace",
        ),
        "get_prandom_u32": _Offer((), _INT, "A pseudo-random 32-bit number."),
        "get_smp_processor_id": _Offer((), _INT, "Number of the CPU that the program runs on."),
        "get_current_pid_tgid": _Offer(
            (), _INT, "Process id in the upper, thread id in the lower 32 bits.", tracing=True
        ),
        "get_current_uid_gid": _Offer(
            (), _INT, "Real group id in the upper, user id in the lower 32 bits.", tracing=True
        ),
        "get_current_comm": _Offer(
            (Arg.UNINIT_MEM, Arg.SIZE), _INT, "Name of the current thread, NUL-padded to size.", tracing=True
        ),
        "perf_event_output": _Offer(
            (Arg.CTX, _MAP, _ANY, Arg.MEM, Arg.SIZE_OR_ZERO),
            _INT,
            "Appends a raw sample to the ring of the CPU that flags selects. 0 or a negative errno.",
            tracing=True,
            gpl_only=True,
        ),
        "probe_read_str": _read(_COPY_STR),
        "probe_read_user": _read(_COPY),
        "probe_read_kernel": _read(_COPY),
        "probe_read_user_str": _read(_COPY_STR),
        "probe_read_kernel_str": _read(_COPY_STR),
        "ktime_get_boot_ns": _Offer((), _INT, "Nanoseconds of CLOCK_BOOTTIME: runs on during suspend."),
        "ringbuf_output": _Offer(
            (_MAP, Arg.MEM, Arg.SIZE_OR_ZERO, _ANY), _INT, "Copies one record into the ring. 0 or -EAGAIN when full."
        ),
        "ringbuf_reserve": _Offer(
            (_MAP, Arg.CONST_ALLOC_SIZE, _ANY),
            Ret.ALLOC_MEM_OR_NULL,
            "Memory for one record, or NULL when the ring is full; must be submitted or discarded.",
        ),
        "ringbuf_submit": _Offer((Arg.ALLOC_MEM, _ANY), Ret.VOID, "Gives a reserved record to the consumer."),
        "ringbuf_discard": _Offer((Arg.ALLOC_MEM, _ANY), Ret.VOID, "Gives a reserved record up; consumers skip it."),
        "ringbuf_query": _Offer(
            (_MAP, _ANY), _INT, "A figure of the ring: BPF_RB_AVAIL_DATA, _RING_SIZE, _CONS_POS, …"
        ),
        "ktime_get_coarse_ns": _Offer((), _INT, "Nanoseconds of CLOCK_MONOTONIC_COARSE: cheaper, a tick's precision."),
        "get_func_ip": _Offer((Arg.CTX,), _INT, "Address of the probed function.", native=CODEGEN, tracing=True),
        "get_attach_cookie": _Offer((Arg.CTX,), _INT, "The number given at attach.", native=CODEGEN, tracing=True),
        "trace_vprintk": _Offer(
            (Arg.MEM, Arg.SIZE, Arg.MEM_OR_NULL, Arg.SIZE_OR_ZERO),
            _INT,
            "As trace_printk, with an array of u64 values. Length written or a negative errno.",
            tracing=True,
            gpl_only=True,
            implicit_map="trace",
        ),
        "get_func_arg": _Offer(
            (Arg.CTX, _ANY, Arg.UNINIT_LONG), _INT, "The n-th argument of the function.", native=CODEGEN, tracing=True
        ),
        "get_func_ret": _Offer(
            (Arg.CTX, Arg.UNINIT_LONG), _INT, "The returned value; -EOPNOTSUPP at entry.", native=CODEGEN, tracing=True
        ),
        "get_func_arg_cnt": _Offer(
            (Arg.CTX,), _INT, "How many arguments get_func_arg can give.", native=CODEGEN, tracing=True
        ),
    }
)

_PACKET: Final = "packet helpers need an XDP or tc program, which userbpf does not run yet"
_ALTERNATIVES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tail_call": "call a __noinline subprogram instead",
        "get_current_task": "a user process has no task_struct of the kernel's: use bpf_get_current_pid_tgid and _comm",
        "get_current_task_btf": "a user process has no task_struct of the kernel's: use bpf_get_current_pid_tgid",
        "probe_write_user": "write to a map and let the process read it",
        "get_numa_node_id": "use bpf_get_smp_processor_id and map CPUs to nodes outside of the program",
        "get_stackid": "send the probed address from bpf_get_func_ip; stacks are not offered yet",
        "get_stack": "send the probed address from bpf_get_func_ip; stacks are not offered yet",
        "get_task_stack": "send the probed address from bpf_get_func_ip; stacks are not offered yet",
        "perf_event_read": "measure time with bpf_ktime_get_ns",
        "perf_event_read_value": "measure time with bpf_ktime_get_ns",
        "jiffies64": "use bpf_ktime_get_coarse_ns",
        "ktime_get_tai_ns": "use bpf_ktime_get_boot_ns",
        "get_ns_current_pid_tgid": "use bpf_get_current_pid_tgid: it is the id that the process itself sees",
        "copy_from_user": "use bpf_probe_read_user",
        "copy_from_user_task": "use bpf_probe_read_user",
        "snprintf": "send the values and format them in the consumer, or use bpf_printk",
        "snprintf_btf": "send the struct and let userbpf print it by its BTF type",
        "loop": "use a for loop with a constant bound",
        "for_each_map_elem": "look up the keys that the program knows, or iterate in the consumer",
        "strncmp": "compare the bytes in a loop with a constant bound",
        "strtol": "parse the text in the consumer",
        "strtoul": "parse the text in the consumer",
        "spin_lock": "use an atomic (__sync_fetch_and_add) or a per-CPU map",
        "spin_unlock": "use an atomic (__sync_fetch_and_add) or a per-CPU map",
        "map_push_elem": "use a ring buffer",
        "map_pop_elem": "use an array map and an atomic index",
        "map_peek_elem": "use an array map and an atomic index",
        "map_lookup_percpu_elem": "bpf_map_lookup_elem gives the value of this CPU; read the others in the consumer",
        "ringbuf_reserve_dynptr": "use bpf_ringbuf_output for records of variable size",
        "ringbuf_submit_dynptr": "use bpf_ringbuf_output for records of variable size",
        "ringbuf_discard_dynptr": "use bpf_ringbuf_output for records of variable size",
        "user_ringbuf_drain": "read commands from an array map",
        "send_signal": "report the event and let the consumer send the signal",
        "send_signal_thread": "report the event and let the consumer send the signal",
        "override_return": "userbpf does not change return values yet",
        "task_storage_get": "use a hash map with the thread id as its key",
        "task_storage_delete": "use a hash map with the thread id as its key",
        "timer_init": "let the consumer keep the time",
        "get_current_cgroup_id": "use bpf_get_current_pid_tgid and look the cgroup up outside of the program",
        "task_pt_regs": "at a uprobe the context already is the pt_regs",
        "d_path": "read the path argument with bpf_probe_read_user_str",
        "skb_load_bytes": _PACKET,
        "skb_store_bytes": _PACKET,
        "skb_output": "use bpf_perf_event_output",
        "xdp_output": "use bpf_perf_event_output",
        "redirect": _PACKET,
        "redirect_map": _PACKET,
        "xdp_adjust_head": _PACKET,
        "xdp_adjust_meta": _PACKET,
        "xdp_adjust_tail": _PACKET,
        "fib_lookup": _PACKET,
    }
)


def _helper(number: int, since: str, c_proto: str) -> Helper:
    name = c_proto.partition("(")[0].rpartition("bpf_")[2]
    if "bpf_sys_bpf(" in c_proto:
        name = "sys_bpf"
    offer = _OFFERS.get(name)
    if offer is None:
        return Helper(number, name, (), Ret.INTEGER, since, None, "", _ALTERNATIVES.get(name), c_proto)
    return Helper(
        number,
        name,
        offer.args,
        offer.ret,
        since,
        offer.native or f"ub_helper_{name}",
        offer.doc,
        None,
        c_proto,
        programs=TRACING_TYPES if offer.tracing else None,
        implicit_map=offer.implicit_map,
        gpl_only=offer.gpl_only,
    )


HELPERS: Final[Mapping[int, Helper]] = MappingProxyType({row[0]: _helper(*row) for row in PROTOS})
"""All helpers by id."""

BY_NAME: Final[Mapping[str, Helper]] = MappingProxyType({helper.name: helper for helper in HELPERS.values()})
"""All helpers by name, without ``bpf_``."""

HELPER_NAMES: Final[Mapping[int, str]] = MappingProxyType({h.id: f"bpf_{h.name}" for h in HELPERS.values()})
"""Names with ``bpf_`` by id, for the disassembler's symbols."""
