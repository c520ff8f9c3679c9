"""One instruction slot, and the way between slots and bytes (RFC 9669 section 3)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from userbpf.errors import IsaError, Place
from userbpf.isa.opcodes import LDDW

INSN_SIZE: Final = 8
_SLOT: Final = struct.Struct("<BBhi")


class Insn(NamedTuple):
    """One 8-byte slot. ``off`` and ``imm`` are signed. A wide instruction (``lddw``) is two slots."""

    op: int
    dst: int
    src: int
    off: int
    imm: int


def decode(data: bytes) -> tuple[Insn, ...]:
    """Little-endian bytes → slots. Any opcode is taken: :func:`userbpf.isa.check` judges the meaning.

    Raises IsaError when the length is not a multiple of 8.
    """
    if len(data) % INSN_SIZE:
        raise IsaError(
            f"the program is {len(data)} bytes long, not a multiple of {INSN_SIZE}: its last instruction is cut off",
            place=Place(insn=len(data) // INSN_SIZE),
            hint="the file is truncated or this is not eBPF; compile it again",
        )
    return tuple([Insn(op, regs & 15, regs >> 4, off, imm) for op, regs, off, imm in _SLOT.iter_unpack(data)])


def encode(insns: Iterable[Insn]) -> bytes:
    """Slots → little-endian bytes. Raises IsaError when a field does not fit."""
    out = bytearray()
    pack = _SLOT.pack
    for i, (op, dst, src, off, imm) in enumerate(insns):
        if not (0 <= dst <= 15 and 0 <= src <= 15):
            raise _unfit(i, "register", max(dst, src, key=abs))
        try:
            out += pack(op, dst | src << 4, off, imm)
        except struct.error:
            for field, value, low, high in (
                ("op", op, 0, 255),
                ("off", off, -(1 << 15), (1 << 15) - 1),
                ("imm", imm, -(1 << 31), (1 << 31) - 1),
            ):
                if not low <= value <= high:
                    raise _unfit(i, field, value) from None
            raise
    return bytes(out)


def _unfit(index: int, field: str, value: int) -> IsaError:
    return IsaError(
        f"the value {value} does not fit into the field {field}",
        place=Place(insn=index),
        hint="op is 8 bits unsigned, registers 4 bits, off 16 bits signed, imm 32 bits signed",
    )


def imm64(insns: Sequence[Insn], index: int) -> int:
    """The unsigned 64-bit constant of the wide instruction at ``index`` (RFC 9669 section 5.4)."""
    if insns[index].op != LDDW or index + 1 >= len(insns):
        raise IsaError("this is not a whole wide instruction", place=Place(insn=index))
    return (insns[index].imm & 0xFFFFFFFF) | (insns[index + 1].imm & 0xFFFFFFFF) << 32


def wide(dst: int, value: int, src: int = 0) -> tuple[Insn, Insn]:
    """The two slots of ``dst = value ll``; value may be signed or unsigned 64 bits."""
    low, high = struct.unpack("<ii", struct.pack("<Q", value & 0xFFFF_FFFF_FFFF_FFFF))
    return Insn(LDDW, dst, src, 0, low), Insn(0, 0, 0, 0, high)
