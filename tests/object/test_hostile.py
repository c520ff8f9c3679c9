"""Whatever the bytes: an object or a UserBpfError, soon, and in little memory."""

from __future__ import annotations

import random
import resource
import struct
from collections.abc import Callable, Iterator

import pytest

from userbpf.btf import Btf
from userbpf.errors import ObjectError, UserBpfError
from userbpf.object import Kernel, Object, linker

SOURCE = """
struct key { u32 pid; char comm[16]; };
struct { __uint(type, 1); __uint(max_entries, 64); __type(key, struct key); __type(value, u64); } hash SEC(".maps");
struct inner { __uint(type, 2); __uint(max_entries, 1); __type(key, u32); __type(value, u64); } one SEC(".maps");
struct { __uint(type, 12); __uint(max_entries, 4); __type(key, u32); __array(values, struct inner); }
    outer SEC(".maps") = { .values = { [1] = &one } };
extern int LINUX_KERNEL_VERSION __attribute__((section(".kconfig")));
struct task_struct { int pid; } __attribute__((preserve_access_index));
const volatile int limit = 3; int total; u64 bytes = 7;
static noinline int sub(struct task_struct *t) { total += t->pid; return total + bytes; }
static long step(u32 i, void *sum) { bytes += i; return 0; }
SEC("uprobe/libc.so.6:malloc") int prog(void *ctx) {
    struct key k = {}; u64 *v = bpf_map_lookup_elem(&hash, &k);
    bpf_loop(3, step, 0, 0);
    return (v ? *v : limit) + sub(ctx) + LINUX_KERNEL_VERSION;
}
SEC("kprobe/do_exit") int other(void *ctx) { return sub(ctx); }
"""
FLIPS = 500


@pytest.fixture(scope="module")
def good(bpf_cc: Callable[..., bytes]) -> bytes:
    return bpf_cc(SOURCE)


def survives(data: bytes) -> bool:
    """True for an object, False for a UserBpfError; anything else is the test's failure."""
    try:
        obj = Object.parse(data, name="hostile.o", kernel=Kernel(0x60000, dict))
    except UserBpfError as error:
        assert str(error)
        return False
    assert set(obj.programs).isdisjoint(obj.errors)
    assert all(isinstance(error, UserBpfError) for error in obj.errors.values())
    return True


def boundaries(data: bytes) -> Iterator[int]:
    (table,), (count,) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<H", data, 60)
    for at in range(table, table + 64 * count, 64):
        offset, size = struct.unpack_from("<QQ", data, at + 24)
        yield from (offset, offset + size, at)


def test_truncation_at_every_boundary(good: bytes) -> None:
    assert survives(good)
    for size in {max(0, end + delta) for end in boundaries(good) for delta in (-1, 0, 1)}:
        if size < len(good):
            assert not survives(good[:size])


def test_flipped_bytes(good: bytes) -> None:
    rng = random.Random(2)
    outcomes = []
    for number in range(FLIPS):
        data = bytearray(good)
        for _ in range(1 + number % 3):
            data[rng.randrange(len(data))] = rng.randrange(256)
        outcomes.append(survives(bytes(data)))
    assert {True, False} == set(outcomes)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20


def test_flipped_bytes_of_headers_symbols_and_types(good: bytes) -> None:
    """The parts that lead elsewhere: section headers, symbols, relocations, BTF."""
    rng = random.Random(5)
    (table,), (count,) = struct.unpack_from("<Q", good, 40), struct.unpack_from("<H", good, 60)
    spans = [(table, 64 * count)]
    for at in range(table, table + 64 * count, 64):
        kind, offset, size = (*struct.unpack_from("<I", good, at + 4), *struct.unpack_from("<QQ", good, at + 24))
        if kind in (2, 9) or good[offset : offset + 2] == b"\x9f\xeb":
            spans.append((offset, size))
    for _ in range(FLIPS):
        data = bytearray(good)
        start, size = rng.choice(spans)
        at = start + rng.randrange(size)
        data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        survives(bytes(data))


def test_flipped_bytes_of_foreign_objects(foreign: dict[str, bytes], vmlinux: Btf) -> None:
    rng = random.Random(7)
    small = [data for data in foreign.values() if len(data) < 40_000]
    for _ in range(100):
        data = bytearray(rng.choice(small))
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        survives(bytes(data))


def test_programs_that_multiply_are_refused(bpf_cc: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small programs that share one large subprogram would fill memory: the total is bounded."""
    programs = "".join(f'SEC("uprobe") int p{i}(void *c) {{ return big({i}); }}' for i in range(8))
    source = "volatile int v; static noinline int big(int x) {" + "v += x;" * 100 + "return v; }" + programs
    monkeypatch.setattr(linker, "MAX_TOTAL", 1500)
    obj = Object.parse(bpf_cc(source), name="x.o")
    assert obj.programs and obj.errors
    assert all("together exceed 1500" in error.message for error in obj.errors.values())


def test_overlapping_functions_are_refused(good: bytes) -> None:
    data = bytearray(good)
    (table,), (count,) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<H", data, 60)
    symtab = next(at for at in range(table, table + 64 * count, 64) if struct.unpack_from("<I", data, at + 4)[0] == 2)
    start, size = struct.unpack_from("<QQ", data, symtab + 24)
    functions: dict[int, list[int]] = {}
    for at in range(start, start + size, 24):
        if data[at + 4] & 15 == 2:
            functions.setdefault(struct.unpack_from("<H", data, at + 6)[0], []).append(at)
    first = min(next(found for found in functions.values() if len(found) > 1), key=lambda at: data[at + 8])
    struct.pack_into("<Q", data, first + 16, struct.unpack_from("<Q", data, first + 16)[0] + 8)
    with pytest.raises(ObjectError, match="overlap"):
        Object.parse(bytes(data), name="hostile.o")
