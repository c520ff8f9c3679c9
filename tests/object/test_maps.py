"""Map declarations of every grammar become the numbers that libbpf would create them with."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from userbpf.btf import Decoder
from userbpf.errors import ObjectError
from userbpf.object import Initialiser, Object
from userbpf.tables import MapFlag, MapType

Compile = Callable[..., bytes]
NOTHING = 'SEC("uprobe") int prog(void *ctx) { return 0; }'


def test_btf_maps_with_all_attributes(bpf_cc: Compile) -> None:
    data = bpf_cc(
        """
        struct key { u32 pid; char comm[16]; };
        struct { __uint(type, 1); __uint(max_entries, 10240); __type(key, struct key); __type(value, u64);
                 __uint(map_flags, 1); __uint(pinning, 1); __uint(numa_node, 3); } hash SEC(".maps");
        struct { __uint(type, 27); __uint(max_entries, 4096); __ulong(map_extra, 1ull << 40); } ring SEC(".maps");
        struct { __uint(type, 4); __uint(key_size, 4); __uint(value_size, 4); } perf SEC(".maps");
        """
        + NOTHING
    )
    maps = Object.parse(data, name="x.o").maps
    assert list(maps) == ["hash", "ring", "perf"]
    spec = maps["hash"]
    assert (spec.type, spec.key_size, spec.value_size, spec.max_entries) == (MapType.HASH, 20, 8, 10240)
    assert (spec.flags, spec.pinning, spec.numa_node, spec.kind) == (MapFlag.NO_PREALLOC, 1, 3, "map")
    assert spec.btf is not None
    assert Decoder(spec.btf, spec.key_btf).decode(b"\7\0\0\0bash" + bytes(12)) == {"pid": 7, "comm": "bash"}
    assert maps["ring"].map_extra == 1 << 40 and maps["ring"].key_size == 0
    assert (maps["perf"].key_size, maps["perf"].value_size, maps["perf"].max_entries) == (4, 4, 0)


def test_maps_of_maps_and_of_programs_carry_their_initial_values(bpf_cc: Compile) -> None:
    data = bpf_cc(
        """
        struct inner { __uint(type, 2); __uint(max_entries, 1); __type(key, u32); __type(value, u64); };
        struct inner one SEC(".maps"), two SEC(".maps");
        struct { __uint(type, 12); __uint(max_entries, 4); __type(key, u32); __array(values, struct inner); }
            outer SEC(".maps") = { .values = { [1] = &one, [3] = &two } };
        int prog(void *ctx);
        struct { __uint(type, 3); __uint(max_entries, 4); __type(key, u32); __array(values, int(void *)); }
            jump SEC(".maps") = { .values = { [2] = &prog } };
        """
        + NOTHING
    )
    maps = Object.parse(data, name="x.o").maps
    inner = maps["outer"].inner
    assert inner is not None and (inner.name, inner.type, inner.value_size) == ("outer.inner", MapType.ARRAY, 8)
    assert maps["outer"].values == (Initialiser(1, "one", "map"), Initialiser(3, "two", "map"))
    assert maps["jump"].values == (Initialiser(2, "prog", "prog"),)
    assert maps["jump"].value_size == maps["outer"].value_size == 4


def test_global_sections_are_arrays_flagged_as_libbpf_flags_them(bpf_cc: Compile) -> None:
    data = bpf_cc(
        """
        const volatile int limit = 7; const volatile char name[4] = "abc";
        int counter = 5; u64 zeros[4]; static volatile int hidden SEC(".data.hidden") = 9;
        SEC("uprobe") int prog(void *ctx) { counter += limit + name[1] + zeros[3] + hidden; return 0; }
        """
    )
    obj = Object.parse(data, name="x.o")
    rodata, bss, hidden = obj.maps[".rodata"], obj.maps[".bss"], obj.maps[".data.hidden"]
    assert (rodata.kind, rodata.flags) == ("rodata", MapFlag.RDONLY_PROG | MapFlag.MMAPABLE)
    assert (bss.kind, bss.initial, bss.flags) == ("bss", bytes(32), MapFlag.MMAPABLE)
    assert (hidden.kind, hidden.initial, hidden.flags) == ("data", b"\x09\0\0\0", 0)
    assert all((m.type, m.key_size, m.max_entries) == (MapType.ARRAY, 4, 1) for m in obj.maps.values())
    assert rodata.btf is not None and rodata.initial is not None
    assert Decoder(rodata.btf, rodata.datasec).decode(rodata.initial) == {"limit": 7, "name": "abc"}
    assert {m.name for m in obj.programs["prog"].maps} == set(obj.maps)


def test_legacy_maps_of_any_length(bpf_cc: Compile) -> None:
    long = """
        struct def { u32 type, key, value, entries, flags, more[3]; };
        struct def first SEC("maps") = { 1, 4, 8, 16, 1 }; struct def second SEC("maps") = { 2, 4, 16, 1 };
        SEC("uprobe") int prog(void *ctx) { u32 k = 0; return !bpf_map_lookup_elem(&second, &k); }
    """
    for flags in (["-g"], ["-g0"]):
        obj = Object.parse(bpf_cc(long, *flags), name="x.o")
        assert [(m.name, m.type, m.key_size, m.value_size, m.max_entries, m.flags) for m in obj.maps.values()] == [
            ("first", MapType.HASH, 4, 8, 16, 1),
            ("second", MapType.ARRAY, 4, 16, 1, 0),
        ]
        assert [m.name for m in obj.programs["prog"].maps] == ["second"]
    short = long.replace(", flags, more[3]", "").replace(", 16, 1 }", ", 16 }")
    assert Object.parse(bpf_cc(short), name="x.o").maps["first"].flags == 0
    with pytest.raises(ObjectError, match="'first' has attributes beyond"):
        Object.parse(bpf_cc(long.replace("16, 1 }", "16, 1, 9 }")), name="x.o")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("__uint(max_entries, 1);", "no type"),
        ("__uint(type, 1); __uint(speed, 9);", "unknown attribute 'speed'"),
        ("__uint(type, 1); int key;", "key is not a type"),
        ("__uint(type, 1); __uint(key_size, 8); __type(key, u32);", "key_size 4 contradicts"),
        ("__uint(type, 1); __uint(pinning, 7);", "pinning 7"),
        ("__uint(type, 1); __array(values, int);", "neither a map of maps nor a program array"),
        ("__uint(type, 3); __array(values, int);", "are functions"),
        ("__uint(type, 12); int *values[2]; __uint(max_entries, 1);", "values is not the last member"),
        ("__uint(type, 12); int *values[2];", "not an array of map definitions"),
    ],
)
def test_malformed_definitions_name_the_map_and_the_attribute(bpf_cc: Compile, body: str, says: str) -> None:
    with pytest.raises(ObjectError, match=says) as caught:
        Object.parse(bpf_cc(f'struct {{ {body} }} wrong SEC(".maps");' + NOTHING), name="x.o")
    assert "'wrong'" in str(caught.value) and caught.value.place.section == ".maps"


def test_btf_maps_without_btf_say_what_to_do(bpf_cc: Compile) -> None:
    data = bpf_cc('struct { __uint(type, 1); } m SEC(".maps");' + NOTHING, "-g0")
    with pytest.raises(ObjectError, match="has no BTF"):
        Object.parse(data, name="x.o")


def test_struct_ops_variables_are_maps_that_name_their_programs(bpf_cc: Compile) -> None:
    data = bpf_cc(
        """
        struct ops { int (*init)(void *); u32 flags; int (*run)(void *); };
        SEC("struct_ops/first") int first(void *c) { return 1; }
        SEC("struct_ops/second") int second(void *c) { return 2; }
        struct ops table SEC(".struct_ops") = { .init = first, .flags = 9, .run = second };
        """
    )
    obj = Object.parse(data, name="x.o")
    spec = obj.maps["table"]
    assert (spec.type, spec.value_size, spec.values) == (
        MapType.STRUCT_OPS,
        24,
        (Initialiser(0, "first", "prog"), Initialiser(16, "second", "prog")),
    )
    assert spec.btf is not None and spec.initial is not None
    assert Decoder(spec.btf, spec.value_btf).decode(spec.initial) == {"init": 0, "flags": 9, "run": 0}
    assert set(obj.programs) == {"first", "second"}
