"""The address space of a process: ``/proc/PID/maps`` as values, and where there is room in it.

Format and field meaning: proc_pid_maps(5). Nothing here touches a process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from userbpf.errors import ProcessError

__all__ = ["PAGE", "TASK_SIZE", "Mapping", "find_gap", "page_up", "parse_maps"]

PAGE = 4096
TASK_SIZE = 0x7FFF_FFFF_F000
"""End of the user half of the address space with four-level paging (arch/x86/include/asm/page_64_types.h)."""

REACH = (1 << 31) - (16 << 20)
"""How far a region may be from what it jumps to: a signed 32-bit displacement less a margin for operands."""
STACK_CLEARANCE = 128 << 20
"""Room left below a stack for its growth; the default limit is 8 MB, the kernel's guard gap 1 MB."""
HEAP_CLEARANCE = 1 << 30
"""Room left above the heap: brk(2) grows it until it meets another mapping."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of ``/proc/PID/maps``; ``path`` has no ``(deleted)`` suffix, ``deleted`` tells."""

    start: int
    end: int
    perms: str
    offset: int
    device: tuple[int, int]
    inode: int
    path: str
    deleted: bool = False

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def executable(self) -> bool:
        return self.perms[2] == "x"

    @property
    def writable(self) -> bool:
        return self.perms[1] == "w"

    @property
    def readable(self) -> bool:
        return self.perms[0] == "r"

    @property
    def file_backed(self) -> bool:
        return self.inode != 0 and self.path.startswith("/")

    def __contains__(self, addr: object) -> bool:
        return isinstance(addr, int) and self.start <= addr < self.end


def page_up(size: int) -> int:
    """Round ``size`` bytes up to whole pages."""
    return (size + PAGE - 1) & -PAGE


def parse_maps(text: str) -> list[Mapping]:
    """Parse the text of ``/proc/PID/maps``; the kernel lists mappings by rising address."""
    mappings: list[Mapping] = []
    for line in text.splitlines():
        fields = line.split(None, 5)
        try:
            span, perms, offset, device, inode = fields[:5]
            start, _, end = span.partition("-")
            major, _, minor = device.partition(":")
            # Newlines in names are written as \012 by seq_file's mangle_path, and nothing else is escaped.
            path = fields[5].replace("\\012", "\n") if len(fields) > 5 else ""
            deleted = path.startswith("/") and path.endswith(" (deleted)")
            mappings.append(
                Mapping(
                    start=int(start, 16),
                    end=int(end, 16),
                    perms=perms,
                    offset=int(offset, 16),
                    device=(int(major, 16), int(minor, 16)),
                    inode=int(inode),
                    path=path.removesuffix(" (deleted)") if deleted else path,
                    deleted=deleted,
                )
            )
        except ValueError as error:
            raise ProcessError(f"the kernel's list of mappings has a line that cannot be read: {line!r}") from error
    return mappings


def _free_ranges(mappings: Sequence[Mapping], min_addr: int, brk_start: int) -> Iterable[tuple[int, int]]:
    """Free address ranges, less what belongs to the future of the heap and of stacks."""
    low = max(min_addr, PAGE)
    heap_end = max((m.end for m in mappings if m.path == "[heap]"), default=brk_start)
    for mapping in [*mappings, Mapping(TASK_SIZE, TASK_SIZE, "---p", 0, (0, 0), 0, "")]:
        if mapping.start >= TASK_SIZE + PAGE:
            break
        high = min(mapping.start, TASK_SIZE)
        if mapping.path.startswith("[stack"):
            high -= STACK_CLEARANCE
        start = low
        if heap_end and start <= heap_end + HEAP_CLEARANCE and high > heap_end:
            # The heap ends in this range or will grow through it: what lies below its start stays usable.
            if start < heap_end and not any(m.path == "[heap]" for m in mappings):
                yield start, min(high, heap_end)
            start = max(start, heap_end + HEAP_CLEARANCE)
        if high > start:
            yield start, high
        low = max(low, mapping.end)


def find_gap(
    mappings: Sequence[Mapping],
    near: int,
    size: int,
    *,
    near_end: int | None = None,
    min_addr: int = 65536,
    brk_start: int = 0,
) -> int:
    """Address of ``size`` free bytes that reach, and are reached by, everything in ``near`` .. ``near_end``.

    The nearest place wins; one page on either side is left free, so that the region never merges with a neighbour.
    min_addr: ``vm.mmap_min_addr``. brk_start: where the heap will begin when there is no ``[heap]`` yet (0: unknown).
    """
    end = near_end if near_end is not None else near + 1
    size = page_up(size)
    best: tuple[int, int] | None = None
    for low, high in _free_ranges(mappings, min_addr, brk_start):
        first, last = low + PAGE, high - PAGE - size
        # Every byte of the region must be within REACH of every byte of the module, both ways.
        first = max(first, page_up(max(0, end - REACH)))
        last = min(last, (near + REACH - size) & -PAGE)
        if first > last:
            continue
        place = last if last < near else first
        distance = abs(place - near)
        if best is None or distance < best[0]:
            best = (distance, place)
    if best is None:
        raise ProcessError(
            f"there are no {size} free bytes within 2 GB of {near:#x}",
            hint="the address space around this module is full; probe the function in another module",
        )
    return best[1]
