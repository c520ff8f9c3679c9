"""The functions that stand between an event and a program.

A *hook* is called by a cell with the probed function's own registers and keeps all of them. It exists when the
program reads only what a function's entry has at hand: the argument registers, the stack pointer, the address.
A *body* gets a whole ``pt_regs`` that the agent has built: for every other program, and at returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from userbpf.codegen.image import HookKind
from userbpf.codegen.ir import FunctionWriter
from userbpf.tables.contexts import PT_REGS_X86_64
from userbpf.tables.helpers import HELPERS
from userbpf.verifier import Facts

_ARGUMENTS: Final = {"di": "rdi", "si": "rsi", "dx": "rdx", "cx": "rcx", "r8": "r8", "r9": "r9"}
"""Argument registers in order (System V ABI, AMD64 supplement 3.2.3): name in pt_regs, name of the machine."""
_CONSTANTS: Final = {"orig_ax": -1, "cs": 0x33, "ss": 0x2B}
_CELL_SITE: Final = 16
_CELL_RET_ENTRY: Final = 70
_OFFSETS: Final = {field.name: field.offset for field in PT_REGS_X86_64.fields}
_AT_HAND: Final = tuple(range(_OFFSETS[name], _OFFSETS[name] + 8) for name in (*_ARGUMENTS, *_CONSTANTS, "sp", "ip"))

CPU_HELPERS: Final = frozenset({"get_smp_processor_id", "perf_event_output", "trace_printk", "trace_vprintk"})


def is_specialised(facts: Facts, kind: HookKind) -> bool:
    """True when the program can run from registers that are at hand at a function's entry."""
    if kind is not HookKind.ENTRY or facts.ctx_escapes:
        return False
    return all(any(offset in field for field in _AT_HAND) for offset, _ in facts.ctx_reads)


