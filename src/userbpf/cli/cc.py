"""``userbpf cc``: BPF C → object."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from userbpf.cli.output import print_json

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    epilog="Examples: userbpf cc prog.bpf.c -o prog.bpf.o;  userbpf cc prog.bpf.c -I include -D DEBUG=1 --json"
)
def cc(
    source: Annotated[Path, typer.Argument(help="BPF C source, usually NAME.bpf.c.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Object to write; default: SOURCE with .o for .c.")
    ] = None,
    include: Annotated[list[Path] | None, typer.Option("-I", help="Folder of headers; may be repeated.")] = None,
    define: Annotated[list[str] | None, typer.Option("-D", help="NAME or NAME=VALUE; may be repeated.")] = None,
    compiler: Annotated[
        str | None, typer.Option(help="A clang to use instead of ziglang's.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Compile BPF C to an object with BTF and CO-RE records.

    vmlinux.h and the bpf/*.h headers are found without -I.
    """
    from userbpf.toolchain import compile_c

    target = output if output is not None else source.with_suffix(".o")
    data = compile_c(
        source,
        output=target,
        includes=include or (),
        defines=define or (),
        compiler=compiler,
        warn=lambda text: print(text, file=sys.stderr),
    )
    if json:
        print_json({"source": str(source), "output": str(target), "bytes": len(data)})
