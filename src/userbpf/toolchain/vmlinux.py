"""``vmlinux.h``: the kernel's types as one header, made from its BTF once for each kernel."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from userbpf.btf.btf import Btf
from userbpf.btf.dump import dump_c
from userbpf.errors import BtfError
from userbpf.toolchain.cache import cache_dir, write_atomically

KERNEL_BTF: Final = Path("/sys/kernel/btf/vmlinux")
FALLBACK_DIR: Final = Path(__file__).parents[1] / "include" / "fallback"
"""Holds a small vmlinux.h for machines whose kernel has no BTF."""


def vmlinux_dir(scratch: Path, machine: str | None = None, btf_file: Path = KERNEL_BTF) -> Path:
    """A directory with a ``vmlinux.h``: from the running kernel's BTF, else the small one that userbpf brings.

    machine: the small one is also taken for another machine than this. The header is kept in the user's cache
    directory, or written to ``scratch`` when there is none.
    """
    if machine is not None and machine != platform.machine():
        return FALLBACK_DIR
    try:
        data = btf_file.read_bytes()
    except OSError:
        return FALLBACK_DIR
    digest = hashlib.sha256(_tool_version().encode() + b"\0" + data).hexdigest()[:16]
    cache = cache_dir()
    place = (cache or scratch) / f"vmlinux-{digest}"
    header = place / "vmlinux.h"
    if not header.is_file():
        try:
            text = dump_c(Btf.parse(data))
        except BtfError:
            return FALLBACK_DIR
        place.mkdir(mode=0o700, exist_ok=True)
        write_atomically(header, text)
    return place


def _tool_version() -> str:
    """Part of the cache key, so that a new release of the printer makes the header again."""
    try:
        return version("userbpf")
    except PackageNotFoundError:  # run from a source tree
        return "source"
