"""How verbs print: JSON, tables on a terminal, aligned plain text elsewhere."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence, Set
from enum import IntEnum
from typing import Any


def jsonable(value: object) -> Any:
    """``value`` in JSON's types: bytes as hex, tuples and sets as lists, dataclasses and mappings as objects.

    Keys that are not strings become their JSON text, so that a map's struct keys survive.
    """
    if isinstance(value, IntEnum):
        return value.name.lower()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else json.dumps(jsonable(key)): jsonable(val) for key, val in value.items()}
    if isinstance(value, Sequence | Set):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()  # a NumPy array or scalar
    return str(value)


def print_json(value: object) -> None:
    """One JSON value on standard output."""
    print(json.dumps(jsonable(value), indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
    """A table: drawn by rich on a terminal, else columns that are aligned by spaces, for eyes and awk."""
    cells = [[str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    if title is not None:
        print(title)
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    for line in [list(columns), *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
