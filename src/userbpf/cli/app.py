"""``userbpf``: the verbs, their lazy loading, and how errors leave the program.

Exit status: 0 done, 1 an error that userbpf explains, 2 wrong usage, 70 an error in userbpf itself (sysexits.h),
130 interrupted, 141 the reader of the output went away.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Annotated, Any, Final, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from userbpf.errors import UserBpfError

VERBS: Final = {
    "attach": "Attach an object's programs to a process or a command.",
    "cc": "Compile BPF C to an object with BTF and CO-RE records.",
    "inspect": "Show programs, maps, BTF and disassembly of an object.",
    "detach": "Take attachments out of processes, also of a userbpf that was killed.",
    "link": "List what is attached where.",
    "map": "List and dump the maps that are in use.",
    "doctor": "Say what works on this machine, and what to do.",
}
"""Verb → one line; the module is ``userbpf.cli.VERB`` with a Typer application ``app``."""

INTERNAL: Final = 70
INTERRUPTED: Final = 130
READER_GONE: Final = 141


class Verbs(TyperGroup):
    """Knows the verbs by name and imports only the one that runs: ``--help`` needs none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        text = VERBS.get(cmd_name)
        return None if text is None else TyperCommand(name=cmd_name, help=text, callback=None)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in VERBS:
            command = get_command(importlib.import_module(f"userbpf.cli.{name}").app)
        return name, command, rest


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: userbpf attach prog.bpf.c --pid 1234 --duration 5. Each verb has --help.",
)

_wants_traceback = False


def _print_version(wanted: bool) -> None:
    if wanted:
        import userbpf

        print(f"userbpf {userbpf.__version__}")
        raise typer.Exit


@app.callback()
def options(
    show_traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """eBPF in user space: run BPF programs inside ordinary processes, without root."""
    global _wants_traceback
    _wants_traceback = show_traceback


def _fail(text: str, status: int) -> NoReturn:
    if _wants_traceback:
        traceback.print_exc()
    # A verifier's diagnosis is a page of its own, which begins with its code: error[null-deref].
    print(text if text.startswith("error[") else f"error: {text}", file=sys.stderr)
    raise SystemExit(status)


def main() -> NoReturn:
    """Entry point of the ``userbpf`` command."""
    try:
        # Errors of usage are printed and given status 2 in there; the rest comes out.
        app(prog_name="userbpf")
        sys.stdout.flush()
    except SystemExit as done:
        _flush_or_leave()
        raise SystemExit(done.code) from None
    except UserBpfError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        _leave_reader_gone()
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename is not None else str(error), 1)
    except Exception as error:
        hint = "" if _wants_traceback else "\n  hint: `userbpf --traceback VERB …` shows where; please report it"
        _fail(f"internal error: {type(error).__name__}: {error}{hint}", INTERNAL)
    raise SystemExit(0)


def _flush_or_leave() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_reader_gone()


def _leave_reader_gone() -> NoReturn:
    # The interpreter flushes once more at exit: give it somewhere to write to.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(READER_GONE)


if __name__ == "__main__":
    main()
