"""From the functions of an object to one flat, CO-RE-relocated program with its subprograms behind it.

As libbpf's ``bpf_object__relocate``: CO-RE first, then data and calls, each subprogram appended once a program.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol, TypeVar

from userbpf.btf.btf import Btf
from userbpf.btf.core import Resolver, patch
from userbpf.btf.ext import Ext
from userbpf.btf.types import Func, Kind, Linkage
from userbpf.errors import ObjectError, Place, UserBpfError
from userbpf.isa import Insn, decode
from userbpf.isa.opcodes import (
    BPF_CALL,
    BPF_JMP,
    BPF_PSEUDO_CALL,
    BPF_PSEUDO_FUNC,
    BPF_PSEUDO_KFUNC_CALL,
    BPF_PSEUDO_MAP_IDX,
    BPF_PSEUDO_MAP_IDX_VALUE,
    LDDW,
)
from userbpf.object.elf import R_BPF_64_32, R_BPF_64_64, SHN_UNDEF, ElfObject, Reloc, Sec, Sym
from userbpf.object.externs import KCONFIG, KSYMS, Externs
from userbpf.object.maps import MapTable
from userbpf.object.model import KFUNC_POISON, CoreFailure, Ksym, LineInfo, MapSpec, Program, Subprog
from userbpf.tables.programs import Section

__all__ = ["Function", "Linker", "find_functions"]

MAX_INSNS = 1 << 20
"""Slots of one linked program: the kernel's BPF_COMPLEXITY_LIMIT_INSNS."""
MAX_TOTAL = 1 << 24
"""Slots of all programs of an object: a small file of many programs may share one large subprogram."""
CALL = BPF_JMP | BPF_CALL


@dataclass(frozen=True)
class Function:
    """A function of the file: slots ``start`` to ``end`` of its section. A static one is never a program."""

    name: str
    section: Sec
    start: int
    end: int
    is_entry: bool
    is_global: bool
    func_btf: int


@dataclass(frozen=True)
class _Body:
    """A function's instructions after CO-RE, and the slots that refer elsewhere, with their relocations."""

    insns: tuple[Insn, ...]
    references: tuple[tuple[int, Reloc | None], ...]
    failures: dict[int, str]


@dataclass
class _Draft:
    """A program while it is linked."""

    functions: list[Function]
    starts: dict[tuple[int, int], int]
    insns: list[Insn]
    size: int = 0
    maps: list[str] = field(default_factory=list)
    ksyms: dict[str, tuple[bool, list[int]]] = field(default_factory=dict)
    failures: list[CoreFailure] = field(default_factory=list)


