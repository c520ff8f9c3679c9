"""Map declarations: BTF-defined (``.maps``), legacy ``SEC("maps")``, struct_ops, and global sections as maps.

The grammar of each is libbpf's (``parse_btf_map_def``, ``bpf_object__init_user_maps`` before 1.0,
``bpf_object__init_internal_map``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from userbpf.btf.btf import Btf
from userbpf.btf.types import Array, DataSec, Enum, Enum64, FuncProto, Kind, Linkage, Ptr, Struct, Var
from userbpf.errors import BtfError, ObjectError, Place
from userbpf.object.elf import R_BPF_64_ABS64, ElfObject, Reloc, Sec
from userbpf.object.model import Initialiser, MapKind, MapSpec
from userbpf.tables.maps import MapFlag, MapType

__all__ = ["MapTable", "global_map", "read_maps"]

_LEGACY = struct.Struct("<5I")
_STRUCT_OPS = (".struct_ops", ".struct_ops.link", "?.struct_ops", "?.struct_ops.link")
_OF_MAPS = (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)


@dataclass(frozen=True)
class MapTable:
    """Maps of an object by name, and where each lies: (section index, byte offset) → name."""

    maps: dict[str, MapSpec]
    places: dict[tuple[int, int], str]

    def add(self, spec: MapSpec, section: int, offset: int) -> None:
        """Enter a map that starts at ``offset`` of ``section``."""
        if spec.name in self.maps:
            raise ObjectError(f"two maps are called {spec.name!r}")
        self.maps[spec.name] = spec
        self.places[section, offset] = spec.name


def read_maps(elf: ElfObject, btf: Btf | None, place: Place) -> MapTable:
    """All maps of an object but its externs' (``.kconfig``). Raises ObjectError for a definition that is not one."""
    table = MapTable({}, {})
    for sec in elf.sections:
        at = replace(place, section=sec.name)
        try:
            if sec.name == ".maps":
                _read_btf_maps(table, elf, sec, btf)
            elif sec.name == "maps" or sec.name.startswith("maps/"):
                _read_legacy_maps(table, elf, sec, btf)
            elif sec.name in _STRUCT_OPS:
                _read_struct_ops(table, elf, sec, btf)
            else:
                kind = _global_kind(sec)
                if kind is not None and sec.data:
                    table.add(global_map(sec.name, kind, sec.data, btf), sec.index, 0)
        except (ObjectError, BtfError) as error:
            raise ObjectError(error.message, place=at, hint=error.hint) from error
    return table


# ---- global sections ----------------------------------------------------------------------------------


def _global_kind(sec: Sec) -> MapKind | None:
    def named(prefix: str) -> bool:
        return sec.name == prefix or sec.name.startswith(prefix + ".")

    if sec.kind == "SHT_NOBITS":
        return "bss" if named(".bss") else None
    if sec.kind == "SHT_PROGBITS" and named(".data"):
        return "data"
    if sec.kind == "SHT_PROGBITS" and named(".rodata"):
        return "rodata"
    return None


def global_map(name: str, kind: MapKind, initial: bytes, btf: Btf | None) -> MapSpec:
    """A global section as an array of one value, flagged as libbpf does.

    It can be mapped into user space when it holds any variable that is not static.
    """
    flags = int(MapFlag.RDONLY_PROG) if kind in ("rodata", "kconfig") else 0
    datasec = btf.find(name, Kind.DATASEC) if btf is not None else None
    if btf is not None and datasec is not None:
        for row in btf.expect(datasec, DataSec).vars:
            var = btf.type(row.type)
            if isinstance(var, Var) and var.linkage != Linkage.STATIC:
                flags |= int(MapFlag.MMAPABLE)
                break
    return MapSpec(
        name=name,
        type=int(MapType.ARRAY),
        key_size=4,
        value_size=len(initial),
        max_entries=1,
        flags=flags,
        value_btf=datasec or 0,
        btf=btf,
        kind=kind,
        initial=initial,
        datasec=datasec or 0,
    )


# ---- BTF-defined maps ---------------------------------------------------------------------------------


def _variables(sec: Sec, btf: Btf | None) -> tuple[Btf, list[tuple[Var, int, int]]]:
    """The types of an object, and the variables of a section with offset and size as they say."""
    datasec = btf.find(sec.name, Kind.DATASEC) if btf is not None else None
    if btf is None or datasec is None:
        raise ObjectError(f"section {sec.name} has no BTF", hint="compile with -g")
    found = []
    for row in btf.expect(datasec, DataSec).vars:
        var = btf.expect(row.type, Var)
        if row.offset + row.size > len(sec.data):
            raise ObjectError(f"map {var.name!r} ends outside its section")
        found.append((var, row.offset, row.size))
    return btf, found


