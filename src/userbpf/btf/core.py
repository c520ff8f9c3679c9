"""CO-RE: what a program compiled against one set of types reads where the types are others.

Semantics: libbpf's ``relo_core.c``; the questions are ``enum bpf_core_relo_kind`` of ``include/uapi/linux/bpf.h``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from userbpf.btf.btf import MAX_DEPTH, Btf, essential_name
from userbpf.btf.ext import CoreKind, CoreReloc
from userbpf.btf.match import fields_compatible, same_kind, types_compatible, types_match
from userbpf.btf.types import Array, Enum, Enum64, Int, Ptr, Struct, Union
from userbpf.errors import BtfError, Place
from userbpf.isa import Insn
from userbpf.isa.opcodes import (
    BPF_ALU,
    BPF_ALU64,
    BPF_B,
    BPF_CALL,
    BPF_DW,
    BPF_H,
    BPF_JMP,
    BPF_LDX,
    BPF_ST,
    BPF_STX,
    BPF_W,
    BPF_X,
    LDDW,
)

__all__ = ["CORE_POISON", "Resolution", "Resolver", "patch", "relocate"]

CORE_POISON = 0xBAD2310
"""Helper number of the invalid call that stands where a relocation failed; libbpf's "bad relo"."""

_MAX_ACCESS = 64
_SIZES = {1: BPF_B, 2: BPF_H, 4: BPF_W, 8: BPF_DW}
_EXISTS = (CoreKind.FIELD_EXISTS, CoreKind.TYPE_EXISTS, CoreKind.TYPE_MATCHES, CoreKind.ENUMVAL_EXISTS)
_TYPE_BASED = (
    CoreKind.TYPE_ID_LOCAL,
    CoreKind.TYPE_ID_TARGET,
    CoreKind.TYPE_EXISTS,
    CoreKind.TYPE_SIZE,
    CoreKind.TYPE_MATCHES,
)
_ENUM_BASED = (CoreKind.ENUMVAL_EXISTS, CoreKind.ENUMVAL_VALUE)


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of an access path: a named member of record ``type`` (``index``), or an array element of ``type``."""

    type: int
    index: int
    name: str = ""


@dataclass(slots=True)
class _Path:
    """A path into a type, with the bit offset that it leads to. Anonymous members are steps of no name: not kept."""

    btf: Btf
    root: int
    steps: list[_Step] = field(default_factory=list)
    bit_offset: int = 0


@dataclass(frozen=True, slots=True)
class _Value:
    """An answer; for FIELD_BYTE_OFFSET also the field's bytes and type, by which a load may be resized."""

    value: int
    validate: bool = True
    size: int = 0
    type: int = 0


@dataclass(frozen=True, slots=True)
class Resolution:
    """What becomes of one relocation.

    original: the value that the compiler assumed; value: the target's. ``poison`` says why there is none.
    ``old_size`` and ``new_size`` differ when a load or store must be resized; ``resizable`` says whether it may.
    """

    original: int
    value: int
    validate: bool = True
    poison: str = ""
    old_size: int = 0
    new_size: int = 0
    resizable: bool = True


