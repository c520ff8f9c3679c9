"""The native runtime as Python sees it: where its three products are, and the library, loaded.

``libuserbpf.so``, ``runtime.bc`` and ``agent.o`` are made by ``native/build.py`` when the package is installed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

from userbpf.errors import UserBpfError
from userbpf.native.cpus import possible_cpus
from userbpf.native.library import Library, NativeError, geometry, library, owner_tag

__all__ = [
    "LIB",
    "Library",
    "NativeError",
    "agent_object",
    "geometry",
    "library",
    "owner_tag",
    "possible_cpus",
    "runtime_bitcode",
]

LIB: Final = Path(__file__).parent / "lib"


@cache
def runtime_bitcode() -> bytes:
    """LLVM bitcode of helpers and map operations, which is linked into every program."""
    return _product("runtime.bc")


@cache
def agent_object() -> bytes:
    """The relocatable ELF object of the code that lives once in each target."""
    return _product("agent.o")


def _product(name: str) -> bytes:
    try:
        return (LIB / name).read_bytes()
    except OSError as error:
        raise _missing(name, error) from error


def _missing(name: str, error: OSError) -> UserBpfError:
    return NativeError(
        f"the native runtime's {name} cannot be read: {error.strerror or error}",
        hint="reinstall the package, or run native/build.py in a source tree",
    )
