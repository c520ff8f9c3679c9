"""A guard: a function of the target that the agent stands before, for some values of its first argument or for all.

It is a patch like a probe's, but what it calls takes the function's place: it returns to the function's caller.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from userbpf.attach.decode import Insn, decode_all
from userbpf.attach.relocate_x86 import Place, jump, relocate, relocated_size
from userbpf.attach.site import JUMP_SIZE, SitePlan
from userbpf.attach.trampoline import ALIGNMENT, Patch, Write
from userbpf.errors import AttachError
from userbpf.process import Function, Module

__all__ = ["build_guard", "guard_size", "replan_guard"]

_COMPARE_SIZE = 5
_JUMP_ABSOLUTE_SIZE = 14


def guard_size(plan: SitePlan, values: Sequence[int]) -> int:
    """Bytes to reserve for a guard's trampoline; a multiple of ALIGNMENT."""
    size = _COMPARE_SIZE * len(values) + relocated_size(plan.insns) + _JUMP_ABSOLUTE_SIZE
    return (size + ALIGNMENT - 1) & -ALIGNMENT


def build_guard(plan: SitePlan, addr: int, handler: int, values: Sequence[int]) -> Patch:
    """The guard of a function's entry. Calls whose first argument (an int) is one of ``values`` go to ``handler``,
    all calls when there are none; the others go on in the function. Flags are dead at a function's entry.
    """
    if plan.inner or plan.island is not None:
        raise AttachError(f"{plan.func.name} cannot be guarded: its entry has no room for a jump")
    prefix = _COMPARE_SIZE * len(values)
    moved = relocate(plan.insns, addr + prefix, resume=plan.resume, shadow_stack=plan.shadow_stack)
    taken = prefix + len(moved.code)
    code, places = b"", dict(moved.places)
    for value in values:
        places[addr + len(code)] = Place(plan.addr)
        code += bytes((0x83, 0xFF, value))  # cmp $value, %edi
        places[addr + len(code)] = Place(plan.addr)
        code += bytes((0x74, taken - len(code) - 2))  # je handler
    code += moved.code
    places[addr + len(code)] = Place(plan.addr)
    code += b"\xff\x25" + struct.pack("<iQ", 0, handler)  # jmp *0(%rip)
    entry = addr if values else addr + taken
    write = Write(plan.addr, plan.original, jump(plan.addr, entry))
    return Patch(plan, addr, code, (write,), places, moved.starts)


def replan_guard(module: Module, addr: int, original: bytes, *, shadow_stack: bool) -> SitePlan:
    """The plan of a guard that is in place, from what was kept of it: the bytes of the moved instructions."""
    insns: list[Insn] = decode_all(original, addr)
    if sum(insn.size for insn in insns) != len(original) or len(original) < JUMP_SIZE:
        raise AttachError(
            f"the record of the guard at {addr:#x} is damaged", hint="restart the process to be rid of it"
        )
    name = module.function_around(addr)
    func = Function(name.name if name is not None else f"sub_{addr:x}", addr, 0)
    return SitePlan(module, addr, func, tuple(insns), original[:JUMP_SIZE], None, b"", shadow_stack)
