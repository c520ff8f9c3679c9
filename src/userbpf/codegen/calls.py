"""Helper calls and map references in LLVM IR.

A map's geometry (``struct ub_map_def``) is a constant of the module, so the dispatchers of the runtime fold
to the one implementation that is meant, with its sizes as constants. A map's address is bound at load time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from userbpf.codegen.ir import FunctionWriter
from userbpf.errors import CodegenError, Place, UnsupportedError
from userbpf.object import Program
from userbpf.tables.contexts import PT_REGS_X86_64
from userbpf.tables.helpers import CODEGEN, HELPERS, Arg, Helper, Ret
from userbpf.verifier import Call

DEF_SIZE: Final = 80
"""sizeof(struct ub_map_def)."""
DATA_OFF: Final = 56
"""offsetof(struct ub_map_def, data_off)."""

POINTER_ARGS: Final = frozenset(
    {
        Arg.MAP_KEY,
        Arg.MAP_VALUE,
        Arg.UNINIT_MAP_VALUE,
        Arg.MEM,
        Arg.MEM_OR_NULL,
        Arg.UNINIT_MEM,
        Arg.UNINIT_LONG,
        Arg.CTX,
        Arg.ALLOC_MEM,
        Arg.CONST_STR,
    }
)

_CELL_FUNC: Final = 24
_CELL_COOKIE: Final = 32
_RUN_CELL: Final = 8
_EINVAL: Final = -22
_EOPNOTSUPP: Final = -95
_ARGUMENT_REGISTERS: Final = ("di", "si", "dx", "cx", "r8", "r9")
_OFFSETS: Final = {field.name: field.offset for field in PT_REGS_X86_64.fields}

Reader = Callable[[int], str]


@dataclass(frozen=True)
class Result:
    """Value of r0 after a call; ``pointer`` says which IR type it has."""

    value: str
    pointer: bool = False


class CallLowering:
    """Lowers the helper calls of all programs of one image.

    map_defs: bytes of each map's ``struct ub_map_def``. trace_map: number of the hidden trace ring, None when no
    program prints. is_return: the programs run at a function's return.
    """

    def __init__(self, map_defs: Sequence[bytes], trace_map: int | None) -> None:
        self.map_defs = map_defs
        self.trace_map = trace_map
        self.is_return = False
        self.declarations: dict[str, str] = {}

    # ---- maps --------------------------------------------------------------------------------------

    def map_pointer(self, number: int) -> str:
        """What a register that refers to a map holds: the address of the map's definition."""
        return f"getelementptr (i8, ptr @ub_map_defs, i64 {number * DEF_SIZE})"

    def map_base(self, w: FunctionWriter, number: int) -> str:
        """Where the map lies in this process."""
        slot = f"getelementptr (i8, ptr @ub_map_bases, i64 {number * 8})"
        return w.op(f"load ptr, ptr {slot}, align 8, !invariant.load !{{}}, !nonnull !{{}}")

    def map_value(self, w: FunctionWriter, number: int, offset: int) -> str:
        """Address ``offset`` bytes into the single value of an array map (global data)."""
        data_off = int.from_bytes(self.map_defs[number][DATA_OFF : DATA_OFF + 8], "little")
        return w.op(f"getelementptr i8, ptr {self.map_base(w, number)}, i64 {data_off + offset}")

    def _map_args(self, w: FunctionWriter, number: int | None, register: str) -> list[str]:
        if number is not None:
            return [f"ptr {self.map_pointer(number)}", f"ptr {self.map_base(w, number)}"]
        # Different maps on different ways: the register tells which.
        distance = w.op(f"ptrtoint ptr {register} to i64")
        distance = w.op(f"sub i64 {distance}, ptrtoint (ptr @ub_map_defs to i64)")
        index = w.op(f"udiv exact i64 {distance}, {DEF_SIZE}")
        slot = w.op(f"getelementptr ptr, ptr @ub_map_bases, i64 {index}")
        return [f"ptr {register}", f"ptr {w.op(f'load ptr, ptr {slot}, align 8, !invariant.load !{{}}')}"]

    # ---- helpers -----------------------------------------------------------------------------------

    def lower(
        self,
        w: FunctionWriter,
        program: Program,
        index: int,
        call: Call,
        *,
        pointer: Reader,
        number: Reader,
        map_numbers: Sequence[int],
    ) -> Result:
        """The call at instruction ``index``. pointer and number read registers 1 to 5."""
        helper = HELPERS[call.helper]
        if helper.native is None:
            raise UnsupportedError(
                f"helper bpf_{helper.name} is not offered in user space",
                place=Place(file=program.object_name, prog=program.name, insn=index),
                hint=helper.alternative,
            )
        if helper.native == CODEGEN:
            return self._intrinsic(w, helper, program, index, pointer, number)
        args = ["ptr %run"]
        if helper.implicit_map is not None:
            if self.trace_map is None:
                raise CodegenError(f"no map was given for the trace of bpf_{helper.name}")
            args += self._map_args(w, self.trace_map, "")
        for reg, kind in enumerate(helper.args, start=1):
            if kind is Arg.CONST_MAP_PTR:
                known = None if call.map is None else map_numbers[call.map]
                args += self._map_args(w, known, pointer(reg) if known is None else "")
            elif kind in POINTER_ARGS:
                args.append(f"ptr {pointer(reg)}")
            else:
                constant = call.consts[reg - 1] if reg <= len(call.consts) else None
                args.append(f"i64 {constant if constant is not None else number(reg)}")
        is_pointer = helper.ret in (Ret.MAP_VALUE_OR_NULL, Ret.ALLOC_MEM_OR_NULL)
        result = "ptr" if is_pointer else "i64"
        types = ", ".join(arg.split(" ", 1)[0] for arg in args)
        self.declarations[helper.native] = f"declare {result} @{helper.native}({types})"
        return Result(w.op(f"call {result} @{helper.native}({', '.join(args)})"), is_pointer)

    def _intrinsic(
        self, w: FunctionWriter, helper: Helper, program: Program, index: int, pointer: Reader, number: Reader
    ) -> Result:
        """Helpers that read the hook: the cell that was hit, or the registers at the probe."""
        if helper.name in ("get_func_ip", "get_attach_cookie"):
            slot = w.op(f"getelementptr i8, ptr %run, i64 {_RUN_CELL}")
            cell = w.op(f"load ptr, ptr {slot}, align 8")
            offset = _CELL_FUNC if helper.name == "get_func_ip" else _CELL_COOKIE
            field = w.op(f"getelementptr i8, ptr {cell}, i64 {offset}")
            return Result(w.op(f"load i64, ptr {field}, align 8, !invariant.load !{{}}"))
        if helper.name == "get_func_arg_cnt":
            return Result(str(len(_ARGUMENT_REGISTERS)))
        if helper.name == "get_func_ret":
            if not self.is_return:
                return Result(str(_EOPNOTSUPP))
            slot = w.op(f"getelementptr i8, ptr {pointer(1)}, i64 {_OFFSETS['ax']}")
            value = w.op(f"load i64, ptr {slot}, align 8")
            w.do(f"store i64 {value}, ptr {pointer(2)}, align 1")
            return Result("0")
        if helper.name == "get_func_arg":
            return self._func_arg(w, pointer, number)
        raise CodegenError(
            f"helper bpf_{helper.name} has no lowering",
            place=Place(file=program.object_name, prog=program.name, insn=index),
        )

    def _func_arg(self, w: FunctionWriter, pointer: Reader, number: Reader) -> Result:
        """``long bpf_get_func_arg(ctx, n, u64 *value)``: the n-th integer argument; -EINVAL past the registers."""
        wanted, context = number(2), pointer(1)
        value, code = "0", str(_EINVAL)
        if not self.is_return:
            for n, name in enumerate(_ARGUMENT_REGISTERS):
                slot = w.op(f"getelementptr i8, ptr {context}, i64 {_OFFSETS[name]}")
                loaded = w.op(f"load i64, ptr {slot}, align 8")
                hit = w.op(f"icmp eq i64 {wanted}, {n}")
                value = w.op(f"select i1 {hit}, i64 {loaded}, i64 {value}")
                code = w.op(f"select i1 {hit}, i64 0, i64 {code}")
        w.do(f"store i64 {value}, ptr {pointer(3)}, align 1")
        return Result(code)
