"""Attachments found in processes: what ``userbpf link list`` shows and ``userbpf detach`` undoes.

Everything that is needed lies in the target itself (see shared.py), so it does not matter whether the process that
attached is still there.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from userbpf.attach import Cell, Injector, Patch, Region, SitePlan, build_trampoline, remove
from userbpf.attach.decode import decode_all
from userbpf.errors import AttachError, ProcessError
from userbpf.native.abi import ROWS
from userbpf.process import Function, Process, ProcessExitedError
from userbpf.session import agent as agents
from userbpf.session import residence
from userbpf.session.shared import PAGE, read_description

_NAME: Final = "memfd:userbpf-session:"
_VERSION: Final = 1


@dataclass(frozen=True)
class FoundLink:
    """One program at one place, as the target's own memory tells it."""

    prog: str
    target: str
    kind: str
    hits: int


@dataclass(frozen=True)
class FoundAttachment:
    """One attachment in a process. controller: pid of the userbpf that made it, 0 when that has ended."""

    pid: int
    process: str
    name: str
    controller: int
    links: tuple[FoundLink, ...]
    description: dict[str, Any]
    at: int


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot: tells it from a later one with its pid (proc_pid_stat(5))."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def find_all() -> Iterator[FoundAttachment]:
    """All attachments in processes that we may look into."""
    for entry in sorted(Path("/proc").iterdir(), key=lambda path: path.name.zfill(10)):
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if _NAME not in (entry / "maps").read_text(errors="replace"):
                continue
            with Process(int(entry.name)) as process:
                yield from find(process)
        except (OSError, ProcessError):
            continue


def find(process: Process) -> list[FoundAttachment]:
    """The attachments in one process."""
    found = []
    for mapping in process.mappings():
        if _NAME not in mapping.path or mapping.offset:
            continue
        memory = process.read(mapping.start, mapping.size)
        description = read_description(memory)
        if description is None or description.get("version") != _VERSION:
            continue
        if description["pid"] != process.ns_pid:
            continue  # the userbpf that attached maps the same memory, and so does a child that the target forked
        pid, started = description["controller"]
        try:
            controller = pid if start_time(pid) == started else 0
        except (OSError, ValueError, IndexError):
            controller = 0
        hits = _hits(memory, len(description["links"]))
        links = tuple(
            FoundLink(prog, target, kind, count)
            for (prog, target, kind), count in zip(description["links"], hits, strict=True)
        )
        name = str(description["name"])
        found.append(FoundAttachment(process.pid, process.name, name, controller, links, description, mapping.start))
    return found


def _hits(memory: bytes, links: int) -> list[int]:
    shift = struct.unpack_from("<I", memory, 12)[0]
    rows = [struct.unpack_from(f"<{links}Q", memory, PAGE + (row * 8 << shift)) for row in range(ROWS)]
    return [sum(column) for column in zip(*rows, strict=True)]


def detach(process: Process, attachment: FoundAttachment) -> None:
    """Takes an attachment out of its process, whoever made it. AttachError when something of it has to stay."""
    description = attachment.description
    injector = Injector(process)
    try:
        injector.regions = [Region(*region) for region in description["regions"]]
        patches = [_patch(process, saved) for saved in description["patches"]]
        agent = agents.Agent(*description["agent"])
    except (KeyError, TypeError, ValueError) as error:
        raise AttachError(
            f"the record of the attachment {attachment.name} in process {process.pid} is damaged",
            hint="restart the process to be rid of it",
        ) from error
    cells = [range(r.addr, r.end) for r in injector.regions if r.kind == "trampoline"]
    try:
        report = remove(
            process,
            patches,
            injector,
            before_scan=lambda stopped: agents.forget_returns(stopped, agent, cells),
            callees=[agent.span],
        )
        if report.conflicts:
            raise AttachError(report.conflicts[0], hint="detach the other tool first, then try again")
        if report.left_mapped:
            raise AttachError(
                f"a thread of process {process.pid} ({process.name}) still runs in code of ours; the probes are gone",
                hint="try again later to free the memory",
            )
        residence.leave(process, agent)
    except ProcessExitedError:
        return


def save_patch(patch: Patch, cells: int) -> dict[str, Any]:
    """What :func:`detach` needs of a patch."""
    plan = patch.plan
    return {
        "site": plan.addr,
        "func": plan.func.addr,
        "insns": b"".join(insn.raw for insn in plan.insns).hex(),
        "original": plan.original.hex(),
        "island": plan.island,
        "island_original": plan.island_original.hex(),
        "shadow_stack": plan.shadow_stack,
        "trampoline": patch.addr,
        "cells": cells,
    }


def _patch(process: Process, saved: dict[str, Any]) -> Patch:
    """A patch as it was built: the same instructions at the same place give the same trampoline."""
    site = int(saved["site"])
    module = process.module_at(site)
    if module is None:
        raise AttachError(f"the code at {site:#x} of process {process.pid} is gone", hint="the library was unloaded")
    around = module.function_around(site)
    func = Function(around.name if around is not None else f"sub_{site:x}", int(saved["func"]), 0)
    plan = SitePlan(
        module=module,
        addr=site,
        func=func,
        insns=tuple(decode_all(bytes.fromhex(saved["insns"]), site)),
        original=bytes.fromhex(saved["original"]),
        island=saved["island"],
        island_original=bytes.fromhex(saved["island_original"]),
        shadow_stack=bool(saved["shadow_stack"]),
    )
    cells = [Cell(hook=0, site=site, func=site, link=0)] * int(saved["cells"])
    return build_trampoline(plan, cells, int(saved["trampoline"]))