class HookWriter:
    """Writes hooks and bodies of one image.

    percpu: numbers of the per-CPU maps that the program uses; a CPU slot is held in them while it runs.
    facts: which registers the program reads.
    needs_cpu: the program asks for the number of its CPU.
    """

    def __init__(self, program: str, facts: Facts, percpu: Sequence[int], def_size: int, *, needs_cpu: bool) -> None:
        self._program = program
        self._facts = facts
        self._percpu = tuple(percpu)
        self._def_size = def_size
        self._needs_cpu = needs_cpu

    def hook(self, name: str) -> str:
        """``@name``: called by a cell at a function's entry.

        ``no_caller_saved_registers`` makes LLVM keep every register but the function's own parameters. Those that
        the program reads are parameters here, so they are put back by hand right before the return.
        """
        arguments = self._arguments()
        params = ", ".join(f"i64 %{register}" for register in self._positional(arguments))
        w = FunctionWriter(f"define void @{name}({params}) #1")
        w.do("%regs = alloca [168 x i8], align 8")
        self._allocas(w)
        slot = w.op("call ptr @llvm.addressofreturnaddress.p0()")
        ret = w.op(f"load i64, ptr {slot}, align 8")
        cell = w.op(f"inttoptr i64 {w.op(f'sub i64 {ret}, {_CELL_RET_ENTRY}')} to ptr")
        thread = self._enter(w, cell)
        for register in arguments:
            self._set(w, register, f"%{register}")
        for register, value in _CONSTANTS.items():
            self._set(w, register, str(value))
        # The return address of the hook lies right below the probed function's stack.
        self._set(w, "sp", w.op(f"add i64 {w.op(f'ptrtoint ptr {slot} to i64')}, 8"))
        site = w.op(f"getelementptr i8, ptr {cell}, i64 {_CELL_SITE}")
        self._set(w, "ip", w.op(f"load i64, ptr {site}, align 8, !invariant.load !{{}}"))
        self._run(w, thread, cell, "%regs")
        w.label("skip")
        kept = self._positional(arguments)
        if kept:
            constraints = ",".join(f"{{{_ARGUMENTS[register]}}}" for register in kept)
            values = ", ".join(f"i64 %{register}" for register in kept)
            w.do(f'call void asm sideeffect "", "{constraints},~{{memory}}"({values})')
        w.end("ret void")
        return w.text()

    def _arguments(self) -> list[str]:
        """Argument registers that the program reads. A helper that reads arguments by number means all."""
        if any(HELPERS[call.helper].name == "get_func_arg" for call in self._facts.calls.values()):
            return list(_ARGUMENTS)
        read = {offset & ~7 for offset, _ in self._facts.ctx_reads}
        return [register for register in _ARGUMENTS if _OFFSETS[register] in read]

    @staticmethod
    def _positional(arguments: Sequence[str]) -> list[str]:
        """Parameters are positional: to name the third argument register, the first two must be named as well."""
        order = list(_ARGUMENTS)
        return order[: max((order.index(register) for register in arguments), default=-1) + 1]

    def body(self, name: str) -> str:
        """``@name(struct ub_pt_regs *, const struct ub_cell *)``: called by the agent."""
        w = FunctionWriter(f"define void @{name}(ptr %regs, ptr %cell) #2")
        self._allocas(w)
        self._run(w, self._enter(w, "%cell"), "%cell", "%regs")
        w.label("skip")
        w.end("ret void")
        return w.text()

    def plain(self, name: str) -> str:
        """``@name(ptr ctx) -> i64``: a run without a target; ``UINT64_MAX`` when no CPU slot was free."""
        w = FunctionWriter(f"define i64 @{name}(ptr %ctx) #2")
        self._allocas(w)
        w.do("store ptr null, ptr %run, align 8")
        w.do("store ptr null, ptr %run.cell, align 8")
        self._hold_cpu(w)
        result = w.op(f"call i64 @{self._program}(ptr %run, ptr %ctx)")
        self._release_cpu(w)
        w.end(f"ret i64 {result}")
        w.label("skip")
        w.end("ret i64 -1")
        return w.text()

    @staticmethod
    def _set(w: FunctionWriter, register: str, value: str) -> None:
        field = w.op(f"getelementptr i8, ptr %regs, i64 {_OFFSETS[register]}")
        w.do(f"store i64 {value}, ptr {field}, align 8")

    def _allocas(self, w: FunctionWriter) -> None:
        w.do("%run = alloca [24 x i8], align 8")
        w.do("%run.cell = getelementptr i8, ptr %run, i64 8")
        w.do("%run.cpu = getelementptr i8, ptr %run, i64 16")
        w.do("%run.flags = getelementptr i8, ptr %run, i64 20")
        w.do("store i32 0, ptr %run.cpu, align 4")
        w.do("store i32 0, ptr %run.flags, align 4")
        if self._percpu:
            n = len(self._percpu)
            w.do(f"%defs = alloca [{n} x ptr], align 8")
            w.do(f"%bases = alloca [{n} x ptr], align 8")

    @staticmethod
    def _enter(w: FunctionWriter, cell: str) -> str:
        thread = w.op(f"call ptr @ub_hook_enter(ptr {cell})")
        absent = w.op(f"icmp eq ptr {thread}, null")
        w.end(f"br i1 {absent}, label %skip, label %go, !prof !0")
        w.label("go")
        return thread

    def _run(self, w: FunctionWriter, thread: str, cell: str, regs: str) -> None:
        w.do(f"store ptr {thread}, ptr %run, align 8")
        w.do(f"store ptr {cell}, ptr %run.cell, align 8")
        self._hold_cpu(w)
        w.op(f"call i64 @{self._program}(ptr %run, ptr {regs})")
        self._release_cpu(w)

    def _hold_cpu(self, w: FunctionWriter) -> None:
        if self._percpu:
            for n, number in enumerate(self._percpu):
                at_def = w.op(f"getelementptr ptr, ptr %defs, i64 {n}")
                w.do(f"store ptr getelementptr (i8, ptr @ub_map_defs, i64 {number * self._def_size}), ptr {at_def}")
                at_base = w.op(f"getelementptr ptr, ptr %bases, i64 {n}")
                base = w.op(f"load ptr, ptr getelementptr (i8, ptr @ub_map_bases, i64 {number * 8}), align 8")
                w.do(f"store ptr {base}, ptr {at_base}")
            cpu = w.op(f"call i32 @ub_percpu_enter(ptr %run, ptr %defs, ptr %bases, i32 {len(self._percpu)})")
            busy = w.op(f"icmp eq i32 {cpu}, -1")
            w.end(f"br i1 {busy}, label %skip, label %held, !prof !0")
            w.label("held")
            w.do(f"store i32 {cpu}, ptr %run.cpu, align 4")
        elif self._needs_cpu:
            w.do(f"store i32 {w.op('call i32 @ub_current_cpu()')}, ptr %run.cpu, align 4")

    def _release_cpu(self, w: FunctionWriter) -> None:
        if self._percpu:
            w.do(f"call void @ub_percpu_exit(ptr %run, ptr %defs, ptr %bases, i32 {len(self._percpu)})")