def find_functions(elf: ElfObject, btf: Btf | None, ext: Ext | None) -> list[Function]:
    """All functions of executable sections, in order of section and place.

    Raises ObjectError when a symbol does not lie on whole instructions inside its section, or two overlap.
    """
    found: dict[tuple[int, int], Function] = {}
    known = {(name, row.offset): row.type_id for name, rows in ext.funcs.items() for row in rows} if ext else {}
    for sym in elf.symbols:
        if sym.kind != "STT_FUNC" or sym.section <= 0 or not elf.sections[sym.section].executable:
            continue
        sec = elf.sections[sym.section]
        if sym.value % 8 or sym.size % 8 or sym.size == 0 or sym.value + sym.size > len(sec.data):
            raise ObjectError(
                f"function {sym.name!r} [{sym.value}, +{sym.size}] is not whole instructions of its section",
                place=Place(section=sec.name),
            )
        func_btf = known.get((sec.name, sym.value)) or (btf and btf.find(sym.name, Kind.FUNC)) or 0
        is_entry = sym.binding != "STB_LOCAL"
        is_global = is_entry and not sym.hidden
        if btf is not None and func_btf:
            declared = btf.type(func_btf)
            is_global = is_global and isinstance(declared, Func) and declared.linkage == Linkage.GLOBAL
        function = Function(sym.name, sec, sym.value // 8, (sym.value + sym.size) // 8, is_entry, is_global, func_btf)
        found.setdefault((sym.section, function.start), function)
    functions = [found[key] for key in sorted(found)]
    for one, other in pairwise(functions):
        if one.section is other.section and other.start < one.end:
            raise ObjectError(
                f"functions {one.name!r} and {other.name!r} overlap", place=Place(section=one.section.name)
            )
    return functions


class _Placed(Protocol):
    """A record at a byte offset of its section."""

    @property
    def offset(self) -> int: ...


_Record = TypeVar("_Record", bound=_Placed)


def _between(records: Sequence[_Record], first: int, last: int) -> Sequence[_Record]:
    """The records (in order of offset) from byte ``first`` up to before ``last``."""
    low = bisect_left(records, first, key=lambda record: record.offset)
    return records[low : bisect_left(records, last, key=lambda record: record.offset)]


def _slot(offset: int) -> int:
    if offset % 8:
        raise ObjectError(f"a relocation at byte {offset} of its function is not at an instruction")
    return offset // 8


class Linker:
    """Links programs of one object. ``target_btf`` is called when the first CO-RE relocation is met."""

    def __init__(
        self,
        elf: ElfObject,
        btf: Btf | None,
        ext: Ext | None,
        functions: list[Function],
        maps: MapTable,
        externs: Externs,
        target_btf: Callable[[], Btf | None],
    ) -> None:
        self.elf = elf
        self.btf = btf
        self.ext = ext
        self.maps = maps
        self.externs = externs
        self._functions = {(f.section.index, f.start): f for f in functions}
        self._bodies: dict[tuple[int, int], _Body] = {}
        self._target_btf = target_btf
        self._resolver: Resolver | None = None
        self._total = 0
        self._map_sections = {section for section, _ in maps.places}
        self._globals = {section for (section, _), name in maps.places.items() if maps.maps[name].kind != "map"}

    def link(self, entry: Function, section: Section, license_: str, object_name: str) -> Program:
        """The program that starts at ``entry``. Raises UserBpfError with the place of what cannot be linked."""
        draft = _Draft([], {}, [])
        self._place(draft, entry)
        at_entry = Place(object_name, entry.section.name, entry.name)
        for position, function in enumerate(draft.functions):
            try:
                self._append(draft, function)
            except UserBpfError as error:
                inside = function.name if position else None
                message = f"{error.message} (in {inside})" if inside else error.message
                place = replace(at_entry, insn=error.place.insn)
                raise ObjectError(message, place=place, hint=error.hint) from error
            self._total += function.end - function.start
            if self._total > MAX_TOTAL:
                raise ObjectError(f"all programs together exceed {MAX_TOTAL} instructions", place=at_entry)
        subprogs = [
            Subprog(f.name, start, start + f.end - f.start, f.is_global, f.func_btf) for f, start in self._placed(draft)
        ]
        maps: list[MapSpec] = [self.maps.maps[name] for name in draft.maps]
        ksyms = [
            Ksym(name, "func" if is_func else "var", self.externs.table[name].weak, tuple(insns))
            for name, (is_func, insns) in draft.ksyms.items()
        ]
        return Program(
            name=entry.name,
            section=section,
            insns=tuple(draft.insns),
            maps=tuple(maps),
            subprogs=tuple(subprogs),
            lines=tuple(self._lines(draft)),
            btf=self.btf,
            license=license_,
            object_name=object_name,
            ksyms=tuple(ksyms),
            core_failures=tuple(draft.failures),
        )

    # ---- layout ---------------------------------------------------------------------------------

    def _place(self, draft: _Draft, function: Function) -> int:
        """The slot at which ``function`` starts in the program; it is appended when it is new there."""
        key = (function.section.index, function.start)
        start = draft.starts.get(key)
        if start is None:
            start = draft.starts[key] = draft.size
            draft.size += function.end - function.start
            if draft.size > MAX_INSNS:
                raise ObjectError(f"the program has more than {MAX_INSNS} instructions with its subprograms")
            draft.functions.append(function)
        return start

    def _placed(self, draft: _Draft) -> Iterator[tuple[Function, int]]:
        for function in draft.functions:
            yield function, draft.starts[function.section.index, function.start]

    def _lines(self, draft: _Draft) -> Iterator[LineInfo]:
        if self.ext is None:
            return
        for function, start in self._placed(draft):
            records = self.ext.lines.get(function.section.name, ())
            for record in _between(records, function.start * 8, function.end * 8):
                at = record.offset // 8 - function.start + start
                yield LineInfo(at, record.file, record.line, record.column, record.text)

    # ---- bodies ---------------------------------------------------------------------------------

    def _body(self, function: Function) -> _Body:
        key = (function.section.index, function.start)
        body = self._bodies.get(key)
        if body is None:
            body = self._bodies[key] = self._read_body(function)
        return body

    def _read_body(self, function: Function) -> _Body:
        first, last = function.start * 8, function.end * 8
        insns = list(decode(function.section.data[first:last]))
        relocs: dict[int, Reloc] = {}
        for reloc in _between(self.elf.relocs.get(function.section.index, ()), first, last):
            relocs[_slot(reloc.offset - first)] = reloc
        failures: dict[int, str] = {}
        core = self.ext.core.get(function.section.name, ()) if self.ext is not None else ()
        for question in _between(core, first, last):
            index = _slot(question.offset - first)
            try:
                answer = self._core_resolver().resolve(question)
                if answer.poison:
                    failures[index] = answer.poison
                patch(insns, index, answer)
            except UserBpfError as error:
                raise ObjectError(error.message, place=Place(insn=index), hint=error.hint) from error
        references = [
            (index, relocs.get(index))
            for index, insn in enumerate(insns)
            if index in relocs or (insn.op == CALL and insn.src == BPF_PSEUDO_CALL)
        ]
        return _Body(tuple(insns), tuple(references), failures)

    def _core_resolver(self) -> Resolver:
        """Types of the target, else the program's own: then everything is where the compiler put it."""
        if self._resolver is None:
            if self.btf is None:
                raise ObjectError("the object has CO-RE relocations but no BTF", hint="compile with -g")
            self._resolver = Resolver(self.btf, self._target_btf() or self.btf)
        return self._resolver

    # ---- references -----------------------------------------------------------------------------

    def _append(self, draft: _Draft, function: Function) -> None:
        body = self._body(function)
        base = draft.starts[function.section.index, function.start]
        out = draft.insns
        out.extend(body.insns)
        draft.failures.extend(CoreFailure(base + i, reason) for i, reason in sorted(body.failures.items()))
        for index, reloc in body.references:
            insn = body.insns[index]
            try:
                if reloc is not None and insn.op == LDDW and reloc.type == R_BPF_64_64:
                    if index + 1 >= len(body.insns):
                        raise ObjectError("a wide instruction is cut off at the end of its function")
                    self._address(draft, base + index, insn, reloc.sym)
                elif insn.op == CALL and insn.src == BPF_PSEUDO_CALL and (reloc is None or reloc.type == R_BPF_64_32):
                    self._call(draft, base + index, insn, function, index, reloc)
                elif reloc is not None:
                    raise ObjectError(
                        f"relocation of type {reloc.type} against {reloc.sym.name!r} at an instruction that has none"
                    )
            except ObjectError as error:
                raise ObjectError(error.message, place=Place(insn=base + index), hint=error.hint) from error

    def _call(self, draft: _Draft, at: int, insn: Insn, function: Function, index: int, reloc: Reloc | None) -> None:
        """A call of a subprogram: by function symbol, by section symbol and ``imm``, or relative in its section."""
        if reloc is not None and reloc.sym.section == SHN_UNDEF:
            extern = self._extern(reloc.sym)
            if extern != KSYMS:
                raise ObjectError(f"{reloc.sym.name!r} is called, but is no function")
            number = self._use_ksym(draft, reloc.sym.name, at, is_func=True)
            draft.insns[at] = insn._replace(src=BPF_PSEUDO_KFUNC_CALL, imm=KFUNC_POISON + number)
            return
        if reloc is not None:
            section, slot = reloc.sym.section, reloc.sym.value // 8 + insn.imm + 1
        else:
            section, slot = function.section.index, function.start + index + insn.imm + 1
        target = self._function_at(section, slot)
        draft.insns[at] = insn._replace(imm=self._place(draft, target) - at - 1)

    def _function_at(self, section: int, slot: int) -> Function:
        target = self._functions.get((section, slot))
        if target is None:
            raise ObjectError(f"no function starts at slot {slot} of the called section")
        return target

    def _address(self, draft: _Draft, at: int, insn: Insn, sym: Sym) -> None:
        """A wide instruction that loads the address of a map, a global, a function or an extern."""
        if sym.section == SHN_UNDEF:
            if self._extern(sym) == KSYMS:
                self._use_ksym(draft, sym.name, at, is_func=self.externs.table[sym.name].is_func)
                self._wide(draft, at, insn, 0, 0, 0)
                return
            extern = self.externs.table[sym.name]
            if extern.problem:
                raise ObjectError(extern.problem, hint="declare it __weak to go on without it")
            self._wide(draft, at, insn, BPF_PSEUDO_MAP_IDX_VALUE, self._use_map(draft, KCONFIG), extern.offset)
            return
        if sym.section < 0:
            raise ObjectError(f"symbol {sym.name!r} is in no section")
        sec = self.elf.sections[sym.section]
        offset = sym.value + insn.imm
        if sec.executable:
            if offset % 8:
                raise ObjectError(f"the address of {sym.name!r} is not at an instruction")
            start = self._place(draft, self._function_at(sec.index, offset // 8))
            self._wide(draft, at, insn, BPF_PSEUDO_FUNC, start - at - 1, 0)
            return
        if sec.index not in self._map_sections:
            raise ObjectError(
                f"the program refers to section {sec.name or sec.kind}, which holds neither maps nor data"
            )
        name = self.maps.places.get((sec.index, 0 if sec.index in self._globals else offset))
        if name is None:
            raise ObjectError(f"no map starts at byte {offset} of section {sec.name}")
        spec = self.maps.maps[name]
        number = self._use_map(draft, name)
        if spec.kind == "map":
            self._wide(draft, at, insn, BPF_PSEUDO_MAP_IDX, number, 0)
            return
        if not 0 <= offset < spec.value_size:
            raise ObjectError(f"the program refers to byte {offset} of section {sec.name}, which has {spec.value_size}")
        self._wide(draft, at, insn, BPF_PSEUDO_MAP_IDX_VALUE, number, offset)

    @staticmethod
    def _wide(draft: _Draft, at: int, insn: Insn, src: int, low: int, high: int) -> None:
        draft.insns[at] = insn._replace(src=src, imm=low)
        draft.insns[at + 1] = draft.insns[at + 1]._replace(imm=high)

    def _extern(self, sym: Sym) -> str:
        extern = self.externs.table.get(sym.name)
        if extern is None:
            raise ObjectError(
                f"the symbol {sym.name!r} is not defined",
                hint="define it in this file, or declare it extern with __kconfig or __ksym",
            )
        return extern.section

    @staticmethod
    def _use_map(draft: _Draft, name: str) -> int:
        if name not in draft.maps:
            draft.maps.append(name)
        return draft.maps.index(name)

    @staticmethod
    def _use_ksym(draft: _Draft, name: str, at: int, *, is_func: bool) -> int:
        draft.ksyms.setdefault(name, (is_func, []))[1].append(at)
        return list(draft.ksyms).index(name)
