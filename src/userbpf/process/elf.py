"""Symbols, function extents and relocations of one ELF file, at the file's own addresses.

lief reads the tables; the binary search table of .eh_frame_hdr gives the extents of functions that have no symbol
(stripped files). Sources: System V gABI (symbol table), LSB Core "Exception Frames" and ".eh_frame_hdr".
"""

from __future__ import annotations

import bisect
import difflib
import functools
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lief

from userbpf.errors import Place, ProcessError

__all__ = ["ElfFile", "Segment", "Symbol", "load_elf", "parse_elf"]

_VERSION_HIDDEN: Final = 0x8000
"""Bit of .gnu.version that marks ``name@VERSION`` against the default ``name@@VERSION``."""
_SDATA4: Final = 0x0B
_PCREL: Final = 0x10
_DATAREL: Final = 0x30


@dataclass(frozen=True, slots=True)
class Segment:
    """One PT_LOAD segment."""

    vaddr: int
    offset: int
    file_size: int
    mem_size: int
    executable: bool


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function symbol; ``size`` is 0 when the table does not tell."""

    name: str
    vaddr: int
    size: int
    ifunc: bool
    version: str
    default: bool
    exported: bool


@dataclass(frozen=True)
class ElfFile:
    """What attaching needs to know about one ELF file."""

    path: str
    machine: int
    entry: int
    relocatable: bool
    soname: str
    build_id: str
    segments: tuple[Segment, ...]
    functions: tuple[Symbol, ...]
    eh_frame_hdr: int | None
    binds: tuple[tuple[int, str, int], ...]
    """GOT slots: (address of the slot, symbol name or '', address of the IFUNC resolver or 0)."""
    image: bytes

    @functools.cached_property
    def by_name(self) -> dict[str, list[Symbol]]:
        names: dict[str, list[Symbol]] = {}
        for symbol in self.functions:
            names.setdefault(symbol.name, []).append(symbol)
        return names

    @functools.cached_property
    def by_address(self) -> dict[int, list[Symbol]]:
        starts: dict[int, list[Symbol]] = {}
        for symbol in self.functions:
            starts.setdefault(symbol.vaddr, []).append(symbol)
        return starts

    def read(self, vaddr: int, size: int) -> bytes:
        """Bytes of the file at an address; zeros of .bss are not in the file and not returned."""
        for segment in self.segments:
            inside = vaddr - segment.vaddr
            if 0 <= inside < segment.file_size:
                size = min(size, segment.file_size - inside)
                return self.image[segment.offset + inside : segment.offset + inside + size]
        return b""

    def offset_to_vaddr(self, offset: int) -> int | None:
        """The address at which a file offset is mapped executable, as a kernel uprobe's offset means it."""
        for segment in self.segments:
            if segment.executable and segment.offset <= offset < segment.offset + segment.file_size:
                return offset - segment.offset + segment.vaddr
        return None

    def is_code(self, vaddr: int) -> bool:
        return any(s.executable and s.vaddr <= vaddr < s.vaddr + s.file_size for s in self.segments)

    def find(self, name: str) -> Symbol | None:
        """The function ``name``, ``name@VERSION`` or ``name@@VERSION``; of several, the linker's default version."""
        base, _, version = name.partition("@")
        found = [s for s in self.by_name.get(base, ()) if not version or s.version == version.removeprefix("@")]
        found.sort(key=lambda s: (s.default, s.exported, s.size > 0), reverse=True)
        return found[0] if found else None

    def near_names(self, name: str, count: int = 3) -> list[str]:
        """Names of functions here that a person may have meant."""
        base = name.partition("@")[0]
        names = list(self.by_name)
        close = difflib.get_close_matches(base, names, count, 0.7)
        if len(close) < count and len(base) > 2:
            close += sorted((n for n in names if base in n and n not in close), key=len)[: count - len(close)]
        return close

    @functools.cached_property
    def starts(self) -> list[int]:
        """Addresses at which functions begin, by symbols and frame descriptions, sorted."""
        return sorted({s.vaddr for s in self.functions} | {start for start, _ in self.frames})

    @functools.cached_property
    def frames(self) -> list[tuple[int, int]]:
        """(function start, address of its FDE) from the search table of .eh_frame_hdr; empty when there is none."""
        if self.eh_frame_hdr is None:
            return []
        header = self.read(self.eh_frame_hdr, 12)
        # version 1, eh_frame pointer and count of 4 bytes, table of (signed 4-byte offsets from the header) pairs:
        # what every linker writes. Anything else is treated as no table.
        if len(header) < 12 or header[0] != 1 or header[2] != 0x03 or header[3] != _DATAREL | _SDATA4:
            return []
        count = struct.unpack_from("<I", header, 8)[0]
        table = self.read(self.eh_frame_hdr + 12, 8 * count)
        base = self.eh_frame_hdr
        return [(base + start, base + fde) for start, fde in struct.iter_unpack("<ii", table[: len(table) & -8])]

    def frame_extent(self, vaddr: int) -> tuple[int, int] | None:
        """(start, size) of the function around ``vaddr`` by its frame description entry."""
        index = bisect.bisect_right(self.frames, (vaddr, 1 << 64)) - 1
        if index < 0:
            return None
        start, fde = self.frames[index]
        head = self.read(fde, 16)
        if len(head) < 16 or self._pointer_encoding(fde + 4 - struct.unpack_from("<I", head, 4)[0]) != _PCREL | _SDATA4:
            return None
        size = struct.unpack_from("<I", head, 12)[0]
        return (start, size) if start <= vaddr < start + size else None

    def _pointer_encoding(self, cie: int) -> int | None:
        """The FDE pointer encoding that a CIE's augmentation names ('R'), None when it cannot be told."""
        body = self.read(cie, 64)
        if len(body) < 16 or body[8] not in (1, 3):
            return None
        augmentation, _, rest = body[9:].partition(b"\0")
        if not augmentation.startswith(b"z"):
            return None
        position = 0
        for _ in range(4):  # code and data alignment, return address register, length of the augmentation data
            while position < len(rest) and rest[position] & 0x80:
                position += 1
            position += 1
        for letter in augmentation[1:]:
            if position >= len(rest):
                return None
            if letter == ord("R"):
                return rest[position]
            if letter == ord("P"):
                position += 1 + {0x00: 8, 0x03: 4, 0x04: 8, 0x0B: 4, 0x0C: 8}.get(rest[position] & 0x0F, 64)
            elif letter == ord("L"):
                position += 1
        return None

    def extent(self, vaddr: int) -> tuple[int, int] | None:
        """(start, size) of the function around ``vaddr``: by symbol size, else by frame description, else None."""
        index = bisect.bisect_right(self._sized, (vaddr, 1 << 64))
        for start, size in reversed(self._sized[max(0, index - 8) : index]):
            if start <= vaddr < start + size:
                return start, size
        return self.frame_extent(vaddr)

    @functools.cached_property
    def _sized(self) -> list[tuple[int, int]]:
        return sorted({(s.vaddr, s.size) for s in self.functions if s.size})

    def next_start(self, vaddr: int) -> int | None:
        """Where the next function after ``vaddr`` begins, None behind the last one."""
        index = bisect.bisect_right(self.starts, vaddr)
        return self.starts[index] if index < len(self.starts) else None


