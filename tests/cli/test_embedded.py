"""Finding BPF objects inside other files, hostile ones included."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from userbpf.cli.embedded import find_embedded, is_bpf_object


def tiny_object(payload: bytes = b"") -> bytes:
    """The smallest relocatable BPF file: a header, ``payload``, one section that is the payload."""
    table = 64 + len(payload)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 247, 1, 0, 0, table, 0, 64, 0, 0, 64, 1, 0)
    return header + payload + struct.pack("<IIQQQQIIQQ", 0, 1, 0, 0, 64, len(payload), 0, 0, 1, 0)


HOST = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 0, 0, 0, 64, 0, 0, 64, 0, 0)


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_every_whole_object_is_found_with_its_exact_bytes(before: bytes, payload: bytes, after: bytes) -> None:
    inner = tiny_object(payload)
    data = HOST + before + inner + after + inner
    assert [item.data for item in find_embedded(data)] == [inner, inner]
    assert find_embedded(data)[0].offset == len(HOST) + len(before)


@given(st.integers(min_value=1, max_value=127))
def test_an_object_that_is_cut_off_is_not_found(cut: int) -> None:
    data = HOST + tiny_object(b"x" * 8)
    assert find_embedded(data[:-cut]) == []


@given(st.binary(max_size=200))
def test_any_bytes_behind_a_magic_number_are_survived(tail: bytes) -> None:
    for item in find_embedded(HOST + b"\x7fELF\x02\x01\x01" + tail):
        assert len(item.data) >= 64


def test_what_the_object_reader_judges_is_told_from_what_carries_objects() -> None:
    assert is_bpf_object(tiny_object())
    assert is_bpf_object(b"no ELF at all")
    assert not is_bpf_object(HOST)
