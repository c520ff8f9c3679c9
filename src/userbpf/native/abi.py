"""The C structures of ``native/include`` as ctypes. A test compares sizes and offsets with the C compiler's.

Pointers of other processes are plain 64-bit numbers here.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_int32, c_int64, c_uint8, c_uint32, c_uint64
from typing import Final

__all__ = [
    "ABI",
    "CELL_RET_ENTRY",
    "CELL_RET_INNER",
    "CELL_SIZE",
    "GUARDS",
    "HAS_RDPID",
    "HOLD_OFF",
    "HOLD_STRIDE",
    "MAP_MAGIC",
    "MAP_VERSION",
    "PAGE",
    "PERF_PAGES",
    "ROWS",
    "SHADOW_BYTES",
    "SHADOW_SLOTS",
    "THREAD_PROBES",
    "THREAD_SLOTS",
    "TID_OFF_UNKNOWN",
    "Cell",
    "Env",
    "Event",
    "Guard",
    "Inflight",
    "MapDef",
    "MapHeader",
    "Proc",
    "PtRegs",
    "Run",
    "Shadow",
    "ShadowEntry",
    "ShadowSlot",
    "SigAction",
    "Stripe",
    "Thread",
    "Threads",
    "Trace",
]

ABI: Final = 1
PAGE: Final = 4096
ROWS: Final = 128
THREAD_SLOTS: Final = 2048
THREAD_PROBES: Final = 32
CELL_SIZE: Final = 64
CELL_RET_ENTRY: Final = 70
CELL_RET_INNER: Final = 75
SHADOW_BYTES: Final = 16384
SHADOW_SLOTS: Final = 1024
GUARDS: Final = 16
HAS_RDPID: Final = 1
TID_OFF_UNKNOWN: Final = -(1 << 63)
"""``Env.tid_off``: ask the kernel for the thread id."""

MAP_MAGIC: Final = 0x70616D5F66706275
MAP_VERSION: Final = 1
HOLD_OFF: Final = PAGE
HOLD_STRIDE: Final = 64
INFLIGHT: Final = 64
PERF_PAGES: Final = 64


class MapDef(ctypes.Structure):
    """``struct ub_map_def``: the geometry of a map. ``bytes(map_def)`` is what code generators bake in."""

    _fields_ = [
        ("type", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("flags", c_uint32),
        ("n_cpus", c_uint32),
        ("value_stride", c_uint32),
        ("elem_stride", c_uint32),
        ("n_buckets", c_uint32),
        ("n_elems", c_uint32),
        ("buckets_off", c_uint64),
        ("elems_off", c_uint64),
        ("data_off", c_uint64),
        ("seed", c_uint64),
        ("size", c_uint64),
    ]


class Run(ctypes.Structure):
    """``struct ub_run``: state of one run of one program."""

    _fields_ = [("thread", c_uint64), ("cell", c_uint64), ("cpu", c_uint32), ("flags", c_uint32)]


class Env(ctypes.Structure):
    """``struct ub_env``: the head of an image's data area."""

    _fields_ = [
        ("abi", c_uint64),
        ("threads", c_uint64),
        ("hits", c_uint64),
        ("hits_shift", c_uint64),
        ("tid_off", c_int64),
        ("tgid", c_uint32),
        ("uid", c_uint32),
        ("gid", c_uint32),
        ("n_cpus", c_uint32),
        ("enter_slow", c_uint64),
        ("copy_from_user", c_uint64),
        ("strncpy_from_user", c_uint64),
        ("vdso_clock_gettime", c_uint64),
        ("owner_tag", c_uint32),
        ("features", c_uint32),
    ]


class Cell(ctypes.Structure):
    """``struct ub_cell``: one link at one site."""

    _fields_ = [
        ("hook", c_uint64),
        ("body", c_uint64),
        ("site", c_uint64),
        ("func", c_uint64),
        ("cookie", c_uint64),
        ("link", c_uint32),
        ("flags", c_uint32),
        ("reserved", c_uint64 * 2),
    ]


class Thread(ctypes.Structure):
    """``struct ub_thread``: one slot of per-thread state."""

    _fields_ = [("key", c_uint64), ("tid", c_uint32), ("row", c_int32)]


class Threads(ctypes.Structure):
    """``struct ub_threads``: the thread table of one process."""

    _fields_ = [
        ("tgid", c_uint32),
        ("next_row", c_uint32),
        ("tid_off", c_int64),
        ("reserved", c_uint64 * 4),
        ("shared", Thread),
        ("slots", Thread * THREAD_SLOTS),
    ]


