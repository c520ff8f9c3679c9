"""What attaching adds to the target's memory: address space and resident bytes, with and without the maps.

Counted from /proc/PID/smaps before, during and after. The goals: at most 400 KB besides the maps, and nothing that
stays after detaching.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import support
import userbpf

_HEAD = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+\s*(.*)$")
MAP_PREFIX = "/memfd:userbpf-map:"


def memory(pid: int) -> tuple[Counter[str], Counter[str]]:
    """(bytes of address space, resident bytes) of a process by the name of the mapping."""
    size: Counter[str] = Counter()
    resident: Counter[str] = Counter()
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        head = _HEAD.match(line)
        if head is not None:
            name = head[1]
        elif line.startswith("Size:"):
            size[name] += int(line.split()[1]) << 10
        elif line.startswith("Rss:"):
            resident[name] += int(line.split()[1]) << 10
    return size, resident


def split(counted: Counter[str]) -> tuple[int, int]:
    """(bytes besides the maps, bytes of the maps)."""
    maps = sum(value for name, value in counted.items() if name.startswith(MAP_PREFIX))
    return counted.total() - maps, maps


def main() -> None:
    options = support.arguments(__doc__ or "")
    with support.workshop() as folder, support.running_target(folder) as target:
        source = support.program(folder, "footprint", support.HASH_COUNT, target.path)
        target.ask("call 1000")
        size_before, resident_before = memory(target.pid)
        with userbpf.load(source) as obj, obj.attach(pid=target.pid):
            target.ask("call 1000")
            size_during, resident_during = memory(target.pid)
        target.ask("call 1000")
        size_after, _ = memory(target.pid)
    added, maps = split(size_during - size_before)
    added_resident, maps_resident = split(resident_during - resident_before)
    left = (size_after - size_before).total()
    mappings = dict(sorted((size_during - size_before).items()))
    figures = {
        "added_bytes": added,
        "added_resident_bytes": added_resident,
        "map_bytes": maps,
        "map_resident_bytes": maps_resident,
        "left_after_detach_bytes": left,
        "mappings": mappings,
    }
    lines = [
        f"{'added, without maps':24} {added >> 10:8} KB of address space, {added_resident >> 10:6} KB resident",
        f"{'maps':24} {maps >> 10:8} KB of address space, {maps_resident >> 10:6} KB resident",
        f"{'left after detaching':24} {left >> 10:8} KB",
        *(f"  {name or '(anonymous)':40} {value >> 10:6} KB" for name, value in mappings.items()),
    ]
    support.report(options, figures, lines)


if __name__ == "__main__":
    main()
