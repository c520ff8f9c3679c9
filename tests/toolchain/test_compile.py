"""Programs written for libbpf compile unchanged, and bad input gets one clear sentence."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from userbpf.errors import ToolchainError
from userbpf.isa import check, decode
from userbpf.toolchain import compile_c, find_compiler, target_machine, vmlinux_dir
from userbpf.toolchain.cache import cache_dir
from userbpf.toolchain.vmlinux import FALLBACK_DIR

PROGS = Path(__file__).parent / "progs"
NAMES = sorted(path.name for path in PROGS.glob("*.c"))
EXPECTED = {
    "core.bpf.c": ["kprobe/do_exit", ".bss"],
    "globals.bpf.c": ["uprobe", ".rodata", ".data", ".bss"],
    "kconfig.bpf.c": ["ksyscall/kill"],
    "legacy.bpf.c": ["uprobe/old", "maps", "version"],
    "minimal.bpf.c": ["uprobe"],
    "packet.bpf.c": ["xdp", "tc", ".maps"],
    "percpu.bpf.c": ["raw_tp/sys_enter", ".maps"],
    "perf_event.bpf.c": ["tracepoint/syscalls/sys_enter_openat", "fentry/do_unlinkat", ".maps"],
    "ringbuf.bpf.c": ["uprobe", ".maps"],
    "subprogs.bpf.c": ["uprobe", ".text"],
    "uprobe.bpf.c": ["uprobe/libc.so.6:malloc", "uretprobe/libc.so.6:malloc", "uprobe/libc.so.6:mmap", ".maps"],
}


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for this module, apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USERBPF_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def sections(data: bytes) -> dict[str, bytes]:
    return {section.name: section.data() for section in ELFFile(io.BytesIO(data)).iter_sections() if section.name}


@pytest.mark.parametrize("name", NAMES)
def test_program_compiles_to_btf_and_checked_instructions(name: str) -> None:
    found = sections(compile_c(PROGS / name))
    assert "license" in found
    assert found[".BTF"][:2] == b"\x9f\xeb"
    assert found[".BTF.ext"][:2] == b"\x9f\xeb"
    for section in EXPECTED[name]:
        assert section in found
    for section in (section for section in EXPECTED[name] if "probe" in section or "/" in section):
        insns = decode(found[section])
        assert insns
        if name not in ("subprogs.bpf.c", "packet.bpf.c"):  # their calls are whole only after linking
            check(insns)


@pytest.mark.parametrize("name", ["uprobe.bpf.c", "core.bpf.c", "kconfig.bpf.c", "ringbuf.bpf.c"])
def test_program_compiles_for_the_other_machine(name: str) -> None:
    other = "aarch64" if target_machine() == "x86_64" else "x86_64"
    assert compile_c(PROGS / name, arch=other) != compile_c(PROGS / name)


@pytest.mark.parametrize("name", NAMES)
def test_program_compiles_with_the_small_vmlinux(name: str) -> None:
    assert sections(compile_c(PROGS / name, includes=[FALLBACK_DIR]))[".BTF"]


def test_output_file_holds_the_bytes(tmp_path: Path) -> None:
    target = tmp_path / "minimal.bpf.o"
    assert compile_c(PROGS / "minimal.bpf.c", target) == target.read_bytes()


def test_defines_and_includes_reach_the_compiler(tmp_path: Path) -> None:
    (tmp_path / "inc").mkdir()
    (tmp_path / "inc" / "other.h").write_text("#define TWO 2\n")
    source = tmp_path / "prog.c"
    source.write_text('#include "other.h"\nint x[ONE + TWO == 3 ? 1 : -1];\n')
    assert compile_c(source, includes=[tmp_path / "inc"], defines=["ONE=1"])


def test_bpf_printk_takes_the_helper_that_fits_its_arguments(tmp_path: Path) -> None:
    source = tmp_path / "prog.c"
    source.write_text(
        "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n"
        'SEC("uprobe") int p(void *ctx) { bpf_printk("%d %d %d %d", 1, 2, 3, 4); bpf_printk("none"); return 0; }\n'
    )
    insns = decode(sections(compile_c(source))["uprobe"])
    assert [insn.imm for insn in insns if insn.op == 0x85] == [177, 6]


def test_compiler_error_names_file_line_and_column(tmp_path: Path) -> None:
    source = tmp_path / "bad.c"
    source.write_text("int ok;\nint bad( { ;\n")
    with pytest.raises(ToolchainError) as caught:
        compile_c(source)
    place = caught.value.place
    assert (place.file, place.line) == (str(source), 2)
    assert place.column is not None
    assert "expected parameter declarator" in caught.value.message


def test_missing_header_gets_a_hint(tmp_path: Path) -> None:
    source = tmp_path / "bad.c"
    source.write_text('#include "nowhere.h"\n')
    with pytest.raises(ToolchainError, match=r"'nowhere.h' file not found") as caught:
        compile_c(source)
    assert caught.value.hint is not None


def test_missing_kernel_types_get_a_hint(tmp_path: Path) -> None:
    source = tmp_path / "bad.c"
    source.write_text("u32 x;\n")
    with pytest.raises(ToolchainError, match="unknown type name 'u32'") as caught:
        compile_c(source)
    assert "vmlinux.h" in (caught.value.hint or "")


def test_warnings_are_handed_out(tmp_path: Path) -> None:
    source = tmp_path / "warn.c"
    source.write_text("int f(void) { int unused; return 0; }\n")
    seen: list[str] = []
    compile_c(source, warn=seen.append)
    assert len(seen) == 1
    assert "unused variable" in seen[0]


def test_missing_source_directory_and_bad_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="does not exist"):
        compile_c(tmp_path / "none.c")
    with pytest.raises(ToolchainError, match="is not a file"):
        compile_c(tmp_path)
    with pytest.raises(ToolchainError, match="not a macro"):
        compile_c(PROGS / "minimal.bpf.c", defines=["-fplugin=x"])
    with pytest.raises(ToolchainError, match="not supported"):
        compile_c(PROGS / "minimal.bpf.c", arch="vax")
    with pytest.raises(ToolchainError, match="cannot be written"):
        compile_c(PROGS / "minimal.bpf.c", tmp_path / "no" / "where.o")


def test_source_name_with_a_dash_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-x.c").write_text("int x;\n")
    assert compile_c(Path("-x.c"))


def test_compiler_that_cannot_be_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USERBPF_CLANG", "no-such-clang-99")
    with pytest.raises(ToolchainError, match="no-such-clang-99") as caught:
        find_compiler()
    assert "ziglang" in (caught.value.hint or "")


def test_no_compiler_at_all_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("USERBPF_CLANG", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("userbpf.toolchain.compiler._find_zig", lambda: None)
    with pytest.raises(ToolchainError, match="no C compiler for BPF was found"):
        find_compiler()


def test_a_compiler_without_bpf_fails_with_its_message(tmp_path: Path) -> None:
    fake = tmp_path / "clang"
    fake.write_text("#!/bin/sh\necho 'clang: unknown target triple bpfel' >&2\nexit 1\n")
    fake.chmod(0o755)
    with pytest.raises(ToolchainError, match="unknown target triple"):
        compile_c(PROGS / "minimal.bpf.c", compiler=str(fake))


def test_no_place_for_temporary_files_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(ToolchainError, match="temporary files cannot be written: No such file"):
        compile_c(PROGS / "minimal.bpf.c")


def test_cache_that_others_can_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("USERBPF_CACHE", str(shared))
    assert cache_dir() is None
    shared.chmod(0o700)
    assert cache_dir() == shared


def test_kernel_header_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USERBPF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "scratch").mkdir()
    empty = tmp_path / "btf"
    empty.write_bytes(struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"\0")
    place = vmlinux_dir(tmp_path / "scratch", btf_file=empty)
    header = place / "vmlinux.h"
    assert place.parent == tmp_path / "cache"
    assert "__VMLINUX_H__" in header.read_text()
    header.write_text("kept")
    assert vmlinux_dir(tmp_path / "scratch", btf_file=empty) == place
    assert header.read_text() == "kept"
    monkeypatch.setenv("USERBPF_CACHE", str(tmp_path / "btf" / "not-a-directory"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "btf"))
    assert vmlinux_dir(tmp_path / "scratch", btf_file=empty).parent == tmp_path / "scratch"


def test_kernel_without_btf_gets_the_small_header(tmp_path: Path) -> None:
    assert vmlinux_dir(tmp_path, btf_file=tmp_path / "none") == FALLBACK_DIR


def test_damaged_kernel_btf_gets_the_small_header(tmp_path: Path) -> None:
    damaged = tmp_path / "vmlinux"
    damaged.write_bytes(b"\x9f\xeb\x01\x00" + b"\xff" * 40)
    assert vmlinux_dir(tmp_path, btf_file=damaged) == FALLBACK_DIR


def test_a_system_clang_is_used_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zig = find_compiler("zig")
    wrapper = tmp_path / "my-clang"
    wrapper.write_text(f'#!/bin/sh\necho ran > {tmp_path}/ran\nexec {" ".join(zig.command)} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("USERBPF_CLANG", str(wrapper))
    assert find_compiler().command == (str(wrapper),)
    assert compile_c(PROGS / "minimal.bpf.c")
    assert (tmp_path / "ran").exists()
