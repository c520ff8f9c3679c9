"""One verified program to LLVM IR: each subprogram becomes an internal function.

Registers are two stack variables each: the number (``%rN.i``) and, where the verifier proved a pointer, the
pointer (``%rN.p``) with its provenance, so that LLVM sees real objects: the frame dissolves into registers,
``pt_regs`` shrinks to the fields that are read, map accesses keep their base.
The number is always right; the pointer is right wherever the facts say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from userbpf.codegen import alu
from userbpf.codegen.calls import CallLowering
from userbpf.codegen.ir import FunctionWriter, gep
from userbpf.errors import CodegenError, Place
from userbpf.isa import Insn, imm64
from userbpf.isa import opcodes as op
from userbpf.object import Program, Subprog
from userbpf.verifier import Kind, Verified

POINTERS: Final = frozenset({Kind.CTX, Kind.STACK, Kind.MAP, Kind.MAP_VALUE, Kind.MEM, Kind.FUNC})
SIZES: Final = {op.BPF_B: 8, op.BPF_H: 16, op.BPF_W: 32, op.BPF_DW: 64}

_ATOMICS: Final = {op.BPF_ADD: "add", op.BPF_OR: "or", op.BPF_AND: "and", op.BPF_XOR: "xor"}
_LDDW: Final = op.BPF_LD | op.BPF_IMM | op.BPF_DW
_PSEUDO_MAP_IDX: Final = 5
_PSEUDO_MAP_IDX_VALUE: Final = 6
_PSEUDO_CALL: Final = 1


def emit_program(verified: Verified, name: str, calls: CallLowering, map_numbers: Sequence[int]) -> str:
    """IR of all functions of ``verified``; the main one is ``@name(ptr %run, ptr %ctx) -> i64``.

    map_numbers: for each of the program's maps its index in the image.
    """
    signatures = {sub.start: _Signature(verified, name, k, sub) for k, sub in enumerate(verified.program.subprogs)}
    return "\n".join(
        _FunctionEmitter(verified, sub, signatures, calls, map_numbers).emit()
        for sub in verified.program.subprogs
        if verified.facts.regs[sub.start] is not None
    )


class _Signature:
    """IR name, parameters and result of one subprogram."""

    def __init__(self, verified: Verified, name: str, index: int, sub: Subprog) -> None:
        facts = verified.facts
        at_start = facts.regs[sub.start]
        self.main = index == 0
        self.symbol = f"@{name}" if self.main else f"@{name}.{index}"
        self.params: list[tuple[int, str]] = []
        self.returns_pointer = False
        if at_start is None:
            return
        if self.main:
            self.params = [(1, "ptr")]
        else:
            self.params = [
                (r, "ptr" if at_start[r] in POINTERS else "i64") for r in range(1, 6) if at_start[r] is not Kind.NONE
            ]
        kinds = {
            regs[0]
            for i in range(sub.start, sub.end)
            if verified.program.insns[i].op == op.BPF_JMP | op.BPF_EXIT and (regs := facts.regs[i]) is not None
        }
        self.returns_pointer = bool(kinds) and kinds <= POINTERS

    @property
    def result(self) -> str:
        return "ptr" if self.returns_pointer else "i64"


class _FunctionEmitter:
    def __init__(
        self,
        verified: Verified,
        sub: Subprog,
        signatures: Mapping[int, _Signature],
        calls: CallLowering,
        map_numbers: Sequence[int],
    ) -> None:
        self.program: Program = verified.program
        self.insns: tuple[Insn, ...] = verified.program.insns
        self.facts = verified.facts
        self.sub = sub
        self.signatures = signatures
        self.signature = signatures[sub.start]
        self.calls = calls
        self.map_numbers = map_numbers
        params = ", ".join(["ptr %run", *(f"{ty} %a{r}" for r, ty in self.signature.params)])
        self.w = FunctionWriter(f"define internal {self.signature.result} {self.signature.symbol}({params}) #0")

    # ---- registers -------------------------------------------------------------------------------

    def kind(self, i: int, reg: int) -> Kind:
        regs = self.facts.regs[i]
        return Kind.NONE if regs is None else regs[reg]

    def read(self, reg: int) -> str:
        return self.w.op(f"load i64, ptr %r{reg}.i")

    def read_pointer(self, i: int, reg: int) -> str:
        if self.kind(i, reg) in POINTERS:
            return self.w.op(f"load ptr, ptr %r{reg}.p")
        return self.w.op(f"inttoptr i64 {self.read(reg)} to ptr")

    def write(self, reg: int, value: str) -> None:
        self.w.do(f"store i64 {value}, ptr %r{reg}.i")

    def write_pointer(self, reg: int, value: str) -> None:
        self.w.do(f"store ptr {value}, ptr %r{reg}.p")
        self.write(reg, self.w.op(f"ptrtoint ptr {value} to i64"))

    def write_mixed(self, reg: int, value: str) -> None:
        """A number that may be a pointer on some way: both variables hold it."""
        self.w.do(f"store ptr {self.w.op(f'inttoptr i64 {value} to ptr')}, ptr %r{reg}.p")
        self.write(reg, value)

    def operand(self, insn: Insn, width: int) -> str:
        """The source of an arithmetic or jump instruction, of ``width`` bits."""
        if not insn.op & op.BPF_X:
            return str(insn.imm)
        value = self.read(insn.src)
        return value if width == 64 else self.w.op(f"trunc i64 {value} to i32")

    # ---- the function ----------------------------------------------------------------------------

    def emit(self) -> str:
        w, sub = self.w, self.sub
        for reg in range(11):
            w.do(f"%r{reg}.i = alloca i64")
            w.do(f"%r{reg}.p = alloca ptr")
        number = self.program.subprogs.index(sub)
        frame = (self.facts.stack[number] + 7) & ~7
        if frame:
            w.do(f"%frame = alloca [{frame} x i8], align 8")
            if self.facts.zero_stack[number]:
                w.do(f"call void @llvm.memset.p0.i64(ptr align 8 %frame, i8 0, i64 {frame}, i1 false)")
            self.write_pointer(10, gep(w, "%frame", frame))
        for reg, ty in self.signature.params:
            if ty == "ptr":
                self.write_pointer(reg, f"%a{reg}")
            elif self.kind(sub.start, reg) is Kind.MIXED:
                self.write_mixed(reg, f"%a{reg}")
            else:
                self.write(reg, f"%a{reg}")
        w.end(f"br label %L{sub.start}")
        leaders = self._leaders()
        i = sub.start
        while i < sub.end:
            if i in leaders:
                w.label(f"L{i}")
            insn = self.insns[i]
            width = 2 if insn.op == _LDDW else 1
            if self.facts.regs[i] is None:
                # The verifier proved that nothing reaches this instruction.
                if not w.terminated:
                    w.end("unreachable")
            elif not w.terminated:
                self._insn(i, insn)
            i += width
        if not w.terminated:
            w.end("unreachable")
        return w.text()

    def _leaders(self) -> set[int]:
        leaders = {self.sub.start}
        for i in range(self.sub.start, self.sub.end):
            insn = self.insns[i]
            if insn.op & 7 in (op.BPF_JMP, op.BPF_JMP32) and insn.op & 0xF0 not in (op.BPF_CALL, op.BPF_EXIT):
                leaders.add(self._target(i, insn))
                leaders.add(i + 1)
            elif insn.op == op.BPF_JMP | op.BPF_EXIT:
                leaders.add(i + 1)
        return {leader for leader in leaders if leader < self.sub.end}

    @staticmethod
    def _target(i: int, insn: Insn) -> int:
        far = insn.op & 7 == op.BPF_JMP32 and insn.op & 0xF0 == op.BPF_JA
        return i + 1 + (insn.imm if far else insn.off)

    def _insn(self, i: int, insn: Insn) -> None:
        cls = insn.op & 7
        if cls in (op.BPF_ALU, op.BPF_ALU64):
            self._alu(i, insn, 64 if cls == op.BPF_ALU64 else 32)
        elif cls in (op.BPF_JMP, op.BPF_JMP32):
            self._jump(i, insn, 64 if cls == op.BPF_JMP else 32)
        elif insn.op == _LDDW:
            self._wide(i, insn)
        elif cls == op.BPF_LDX:
            self._load(i, insn)
        elif cls in (op.BPF_ST, op.BPF_STX):
            if insn.op & 0xE0 == op.BPF_ATOMIC:
                self._atomic(i, insn)
            else:
                self._store(i, insn)
        else:
            raise self._refuse(i, f"the instruction with opcode {insn.op:#04x} cannot be compiled")

    def _refuse(self, i: int, message: str) -> CodegenError:
        return CodegenError(
            message,
            place=Place(file=self.program.object_name, prog=self.program.name, insn=i),
            hint="legacy packet loads and kernel functions are not offered to programs that run in user space",
        )

    # ---- arithmetic ------------------------------------------------------------------------------

    def _alu(self, i: int, insn: Insn, width: int) -> None:
        w, operation, dst = self.w, insn.op & 0xF0, insn.dst
        if operation == op.BPF_MOV:
            self._move(i, insn, width)
            return
        if operation == op.BPF_END:
            self.write(dst, alu.byte_order(w, insn.op, insn.imm, self.read(dst)))
            return
        if width == 64 and operation in (op.BPF_ADD, op.BPF_SUB) and self._pointer_arithmetic(i, insn):
            return
        mixed = Kind.MIXED in (self.kind(i, dst), self.kind(i, insn.src) if insn.op & op.BPF_X else Kind.SCALAR)
        left = self.read(dst) if width == 64 else w.op(f"trunc i64 {self.read(dst)} to i32")
        if operation == op.BPF_NEG:
            value = w.op(f"sub i{width} 0, {left}")
        else:
            value = alu.binary(w, operation, width, left, self.operand(insn, width), signed=insn.off == 1)
        if width == 32:
            self.write(dst, w.op(f"zext i32 {value} to i64"))
        elif mixed:
            self.write_mixed(dst, value)
        else:
            self.write(dst, value)

    def _pointer_arithmetic(self, i: int, insn: Insn) -> bool:
        """Pointer plus or minus a number, as address arithmetic on the pointer. False when it is not that."""
        dst_pointer = self.kind(i, insn.dst) in POINTERS
        src_pointer = bool(insn.op & op.BPF_X) and self.kind(i, insn.src) in POINTERS
        subtract = insn.op & 0xF0 == op.BPF_SUB
        if dst_pointer == src_pointer or (src_pointer and subtract):
            return False
        if dst_pointer:
            base, offset = self.read_pointer(i, insn.dst), self.operand(insn, 64)
        else:
            base, offset = self.read_pointer(i, insn.src), self.read(insn.dst)
        if subtract:
            offset = str(-int(offset)) if not insn.op & op.BPF_X else self.w.op(f"sub i64 0, {offset}")
        self.write_pointer(insn.dst, self.w.op(f"getelementptr i8, ptr {base}, i64 {offset}"))
        return True

    def _move(self, i: int, insn: Insn, width: int) -> None:
        w = self.w
        if not insn.op & op.BPF_X:
            self.write(insn.dst, str(insn.imm if width == 64 else insn.imm & 0xFFFFFFFF))
            return
        kind = self.kind(i, insn.src)
        if width == 64 and insn.off == 0:
            if kind in POINTERS:
                self.write_pointer(insn.dst, self.read_pointer(i, insn.src))
            elif kind is Kind.MIXED:
                self.write_mixed(insn.dst, self.read(insn.src))
            else:
                self.write(insn.dst, self.read(insn.src))
            return
        value = self.read(insn.src)
        if insn.off:
            short = w.op(f"trunc i64 {value} to i{insn.off}")
            value = w.op(f"sext i{insn.off} {short} to i{width}")
        else:
            value = w.op(f"trunc i64 {value} to i32")
        self.write(insn.dst, value if width == 64 else w.op(f"zext i32 {value} to i64"))

    # ---- jumps and calls -------------------------------------------------------------------------

    def _jump(self, i: int, insn: Insn, width: int) -> None:
        w, operation = self.w, insn.op & 0xF0
        if operation == op.BPF_CALL:
            self._call(i, insn)
        elif operation == op.BPF_EXIT:
            value = self.read_pointer(i, 0) if self.signature.returns_pointer else self.read(0)
            w.end(f"ret {self.signature.result} {value}")
        elif operation == op.BPF_JA:
            w.end(f"br label %L{self._target(i, insn)}")
        else:
            taken = self._condition(i, insn, width)
            w.end(f"br i1 {taken}, label %L{self._target(i, insn)}, label %L{i + 1}")

    def _condition(self, i: int, insn: Insn, width: int) -> str:
        w, operation = self.w, insn.op & 0xF0
        pointer = width == 64 and self.kind(i, insn.dst) in POINTERS
        if pointer and operation in (op.BPF_JEQ, op.BPF_JNE):
            left = self.read_pointer(i, insn.dst)
            if not insn.op & op.BPF_X and insn.imm == 0:
                return alu.compare(w, operation, "ptr", left, "null")
            if insn.op & op.BPF_X and self.kind(i, insn.src) in POINTERS:
                return alu.compare(w, operation, "ptr", left, self.read_pointer(i, insn.src))
        value = self.read(insn.dst)
        if width == 32:
            value = w.op(f"trunc i64 {value} to i32")
        return alu.compare(w, operation, f"i{width}", value, self.operand(insn, width))

    def _call(self, i: int, insn: Insn) -> None:
        w = self.w
        if insn.src == _PSEUDO_CALL:
            callee = self.signatures[i + 1 + insn.imm]
            args = ["ptr %run"]
            for reg, ty in callee.params:
                args.append(f"{ty} {self.read_pointer(i, reg) if ty == 'ptr' else self.read(reg)}")
            value = w.op(f"call {callee.result} {callee.symbol}({', '.join(args)})")
            if callee.returns_pointer:
                self.write_pointer(0, value)
            else:
                self.write_mixed(0, value)
            return
        if insn.src != 0:
            raise self._refuse(i, "a kernel function is called here, which user space does not have")
        call = self.facts.calls[i]
        result = self.calls.lower(
            w,
            self.program,
            i,
            call,
            pointer=lambda reg: self.read_pointer(i, reg),
            number=lambda reg: self.read(reg) if self.kind(i, reg) is not Kind.NONE else "0",
            map_numbers=self.map_numbers,
        )
        if result.pointer:
            self.write_pointer(0, result.value)
        else:
            self.write(0, result.value)

    # ---- memory ----------------------------------------------------------------------------------

    def _wide(self, i: int, insn: Insn) -> None:
        if insn.src == _PSEUDO_MAP_IDX:
            self.write_pointer(insn.dst, self.calls.map_pointer(self.map_numbers[insn.imm]))
        elif insn.src == _PSEUDO_MAP_IDX_VALUE:
            number = self.map_numbers[insn.imm]
            self.write_pointer(insn.dst, self.calls.map_value(self.w, number, self.insns[i + 1].imm))
        elif insn.src == 0:
            self.write(insn.dst, str(imm64(self.insns, i)))
        else:
            raise self._refuse(i, f"a wide instruction with source {insn.src} cannot be compiled")

    def _align(self, i: int, bits: int) -> int:
        """Alignment that is known for an access: only the frame's is."""
        mem = self.facts.mem.get(i)
        if mem is not None and mem.kind is Kind.STACK and mem.offset is not None and mem.offset % (bits // 8) == 0:
            return bits // 8
        return 1

    def _load(self, i: int, insn: Insn) -> None:
        w, bits = self.w, SIZES[insn.op & 0x18]
        address = gep(w, self.read_pointer(i, insn.src), insn.off)
        align = self._align(i, bits)
        if insn.op & 0xE0 == op.BPF_MEMSX:
            value = w.op(f"load i{bits}, ptr {address}, align {align}")
            self.write(insn.dst, w.op(f"sext i{bits} {value} to i64"))
        elif bits < 64:
            value = w.op(f"load i{bits}, ptr {address}, align {align}")
            self.write(insn.dst, w.op(f"zext i{bits} {value} to i64"))
        elif self.kind(i + 1, insn.dst) in POINTERS:
            self.write_pointer(insn.dst, w.op(f"load ptr, ptr {address}, align {align}"))
        else:
            value = w.op(f"load i64, ptr {address}, align {align}")
            if self.kind(i + 1, insn.dst) is Kind.SCALAR:
                self.write(insn.dst, value)
            else:
                self.write_mixed(insn.dst, value)

    def _store(self, i: int, insn: Insn) -> None:
        w, bits = self.w, SIZES[insn.op & 0x18]
        address = gep(w, self.read_pointer(i, insn.dst), insn.off)
        align = self._align(i, bits)
        if insn.op & 7 == op.BPF_ST:
            w.do(f"store i{bits} {insn.imm & ((1 << bits) - 1)}, ptr {address}, align {align}")
        elif bits == 64 and self.kind(i, insn.src) in POINTERS:
            w.do(f"store ptr {self.read_pointer(i, insn.src)}, ptr {address}, align {align}")
        else:
            value = self.read(insn.src)
            if bits < 64:
                value = w.op(f"trunc i64 {value} to i{bits}")
            w.do(f"store i{bits} {value}, ptr {address}, align {align}")

    def _atomic(self, i: int, insn: Insn) -> None:
        """RFC 9669 section 5.3. Without FETCH the order is relaxed, with it sequentially consistent, as in Linux."""
        w, bits = self.w, SIZES[insn.op & 0x18]
        address = gep(w, self.read_pointer(i, insn.dst), insn.off)
        value = self.read(insn.src)
        if bits == 32:
            value = w.op(f"trunc i64 {value} to i32")
        ty, align = f"i{bits}", bits // 8
        if insn.imm == op.BPF_CMPXCHG:
            expected = self.read(0)
            if bits == 32:
                expected = w.op(f"trunc i64 {expected} to i32")
            pair = w.op(f"cmpxchg ptr {address}, {ty} {expected}, {ty} {value} seq_cst seq_cst, align {align}")
            old, target = w.op(f"extractvalue {{ {ty}, i1 }} {pair}, 0"), 0
        else:
            if insn.imm == op.BPF_XCHG:
                name, order = "xchg", "seq_cst"
            elif insn.imm & ~op.BPF_FETCH in _ATOMICS:
                name = _ATOMICS[insn.imm & ~op.BPF_FETCH]
                order = "seq_cst" if insn.imm & op.BPF_FETCH else "monotonic"
            else:
                raise self._refuse(i, f"the atomic operation {insn.imm:#x} cannot be compiled")
            old, target = w.op(f"atomicrmw {name} ptr {address}, {ty} {value} {order}, align {align}"), insn.src
            if not insn.imm & op.BPF_FETCH:
                return
        self.write(target, old if bits == 64 else w.op(f"zext i32 {old} to i64"))
