"""The main job, end to end: trace a live process with eBPF, from C source to table, as an ordinary user.

Starts a Python program, attaches examples/libcstat.bpf.c to its malloc while it runs, shows what it sees, detaches,
and proves that the program goes on as it was. Every claim is checked: the exit status is 1 when one does not hold.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

import userbpf
from userbpf import kernel
from userbpf.errors import UserBpfError
from userbpf.process import Process
from userbpf.session import read_object

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "libcstat.bpf.c"
CALLS = 100_000
ROUNDS = 11
KERNEL_CALLS = 5_000
WATCH_SECONDS = 4.0
SITE_BYTES = 16

console = Console(highlight=False)


def step(text: str) -> None:
    console.print(f"[bold]▸[/bold] {text}")


def claim(holds: bool, text: str) -> None:
    """Prints a claim that was checked; the demo fails when it does not hold."""
    console.print(f"  {'[green]✓[/green]' if holds else '[red]✗[/red]'} {text}")
    if not holds:
        raise SystemExit(1)


class Target:
    """The observed program: pipes to ask it for the cost of its own allocations."""

    def __init__(self) -> None:
        python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
        self._process = subprocess.Popen(
            [python, str(HERE / "demo_target.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self._process.pid
        self.name = python
        claim(self._line() == "ready", f"{python} runs with pid {self.pid}")

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, calls: int) -> int:
        """Nanoseconds that ``calls`` allocations take in the program's main thread."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{calls}\n")
        answer = self._line()
        if not answer.isdecimal():
            claim(False, "the program still answers")
        return int(answer)

    def cost(self, calls: int) -> float:
        """Nanoseconds of one allocation: the best of some rounds, which is the one that nobody disturbed."""
        self.ask(calls // 10)
        return min(self.ask(calls) / calls for _ in range(ROUNDS))

    def end(self) -> int:
        if self._process.stdin is not None:
            self._process.stdin.close()
        return self._process.wait()


def size_name(power: int) -> str:
    return f"{1 << power} B" if power < 10 else f"{1 << power - 10} KB" if power < 20 else f"{1 << power - 20} MB"


def histogram(sizes: list[int]) -> str:
    """The three most frequent powers of two, with bars."""
    total = sum(sizes) or 1
    top = sorted(range(len(sizes)), key=lambda i: -sizes[i])[:3]
    return "  ".join(f"{size_name(i)} {'▇' * max(1, round(8 * sizes[i] / total))}" for i in sorted(top) if sizes[i])


def show(stats: Any) -> Table:
    table = Table(title="malloc by thread", title_justify="left")
    for column in ("tid", "thread", "calls", "bytes", "sizes (from)"):
        table.add_column(column, justify="right" if column in ("tid", "calls", "bytes") else "left")
    for tid, stat in sorted(stats.items()):
        table.add_row(str(tid), stat["comm"], f"{stat['calls']:,}", f"{stat['bytes']:,}", histogram(stat["sizes"]))
    return table


def watch(obj: Any) -> list[Any]:
    """Shows the table for a few seconds, live on a terminal; returns the events that came meanwhile."""
    events: list[Any] = []
    end = time.monotonic() + WATCH_SECONDS
    live = Live(show(obj.maps["stats"]), console=console, refresh_per_second=8, transient=True)
    with live if console.is_terminal else contextlib.nullcontext():
        while (left := end - time.monotonic()) > 0:
            events += obj.maps["events"].read(timeout=min(left, 0.25))
            live.update(show(obj.maps["stats"]))
    console.print(show(obj.maps["stats"]))
    return events


def trace(target: Target, addr: int, original: bytes, process: Process) -> float:
    """Attach, watch, detach. Returns the cost of one allocation while attached."""
    step(f"userbpf.load({SOURCE.name!r}): compiling, verifying")
    started = time.monotonic()
    with userbpf.load(SOURCE) as obj:
        step("attaching to the running program")
        with obj.attach(pid=target.pid) as attachment:
            taken = time.monotonic() - started
            claim(process.read(addr, SITE_BYTES) != original, f"attached {taken:.2f} s after the start, from C source")
            console.print(f"      the program stood still for {attachment.stop_ns / 1e6:.1f} ms")
            events = watch(obj)
            claim(bool(events), f"{len(events)} large requests came through the ring buffer; the last three:")
            for event in events[-3:]:
                console.print(f"      thread {event['comm']} ({event['tid']}) asked for {event['size']:,} bytes")
            before = obj.maps["stats"].get(target.pid)
            seen = before["calls"] if before is not None else 0
            target.ask(CALLS)
            counted = obj.maps["stats"][target.pid]["calls"] - seen
            claim(0 <= counted - CALLS < 100, f"{CALLS:,} calls made by one thread, {counted:,} counted")
            cost = target.cost(CALLS)
            hits = sum(link.hits for link in attachment.links)
    step(f"detached after {hits:,} hits")
    claim(process.read(addr, SITE_BYTES) == original, f"malloc is what it was: {original.hex(' ')}")
    return cost


def in_kernel(target: Target, path: str, file_offset: int) -> float | str:
    """The same program on the same function by the kernel's uprobe: the cost, or why it cannot be had."""
    reason = kernel.available()
    if reason is not None:
        return reason
    with kernel.load_object(read_object(SOURCE)) as loaded:
        loaded.attach_uprobe("count_malloc", target.pid, path, file_offset)
        return target.cost(KERNEL_CALLS)


def run() -> None:
    step("starting a program that knows nothing of us")
    target = Target()
    with Process(target.pid) as process:
        addr = process.resolve_library("libc.so.6").function("malloc").addr
        home = next(mapping for mapping in process.mappings() if mapping.start <= addr < mapping.end)
        original = process.read(addr, SITE_BYTES)
        bare = target.cost(CALLS)
        attached = trace(target, addr, original, process)
        after = target.cost(CALLS)
        by_kernel = in_kernel(target, home.path, addr - home.start + home.offset)
    status = target.end()
    claim(status == 0, f"the program went on unharmed and ended by itself with status {status}")
    step("cost of one bytearray(1024) in the program, one malloc included")
    for name, cost in (("without a probe", bare), ("with userbpf", attached), ("after detaching", after)):
        console.print(f"      {name:20} {cost:10.1f} ns  {cost - bare:+10.1f} ns")
    if isinstance(by_kernel, float):
        console.print(f"      {'kernel uprobe':20} {by_kernel:10.1f} ns  {by_kernel - bare:+10.1f} ns")
    else:
        console.print(f"      {'kernel uprobe':20} not measured: {by_kernel}", soft_wrap=True)


def main() -> None:
    try:
        run()
    except UserBpfError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
