"""The face of an object file: :meth:`Object.parse` turns its bytes into programs and maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from userbpf.btf.btf import Btf
from userbpf.btf.datasec import fix_datasecs
from userbpf.btf.ext import Ext
from userbpf.errors import BtfError, ObjectError, Place, UserBpfError
from userbpf.object.elf import ElfObject, read_elf
from userbpf.object.externs import KCONFIG, Externs, Kernel, collect_externs
from userbpf.object.linker import Function, Linker, find_functions
from userbpf.object.maps import global_map, read_maps
from userbpf.object.model import MapSpec, Program
from userbpf.tables.programs import parse_section

__all__ = ["Object"]

TEXT = ".text"


def _no_btf() -> Btf | None:
    return None


@dataclass(frozen=True)
class Object:
    """A parsed object file.

    ``errors`` holds, by program name, why a program could not be linked; the others stay usable.
    """

    name: str
    programs: dict[str, Program]
    maps: dict[str, MapSpec]
    btf: Btf | None = field(repr=False)
    btf_ext: Ext | None = field(repr=False)
    license: str
    kversion: int
    errors: dict[str, UserBpfError] = field(default_factory=dict)

    @classmethod
    def parse(
        cls,
        data: bytes,
        *,
        name: str,
        kernel_btf: Callable[[], Btf | None] = _no_btf,
        kernel: Kernel | None = None,
    ) -> Object:
        """Read, link and CO-RE-relocate all programs of an ELF relocatable.

        name: the file's name, for errors. kernel_btf: gives the types that programs will meet, called when the first
        CO-RE relocation is met; without any the program's own types stand. kernel: answers ``.kconfig`` externs.

        Raises ObjectError or BtfError when the file as a whole cannot be used.
        """
        place = Place(file=name)
        elf = read_elf(data, name)
        try:
            btf, externs = _read_types(elf, kernel)
            ext_sec = elf.section(".BTF.ext")
            ext = Ext.parse(ext_sec.data, btf) if btf is not None and ext_sec is not None else None
            maps = read_maps(elf, btf, place)
            if externs.kconfig:
                maps.add(global_map(KCONFIG, "kconfig", externs.kconfig, btf), -1, 0)
            functions = find_functions(elf, btf, ext)
        except (BtfError, ObjectError) as error:
            raise error.__class__(error.message, place=replace(error.place, file=name), hint=error.hint) from error
        entries = _entries(functions)
        if not entries and not maps.maps:
            raise ObjectError(
                "the object has neither programs nor maps",
                place=place,
                hint='a program is a function with SEC("…"), for instance SEC("uprobe")',
            )
        license_ = _license(elf)
        linker = Linker(elf, btf, ext, functions, maps, externs, kernel_btf)
        programs, errors = _link_all(linker, entries, license_, name)
        return cls(name, programs, maps.maps, btf, ext, license_, _version(elf), errors)


def _read_types(elf: ElfObject, kernel: Kernel | None) -> tuple[Btf | None, Externs]:
    """The object's BTF with data sections completed, and its externs."""
    sec = elf.section(".BTF")
    if sec is None:
        return None, collect_externs(elf, None, kernel)
    btf = Btf.parse(sec.data)
    externs = collect_externs(elf, btf, kernel)
    sizes = {s.name: len(s.data) for s in elf.sections}
    sizes[KCONFIG] = len(externs.kconfig)
    offsets = {s.name: s.value for s in elf.symbols if s.section > 0 and s.binding != "STB_LOCAL"}
    offsets |= {extern.name: extern.offset for extern in externs.table.values()}
    return fix_datasecs(btf, sizes, offsets), externs


def _entries(functions: list[Function]) -> list[Function]:
    """Functions that are programs: those outside ``.text``, or the only one there is (libbpf's prog_is_subprog)."""
    if len(functions) == 1:
        return functions
    return [f for f in functions if f.section.name != TEXT and f.is_entry]


def _link_all(
    linker: Linker, entries: list[Function], license_: str, name: str
) -> tuple[dict[str, Program], dict[str, UserBpfError]]:
    programs: dict[str, Program] = {}
    errors: dict[str, UserBpfError] = {}
    for entry in entries:
        try:
            section = parse_section(entry.section.name)
            programs[entry.name] = linker.link(entry, section, license_, name)
        except UserBpfError as error:
            at = replace(error.place, file=name, section=entry.section.name, prog=entry.name)
            errors[entry.name] = ObjectError(error.message, place=at, hint=error.hint)
    return programs, errors


def _license(elf: ElfObject) -> str:
    sec = elf.section("license")
    return sec.data.split(b"\0", 1)[0].decode("utf-8", "replace") if sec is not None else ""


def _version(elf: ElfObject) -> int:
    sec = elf.section("version")
    return int.from_bytes(sec.data[:4], "little") if sec is not None else 0
