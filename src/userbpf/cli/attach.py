"""``userbpf attach``: programs of an object into a running process, or into a command that is started for it."""

from __future__ import annotations

import contextlib
import json as json_module
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from userbpf.cli.output import jsonable, print_json, print_table
from userbpf.errors import AttachError

if TYPE_CHECKING:
    from userbpf.maps import Map
    from userbpf.process import Process
    from userbpf.session import Attachment, LoadedObject

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

MAX_EVENTS: Final = 1_000_000
_GRACE_SECONDS: Final = 5.0


@dataclass
class _Collected:
    """What came in while the programs ran."""

    events: list[dict[str, Any]] = field(default_factory=list)
    trace: list[dict[str, Any]] = field(default_factory=list)
    omitted: int = 0


@app.command(
    context_settings={"allow_extra_args": False, "ignore_unknown_options": False},
    epilog="Examples: userbpf attach count.bpf.c --pid 1234 --duration 5;  "
    "userbpf attach count.bpf.o --json -- python3 app.py;  "
    "userbpf attach probe.bpf.o --pid 1234 --target on_entry=libc.so.6:malloc",
)
def attach(
    obj: Annotated[Path, typer.Argument(metavar="OBJ", help="BPF object (.o) or BPF C source (.c).")],
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND", help="A command to start and to attach to.")
    ] = None,
    pid: Annotated[int | None, typer.Option(help="The process to attach to.", show_default=False)] = None,
    duration: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to run; default: until Ctrl-C or until the target ends.", show_default=False),
    ] = None,
    prog: Annotated[
        list[str] | None, typer.Option(help="Only this program (a name or a pattern); may be repeated.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="[PROG=]PATH:SYMBOL[+OFFSET]: where to attach a program; may be repeated."),
    ] = None,
    constant: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE of a const volatile global; may be repeated.")
    ] = None,
    event_type: Annotated[
        list[str] | None, typer.Option(help="MAP=STRUCT: decode a buffer's events as this type; may be repeated.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end, and nothing else.")] = False,
) -> None:
    """Attach an object's programs to a process (--pid) or to a command.

    Each program goes where its section name says, SEC("uprobe/libc.so.6:malloc"), or where --target says. Events
    and bpf_printk lines are shown as they come; hits and maps at the end. A started command is asked to end when
    the duration is over. With --json its output goes to standard error.
    """
    from userbpf.session import load

    if (pid is None) == (not command):
        raise AttachError(
            "say what to attach to: either --pid PID or -- COMMAND", hint=f"userbpf attach {obj} --pid 1234"
        )
    with (
        load(obj, programs=prog, constants=_constants(constant or [])) as loaded,
        _target(pid, command, json) as process,
    ):
        for item in event_type or []:
            name, _, type_name = item.partition("=")
            _event_map(loaded, name).typed(type_name)
        attachment = loaded.attach(process=process, targets=_targets(target or []))
        try:
            with _StopSignals() as signals:
                if command:
                    process.resume()
                elif not json:
                    stop = f"it stood still for {attachment.stop_ns / 1e6:.1f} ms"
                    print(f"attached to {process.name} ({process.pid}), {stop}; Ctrl-C ends", flush=True)
                collected = _run(loaded, attachment, signals, duration, quiet=json)
        finally:
            attachment.detach()
        for problem in attachment.skipped:
            print(f"warning: not probed: {problem}", file=sys.stderr)
        for problem in attachment.problems:
            print(f"warning: process {process.pid}: {problem}", file=sys.stderr)
        _report(loaded, attachment, collected, json=json)


def _constants(items: list[str]) -> dict[str, Any]:
    """Values are JSON (numbers, true, lists); what is not is text."""
    values: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals:
            raise AttachError(f"{item!r} is not NAME=VALUE", hint="--set threshold=100")
        try:
            values[name] = int(text, 0)
        except ValueError:
            try:
                values[name] = json_module.loads(text)
            except ValueError:
                values[name] = text
    return values


def _targets(items: list[str]) -> dict[str, str]:
    targets: dict[str, str] = {}
    for item in items:
        name, equals, place = item.partition("=")
        if equals and "/" not in name and ":" not in name:
            targets[name] = place
        else:
            targets["*"] = item
    return targets


def _event_map(loaded: LoadedObject, name: str) -> Map:
    if name not in loaded.maps:
        raise AttachError(f"there is no map {name!r}", hint=f"it has: {', '.join(loaded.maps) or 'none'}")
    return loaded.maps[name]


