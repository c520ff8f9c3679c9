"""Possible CPUs: how many values a per-cpu map has for each entry, as the kernel counts them."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Final

POSSIBLE: Final = Path("/sys/devices/system/cpu/possible")


def parse_cpu_list(text: str) -> int:
    """Number of CPUs up to the highest one of a list like ``0-3,8`` (libbpf: libbpf_num_possible_cpus)."""
    highest = -1
    for part in text.strip().split(","):
        last = part.rpartition("-")[2]
        if not last.isdecimal():
            raise ValueError(f"not a list of CPUs: {text!r}")
        highest = max(highest, int(last))
    return highest + 1


@cache
def possible_cpus() -> int:
    """CPUs that this machine may ever have online. Where sysfs is not mounted, those that are configured."""
    try:
        return parse_cpu_list(POSSIBLE.read_text())
    except (OSError, ValueError):
        return os.sysconf("SC_NPROCESSORS_CONF")
