"""Time from the command to the first event, and how long the target stands still.

The command is `userbpf attach prog.bpf.o --pid PID --duration S --json` in a fresh process; the program notes the
clock at its first run. The target watches the clock itself, beside our own account of the stop. The goals: at most
1 s, at most 10 ms.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import support
import userbpf
from support import Sample, Target
from userbpf.toolchain import compile_c

FIRST_EVENT = """
    __u32 slot = 0;
    __u64 *first = bpf_map_lookup_elem(&array_counts, &slot);
    if (first && !*first)
        *first = bpf_ktime_get_ns();
"""
SPIN = "spin 60000"


def command_to_first_event(compiled: Path, target: Target) -> float:
    """Seconds from the start of the command to the first run of the program in the target."""
    target.send(SPIN)
    started = time.monotonic_ns()
    result = subprocess.run(
        [
            *(sys.executable, "-m", "userbpf.cli.app", "attach", str(compiled)),
            *("--pid", str(target.pid), "--duration", "0.2", "--json"),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    target.ask("stop 0")
    if result.returncode != 0:
        raise SystemExit(f"userbpf attach ended with status {result.returncode}: {result.stderr}")
    entries = json.loads(result.stdout)["maps"]["array_counts"]
    first = next(int(entry["value"]) for entry in entries if entry["key"] == 0)
    if first < started:
        raise SystemExit("the program never ran")
    return (first - started) / 1e9


def stopped(compiled: Path, target: Target) -> tuple[float, float]:
    """Milliseconds that the target stands still in one attach and detach: (as we count, as it sees, longest each).

    What it sees contains the scheduler's own gaps; the undisturbed run beside it tells how long those are.
    """
    target.send(SPIN)
    with userbpf.load(compiled) as obj:
        attachment = obj.attach(pid=target.pid)
        attachment.close()
    longest, _calls = target.ask("stop 0")
    return attachment.stop_ns / 1e6, longest / 1e6


def main() -> None:
    options = support.arguments(__doc__ or "")
    rounds = 3 if options.quick else 9
    with support.workshop() as folder, support.running_target(folder) as target:
        compiled = folder / "first.bpf.o"
        compile_c(support.program(folder, "first", FIRST_EVENT, target.path), output=compiled)
        undisturbed = Sample.of([target.ask("spin 1000")[0] / 1e6 for _ in range(rounds)])
        both = [stopped(compiled, target) for _ in range(rounds)]
        stops, gaps = (Sample.of(list(values)) for values in zip(*both, strict=True))
        first = Sample.of([command_to_first_event(compiled, target) for _ in range(rounds)])
    figures = {
        "first_event_s": first.median,
        "first_event_max_s": first.high,
        "stopped_ms": stops.median,
        "stopped_max_ms": stops.high,
        "gap_ms": gaps.median,
        "gap_max_ms": gaps.high,
        "undisturbed_gap_ms": undisturbed.median,
        "undisturbed_gap_max_ms": undisturbed.high,
    }
    lines = [
        f"{'command to first event, s':36} {first}",
        f"{'longest stop to attach, ms':36} {stops}",
        f"{'longest gap that the target saw, ms':36} {gaps}",
        f"{'longest gap, undisturbed, ms':36} {undisturbed}",
    ]
    support.report(options, figures, lines)


if __name__ == "__main__":
    main()
