"""Which places can be probed, and the sentence when one cannot. The target is a program of awkward functions."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from userbpf.attach import plan_site, resolve_functions
from userbpf.errors import AttachError
from userbpf.process import Module, Process

from ..process.programs import finish, running, snapshot
from .hooks import Probes


@pytest.fixture
def target(shapes: Path) -> Iterator[tuple[subprocess.Popen[str], Process, Module]]:
    with running([str(shapes)]) as child, Process(child.pid) as process:
        yield child, process, process.main_module()


Target = tuple[subprocess.Popen[str], Process, Module]


def refusal(process: Process, module: Module, name: str, offset: int = 0) -> str:
    with pytest.raises(AttachError) as caught:
        plan_site(process, module, module.function(name).addr + offset)
    assert caught.value.hint
    return caught.value.message


def test_functions_of_every_shape_are_probed_and_restored(target: Target) -> None:
    child, process, module = target
    names = ["tiny", "tight", "calling", "jumping", "looping"]
    before = snapshot(child.pid)
    probes = Probes(process, [(module, module.function(name).addr) for name in names])
    assert [plan.size for plan in probes.plans] == [5, 2, 5, 5, 2]
    assert probes.plans[1].island is not None
    deadline = time.monotonic() + 10
    while min(probes.counts()) < 20:
        assert time.monotonic() < deadline, probes.counts()
    report = probes.remove()
    assert not report.left_mapped
    assert not report.conflicts
    assert snapshot(child.pid) == before
    assert finish(child) == [0]


def test_an_inner_site_keeps_flags_and_red_zone(target: Target) -> None:
    child, process, module = target
    looping = module.function("looping").addr
    # The `add` is a jump target itself, which is no obstacle: nothing jumps behind it.
    probes = Probes(process, [(module, looping + 2)])
    assert probes.plans[0].inner
    deadline = time.monotonic() + 10
    while probes.counts()[0] < 20:
        assert time.monotonic() < deadline
    assert not probes.remove().left_mapped
    assert finish(child) == [0]


def test_places_that_cannot_be_probed_are_refused_with_the_reason(target: Target) -> None:
    _, process, module = target
    assert "it has 1 bytes, and what follows is not padding" in refusal(process, module, "one")
    assert "middle of an instruction" in refusal(process, module, "looping", 1)
    assert "indirect jump" in refusal(process, module, "jumping", 7)
    assert "raises a signal" in refusal(process, module, "trapping", 4)
    with pytest.raises(AttachError, match="is not code of"):
        plan_site(process, module, module.start)


def test_other_patchers_are_seen(target: Target) -> None:
    _, process, module = target
    libc = process.resolve_library("libc.so.6")
    addr = libc.function("abort").addr
    original = process.read(addr, 5)
    process.write(addr, b"\xcc")
    with pytest.raises(AttachError, match="a breakpoint .* is set here"):
        plan_site(process, libc, addr)
    process.write(addr, b"\xe9\x00\x01\x00\x00")
    with pytest.raises(AttachError, match="patched it with a jump to"):
        plan_site(process, libc, addr)
    process.write(addr, original)
    tiny = module.function("tiny").addr
    probes = Probes(process, [(module, tiny)])
    with pytest.raises(AttachError, match="userbpf has already patched it"):
        plan_site(process, module, tiny)
    assert not probes.remove().left_mapped
    plan_site(process, module, tiny)


def test_an_ifunc_is_probed_where_its_calls_arrive(target: Target) -> None:
    child, process, _ = target
    libc = process.resolve_library("libc.so.6")
    if not libc.function("strlen").ifunc:
        pytest.skip("strlen of this C library is an ordinary function")
    with pytest.raises(AttachError, match="IFUNC"):
        plan_site(process, libc, libc.function("strlen").addr, libc.function("strlen"))
    functions = resolve_functions(process, libc, "strlen")
    assert functions
    probes = Probes(process, [(libc, f.addr) for f in functions])
    deadline = time.monotonic() + 10
    while sum(probes.counts()) < 5:
        assert time.monotonic() < deadline
    assert not probes.remove().left_mapped
    assert finish(child) == [0]


def test_most_functions_of_the_c_library_can_be_probed(target: Target) -> None:
    _, process, _ = target
    libc = process.resolve_library("libc.so.6")
    addresses = sorted({s.vaddr for s in libc.functions if not s.ifunc and s.size})
    refused: list[str] = []
    for vaddr in addresses[::4]:
        try:
            plan_site(process, libc, libc.addr(vaddr))
        except AttachError as error:
            refused.append(error.message)
    assert len(refused) < 0.05 * len(addresses[::4]), refused
