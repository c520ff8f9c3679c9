"""Loads, stores and atomics (RFC 9669 section 5): which region a pointer is in, and whether the bytes are in it.

Rules of kernel/bpf/verifier.c (check_mem_access, check_mem_region_access, check_atomic), as on a machine with
unaligned access; context rules from :mod:`userbpf.tables.contexts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from userbpf.isa.opcodes import (
    ATOMIC_OPS,
    BPF_CMPXCHG,
    BPF_FETCH,
    BPF_MEMSX,
    BPF_STX,
    SIZES,
)
from userbpf.tables.maps import MAP_TYPES, MapFlag, MapType, type_name

from . import bounds, stack
from .alu import MAX_OFFSET
from .diagnosis import Reject
from .facts import Kind
from .state import UNKNOWN_SCALAR, Reg, const_scalar, scalar

if TYPE_CHECKING:
    from userbpf.isa import Insn
    from userbpf.object.model import MapSpec

    from .env import Env

__all__ = ["atomic", "check_region", "direct_value", "load", "readable", "store", "writable"]

_FROZEN: Final = ("rodata", "kconfig")


def _name(env: Env, pointer: Reg) -> tuple[str, int]:
    """What a region is called in messages, and its size."""
    if pointer.kind is Kind.MAP_VALUE:
        spec = env.maps[pointer.map]
        if spec.kind == "map":
            return f"the value of map '{spec.name}'", spec.value_size
        return f"the global variables '{spec.name}'", spec.value_size
    return "the reserved record", pointer.size


def _pointer(env: Env, number: int, what: str) -> Reg:
    """A register that is followed as a pointer."""
    pointer = env.read(number)
    if pointer.null:
        target = _name(env, pointer)[0] if pointer.kind in (Kind.MAP_VALUE, Kind.MEM) else "it"
        raise Reject(
            "null-deref",
            f"the {what} goes through r{number}, which may be NULL: it was not tested",
            known=(f"r{number} points to {target}, or is NULL",),
            reg=number,
        )
    if pointer.kind is Kind.SCALAR:
        raise Reject(
            "bad-pointer",
            f"the {what} goes through r{number}, which is a number, not a pointer that the verifier can follow",
            known=(f"r{number} is {pointer.describe()}",),
            reg=number,
        )
    if pointer.kind is Kind.MAP:
        raise Reject("map-pointer", f"the {what} goes into the map '{env.maps[pointer.map].name}' itself", reg=number)
    if pointer.kind is Kind.FUNC:
        raise Reject("bad-pointer", f"the {what} goes through r{number}, which is a function", reg=number)
    return pointer


def check_region(env: Env, pointer: Reg, off: int, size: int, number: int, what: str) -> None:
    """``size`` bytes at ``pointer + off`` lie in the map value or record (check_mem_region_access)."""
    name, limit = _name(env, pointer)
    rng = pointer.rng
    known = (f"r{number} is {pointer.describe()}", f"{name} has {limit} bytes")
    low = pointer.off + off + rng.smin
    unit = "byte" if size == 1 else "bytes"
    if low < 0:
        where = f"offset {low}" if rng.is_const else "a negative offset" if low < -MAX_OFFSET else f"offset {low}"
        raise Reject(
            "mem-out-of-bounds",
            f"the {what} of {size} {unit} can be at {where}, before the start of {name}",
            known=known,
            help="use an unsigned index, or test that it is not negative:\nif (index < 0) return 0;"
            if not rng.is_const
            else None,
            reg=number,
        )
    if rng.umax >= MAX_OFFSET:
        raise Reject(
            "mem-out-of-bounds",
            f"the {what} of {size} {unit} is at an offset without upper bound in {name}",
            known=known,
            reg=number,
        )
    high = pointer.off + off + rng.umax
    if high + size > limit:
        where = f"offset {high}" if rng.is_const else f"an offset up to {high}"
        raise Reject(
            "mem-out-of-bounds",
            f"the {what} of {size} {unit} at {where} ends behind {name}",
            known=known,
            help=f"the last valid offset here is {limit - size}" if rng.is_const and limit >= size else None,
            reg=number,
        )


def readable(env: Env, pointer: Reg, number: int) -> None:
    """The program may read the map (check_map_access_type)."""
    if pointer.kind is Kind.MAP_VALUE and env.maps[pointer.map].flags & MapFlag.WRONLY_PROG:
        raise Reject("write-only", f"the program may not read the map '{env.maps[pointer.map].name}'", reg=number)


def writable(env: Env, pointer: Reg, number: int) -> None:
    """The program may write the map."""
    if pointer.kind is not Kind.MAP_VALUE:
        return
    spec = env.maps[pointer.map]
    if spec.kind in _FROZEN or spec.flags & MapFlag.RDONLY_PROG:
        what = "constants" if spec.kind in _FROZEN else f"map '{spec.name}', which is declared read-only"
        raise Reject("read-only", f"the program writes to {what}", known=(f"r{number} points into '{spec.name}'",))


def _frozen_value(spec: MapSpec, offset: int, size: int) -> int | None:
    """The constant at an offset of constants that cannot change any more (bpf_map_direct_read)."""
    if spec.kind not in _FROZEN or spec.initial is None:
        return None
    return int.from_bytes(spec.initial[offset : offset + size].ljust(size, b"\0"), "little")


def load(env: Env, insn: Insn) -> None:
    """``dst = *(size *)(src + off)``, also sign-extending."""
    size = SIZES[insn.op & 0x18]
    is_signed = insn.op & 0xE0 == BPF_MEMSX
    pointer = _pointer(env, insn.src, "read")
    value = _read(env, pointer, insn.off, size, insn.src)
    if size < 8 and value.kind is Kind.SCALAR:
        rng = bounds.sext(value.rng, size) if is_signed else bounds.trunc(value.rng, size)
        if rng is not value.rng:
            value = scalar(rng)
    env.write(insn.dst, value)


def _read(env: Env, pointer: Reg, off: int, size: int, number: int) -> Reg:
    offset = pointer.offset
    if offset is not None:
        offset += off
    _record(env, pointer, offset)
    if pointer.kind is Kind.STACK:
        return stack.load(env, pointer, off, size, number)
    if pointer.kind is Kind.CTX:
        _read_context(env, pointer, offset, size, number)
        return UNKNOWN_SCALAR
    readable(env, pointer, number)
    check_region(env, pointer, off, size, number, "read")
    if pointer.kind is Kind.MAP_VALUE and offset is not None:
        known = _frozen_value(env.maps[pointer.map], offset, size)
        if known is not None:
            return const_scalar(known)
    return UNKNOWN_SCALAR


def _record(env: Env, pointer: Reg, offset: int | None) -> None:
    map_index = pointer.map if pointer.kind is Kind.MAP_VALUE else None
    env.facts.access(env.pc, pointer.kind, map_index, offset)


def _read_context(env: Env, pointer: Reg, offset: int | None, size: int, number: int) -> None:
    context = env.context
    if offset is None:
        raise Reject(
            "ctx-access",
            f"the context ({context.name}) is read at a variable offset",
            known=(f"r{number} is {pointer.describe()}",),
            reg=number,
        )
    if pointer.offset != 0:
        raise Reject(
            "ctx-access",
            f"the context is read through a pointer that was moved by {pointer.offset} bytes",
            help="read the field from the context itself, ctx->field, or copy the whole context with a helper",
            reg=number,
        )
    if context.field_at(offset, size) is None:
        raise Reject(
            "ctx-access",
            f"{size} bytes at offset {offset} of the context are not a field of {context.name}, "
            f"which has {context.size} bytes",
            reg=number,
        )
    env.facts.ctx_reads.add((offset, size))


def store(env: Env, insn: Insn) -> None:
    """``*(size *)(dst + off) = src`` or ``= imm``."""
    size = SIZES[insn.op & 0x18]
    if insn.op & 7 == BPF_STX:
        source = insn.src
        value = env.read(source)
    else:
        source = -1
        value = const_scalar(insn.imm)
    pointer = _pointer(env, insn.dst, "write")
    _write(env, pointer, insn.off, size, insn.dst, value, source)


def _write(env: Env, pointer: Reg, off: int, size: int, number: int, value: Reg, source: int) -> None:
    offset = pointer.offset
    _record(env, pointer, None if offset is None else offset + off)
    if pointer.kind is Kind.STACK:
        stack.store(env, pointer, off, size, number, value, source)
        return
    if pointer.kind is Kind.CTX:
        field = None if offset is None else env.context.field_at(offset + off, size)
        name = f"field {field.name} of " if field is not None else ""
        raise Reject("ctx-write", f"the program writes to {name}the context ({env.context.name}), which is read-only")
    writable(env, pointer, number)
    check_region(env, pointer, off, size, number, "write")
    if value.kind is Kind.CTX:
        env.facts.ctx_escapes = True


def atomic(env: Env, insn: Insn) -> None:
    """A locked read-modify-write (RFC 9669 section 5.3)."""
    size = SIZES[insn.op & 0x18]
    if insn.imm not in ATOMIC_OPS:
        raise Reject("structure", f"the atomic operation {insn.imm:#x} does not exist")
    env.read(insn.src)
    if insn.imm == BPF_CMPXCHG:
        env.read(0)
    pointer = _pointer(env, insn.dst, "atomic access")
    if pointer.kind is Kind.CTX:
        raise Reject("ctx-write", f"an atomic operation writes to the context ({env.context.name}), which is read-only")
    value, mask = pointer.rng.tnum
    if ((value + pointer.off + insn.off) | mask) & (size - 1):
        raise Reject(
            "mem-unaligned",
            f"an atomic operation on {size} bytes is at an offset that is not a multiple of {size}",
            known=(f"r{insn.dst} is {pointer.describe()}",),
            reg=insn.dst,
        )
    fetched = None if not insn.imm & BPF_FETCH else 0 if insn.imm == BPF_CMPXCHG else insn.src
    if fetched == insn.dst:
        # As in Linux, where the pointer is gone before the write is checked.
        raise Reject("bad-pointer", f"the atomic operation returns the old value in r{fetched}, its own pointer")
    old = _read(env, pointer, insn.off, size, insn.dst)
    if old.is_pointer:
        raise Reject("bad-pointer-arith", f"an atomic operation changes {old.describe()} on the stack", reg=insn.dst)
    # The new value is not followed; a constant source would be wrong as a spill.
    _write(env, pointer, insn.off, size, insn.dst, UNKNOWN_SCALAR, -1)
    env.note = 0
    if fetched is not None:
        env.write(fetched, scalar(bounds.trunc(bounds.UNKNOWN, size)))


def direct_value(env: Env, index: int, offset: int) -> Reg:
    """The address of a global variable: BPF_PSEUDO_MAP_IDX_VALUE."""
    spec = env.maps[index]
    info = MAP_TYPES.get(MapType(spec.type)) if spec.type in set(MapType) else None
    if info is None or not info.direct_value or spec.max_entries != 1:
        raise Reject("helper-map", f"the map '{spec.name}' ({type_name(spec.type)}) has no value that can be addressed")
    if offset >= spec.value_size:
        raise Reject(
            "mem-out-of-bounds", f"offset {offset} is behind the {spec.value_size} bytes of the variables '{spec.name}'"
        )
    return Reg(Kind.MAP_VALUE, off=offset, map=index)
