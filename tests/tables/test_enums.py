"""Numbers of map, program and attach types, and of contexts, against the kernel."""

from __future__ import annotations

from enum import IntEnum

import pytest

from userbpf.tables.contexts import PT_REGS_AARCH64, PT_REGS_X86_64, context_for
from userbpf.tables.helpers import HELPERS
from userbpf.tables.maps import MAP_TYPES, KeyRule, MapFlag, MapType, type_name
from userbpf.tables.prog_types import AttachType, ProgType

from .kernel_enums import kernel_enum


@pytest.mark.parametrize(
    ("ours", "name", "prefix"),
    [
        (MapType, "bpf_map_type", "BPF_MAP_TYPE_"),
        (ProgType, "bpf_prog_type", "BPF_PROG_TYPE_"),
        (AttachType, "bpf_attach_type", "BPF_"),
    ],
)
def test_numbers_are_those_of_the_running_kernel(ours: type[IntEnum], name: str, prefix: str) -> None:
    kernel = kernel_enum(name)
    if kernel is None:
        pytest.skip("the kernel has no BTF in /sys/kernel/btf/vmlinux")
    newest = max(kernel.values())
    for member in ours:
        if member <= newest and f"{prefix}{member.name}" in kernel:
            assert kernel[f"{prefix}{member.name}"] == member
    shared = [member for member in ours if f"{prefix}{member.name}" in kernel]
    assert len(shared) >= len(ours) - 5


def test_offered_map_types_name_helpers_that_exist() -> None:
    names = {helper.name for helper in HELPERS.values() if helper.offered}
    assert set(MAP_TYPES) == {
        MapType.HASH,
        MapType.ARRAY,
        MapType.PERCPU_HASH,
        MapType.PERCPU_ARRAY,
        MapType.RINGBUF,
        MapType.PERF_EVENT_ARRAY,
    }
    for info in MAP_TYPES.values():
        assert info.helpers <= names
        assert info.doc


def test_map_rules_are_the_kernels() -> None:
    assert MapFlag.MMAPABLE in MAP_TYPES[MapType.ARRAY].flags
    assert MapFlag.MMAPABLE not in MAP_TYPES[MapType.PERCPU_ARRAY].flags
    assert MapFlag.NO_PREALLOC in MAP_TYPES[MapType.HASH].flags
    assert MAP_TYPES[MapType.RINGBUF].key is KeyRule.NONE
    assert type_name(6) == "percpu_array"
    assert type_name(9999) == "type 9999"


def test_register_files_have_no_holes() -> None:
    for context, size in ((PT_REGS_X86_64, 168), (PT_REGS_AARCH64, 272)):
        assert context.size == size
        assert [field.offset for field in context.fields] == list(range(0, size, 8))
    di = next(field for field in PT_REGS_X86_64.fields if field.name == "di")
    assert di.offset == 112


def test_fields_are_found_by_aligned_access() -> None:
    field = PT_REGS_X86_64.field_at(112, 8)
    assert field is not None
    assert field.name == "di"
    narrow = PT_REGS_X86_64.field_at(116, 4)
    assert narrow is not None
    assert narrow.name == "di"
    assert PT_REGS_X86_64.field_at(113, 2) is None
    assert PT_REGS_X86_64.field_at(168, 8) is None
    assert PT_REGS_X86_64.field_at(-8, 8) is None
    assert PT_REGS_X86_64.field_at(0, 3) is None


def test_context_of_each_described_program_type() -> None:
    assert context_for(ProgType.KPROBE) is PT_REGS_X86_64
    assert context_for(ProgType.KPROBE, "aarch64") is PT_REGS_AARCH64
    assert context_for(ProgType.KPROBE, "vax") is None
    perf = context_for(ProgType.PERF_EVENT)
    assert perf is not None
    assert perf.size == 184
    xdp = context_for(ProgType.XDP)
    assert xdp is not None
    assert xdp.field_at(4, 2) is None
    assert context_for(ProgType.SYSCALL) is None
    for prog_type in ProgType:
        context = context_for(prog_type)
        if context is not None:
            ends = [field.offset + field.size for field in context.fields]
            starts = [field.offset for field in context.fields]
            assert all(end <= start for end, start in zip(ends, starts[1:], strict=False)), context.name
            assert ends[-1] <= context.size
