"""The ELF files that a process has mapped, and how a name such as ``libc.so.6`` or ``bash`` finds one of them."""

from __future__ import annotations

import difflib
import functools
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from userbpf.errors import Place, ProcessError
from userbpf.process.elf import ElfFile, Symbol, load_elf
from userbpf.process.mappings import PAGE, Mapping

__all__ = ["Function", "Module", "find_library", "group_modules"]

_LIBRARY_DIRS = (
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/local/lib",
    "/usr/local/lib64",
)
"""Where ld.so(8) and libbpf's resolve_full_path() look, with the multiarch directories of Debian."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function at its address in one process. ``size`` is 0 when neither symbol nor frame description tells it."""

    name: str
    addr: int
    size: int
    ifunc: bool = False

    @property
    def end(self) -> int:
        return self.addr + self.size


class Module:
    """One ELF file in a process. The file is parsed when something about its contents is asked for."""

    def __init__(self, pid: int, path: str, mappings: Sequence[Mapping]) -> None:
        self.pid = pid
        self.path = path
        self.mappings = tuple(mappings)
        self.start = mappings[0].start
        self.end = mappings[-1].end
        self.device = mappings[0].device
        self.inode = mappings[0].inode
        self.deleted = mappings[0].deleted

    def __repr__(self) -> str:
        return f"Module({self.path!r}, {self.start:#x}-{self.end:#x})"

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def contains(self, addr: int) -> bool:
        return any(addr in m for m in self.mappings)

    def file_path(self) -> str:
        """A path that opens the very file that is mapped, also from another mount namespace or after deletion.

        ``/proc/PID/map_files`` reaches any file but needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE (proc(5)).
        """
        first = self.mappings[0]
        candidates = [] if self.deleted else [self.path, f"/proc/{self.pid}/root{self.path}"]
        candidates += [f"/proc/{self.pid}/exe", f"/proc/{self.pid}/map_files/{first.start:x}-{first.end:x}"]
        for path in candidates:
            try:
                info = os.stat(path)
            except OSError:
                continue
            if info.st_ino == self.inode and stat.S_ISREG(info.st_mode) and os.access(path, os.R_OK):
                return path
        what = "has been deleted or replaced since the process started" if self.deleted else "cannot be read"
        raise ProcessError(
            f"the file behind {self.path} in process {self.pid} {what}",
            place=Place(file=self.path),
            hint="restart the process so that it maps the present file, or run as root to reach the deleted one"
            if self.deleted
            else "check the permissions of the file, or run as root",
        )

    @functools.cached_property
    def elf(self) -> ElfFile:
        try:
            return load_elf(self.file_path())
        except OSError as error:
            raise ProcessError(f"{self.path} cannot be read: {error.strerror}", place=Place(file=self.path)) from error

    @functools.cached_property
    def bias(self) -> int:
        """What is added to an address of the file to have the address in the process (0 for non-PIE executables)."""
        for mapping in self.mappings:
            for segment in self.elf.segments:
                first = segment.offset & -PAGE
                if first <= mapping.offset < segment.offset + segment.file_size:
                    return mapping.start - (mapping.offset - segment.offset + segment.vaddr)
        raise ProcessError(f"{self.path} is mapped in process {self.pid} in a way that no segment of it explains")

    @property
    def build_id(self) -> str:
        return self.elf.build_id

    @property
    def functions(self) -> tuple[Symbol, ...]:
        return self.elf.functions

    def addr(self, vaddr: int) -> int:
        return vaddr + self.bias

    def vaddr(self, addr: int) -> int:
        return addr - self.bias

    def at(self, symbol: Symbol) -> Function:
        """A symbol of this file as a function of this process, with the extent that is known for it."""
        extent = (symbol.vaddr, symbol.size) if symbol.size else self.elf.frame_extent(symbol.vaddr)
        size = extent[0] + extent[1] - symbol.vaddr if extent is not None else 0
        return Function(symbol.name, self.addr(symbol.vaddr), size, symbol.ifunc)

    def function(self, name: str) -> Function:
        """The function ``name`` (``name@VERSION``, too); ProcessError with near names when there is none."""
        symbol = self.elf.find(name)
        if symbol is None:
            near = self.elf.near_names(name)
            hint = f"did you mean {', '.join(near)}?" if near else "the file may be stripped: give an exported function"
            raise ProcessError(f"there is no function {name} in {self.path}", place=Place(file=self.path), hint=hint)
        return self.at(symbol)

    def near_names(self, name: str) -> list[str]:
        return self.elf.near_names(name)

    def function_around(self, addr: int) -> Function | None:
        """The function that ``addr`` lies in, None when neither symbols nor frame descriptions know one."""
        extent = self.elf.extent(self.vaddr(addr))
        if extent is None:
            return None
        start, size = extent
        names = sorted(
            self.elf.by_address.get(start, ()), key=lambda s: (not s.exported, s.name.startswith("_"), s.name)
        )
        name = names[0].name if names else f"sub_{start:x}"
        return Function(name, self.addr(start), size, bool(names) and all(s.ifunc for s in names))


