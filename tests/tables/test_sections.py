"""libbpf's SEC() grammar."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userbpf.errors import ObjectError
from userbpf.tables.programs import SECTIONS, AttachType, ProgType, Section, Target, parse_section


def parsed(name: str, *fields: str) -> tuple[object, ...]:
    section = parse_section(name)
    return tuple(getattr(section, field) for field in fields)


@pytest.mark.parametrize(
    ("name", "path", "symbol", "offset"),
    [
        ("uprobe/libc.so.6:malloc", "libc.so.6", "malloc", 0),
        ("uprobe//usr/bin/bash:readline+0x10", "/usr/bin/bash", "readline", 16),
        ("uprobe//usr/bin/bash:readline+12", "/usr/bin/bash", "readline", 12),
        ("uprobe/./a b/c:0x1139", "./a b/c", None, 0x1139),
        ("uprobe/./a:4096", "./a", None, 4096),
        ("uprobe/libc.so.6:memcpy@GLIBC_2.14", "libc.so.6", "memcpy@GLIBC_2.14", 0),
        ("uprobe/x:_ZN3fooplEi", "x", "_ZN3fooplEi", 0),
        ("uprobe/x:main.(*T).add+b", "x", "main.(*T).add+b", 0),
        ("uprobe/x:operator+", None, None, 0),
        ("uretprobe/x:f", "x", "f", 0),
    ],
)
def test_uprobe_targets(name: str, path: str | None, symbol: str | None, offset: int) -> None:
    if path is None:
        with pytest.raises(ObjectError):
            parse_section(name)
        return
    section = parse_section(name)
    assert (section.kind, section.prog_type) == ("uprobe", ProgType.KPROBE)
    assert (section.path, section.symbol, section.offset) == (path, symbol, offset)
    assert section.auto_attach
    assert section.is_return == name.startswith("uret")


@pytest.mark.parametrize("name", ["uprobe", "uretprobe", "uprobe.s", "usdt", "kprobe", "tracepoint", "tp", "fentry"])
def test_type_alone_has_no_target(name: str) -> None:
    section = parse_section(name)
    assert not section.auto_attach
    assert section.symbol is None
    assert section.path is None


def test_other_probe_targets() -> None:
    assert parsed("usdt/libc.so.6:libc:setjmp", "path", "provider", "symbol") == ("libc.so.6", "libc", "setjmp")
    assert parsed("uprobe.multi/x:foo*", "path", "symbol", "attach_type") == (
        "x",
        "foo*",
        AttachType.TRACE_UPROBE_MULTI,
    )
    assert parsed("kprobe/do_unlinkat+0x8", "symbol", "offset") == ("do_unlinkat", 8)
    assert parsed("kretsyscall/openat", "kind", "symbol", "is_return") == ("ksyscall", "openat", True)
    assert parsed("tp/syscalls/sys_enter_openat", "kind", "category", "symbol") == (
        "tracepoint",
        "syscalls",
        "sys_enter_openat",
    )
    assert parsed("fexit.s/do_unlinkat", "kind", "symbol", "sleepable", "prog_type") == (
        "fexit",
        "do_unlinkat",
        True,
        ProgType.TRACING,
    )
    assert parsed("raw_tp/sched_switch", "prog_type", "symbol") == (ProgType.RAW_TRACEPOINT, "sched_switch")
    assert parsed("uprobe.s/x:f", "sleepable", "kind") == (True, "uprobe")
    assert parsed("struct_ops/dctcp_init", "kind", "symbol") == ("struct_ops", "dctcp_init")


def test_longest_type_wins() -> None:
    assert parsed("xdp/devmap", "attach_type") == (AttachType.XDP_DEVMAP,)
    assert parsed("xdp.frags/cpumap", "attach_type") == (AttachType.XDP_CPUMAP,)
    assert parsed("sk_reuseport/migrate", "attach_type") == (AttachType.SK_REUSEPORT_SELECT_OR_MIGRATE,)
    assert parsed("tc/ingress", "attach_type") == (AttachType.TCX_INGRESS,)
    assert parsed("cgroup/connect_unix", "attach_type") == (AttachType.CGROUP_UNIX_CONNECT,)


def test_label_behind_a_type_without_target_is_ignored() -> None:
    assert parsed("socket/my_filter", "kind", "symbol") == ("socket", None)


def test_uprobe_with_a_label_alone_gets_its_target_at_attach() -> None:
    assert parsed("uprobe/bash_readline", "kind", "symbol", "path", "auto_attach") == ("uprobe", None, None, False)


def test_question_mark_turns_loading_off() -> None:
    assert parsed("?uprobe/x:f", "autoload", "symbol", "name") == (False, "f", "?uprobe/x:f")


@pytest.mark.parametrize("name", ["", "?", "uprobes/x:f", "uprob/x:f", "socket1", "nonsense", "/", "uprobe.s.s/x:y"])
def test_unknown_type_is_refused_with_near_names(name: str) -> None:
    with pytest.raises(ObjectError, match="is not a program type") as caught:
        parse_section(name)
    assert caught.value.place.section == name
    assert caught.value.hint


def test_near_names_are_offered() -> None:
    with pytest.raises(ObjectError) as caught:
        parse_section("uprob/x:f")
    assert "uprobe" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "name",
    [
        "uprobe/libc.so.6:",
        "uprobe/:malloc",
        "uprobe/x:f+0x",
        "uprobe/x:f+12zz",
        "uprobe/x:+4",
        "uretprobe/x:f+4",
        "kretprobe/f+4",
        "usdt/x:y",
        "usdt/x::z",
        "usdt/x:y:z:w",
        "tracepoint/syscalls",
        "tracepoint/a/b/c",
        "uprobe.multi/x",
    ],
)
def test_malformed_target_is_refused_with_the_form(name: str) -> None:
    with pytest.raises(ObjectError) as caught:
        parse_section(name)
    assert caught.value.hint


def test_every_type_of_the_table_parses_alone() -> None:
    for prefix, row in SECTIONS.items():
        section = parse_section(prefix)
        assert (section.kind, section.prog_type, section.attach_type) == (row.kind, row.prog_type, row.attach_type)
    assert len(SECTIONS) > 100
    assert {row.target for row in SECTIONS.values()} == set(Target)


@given(
    st.one_of(st.text(max_size=40), st.builds("{}/{}".format, st.sampled_from(sorted(SECTIONS)), st.text(max_size=30)))
)
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_section_or_an_object_error(name: str) -> None:
    try:
        section = parse_section(name)
    except ObjectError:
        return
    assert isinstance(section, Section)
    assert section.name == name
