"""Random programs: what compilers make of bounds checks, masks, spills and lookups, with mistakes mixed in."""

from __future__ import annotations

import random

from userbpf.isa import Insn, wide
from userbpf.object.model import Subprog

ALU = (0x00, 0x10, 0x20, 0x40, 0x50, 0x60, 0x70, 0xA0, 0xC0)
JUMPS = (0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0, 0xB0, 0xC0, 0xD0)
SIZES = ((0x18, 8), (0x00, 4), (0x08, 2), (0x10, 1))
SCRATCH = (0, 2, 3, 4, 5, 7, 8, 9)


class Generator:
    """``r6`` keeps the context. Jumps go forward, but for loops with a constant number of turns."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.out: list[Insn] = []

    def immediate(self) -> int:
        rng = self.rng
        return rng.choice(
            (
                rng.randrange(0, 9),
                rng.randrange(-4, 64),
                (1 << rng.randrange(1, 31)) - 1,
                rng.randrange(-(1 << 31), 1 << 31),
            )
        )

    def reg(self) -> int:
        return self.rng.choice(SCRATCH)

    def add(self, op: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> None:
        self.out.append(Insn(op, dst, src, off, imm))

    def number(self) -> None:
        bits, size = self.rng.choice(SIZES)
        op = 0x81 if size < 8 and self.rng.random() < 0.3 else 0x61
        self.add(op | bits, self.reg(), 6, self.rng.randrange(0, 168 // size) * size)

    def alu(self) -> None:
        rng = self.rng
        cls, op, dst = rng.choice((4, 7)), rng.choice(ALU), self.reg()
        if rng.random() < 0.4 and op not in (0x60, 0x70, 0xC0):
            self.add(cls | op | 8, dst, self.reg())
        else:
            shift = op in (0x60, 0x70, 0xC0)
            self.add(cls | op, dst, imm=rng.randrange(0, 32) if shift else self.immediate())

    def mask(self) -> None:
        self.add(0x57, self.reg(), imm=(1 << self.rng.randrange(1, 7)) - 1)

    def move(self) -> None:
        rng = self.rng
        kind = rng.randrange(5)
        if kind == 0:
            self.add(0xBF, self.reg(), self.reg(), rng.choice((8, 16, 32)))
        elif kind == 1:
            self.add(0xBC, self.reg(), self.reg())
        elif kind == 2:
            self.add(0xB7, self.reg(), imm=self.immediate())
        else:
            self.add(0xBF, self.reg(), self.reg())

    def odd(self) -> None:
        rng = self.rng
        kind = rng.randrange(4)
        if kind == 0:
            self.add(rng.choice((0xDC, 0xD4, 0xD7)), self.reg(), imm=rng.choice((16, 32, 64)))
        elif kind == 1:
            self.add(rng.choice((0x87, 0x84)), self.reg())
        elif kind == 2:
            self.add(rng.choice((0x3F, 0x9F, 0x3C, 0x9C)), self.reg(), self.reg(), rng.choice((0, 1)))
        else:
            self.out += wide(self.reg(), rng.getrandbits(64))

    def jump(self) -> None:
        rng = self.rng
        cls, op, distance = rng.choice((5, 5, 6)), rng.choice(JUMPS), rng.randrange(1, 9)
        if rng.random() < 0.35:
            self.add(cls | op | 8, self.reg(), self.reg(), distance)
        else:
            self.add(cls | op, self.reg(), 0, distance, self.immediate())

    def slot(self, size: int) -> int:
        return -self.rng.randrange(1, 48 // size + 1) * size

    def stack(self) -> None:
        rng = self.rng
        bits, size = rng.choice(SIZES[:2] * 3 + SIZES)
        kind = rng.randrange(5)
        if kind == 0:
            self.add(0x62 | bits, 10, 0, self.slot(size), self.immediate())
        elif kind <= 2:
            self.add(0x63 | bits, 10, self.reg(), self.slot(size))
        else:
            self.add(0x61 | bits, self.reg(), 10, self.slot(size))

    def variable_stack(self) -> None:
        pointer, index = self.rng.sample(SCRATCH, 2)
        bits, size = self.rng.choice(SIZES)
        self.add(0x57, index, imm=self.rng.choice((7, 15, 24, 8, 31)))
        self.add(0xBF, pointer, 10)
        self.add(0x07, pointer, imm=-self.rng.randrange(1, 6) * 8)
        self.add(0x0F, pointer, index)
        if self.rng.random() < 0.5:
            self.add(0x63 | bits, pointer, self.reg(), 0)
        else:
            self.add(0x61 | bits, self.reg(), pointer, 0)

    def lookup(self) -> None:
        rng = self.rng
        index = rng.choice((0, 1, 2, 5, 6))
        if index >= 5:
            self.out += (Insn(0x18, 9, 6, 0, index), Insn(0, 0, 0, 0, rng.randrange(0, 24)))
        else:
            key = rng.choice((-8, -16))
            if rng.random() < 0.5:
                self.add(0x7A, 10, 0, key, rng.randrange(0, 20))
            else:
                self.add(0x7B, 10, self.reg(), key)
            self.add(0xBF, 2, 10)
            self.add(0x07, 2, imm=key)
            self.out += (Insn(0x18, 1, 5, 0, index), Insn(0, 0, 0, 0, 0))
            self.add(0x85, imm=1)
            self.add(0xBF, 9, 0)
            if rng.random() < 0.9:
                self.null_test(rng.choice((0, 9)))
        for _ in range(rng.randrange(1, 4)):
            self.value(9)

    def null_test(self, pointer: int) -> None:
        """Leaves the program, or a part of it, when the pointer is NULL."""
        if self.rng.random() < 0.6:
            self.add(0x55, pointer, 0, 2, 0)
            self.add(0xB7, 0, imm=0)
            self.add(0x95)
        else:
            self.add(0x15, pointer, 0, self.rng.randrange(4, 10), 0)

    def value(self, pointer: int) -> None:
        rng = self.rng
        bits, size = rng.choice(SIZES)
        index = rng.choice((2, 3, 4, 5, 7, 8))
        if rng.random() < 0.6:
            if rng.random() < 0.6:
                self.add(0x57, index, imm=rng.choice((7, 15, 24, 31, 63)))
            else:
                self.add(rng.choice((0x25, 0x35, 0x65)), index, 0, rng.randrange(2, 6), rng.randrange(8, 64))
            moved = rng.choice([reg for reg in (0, 2, 3, 4, 5, 7, 8) if reg != index])
            self.add(0xBF, moved, pointer)
            self.add(rng.choice((0x0F, 0x0F, 0x1F)), moved, index)
            pointer = moved
        kind = rng.randrange(4)
        off = rng.randrange(-2, 34)
        if kind == 0:
            self.add(0x63 | bits, pointer, self.reg(), off)
        elif kind == 1 and size >= 4:
            self.add(0xC3 | bits, pointer, self.reg(), off & ~7, rng.choice((0, 1, 0x40, 0x51, 0xE1, 0xF1)))
        else:
            self.add(0x61 | bits, self.reg(), pointer, off)

    def read_user(self) -> None:
        rng = self.rng
        off = -rng.randrange(1, 7) * 8
        self.add(0xBF, 1, 10)
        self.add(0x07, 1, imm=off)
        if rng.random() < 0.5:
            self.add(0xB7, 2, imm=rng.randrange(0, 34))
        else:
            self.add(0x57, 2, imm=rng.choice((7, 15, 31)))
        self.add(0xBF, 3, self.reg())
        self.add(0x85, imm=rng.choice((112, 114)))

    def record(self) -> None:
        """Reserve, write, submit: with the NULL side jumping over it all."""
        rng = self.rng
        self.out += (Insn(0x18, 1, 5, 0, 3), Insn(0, 0, 0, 0, 0))
        self.add(0xB7, 2, imm=16)
        self.add(0xB7, 3, imm=0)
        self.add(0x85, imm=131)
        body = Generator(rng)
        for _ in range(rng.randrange(1, 3)):
            bits, size = rng.choice(SIZES)
            body.add(0x63 | bits, 0, rng.choice((7, 8)), rng.randrange(0, 18 - size))
        self.add(0x15, 0, 0, len(body.out) + 3, 0)
        self.out += body.out
        self.add(0xBF, 1, 0)
        self.add(0xB7, 2, imm=0)
        self.add(0x85, imm=rng.choice((132, 133)))

    def loop(self) -> None:
        """A counter in r8, a body that may not touch it, and a jump back."""
        rng = self.rng
        self.add(0xB7, 8, imm=0)
        body = Generator(rng)
        for _ in range(rng.randrange(1, 5)):
            rng.choice((body.alu, body.mask, body.stack, body.move))()
        kept = [insn for insn in body.out if not (insn.dst == 8 and insn.op & 7 in (1, 4, 7))]
        self.out += kept
        self.add(0x07, 8, imm=1)
        self.add(rng.choice((0xA5, 0x55, 0xC5)), 8, 0, -len(kept) - 2, rng.randrange(2, 12))

    def choice(self) -> None:
        """One of two numbers, by a condition that nothing is known about; perhaps through a copy or a spill."""
        rng = self.rng
        number = rng.choice((3, 4, 5, 7, 8))
        small, large = rng.randrange(0, 30), rng.choice((rng.randrange(20, 60), 200))
        self.add(0xB7, number, imm=rng.choice((small, large)))
        self.add(0x79, 2, 6, rng.randrange(0, 21) * 8)
        self.add(rng.choice((0x15, 0x25, 0x65)), 2, 0, 1, rng.randrange(0, 9))
        self.add(0xB7, number, imm=rng.choice((small, large)))
        kind = rng.randrange(4)
        if kind == 0:
            slot = self.slot(8)
            self.add(0x7B, 10, number, slot)
            self.add(0x79, self.reg(), 10, slot)
        elif kind == 1:
            copy = self.reg()
            self.add(0xBF, copy, number)
            if rng.random() < 0.5:
                self.add(0x07, copy, imm=rng.randrange(1, 9))
            self.add(rng.choice((0x25, 0x35, 0xA5, 0xB5)), copy, 0, rng.randrange(1, 6), rng.randrange(5, 60))

    def globals(self) -> None:
        """Accesses of global variables: never NULL, so the index is what counts."""
        self.out += (Insn(0x18, 9, 6, 0, 6), Insn(0, 0, 0, 0, self.rng.choice((0, 8, 100))))
        for _ in range(self.rng.randrange(1, 4)):
            self.value(9)

    def call(self) -> None:
        """To the subprogram; its entry is not known yet."""
        self.add(0xBF, 1, self.rng.choice((2, 7, 10)))
        self.add(0xBF, 2, self.reg())
        self.add(0x85, 0, 1, 0, 0)


def _body(generator: Generator, length: int, *, calls: bool) -> None:
    choices = (
        [generator.number] * 2
        + [generator.alu] * 5
        + [generator.mask] * 3
        + [generator.move] * 4
        + [generator.odd]
        + [generator.jump] * 5
        + [generator.stack] * 6
        + [generator.variable_stack] * 2
        + [generator.lookup] * 4
        + [generator.globals] * 3
        + [generator.choice] * 4
        + [generator.read_user]
        + [generator.record]
        + [generator.loop]
        + ([generator.call] * 2 if calls else [])
    )
    for _ in range(length):
        generator.rng.choice(choices)()


def _clip(insns: list[Insn]) -> list[Insn]:
    """Forward jumps beyond the end go to the last two instructions; none goes into a wide one."""
    last = len(insns) - 2
    second = {index + 1 for index, insn in enumerate(insns) if insn.op == 0x18}
    result = []
    for index, insn in enumerate(insns):
        if insn.op & 7 in (5, 6) and insn.op not in (0x85, 0x95) and insn.off > 0:
            target = min(index + 1 + insn.off, last)
            target += target in second
            insn = insn._replace(off=max(target - index - 1, 0))
        result.append(insn)
    return result


def generate(rng: random.Random) -> tuple[tuple[Insn, ...], tuple[Subprog, ...]]:
    main = Generator(rng)
    main.add(0xBF, 6, 1)
    for number in SCRATCH:
        if rng.random() < 0.7:
            main.add(0x79, number, 6, rng.randrange(0, 21) * 8)
        else:
            main.add(0xB7, number, imm=main.immediate())
    calls = rng.random() < 0.3
    _body(main, rng.randrange(3, 16), calls=calls)
    main.add(0xB7, 0, imm=0)
    main.add(0x95)
    out = _clip(main.out)
    if not calls:
        return tuple(out), (Subprog("random", 0, len(out)),)
    entry = len(out)
    callee = Generator(rng)
    for number in (0, 3, 4, 5, 7, 8, 9):
        callee.add(0xB7, number, imm=callee.immediate())
    callee.add(0xBF, 6, 1)
    for _ in range(rng.randrange(2, 8)):
        rng.choice((callee.alu, callee.mask, callee.move, callee.stack, callee.jump))()
    bits, size = rng.choice(SIZES)
    callee.add(0x61 | bits, 3, 6, rng.choice((-8, -16, 0, 8)))
    callee.add(0x63 | bits, 6, rng.choice((3, 7)), rng.choice((-8, -16)))
    callee.add(0xB7, 0, imm=0) if rng.random() < 0.5 else callee.add(0xBF, 0, rng.choice((2, 3)))
    callee.add(0x95)
    out = [
        insn._replace(imm=entry - index - 1) if insn.op == 0x85 and insn.src == 1 else insn
        for index, insn in enumerate(out)
    ]
    out += _clip(callee.out)
    return tuple(out), (Subprog("random", 0, entry), Subprog("callee", entry, len(out)))
