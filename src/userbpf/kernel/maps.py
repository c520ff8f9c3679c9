"""Maps of the kernel, by bytes: create, look up, update, delete, iterate (man 2 bpf)."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from userbpf.kernel import syscall
from userbpf.kernel.syscall import KernelError, address_of, check

BPF_ANY: Final = 0
BPF_NOEXIST: Final = 1
BPF_EXIST: Final = 2

# enum bpf_map_type: those whose values exist once per possible CPU, and those that have no lookup.
_PER_CPU: Final = frozenset({5, 6, 10, 21})
_PERF_EVENT_ARRAY: Final = 4
_RINGBUF: Final = 27


def possible_cpus() -> int:
    """Number of possible CPUs as per-cpu maps see it (/sys/devices/system/cpu/possible, libbpf's parse)."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        text = file.read().strip()
    return sum(int(part.rpartition("-")[2]) - int(part.partition("-")[0]) + 1 for part in text.split(","))


class KernelMap:
    """One map of the kernel. Keys and values are bytes; a per-cpu value is the values of all possible CPUs,
    each padded to 8 bytes, one after the other, as bpf(2) gives them. Close it, or use it in ``with``."""

    def __init__(self, fd: int, *, name: str, map_type: int, key_size: int, value_size: int, max_entries: int) -> None:
        self.fd = fd
        self.name = name
        self.type = map_type
        self.key_size = key_size
        self.max_entries = max_entries
        per_cpu = map_type in _PER_CPU
        self.value_size = ((value_size + 7) & ~7) * possible_cpus() if per_cpu else value_size

    @classmethod
    def create(
        cls,
        map_type: int,
        *,
        key_size: int,
        value_size: int,
        max_entries: int,
        flags: int = 0,
        name: str = "",
        map_extra: int = 0,
        inner_fd: int = 0,
    ) -> Self:
        """BPF_MAP_CREATE. ``name`` is cut to the kernel's 15 bytes and to the characters that it takes."""
        if map_type == _PERF_EVENT_ARRAY and max_entries == 0:
            max_entries = possible_cpus()  # as libbpf does
        short = "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in name)[:15].encode()
        # map_type key_size value_size max_entries map_flags inner_map_fd numa_node map_name map_ifindex
        # btf_fd btf_key_type_id btf_value_type_id btf_vmlinux_value_type_id map_extra
        attr = struct.pack(
            "=7I16s5IQ",
            *(map_type, key_size, value_size, max_entries, flags, inner_fd, 0),
            *(short, 0, 0, 0, 0, 0, map_extra),
        )
        hint = "the map may be larger than what the kernel's memory allows" if max_entries > 1 << 24 else None
        fd = check(syscall.bpf(syscall.MAP_CREATE, attr), f"the kernel does not create the map {name!r}", hint=hint)
        return cls(fd, name=name, map_type=map_type, key_size=key_size, value_size=value_size, max_entries=max_entries)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _element(self, command: int, key: bytes | None, value: ctypes.Array[ctypes.c_char] | None, flags: int) -> int:
        if self.fd < 0:
            raise KernelError(f"the map {self.name!r} is closed", errno=errno.EBADF)
        if key is not None and len(key) != self.key_size:
            raise KernelError(
                f"a key of the map {self.name!r} has {self.key_size} bytes, not {len(key)}", errno=errno.EINVAL
            )
        key_buffer = None if key is None else ctypes.create_string_buffer(key, max(len(key), 1))
        return syscall.bpf(command, struct.pack("=IxxxxQQQ", self.fd, address_of(key_buffer), address_of(value), flags))

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None when the key is not in the map."""
        value = ctypes.create_string_buffer(self.value_size)
        result = self._element(syscall.MAP_LOOKUP_ELEM, key, value, 0)
        if result == -errno.ENOENT:
            return None
        check(result, f"lookup in the map {self.name!r}")
        return value.raw

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Sets a value. ``flags``: BPF_ANY, BPF_NOEXIST (EEXIST when there) or BPF_EXIST (ENOENT when not)."""
        if len(value) != self.value_size:
            raise KernelError(
                f"a value of the map {self.name!r} has {self.value_size} bytes, not {len(value)}", errno=errno.EINVAL
            )
        buffer = ctypes.create_string_buffer(value, max(len(value), 1))
        check(self._element(syscall.MAP_UPDATE_ELEM, key, buffer, flags), f"update of the map {self.name!r}")

    def delete(self, key: bytes) -> bool:
        """True when the key was there."""
        result = self._element(syscall.MAP_DELETE_ELEM, key, None, 0)
        if result == -errno.ENOENT:
            return False
        check(result, f"delete in the map {self.name!r}")
        return True

    def next_key(self, key: bytes | None) -> bytes | None:
        """The key after ``key`` in the kernel's order, the first one for None; None behind the last."""
        following = ctypes.create_string_buffer(max(self.key_size, 1))
        result = self._element(syscall.MAP_GET_NEXT_KEY, key, following, 0)
        if result == -errno.ENOENT:
            return None
        check(result, f"iteration of the map {self.name!r}")
        return following.raw

    def keys(self) -> Iterator[bytes]:
        key = self.next_key(None)
        while key is not None:
            yield key
            key = self.next_key(key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Pairs of bytes; entries that vanish while we look are left out."""
        if self.type in (_RINGBUF, _PERF_EVENT_ARRAY):
            raise KernelError(f"the map {self.name!r} is a stream and has no entries", errno=errno.EINVAL)
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def freeze(self) -> None:
        """BPF_MAP_FREEZE: user space may not write any more; what the verifier needs to trust .rodata."""
        check(syscall.bpf(syscall.MAP_FREEZE, struct.pack("=I", self.fd)), f"freeze of the map {self.name!r}")
