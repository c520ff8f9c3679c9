"""``userbpf map list`` and ``userbpf map dump``: maps of running attachments, typed by their BTF."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from userbpf.cli.output import jsonable, print_json, print_table
from userbpf.errors import MapError, UserBpfError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="List and dump the maps that are in use.",
    epilog="Examples: userbpf map list --pid 1234;  userbpf map dump counts --json",
)

Pid = Annotated[int | None, typer.Option("--pid", help="Only maps that this process uses.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _described(item: Any) -> dict[str, Any]:
    """A found map as a row; a map that cannot be opened says why."""
    row: dict[str, Any] = {"name": item.name, "id": item.inode, "pids": sorted(item.pids), "held": item.is_held}
    try:
        with item.open() as opened:
            geometry = opened.definition
            row |= {
                "type": opened.type.name.lower(),
                "key_size": geometry.key_size,
                "value_size": geometry.value_size,
                "max_entries": geometry.max_entries,
                "flags": geometry.flags,
                "bytes": opened.memory_size,
            }
    except UserBpfError as error:
        row["error"] = error.message
    return row


@app.command("list")
def list_maps(pid: Pid = None, json: Json = False) -> None:
    """List the maps of running attachments, in the processes that we may look at."""
    from userbpf.cli.mapfinder import find_maps

    rows = [_described(item) for item in find_maps(None if pid is None else [pid])]
    if json:
        print_json(rows)
        return
    print_table(
        ("id", "name", "type", "key", "value", "entries", "processes"),
        [
            (
                *(row["id"], row["name"], row.get("type", row.get("error", ""))),
                *(row.get("key_size", "-"), row.get("value_size", "-"), row.get("max_entries", "-")),
                " ".join(map(str, row["pids"])),
            )
            for row in rows
        ],
    )


@app.command()
def dump(
    name: Annotated[str, typer.Argument(help="Name of the map, or its id from `map list`.", show_default=False)],
    pid: Pid = None,
    json: Json = False,
) -> None:
    """Print the entries of a map: structs with field names where the program had BTF."""
    item = _choose(name, pid)
    with item.open() as opened:
        kind = opened.type.name.lower()
        if opened.is_events:
            raise MapError(
                f"the map {item.name!r} is a {kind}: its records belong to the one who consumes them",
                errno=22,
                hint="`userbpf attach … --json` prints them",
            )
        entries = [{"key": key, "value": value} for key, value in opened.items()]
        if json:
            print_json({"name": item.name, "id": item.inode, "type": kind, "entries": entries})
            return
        print_table(("key", "value"), [(_text(entry["key"]), _text(entry["value"])) for entry in entries])


def _choose(name: str, pid: int | None) -> Any:
    from userbpf.cli.mapfinder import find_maps

    found = find_maps(None if pid is None else [pid])
    chosen = [item for item in found if item.name == name or str(item.inode) == name]
    if not chosen:
        import difflib

        near = difflib.get_close_matches(name, {item.name for item in found}, n=3)
        where = "" if pid is None else f" in process {pid}"
        raise MapError(
            f"no map is called {name!r}{where}",
            errno=2,
            hint=f"did you mean {' or '.join(near)}?" if near else "`userbpf map list` shows those that are in use",
        )
    if len(chosen) > 1:
        ids = ", ".join(f"{item.inode} (processes {' '.join(map(str, sorted(item.pids)))})" for item in chosen)
        raise MapError(
            f"{len(chosen)} maps are called {name!r}", errno=22, hint=f"give the id instead of the name: {ids}"
        )
    return chosen[0]


def _text(value: object) -> str:
    value = jsonable(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)
