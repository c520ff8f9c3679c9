"""A guard: a function of the target that the agent stands before.

It is a patch like a probe's, but without cells. What it calls either takes the function's place, for some values of
its first argument or for all, and returns to its caller; or it runs first, and the function goes on.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from userbpf.attach.decode import Insn, decode_all
from userbpf.attach.relocate_x86 import Place, jump, relocate, relocated_size
from userbpf.attach.site import JUMP_SIZE, SitePlan
from userbpf.attach.trampoline import Patch, Write
from userbpf.errors import AttachError
from userbpf.process import Function, Module

__all__ = ["Guarded", "build_guard", "guard_size", "replan_guard"]

_COMPARE_SIZE = 5
_CALL_SIZE = 6
_JUMP_ABSOLUTE_SIZE = 14


@dataclass(frozen=True)
class Guarded:
    """What stands before a function.

    handler: symbol of the agent. values: first arguments for which it takes the function's place (empty: all).
    first: it runs first instead, keeping every register.
    """

    function: str
    handler: str
    values: tuple[int, ...] = ()
    first: bool = False


def guard_size(plan: SitePlan, guarded: Guarded) -> int:
    """Bytes of a guard's trampoline at most."""
    return _COMPARE_SIZE * len(guarded.values) + _CALL_SIZE + relocated_size(plan.insns) + _JUMP_ABSOLUTE_SIZE


def build_guard(plan: SitePlan, addr: int, guarded: Guarded, handler: int) -> Patch:
    """The guard of a function's entry, to be placed at ``addr``; handler: address of the agent's function.

    Flags are dead at a function's entry.
    """
    if plan.inner or plan.island is not None:
        raise AttachError(f"{plan.func.name} cannot be guarded: its entry has no room for a jump")
    build = _run_first if guarded.first else _take_place
    return build(plan, addr, guarded.values, handler)


def _run_first(plan: SitePlan, addr: int, _values: tuple[int, ...], handler: int) -> Patch:
    moved = relocate(plan.insns, addr + _CALL_SIZE, resume=plan.resume, shadow_stack=plan.shadow_stack)
    places = {addr: Place(plan.addr), **moved.places}
    code = b"\xff\x15" + struct.pack("<i", len(moved.code)) + moved.code + struct.pack("<Q", handler)  # call *end(%rip)
    write = Write(plan.addr, plan.original, jump(plan.addr, addr))
    return Patch(plan, addr, code, (write,), places, moved.starts)


def _take_place(plan: SitePlan, addr: int, values: tuple[int, ...], handler: int) -> Patch:
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
