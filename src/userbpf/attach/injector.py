"""What belongs to us inside a target: code images, maps, trampolines; each region with its owner, so that all can go.

Code is never writable and executable at once: it is mapped readable and executable, and written from outside through
``/proc/PID/mem``.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Protocol

from userbpf.errors import AttachError, ProcessError
from userbpf.process import Module, Process, Stopped, page_up
from userbpf.process.stop import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)

__all__ = ["CodeLike", "Injector", "Region", "SealedImage"]

Kind = Literal["image", "map", "memory", "trampoline"]

_F_ADD_SEALS: Final = 1033
_SEALS: Final = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, _SHRINK, _GROW, _WRITE
_TRAMPOLINE_NAME: Final = "userbpf-trampolines"


class CodeLike(Protocol):
    """What of a CodeImage is mapped: page-padded code and constants, and the size of the data area behind it."""

    @property
    def code(self) -> bytes: ...

    @property
    def data_size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Region:
    """Memory of ours in the target. ``code_size`` bytes from the start may be executed."""

    addr: int
    size: int
    kind: Kind
    name: str
    code_size: int = 0

    @property
    def end(self) -> int:
        return self.addr + self.size

    @property
    def data(self) -> int:
        """Address of what follows the code: the data area of an image."""
        return self.addr + self.code_size


class SealedImage:
    """Code in a sealed memfd: one copy for every process that it is mapped into. A context manager."""

    def __init__(self, name: str, image: CodeLike) -> None:
        self.name = f"userbpf-image:{name}"
        self.code_size = page_up(len(image.code))
        self.data_size = page_up(image.data_size)
        self.fd = os.memfd_create(self.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with open(self.fd, "wb", closefd=False) as file:
                file.write(image.code + bytes(self.code_size - len(image.code)))
            fcntl.fcntl(self.fd, _F_ADD_SEALS, _SEALS)
        except OSError:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Close the memfd; processes that map it keep it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> SealedImage:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _memfd(name: str, size: int) -> Iterator[int]:
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


class Injector:
    """Maps regions into one process and remembers them. All methods with ``stopped`` run in a stop."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.regions: list[Region] = []

    def _add(self, region: Region) -> Region:
        self.regions.append(region)
        return region

    def _failed(self, what: str, error: OSError) -> AttachError:
        hint = "the limit of its address space (ulimit -v) or of mappings (vm.max_map_count) may be reached"
        return AttachError(
            f"{what} could not be mapped into process {self.process.pid} ({self.process.name}): {error.strerror}",
            hint=hint if error.errno in (errno.ENOMEM, errno.EAGAIN) else None,
        )

    def _reserve(self, stopped: Stopped, size: int, near: Module | None) -> int:
        """Address space for ``size`` bytes that nobody can touch yet."""
        flags = MAP_PRIVATE | MAP_ANONYMOUS
        if near is None:
            return stopped.mmap(0, size, PROT_NONE, flags)
        addr = self.process.find_gap(near.start, size, near_end=near.end)
        found = stopped.mmap(addr, size, PROT_NONE, flags | MAP_FIXED_NOREPLACE)
        if found != addr:  # a kernel before 4.17 takes the address as a hint
            stopped.munmap(found, size)
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        return addr

    def map_image(self, stopped: Stopped, image: SealedImage, *, near: Module | None = None) -> Region:
        """Map an image: its code, shared with other processes, then its private data area (zeros, writable).

        near: a module within whose reach it has to be. ``region.data`` is the address of the data area.
        """
        size = image.code_size + image.data_size
        try:
            (remote,) = stopped.send_fds([image.fd])
            try:
                addr = self._reserve(stopped, size, near)
                try:
                    code = PROT_READ | PROT_EXEC
                    stopped.mmap(addr, image.code_size, code, MAP_PRIVATE | MAP_FIXED, remote)
                    if image.data_size:
                        stopped.mprotect(addr + image.code_size, image.data_size, PROT_READ | PROT_WRITE)
                except OSError:
                    stopped.munmap(addr, size)
                    raise
            finally:
                stopped.close_fd(remote)
        except OSError as error:
            raise self._failed(image.name, error) from None
        return self._add(Region(addr, size, "image", image.name, image.code_size))

    def map_fd(self, stopped: Stopped, fd: int, size: int, *, writable: bool = True, name: str = "map") -> Region:
        """Map a descriptor of ours, shared: a map's memory."""
        prot = PROT_READ | PROT_WRITE if writable else PROT_READ
        try:
            addr = stopped.map_fd(fd, size, prot, MAP_SHARED)
        except OSError as error:
            raise self._failed(name, error) from None
        return self._add(Region(addr, page_up(size), "map", name))

    def map_fds(self, stopped: Stopped, maps: list[tuple[int, int, bool, str]]) -> list[Region]:
        """As :meth:`map_fd` for many (fd, size, writable, name) with one transfer of descriptors."""
        remotes = stopped.send_fds([fd for fd, _, _, _ in maps])
        out: list[Region] = []
        try:
            for remote, (_, size, writable, name) in zip(remotes, maps, strict=True):
                prot = PROT_READ | PROT_WRITE if writable else PROT_READ
                try:
                    addr = stopped.mmap(0, page_up(size), prot, MAP_SHARED, remote)
                except OSError as error:
                    raise self._failed(name, error) from None
                out.append(self._add(Region(addr, page_up(size), "map", name)))
        finally:
            for remote in remotes:
                stopped.close_fd(remote)
        return out

    def map_anonymous(self, stopped: Stopped, size: int, name: str, *, near: Module | None = None) -> Region:
        """Private, zeroed, writable memory: what the agent keeps per process."""
        size = page_up(size)
        try:
            addr = self._reserve(stopped, size, near)
            stopped.mprotect(addr, size, PROT_READ | PROT_WRITE)
        except OSError as error:
            raise self._failed(name, error) from None
        return self._add(Region(addr, size, "memory", name))

    def map_trampolines(self, stopped: Stopped, module: Module, size: int) -> Region:
        """Executable memory within reach of all of ``module``; it is filled by :meth:`write`."""
        size = page_up(size)
        name = f"trampolines of {module.name}"
        # A private mapping of an empty memfd rather than anonymous memory: its name is in /proc/PID/maps, so whoever
        # finds the patch finds out who made it.
        with _memfd(_TRAMPOLINE_NAME, size) as fd:
            try:
                (remote,) = stopped.send_fds([fd])
                try:
                    addr = self._reserve(stopped, size, module)
                    stopped.mmap(addr, size, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, remote)
                finally:
                    stopped.close_fd(remote)
            except OSError as error:
                raise self._failed(name, error) from None
        return self._add(Region(addr, size, "trampoline", name, size))

    def write(self, addr: int, data: bytes) -> None:
        """Write into a region; the target may run, as nothing of what is written is in use yet."""
        if not any(r.addr <= addr and addr + len(data) <= r.end for r in self.regions):
            raise AttachError(f"{len(data)} bytes at {addr:#x} are not in memory of ours")
        self.process.write(addr, data)

    def unmap(self, stopped: Stopped, region: Region) -> None:
        """Give a region back."""
        stopped.munmap(region.addr, region.size)
        self.regions.remove(region)

    def unmap_all(self, stopped: Stopped) -> None:
        """Give every region back, the last one first. ProcessError when one cannot."""
        for region in reversed(self.regions.copy()):
            try:
                self.unmap(stopped, region)
            except OSError as error:
                raise ProcessError(
                    f"{region.name} could not be unmapped from process {self.process.pid}: {error.strerror}"
                ) from None
