"""ELF relocatables of machine BPF as plain data: sections, symbols, relocations.

pyelftools decodes the structures; this module holds it inside the file's bounds, because a hostile header
may announce sections, symbols or sizes that would take hours or all memory to walk.
ELF for BPF: RFC 9669 says nothing of it; relocation types are of LLVM's ``llvm/docs/BPF`` and Linux
``Documentation/bpf/llvm_reloc.rst``.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import Section as ElfSection
from elftools.elf.sections import SymbolTableSection

from userbpf.errors import ObjectError, Place

__all__ = [
    "R_BPF_64_32",
    "R_BPF_64_64",
    "R_BPF_64_ABS64",
    "SHN_UNDEF",
    "ElfObject",
    "Reloc",
    "Sec",
    "Sym",
    "read_elf",
]

EM_BPF = 247
EM_NONE = 0
"""Objects of LLVM before 3.9 (2016) carry no machine number."""

R_BPF_64_64 = 1
R_BPF_64_ABS64 = 2
R_BPF_64_32 = 10
SHN_UNDEF = 0

MAX_BSS = 64 << 20
"""Zero bytes that one section may ask for without having them in the file."""

_MACHINES = {
    3: "x86 (32-bit)",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC (64-bit)",
    22: "S/390",
    40: "Arm (32-bit)",
    62: "x86-64",
    183: "AArch64",
    243: "RISC-V",
    258: "LoongArch",
}
_TYPES = {1: "object file", 2: "executable", 3: "shared library or executable", 4: "core dump"}


@dataclass(frozen=True, slots=True)
class Sec:
    """A section; ``data`` of a section without bytes in the file (.bss) is its zeros."""

    index: int
    name: str
    kind: str
    flags: int
    data: bytes = field(repr=False)

    @property
    def executable(self) -> bool:
        return bool(self.flags & 4) and self.kind == "SHT_PROGBITS"


@dataclass(frozen=True, slots=True)
class Sym:
    """A symbol. ``section`` is the index of its section, 0 for an undefined (extern) symbol."""

    name: str
    value: int
    size: int
    kind: str
    binding: str
    hidden: bool
    section: int

    @property
    def is_section(self) -> bool:
        return self.kind == "STT_SECTION"


@dataclass(frozen=True, slots=True)
class Reloc:
    """A relocation at byte ``offset`` of its section."""

    offset: int
    type: int
    sym: Sym


@dataclass(frozen=True)
class ElfObject:
    """``relocs`` is by index of the section that is patched, in order of offset."""

    sections: tuple[Sec, ...]
    symbols: tuple[Sym, ...] = field(repr=False)
    relocs: dict[int, tuple[Reloc, ...]] = field(repr=False)

    def section(self, name: str) -> Sec | None:
        """The first section called ``name``."""
        return next((sec for sec in self.sections if sec.name == name), None)


def read_elf(data: bytes, name: str) -> ElfObject:
    """Read a little-endian 64-bit BPF relocatable; ``name`` is the file's name in errors.

    Raises ObjectError that says what the file is when it is something else, or where it is damaged.
    """
    place = Place(file=name)
    _check_ident(data, place)
    try:
        return _read(data, place)
    except ObjectError:
        raise
    except (ELFError, UnicodeDecodeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # pyelftools lets the errors of its own lookups through on malformed input.
        detail = str(error).splitlines()[0] if str(error) else error.__class__.__name__
        raise ObjectError(f"the ELF file is damaged: {detail}", place=place, hint="compile it again") from error


def _check_ident(data: bytes, place: Place) -> None:
    """Everything that can be said from the first 20 bytes (elf(5), e_ident, e_type, e_machine)."""
    if not data:
        raise ObjectError("the file is empty", place=place, hint="give an object file made by clang -target bpf")
    if data[:4] != b"\x7fELF":
        what = "LLVM bitcode" if data[:2] == b"BC" else "C source" if b"#include" in data[:4096] else "not an ELF file"
        hint = "compile it first: userbpf cc" if what == "C source" else "give an object file made by clang -target bpf"
        raise ObjectError(f"this is {what}, not a BPF object", place=place, hint=hint)
    if len(data) < 64:
        raise ObjectError(f"the ELF file is truncated inside its header ({len(data)} bytes)", place=place)
    if data[5] == 2:
        machine = struct.unpack_from(">H", data, 18)[0]
        what = "BPF object" if machine == EM_BPF else f"{_MACHINES.get(machine, f'machine {machine}')} ELF file"
        raise ObjectError(f"this {what} is big-endian", place=place, hint="compile with clang -target bpfel")
    etype, machine = struct.unpack_from("<HH", data, 16)
    if machine not in (EM_BPF, EM_NONE):
        arch = _MACHINES.get(machine, f"ELF machine {machine}")
        what = _TYPES.get(etype, f"ELF file of type {etype}")
        raise ObjectError(f"this is an {arch} {what}, not a BPF object", place=place, hint="compile with -target bpf")
    if data[4] != 2:
        raise ObjectError("this is a 32-bit ELF file, BPF objects are 64-bit", place=place)
    if etype != 1:
        what = _TYPES.get(etype, f"file of type {etype}")
        raise ObjectError(f"this is a BPF {what}, not a relocatable object", place=place, hint="use clang -c")


def _read(data: bytes, place: Place) -> ElfObject:
    (shoff,) = struct.unpack_from("<Q", data, 40)
    shentsize, shnum = struct.unpack_from("<HH", data, 58)
    if shoff == 0 or shnum == 0:
        raise ObjectError("the ELF file has no sections", place=place)
    if shentsize != 64 or shoff + 64 * shnum > len(data):
        raise ObjectError("the ELF file is truncated: its section headers lie outside of it", place=place)
    elf = ELFFile(io.BytesIO(data))
    raw = [elf.get_section(i) for i in range(shnum)]
    sections = tuple(_section(i, sec, data, place) for i, sec in enumerate(raw))
    tables = [sec for sec in raw if isinstance(sec, SymbolTableSection)]
    symtab = next((sec for sec in tables if sec["sh_type"] == "SHT_SYMTAB"), None)
    if symtab is None:
        return ElfObject(sections, (), {})
    symbols = _symbols(symtab, sections)
    relocs: dict[int, tuple[Reloc, ...]] = {}
    for sec in raw:
        if isinstance(sec, RelocationSection) and sec["sh_type"] == "SHT_REL":
            target = sec["sh_info"]
            relocs[target] = relocs.get(target, ()) + _relocs(sec, symbols, place)
    return ElfObject(sections, symbols, {i: tuple(sorted(rs, key=lambda r: r.offset)) for i, rs in relocs.items()})


def _section(index: int, sec: ElfSection, data: bytes, place: Place) -> Sec:
    kind, offset, size = str(sec["sh_type"]), sec["sh_offset"], sec["sh_size"]
    if kind == "SHT_NULL":
        return Sec(index, "", kind, 0, b"")
    if kind == "SHT_NOBITS":
        if size > MAX_BSS:
            raise ObjectError(f"section {sec.name} asks for {size} zero bytes", place=place)
        return Sec(index, sec.name, kind, sec["sh_flags"], bytes(size))
    if offset + size > len(data):
        raise ObjectError(f"the ELF file is truncated: section {sec.name} ends outside of it", place=place)
    if kind in ("SHT_SYMTAB", "SHT_REL") and sec["sh_entsize"] != (24 if kind == "SHT_SYMTAB" else 16):
        raise ObjectError(f"section {sec.name} has entries of {sec['sh_entsize']} bytes", place=place)
    return Sec(index, sec.name, kind, sec["sh_flags"], data[offset : offset + size])


def _symbols(symtab: SymbolTableSection, sections: tuple[Sec, ...]) -> tuple[Sym, ...]:
    symbols = []
    for symbol in symtab.iter_symbols():
        info, index = symbol["st_info"], symbol["st_shndx"]
        # Reserved indices (SHN_ABS, SHN_COMMON) come as strings: such a symbol is in no section.
        section = (
            index if isinstance(index, int) and index < len(sections) else SHN_UNDEF if index == "SHN_UNDEF" else -1
        )
        name = sections[section].name if info["type"] == "STT_SECTION" and section > 0 else symbol.name
        hidden = symbol["st_other"]["visibility"] in ("STV_HIDDEN", "STV_INTERNAL")
        symbols.append(
            Sym(name, symbol["st_value"], symbol["st_size"], str(info["type"]), str(info["bind"]), hidden, section)
        )
    return tuple(symbols)


def _relocs(sec: RelocationSection, symbols: tuple[Sym, ...], place: Place) -> tuple[Reloc, ...]:
    relocs = []
    for reloc in sec.iter_relocations():
        index = reloc["r_info_sym"]
        if index >= len(symbols):
            raise ObjectError(f"section {sec.name} refers to symbol {index} of {len(symbols)}", place=place)
        relocs.append(Reloc(reloc["r_offset"], reloc["r_info_type"], symbols[index]))
    return tuple(relocs)