def _symbol(symbol: lief.ELF.Symbol, exported: bool) -> Symbol:
    # The static table of linked files writes versions into the name: name@@VERSION.
    name, _, version = str(symbol.name).partition("@")
    default = not version or version.startswith("@")
    version = version.removeprefix("@")
    if exported and symbol.has_version and symbol.symbol_version is not None:
        default = not symbol.symbol_version.value & _VERSION_HIDDEN
        auxiliary = symbol.symbol_version.symbol_version_auxiliary
        version = str(auxiliary.name) if auxiliary is not None else ""
    ifunc = symbol.type == lief.ELF.Symbol.TYPE.GNU_IFUNC
    return Symbol(name, int(symbol.value), int(symbol.size), ifunc, version, default, exported)


def _functions(binary: lief.ELF.Binary) -> tuple[Symbol, ...]:
    """Defined functions of .dynsym, then those of .symtab that .dynsym does not have."""
    kinds = (lief.ELF.Symbol.TYPE.FUNC, lief.ELF.Symbol.TYPE.GNU_IFUNC)
    out: list[Symbol] = []
    for exported, table in ((True, binary.dynamic_symbols), (False, binary.symtab_symbols)):
        known = {(s.name, s.vaddr) for s in out}
        defined = (s for s in table if s.type in kinds and s.shndx != 0 and s.value)
        out.extend(s for s in (_symbol(d, exported) for d in defined) if (s.name, s.vaddr) not in known)
    return tuple(out)