@contextlib.contextmanager
def _target(pid: int | None, command: list[str] | None, json: bool) -> Iterator[Process]:
    from userbpf.process import Process, spawn

    if pid is not None:
        with Process(pid) as process:
            yield process
        return
    process = spawn(command or [], stdout=sys.stderr.fileno() if json else None)
    try:
        yield process
    finally:
        if process.child:
            process.terminate()
            if process.wait(_GRACE_SECONDS) is None:
                process.terminate(signal.SIGKILL)
                process.wait()
        process.close()


class _StopSignals:
    """SIGINT and SIGTERM ask for the end, at whatever moment they come, instead of breaking something off."""

    def __enter__(self) -> _StopSignals:
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._previous = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, _number: int, _frame: object) -> None:
        os.eventfd_write(self._event, 1)

    def wait(self, attachment: Attachment, duration: float | None) -> None:
        """Until a signal has come, the target has ended, or ``duration`` seconds have passed."""
        poll = select.poll()
        poll.register(self._event, select.POLLIN)
        poll.register(attachment.process.pidfd, select.POLLIN)
        poll.poll(None if duration is None else duration * 1000)

    def __exit__(self, *_exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._event)


def _run(
    loaded: LoadedObject, attachment: Attachment, signals: _StopSignals, duration: float | None, *, quiet: bool
) -> _Collected:
    """Collects events until the time is over, the target has ended, or somebody interrupts."""
    collected = _Collected()
    lock = threading.Lock()
    readers = [
        threading.Thread(target=_read_events, args=(bpf_map, collected, lock, quiet), daemon=True)
        for bpf_map in loaded.maps.values()
        if bpf_map.is_events
    ]
    if loaded.prints:
        readers.append(threading.Thread(target=_read_trace, args=(loaded, collected, lock, quiet), daemon=True))
    for reader in readers:
        reader.start()

    try:
        signals.wait(attachment, duration)
    finally:
        attachment.detach()
    for reader in readers:
        reader.join()
    return collected


def _read_events(bpf_map: Map, collected: _Collected, lock: threading.Lock, quiet: bool) -> None:
    for event in bpf_map:
        with lock:
            if len(collected.events) >= MAX_EVENTS:
                collected.omitted += 1
                continue
            if quiet:
                collected.events.append({"map": bpf_map.name, "value": event})
            else:
                print(f"{bpf_map.name}: {_text(event)}", flush=True)


def _read_trace(loaded: LoadedObject, collected: _Collected, lock: threading.Lock, quiet: bool) -> None:
    while lines := loaded.trace(timeout=None):
        with lock:
            for line in lines:
                if quiet:
                    collected.trace.append(jsonable(line))
                else:
                    print(line, flush=True)


def _text(value: Any) -> str:
    """A value for people: structs as ``name=value``, bytes as hex."""
    value = jsonable(value)
    if isinstance(value, dict):
        return " ".join(f"{key}={_text(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return "[" + " ".join(_text(inner) for inner in value) + "]"
    return str(value)


def _report(loaded: LoadedObject, attachment: Attachment, collected: _Collected, *, json: bool) -> None:
    links = [
        {"prog": link.prog, "target": link.target, "pid": link.pid, "hits": link.hits} for link in attachment.links
    ]
    maps = {name: entries(bpf_map) for name, bpf_map in loaded.maps.items() if not bpf_map.is_events}
    lost = {name: bpf_map.events.lost + bpf_map.dropped for name, bpf_map in loaded.maps.items() if bpf_map.is_events}
    if json:
        print_json(
            {
                "links": links,
                "maps": maps,
                "events": collected.events,
                "trace": collected.trace,
                "lost": lost,
                "omitted_events": collected.omitted,
                "missed_returns": attachment.missed_returns,
                "skipped": list(attachment.skipped),
            }
        )
        return
    print_table(
        ["program", "target", "hits"], [[row["prog"], row["target"], row["hits"]] for row in links], title="links"
    )
    for name, rows in maps.items():
        if rows and not name.startswith((".rodata", ".kconfig")):
            print()
            print_table(["key", "value"], [[_text(row["key"]), _text(row["value"])] for row in rows], title=name)
    for name, number in lost.items():
        if number:
            print(f"{name}: {number} events were lost because the buffer was full", file=sys.stderr)


def entries(bpf_map: Map) -> list[dict[str, Any]]:
    """All entries of a map as ``{"key": …, "value": …}``; of global data the variables by name."""
    if bpf_map.info.kind != "map":
        return [{"key": 0, "value": dict(bpf_map.variables)}]
    return [{"key": key, "value": value} for key, value in bpf_map.items()]