class ShadowEntry(ctypes.Structure):
    """``struct ub_shadow_entry``: one replaced return address."""

    _fields_ = [("sp", c_uint64), ("ret", c_uint64), ("cell", c_uint64), ("reserved", c_uint64)]


class Shadow(ctypes.Structure):
    """``struct ub_shadow`` without its entries, which follow."""

    _fields_ = [("n", c_uint64), ("reserved", c_uint64 * 3)]


class ShadowSlot(ctypes.Structure):
    """``struct ub_shadow_slot``"""

    _fields_ = [("key", c_uint64), ("table", c_uint64)]


class SigAction(ctypes.Structure):
    """``struct ub_sigaction``: ``struct kernel_sigaction`` of x86-64."""

    _fields_ = [("handler", c_uint64), ("flags", c_uint64), ("restorer", c_uint64), ("mask", c_uint64)]


class Guard(ctypes.Structure):
    """``struct ub_guard``: a function of a library that the agent stands before."""

    _fields_ = [
        ("site", c_uint64),
        ("trampoline", c_uint64),
        ("size", c_uint64),
        ("original", c_uint8 * 32),
        ("length", c_uint32),
        ("kind", c_uint32),
    ]


class Proc(ctypes.Structure):
    """``struct ub_proc``: the data area of the agent's image."""

    _fields_ = [
        ("abi", c_uint64),
        ("old", SigAction * 2),
        ("missed_returns", c_uint64),
        ("threads", c_uint64),
        ("sessions", c_uint32),
        ("faults", c_uint32),
        ("tp_self", c_uint64),
        ("reserved", c_uint64 * 4),
        ("restorer", c_uint64),
        ("guards", Guard * GUARDS),
        ("shadows", ShadowSlot * SHADOW_SLOTS),
    ]


class PtRegs(ctypes.Structure):
    """``struct ub_pt_regs``"""

    _fields_ = [
        (name, c_uint64)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
            *("orig_rax", "rip", "cs", "eflags", "rsp", "ss"),
        )
    ]


class Inflight(ctypes.Structure):
    """``struct ub_inflight``"""

    _fields_ = [("owner", c_uint64), ("pos", c_uint64)]


class MapHeader(ctypes.Structure):
    """``struct ub_map_header``: the first page of a map file."""

    _fields_ = [
        ("magic", c_uint64),
        ("version", c_uint32),
        ("type", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("flags", c_uint32),
        ("n_cpus", c_uint32),
        ("reserved", c_uint32),
        ("seed", c_uint64),
        ("size", c_uint64),
        ("meta_off", c_uint64),
        ("meta_size", c_uint64),
        ("pad0", c_uint8 * 56),
        ("wake_seq", c_uint32),
        ("waiting", c_uint32),
        ("skipped", c_uint64),
        ("pad1", c_uint8 * 48),
        ("dropped", c_uint64),
        ("pad2", c_uint8 * 56),
        ("free_seq", c_uint64),
        ("full_at", c_uint64),
        ("free_hint", c_uint32),
        ("pad3", c_uint8 * 44),
        ("ring_lock", c_uint64),
        ("pending_pos", c_uint64),
        ("pad4", c_uint8 * 48),
        ("inflight", Inflight * INFLIGHT),
    ]


class Stripe(ctypes.Structure):
    """``struct ub_stripe``: a hash map's lock and journal."""

    _fields_ = [
        ("lock", c_uint64),
        ("seq", c_uint32),
        ("spare", c_uint32),
        ("op", c_uint32),
        ("bucket", c_uint32),
        ("elem", c_uint32),
        ("old", c_uint32),
        ("hint", c_uint32),
        ("pad", c_uint8 * 28),
    ]


class Trace(ctypes.Structure):
    """``struct ub_trace``: head of a line of bpf_trace_printk in the trace ring buffer; ``len`` bytes follow."""

    _fields_ = [
        ("ktime", c_uint64),
        ("pid", c_uint32),
        ("tid", c_uint32),
        ("cpu", c_uint32),
        ("len", c_uint32),
        ("comm", c_char * 16),
    ]


class Event(ctypes.Structure):
    """``struct ub_event``: head of an event that ub_map_consume() copied out; ``size`` bytes follow, padded to 8."""

    _fields_ = [("size", c_uint32), ("cpu", c_uint32), ("lost", c_uint64)]
