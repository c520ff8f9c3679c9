"""Cost of one call of a probed function: bare, with our probe, with the kernel's uprobe.

Prints nanoseconds per call, the bare call's included. The goals: an empty probe at most 5 ns over the bare call,
counting in a hash map by process at most 25 ns over it.
"""

from __future__ import annotations

from pathlib import Path

import support
import userbpf
from support import Sample, Target

CASES = {"empty": support.EMPTY, "array_count": support.ARRAY_COUNT, "hash_count": support.HASH_COUNT}


def attached_cost(source: Path, target: Target, calls: int, rounds: int) -> Sample:
    """Cost while attached; every single call must have been seen."""
    with userbpf.load(source) as obj, obj.attach(pid=target.pid) as attachment:
        before = sum(link.hits for link in attachment.links)
        sample = target.cost(calls, rounds)
        seen = sum(link.hits for link in attachment.links) - before
    wanted = calls * rounds + calls // 10 + 1
    if seen != wanted:
        raise SystemExit(f"{source.name}: {seen} of {wanted} calls were seen")
    return sample


def main() -> None:
    options = support.arguments(__doc__ or "")
    calls, rounds = (200_000, 5) if options.quick else (2_000_000, 15)
    kernel_calls = 2_000 if options.quick else 20_000
    figures: dict[str, float | None] = {}
    lines = [f"{'ns per call':24} {'median':>10}  (spread)"]
    with support.workshop() as folder, support.running_target(folder) as target:
        bare = target.cost(calls, rounds)
        figures["bare_ns"] = bare.median
        lines.append(f"{'bare':24} {bare}")
        for name, body in CASES.items():
            source = support.program(folder, name, body, target.path)
            sample = attached_cost(source, target, calls, rounds)
            figures[f"{name}_ns"] = sample.median
            figures[f"{name}_over_bare_ns"] = sample.median - bare.median
            lines.append(f"{name:24} {sample}  +{sample.median - bare.median:.2f}")
            by_kernel = support.in_kernel(
                source, target.pid, target.path, "target_fn", lambda: target.cost(kernel_calls, rounds)
            )
            figures[f"kernel_{name}_ns"] = by_kernel.median if by_kernel is not None else None
            shown = by_kernel if by_kernel is not None else "cannot be measured here (bpf(2) needs root)"
            lines.append(f"{'kernel ' + name:24} {shown}")
        again = target.cost(calls, rounds)
        figures["bare_after_ns"] = again.median
        lines.append(f"{'bare, after detaching':24} {again}")
    support.report(options, figures, lines)


if __name__ == "__main__":
    main()
