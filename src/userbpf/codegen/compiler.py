"""Verified programs and the geometry of their maps in, one CodeImage out."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from userbpf.codegen.calls import DEF_SIZE, CallLowering
from userbpf.codegen.hooks import CPU_HELPERS, HookWriter, is_specialised
from userbpf.codegen.image import CodeImage, Entry, HookKind
from userbpf.codegen.linker import link
from userbpf.codegen.llvm import FEATURES, TRIPLE, compile_module
from userbpf.codegen.program import emit_program
from userbpf.errors import CodegenError
from userbpf.native import runtime_bitcode
from userbpf.native.abi import Env
from userbpf.tables.helpers import HELPERS
from userbpf.tables.maps import MapType
from userbpf.verifier import Verified

ENV_SIZE: Final = ctypes.sizeof(Env)
TRACE: Final = ".trace"
"""Name of the hidden ring buffer that bpf_trace_printk writes to."""

_PERCPU: Final = frozenset({MapType.PERCPU_ARRAY, MapType.PERCPU_HASH})
_FAULTING: Final = frozenset(
    {
        "probe_read",
        "probe_read_str",
        "probe_read_user",
        "probe_read_user_str",
        "probe_read_kernel",
        "probe_read_kernel_str",
        "trace_printk",
        "trace_vprintk",
    }
)


@dataclass(frozen=True)
class Request:
    """One program and where it will run. The same program may be asked for at several kinds of place."""

    verified: Verified
    kind: HookKind


@dataclass(frozen=True)
class MapBinding:
    """One map of the image: its name in the object and the bytes of its ``struct ub_map_def``."""

    name: str
    type: int
    definition: bytes


def helpers_of(verified: Verified) -> frozenset[str]:
    """Names of the helpers that the program can reach."""
    return frozenset(HELPERS[call.helper].name for call in verified.facts.calls.values())


def needs_trace(verified: Verified) -> bool:
    """True when the program writes to the trace, so that the image needs a map named :data:`TRACE`."""
    return any(HELPERS[call.helper].implicit_map is not None for call in verified.facts.calls.values())


def compile_programs(requests: Sequence[Request], maps: Sequence[MapBinding], *, tp_self: bool = True) -> CodeImage:
    """Compiles all programs into one image.

    maps: every map that a program refers to, and :data:`TRACE` when one prints. Entries of the result are in the
    order of the requests. tp_self: in the processes that the image is for, every thread's pointer stands at its own
    address (glibc, musl); else it is read from the register, which is slower. Raises CodegenError; the programs are
    verified, so that is a defect or a feature that has no machine code yet.
    """
    ir, exported = module_ir(requests, maps, tp_self=tp_self)
    elf, _ = compile_module(ir, runtime_bitcode(), exported)
    data_symbols = {"ub_env": 0, "ub_map_bases": ENV_SIZE}
    image = link(elf, data_symbols, ENV_SIZE + 8 * len(maps))
    return replace(
        image,
        maps=tuple(binding.name for binding in maps),
        entries=tuple(_entry(n, request) for n, request in enumerate(requests)),
        faulting=any(helpers_of(request.verified) & _FAULTING for request in requests),
    )


def optimised_ir(requests: Sequence[Request], maps: Sequence[MapBinding], *, tp_self: bool = True) -> str:
    """The module after optimisation, to look at."""
    ir, exported = module_ir(requests, maps, tp_self=tp_self)
    return compile_module(ir, runtime_bitcode(), exported)[1]


def module_ir(
    requests: Sequence[Request], maps: Sequence[MapBinding], *, tp_self: bool = True
) -> tuple[str, list[str]]:
    """IR of the whole module before the runtime is linked in, and the symbols that must stay."""
    numbers = {binding.name: n for n, binding in enumerate(maps)}
    calls = CallLowering([binding.definition for binding in maps], numbers.get(TRACE))
    parts: list[str] = []
    exported: list[str] = []
    for n, request in enumerate(requests):
        verified, program = request.verified, request.verified.program
        missing = [spec.name for spec in program.maps if spec.name not in numbers]
        if missing:
            raise CodegenError(f"program {program.name} uses the map {missing[0]}, which was not created")
        map_numbers = [numbers[spec.name] for spec in program.maps]
        calls.is_return = request.kind is HookKind.RETURN
        parts.append(emit_program(verified, f"prog.{n}", calls, map_numbers))
        percpu = sorted({numbers[spec.name] for spec in program.maps if spec.type in _PERCPU})
        writer = HookWriter(
            f"prog.{n}", verified.facts, percpu, DEF_SIZE, needs_cpu=bool(helpers_of(verified) & CPU_HELPERS)
        )
        entry = _entry(n, request)
        if entry.hook is not None:
            parts.append(writer.hook(entry.hook))
            exported.append(entry.hook)
        if entry.body is not None:
            parts.append(writer.plain(entry.body) if request.kind is HookKind.PLAIN else writer.body(entry.body))
            exported.append(entry.body)
    return _prelude(maps, calls, tp_self) + "\n".join(parts), exported


def _entry(n: int, request: Request) -> Entry:
    program, kind = request.verified.program, request.kind
    if is_specialised(request.verified.facts, kind):
        return Entry(program.name, kind, f"hook.{n}", None, None)
    if kind is HookKind.PLAIN:
        return Entry(program.name, kind, None, None, f"plain.{n}")
    agent = {
        HookKind.ENTRY: "ub_agent_full_entry",
        HookKind.INNER: "ub_agent_full_inner",
        HookKind.RETURN: "ub_agent_arm",
    }[kind]
    return Entry(program.name, kind, None, agent, f"body.{n}")


def _prelude(maps: Sequence[MapBinding], calls: CallLowering, tp_self: bool) -> str:
    definitions = b"".join(binding.definition for binding in maps)
    if any(len(binding.definition) != DEF_SIZE for binding in maps):
        raise CodegenError("a map definition has the wrong size: the native library is of another version")
    escaped = "".join(f"\\{byte:02X}" for byte in definitions)
    lines = [
        f'target triple = "{TRIPLE}"',
        f"@ub_env = external hidden global [{ENV_SIZE} x i8], align 8",
        "@ub_map_bases = external hidden global [0 x ptr], align 8",
        f'@ub_map_defs = internal constant [{len(definitions)} x i8] c"{escaped}", align 8',
        f"@ub_tp_self = hidden constant i32 {int(tp_self)}, align 4",
        "declare ptr @llvm.addressofreturnaddress.p0()",
        "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)",
        "declare i16 @llvm.bswap.i16(i16)",
        "declare i32 @llvm.bswap.i32(i32)",
        "declare i64 @llvm.bswap.i64(i64)",
        "declare ptr @ub_hook_enter(ptr)",
        "declare i32 @ub_current_cpu()",
        "declare i32 @ub_percpu_enter(ptr, ptr, ptr, i32)",
        "declare void @ub_percpu_exit(ptr, ptr, ptr, i32)",
        *calls.declarations.values(),
        '!0 = !{!"branch_weights", i32 1, i32 4000}',
        f'attributes #0 = {{ nounwind noimplicitfloat "frame-pointer"="none" "target-features"="{FEATURES}" }}',
        "attributes #1 = { nounwind noimplicitfloat noinline "
        f'"no_caller_saved_registers" "frame-pointer"="none" "target-features"="{FEATURES}" }}',
        "attributes #2 = { nounwind noimplicitfloat noinline "
        f'"frame-pointer"="none" "target-features"="{FEATURES}" }}',
        "",
    ]
    return "\n".join(lines)
