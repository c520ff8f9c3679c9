"""A small writer of LLVM IR text: one function at a time, temporaries numbered, blocks by label.

Text, because llvmlite's own builder knows neither the attributes nor the calling conventions that hooks need.
"""

from __future__ import annotations


class FunctionWriter:
    """Collects the lines of one function. A value is its IR name or literal, a type its IR spelling."""

    def __init__(self, header: str) -> None:
        self._header = header
        self._lines: list[str] = []
        self._next = 0
        self.terminated = False

    def fresh(self) -> str:
        """A new name for a value or a label."""
        self._next += 1
        return f"t{self._next}"

    def op(self, text: str) -> str:
        """Appends ``%new = text`` and returns ``%new``."""
        name = f"%{self.fresh()}"
        self._lines.append(f"  {name} = {text}")
        return name

    def do(self, text: str) -> None:
        """Appends an instruction without a result."""
        self._lines.append(f"  {text}")

    def label(self, name: str) -> None:
        """Begins the block ``name``; the block before falls through to it when it has no end yet."""
        if not self.terminated and self._lines:
            self._lines.append(f"  br label %{name}")
        self._lines.append(f"{name}:")
        self.terminated = False

    def end(self, text: str) -> None:
        """Appends a terminator."""
        self._lines.append(f"  {text}")
        self.terminated = True

    def text(self) -> str:
        """The whole definition."""
        return "\n".join([f"{self._header} {{", *self._lines, "}"]) + "\n"


def gep(writer: FunctionWriter, base: str, offset: int | str) -> str:
    """Pointer ``base`` plus ``offset`` bytes (a number or an i64 value)."""
    if offset == 0:
        return base
    return writer.op(f"getelementptr i8, ptr {base}, i64 {offset}")
