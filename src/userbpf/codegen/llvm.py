"""llvmlite: text and bitcode in, an object file out. It is imported when something is compiled, and only then."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Final

from userbpf.errors import CodegenError

TRIPLE: Final = "x86_64-unknown-linux-gnu"
# Hooks run between two instructions of somebody else: they may not touch vector or floating-point registers.
FEATURES: Final = "-x87,-mmx,-sse,-sse2,+soft-float,+cx8,+cx16"

# Functions that instruction selection itself may call: they stay visible until then.
_LIBRARY: Final = frozenset({"memcpy", "memset", "memmove", "memcmp", "bcmp"})


@cache
def _target_machine() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()  # the runtime has inline assembly
    target = llvm.Target.from_triple(TRIPLE)
    return target.create_target_machine(
        cpu="x86-64", features=FEATURES, opt=2, reloc="pic", codemodel="small", jit=False
    )


def compile_module(ir: str, runtime: bytes, exported: Iterable[str]) -> tuple[bytes, str]:
    """Links ``ir`` with the runtime bitcode, optimises, and gives the object file and its optimised IR.

    Only ``exported`` stays visible: everything else is internal and goes when it is not used.
    """
    import llvmlite.binding as llvm

    machine = _target_machine()
    try:
        module = llvm.parse_assembly(ir)
        module.link_in(llvm.parse_bitcode(runtime))
        module.verify()
    except RuntimeError as error:
        raise CodegenError(
            f"LLVM does not take the generated code: {str(error).strip().splitlines()[0]}",
            hint="this is a defect of userbpf; `userbpf doctor` shows whether llvmlite and ziglang fit together",
        ) from error
    keep = {*exported, *_LIBRARY}
    for function in module.functions:
        if not function.is_declaration and function.name not in keep:
            function.linkage = "internal"
    for variable in module.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"
    # Most of the runtime is not called: it must be gone before anything is spent on optimising it.
    sweep = llvm.create_new_module_pass_manager()
    sweep.add_global_dead_code_eliminate_pass()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = True
    builder = llvm.create_pass_builder(machine, options)
    sweep.run(module, builder)
    builder.getModulePassManager().run(module, builder)
    return machine.emit_object(module), str(module)
