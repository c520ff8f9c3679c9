"""Moving x86-64 instructions to another address so that they do there what they did here.

Instructions without a relation to their own address are copied byte for byte. The others: instruction-relative
operands get a new displacement, direct branches become their 32-bit forms, the 8-bit-only branches (loop, jrcxz) hop
over a jump, and a call pushes the *original* return address and jumps, so that unwinders, exception tables and
get-pc thunks see the address they know. Encodings: Intel SDM volume 2.

For every place at which a thread can be stopped inside the moved code, :class:`Moved` knows the place in the original
where it would be, and by how much the stack pointer differs, so that threads can be moved in and out.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from iced_x86 import FlowControl, Mnemonic, OpKind, Register

from userbpf.attach.decode import Insn
from userbpf.errors import AttachError

__all__ = ["Moved", "Place", "jump", "relocate", "relocated_size"]

_GROWTH = 20
"""Upper bound for what one instruction becomes: a call is push imm32, mov dword [rsp+4], jmp rel32: 18 bytes."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the original code a thread is that stands at some address of the moved code.

    sp_delta: what to add to its stack pointer when it is taken back.
    """

    addr: int
    sp_delta: int = 0


@dataclass(frozen=True)
class Moved:
    """Code at a new address. ``places`` maps every instruction boundary in it to the original;
    ``starts`` maps original instruction addresses (and the end) to the moved ones."""

    code: bytes
    places: dict[int, Place]
    starts: dict[int, int]


def _rel32(source: int, target: int, what: str) -> bytes:
    distance = target - source
    if not -(1 << 31) <= distance < 1 << 31:
        raise AttachError(
            f"{what} refers to {target:#x}, which is more than 2 GB from its new place {source:#x}",
            hint="the module is too far from free memory; probe another function",
        )
    return struct.pack("<i", distance)


def jump(source: int, target: int) -> bytes:
    """``jmp rel32`` from ``source`` to ``target``: 5 bytes."""
    return b"\xe9" + _rel32(source + 5, target, "a jump")


def _push64(value: int) -> list[bytes]:
    low = value & 0xFFFF_FFFF
    if value < 1 << 31:
        return [b"\x68" + struct.pack("<I", low)]
    # push imm32 sign-extends; the upper half is written behind it. Neither touches the flags.
    return [b"\x68" + struct.pack("<I", low), b"\xc7\x44\x24\x04" + struct.pack("<I", value >> 32)]


def _refuse(insn: Insn, why: str) -> AttachError:
    return AttachError(
        f"the instruction `{insn.text}` at {insn.addr:#x} cannot be moved: {why}",
        hint="probe another offset of this function, or another function",
    )


def _moved_operand(insn: Insn, raw: bytes, addr: int) -> bytes:
    """``raw``, which has its displacement where ``insn`` has it, with the operand's displacement for ``addr``."""
    target = insn.rip_target
    if target is None:
        return raw
    offset = insn.constants.displacement
    return raw[:offset] + _rel32(addr + len(raw), target, f"`{insn.text}`") + raw[offset + 4 :]


def _uses_stack_pointer(insn: Insn) -> bool:
    iced = insn.iced
    return iced.memory_base == Register.RSP and iced.op0_kind == OpKind.MEMORY


class _Emitter:
    def __init__(self, addr: int) -> None:
        self.base = addr
        self.code = bytearray()
        self.places: dict[int, Place] = {}
        self.starts: dict[int, int] = {}

    @property
    def here(self) -> int:
        return self.base + len(self.code)

    def put(self, raw: bytes, place: Place) -> None:
        self.places[self.here] = place
        self.code += raw

    def call(self, insn: Insn, target: int | None, *, real: bool) -> None:
        """A call: the original return address is pushed, then jumped. ``real``: a call from the new place."""
        if target is None and _uses_stack_pointer(insn):
            raise _refuse(insn, "it calls through the stack")
        if real:
            raw = insn.raw if target is None else b"\xe8" + _rel32(self.here + 5, target, f"`{insn.text}`")
            self.put(_moved_operand(insn, raw, self.here), Place(insn.addr))
            return
        delta = 0
        for raw in _push64(insn.end):
            self.put(raw, Place(insn.addr, delta))
            delta = 8
        if target is not None:
            self.put(jump(self.here, target), Place(insn.addr, 8))
            return
        # call r/m64 is FF /2, jmp r/m64 is FF /4: bits 3 to 5 of the ModRM byte behind the opcode. The opcode follows
        # the prefixes: an 0xFF cannot be a prefix.
        modrm = insn.raw.index(0xFF) + 1
        raw = insn.raw[:modrm] + bytes([insn.raw[modrm] & ~0x38 | 0x20]) + insn.raw[modrm + 1 :]
        self.put(_moved_operand(insn, raw, self.here), Place(insn.addr, 8))

    def branch(self, insn: Insn, target: int) -> None:
        if insn.is_loop:
            short = insn.raw[:-1] + b"\x02"  # taken: over the short jump to the long one
            self.put(short, Place(insn.addr))
            self.put(b"\xeb\x05", Place(insn.end))
            self.put(jump(self.here, target), Place(target))
        elif insn.is_conditional:
            # Jcc rel8 is 70+cc, Jcc rel32 is 0F 80+cc; a branch-hint prefix is dropped.
            opcode = insn.raw[-2] if insn.iced.is_jcc_short else insn.raw[-5]
            raw = bytes([0x0F, 0x80 | opcode & 0x0F])
            self.put(raw + _rel32(self.here + 6, target, f"`{insn.text}`"), Place(insn.addr))
        else:
            self.put(jump(self.here, target), Place(insn.addr))

    def instruction(self, insn: Insn, *, shadow_stack: bool, last: bool) -> None:
        self.starts[insn.addr] = self.here
        if insn.flow in (FlowControl.EXCEPTION, FlowControl.INTERRUPT) or insn.iced.mnemonic == Mnemonic.HLT:
            raise _refuse(insn, "it raises a signal, whose handler would see another address")
        if insn.flow == FlowControl.XBEGIN_XABORT_XEND:
            raise _refuse(insn, "it is part of a hardware transaction")
        target = insn.branch_target
        if insn.is_call or insn.is_indirect_call:
            if not last:
                raise _refuse(insn, "it would return into the bytes that are patched")
            self.call(insn, target, real=shadow_stack)
        elif target is not None:
            self.branch(insn, target)
        elif insn.flow in (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CONDITIONAL_BRANCH, FlowControl.CALL):
            raise _refuse(insn, "it is a far branch")
        else:
            self.put(_moved_operand(insn, insn.raw, self.here), Place(insn.addr))


def relocated_size(insns: Sequence[Insn]) -> int:
    """An upper bound for the size of ``insns`` at any other place, the jump back included."""
    return sum(max(insn.size, _GROWTH) for insn in insns) + 5


def relocate(insns: Sequence[Insn], addr: int, *, resume: int, shadow_stack: bool = False) -> Moved:
    """Move consecutive instructions to ``addr``, followed by a jump back to ``resume``.

    shadow_stack: the process checks return addresses in hardware, so a call must be a call.
    AttachError names the instruction that cannot be moved, and why.
    """
    out = _Emitter(addr)
    for index, insn in enumerate(insns):
        out.instruction(insn, shadow_stack=shadow_stack, last=index == len(insns) - 1)
    end = insns[-1].end
    out.starts[end] = out.here
    if not insns[-1].ends_flow:
        out.put(jump(out.here, resume), Place(resume))
    return Moved(bytes(out.code), out.places, out.starts)
