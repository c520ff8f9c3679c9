"""``userbpf inspect``: what is in an object."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from userbpf.cli.embedded import Embedded, find_embedded, is_bpf_object
from userbpf.cli.output import jsonable, print_json, print_table
from userbpf.errors import ObjectError, Place

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(
    epilog="Examples: userbpf inspect prog.bpf.o;  userbpf inspect prog.bpf.o --prog handle_exec;  "
    "userbpf inspect /usr/sbin/execsnoop --json"
)
def inspect(
    path: Annotated[Path, typer.Argument(help="BPF object, or an executable that carries some.", show_default=False)],
    prog: Annotated[list[str] | None, typer.Option("--prog", help="Disassemble this program; may be repeated.")] = None,
    disasm: Annotated[
        bool | None,
        typer.Option("--disasm/--no-disasm", help="Disassemble all programs; default: when there is just one."),
    ] = None,
    embedded: Annotated[
        int | None, typer.Option(help="Which of the objects inside an executable, counted from 0.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show programs, maps, globals, BTF and the disassembly with its C source lines.

    Nothing is loaded or run. Programs of every type are read, those that userbpf cannot run too.
    """
    data = path.read_bytes()
    name = path.name
    if not is_bpf_object(data):
        found = find_embedded(data)
        if not found:
            raise ObjectError(
                "this executable carries no BPF object",
                place=Place(file=str(path)),
                hint="give a BPF object (clang -target bpf, or userbpf cc), or a program built with a libbpf skeleton",
            )
        if embedded is None and len(found) > 1:
            _list_embedded(path, found, json)
            return
        chosen = embedded or 0
        if not 0 <= chosen < len(found):
            raise ObjectError(
                f"there is no embedded object {chosen}: the file carries {len(found)}",
                place=Place(file=str(path)),
                hint=f"choose --embedded 0 to {len(found) - 1}",
            )
        data, name = found[chosen].data, f"{path.name}#{chosen}"
    elif embedded is not None:
        raise ObjectError("this is a BPF object itself, so --embedded chooses nothing", place=Place(file=str(path)))
    described = _describe(data, name, prog or [], disasm, json)
    if json:
        print_json({"file": str(path), **described})
    else:
        _print(described)


def _list_embedded(path: Path, found: list[Embedded], json: bool) -> None:
    rows = [(index, item.offset, len(item.data)) for index, item in enumerate(found)]
    if json:
        items = [{"index": index, "offset": offset, "bytes": size} for index, offset, size in rows]
        print_json({"file": str(path), "embedded": items})
        return
    print_table(
        ("object", "offset", "bytes"),
        [(index, hex(offset), size) for index, offset, size in rows],
        title=f"{path} carries {len(found)} BPF objects; show one with --embedded N",
    )


def _describe(data: bytes, name: str, progs: list[str], disasm: bool | None, json: bool) -> dict[str, Any]:
    from userbpf.cli.describe import describe_object
    from userbpf.kernel.host import kernel_btf, running_kernel
    from userbpf.object import Object

    obj = Object.parse(data, name=name, kernel_btf=kernel_btf, kernel=running_kernel())
    for wanted in progs:
        if wanted not in obj.programs:
            known = ", ".join(obj.programs) or "none"
            raise obj.errors.get(wanted) or ObjectError(
                f"there is no program {wanted!r}", place=Place(file=name), hint=f"the programs are: {known}"
            )
    if progs:
        shown = set(progs)
    elif disasm or (disasm is None and (json or len(obj.programs) == 1)):
        shown = set(obj.programs)
    else:
        shown = set()
    return describe_object(obj, disassemble=shown)


def _print(described: dict[str, Any]) -> None:
    btf = described["btf"]
    print(f"{described['name']}: license {described['license'] or '(none)'}, {_btf_line(btf)}")
    if described["programs"]:
        print()
        rows = [
            (
                *(prog["name"], prog["section"], prog["type"], prog["insns"], len(prog["subprogs"])),
                ", ".join(prog["helpers_not_offered"]) or "-",
            )
            for prog in described["programs"]
        ]
        print_table(("program", "section", "type", "insns", "functions", "helpers not offered"), rows)
    if described["maps"]:
        print()
        _print_maps(described["maps"])
    for section in described["globals"]:
        print(f"\n{section['section']}: {section['bytes']} bytes")
        for variable in section["variables"]:
            print(f"  {variable['declaration']} = {_short(variable['value'])};")
    for item in described["unusable"]:
        print(f"\n{item['name']} cannot be linked: {item['reason']}")
    for prog in described["programs"]:
        if "code" in prog:
            _print_code(prog)


def _btf_line(btf: dict[str, Any] | None) -> str:
    if btf is None:
        return "no BTF"
    kinds = ", ".join(f"{count} {kind}" for kind, count in btf["kinds"].items())
    return f"BTF with {btf['types']} types ({kinds})"


def _print_maps(maps: list[dict[str, Any]]) -> None:
    rows = [
        (
            *(item["name"], item["type"], _side(item, "key"), _side(item, "value")),
            *(item["max_entries"], " ".join(item["flags"]) or "-"),
        )
        for item in maps
    ]
    print_table(("map", "type", "key", "value", "entries", "flags"), rows)
    printed: set[str] = set()
    for item in maps:
        for text in item["types"]:
            if text not in printed:
                printed.add(text)
                print(f"\n{text}")


def _side(item: dict[str, Any], side: str) -> str:
    """A key or value: its C type, or its size where the object has no type for it."""
    size = item[f"{side}_size"]
    return item[side] or (f"{size} bytes" if size else "-")


def _short(value: object) -> str:
    """A value as C would write it, cut to a line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f'"{value}"' if isinstance(value, str) else str(jsonable(value))
    return text if len(text) <= 100 else text[:97] + "..."


def _print_code(prog: dict[str, Any]) -> None:
    print(f"\n{prog['name']}: {prog['section']}")
    for entry in prog["code"]:
        if "subprog" in entry and entry["insn"]:
            print(f"\n{entry['subprog']}:")
        if "source" in entry:
            source = entry["source"]
            where = f"{Path(source['file']).name}:{source['line']}"
            print(f"; {source['text']}  // {where}" if source["text"] else f"; {where}")
        print(f"{entry['insn']:6}: {entry['text']}")
