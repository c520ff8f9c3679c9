"""Runs a program on concrete values and checks every step against what the verifier promised.

Memory is a set of regions far apart, so any access that leaves its region is seen. Helpers are modelled by their
row in the table: they read and fill their memory arguments, and return any value that their kind allows. Promises
checked: memory safety, initialised helper input, termination, references given back, and the facts (kinds of
registers, regions and offsets of accesses, constants of calls).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from userbpf.isa import imm64
from userbpf.object.model import MapSpec, Program
from userbpf.tables.helpers import HELPERS, Arg, Ret
from userbpf.verifier import Facts, Kind
from userbpf.verifier.cfg import analyse

U64 = (1 << 64) - 1
U32 = (1 << 32) - 1
CTX_SIZE = 168
STEPS = 50_000
MAP_BASE = 0xDEAD_0000_0000_0000
_NEAR = 1 << 30


class Violation(AssertionError):
    """A promise was broken."""


@dataclass
class Region:
    kind: Kind
    base: int
    data: bytearray
    map: int | None = None
    live: bool = True
    written: bytearray = field(default_factory=bytearray)


Regs = list[int | None]
"""None: not set."""


def sext(value: int, bits: int) -> int:
    sign = 1 << (bits - 1)
    return ((value & ((1 << bits) - 1)) ^ sign) - sign


class Machine:
    """One run. ``rng`` decides the context, the results of helpers, and what they fill memory with."""

    def __init__(self, program: Program, facts: Facts, rng: random.Random) -> None:
        self.program = program
        self.facts = facts
        self.rng = rng
        self.regions: list[Region] = []
        self.ctx = self.region(Kind.CTX, CTX_SIZE)
        for offset in range(0, CTX_SIZE, 8):
            self.ctx.data[offset : offset + 8] = self.number().to_bytes(8, "little")
        self.values: dict[tuple[int, int], Region] = {}
        self.refs: list[Region] = []
        self.stacks = [self.region(Kind.STACK, 512)]
        self.seen: list[tuple[int, Regs]] = []
        self.live = analyse(program).live

    def number(self) -> int:
        """An interesting 64-bit number."""
        rng = self.rng
        match rng.randrange(5):
            case 0:
                return rng.randrange(-10, 80) & U64
            case 1:
                return (rng.choice((1 << 7, 1 << 15, 1 << 31, 1 << 32, 1 << 63)) + rng.randrange(-3, 4)) & U64
            case 2:
                return rng.getrandbits(32)
            case _:
                return rng.getrandbits(64)

    def region(self, kind: Kind, size: int, map: int | None = None) -> Region:
        base = 0x1_0000_0000_0000 * (len(self.regions) + 1)
        region = Region(kind, base, bytearray(size), map, written=bytearray(size))
        self.regions.append(region)
        return region

    # ---- memory ------------------------------------------------------------------------------------------------

    def find(self, address: int, size: int, what: str) -> tuple[Region, int]:
        for region in self.regions:
            offset = address - region.base
            if region.live and offset in range(len(region.data) - size + 1):
                return region, offset
        raise Violation(f"{what} of {size} bytes at {address:#x} is in no region")

    def near(self, address: int) -> Region | None:
        """The region that a pointer, perhaps moved out of it, belongs to."""
        for region in self.regions:
            if -_NEAR < address - region.base < _NEAR:
                return region
        return None

    def access(self, pc: int, address: int, size: int, *, write: bool) -> tuple[Region, int]:
        region, offset = self.find(address, size, f"instruction {pc}: the {'write' if write else 'read'}")
        fact = self.facts.mem.get(pc)
        if fact is None:
            raise Violation(f"instruction {pc} accesses memory and has no fact")
        if fact.kind is not Kind.MIXED and fact.kind is not region.kind:
            raise Violation(f"instruction {pc}: region {region.kind!r}, the fact says {fact.kind!r}")
        if fact.map is not None and fact.map != region.map:
            raise Violation(f"instruction {pc}: map {region.map}, the fact says {fact.map}")
        if fact.offset is not None:
            start = offset - (512 if region.kind is Kind.STACK else 0)
            if start != fact.offset:
                raise Violation(f"instruction {pc}: offset {start}, the fact says {fact.offset}")
        if region.kind is Kind.CTX:
            if write:
                raise Violation(f"instruction {pc} writes the context")
            if (offset, size) not in self.facts.ctx_reads:
                raise Violation(f"instruction {pc}: read of context {offset}:{size} is not in the facts")
        if region.map is not None and write and self.program.maps[region.map].kind == "rodata":
            raise Violation(f"instruction {pc} writes constants")
        return region, offset

    def value_of(self, index: int, key: int) -> Region:
        region = self.values.get((index, key))
        if region is None:
            spec = self.program.maps[index]
            region = self.region(Kind.MAP_VALUE, spec.value_size, index)
            initial = spec.initial
            region.data[:] = (
                initial.ljust(spec.value_size, b"\0") if initial is not None else self.rng.randbytes(spec.value_size)
            )
            self.values[index, key] = region
        return region

    # ---- the run -----------------------------------------------------------------------------------------------

    def run(self) -> int:
        insns = self.program.insns
        regs: Regs = [None] * 11
        regs[1] = self.ctx.base
        regs[10] = self.stacks[0].base + 512
        calls: list[tuple[int, Regs]] = []

        def get(number: int) -> int:
            value = regs[number]
            if value is None:
                raise Violation(f"instruction {pc} reads r{number}, which is not set")
            return value

        pc = 0
        for _ in range(STEPS):
            self.check_registers(pc, regs)
            self.seen.append((pc, regs[:]))
            insn = insns[pc]
            op, dst, src, off, imm = insn
            cls = op & 7
            if cls in (4, 7):
                by_reg = op & 8 and op & 0xF0 != 0xD0
                old = 0 if op & 0xF0 == 0xB0 else get(dst)
                regs[dst] = self.alu(op, old, get(src) if by_reg else imm, insn.off, imm)
            elif op == 0x18:
                regs[dst] = self.wide(pc)
                pc += 1
            elif cls == 1:
                size = {0: 4, 8: 2, 16: 1, 24: 8}[op & 0x18]
                region, at = self.access(pc, (get(src) + off) & U64, size, write=False)
                value = int.from_bytes(region.data[at : at + size], "little")
                regs[dst] = sext(value, 8 * size) & U64 if op & 0xE0 == 0x80 else value
            elif cls in (2, 3):
                value = get(src) if cls == 3 else imm
                self.store(pc, regs, (get(dst) + off) & U64, value)
            elif op == 0x95:
                if not calls:
                    if self.refs:
                        raise Violation("a record was not given back")
                    return get(0)
                pc, saved = calls.pop()
                self.stacks.pop().live = False
                regs[1:] = [None] * 5 + saved
            elif op == 0x85 and src == 1:
                calls.append((pc, regs[6:11]))
                self.stacks.append(self.region(Kind.STACK, 512))
                regs[0] = None
                regs[6:10] = [None] * 4
                regs[10] = self.stacks[-1].base + 512
                pc += imm
            elif op == 0x85:
                self.call(pc, imm, regs)
            elif op == 0x05:
                pc += off
            elif op == 0x06:
                pc += imm
            elif self.taken(op, get(dst), get(src) if op & 8 else imm & U64):
                pc += off
            pc += 1
        raise Violation(f"still running after {STEPS} steps")

    def check_registers(self, pc: int, regs: Regs) -> None:
        kinds = self.facts.regs[pc]
        if kinds is None:
            raise Violation(f"instruction {pc} is reached and has no facts")
        for number, kind in enumerate(kinds):
            value = regs[number]
            if value is None or not self.live[pc] >> number & 1:
                continue  # nobody reads it from here on: the fact is about other paths
            if kind in (Kind.CTX, Kind.STACK, Kind.MAP_VALUE, Kind.MEM):
                region = self.near(value)
                null = value == 0 and kind in (Kind.MAP_VALUE, Kind.MEM)
                if not null and (region is None or region.kind is not kind):
                    raise Violation(f"instruction {pc}: r{number} is {value:#x}, the fact says {kind!r}")

    def alu(self, op: int, a: int, b: int, off: int, imm: int) -> int:
        is32 = op & 7 == 4
        kind = op & 0xF0
        if kind == 0xD0:
            raw = (a & ((1 << imm) - 1)).to_bytes(imm // 8, "little")
            swap = op & 7 == 7 or op & 8
            return int.from_bytes(raw, "big" if swap else "little")
        bits, mask = (32, U32) if is32 else (64, U64)
        if kind == 0xB0:
            return (sext(b, off) if off else b) & mask
        if kind == 0x80:
            return -a & mask
        a, b = a & mask, b & mask
        if kind in (0x30, 0x90):
            return self.divide(kind, a, b, bits, signed=off == 1) & mask
        results = {
            0x00: lambda: a + b,
            0x10: lambda: a - b,
            0x20: lambda: a * b,
            0x40: lambda: a | b,
            0x50: lambda: a & b,
            0x60: lambda: a << (b & (bits - 1)),
            0x70: lambda: a >> (b & (bits - 1)),
            0xA0: lambda: a ^ b,
            0xC0: lambda: sext(a, bits) >> (b & (bits - 1)),
        }
        return results[kind]() & mask

    def divide(self, kind: int, a: int, b: int, bits: int, *, signed: bool) -> int:
        """Division by zero gives 0, modulo zero leaves the value (RFC 9669 section 4.1)."""
        if b == 0:
            return 0 if kind == 0x30 else a
        if not signed:
            return a // b if kind == 0x30 else a % b
        a, b = sext(a, bits), sext(b, bits)
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        return quotient if kind == 0x30 else a - quotient * b

    def taken(self, op: int, a: int, b: int) -> bool:
        bits, mask = (32, U32) if op & 7 == 6 else (64, U64)
        a, b = a & mask, b & mask
        sa, sb = sext(a, bits), sext(b, bits)
        return {
            0x10: a == b,
            0x20: a > b,
            0x30: a >= b,
            0x40: bool(a & b),
            0x50: a != b,
            0x60: sa > sb,
            0x70: sa >= sb,
            0xA0: a < b,
            0xB0: a <= b,
            0xC0: sa < sb,
            0xD0: sa <= sb,
        }[op & 0xF0]

    def wide(self, pc: int) -> int:
        insn = self.program.insns[pc]
        if insn.src == 0:
            return imm64(self.program.insns, pc)
        if insn.src == 6:
            return self.value_of(insn.imm, 0).base + self.program.insns[pc + 1].imm
        return MAP_BASE + insn.imm

    def store(self, pc: int, regs: Regs, address: int, value: int) -> None:
        op, _, src, _, imm = self.program.insns[pc]
        size = {0: 4, 8: 2, 16: 1, 24: 8}[op & 0x18]
        mask = (1 << (8 * size)) - 1
        region, at = self.access(pc, address, size, write=True)
        value &= mask
        if op & 0xE0 == 0xC0:
            old = int.from_bytes(region.data[at : at + size], "little")
            kind = imm & 0xF0
            new = {0x00: old + value, 0x40: old | value, 0x50: old & value, 0xA0: old ^ value, 0xE0: value}.get(kind, 0)
            if kind == 0xF0:
                new = value if (regs[0] or 0) & mask == old else old
                regs[0] = old
            elif imm & 1:
                regs[src] = old
            value = new & mask
        region.data[at : at + size] = value.to_bytes(size, "little")
        region.written[at : at + size] = b"\1" * size

    # ---- helpers -----------------------------------------------------------------------------------------------

    def call(self, pc: int, number: int, regs: Regs) -> None:
        helper = HELPERS[number]
        fact = self.facts.calls[pc]
        if fact.helper != number:
            raise Violation(f"instruction {pc} calls {number}, the fact says {fact.helper}")
        chosen: int | None = None
        spec: MapSpec | None = None
        key = 0
        most = 0
        for position, kind in enumerate(helper.args):
            if kind is Arg.VARARG:
                continue
            value = regs[position + 1]
            if value is None:
                raise Violation(f"instruction {pc}: argument {position + 1} is not set")
            const = fact.consts[position]
            if const is not None and const & U64 != value:
                raise Violation(f"instruction {pc}: argument {position + 1} is {value}, the fact says {const}")
            if kind is Arg.CONST_MAP_PTR:
                chosen = value - MAP_BASE
                if fact.map not in (None, chosen):
                    raise Violation(f"instruction {pc}: the map is not that of the fact")
                spec = self.program.maps[chosen]
            elif kind is Arg.MAP_KEY and spec is not None:
                key = int.from_bytes(self.bytes(pc, value, spec.key_size, fills=False), "little")
            elif kind in (Arg.MAP_VALUE, Arg.UNINIT_MAP_VALUE) and spec is not None:
                self.bytes(pc, value, spec.value_size, fills=kind is Arg.UNINIT_MAP_VALUE)
            elif kind in (Arg.MEM, Arg.UNINIT_MEM, Arg.MEM_OR_NULL):
                size = regs[position + 2] or 0
                if size > 1 << 29:
                    raise Violation(f"instruction {pc}: a helper gets a size of {size}")
                most = size
                if not (kind is Arg.MEM_OR_NULL and value == 0 and size == 0):
                    self.bytes(pc, value, size, fills=kind is Arg.UNINIT_MEM)
            elif kind is Arg.UNINIT_LONG:
                self.bytes(pc, value, 8, fills=True)
            elif kind is Arg.CTX and value != self.ctx.base:
                raise Violation(f"instruction {pc}: the context was changed")
            elif kind is Arg.ALLOC_MEM:
                self.give_back(pc, value)
        alloc = fact.consts[1] if helper.ret is Ret.ALLOC_MEM_OR_NULL else None
        regs[0] = self.result(helper.name, helper.ret, chosen, key, most, alloc)
        regs[1:6] = [None] * 5

    def bytes(self, pc: int, address: int, size: int, *, fills: bool) -> bytes:
        if size == 0:
            return b""
        region, at = self.find(address, size, f"instruction {pc}: memory for a helper")
        if fills:
            if region.kind is Kind.CTX or (region.map is not None and self.program.maps[region.map].kind == "rodata"):
                raise Violation(f"instruction {pc}: a helper writes read-only memory")
            region.data[at : at + size] = self.rng.randbytes(size)
            region.written[at : at + size] = b"\1" * size
        elif region.kind is Kind.STACK and 0 in region.written[at : at + size]:
            raise Violation(f"instruction {pc}: a helper reads stack that was never written")
        return bytes(region.data[at : at + size])

    def give_back(self, pc: int, address: int) -> None:
        for region in self.refs:
            if region.base == address:
                region.live = False
                self.refs.remove(region)
                return
        raise Violation(f"instruction {pc} gives back {address:#x}, which is no record")

    def result(self, name: str, ret: Ret, map: int | None, key: int, most: int, alloc: int | None) -> int | None:
        if ret is Ret.MAP_VALUE_OR_NULL and map is not None:
            spec = self.program.maps[map]
            if spec.type in (2, 6):
                return self.value_of(map, key).base if key < spec.max_entries else 0
            return self.value_of(map, key).base if self.rng.random() < 0.8 else 0
        if ret is Ret.ALLOC_MEM_OR_NULL:
            if self.rng.random() < 0.3:
                return 0
            if alloc is None:
                raise Violation("a record is reserved and its size is not in the facts")
            record = self.region(Kind.MEM, alloc)
            self.refs.append(record)
            return record.base
        if ret is Ret.VOID:
            return None
        if name.endswith("_str"):
            return self.rng.randrange(0, most + 1) if self.rng.random() < 0.8 else -14 & U64
        return self.number()