class Resolver:
    """Answers relocations of programs with BTF ``local`` by the types of ``target``."""

    def __init__(self, local: Btf, target: Btf) -> None:
        self.local = local
        self.target = target
        self._candidates: dict[int, list[int]] = {}
        self._done: dict[tuple[int, str, CoreKind], Resolution] = {}

    def resolve(self, reloc: CoreReloc) -> Resolution:
        """The answer to ``reloc``. Raises BtfError when it is malformed or ambiguous."""
        key = (reloc.type_id, reloc.access, reloc.kind)
        found = self._done.get(key)
        if found is None:
            found = self._done[key] = self._resolve(reloc)
        return found

    def _resolve(self, reloc: CoreReloc) -> Resolution:
        kind = reloc.kind
        path = _parse(self.local, reloc)
        if kind == CoreKind.TYPE_ID_LOCAL:
            return Resolution(path.root, path.root, validate=False)
        if not self.local.name(reloc.type_id):
            raise BtfError(f"CO-RE relocation refers to the anonymous type {reloc.type_id}")
        answers: list[tuple[_Path, Resolution]] = []
        for candidate in self._find_candidates(reloc.type_id):
            found = _match(path, self.target, candidate, kind)
            if found is not None:
                answers.append((found, self._answer(kind, path, found)))
        if not answers:
            return self._answer(kind, path, None)
        first_path, first = answers[0]
        for other_path, other in answers[1:]:
            if (other_path.bit_offset, other.value, other.poison) != (first_path.bit_offset, first.value, first.poison):
                name = self.local.name(reloc.type_id)
                raise BtfError(f"CO-RE relocation of {name!r} is ambiguous: types of that name give different answers")
        return first

    def _find_candidates(self, type_id: int) -> list[int]:
        found = self._candidates.get(type_id)
        if found is None:
            kind, name = self.local.kind(type_id), essential_name(self.local.name(type_id))
            found = [i for i in self.target.find_flavors(name) if same_kind(kind, self.target.kind(i))]
            self._candidates[type_id] = found
        return found

    def _answer(self, kind: CoreKind, local: _Path, target: _Path | None) -> Resolution:
        """Compare the two paths; a question that the target cannot answer is poisoned, not an error."""
        if kind in _EXISTS:
            return Resolution(1, int(target is not None))
        ours = _calculate(kind, local)
        if target is None:
            what = self.local.name(local.root)
            member = ".".join(step.name for step in local.steps if step.name)
            return Resolution(ours.value, 0, poison=f"the target has no {what}{'.' + member if member else ''}")
        theirs = _calculate(kind, target)
        return Resolution(
            ours.value,
            theirs.value,
            validate=ours.validate,
            old_size=ours.size,
            new_size=theirs.size,
            resizable=ours.size == theirs.size or self._may_resize(ours.type, theirs.type),
        )

    def _may_resize(self, ours: int, theirs: int) -> bool:
        """Zero extension makes it safe for pointers and unsigned integers only."""
        a, b = self.local.resolved(ours), self.target.resolved(theirs)
        if isinstance(a, Ptr) and isinstance(b, Ptr):
            return True
        return isinstance(a, Int) and isinstance(b, Int) and not a.signed and not b.signed


# ---- paths ------------------------------------------------------------------------------------------


def _parse(btf: Btf, reloc: CoreReloc) -> _Path:
    """Follow the access string through the program's own types."""
    try:
        access = [int(part) for part in reloc.access.split(":")]
    except ValueError:
        raise BtfError(f"CO-RE access {reloc.access!r} is not numbers separated by colons") from None
    if len(access) > _MAX_ACCESS or min(access) < 0:
        raise BtfError(f"CO-RE access {reloc.access!r} is too deep or negative")
    path = _Path(btf, reloc.type_id)
    if reloc.kind in _TYPE_BASED:
        if access != [0]:
            raise BtfError(f"CO-RE access {reloc.access!r} into a whole type")
        return path
    type_id = btf.resolve(reloc.type_id)
    if reloc.kind in _ENUM_BASED:
        enum = btf.type(type_id)
        if not isinstance(enum, Enum | Enum64) or len(access) != 1 or access[0] >= len(enum.values):
            raise BtfError(f"CO-RE access {reloc.access!r} does not name a value of the enum {reloc.type_id}")
        path.steps.append(_Step(type_id, access[0], enum.values[access[0]].name))
        return path
    path.steps.append(_Step(type_id, access[0]))
    path.bit_offset = access[0] * btf.size_of(type_id) * 8
    for index in access[1:]:
        found = btf.resolved(type_id)
        if isinstance(found, Struct | Union):
            if index >= len(found.members):
                raise BtfError(f"CO-RE access {reloc.access!r} goes beyond the members of {found.name!r}")
            member = found.members[index]
            path.bit_offset += member.bit_offset
            if member.name:
                path.steps.append(_Step(btf.resolve(type_id), index, member.name))
            type_id = member.type
        elif isinstance(found, Array):
            if index >= found.nelems and not _is_flexible(path, found):
                raise BtfError(f"CO-RE access {reloc.access!r} goes beyond an array of {found.nelems}")
            type_id = btf.resolve(found.type)
            path.steps.append(_Step(type_id, index))
            path.bit_offset += index * btf.size_of(type_id) * 8
        else:
            raise BtfError(f"CO-RE access {reloc.access!r} goes into a type that has no parts")
    return path