def _read_btf_maps(table: MapTable, elf: ElfObject, sec: Sec, btf: Btf | None) -> None:
    types, variables = _variables(sec, btf)
    for var, offset, size in variables:
        if var.linkage == Linkage.EXTERN:
            raise ObjectError(f"map {var.name!r} is declared extern", hint="link the object that defines it")
        definition = types.resolved(var.type)
        if not isinstance(definition, Struct):
            raise ObjectError(f"map {var.name!r} is not a struct")
        spec = _Definition(types, var.name).read(definition)
        own = [reloc for reloc in elf.relocs.get(sec.index, ()) if offset <= reloc.offset < offset + size]
        table.add(_initialise(spec, definition, offset, own, elf), sec.index, offset)


def _initialise(spec: MapSpec, definition: Struct, start: int, relocs: list[Reloc], elf: ElfObject) -> MapSpec:
    """Attach what the map's ``values`` array is initialised with; it is the last member (``.rel.maps``)."""
    if not relocs:
        return spec
    last = definition.members[-1]
    if last.name != "values" or (spec.type not in _OF_MAPS and spec.type != MapType.PROG_ARRAY):
        raise ObjectError(f"map {spec.name!r} is initialised with addresses but holds neither maps nor programs")
    values = []
    for reloc in relocs:
        index, rest = divmod(reloc.offset - start - last.bit_offset // 8, 8)
        if reloc.type != R_BPF_64_ABS64 or rest or index < 0:
            raise ObjectError(f"map {spec.name!r} has an initialiser that is not an address")
        section = elf.sections[reloc.sym.section].name if reloc.sym.section > 0 else ""
        if spec.type == MapType.PROG_ARRAY:
            values.append(Initialiser(index, reloc.sym.name, "prog"))
        elif section == ".maps" and not reloc.sym.is_section:
            values.append(Initialiser(index, reloc.sym.name, "map"))
        else:
            raise ObjectError(f"map {spec.name!r} is initialised with {reloc.sym.name!r}, which is no map")
    return replace(spec, values=tuple(values))


class _Definition:
    """Reader of one map definition: a struct whose member types carry the numbers (bpf_helpers.h ``__uint`` …)."""

    def __init__(self, btf: Btf, name: str, *, is_inner: bool = False) -> None:
        self.btf = btf
        self.name = name
        self.is_inner = is_inner
        self.spec = MapSpec(name=name, type=0, key_size=0, value_size=0, max_entries=0, btf=btf)

    def read(self, definition: Struct) -> MapSpec:
        """The map that ``definition`` declares."""
        numbers: dict[str, Callable[[int], None]] = {
            "type": lambda n: self._set(type=n),
            "max_entries": lambda n: self._set(max_entries=n),
            "map_flags": lambda n: self._set(flags=n),
            "numa_node": lambda n: self._set(numa_node=n),
            "map_extra": lambda n: self._set(map_extra=n),
            "pinning": self._pinning,
            "key_size": lambda n: self._size("key", n),
            "value_size": lambda n: self._size("value", n),
        }
        for position, member in enumerate(definition.members):
            if member.name in numbers:
                numbers[member.name](self._number(member.name, member.type))
            elif member.name in ("key", "value"):
                self._typed(member.name, member.type)
            elif member.name == "values":
                if position != len(definition.members) - 1:
                    raise ObjectError(f"map {self.name!r}: values is not the last member")
                self._values(member.type)
            else:
                raise ObjectError(
                    f"map {self.name!r} has the unknown attribute {member.name!r}",
                    hint="known are type, max_entries, key, value, key_size, value_size, values, map_flags, "
                    "map_extra, numa_node, pinning",
                )
        if self.spec.type == 0:
            raise ObjectError(f"map {self.name!r} has no type", hint="add __uint(type, BPF_MAP_TYPE_…)")
        return self.spec

    def _set(self, **fields: int) -> None:
        self.spec = replace(self.spec, **fields)  # type: ignore[arg-type]  # only integer fields are set here

    def _number(self, what: str, type_id: int) -> int:
        """``__uint``: pointer to an array of so many elements. ``__ulong``: an enum with one value."""
        found = self.btf.resolved(type_id)
        if isinstance(found, Enum | Enum64) and len(found.values) == 1:
            return found.values[0].value & 0xFFFFFFFFFFFFFFFF
        if isinstance(found, Ptr):
            array = self.btf.resolved(found.type)
            if isinstance(array, Array):
                return array.nelems
        raise ObjectError(f"map {self.name!r}: {what} is not a number", hint=f"write __uint({what}, NUMBER)")

    def _pinning(self, number: int) -> None:
        if self.is_inner:
            raise ObjectError(f"inner map {self.name!r} can't be pinned")
        if number not in (0, 1):
            raise ObjectError(f"map {self.name!r}: pinning {number} is neither LIBBPF_PIN_NONE nor LIBBPF_PIN_BY_NAME")
        self._set(pinning=number)

    def _size(self, what: str, size: int) -> None:
        known = self.spec.key_size if what == "key" else self.spec.value_size
        if known and known != size:
            raise ObjectError(f"map {self.name!r}: {what}_size {size} contradicts the {known} bytes said before")
        if what == "key":
            self._set(key_size=size)
        else:
            self._set(value_size=size)

    def _typed(self, what: str, type_id: int) -> None:
        pointer = self.btf.resolved(type_id)
        if not isinstance(pointer, Ptr):
            raise ObjectError(f"map {self.name!r}: {what} is not a type", hint=f"write __type({what}, TYPE)")
        self._size(what, self.btf.size_of(pointer.type))
        if what == "key":
            self._set(key_btf=pointer.type)
        else:
            self._set(value_btf=pointer.type)

    def _values(self, type_id: int) -> None:
        """``__array(values, T)``: an array of pointers to inner map definitions, or to programs."""
        array = self.btf.resolved(type_id)
        pointer = self.btf.resolved(array.type) if isinstance(array, Array) else None
        if not isinstance(array, Array) or not isinstance(pointer, Ptr):
            raise ObjectError(f"map {self.name!r}: values is not an array of pointers", hint="write __array(values, T)")
        if self.is_inner:
            raise ObjectError(f"inner map {self.name!r} holds maps itself: two levels are the most")
        if self.spec.value_size not in (0, 4):
            raise ObjectError(f"map {self.name!r}: values of {self.spec.value_size} bytes can't hold maps or programs")
        self._set(value_size=4)
        target = self.btf.resolved(pointer.type)
        if self.spec.type == MapType.PROG_ARRAY:
            if not isinstance(target, FuncProto):
                raise ObjectError(f"map {self.name!r}: values of a program array are functions")
        elif self.spec.type in _OF_MAPS:
            if not isinstance(target, Struct):
                raise ObjectError(f"map {self.name!r}: values is not an array of map definitions")
            inner = _Definition(self.btf, f"{self.name}.inner", is_inner=True).read(target)
            self.spec = replace(self.spec, inner=inner)
        else:
            raise ObjectError(f"map {self.name!r} has values, but is neither a map of maps nor a program array")


# ---- legacy and struct_ops ----------------------------------------------------------------------------


def _read_legacy_maps(table: MapTable, elf: ElfObject, sec: Sec, btf: Btf | None) -> None:
    """``struct bpf_map_def`` one after the other; what is longer than we know must be zero."""
    symbols = [
        sym
        for sym in elf.symbols
        if sym.section == sec.index
        and sym.kind in ("STT_OBJECT", "STT_NOTYPE")
        and sym.name
        and not sym.name.startswith(".L")
    ]
    symbols.sort(key=lambda sym: sym.value)
    if not symbols:
        return
    size, rest = divmod(len(sec.data), len(symbols))
    if rest or size < 16:
        raise ObjectError(f"{len(symbols)} map definitions do not fit into {len(sec.data)} bytes")
    for sym in symbols:
        data = sec.data[sym.value : sym.value + size]
        if len(data) < size:
            raise ObjectError(f"map {sym.name!r} ends outside its section")
        if any(data[_LEGACY.size :]):
            raise ObjectError(
                f"map {sym.name!r} has attributes beyond struct bpf_map_def",
                hint='declare it with BTF in SEC(".maps")',
            )
        kind, key, value, entries, flags = _LEGACY.unpack(data[: _LEGACY.size].ljust(_LEGACY.size, b"\0"))
        spec = MapSpec(sym.name, kind, key, value, entries, flags, btf=btf)
        table.add(_annotate(spec), sec.index, sym.value)


def _annotate(spec: MapSpec) -> MapSpec:
    """Key and value types of a legacy map: ``BPF_ANNOTATE_KV_PAIR`` makes a struct ``____btf_map_NAME``."""
    btf = spec.btf
    found = btf.find(f"____btf_map_{spec.name}", Kind.STRUCT) if btf is not None else None
    if btf is None or found is None:
        return spec
    members = {member.name: member.type for member in btf.expect(found, Struct).members}
    key, value = members.get("key", 0), members.get("value", 0)
    if not key or not value or (btf.size_of(key), btf.size_of(value)) != (spec.key_size, spec.value_size):
        return spec
    return replace(spec, key_btf=key, value_btf=value)


def _read_struct_ops(table: MapTable, elf: ElfObject, sec: Sec, btf: Btf | None) -> None:
    """Each variable is a map of type STRUCT_OPS whose value is the struct; its members name programs."""
    types, variables = _variables(sec, btf)
    for var, offset, size in variables:
        programs = tuple(
            Initialiser(reloc.offset - offset, reloc.sym.name, "prog")
            for reloc in elf.relocs.get(sec.index, ())
            if offset <= reloc.offset < offset + size
        )
        spec = MapSpec(
            name=var.name,
            type=int(MapType.STRUCT_OPS),
            key_size=4,
            value_size=size,
            max_entries=1,
            value_btf=var.type,
            btf=types,
            initial=sec.data[offset : offset + size],
            values=programs,
        )
        table.add(spec, sec.index, offset)
