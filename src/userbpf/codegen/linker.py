"""From a relocatable ELF object (LLVM's or the C compiler's) to flat position-independent code.

Only instruction-relative relocations are possible in such code; an absolute address is refused, because the
same pages are mapped at different addresses in different processes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any, Final

from elftools.elf.elffile import ELFFile

from userbpf.codegen.image import PAGE, CodeImage
from userbpf.errors import CodegenError

_ALLOC: Final = 2
_WRITE: Final = 1
_R_PC32: Final = 2
_R_PLT32: Final = 4
_R_PC64: Final = 24
_SKIPPED: Final = (".eh_frame", ".note")


def link(elf: bytes, data_symbols: Mapping[str, int], data_size: int) -> CodeImage:
    """Lays out all code and constants and applies the relocations.

    data_symbols: undefined symbols that lie in the data area, by offset in it. Raises CodegenError for anything
    that cannot be position-independent: writable sections, absolute relocations, undefined symbols.
    """
    file = ELFFile(io.BytesIO(elf))
    placed: dict[int, int] = {}
    code = bytearray()
    for number, section in enumerate(file.iter_sections()):
        flags, size = section["sh_flags"], section["sh_size"]
        if not flags & _ALLOC or size == 0 or section.name.startswith(_SKIPPED):
            continue
        if flags & _WRITE:
            raise CodegenError(f"the object has writable data in {section.name}; code that runs in targets must not")
        align = max(section["sh_addralign"], 1)
        code += b"\xcc" * (-len(code) % align)
        placed[number] = len(code)
        code += section.data()
    code += b"\xcc" * (-len(code) % PAGE)
    symbols = _symbols(file, placed)
    for section in file.iter_sections():
        if section["sh_type"] == "SHT_RELA" and section["sh_info"] in placed:
            _relocate(file, code, section, placed, data_symbols)
    return CodeImage(bytes(code), data_size, symbols)


def _symbols(file: ELFFile, placed: Mapping[int, int]) -> dict[str, int]:
    table: Any = file.get_section_by_name(".symtab")
    return {
        symbol.name: placed[symbol["st_shndx"]] + symbol["st_value"]
        for symbol in table.iter_symbols()
        if symbol.name and symbol["st_shndx"] in placed
    }


def _relocate(
    file: ELFFile, code: bytearray, section: Any, placed: Mapping[int, int], data_symbols: Mapping[str, int]
) -> None:
    table: Any = file.get_section(section["sh_link"])
    start = placed[section["sh_info"]]
    for rela in section.iter_relocations():
        symbol = table.get_symbol(rela["r_info_sym"])
        index = symbol["st_shndx"]
        if index in placed:
            target = placed[index] + symbol["st_value"]
        elif index == "SHN_UNDEF" and symbol.name in data_symbols:
            target = len(code) + data_symbols[symbol.name]
        else:
            raise CodegenError(
                f"the generated code refers to {symbol.name or 'a section'!r}, which it does not contain"
            )
        where = start + rela["r_offset"]
        value = target + rela["r_addend"] - where
        kind = rela["r_info_type"]
        if kind in (_R_PC32, _R_PLT32):
            struct.pack_into("<i", code, where, value)
        elif kind == _R_PC64:
            struct.pack_into("<q", code, where, value)
        else:
            raise CodegenError(f"the generated code has an absolute relocation (type {kind}) against {symbol.name!r}")
