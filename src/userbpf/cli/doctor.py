"""``userbpf doctor``: what works on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from userbpf.cli.output import print_json, print_table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(epilog="Examples: userbpf doctor;  userbpf doctor --json")
def doctor(json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Say what works on this machine, what does not, and the one thing to do about each.

    Every row was tried, not looked up. Exit status 1 when something that attaching needs is missing.
    """
    from userbpf.cli.checks import CHECKS, attempt

    rows = [attempt(check) for check in CHECKS]
    missing = [row.name for row in rows if row.state == "missing"]
    if json:
        print_json({"ok": not missing, "checks": rows})
    else:
        print_table(("check", "state", "finding"), [(row.name, row.state, row.detail) for row in rows])
        advice = [row for row in rows if row.advice and row.state != "ok"]
        if advice:
            print()
        for row in advice:
            print(f"{row.name}: {row.advice}")
    if missing:
        raise typer.Exit(1)
