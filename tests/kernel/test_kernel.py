"""The kernel client against the running kernel."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from userbpf import isa
from userbpf.kernel import KernelError, KernelMap, RingReader, load_object
from userbpf.kernel.host import kernel_btf, running_kernel
from userbpf.kernel.maps import BPF_EXIST, BPF_NOEXIST, possible_cpus
from userbpf.object import MapSpec, Object, Program, Subprog
from userbpf.tables.maps import MapType
from userbpf.tables.programs import parse_section

pytestmark = pytest.mark.usefixtures("kernel_bpf")

PACKET = bytes(64)

COUNT = """
    *(u32 *)(r10 -4) = 0
    r2 = r10
    r2 += -4
    r1 = map[idx:0]
    call 1
    if r0 == 0 goto +2
    r1 = 1
    lock *(u64 *)(r0 +0) += r1
    r0 = 0
    exit
"""
RING = """
    r6 = r1
    call 5
    *(u64 *)(r10 -8) = r0
    r2 = r10
    r2 += -8
    r1 = map[idx:0]
    r3 = 8
    r4 = 0
    call 130
    exit
"""


def make(text: str, section: str, *maps: MapSpec) -> Object:
    """An object with one program, ``prog``."""
    insns = isa.assemble(text)
    subprogs = (Subprog("prog", 0, len(insns)),)
    prog = Program("prog", parse_section(section), insns, maps, subprogs, (), None, "GPL", "test.bpf.o")
    return Object("test.bpf.o", {"prog": prog}, {spec.name: spec for spec in maps}, None, None, "GPL", 0)


def counts() -> MapSpec:
    return MapSpec("counts", int(MapType.ARRAY), 4, 8, 1)


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_hash_map_has_the_documented_errors() -> None:
    with KernelMap.create(int(MapType.HASH), key_size=4, value_size=8, max_entries=2, name="h") as table:
        assert table.lookup(u32(1)) is None
        table.update(u32(1), u64(10), BPF_NOEXIST)
        with pytest.raises(KernelError) as caught:
            table.update(u32(1), u64(11), BPF_NOEXIST)
        assert caught.value.errno == errno.EEXIST
        with pytest.raises(KernelError) as caught:
            table.update(u32(2), u64(11), BPF_EXIST)
        assert caught.value.errno == errno.ENOENT
        table.update(u32(2), u64(20))
        with pytest.raises(KernelError) as caught:
            table.update(u32(3), u64(30))
        assert caught.value.errno == errno.E2BIG
        assert dict(table.items()) == {u32(1): u64(10), u32(2): u64(20)}
        assert table.delete(u32(1))
        assert not table.delete(u32(1))
        assert list(table.keys()) == [u32(2)]


def test_per_cpu_array_gives_a_padded_value_for_each_possible_cpu() -> None:
    with KernelMap.create(int(MapType.PERCPU_ARRAY), key_size=4, value_size=4, max_entries=1) as table:
        assert table.lookup(u32(0)) == bytes(8 * possible_cpus())


def test_wrong_sizes_are_refused_before_the_kernel_is_asked() -> None:
    with KernelMap.create(int(MapType.HASH), key_size=4, value_size=8, max_entries=2) as table:
        with pytest.raises(KernelError, match="key"):
            table.lookup(b"x")
        with pytest.raises(KernelError, match="value"):
            table.update(u32(1), b"x")
    with pytest.raises(KernelError, match="closed"):
        table.lookup(u32(1))


def test_impossible_map_is_one_sentence() -> None:
    with pytest.raises(KernelError, match="'bad': .*EINVAL"):
        KernelMap.create(int(MapType.ARRAY), key_size=3, value_size=8, max_entries=1, name="bad")


def test_program_runs_on_packet_data() -> None:
    with load_object(make("r0 = 2\nexit", "xdp")) as loaded:
        result = loaded.programs["prog"].test_run(PACKET, repeat=10)
    assert (result.retval, result.data) == (2, PACKET)


def test_map_references_are_bound_by_fd_array() -> None:
    with load_object(make(COUNT, "xdp", counts())) as loaded:
        for _ in range(5):
            loaded.programs["prog"].test_run(PACKET)
        assert loaded.maps["counts"].lookup(u32(0)) == u64(5)


def test_initial_bytes_fill_a_global_section_and_rodata_is_frozen() -> None:
    rodata = MapSpec(".rodata", int(MapType.ARRAY), 4, 8, 1, flags=1 << 7, kind="rodata", initial=u64(77))
    text = "r1 = map[idx:0][0]+0\nr0 = *(u32 *)(r1 +0)\nexit"
    with load_object(make(text, "xdp", rodata)) as loaded:
        assert loaded.programs["prog"].test_run(PACKET).retval == 77
        with pytest.raises(KernelError) as caught:
            loaded.maps[".rodata"].update(u32(0), u64(1))
        assert caught.value.errno == errno.EPERM


def test_rejected_program_shows_the_end_of_the_log_and_leaves_nothing_open() -> None:
    before = open_fds()
    with pytest.raises(KernelError) as caught:
        load_object(make("r0 = *(u64 *)(r1 +10000)\nexit", "xdp", counts()))
    assert caught.value.errno == errno.EACCES
    assert "invalid bpf_context access" in str(caught.value)
    assert "prog" in str(caught.value)
    assert open_fds() == before


def test_map_of_maps_is_created_from_its_template() -> None:
    outer = MapSpec("outer", int(MapType.HASH_OF_MAPS), 4, 4, 4, inner=counts())
    with load_object(make("r0 = 0\nexit", "xdp", outer)) as loaded:
        assert loaded.maps["outer"].lookup(u32(1)) is None


def test_ring_buffer_is_read_in_order_around_its_end() -> None:
    ring = MapSpec("ring", int(MapType.RINGBUF), 0, 8, 4096)  # the value is for readers, as in BTF maps
    seen: list[int] = []
    with load_object(make(RING, "xdp", ring)) as loaded, loaded.ring("ring") as reader:
        for _ in range(20):
            for _ in range(50):  # 50 records of 16 bytes: the ring wraps every 5 rounds
                assert loaded.programs["prog"].test_run(PACKET).retval == 0
            seen += [struct.unpack("=Q", record)[0] for record in reader.read()]
        assert isinstance(reader, RingReader)
    assert len(seen) == 1000
    assert seen == sorted(seen)


@contextmanager
def getppid_caller() -> Iterator[subprocess.Popen[str]]:
    """A python3 that calls libc's getppid as often as it is told."""
    script = (
        "import os, sys\nprint(flush=True)\n"
        "for n in sys.stdin:\n for _ in range(int(n)): os.getppid()\n print(flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        assert child.stdin is not None
        child.stdin.close()


def call(child: subprocess.Popen[str], times: int) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{times}\n")
    assert child.stdout.readline() == "\n"


def libc_of(pid: int) -> Path:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return Path(next(line.split()[-1] for line in lines if "/libc.so.6" in line or "/libc-" in line))


def offset_of(path: Path, name: str) -> int:
    with path.open("rb") as file:
        elf = ELFFile(file)
        address = int(elf.get_section_by_name(".dynsym").get_symbol_by_name(name)[0]["st_value"])
        return next(iter(elf.address_offsets(address)))


@pytest.mark.parametrize("is_return", [False, True])
def test_uprobe_counts_every_call_until_it_is_closed(is_return: bool) -> None:
    section = "uretprobe" if is_return else "uprobe"
    with getppid_caller() as child, load_object(make(COUNT, section, counts())) as loaded:
        libc = libc_of(child.pid)
        link = loaded.attach_uprobe("prog", child.pid, str(libc), offset_of(libc, "getppid"), is_return)
        call(child, 1000)
        link.close()
        call(child, 10)
        assert loaded.maps["counts"].lookup(u32(0)) == u64(1000)


def test_uprobe_of_one_process_does_not_see_another() -> None:
    with getppid_caller() as one, getppid_caller() as other, load_object(make(COUNT, "uprobe", counts())) as loaded:
        libc = libc_of(one.pid)
        loaded.attach_uprobe("prog", one.pid, str(libc), offset_of(libc, "getppid"))
        call(other, 100)
        call(one, 7)
        assert loaded.maps["counts"].lookup(u32(0)) == u64(7)


def test_cookie_reaches_the_program() -> None:
    text = COUNT.replace("    *(u32 *)(r10 -4) = 0\n", "    call 174\n    r6 = r0\n    *(u32 *)(r10 -4) = 0\n").replace(
        "r1 = 1\n", "r1 = r6\n"
    )
    with getppid_caller() as child, load_object(make(text, "uprobe", counts())) as loaded:
        libc = libc_of(child.pid)
        loaded.attach_uprobe("prog", child.pid, str(libc), offset_of(libc, "getppid"), cookie=1 << 40)
        call(child, 3)
        assert loaded.maps["counts"].lookup(u32(0)) == u64(3 << 40)


def test_uprobe_on_a_missing_file_is_one_sentence() -> None:
    with load_object(make("r0 = 0\nexit", "uprobe")) as loaded, pytest.raises(KernelError, match="nowhere"):
        loaded.attach_uprobe("prog", os.getpid(), "/nowhere", 0)


def test_closing_leaves_no_descriptor_open() -> None:
    before = open_fds()
    with load_object(make(COUNT, "xdp", counts())) as loaded:
        loaded.programs["prog"].test_run(PACKET)
        assert open_fds() > before
    assert open_fds() == before


SUBPROGRAMS = """
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
char LICENSE[] SEC("license") = "GPL";
int total;
__noinline int add(int value) { total += value; return total; }
static long each(__u64 index, void *ctx) { add(index); return 0; }
SEC("xdp") int prog(struct xdp_md *ctx) { bpf_loop(5, each, (void *)0, 0); return add(0); }
"""


def test_global_functions_and_callbacks_load_with_their_btf(tmp_path: Path) -> None:
    from userbpf.toolchain import compile_c

    source = tmp_path / "subprograms.bpf.c"
    source.write_text(SUBPROGRAMS)
    with load_object(Object.parse(compile_c(source), name=source.name)) as loaded:
        assert loaded.programs["prog"].test_run(PACKET).retval == 0 + 1 + 2 + 3 + 4


def test_the_example_loads_unchanged(root: Path) -> None:
    from userbpf.toolchain import compile_c

    obj = Object.parse(compile_c(root / "examples" / "libcstat.bpf.c"), name="libcstat", kernel_btf=kernel_btf)
    with load_object(obj) as loaded:
        assert set(loaded.programs) == {"count_malloc"}
        assert struct.unpack("=Q", loaded.maps[".rodata"].lookup(u32(0)) or b"") == (256 * 1024,)


def test_running_kernel_is_the_one_that_uname_names() -> None:
    version = running_kernel().version
    assert os.uname().release.startswith(f"{version >> 16}.{version >> 8 & 255}")
