"""userbpf: eBPF in user space.

``userbpf.load("prog.bpf.c")`` compiles, verifies and prepares a BPF object; ``.attach(pid=…)`` puts its programs
into a running process; ``.maps`` are live. Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from userbpf.errors import UserBpfError

if TYPE_CHECKING:
    from userbpf.maps import Map
    from userbpf.session import Attachment, Link, LoadedObject, load

__version__ = "0.1.0"
__all__ = ["Attachment", "Link", "LoadedObject", "Map", "UserBpfError", "__version__", "load"]

_LAZY = {
    "Attachment": "userbpf.session",
    "Link": "userbpf.session",
    "LoadedObject": "userbpf.session",
    "Map": "userbpf.maps",
    "load": "userbpf.session",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'userbpf' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
