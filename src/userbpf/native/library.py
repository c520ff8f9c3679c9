"""libuserbpf.so through ctypes: typed, and errors are the kernel's numbers.

Functions that can wait or copy much release the interpreter's lock, as ctypes.CDLL does for every call.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, byref, c_int, c_int64, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import ClassVar, Final

from userbpf.errors import MapError, UserBpfError
from userbpf.native.abi import MapDef
from userbpf.native.cpus import possible_cpus

__all__ = ["PATH", "Library", "NativeError", "errno_name", "geometry", "library", "owner_tag"]

PATH: Final = Path(__file__).parent / "lib" / "libuserbpf.so"
_PID_NAMESPACE: Final = "/proc/self/ns/pid"
ENOTSUPP: Final = 524

_Def = POINTER(MapDef)
_PROTOTYPES: Final = {
    "ub_library_init": (None, [c_uint32, c_uint32]),
    "ub_library_env": (c_void_p, []),
    "ub_map_geometry": (c_int, [c_uint32] * 6 + [c_uint64, _Def]),
    "ub_map_create": (None, [_Def, c_void_p, c_uint64, c_uint64]),
    "ub_map_check": (c_int, [c_void_p, c_uint64, _Def]),
    "ub_map_value_bytes": (c_uint64, [_Def]),
    "ub_map_lookup": (c_int, [_Def, c_void_p, c_void_p, c_void_p]),
    "ub_map_update": (c_int, [_Def, c_void_p, c_void_p, c_void_p, c_uint64]),
    "ub_map_delete": (c_int, [_Def, c_void_p, c_void_p]),
    "ub_map_next_key": (c_int, [_Def, c_void_p, c_void_p, c_void_p]),
    "ub_map_dump": (c_int64, [_Def, c_void_p, POINTER(c_uint64), c_void_p, c_void_p, c_uint64]),
    "ub_map_count": (c_int64, [_Def, c_void_p]),
    "ub_map_consume": (c_int64, [_Def, c_void_p, c_void_p, c_uint64]),
    "ub_map_wait": (c_int, [_Def, c_void_p, c_uint32, c_int64]),
    "ub_map_wake_seq": (c_uint32, [c_void_p]),
    "ub_map_wake": (None, [c_void_p]),
}


class NativeError(UserBpfError):
    """The native runtime is missing, or of another version than this package."""

    code: ClassVar[str] = "native"


def errno_name(number: int) -> str:
    """``ENOENT`` for 2; the number itself when it has no name."""
    import errno

    return "ENOTSUPP" if number == ENOTSUPP else errno.errorcode.get(number, str(number))


def owner_tag() -> int:
    """20 bits that tell this process's pid namespace from others: ``ub_env.owner_tag``.

    A lock's owner can only be asked for where its pid means the same process.
    """
    return os.stat(_PID_NAMESPACE).st_ino & 0xFFFFF


class Library:
    """The functions of libuserbpf.so. ``raw`` is the ctypes library, with prototypes set for all of these."""

    def __init__(self, path: Path = PATH) -> None:
        try:
            self.raw = ctypes.CDLL(os.fspath(path))
            for name, (result, arguments) in _PROTOTYPES.items():
                function = getattr(self.raw, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise NativeError(
                f"the native runtime's {path.name} cannot be loaded: {error}",
                hint="reinstall the package, or run native/build.py in a source tree",
            ) from error
        self.raw.ub_library_init(owner_tag(), possible_cpus())

    def geometry(
        self,
        map_type: int,
        key_size: int,
        value_size: int,
        max_entries: int,
        flags: int = 0,
        *,
        n_cpus: int | None = None,
        seed: int = 0,
    ) -> MapDef:
        """The geometry of a map, derived as bpf(2) BPF_MAP_CREATE checks it; MapError with the kernel's errno."""
        numbers = (map_type, key_size, value_size, max_entries, flags)
        if any(not 0 <= number < 1 << 32 for number in numbers):
            raise MapError(f"a number of the map does not fit into 32 bits: {numbers}", errno=22)
        out = MapDef()
        error = self.raw.ub_map_geometry(*numbers, possible_cpus() if n_cpus is None else n_cpus, seed, byref(out))
        if error:
            raise MapError(
                f"a map of type {map_type} with key size {key_size}, value size {value_size}, "
                f"{max_entries} entries and flags {flags:#x} cannot be made: {errno_name(-error)}",
                errno=-error,
            )
        return out

    def check(self, address: int, file_size: int) -> MapDef:
        """The geometry that a file claims to have, checked; MapError when it is no map."""
        out = MapDef()
        error = self.raw.ub_map_check(address, file_size, byref(out))
        if error:
            problem = "it is cut off" if error == -7 else "its header is not that of a map of this version"
            raise MapError(f"this file is not a userbpf map: {problem}", errno=-error)
        return out


@cache
def library() -> Library:
    """The library, loaded once."""
    return Library()


def geometry(
    map_type: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    flags: int = 0,
    *,
    n_cpus: int | None = None,
    seed: int = 0,
) -> MapDef:
    """:meth:`Library.geometry` of the loaded library."""
    return library().geometry(map_type, key_size, value_size, max_entries, flags, n_cpus=n_cpus, seed=seed)
