"""The contract between C and Python, and what the code generator relies on in the runtime's bitcode."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import pytest

from userbpf.errors import MapError
from userbpf.native import abi, agent_object, geometry, runtime_bitcode
from userbpf.native.cpus import parse_cpu_list
from userbpf.native.library import Library, NativeError
from userbpf.tables.helpers import HELPERS

NATIVE = Path(__file__).resolve().parent.parent.parent / "native"

STRUCTS = {
    "ub_map_def": abi.MapDef,
    "ub_run": abi.Run,
    "ub_env": abi.Env,
    "ub_cell": abi.Cell,
    "ub_thread": abi.Thread,
    "ub_threads": abi.Threads,
    "ub_shadow_entry": abi.ShadowEntry,
    "ub_shadow": abi.Shadow,
    "ub_shadow_slot": abi.ShadowSlot,
    "ub_sigaction": abi.SigAction,
    "ub_proc": abi.Proc,
    "ub_pt_regs": abi.PtRegs,
    "ub_map_header": abi.MapHeader,
    "ub_stripe": abi.Stripe,
    "ub_inflight": abi.Inflight,
    "ub_trace": abi.Trace,
}
CONSTANTS = {
    "UB_ABI": abi.ABI,
    "UB_ROWS": abi.ROWS,
    "UB_THREAD_SLOTS": abi.THREAD_SLOTS,
    "UB_THREAD_PROBES": abi.THREAD_PROBES,
    "UB_CELL_SIZE": abi.CELL_SIZE,
    "UB_CELL_RET_ENTRY": abi.CELL_RET_ENTRY,
    "UB_CELL_RET_INNER": abi.CELL_RET_INNER,
    "UB_SHADOW_BYTES": abi.SHADOW_BYTES,
    "UB_SHADOW_SLOTS": abi.SHADOW_SLOTS,
    "UB_HAS_RDPID": abi.HAS_RDPID,
    "UB_MAP_MAGIC": abi.MAP_MAGIC,
    "UB_MAP_VERSION": abi.MAP_VERSION,
    "UB_HOLD_OFF": abi.HOLD_OFF,
    "UB_HOLD_STRIDE": abi.HOLD_STRIDE,
    "UB_PERF_PAGES": abi.PERF_PAGES,
    "UB_PAGE": abi.PAGE,
}


def test_ctypes_structures_have_the_compilers_layout(tmp_path: Path) -> None:
    lines = ['#include "userbpf.h"', '#include "userbpf_map.h"']
    for name, structure in STRUCTS.items():
        lines.append(f'_Static_assert(sizeof(struct {name}) == {ctypes.sizeof(structure)}, "sizeof {name}");')
        for field in structure._fields_:
            offset = getattr(structure, field[0]).offset
            lines.append(f'_Static_assert(offsetof(struct {name}, {field[0]}) == {offset}, "{name}.{field[0]}");')
    lines += [f'_Static_assert({name} == {value}, "{name}");' for name, value in CONSTANTS.items()]
    source = tmp_path / "layout.c"
    source.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu", "-c", "-o", str(tmp_path / "o")]
    command += [f"-I{NATIVE / 'include'}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def assembly() -> tuple[str, str]:
    """The bitcode as IR and as assembly."""
    llvm = pytest.importorskip("llvmlite.binding", reason="llvmlite is not installed")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    module = llvm.parse_bitcode(runtime_bitcode())
    module.verify()
    target = llvm.Target.from_triple(module.triple)
    machine = target.create_target_machine(opt=2, reloc="pic", codemodel="small")
    return str(module), machine.emit_assembly(module)


def test_bitcode_uses_general_registers_only(assembly: tuple[str, str]) -> None:
    assert not re.search(r"%(?:[xyz]?mm|st)\d", assembly[1])


def test_bitcode_needs_nothing_but_the_environment(assembly: tuple[str, str]) -> None:
    undefined = re.findall(r"^declare .*?@([\w.]+)\(", assembly[0], re.MULTILINE)
    assert [name for name in undefined if not name.startswith("llvm.")] == []
    external = re.findall(r"^@([\w.]+) = external", assembly[0], re.MULTILINE)
    assert set(external) <= {"ub_env", "ub_map_bases", "ub_tp_self"}


def test_every_offered_helper_is_in_the_bitcode(assembly: tuple[str, str]) -> None:
    defined = set(re.findall(r"^define .*?@([\w.]+)\(", assembly[0], re.MULTILINE))
    wanted = {helper.native for helper in HELPERS.values() if helper.native and helper.native != "codegen"}
    assert wanted - defined == set()
    assert {"ub_percpu_enter", "ub_percpu_exit", "ub_current_cpu", "ub_hook_enter"} <= defined


def test_agent_is_one_relocatable_object_without_undefined_symbols_of_a_libc() -> None:
    from io import BytesIO

    from elftools.elf.elffile import ELFFile

    elf = ELFFile(BytesIO(agent_object()))
    assert elf["e_type"] == "ET_REL"
    table = elf.get_section_by_name(".symtab")
    undefined = {s.name for s in table.iter_symbols() if s["st_shndx"] == "SHN_UNDEF" and s.name}
    assert undefined <= {"ub_proc"}


def test_library_needs_no_libc() -> None:
    from elftools.elf.elffile import ELFFile

    from userbpf.native.library import PATH

    with PATH.open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        assert [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")] == []


def test_missing_library_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(NativeError, match=r"libuserbpf\.so cannot be loaded") as caught:
        Library(tmp_path / "libuserbpf.so")
    assert caught.value.hint


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-1", 2), ("0-3,8", 9), ("0,2-5\n", 6)])
def test_possible_cpus_counts_up_to_the_highest(text: str, count: int) -> None:
    assert parse_cpu_list(text) == count


def test_a_hash_adds_at_most_16_bytes_to_an_entry_of_8_byte_parts() -> None:
    for entries in (1000, 4096, 5000, 10_000, 65_536, 100_000, 1_000_000):
        extra = geometry(1, 8, 8, entries).size - 256 * 64 - 4096 * 2 - 256 * 24
        assert extra / entries - 16 <= 16


def test_a_map_that_cannot_be_says_why() -> None:
    with pytest.raises(MapError, match="EINVAL") as caught:
        geometry(1, 0, 8, 10)
    assert caught.value.errno == 22
