"""Programs and maps as an object file declares them: plain data, the same bytes give the same values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from userbpf.btf.btf import Btf
from userbpf.isa import Insn
from userbpf.tables.programs import Section

__all__ = [
    "KFUNC_POISON",
    "CoreFailure",
    "Initialiser",
    "Ksym",
    "LineInfo",
    "MapKind",
    "MapSpec",
    "Program",
    "Subprog",
]

MapKind = Literal["map", "rodata", "data", "bss", "kconfig"]

KFUNC_POISON = 2002000000
"""``imm`` of a kernel function call is this plus its index in :attr:`Program.ksyms` (as libbpf poisons it)."""


@dataclass(frozen=True)
class Initialiser:
    """One slot of a map's ``values`` array: the named map (map-in-map) or program (prog array) at ``index``."""

    index: int
    target: str
    kind: Literal["map", "prog"]


@dataclass(frozen=True)
class MapSpec:
    """A map as the object declares it. Sizes are bytes; ``type`` is the kernel's number (``tables.maps.MapType``).

    key_btf, value_btf: type ids in ``btf``, 0 when the object has none. ``kind`` is 'map' for a declared map,
    else the kind of global section whose ``initial`` bytes fill the single value; ``datasec`` is the section's
    BTF id (0: none). ``pinning``: 0 none, 1 by name.
    """

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    key_btf: int = 0
    value_btf: int = 0
    btf: Btf | None = field(default=None, repr=False, compare=False)
    inner: MapSpec | None = None
    pinning: int = 0
    numa_node: int = 0
    map_extra: int = 0
    kind: MapKind = "map"
    initial: bytes | None = field(default=None, repr=False)
    datasec: int = 0
    values: tuple[Initialiser, ...] = ()


@dataclass(frozen=True)
class Subprog:
    """A function of a linked program: instructions ``start`` (included) to ``end`` (excluded).

    ``func_btf`` is the id of its BTF ``Func``, 0 when the object has none.
    """

    name: str
    start: int
    end: int
    is_global: bool = False
    func_btf: int = 0


@dataclass(frozen=True)
class LineInfo:
    """Source position from instruction ``insn`` on; ``text`` is the source line itself."""

    insn: int
    file: str
    line: int
    column: int
    text: str


@dataclass(frozen=True)
class Ksym:
    """A kernel function or variable (``.ksyms`` extern) that a program refers to.

    A user-space run has none of them. ``insns`` are the instructions that use it: a kfunc call has
    ``src = 2, imm = KFUNC_POISON + index``; a weak variable reads as address 0, as libbpf does for a missing one.
    """

    name: str
    kind: Literal["func", "var"]
    weak: bool
    insns: tuple[int, ...]


@dataclass(frozen=True)
class CoreFailure:
    """Instruction ``insn`` is poisoned (an invalid call) because its CO-RE relocation failed: ``reason``."""

    insn: int
    reason: str


@dataclass(frozen=True)
class Program:
    """A linked and CO-RE-relocated program; see ``docs/architecture.md`` for how references are encoded."""

    name: str
    section: Section
    insns: tuple[Insn, ...] = field(repr=False)
    maps: tuple[MapSpec, ...]
    subprogs: tuple[Subprog, ...]
    lines: tuple[LineInfo, ...] = field(repr=False)
    btf: Btf | None = field(repr=False, compare=False)
    license: str
    object_name: str
    ksyms: tuple[Ksym, ...] = ()
    core_failures: tuple[CoreFailure, ...] = ()
