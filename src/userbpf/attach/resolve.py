"""From a function's name to the code that runs when the process calls it.

Most names are one function. An IFUNC symbol (``memcpy``, ``strlen`` in glibc) is only a resolver: the implementation
it chose is known by the GOT slots that the dynamic linker filled in this process.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from userbpf.errors import AttachError, Place
from userbpf.process import Function, Module, Process

__all__ = ["resolve_functions"]


def _slots(process: Process, module: Module, name: str, resolver: int) -> Iterator[int]:
    """Addresses of the GOT slots, in any module, that hold the choice of the resolver at ``resolver``."""
    for other in process.modules():
        for vaddr, symbol, addend in other.elf.binds:
            if symbol == name or (other.start == module.start and addend == resolver and not symbol):
                yield other.addr(vaddr)


def resolve_functions(process: Process, module: Module, name: str) -> list[Function]:
    """The functions that calls of ``name`` (``name@VERSION``, too) in ``module`` arrive at; usually one.

    ProcessError with near names when there is no such function; AttachError when an IFUNC's choice is not to be found.
    """
    function = module.function(name)
    if not function.ifunc:
        return [function]
    base = name.partition("@")[0]
    slots = list(_slots(process, module, base, module.vaddr(function.addr)))
    values = [struct.unpack("<Q", raw)[0] for raw in process.read_many([(slot, 8) for slot in slots])]
    found: list[Function] = []
    for value in sorted(set(values)):
        # An unbound slot points into its own module's PLT, an interposed symbol into another module.
        if value == function.addr or not module.elf.is_code(module.vaddr(value)) or not module.contains(value):
            continue
        extent = module.elf.extent(module.vaddr(value))
        size = extent[1] if extent is not None and module.addr(extent[0]) == value else 0
        found.append(Function(base, value, size))
    if found:
        return found
    near = [s.name for s in module.functions if base in s.name and s.name != base and not s.ifunc]
    raise AttachError(
        f"{name} of {module.path} is chosen when it is first called (IFUNC), and this process has not chosen yet",
        place=Place(file=module.path),
        hint=f"probe the implementation: {', '.join(sorted(near, key=len)[:4])}" if near else "attach again later",
    )
