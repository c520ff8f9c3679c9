"""Which addresses of a process a program is meant for.

A section name (``uprobe/libc.so.6:malloc+4``) or the same text given at attach names a file and a function; here
it becomes addresses in one process. Names are resolved as libbpf does (tools/lib/bpf/libbpf.c, attach_uprobe).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from userbpf.codegen import HookKind
from userbpf.errors import AttachError, ObjectError, Place, ProcessError, UnsupportedError
from userbpf.tables.programs import Section, parse_section

if TYPE_CHECKING:
    from userbpf.attach import SitePlan
    from userbpf.object import Program
    from userbpf.process import Function, Module, Process

ATTACHABLE: Final = ("uprobe", "uprobe.multi")
"""Kinds of section that can be attached to a user process today."""


@dataclass(frozen=True)
class Site:
    """One place in one process where one program runs."""

    prog: str
    is_return: bool
    module: Module
    function: Function | None
    addr: int
    target: str
    by_pattern: bool = False
    """One of many functions that a pattern matched: left out, with a word about it, when it cannot be probed."""

    def hook_kind(self, plan: SitePlan) -> HookKind:
        """Which kind of hook the program needs here."""
        if self.is_return:
            return HookKind.RETURN
        return HookKind.INNER if plan.inner else HookKind.ENTRY


def check_attachable(program: Program, targets: Mapping[str, str]) -> None:
    """Raises UnsupportedError for program kinds that have no events in a user process, or none yet.

    A kprobe program that is given a function of the process by name runs there: to the kernel, too, it is the same
    type of program, and loaders attach such programs to user functions (bpf_program__attach_uprobe).
    """
    section = program.section
    if section.kind in ATTACHABLE or (section.kind == "kprobe" and program.name in targets):
        return
    place = Place(file=program.object_name, section=section.name, prog=program.name)
    if section.kind in ("usdt", "uprobe.session", "tracepoint", "ksyscall", "perf_event", "raw_tracepoint"):
        raise UnsupportedError(
            f"programs of section {section.name!r} cannot be attached yet",
            place=place,
            hint='probe the function instead, SEC("uprobe/PATH:SYMBOL"), or choose programs with --prog',
        )
    hint = 'a user process offers SEC("uprobe/…") and SEC("uretprobe/…"); choose programs with --prog'
    if section.kind == "kprobe":
        hint += f", or give it a function of the process: --target {program.name}=PATH:SYMBOL"
    raise UnsupportedError(
        f"programs of section {section.name!r} see events that only a kernel has", place=place, hint=hint
    )


def effective_section(program: Program, targets: Mapping[str, str]) -> Section:
    """The program's section, with the target given at attach in place of the one in its name.

    targets: program name → ``PATH:SYMBOL[+OFFSET]``. The key ``*`` is for every program without a target.
    """
    section = program.section
    text = targets.get(program.name)
    if text is None and section.path is None:
        text = targets.get("*")
    if text is None:
        if section.path is None:
            raise AttachError(
                f"section {section.name!r} of program {program.name} does not say where to attach",
                place=Place(file=program.object_name, section=section.name, prog=program.name),
                hint=f"give the place: --target {program.name}=libc.so.6:malloc",
            )
        return section
    kind = "uprobe.multi" if section.kind == "uprobe.multi" else "uprobe"
    prefix = kind.replace("uprobe", "uretprobe") if section.is_return else kind
    try:
        return parse_section(f"{prefix}/{text}")
    except ObjectError as error:
        raise AttachError(
            f"the target {text!r} of program {program.name} is not PATH:SYMBOL[+OFFSET]",
            hint="for instance libc.so.6:malloc, /usr/bin/bash:readline, ./app:main+0x10",
        ) from error


def resolve(process: Process, program: Program, section: Section) -> list[Site]:
    """All sites of ``program`` in ``process``. Raises AttachError or ProcessError with near names."""
    from userbpf.attach import resolve_functions

    place = Place(file=program.object_name, section=section.name, prog=program.name)
    assert section.path is not None
    own = section.path in ("/proc/self/exe", f"/proc/{process.pid}/exe")
    module = process.main_module() if own else process.resolve_library(section.path)
    if section.symbol is None:
        addr = _file_offset(module, section.offset, place)
        function = module.function_around(addr)
        entry = function is not None and function.addr == addr
        return [_site(program, section, module, function, addr, entry=entry)]
    pattern = any(c in section.symbol for c in "*?[")
    functions: Sequence[Function]
    if pattern:
        functions = _matching(module, section.symbol, place)
    else:
        functions = resolve_functions(process, module, section.symbol)
    entry = section.offset == 0
    sites = [
        _site(program, section, module, function, function.addr + section.offset, entry=entry) for function in functions
    ]
    return [replace(site, by_pattern=pattern) for site in sites]


def plan_all(process: Process, sites: Sequence[Site]) -> tuple[list[Site], dict[int, SitePlan], list[str]]:
    """How each site is probed: the sites, their plans by address, and a sentence for each that was left out.

    A place that was named must be probed: AttachError says why it cannot. Of the functions that a pattern matched
    those that can are.
    """
    from userbpf.attach import plan_site

    plans: dict[int, SitePlan] = {}
    kept: list[Site] = []
    skipped: list[str] = []
    for site in sites:
        try:
            if site.module.elf.go:
                raise AttachError(
                    f"{site.target} is a Go function, whose stack of a few kilobytes a program could overflow",
                    hint="probe a C function that the process calls, or use the kernel's uprobe",
                )
            if site.addr not in plans:
                beside = tuple(plans.values())
                plans[site.addr] = plan_site(process, site.module, site.addr, site.function, beside=beside)
        except AttachError as error:
            if not site.by_pattern:
                raise
            skipped.append(error.message)
            continue
        kept.append(site)
    if sites and not kept:
        raise AttachError(f"none of the {len(sites)} functions can be probed; the first: {skipped[0]}")
    return kept, plans, skipped


def _site(
    program: Program, section: Section, module: Module, function: Function | None, addr: int, *, entry: bool
) -> Site:
    if section.is_return and not entry:
        raise AttachError(
            f"program {program.name} runs at a function's return, so it needs the function, not a place inside it",
            place=Place(file=program.object_name, section=section.name, prog=program.name),
            hint="leave the offset out",
        )
    name = function.name if function is not None else f"{addr:#x}"
    offset = addr - function.addr if function is not None else 0
    target = f"{module.path}:{name}" + (f"+{offset:#x}" if offset else "")
    return Site(program.name, section.is_return, module, function, addr, target)


def _file_offset(module: Module, offset: int, place: Place) -> int:
    """Address of a byte of the file, as uprobes count (Documentation/trace/uprobetracer.rst)."""
    for mapping in module.mappings:
        if mapping.executable and mapping.offset <= offset < mapping.offset + mapping.size:
            return mapping.start + offset - mapping.offset
    raise AttachError(
        f"offset {offset:#x} of {module.path} is not code",
        place=place,
        hint="give a symbol, or the file offset of an instruction (not its virtual address)",
    )


def _matching(module: Module, pattern: str, place: Place) -> list[Function]:
    seen: dict[int, Function] = {}
    for symbol in module.functions:
        if fnmatch.fnmatchcase(symbol.name, pattern) and not symbol.ifunc:
            function = module.at(symbol)
            seen.setdefault(function.addr, function)
    if not seen:
        raise ProcessError(
            f"no function in {module.path} matches {pattern!r}",
            place=place,
            hint="list them with: nm -D " + module.path,
        )
    return [seen[addr] for addr in sorted(seen)]