def _is_flexible(path: _Path, array: Array) -> bool:
    """An array of no elements at the end of the record of the last step."""
    last = path.steps[-1]
    if array.nelems or not last.name:
        return False
    record = path.btf.type(last.type)
    return isinstance(record, Struct | Union) and last.index == len(record.members) - 1


def _match(local: _Path, target: Btf, root: int, kind: CoreKind) -> _Path | None:
    """The same path in the target's type ``root``, or None when it has no such path."""
    path = _Path(target, root)
    if kind == CoreKind.TYPE_MATCHES:
        return path if types_match(local.btf, local.root, target, root) else None
    if kind in _TYPE_BASED:
        return path if types_compatible(local.btf, local.root, target, root) else None
    type_id = target.resolve(root)
    if kind in _ENUM_BASED:
        enum = target.type(type_id)
        wanted = essential_name(local.steps[0].name)
        if isinstance(enum, Enum | Enum64):
            for index, value in enumerate(enum.values):
                if essential_name(value.name) == wanted:
                    path.steps.append(_Step(type_id, index, value.name))
                    return path
        return None
    for position, step in enumerate(local.steps):
        if step.name:
            record = local.btf.type(step.type)
            if not isinstance(record, Struct | Union):
                return None
            next_id = _match_member(local.btf, record.members[step.index].type, step.name, path, type_id, 0)
            if next_id is None:
                return None
            type_id = next_id
            continue
        if position > 0:
            array = target.resolved(type_id)
            if not isinstance(array, Array) or (step.index >= array.nelems and not _is_flexible(path, array)):
                return None
            type_id = target.resolve(array.type)
        path.steps.append(_Step(type_id, step.index))
        path.bit_offset += step.index * target.size_of(type_id) * 8
    return path


def _match_member(local: Btf, wanted: int, name: str, path: _Path, type_id: int, depth: int) -> int | None:
    """Find member ``name`` in the target's record, also inside anonymous members; extend ``path``; its type id."""
    if depth > MAX_DEPTH:
        raise BtfError(f"BTF type {type_id} has members nested more than {MAX_DEPTH} deep")
    type_id = path.btf.resolve(type_id)
    record = path.btf.type(type_id)
    if not isinstance(record, Struct | Union):
        return None
    for index, member in enumerate(record.members):
        if not member.name:
            start = path.bit_offset
            path.bit_offset += member.bit_offset
            found = _match_member(local, wanted, name, path, member.type, depth + 1)
            if found is not None:
                return found
            path.bit_offset = start
        elif member.name == name:
            if not fields_compatible(local, wanted, path.btf, member.type):
                return None
            path.steps.append(_Step(type_id, index, name))
            path.bit_offset += member.bit_offset
            return member.type
    return None


# ---- answers ----------------------------------------------------------------------------------------


