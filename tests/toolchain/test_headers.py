"""The headers agree with the tables."""

from __future__ import annotations

import re

from userbpf.tables.helpers import HELPERS
from userbpf.tables.maps import MapFlag, MapType
from userbpf.tables.prog_types import ProgType
from userbpf.toolchain.gen_helper_defs import OUTPUT, render
from userbpf.toolchain.vmlinux import FALLBACK_DIR


def test_helper_definitions_are_current() -> None:
    assert OUTPUT.read_text() == render(), "run python -m userbpf.toolchain.gen_helper_defs"


def test_every_helper_is_declared_with_its_id() -> None:
    declared = dict(re.findall(r"\(\*const bpf_(\w+)\)\(.*\) = \(void \*\)(\d+);", OUTPUT.read_text()))
    assert declared == {helper.name: str(helper.id) for helper in HELPERS.values()}


def test_small_vmlinux_has_the_numbers_of_the_tables() -> None:
    text = (FALLBACK_DIR / "vmlinux.h").read_text()
    values = {name: int(number) for name, number in re.findall(r"^    (\w+) = (\d+)(?:ULL)?,$", text, re.MULTILINE)}
    for map_type in MapType:
        assert values[f"BPF_MAP_TYPE_{map_type.name}"] == map_type
    for prog_type in ProgType:
        assert values[f"BPF_PROG_TYPE_{prog_type.name}"] == prog_type
    for flag in MapFlag:
        if f"BPF_F_{flag.name}" in values:
            assert values[f"BPF_F_{flag.name}"] == flag
