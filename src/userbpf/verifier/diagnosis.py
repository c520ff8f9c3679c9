"""Rejections: what a person is told, and how it is printed.

A rule that is broken raises :class:`Reject` where it is found; the walk adds the place, the source line, the
values and the path, and raises :class:`RejectedError`. The text is laid out as compilers do it:

    error[mem-out-of-bounds]: the read of 4 bytes at offset 64 ends behind the value of map 'counts'
      --> counts.bpf.c:31:10
       |
    31 |     return values[i];
       |            ^^^^^^^^^
       = known: r2 is 0 … 64, the value has 64 bytes
       = path: counts.bpf.c:24: if (i > 16), not taken
       = help: …
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from userbpf.errors import Place, VerifierError
from userbpf.object.model import LineInfo

from .remedies import REMEDIES

__all__ = ["Diagnosis", "PathStep", "Reject", "RejectedError", "expression_span", "line_at"]


class Reject(Exception):
    """A rule is broken. ``reg``: the register that it is about, so that its origin can be shown; ``since``: an
    earlier instruction that belongs to the story."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        known: Sequence[str] = (),
        help: str | None = None,
        reg: int | None = None,
        since: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.known = tuple(known)
        self.help = help
        self.reg = reg
        self.since = since


@dataclass(frozen=True, slots=True)
class PathStep:
    """A branch on the way to the rejection, oldest first; ``times`` in a row."""

    insn: int
    taken: bool
    where: str
    text: str
    times: int = 1

    def __str__(self) -> str:
        outcome = "jump taken" if self.taken else "jump not taken"
        again = f", {self.times} times" if self.times > 1 else ""
        return f"{self.where}: {self.text} ({outcome} at instruction {self.insn}{again})"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A rejection as data. ``insn`` is an instruction index; ``line`` its source line when the object has one;
    ``asm`` the instruction as text; ``known`` facts about the values there; ``help`` the usual remedy."""

    code: str
    message: str
    prog: str
    insn: int
    asm: str
    line: LineInfo | None
    known: tuple[str, ...]
    path: tuple[PathStep, ...]
    help: str | None

    def render(self) -> str:
        """The message as a compiler would print it."""
        out = [f"error[{self.code}]: {self.message}"]
        if self.line is not None:
            number = str(self.line.line)
            pad = " " * len(number)
            out.append(f"{pad} --> {self.line.file}:{self.line.line}:{self.line.column} (program {self.prog})")
            text = self.line.text.rstrip()
            if text:
                shown = text.expandtabs(4)
                start, end = expression_span(text, self.line.column)
                left = len(text[:start].expandtabs(4))
                width = max(1, len(text[:end].expandtabs(4)) - left)
                out += [f"{pad} |", f"{number} | {shown}", f"{pad} | {' ' * left}{'^' * width}"]
        else:
            pad = ""
            out.append(f" --> program {self.prog}")
        out.append(f"{pad} = at: instruction {self.insn}: {self.asm}")
        out += [f"{pad} = known: {fact}" for fact in self.known]
        out += [f"{pad} = path: {step}" for step in self.path]
        if self.help is not None:
            first, *rest = self.help.splitlines()
            out.append(f"{pad} = help: {first}")
            out += [f"{pad}         {line}" for line in rest]
        return "\n".join(out)


class RejectedError(VerifierError):
    """The program is not safe, or not provably so. ``diagnosis`` has all that is known about why."""

    code = "verifier"

    def __init__(self, diagnosis: Diagnosis, *, section: str | None = None) -> None:
        line = diagnosis.line
        place = Place(
            file=line.file if line else None,
            section=section,
            prog=diagnosis.prog,
            insn=diagnosis.insn,
            line=line.line if line else None,
            column=line.column if line else None,
        )
        super().__init__(diagnosis.message, place=place, hint=diagnosis.help)
        self.diagnosis = diagnosis

    def __str__(self) -> str:
        return self.diagnosis.render()


def help_for(code: str) -> str | None:
    """The usual remedy for a rule."""
    return REMEDIES.get(code)


def line_at(lines: Sequence[LineInfo], insn: int) -> LineInfo | None:
    """The source position of an instruction: the last one that starts at or before it."""
    low, high = 0, len(lines)
    while low < high:
        middle = (low + high) // 2
        if lines[middle].insn <= insn:
            low = middle + 1
        else:
            high = middle
    return lines[low - 1] if low else None


_TOKEN = re.compile(r"[A-Za-z_]\w*|\d\w*|\S")
_OPEN = "([{"
_OPERATORS = "=+-/%&|^<>!?:"


def expression_span(text: str, column: int) -> tuple[int, int]:
    """Start and end (0-based) of the expression that starts at the 1-based ``column`` of a source line.

    A name with what follows it directly: calls, subscripts, members. The whole statement when the column is that
    of an operator (so the compiler marks assignments) or there is none. Otherwise a single token.
    """
    start = column - 1
    if not 0 <= start < len(text) or text[start].isspace() or text[start] in _OPERATORS:
        first = len(text) - len(text.lstrip())
        end = text.find(";", max(start, first))
        return first, end if end > first else max(len(text.rstrip().rstrip("{").rstrip()), first + 1)
    match = _TOKEN.match(text, start)
    end = match.end() if match else start + 1
    if match and text[start] in _OPEN:
        return start, _matching(text, start)
    while end < len(text):
        if text[end] in "([":
            end = _matching(text, end)
        elif text.startswith("->", end) or text[end] == ".":
            member = _TOKEN.match(text, end + (2 if text[end] == "-" else 1))
            if member is None:
                break
            end = member.end()
        else:
            break
    return start, end


def _matching(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        if text[index] in "([{":
            depth += 1
        elif text[index] in ")]}":
            depth -= 1
            if depth == 0:
                return index + 1
    return len(text)
