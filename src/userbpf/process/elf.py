"""Symbols, function extents and relocations of one ELF file, at the file's own addresses.

pyelftools reads the headers; the tables are unpacked whole (importing lief, which would do both, takes 0.35 s, a
third of what an attachment may take from command to first event). The binary search table of .eh_frame_hdr gives the
extents of functions that have no symbol (stripped files). Sources: System V gABI (symbol table), LSB Core "Exception
Frames" and ".eh_frame_hdr".
"""

from __future__ import annotations

import bisect
import difflib
import functools
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

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
    soname: str
    build_id: str
    segments: tuple[Segment, ...]
    functions: tuple[Symbol, ...]
    eh_frame_hdr: int | None
    go: bool
    """Made by the Go toolchain: its functions run on stacks of a few kilobytes."""
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


_SYM: Final = struct.Struct("<IBBHQQ")
_RELA: Final = struct.Struct("<QQq")
_STT_FUNC, _STT_GNU_IFUNC = 2, 10
_R_GLOB_DAT, _R_JUMP_SLOT, _R_IRELATIVE = 6, 7, 37


def _text(strings: bytes, offset: int) -> str:
    return strings[offset : strings.find(b"\0", offset)].decode("utf-8", "replace")


def _linked(elf: ELFFile, section: Any) -> bytes:
    """The string table that a section names."""
    return bytes(elf.get_section(section["sh_link"]).data())


def _version_names(elf: ELFFile) -> dict[int, str]:
    """Version index → name, of the versions that this file defines (.gnu.version_d)."""
    names: dict[int, str] = {}
    for section in elf.iter_sections(type="SHT_GNU_verdef"):
        table: Any = section
        for version, auxiliaries in table.iter_versions():
            names[version["vd_ndx"]] = next(auxiliaries).name
    return names


def _dynamic_functions(elf: ELFFile) -> Iterator[Symbol]:
    """Functions of a file without sections (sstrip), by its hash tables; these know no versions."""
    for found in elf.iter_segments(type="PT_DYNAMIC"):
        segment: Any = found
        for symbol in segment.iter_symbols():
            info, value = symbol["st_info"]["type"], symbol["st_value"]
            if info in ("STT_FUNC", "STT_LOOS") and symbol["st_shndx"] != "SHN_UNDEF" and value:
                yield Symbol(symbol.name, value, symbol["st_size"], info == "STT_LOOS", "", True, True)


def _functions(elf: ELFFile) -> tuple[Symbol, ...]:
    """Defined functions of .dynsym, then those of .symtab that .dynsym does not have.

    The tables are read as a whole: a large program has hundreds of thousands of symbols.
    """
    if elf.num_sections() == 0:
        return tuple(_dynamic_functions(elf))
    out: list[Symbol] = []
    known: set[tuple[str, int]] = set()
    versions: tuple[int, ...] = ()
    for section in elf.iter_sections(type="SHT_GNU_versym"):
        versions = tuple(value for (value,) in struct.iter_unpack("<H", section.data()))
    names = _version_names(elf) if versions else {}
    for kind, exported in (("SHT_DYNSYM", True), ("SHT_SYMTAB", False)):
        for section in elf.iter_sections(type=kind):
            strings, data = _linked(elf, section), section.data()
            rows = _SYM.iter_unpack(data[: len(data) - len(data) % _SYM.size])
            for index, (name_at, info, _, shndx, value, size) in enumerate(rows):
                if info & 15 not in (_STT_FUNC, _STT_GNU_IFUNC) or not shndx or not value:
                    continue
                # The static table of linked files writes versions into the name: name@@VERSION.
                name, _, version = _text(strings, name_at).partition("@")
                default = not version or version.startswith("@")
                version = version.removeprefix("@")
                if exported and index < len(versions):
                    default = not versions[index] & _VERSION_HIDDEN
                    version = names.get(versions[index] & ~_VERSION_HIDDEN, "")
                if (name, value) not in known:
                    out.append(Symbol(name, value, size, info & 15 == _STT_GNU_IFUNC, version, default, exported))
            known.update((symbol.name, symbol.vaddr) for symbol in out)
    return tuple(out)


def _binds(elf: ELFFile) -> tuple[tuple[int, str, int], ...]:
    out: list[tuple[int, str, int]] = []
    for section in elf.iter_sections(type="SHT_RELA"):
        symbols: Any = elf.get_section(section["sh_link"])
        data, table, strings = section.data(), b"", b""
        if isinstance(symbols, SymbolTableSection):
            table, strings = symbols.data(), _linked(elf, symbols)
        for address, info, addend in _RELA.iter_unpack(data[: len(data) - len(data) % _RELA.size]):
            kind, index = info & 0xFFFFFFFF, info >> 32
            if kind in (_R_GLOB_DAT, _R_JUMP_SLOT) and (index + 1) * _SYM.size <= len(table):
                out.append((address, _text(strings, _SYM.unpack_from(table, index * _SYM.size)[0]), 0))
            elif kind == _R_IRELATIVE:
                out.append((address, "", addend))
    return tuple(out)


def _build_id(elf: ELFFile) -> str:
    for found in elf.iter_segments(type="PT_NOTE"):
        segment: Any = found
        for note in segment.iter_notes():
            if note["n_type"] == "NT_GNU_BUILD_ID":
                return str(note["n_desc"])
    return ""


def _soname(elf: ELFFile) -> str:
    for found in elf.iter_segments(type="PT_DYNAMIC"):
        segment: Any = found
        for tag in segment.iter_tags("DT_SONAME"):
            return str(tag.soname)
    return ""


def parse_elf(image: bytes, path: str) -> ElfFile:
    """Parse a linked ELF file (executable or shared object). ProcessError when it is damaged or something else."""
    if image[:5] != b"\x7fELF\x02":
        raise ProcessError("this is not a 64-bit ELF file", place=Place(file=path))
    try:
        elf = ELFFile(io.BytesIO(image))
        loads = list(elf.iter_segments(type="PT_LOAD"))
        frames = [segment["p_vaddr"] for segment in elf.iter_segments(type="PT_GNU_EH_FRAME")]
        return ElfFile(
            path=path,
            machine=int.from_bytes(image[18:20], "little"),
            entry=elf["e_entry"],
            soname=_soname(elf),
            build_id=_build_id(elf),
            segments=tuple(Segment(s["p_vaddr"], s["p_offset"], s["p_filesz"], bool(s["p_flags"] & 1)) for s in loads),
            functions=_functions(elf),
            eh_frame_hdr=frames[0] if frames else None,
            go=any(s.name == ".go.buildinfo" or s.name.endswith("gopclntab") for s in elf.iter_sections()),
            binds=_binds(elf),
            image=image,
        )
    except (ELFError, ConstructError, struct.error, KeyError, ValueError, AttributeError, OSError) as error:
        raise ProcessError(f"the ELF file is damaged: {error}", place=Place(file=path)) from error


@functools.lru_cache(maxsize=64)
def _load(path: str, _identity: tuple[int, int, int, int]) -> ElfFile:
    return parse_elf(Path(path).read_bytes(), path)


def load_elf(path: str) -> ElfFile:
    """Parse the ELF file at ``path``; one parse serves as long as the file is the same. :class:`OSError` as open(2)."""
    info = Path(path).stat()
    return _load(path, (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size))
