"""Address spaces: parsing, and finding room that stays clear of heaps and stacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userbpf.errors import ProcessError
from userbpf.process import PAGE, Mapping, find_gap, page_up, parse_maps
from userbpf.process.mappings import HEAP_CLEARANCE, REACH, STACK_CLEARANCE


def mapping(start: int, end: int, path: str = "") -> Mapping:
    return Mapping(start, end, "r-xp", 0, (0, 0), 0, path)


def test_a_line_has_all_its_fields() -> None:
    text = "7f00-8000 r-xp 00026000 fe:00 339380   /usr/lib/a b.so (deleted)\nffff000 bad\n"
    (parsed,) = parse_maps(text.splitlines()[0])
    assert parsed == Mapping(0x7F00, 0x8000, "r-xp", 0x26000, (0xFE, 0), 339380, "/usr/lib/a b.so", True)
    with pytest.raises(ProcessError, match="cannot be read"):
        parse_maps(text)


def test_our_own_address_space_is_read_whole() -> None:
    text = Path("/proc/self/maps").read_text()
    assert len(parse_maps(text)) == len(text.splitlines())


SPACES = st.lists(st.integers(16, 1 << 34), min_size=2, max_size=24, unique=True).map(sorted)


@given(SPACES, st.integers(1, 1 << 20), st.integers(0, 22), st.booleans())
def test_a_gap_is_free_and_in_reach_and_clear_of_heap_and_stack(
    pages: list[int], size: int, pick: int, special: bool
) -> None:
    pairs = list(zip(pages[::2], pages[1::2], strict=False))
    space = [mapping(a * PAGE, b * PAGE) for a, b in pairs]
    if special:
        space[0] = mapping(space[0].start, space[0].end, "[heap]")
        space[-1] = mapping(space[-1].start, space[-1].end, "[stack]") if len(space) > 1 else space[-1]
    module = space[pick % len(space)]
    try:
        addr = find_gap(space, module.start, size, near_end=module.end)
    except ProcessError:
        return
    end = addr + page_up(size)
    assert addr % PAGE == 0
    assert addr >= 65536
    assert all(end + PAGE <= m.start or m.end + PAGE <= addr for m in space)
    assert end - module.start <= REACH
    assert module.end - addr <= REACH
    for other in space:
        if other.path == "[heap]":
            assert end <= other.start or addr >= other.end + HEAP_CLEARANCE
        if other.path == "[stack]" and not any(end <= m.start < other.start for m in space):
            assert addr >= other.end or other.start - end >= STACK_CLEARANCE


def test_room_is_found_below_a_position_independent_program_and_above_a_full_one() -> None:
    program = mapping(0x5555_0000_0000, 0x5555_0010_0000, "/bin/x")
    heap = mapping(0x5555_0020_0000, 0x5555_0030_0000, "[heap]")
    addr = find_gap([program, heap], program.start, 65536, near_end=program.end)
    assert addr + 65536 <= heap.start
    low = mapping(65536, 0x50_0000, "/bin/static")
    above = find_gap([low], low.start, 65536, near_end=low.end, brk_start=0x51_0000)
    assert above >= 0x51_0000 + HEAP_CLEARANCE or above + 65536 <= 0x51_0000


def test_a_full_neighbourhood_is_an_error() -> None:
    everything = [mapping(PAGE * 16, 1 << 40)]
    with pytest.raises(ProcessError, match="no 4096 free bytes within 2 GB"):
        find_gap(everything, 1 << 39, 100)