def _calculate(kind: CoreKind, path: _Path) -> _Value:
    """The value of a question at the end of ``path``."""
    btf = path.btf
    if kind == CoreKind.TYPE_ID_TARGET:
        return _Value(path.root, validate=False)
    if kind == CoreKind.TYPE_SIZE:
        return _Value(btf.size_of(path.root))
    last = path.steps[-1]
    if kind == CoreKind.ENUMVAL_VALUE:
        enum = btf.type(last.type)
        if not isinstance(enum, Enum | Enum64):
            raise BtfError(f"BTF type {last.type} is no enum")
        return _Value(enum.values[last.index].value)
    if last.name:
        return _field(kind, path, last)
    size = btf.size_of(last.type)
    if kind == CoreKind.FIELD_BYTE_OFFSET:
        return _Value(path.bit_offset // 8, size=size, type=last.type)
    if kind == CoreKind.FIELD_BYTE_SIZE:
        return _Value(size)
    raise BtfError(f"CO-RE relocation {kind.name} asks about an array element")


def _field(kind: CoreKind, path: _Path, step: _Step) -> _Value:
    """Questions about a member. A bitfield is read as the smallest aligned word of its type that holds it."""
    btf = path.btf
    record = btf.type(step.type)
    if not isinstance(record, Struct | Union):
        raise BtfError(f"BTF type {step.type} is no record")
    member = record.members[step.index]
    type_id = btf.resolve(member.type)
    bits = member.bit_size
    size = btf.word_of(member) if bits else btf.size_of(type_id)
    offset = path.bit_offset // 8
    if bits:
        offset = offset // size * size
        while path.bit_offset + bits - offset * 8 > size * 8:
            if size >= 8:
                raise BtfError(f"the bitfield {step.name!r} does not fit into 64 aligned bits")
            size *= 2
            offset = path.bit_offset // 8 // size * size
    match kind:
        case CoreKind.FIELD_BYTE_OFFSET:
            if bits:
                return _Value(offset, validate=False)
            while isinstance(array := btf.type(type_id), Array):
                type_id = btf.resolve(array.type)
            return _Value(offset, size=btf.size_of(type_id), type=type_id)
        case CoreKind.FIELD_BYTE_SIZE:
            return _Value(size, validate=not bits)
        case CoreKind.FIELD_SIGNED:
            found = btf.type(type_id)
            return _Value(int(isinstance(found, Int | Enum | Enum64) and found.signed))
        case CoreKind.FIELD_LSHIFT_U64:
            return _Value(64 - (path.bit_offset + (bits or size * 8) - offset * 8), validate=not bits)
        case CoreKind.FIELD_RSHIFT_U64:
            return _Value(64 - (bits or size * 8))
        case _:
            raise BtfError(f"CO-RE relocation {kind.name} asks about a member")


# ---- instructions -----------------------------------------------------------------------------------


def relocate(insns: Sequence[Insn], relocs: Iterable[CoreReloc], resolver: Resolver, *, start: int = 0) -> list[Insn]:
    """The instructions with every relocation applied; ``start`` is the byte offset of the first in its section.

    Raises BtfError with the instruction when a relocation is malformed, ambiguous, or does not fit.
    """
    out = list(insns)
    for reloc in relocs:
        index = (reloc.offset - start) // 8
        if (reloc.offset - start) % 8 or not 0 <= index < len(out):
            raise BtfError(f"CO-RE relocation at byte {reloc.offset} is not at an instruction")
        try:
            patch(out, index, resolver.resolve(reloc))
        except BtfError as error:
            raise BtfError(error.message, place=Place(insn=index), hint=error.hint) from error
    return out


def patch(insns: list[Insn], index: int, answer: Resolution) -> None:
    """Write ``answer`` into the instruction at ``index``; an unanswered one becomes an invalid call."""
    insn = insns[index]
    wide = insn.op == LDDW
    if wide and index + 1 >= len(insns):
        raise BtfError("CO-RE relocation at half a wide instruction")
    kind = insn.op & 7
    memory = kind in (BPF_LDX, BPF_ST, BPF_STX)
    if answer.poison or (memory and not answer.resizable):
        for slot in range(index, index + 2 if wide else index + 1):
            insns[slot] = Insn(BPF_JMP | BPF_CALL, 0, 0, 0, CORE_POISON)
        return
    if wide:
        old = (insn.imm & 0xFFFFFFFF) | (insns[index + 1].imm & 0xFFFFFFFF) << 32
        _check(answer, old, answer.original & 0xFFFFFFFFFFFFFFFF)
        insns[index] = insn._replace(imm=_signed32(answer.value))
        insns[index + 1] = insns[index + 1]._replace(imm=_signed32(answer.value >> 32))
    elif kind in (BPF_ALU, BPF_ALU64) and not insn.op & BPF_X:
        _check(answer, insn.imm, _signed32(answer.original))
        insns[index] = insn._replace(imm=_signed32(answer.value))
    elif memory:
        _check(answer, insn.off, answer.original)
        if not 0 <= answer.value <= 0x7FFF:
            raise BtfError(f"the field is at offset {answer.value}, beyond the reach of one load or store")
        op = insn.op
        if answer.old_size != answer.new_size:
            size = _SIZES.get(answer.new_size)
            if size is None or op & 0x18 != _SIZES.get(answer.old_size):
                raise BtfError(f"a field of {answer.new_size} bytes cannot be loaded in the place of {answer.old_size}")
            op = op & ~0x18 | size
        insns[index] = insn._replace(op=op, off=answer.value)
    else:
        raise BtfError(f"CO-RE relocation at an instruction that cannot hold a value (opcode {insn.op:#04x})")


def _check(answer: Resolution, found: int, expected: int) -> None:
    if answer.validate and found != expected:
        raise BtfError(
            f"CO-RE relocation finds {found} in the instruction where the compiler should have put {expected}"
        )


def _signed32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value
