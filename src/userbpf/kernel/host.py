"""Facts about the running kernel that objects ask for: its types, its version, its configuration."""

from __future__ import annotations

import functools
import gzip
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from userbpf.btf import Btf
from userbpf.object.externs import Kernel, parse_kconfig

KERNEL_BTF: Final = "/sys/kernel/btf/vmlinux"


@functools.cache
def kernel_btf() -> Btf | None:
    """BTF of the running kernel, None when it has none or does not let us read it."""
    try:
        return Btf.parse(Path(KERNEL_BTF).read_bytes())
    except OSError:
        return None


def _version() -> int:
    """LINUX_VERSION_CODE. Debian's releases do not count patch levels, its version string does
    (libbpf's get_debian_kernel_version)."""
    uname = os.uname()
    found = re.search(r"Debian (\d+)\.(\d+)\.(\d+)", uname.version) or re.match(r"(\d+)\.(\d+)\.?(\d*)", uname.release)
    if found is None:
        return 0
    major, minor, patch = (int(part or 0) for part in found.groups())
    return major << 16 | minor << 8 | min(patch, 255)


@functools.cache
def _config() -> Mapping[str, str]:
    """``CONFIG_*`` of the running kernel; empty when no file tells."""
    for path in (f"/boot/config-{os.uname().release}", "/proc/config.gz"):
        try:
            data = Path(path).read_bytes()
            return parse_kconfig((gzip.decompress(data) if path.endswith(".gz") else data).decode(errors="replace"))
        except (OSError, EOFError):
            continue
    return {}


def running_kernel() -> Kernel:
    """What the ``.kconfig`` externs of an object are answered from."""
    return Kernel(_version(), _config)
