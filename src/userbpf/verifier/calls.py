"""Helper calls: every argument against the helper's row in :mod:`userbpf.tables.helpers`, and the value in r0.

Rules of kernel/bpf/verifier.c: check_helper_call, check_func_arg, check_mem_size_reg, check_map_func_compatibility.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from userbpf.isa.opcodes import BPF_ALU, BPF_ALU64, BPF_ATOMIC, BPF_JMP, BPF_JMP32, BPF_LD, BPF_LDX, BPF_MOV, BPF_STX
from userbpf.object.model import KFUNC_POISON
from userbpf.tables.helpers import HELPERS, Arg, Helper, Ret
from userbpf.tables.maps import MAP_TYPES, MapType, type_name

from . import bounds, memory, precision, stack
from .alu import MAX_OFFSET
from .branches import release
from .diagnosis import Reject
from .facts import Kind
from .state import UNINIT, UNKNOWN_SCALAR, ZERO, Reg, scalar, slot_bit, slot_byte

if TYPE_CHECKING:
    from userbpf.object.model import MapSpec

    from .env import Env

__all__ = ["GPL_COMPATIBLE", "call_helper", "reject_kfunc"]

GPL_COMPATIBLE: Final = frozenset(
    {"GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"}
)
"""license_is_gpl_compatible (include/linux/license.h)."""

MAX_ERRNO: Final = 4095
CORE_POISON: Final = 0xBAD2310
"""What a failed CO-RE relocation leaves as a helper's number (libbpf's convention)."""

_STRING_READS: Final = frozenset({"probe_read_str", "probe_read_user_str", "probe_read_kernel_str"})
_MEMORY: Final = frozenset({Arg.MEM, Arg.MEM_OR_NULL, Arg.UNINIT_MEM})
_ARRAYS: Final = frozenset({MapType.ARRAY, MapType.PERCPU_ARRAY})


@dataclass(slots=True)
class _Call:
    """What the arguments seen so far say about a call."""

    helper: Helper
    map: int | None = None
    never_null: bool = False
    size_max: int = 0
    alloc_size: int = 0
    released: int = 0
    consts: list[int | None] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"bpf_{self.helper.name}"


def call_helper(env: Env, number: int) -> None:
    """Walk a helper call."""
    helper = _offered(env, number)
    call = _Call(helper)
    for position, kind in enumerate(helper.args):
        _argument(env, call, position, kind)
        call.consts.append(_constant(env, position + 1, kind))
    env.facts.call(env.pc, number, call.map, call.consts)
    if call.released:
        release(env.state, call.released)
    env.clear_call_regs()
    env.write(0, _result(env, call))


def _offered(env: Env, number: int) -> Helper:
    helper = HELPERS.get(number)
    if helper is None:
        reasons = [failure.reason for failure in env.program.core_failures if failure.insn == env.pc]
        if reasons or number == CORE_POISON:
            raise Reject(
                "unsupported",
                f"this access needs a CO-RE relocation that failed: "
                f"{reasons[0] if reasons else 'the field or type does not exist here'}",
                help="guard the access:\nif (bpf_core_field_exists(ptr->field)) …",
            )
        raise Reject("helper-unsupported", f"helper {number} does not exist")
    if not helper.offered:
        raise Reject(
            "helper-unsupported",
            f"the helper bpf_{helper.name} is not offered",
            help=helper.alternative,
        )
    if helper.programs is not None and env.prog_type not in helper.programs:
        raise Reject(
            "helper-unsupported",
            f"the helper bpf_{helper.name} is not for programs of type {env.prog_type.name.lower()}",
        )
    if helper.gpl_only and env.program.license not in GPL_COMPATIBLE:
        raise Reject(
            "helper-license",
            f"the helper bpf_{helper.name} is for programs under a GPL-compatible license, and this one is "
            f"{env.program.license or 'unlicensed'!r}",
        )
    return helper


def reject_kfunc(env: Env, imm: int) -> Reject:
    """A call of a kernel function: there is none in user space."""
    index = imm - KFUNC_POISON
    known = 0 <= index < len(env.program.ksyms)
    name = env.program.ksyms[index].name if known else f"number {imm}"
    return Reject("kfunc-unsupported", f"the kernel function {name} is called, which exists only in the kernel")


def _constant(env: Env, number: int, kind: Arg) -> int | None:
    """The value of a number argument when every visit has the same (see :class:`.facts.Call`)."""
    reg = env.regs[number]
    if reg.kind is not Kind.SCALAR or not reg.rng.is_const:
        return None
    if kind in (Arg.SIZE, Arg.SIZE_OR_ZERO, Arg.CONST_ALLOC_SIZE):
        return bounds.signed(reg.rng.value)
    return bounds.signed(reg.rng.value) if _set_nearby(env, number) else None


def _set_nearby(env: Env, number: int) -> bool:
    """An instruction of the same straight line moves a constant into the register."""
    index = env.pc
    for _ in range(12):
        if index == 0 or index in env.joins:
            return False
        index -= 1
        insn = env.insns[index]
        if insn.op & 7 in (BPF_JMP, BPF_JMP32):
            return False
        if insn.dst == number and insn.op & 7 in (BPF_LD, BPF_LDX, BPF_ALU, BPF_ALU64):
            return insn.op in (BPF_ALU64 | BPF_MOV, BPF_ALU | BPF_MOV)
        if insn.op & 7 == BPF_STX and insn.op & 0xE0 == BPF_ATOMIC:
            return False
    return False


def _argument(env: Env, call: _Call, position: int, kind: Arg) -> None:
    number = position + 1
    if kind is Arg.VARARG:
        if env.regs[number].kind is Kind.CTX:
            env.facts.ctx_escapes = True
        return
    reg = env.read(number)
    if kind is Arg.ANYTHING:
        if reg.kind is Kind.CTX:
            env.facts.ctx_escapes = True
    elif kind is Arg.CONST_MAP_PTR:
        _map(env, call, reg, number)
    elif kind in (Arg.MAP_KEY, Arg.MAP_VALUE, Arg.UNINIT_MAP_VALUE):
        spec = env.maps[_known_map(call)]
        size = spec.key_size if kind is Arg.MAP_KEY else spec.value_size
        fills = kind is Arg.UNINIT_MAP_VALUE
        _memory(env, call, reg, number, (size, size), reads=not fills, writes=fills)
        if call.helper.ret is Ret.MAP_VALUE_OR_NULL and key_in_range(env, spec, reg):
            call.never_null = True
    elif kind in _MEMORY:
        if not (kind is Arg.MEM_OR_NULL and reg.is_zero):
            _need_memory(call, reg, number)
    elif kind in (Arg.SIZE, Arg.SIZE_OR_ZERO):
        _size(env, call, reg, number, call.helper.args[position - 1], zero=kind is Arg.SIZE_OR_ZERO)
    elif kind is Arg.UNINIT_LONG:
        _memory(env, call, reg, number, (8, 8), reads=False, writes=True)
        _need_aligned(call, reg, number)
    elif kind is Arg.CTX:
        _context(env, call, reg, number)
    elif kind is Arg.ALLOC_MEM:
        _released(call, reg, number)
    elif kind is Arg.CONST_ALLOC_SIZE:
        _alloc_size(env, call, reg, number)
    else:
        _const_string(env, call, reg, number)


def _wrong(call: _Call, reg: Reg, number: int, wanted: str) -> Reject:
    if reg.null:
        return Reject(
            "null-deref",
            f"argument {number} of {call.name} may be NULL: it was not tested",
            known=(f"r{number} is {reg.describe()}",),
            reg=number,
        )
    return Reject(
        "helper-arg",
        f"argument {number} of {call.name} must be {wanted}, and is {_article(reg)}",
        known=(f"r{number} is {reg.describe()}",),
        reg=number,
    )


def _article(reg: Reg) -> str:
    return (
        f"the number {reg.describe()}"
        if reg.kind is Kind.SCALAR and reg.rng.is_const
        else ("a number" if reg.kind is Kind.SCALAR else reg.describe())
    )


def _map(env: Env, call: _Call, reg: Reg, number: int) -> None:
    if reg.kind is not Kind.MAP:
        raise _wrong(call, reg, number, "a map")
    spec = env.maps[reg.map]
    info = MAP_TYPES.get(MapType(spec.type)) if spec.type in _KNOWN_TYPES else None
    if info is None:
        raise Reject("unsupported", f"the map '{spec.name}' is of type {type_name(spec.type)}, which is not offered")
    if call.helper.name not in info.helpers:
        uses = ", ".join(sorted(f"bpf_{name}" for name in info.helpers))
        raise Reject(
            "helper-map",
            f"{call.name} does not work on the map '{spec.name}' of type {type_name(spec.type)}",
            help=f"for this type of map there are {uses}",
            reg=number,
        )
    call.map = reg.map


_KNOWN_TYPES: Final = frozenset(int(kind) for kind in MapType)


def _known_map(call: _Call) -> int:
    if call.map is None:
        raise Reject("helper-arg", f"{call.name} is called without its map")
    return call.map


def _need_memory(call: _Call, reg: Reg, number: int) -> None:
    if reg.null or reg.kind not in (Kind.STACK, Kind.MAP_VALUE, Kind.MEM):
        raise _wrong(call, reg, number, "a pointer to the stack, a map value or a record")


def _memory(env: Env, call: _Call, reg: Reg, number: int, sizes: tuple[int, int], *, reads: bool, writes: bool) -> None:
    """``sizes``: least and greatest number of bytes that the helper may touch."""
    _need_memory(call, reg, number)
    if reg.kind is Kind.STACK:
        partial = call.helper.name in _STRING_READS
        stack.check_helper(env, reg, sizes, number, reads=reads, writes=writes, partial=partial)
        return
    if writes:
        memory.writable(env, reg, number)
    if reads:
        memory.readable(env, reg, number)
    what = f"{call.name}: the {'write' if writes else 'read'}"
    memory.check_region(env, reg, 0, sizes[1], number, what)


def _need_aligned(call: _Call, reg: Reg, number: int) -> None:
    value, mask = reg.rng.tnum
    if ((value + reg.off) | mask) & 7:
        raise Reject("mem-unaligned", f"argument {number} of {call.name} must be aligned to 8 bytes", reg=number)


def _size(env: Env, call: _Call, reg: Reg, number: int, memory_kind: Arg, *, zero: bool) -> None:
    """A size, and the memory before it (check_mem_size_reg)."""
    if reg.kind is not Kind.SCALAR:
        raise _wrong(call, reg, number, "a number of bytes")
    rng = reg.rng
    known = (f"r{number} is {rng}",)
    if rng.smin < 0:
        raise Reject(
            "helper-size",
            f"argument {number} of {call.name}, a size, can be negative",
            known=known,
            help="use an unsigned size and bound it:\nif (size > sizeof(buf)) size = sizeof(buf);",
            reg=number,
        )
    if rng.umin == 0 and not zero:
        raise Reject("helper-size", f"argument {number} of {call.name}, a size, can be 0", known=known, reg=number)
    if rng.umax >= MAX_OFFSET:
        raise Reject("helper-size", f"argument {number} of {call.name}, a size, is unbounded", known=known, reg=number)
    pointer = env.regs[number - 1]
    call.size_max = rng.umax
    precision.mark(env, number)
    if memory_kind is Arg.MEM_OR_NULL and pointer.is_zero:
        if rng.umax:
            raise Reject("helper-arg", f"{call.name} gets NULL and a size that is not 0", known=known, reg=number)
        return
    fills = memory_kind is Arg.UNINIT_MEM
    _memory(env, call, pointer, number - 1, (rng.umin, rng.umax), reads=not fills, writes=fills)


def _context(env: Env, call: _Call, reg: Reg, number: int) -> None:
    if reg.kind is not Kind.CTX:
        raise _wrong(call, reg, number, "the context")
    if reg.offset != 0:
        raise Reject("helper-arg", f"argument {number} of {call.name} must be the context unchanged", reg=number)
    # Not an escape: those helpers that read the context are lowered by the code generator, which knows what they
    # read; to all others it only proves that the caller is a program.


def _released(call: _Call, reg: Reg, number: int) -> None:
    if reg.kind is not Kind.MEM or reg.null or not reg.ref:
        raise _wrong(call, reg, number, "a record from bpf_ringbuf_reserve")
    if reg.offset != 0:
        raise Reject(
            "helper-arg",
            f"argument {number} of {call.name} must point to the start of the record",
            known=(f"r{number} is {reg.describe()}",),
            reg=number,
        )
    call.released = reg.ref


def _alloc_size(env: Env, call: _Call, reg: Reg, number: int) -> None:
    if reg.kind is not Kind.SCALAR or not reg.rng.is_const:
        raise Reject(
            "helper-size",
            f"argument {number} of {call.name}, the size of the record, must be a constant",
            known=(f"r{number} is {reg.describe()}",),
            help="records of variable size: bpf_ringbuf_output(&ring, data, size, 0)",
            reg=number,
        )
    if reg.rng.value >= MAX_OFFSET:
        raise Reject("helper-size", f"{call.name} is asked for a record of {reg.rng.value} bytes", reg=number)
    precision.mark(env, number)
    call.alloc_size = reg.rng.value


def _const_string(env: Env, call: _Call, reg: Reg, number: int) -> None:
    """A NUL-terminated string in constants (check_reg_const_str)."""
    spec = env.maps[reg.map] if reg.kind is Kind.MAP_VALUE and not reg.null else None
    offset = reg.offset
    if spec is None or spec.kind != "rodata" or spec.initial is None or offset is None:
        raise _wrong(call, reg, number, "a constant string")
    if not 0 <= offset < len(spec.initial) or b"\0" not in spec.initial[offset:]:
        raise Reject("helper-arg", f"argument {number} of {call.name} is a string that does not end", reg=number)


def _result(env: Env, call: _Call) -> Reg:
    ret = call.helper.ret
    if ret is Ret.VOID:
        return UNINIT
    if ret is Ret.INTEGER:
        if call.helper.name in _STRING_READS:
            most = call.size_max
            return scalar(
                bounds.settle(
                    bounds.make(
                        (0, bounds.U64),
                        0,
                        bounds.U64,
                        -MAX_ERRNO,
                        most,
                        0,
                        bounds.U32,
                        -MAX_ERRNO,
                        min(most, bounds.S32_MAX),
                    )
                )
            )
        return UNKNOWN_SCALAR
    if ret is Ret.MAP_VALUE_OR_NULL:
        index = _known_map(call)
        if call.never_null:
            return Reg(Kind.MAP_VALUE, map=index)
        return Reg(Kind.MAP_VALUE, map=index, null=True, id=env.new_id())
    ref = env.new_id()
    env.state.refs += ((ref, env.pc),)
    return Reg(Kind.MEM, size=call.alloc_size, null=True, id=ref, ref=ref)


def key_in_range(env: Env, spec: MapSpec, key: Reg) -> bool:
    """The lookup's key is a constant on the stack, and the array has it: the result cannot be NULL
    (get_constant_map_key; kernels before 6.15 demand the test)."""
    if spec.type not in _ARRAYS or spec.key_size != 4 or key.kind is not Kind.STACK or key.offset is None:
        return False
    index, byte = slot_byte(key.offset)
    slot = env.state.frames[key.frame].stack.get(index)
    if slot is None or byte not in (0, 4):
        return False
    if slot.types[byte : byte + 4] == bytes([ZERO]) * 4:
        return spec.max_entries > 0
    held = slot.spilled
    if held is None or byte != 0 or slot.spill_size != 4 or held.kind is not Kind.SCALAR or not held.rng.is_const:
        return False
    if held.rng.value & bounds.U32 >= spec.max_entries:
        return False
    precision.mark_slot(env, slot_bit(key.frame, index))
    return True
