"""How a C compiler for BPF lays out a record, as against where BTF says its members are.

BTF keeps neither ``packed`` nor ``aligned``; both are found by comparing. Rules: the System V ABI's,
which clang follows for BPF; a bitfield does not straddle a word of its own type.
"""

from __future__ import annotations

from dataclasses import dataclass

from userbpf.btf.btf import MAX_DEPTH, POINTER_SIZE, Btf
from userbpf.btf.types import Array, Enum, Enum64, Float, Int, Member, Ptr, Struct, Union
from userbpf.errors import BtfError

__all__ = ["Layout", "Shape"]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a record's definition needs: attributes and fillers.

    align: bytes, of the record as printed. aligned: the attribute's number, 0 for none. filler: a union needs a member
    of its full size. end: bits after which the compiler itself pads to ``size`` bytes.
    """

    packed: bool
    align: int
    aligned: int
    filler: bool
    size: int

    def tail_gap(self, end: int) -> bool:
        """Is there more behind bit ``end`` than the compiler's own padding?"""
        unit = self.align * 8
        return (end + unit - 1) // unit * unit != self.size * 8


class Layout:
    """Shapes of the records of one BTF."""

    def __init__(self, btf: Btf) -> None:
        self.btf = btf
        self._shapes: dict[int, Shape] = {}

    def align(self, type_id: int, depth: int = 0) -> int:
        """Alignment in bytes that the compiler gives this type as printed."""
        if depth > MAX_DEPTH:
            raise BtfError(f"BTF type {type_id} is nested more than {MAX_DEPTH} deep")
        type_id = self.btf.resolve(type_id)
        found = self.btf.type(type_id)
        match found:
            case Int() | Enum() | Enum64() | Float():
                return found.size or 1
            case Ptr():
                return POINTER_SIZE
            case Array():
                return self.align(found.type, depth + 1)
            case Struct() | Union():
                return self.shape(type_id, depth).align
            case _:
                raise BtfError(f"BTF type {type_id} ({found.__class__.__name__.lower()}) has no alignment")

    def shape(self, type_id: int, depth: int = 0) -> Shape:
        """The shape of the record ``type_id``."""
        shape = self._shapes.get(type_id)
        if shape is None:
            record = self.btf.type(type_id)
            if not isinstance(record, Struct | Union):
                raise BtfError(f"BTF type {type_id} is no record")
            shape = self._shapes[type_id] = self._shape(record, depth)
        return shape

    def _shape(self, record: Struct | Union, depth: int) -> Shape:
        aligns = [self.align(member.type, depth + 1) for member in record.members]
        natural = max(aligns, default=1)
        packed = record.size % natural != 0 or any(
            self._misplaced(member, align) for member, align in zip(record.members, aligns, strict=True)
        )
        align = 1 if packed else natural
        if isinstance(record, Struct) or not record.members:
            return Shape(packed, align, 0, isinstance(record, Union) and record.size > 0, record.size)
        widest = max((m.bit_size + 7) // 8 if m.bit_size else self.btf.size_of(m.type) for m in record.members)
        if -(-widest // align) * align == record.size:
            return Shape(packed, align, 0, False, record.size)
        wanted = record.size & -record.size
        if wanted > align and -(-widest // wanted) * wanted == record.size:
            return Shape(packed, wanted, wanted, False, record.size)
        return Shape(packed, align, 0, True, record.size)

    def _misplaced(self, member: Member, align: int) -> bool:
        """Could the compiler not have put the member there without ``packed``?"""
        if member.bit_size == 0:
            return member.bit_offset % (align * 8) != 0
        word = self.btf.word_of(member) * 8
        return member.bit_offset // word != (member.bit_offset + member.bit_size - 1) // word

    def natural_offset(self, at: int, member: Member, packed: bool) -> int:
        """The bit offset at which the compiler puts ``member`` when the one before it ends at bit ``at``."""
        if member.bit_size == 0:
            unit = 8 if packed else self.align(member.type) * 8
            return (at + unit - 1) // unit * unit
        word = self.btf.word_of(member) * 8
        if not packed and at // word != (at + member.bit_size - 1) // word:
            return (at + word - 1) // word * word
        return at