def _binds(binary: lief.ELF.Binary) -> tuple[tuple[int, str, int], ...]:
    out: list[tuple[int, str, int]] = []
    named = (lief.ELF.Relocation.TYPE.X86_64_GLOB_DAT, lief.ELF.Relocation.TYPE.X86_64_JUMP_SLOT)
    for reloc in binary.relocations:
        if reloc.type in named and reloc.symbol is not None:
            out.append((int(reloc.address), str(reloc.symbol.name), 0))
        elif reloc.type == lief.ELF.Relocation.TYPE.X86_64_IRELATIVE:
            out.append((int(reloc.address), "", int(reloc.addend)))
    return tuple(out)


def _build_id(binary: lief.ELF.Binary) -> str:
    for note in binary.notes:
        if note.type == lief.ELF.Note.TYPE.GNU_BUILD_ID:
            return bytes(note.description).hex()
    return ""


def parse_elf(image: bytes, path: str) -> ElfFile:
    """Parse a linked ELF file (executable or shared object)."""
    lief.logging.disable()
    binary = lief.ELF.parse(io.BytesIO(image)) if image[:4] == b"\x7fELF" else None
    if binary is None or binary.header.identity_class != lief.ELF.Header.CLASS.ELF64:
        raise ProcessError("this is not a 64-bit ELF file", place=Place(file=path))
    frames = [int(s.virtual_address) for s in binary.segments if s.type == lief.ELF.Segment.TYPE.GNU_EH_FRAME]
    sonames = [str(e.name) for e in binary.dynamic_entries if isinstance(e, lief.ELF.DynamicSharedObject)]
    return ElfFile(
        path=path,
        machine=int(binary.header.machine_type.value),
        entry=int(binary.header.entrypoint),
        relocatable=binary.header.file_type == lief.ELF.Header.FILE_TYPE.DYN,
        soname=sonames[0] if sonames else "",
        build_id=_build_id(binary),
        segments=tuple(
            Segment(
                vaddr=int(s.virtual_address),
                offset=int(s.file_offset),
                file_size=int(s.physical_size),
                mem_size=int(s.virtual_size),
                executable=bool(int(s.flags.value) & 1),
            )
            for s in binary.segments
            if s.type == lief.ELF.Segment.TYPE.LOAD
        ),
        functions=_functions(binary),
        eh_frame_hdr=frames[0] if frames else None,
        binds=_binds(binary),
        image=image,
    )


@functools.lru_cache(maxsize=64)
def _load(path: str, _identity: tuple[int, int, int, int]) -> ElfFile:
    return parse_elf(Path(path).read_bytes(), path)


def load_elf(path: str) -> ElfFile:
    """Parse the ELF file at ``path``; one parse serves as long as the file is the same. :class:`OSError` as open(2)."""
    info = Path(path).stat()
    return _load(path, (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size))
