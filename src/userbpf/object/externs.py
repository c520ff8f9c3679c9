"""Externs: ``.kconfig`` values, which become a read-only map, and ``.ksyms`` functions and variables.

As libbpf's ``bpf_object__collect_externs``, ``bpf_object__resolve_externs`` and ``bpf_object__read_kconfig_file``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from userbpf.btf.btf import Btf
from userbpf.btf.types import Array, DataSec, Enum, Enum64, Func, Int, Kind, Linkage, Var
from userbpf.errors import ObjectError
from userbpf.object.elf import SHN_UNDEF, ElfObject

__all__ = ["Extern", "Externs", "Kernel", "collect_externs", "parse_kconfig"]

KCONFIG, KSYMS = ".kconfig", ".ksyms"
_TRISTATE = {"n": 0, "y": 1, "m": 2}
_FEATURES = {"LINUX_HAS_BPF_COOKIE": 1, "LINUX_HAS_SYSCALL_WRAPPER": 1}
"""What libbpf probes the kernel for. Our hooks have cookies; every 64-bit kernel since 4.17 wraps its system calls."""


@dataclass(frozen=True)
class Kernel:
    """What ``.kconfig`` externs are answered from.

    version: as LINUX_VERSION_CODE, ``major << 16 | minor << 8 | min(patch, 255)``. config: gives the lines of the
    kernel's configuration by name (see :func:`parse_kconfig`), called only when an extern asks.
    """

    version: int
    config: Callable[[], Mapping[str, str]]


def parse_kconfig(text: str) -> dict[str, str]:
    """The text of ``/proc/config.gz`` or ``/boot/config-*`` → ``{'CONFIG_HZ': '250', …}``; unset ones are left out."""
    pairs = (line.partition("=") for line in text.splitlines() if line.startswith("CONFIG_"))
    return {name: value.strip() for name, sep, value in pairs if sep}


@dataclass(frozen=True, slots=True)
class Extern:
    """An undefined symbol. ``offset`` is into the ``.kconfig`` map; ``problem`` says why it has no value there."""

    name: str
    section: str
    is_func: bool
    weak: bool
    offset: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Externs:
    """Externs by name, and the bytes of the ``.kconfig`` map (empty when there is none)."""

    table: dict[str, Extern]
    kconfig: bytes


def collect_externs(elf: ElfObject, btf: Btf | None, kernel: Kernel | None) -> Externs:
    """All externs that the object's BTF declares in ``.kconfig`` or ``.ksyms``."""
    symbols = {s.name: s for s in elf.symbols if s.section == SHN_UNDEF and s.name and s.binding != "STB_LOCAL"}
    if btf is None or not symbols:
        return Externs({}, b"")
    table: dict[str, Extern] = {}
    values: list[tuple[int, int, str, int]] = []
    for section in (KCONFIG, KSYMS):
        datasec = btf.find(section, Kind.DATASEC)
        if datasec is None:
            continue
        for row in btf.expect(datasec, DataSec).vars:
            declared = btf.type(row.type)
            if not isinstance(declared, Var | Func) or declared.name not in symbols:
                continue
            weak = symbols[declared.name].binding == "STB_WEAK"
            table[declared.name] = Extern(declared.name, section, isinstance(declared, Func), weak)
            if section == KCONFIG and isinstance(declared, Var) and declared.linkage != Linkage.STATIC:
                size = btf.size_of(declared.type)
                if size > 4096:
                    raise ObjectError(f"extern {declared.name!r} in .kconfig takes {size} bytes")
                values.append((-btf.align_of(declared.type), -size, declared.name, declared.type))
    out = bytearray()
    for align, size, name, type_id in sorted(values):
        out += bytes(-len(out) % -align)
        offset, weak = len(out), table[name].weak
        value, problem = _value(btf, type_id, -size, name, kernel, weak)
        out += value
        table[name] = Extern(name, KCONFIG, False, weak, offset, problem)
    return Externs(table, bytes(out))


def _value(btf: Btf, type_id: int, size: int, name: str, kernel: Kernel | None, weak: bool) -> tuple[bytes, str]:
    """The bytes of one ``.kconfig`` extern, or zeros and why it has no value."""
    zeros = bytes(size)
    if name == "LINUX_KERNEL_VERSION":
        text = str(kernel.version) if kernel is not None else None
    elif name in _FEATURES:
        text = str(_FEATURES[name])
    elif name.startswith("CONFIG_"):
        text = kernel.config().get(name) if kernel is not None else None
    else:
        text = None
    if text is None:
        return zeros, "" if weak else f"the kernel's configuration has no {name}, which the program needs"
    found = btf.resolved(type_id)
    if isinstance(found, Array):
        element = btf.resolved(found.type)
        if not isinstance(element, Int) or element.size != 1 or len(text) < 2 or text[0] != '"' or text[-1] != '"':
            return zeros, f"extern {name} is an array, its value {text} is no string"
        return text[1:-1].encode()[: size - 1].ljust(size, b"\0"), ""
    number = _number(found, text)
    if number is None:
        return zeros, f"extern {name} cannot hold the value {text}"
    try:
        return number.to_bytes(size, "little", signed=number < 0), ""
    except OverflowError:
        return zeros, f"extern {name} has {size} bytes, too few for {text}"


def _number(found: object, text: str) -> int | None:
    """A number or y/n/m as libbpf's ``set_kcfg_value_tri`` and ``set_kcfg_value_num`` take them."""
    if text in _TRISTATE:
        if isinstance(found, Int) and found.bool_ and text != "m":
            return _TRISTATE[text]
        if isinstance(found, Enum | Enum64) and found.name == "libbpf_tristate":
            return _TRISTATE[text]
        if isinstance(found, Int) and found.size == 1 and not found.bool_:
            return ord(text)
        return None
    if not isinstance(found, Int):
        return None
    try:
        number = int(text, 0)
    except ValueError:
        return None
    return None if found.bool_ and number not in (0, 1) else number
