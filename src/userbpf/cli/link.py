"""``userbpf link list``: which programs are attached where, by whomever."""

from __future__ import annotations

from typing import Annotated

import typer

from userbpf.cli.output import print_json, print_table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def link() -> None:
    """What is attached to processes that this user may look into."""


@app.command("list", epilog="Examples: userbpf link list;  userbpf link list --pid 1234 --json")
def list_links(
    pid: Annotated[int | None, typer.Option(help="Only of this process.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """List the links: program, place, hits, and the userbpf that made them (0: it has ended)."""
    from userbpf.process import Process
    from userbpf.session.found import find, find_all

    if pid is None:
        attachments = list(find_all())
    else:
        with Process(pid) as process:
            attachments = find(process)
    rows = [
        {
            "pid": found.pid,
            "process": found.process,
            "object": found.name,
            "prog": item.prog,
            "target": item.target,
            "kind": item.kind,
            "hits": item.hits,
            "controller": found.controller,
        }
        for found in attachments
        for item in found.links
    ]
    if json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        print("nothing is attached")