def group_modules(pid: int, mappings: Iterable[Mapping]) -> list[Module]:
    """File mappings gathered into modules: a module has something executable and a file that begins with ELF."""
    groups: list[list[Mapping]] = []
    for mapping in mappings:
        if not mapping.file_backed or mapping.path.startswith(("/dev/", "/memfd:")):
            continue
        last = groups[-1][-1] if groups else None
        same = last is not None and (last.device, last.inode, last.path) == (
            mapping.device,
            mapping.inode,
            mapping.path,
        )
        if same and mapping.offset >= (last.offset if last is not None else 0):
            groups[-1].append(mapping)
        else:
            groups.append([mapping])
    return [Module(pid, g[0].path, g) for g in groups if any(m.executable for m in g)]


def _identity(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _search(name: str) -> list[str]:
    """Files that libbpf's resolve_full_path() would find for a name without a slash, not only the first: ours is to
    say which file of the process is meant, and its user may have another PATH."""
    if ".so" in name:
        dirs = [d for d in os.environ.get("LD_LIBRARY_PATH", "").split(":") if d]
        return [p for p in (os.path.join(d, name) for d in [*dirs, *_LIBRARY_DIRS]) if os.path.exists(p)]
    dirs = [d for d in f"{os.environ.get('PATH', '')}:/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin".split(":") if d]
    return [p for p in (os.path.join(d, name) for d in dict.fromkeys(dirs)) if os.access(p, os.X_OK)]


def find_library(pid: int, process_name: str, modules: Sequence[Module], name: str) -> Module:
    """The mapped module that ``name`` means.

    Order: the exact path as mapped; the same file by another path; for a bare name the file name or SONAME of a
    mapped module, then the file that PATH or the library directories give for it.
    """
    for module in modules:
        if module.path == name:
            return module
    wanted: list[str]
    if "/" in name:
        wanted = [f"/proc/{pid}/root{os.path.abspath(name)}", name]
    else:
        for module in modules:
            if module.name == name:
                return module
        for module in modules:
            try:
                if module.elf.soname == name:
                    return module
            except ProcessError:
                continue  # a mapped file that cannot be read cannot be the one that is meant by its SONAME
        wanted = _search(name)
    identities = {identity for identity in map(_identity, wanted) if identity is not None}
    inodes = {inode for _, inode in identities}
    real = {os.path.realpath(path) for path in wanted}
    for module in modules:
        if module.inode in inodes and (module.path in real or _identity(module.path) in identities):
            return module
    near = difflib.get_close_matches(os.path.basename(name), [m.name for m in modules], 3, 0.5)
    if "/" in name and not Path(name).exists():
        problem = f"{name} does not exist, and process {pid} ({process_name}) has not mapped it"
    else:
        problem = f"process {pid} ({process_name}) has not mapped {name}"
    hint = f"it has mapped {', '.join(near)}" if near else "list its files with: cat /proc/PID/maps"
    raise ProcessError(problem, hint=hint)
