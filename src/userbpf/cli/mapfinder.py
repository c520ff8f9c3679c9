"""Finds the maps that are in use: memfds named ``userbpf-map:NAME`` in the processes that we may look at.

A map is reached by a descriptor of its controller (``/proc/PID/fd/N``, which needs the rights of ptrace and no more).
When the controller is gone, only the targets have it mapped: ``/proc/PID/map_files`` needs CAP_CHECKPOINT_RESTORE
(proc_pid_map_files(5)), so the memory is read as the process's own and opened as a copy.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from userbpf.errors import MapError, UserBpfError
from userbpf.maps import Map
from userbpf.process import Mapping, Process, parse_maps

PREFIX: Final = "/memfd:userbpf-map:"
_DELETED: Final = " (deleted)"


@dataclass
class FoundMap:
    """A map by its inode: the processes that have it, and every way to it that we saw."""

    name: str
    inode: int
    pids: set[int] = field(default_factory=set)
    fds: list[tuple[int, int]] = field(default_factory=list)
    """(pid, descriptor) pairs."""
    mapped: dict[int, list[Mapping]] = field(default_factory=dict)

    @property
    def is_held(self) -> bool:
        """True when a process holds a descriptor, so that the map itself can be opened and not only a copy."""
        return bool(self.fds)

    def open(self) -> Map:
        """The map; a copy of its memory when nobody holds a descriptor. The caller closes it."""
        problems: list[str] = []
        for pid, number in self.fds:
            try:
                fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                problems.append(f"descriptor {number} of process {pid}: {error.strerror}")
                continue
            return _open(fd)
        for pid, mappings in self.mapped.items():
            try:
                return _open(_copy(self.name, pid, mappings))
            except UserBpfError as error:
                problems.append(error.message)
        raise MapError(
            f"the map {self.name!r} cannot be opened: {'; '.join(problems) or 'its last user has just ended'}",
            errno=13,
            hint="run as the user of the processes that use it",
        )


def _open(fd: int) -> Map:
    try:
        return Map.open(fd)
    except BaseException:
        os.close(fd)
        raise


def _copy(name: str, pid: int, mappings: list[Mapping]) -> int:
    """A new memfd with the bytes that a process has mapped; holes stay zero."""
    fd = os.memfd_create(f"userbpf-map:{name}"[:200], os.MFD_CLOEXEC)
    try:
        with Process(pid) as process:
            for mapping in mappings:
                os.pwrite(fd, process.read(mapping.start, mapping.size), mapping.offset)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _pids() -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            yield int(entry)


def _map_name(path: str) -> str | None:
    return path.removeprefix(PREFIX).removesuffix(_DELETED) if path.startswith(PREFIX) else None


def find_maps(pids: Iterable[int] | None = None) -> list[FoundMap]:
    """All maps of the processes (default: all that we may look at), by name and inode.

    Processes that end meanwhile or that are not ours to read are left out.
    """
    found: dict[int, FoundMap] = {}

    def note(name: str, inode: int, pid: int) -> FoundMap:
        entry = found.setdefault(inode, FoundMap(name, inode))
        entry.pids.add(pid)
        return entry

    for pid in _pids() if pids is None else pids:
        folder = Path(f"/proc/{pid}")
        try:
            for mapping in parse_maps((folder / "maps").read_text(errors="replace")):
                name = _map_name(mapping.path)
                if name is not None and mapping.readable:
                    note(name, mapping.inode, pid).mapped.setdefault(pid, []).append(mapping)
            for number in os.listdir(folder / "fd"):
                name = _map_name(os.readlink(folder / "fd" / number))
                if name is not None:
                    inode = os.stat(folder / "fd" / number).st_ino
                    note(name, inode, pid).fds.append((pid, int(number)))
        except OSError:
            continue
    return sorted(found.values(), key=lambda item: (item.name, item.inode))
