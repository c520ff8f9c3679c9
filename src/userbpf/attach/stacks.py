"""What the stacks of stopped threads say about where they will go on.

Only two kinds of words matter. A *signal frame* holds the instruction pointer with which an interrupted thread goes on
(struct sigcontext, arch/x86/include/uapi/asm/sigcontext.h). A *return address* into our code is alive only while a hook
runs; then either the thread stands in our code, or in the vDSO that a hook has called, or a signal frame tells. Other
words that look like addresses of ours are what earlier calls left behind: a hook's return address stays in the frame of
a function that does not write to that slot, for as long as the function sleeps. They are no obstacle.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from userbpf.process import Mapping, Registers, Stopped

__all__ = ["Hit", "Stack", "hits", "read_stacks"]

_STACK_BYTES: Final = 256 * 1024
_CODE_SEGMENT: Final = 0x33
"""__USER_CS, which follows instruction pointer and flags in a signal frame."""
_FLAGS_FIXED: Final = 0x2
_FLAGS_USED: Final = 0x3F_7FD7


@dataclass(frozen=True, slots=True)
class Stack:
    """The used part of a thread's stack, at most 256 KB."""

    tid: int
    regs: Registers
    data: bytes


@dataclass(frozen=True, slots=True)
class Hit:
    """A word that points into one of the ranges that were asked for; ``framed``: it is a signal frame's."""

    value: int
    framed: bool


def read_stacks(stopped: Stopped, mappings: Sequence[Mapping]) -> list[Stack]:
    """The stacks of all threads that have one."""
    tids: list[int] = []
    ranges: list[tuple[int, int]] = []
    for tid, regs in stopped.threads.items():
        start = regs.sp & -8
        mapping = next((m for m in mappings if start in m), None)
        if mapping is not None and mapping.readable:
            tids.append(tid)
            ranges.append((start, min(_STACK_BYTES, mapping.end - start)))
    parts = stopped.process.read_many(ranges)
    return [Stack(tid, stopped.threads[tid], data) for tid, data in zip(tids, parts, strict=True)]


def _is_framed(data: bytes, position: int) -> bool:
    if position + 24 > len(data):
        return False
    flags: int
    segments: int
    flags, segments = struct.unpack_from("<QQ", data, position + 8)
    return segments & 0xFFFF == _CODE_SEGMENT and flags & _FLAGS_FIXED != 0 and flags & ~_FLAGS_USED == 0


def hits(data: bytes, ranges: Iterable[tuple[int, int]]) -> Iterator[Hit]:
    """Words of a stack that lie in one of the half-open ``ranges``.

    The upper five bytes of the addresses are searched as bytes, which is quick; the candidates are looked at.
    """
    spans = list(ranges)
    prefixes = {block for low, high in spans for block in range(low >> 24, (high - 1 >> 24) + 1)}
    for prefix in prefixes:
        pattern = prefix.to_bytes(5, "little")
        found = data.find(pattern)
        while found >= 0:
            position = found - 3
            if position >= 0 and position % 8 == 0:
                value = struct.unpack_from("<Q", data, position)[0]
                if any(low <= value < high for low, high in spans):
                    yield Hit(value, _is_framed(data, position))
            found = data.find(pattern, found + 1)
