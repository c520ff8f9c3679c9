"""The table of helpers agrees with the kernel's, and each offered row is complete."""

from __future__ import annotations

import re

import pytest

from userbpf.tables.helpers import BY_NAME, CODEGEN, HELPER_NAMES, HELPERS, Arg, Ret
from userbpf.tables.programs import TRACING_TYPES

from .kernel_enums import kernel_enum

OFFERED = {
    "map_lookup_elem": 1,
    "map_update_elem": 2,
    "map_delete_elem": 3,
    "probe_read": 4,
    "ktime_get_ns": 5,
    "trace_printk": 6,
    "get_prandom_u32": 7,
    "get_smp_processor_id": 8,
    "get_current_pid_tgid": 14,
    "get_current_uid_gid": 15,
    "get_current_comm": 16,
    "perf_event_output": 25,
    "probe_read_str": 45,
    "probe_read_user": 112,
    "probe_read_kernel": 113,
    "probe_read_user_str": 114,
    "probe_read_kernel_str": 115,
    "ktime_get_boot_ns": 125,
    "ringbuf_output": 130,
    "ringbuf_reserve": 131,
    "ringbuf_submit": 132,
    "ringbuf_discard": 133,
    "ringbuf_query": 134,
    "ktime_get_coarse_ns": 160,
    "get_func_ip": 173,
    "get_attach_cookie": 174,
    "trace_vprintk": 177,
    "get_func_arg": 183,
    "get_func_ret": 184,
    "get_func_arg_cnt": 185,
}


def test_ids_and_names_are_those_of_the_running_kernel() -> None:
    kernel = kernel_enum("bpf_func_id")
    if kernel is None:
        pytest.skip("the kernel has no BTF in /sys/kernel/btf/vmlinux")
    names = {name.removeprefix("BPF_FUNC_"): value for name, value in kernel.items() if name.startswith("BPF_FUNC_")}
    del names["unspec"]
    known = {name: value for name, value in names.items() if value <= max(HELPERS)}
    ours = {helper.name: helper.id for helper in HELPERS.values() if helper.id <= max(names.values())}
    assert ours == known


def test_ids_have_no_gap_and_both_indices_agree() -> None:
    assert list(HELPERS) == list(range(1, 212))
    assert all(BY_NAME[helper.name] is helper for helper in HELPERS.values())
    assert HELPER_NAMES[1] == "bpf_map_lookup_elem"


def test_the_offered_set_is_the_documented_one() -> None:
    assert {helper.name: helper.id for helper in HELPERS.values() if helper.offered} == OFFERED


def test_native_symbols_follow_the_name() -> None:
    for helper in HELPERS.values():
        if helper.offered:
            assert helper.native == (CODEGEN if helper.id in (173, 174, 183, 184, 185) else f"ub_helper_{helper.name}")


def test_prototypes_of_offered_helpers_have_as_many_arguments_as_the_table() -> None:
    for helper in HELPERS.values():
        if not helper.offered:
            continue
        inside = re.fullmatch(r".*?bpf_\w+\((.*)\)", helper.c_proto)
        assert inside is not None
        written = [] if inside[1] == "void" else inside[1].split(",")
        if written and written[-1].strip() == "...":
            assert helper.args[len(written) - 1 :] == (Arg.VARARG,) * (6 - len(written))
        else:
            assert len(written) == len(helper.args), helper.name
        assert len(helper.args) <= 5
        assert (helper.ret is Ret.VOID) == helper.c_proto.startswith("void bpf_")


def test_a_size_always_follows_the_memory_that_it_measures() -> None:
    memory = {Arg.MEM, Arg.MEM_OR_NULL, Arg.UNINIT_MEM}
    for helper in HELPERS.values():
        for i, arg in enumerate(helper.args):
            if arg in (Arg.SIZE, Arg.SIZE_OR_ZERO):
                assert helper.args[i - 1] in memory, helper.name
            if arg in memory:
                assert helper.args[i + 1] in (Arg.SIZE, Arg.SIZE_OR_ZERO), helper.name


def test_offered_helpers_have_a_sentence_and_the_others_no_native() -> None:
    for helper in HELPERS.values():
        assert bool(helper.doc) == helper.offered
        assert helper.alternative is None or not helper.offered
        assert re.fullmatch(r"[3-6]\.\d+", helper.since)


def test_tracing_helpers_are_bound_to_tracing_programs() -> None:
    assert BY_NAME["probe_read_user"].programs == TRACING_TYPES
    assert BY_NAME["map_lookup_elem"].programs is None


def test_printing_helpers_write_to_the_hidden_trace_map() -> None:
    assert {helper.name for helper in HELPERS.values() if helper.implicit_map} == {"trace_printk", "trace_vprintk"}
