"""Machine code as instructions: iced-x86 behind the few questions that patching asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from iced_x86 import Code, Decoder, FlowControl, Instruction, Mnemonic

__all__ = ["Insn", "ConstantOffsets", "decode_all", "decode_one", "is_padding", "padding_length"]

_NOPS: Final = frozenset((Mnemonic.NOP, Mnemonic.INT3))
_LOOPS: Final = frozenset((Mnemonic.LOOP, Mnemonic.LOOPE, Mnemonic.LOOPNE, Mnemonic.JRCXZ, Mnemonic.JECXZ))


@dataclass(frozen=True, slots=True)
class ConstantOffsets:
    """Where in an instruction the displacement lies."""

    displacement: int
    size: int


@dataclass(frozen=True, slots=True)
class Insn:
    """One decoded instruction at its address."""

    addr: int
    raw: bytes
    iced: Instruction
    constants: ConstantOffsets

    @property
    def size(self) -> int:
        return len(self.raw)

    @property
    def end(self) -> int:
        return self.addr + len(self.raw)

    @property
    def flow(self) -> int:
        return int(self.iced.flow_control)

    @property
    def text(self) -> str:
        return str(self.iced)

    @property
    def branch_target(self) -> int | None:
        """Where a direct jump, conditional jump, loop or call goes; None for everything else."""
        direct = (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CONDITIONAL_BRANCH, FlowControl.CALL)
        if self.flow in direct or self.flow == FlowControl.XBEGIN_XABORT_XEND:
            target = int(self.iced.near_branch_target)
            return target or None
        return None

    @property
    def ends_flow(self) -> bool:
        """True when the next instruction is not reached from here: return, jump, trap."""
        return self.flow in (
            FlowControl.RETURN,
            FlowControl.UNCONDITIONAL_BRANCH,
            FlowControl.INDIRECT_BRANCH,
            FlowControl.EXCEPTION,
        )

    @property
    def is_call(self) -> bool:
        return self.flow == FlowControl.CALL

    @property
    def is_indirect_call(self) -> bool:
        return self.flow == FlowControl.INDIRECT_CALL

    @property
    def is_indirect_jump(self) -> bool:
        return self.flow == FlowControl.INDIRECT_BRANCH

    @property
    def is_conditional(self) -> bool:
        return self.flow == FlowControl.CONDITIONAL_BRANCH

    @property
    def is_loop(self) -> bool:
        """loop, loopcc, jrcxz: branches that exist only with an 8-bit displacement."""
        return self.iced.mnemonic in _LOOPS

    @property
    def is_syscall(self) -> bool:
        return self.iced.code == Code.SYSCALL

    @property
    def is_nop(self) -> bool:
        return self.iced.mnemonic in _NOPS

    @property
    def rip_target(self) -> int | None:
        """Address of an instruction-relative memory operand."""
        return int(self.iced.ip_rel_memory_address) if self.iced.is_ip_rel_memory_operand else None


def decode_all(code: bytes, addr: int, *, limit: int | None = None) -> list[Insn]:
    """Decode ``code``, which lies at ``addr``, from its start; stops before the first bytes that are no instruction.

    limit: at most so many instructions.
    """
    decoder = Decoder(64, code, ip=addr)
    out: list[Insn] = []
    while decoder.can_decode and (limit is None or len(out) < limit):
        position = decoder.position
        iced = decoder.decode()
        if iced.code == Code.INVALID:
            break
        offsets = decoder.get_constant_offsets(iced)
        constants = ConstantOffsets(offsets.displacement_offset, offsets.displacement_size)
        out.append(Insn(addr + position, code[position : position + iced.len], iced, constants))
    return out


def decode_one(code: bytes, addr: int) -> Insn | None:
    """The instruction at the start of ``code``, None when there is none."""
    insns = decode_all(code[:16], addr, limit=1)
    return insns[0] if insns else None


def padding_length(code: bytes, addr: int) -> int:
    """How many bytes at the start of ``code`` are whole nop or int3 instructions."""
    length = 0
    for insn in decode_all(code, addr):
        if not insn.is_nop:
            break
        length += insn.size
    return length


def is_padding(code: bytes, addr: int) -> bool:
    """True when all of ``code`` is whole nop or int3 instructions."""
    return padding_length(code, addr) == len(code)
