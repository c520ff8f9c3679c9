"""``userbpf detach``: attachments out of processes, also those of a userbpf that was killed."""

from __future__ import annotations

from typing import Annotated

import typer

from userbpf.cli.output import print_json
from userbpf.errors import AttachError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(epilog="Examples: userbpf detach --pid 1234;  userbpf detach --all --json")
def detach(
    pid: Annotated[int | None, typer.Option(help="The process to clean.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every process that this user may change.")] = False,
    force: Annotated[bool, typer.Option(help="Also what a userbpf that still runs has attached.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was detached as JSON.")] = False,
) -> None:
    """Put original bytes back and free all memory of attachments whose userbpf has ended.

    An attachment whose userbpf still runs is left to it, unless --force is given.
    """
    from userbpf.process import Process
    from userbpf.session import found

    if (pid is None) == (not everything):
        raise AttachError("say what to detach: --pid PID or --all", hint="`userbpf link list` shows what is attached")
    if pid is not None:
        with Process(pid) as process:
            attachments = found.find(process)
    else:
        attachments = list(found.find_all())
    owned = [attachment for attachment in attachments if attachment.controller and not force]
    if owned and pid is not None:
        raise AttachError(
            f"{owned[0].name} in process {pid} belongs to process {owned[0].controller}, which still runs",
            hint=f"end that process (Ctrl-C there, or kill {owned[0].controller}), or give --force",
        )
    done = []
    for attachment in attachments:
        if attachment in owned:
            continue
        with Process(attachment.pid) as process:
            found.detach(process, attachment)
        done.append({"pid": attachment.pid, "object": attachment.name, "links": len(attachment.links)})
    if json:
        print_json({"detached": done, "left": [{"pid": a.pid, "controller": a.controller} for a in owned]})
        return
    for row in done:
        print(f"detached {row['object']} ({row['links']} links) from process {row['pid']}")
    for attachment in owned:
        print(
            f"left {attachment.name} in process {attachment.pid} to process {attachment.controller}, which still runs"
        )
    if not attachments:
        print("nothing is attached")
