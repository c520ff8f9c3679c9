"""Objects that others compiled, with many clangs, for many kernels: read, linked, and as libbpf has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from userbpf.btf import Btf
from userbpf.errors import UserBpfError
from userbpf.isa import check
from userbpf.object import Kernel, Object

REFUSED = {
    "invalid_map-el.elf": "attributes beyond struct bpf_map_def",
    "iproute2_map_compat-el.elf": "attributes beyond struct bpf_map_def",
}
"""Little-endian objects that libbpf refuses too: map definitions of another loader."""


def parse(name: str, data: bytes, vmlinux: Btf, kernel: Kernel) -> Object:
    return Object.parse(data, name=name, kernel_btf=lambda: vmlinux, kernel=kernel)


def test_every_object_is_read_or_refused_in_words(foreign: dict[str, bytes], vmlinux: Btf, kernel: Kernel) -> None:
    table = []
    for path, data in foreign.items():
        name = Path(path).name
        try:
            obj = parse(name, data, vmlinux, kernel)
        except UserBpfError as error:
            expected = "big-endian" if data[5] == 2 else REFUSED.get(name, "no object may be refused")
            assert expected in str(error), str(error)
            table.append(f"{name}: {error.message}")
            continue
        assert obj.programs or obj.maps or obj.errors
        table.extend(f"{error.place}: {error.message}" for error in obj.errors.values())
        for program in obj.programs.values():
            check(program.insns)
    print("\n".join([f"{len(foreign)} objects; not read, or programs not linked:", *table]))


def test_skeletons_of_libbpf_tools_link_whole(foreign: dict[str, bytes], vmlinux: Btf, kernel: Kernel) -> None:
    tools = {path: data for path, data in foreign.items() if "/sbin/" in path and not path.startswith("/usr/sbin/xdp")}
    if not tools:
        pytest.skip("libbpf-tools is not installed")
    for path, data in tools.items():
        obj = parse(path, data, vmlinux, kernel)
        assert not obj.errors, str(next(iter(obj.errors.values())))
        assert obj.programs and obj.btf is not None and obj.license
        assert all(program.lines for program in obj.programs.values())


def test_programs_link_to_what_the_kernel_accepts(
    kernel_bpf: None, foreign: dict[str, bytes], vmlinux: Btf, kernel: Kernel
) -> None:
    """XDP programs with subprograms, globals and typed maps, through the kernel's verifier."""
    from userbpf.kernel import load_object

    names = ("xdp-dispatcher.o", "xdp_pass.o", "xdpdump_bpf.o", "xdpfilt_alw_all.o")
    found = {path: data for path, data in foreign.items() if Path(path).name in names}
    if not found:
        pytest.skip("none of the objects of xdp-tools is installed")
    for path, data in found.items():
        obj = parse(path, data, vmlinux, kernel)
        ready = [name for name, program in obj.programs.items() if program.section.kind.startswith("xdp")]
        with load_object(obj, programs=ready) as loaded:
            assert set(loaded.programs) == set(ready)


def test_core_test_of_cilium_runs_in_the_kernel(kernel_bpf: None, foreign: dict[str, bytes]) -> None:
    """A program that checks 44 CO-RE reads itself (bitfields among them) against bytes of the other layout.

    It returns 0, or the line of the first read that is wrong; the target's types are those of a second object.
    """
    from userbpf.kernel import load_object

    files = {Path(path).name: data for path, data in foreign.items()}
    if "relocs_read-el.elf" not in files or "relocs_read_tgt-el.elf" not in files:
        pytest.skip("golang-github-cilium-ebpf-dev is not installed")
    target = Object.parse(files["relocs_read_tgt-el.elf"], name="target").btf
    obj = Object.parse(files["relocs_read-el.elf"], name="relocs_read-el.elf", kernel_btf=lambda: target)
    assert not obj.errors
    with load_object(obj) as loaded:
        for program in loaded.programs.values():
            assert program.test_run(bytes(64)).retval == 0


def test_core_types_and_enums_of_cilium_run_in_the_kernel(kernel_bpf: None, foreign: dict[str, bytes]) -> None:
    """Ids, sizes, existence, enum values, fields against the object's own types; each program returns 0 when right."""
    from userbpf.kernel import load_object

    data = next((data for path, data in foreign.items() if Path(path).name == "relocs-el.elf"), None)
    if data is None:
        pytest.skip("golang-github-cilium-ebpf-dev is not installed")
    # Its sections carry a prefix that only its own loader knows.
    obj = Object.parse(data.replace(b"socket_filter/", b"socket/filter/"), name="relocs-el.elf")
    assert set(obj.errors) == {"err_ambiguous", "err_ambiguous_flavour"}
    assert all("ambiguous" in error.message for error in obj.errors.values())
    with load_object(obj) as loaded:
        assert {name: program.test_run(bytes(64)).retval for name, program in loaded.programs.items()} == {
            "type_ids": 0,
            "types": 0,
            "enums": 0,
            "fields": 0,
        }
