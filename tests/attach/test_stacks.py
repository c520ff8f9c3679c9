"""Which words of a stack keep code alive."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from userbpf.attach.stacks import Hit, hits
from userbpf.process import Process

from .hooks import NOTHING, Probes

LOW, HIGH = 0x7F12_3400_0000, 0x7F12_3700_0123
FRAME = (0x246, 0x002B_0000_0000_0033)


@given(st.lists(st.integers(LOW - 64, HIGH + 64) | st.integers(0, (1 << 64) - 1), max_size=40))
def test_every_aligned_word_in_a_range_is_found_and_no_other(words: list[int]) -> None:
    data = struct.pack(f"<{len(words)}Q", *words)
    found = sorted(hit.value for hit in hits(data, [(LOW, HIGH)]))
    assert found == sorted(w for w in words if LOW <= w < HIGH)


def test_a_signal_frame_is_told_from_a_stale_word() -> None:
    words = [1, LOW, *FRAME, LOW + 8, 0x246, 0x33, LOW + 16, 5, 0x33, LOW + 24]
    data = struct.pack(f"<{len(words)}Q", *words)
    assert sorted(hits(data, [(LOW, HIGH)]), key=lambda hit: hit.value) == [
        Hit(LOW, True),
        Hit(LOW + 8, True),
        Hit(LOW + 16, False),
        Hit(LOW + 24, False),
    ]


def test_what_earlier_calls_left_on_a_sleeping_stack_keeps_nothing_mapped() -> None:
    # clock_nanosleep begins with `sub rsp`: the slot of our hook's return address lies in its frame while it sleeps.
    program = shutil.which("sleep") or "/bin/sleep"
    with subprocess.Popen(["bash", "-c", f"while :; do {program} 0.01; read -t 0.02 <> <(:); done"]) as child:
        deadline = time.monotonic() + 10
        while "libc.so.6" not in Path(f"/proc/{child.pid}/maps").read_text():
            assert time.monotonic() < deadline
        with Process(child.pid) as process:
            libc = process.resolve_library("libc.so.6")
            names = ("waitpid", "read", "poll", "select", "pselect", "wait4", "clock_nanosleep", "pipe", "sigaction")
            for _ in range(10):
                sites = [(libc, libc.function(name).addr) for name in names if libc.elf.find(name)]
                sites = [*{addr: (libc, addr) for _, addr in sites}.values()]
                assert not Probes(process, sites, code=NOTHING).remove().left_mapped
        assert child.poll() is None
        child.kill()
