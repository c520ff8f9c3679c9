"""Lines of assembly → tokens, and a cursor over them whose errors name line and column."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

from userbpf.errors import IsaError, Place
from userbpf.isa.insn import Insn
from userbpf.isa.opcodes import MAX_REG

_TOKEN: Final = re.compile(
    r"""
    (?P<space>[ \t\r,]+)
  | (?P<comment>/\*.*?\*/|//.*|;.*|(?:(?<=\s)|^)\#.*)
  | (?P<note>\#[^\s#]+)
  | (?P<number>0[xX][0-9a-fA-F]+\b|[0-9]+\b)
  | (?P<op>s>>=|<<=|>>=|s/=|s%=|s>=|s<=|s>|s<|==|!=|<=|>=|\+=|-=|\*=|/=|%=|&=|\|=|\^=|[-+*&=<>()\[\]:%])
  | (?P<word>[A-Za-z_.$][\w.$@]*)
    """,
    re.VERBOSE,
)
_REGISTER: Final = re.compile(r"([rw])([0-9]+)")


class Token(NamedTuple):
    """kind is ``number``, ``op``, ``word``, ``note`` (``#name`` right behind something) or ``end``."""

    kind: str
    text: str
    column: int


@dataclass(frozen=True)
class LabelRef:
    """A field of the first instruction of a statement that a label will fill."""

    label: str
    field: str
    column: int


class Statement(NamedTuple):
    """What one line makes: an instruction (two slots when wide) and the label that it waits for."""

    insns: tuple[Insn, ...]
    ref: LabelRef | None = None


class Cursor:
    """The tokens of one line."""

    def __init__(self, text: str, line: int, file: str) -> None:
        self.line = line
        self.file = file
        self._tokens = self._tokenize(text)
        self._next = 0

    def _tokenize(self, text: str) -> list[Token]:
        tokens: list[Token] = []
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                self.fail(f"the character {text[position]!r} is not part of the syntax", position + 1)
            kind = match.lastgroup or ""
            if kind not in ("space", "comment"):
                tokens.append(Token(kind, match.group(), position + 1))
            position = match.end()
        tokens.append(Token("end", "", len(text) + 1))
        return tokens

    def error(self, message: str, column: int, hint: str | None = None) -> IsaError:
        return IsaError(message, place=Place(file=self.file, line=self.line, column=column), hint=hint)

    def fail(self, message: str, column: int, hint: str | None = None) -> NoReturn:
        raise self.error(message, column, hint)

    def unexpected(self, wanted: str) -> NoReturn:
        token = self.peek()
        found = "the end of the line" if token.kind == "end" else f'"{token.text}"'
        self.fail(f"expected {wanted}, found {found}", token.column)

    def peek(self, ahead: int = 0) -> Token:
        return self._tokens[min(self._next + ahead, len(self._tokens) - 1)]

    def take(self) -> Token:
        token = self.peek()
        self._next += 1
        return token

    def accept(self, text: str) -> bool:
        """Take the next token when it is exactly this text."""
        if self.peek().text != text or self.peek().kind == "end":
            return False
        self._next += 1
        return True

    def expect(self, *texts: str) -> None:
        for text in texts:
            if not self.accept(text):
                self.unexpected(f'"{text}"')

    def accept_note(self) -> str | None:
        """A name behind ``#``, without it."""
        return self.take().text[1:] if self.peek().kind == "note" else None

    def end(self) -> None:
        if self.peek().kind != "end":
            self.unexpected("the end of the line")

    def word(self, wanted: str) -> Token:
        if self.peek().kind != "word":
            self.unexpected(wanted)
        return self.take()

    def register(self) -> tuple[int, bool]:
        """``r3``, ``w3`` or ``%r3`` → number and whether it is the 64-bit name."""
        self.accept("%")
        token = self.peek()
        match = _REGISTER.fullmatch(token.text)
        if match is None:
            self.unexpected("a register")
        number = int(match[2])
        if number > MAX_REG:
            self.fail(f"the register {token.text} does not exist", token.column, "registers are r0 to r10")
        self._next += 1
        return number, match[1] == "r"

    def at_register(self) -> bool:
        first = self.peek(1) if self.peek().text == "%" else self.peek()
        return _REGISTER.fullmatch(first.text) is not None

    def at_number(self) -> bool:
        first = self.peek(1) if self.peek().text in ("+", "-") else self.peek()
        return first.kind == "number"

    def integer(self, low: int, high: int, what: str) -> int:
        """A signed number within bounds. Hexadecimal and decimal."""
        start = self.peek()
        negative = self.accept("-")
        if not negative:
            self.accept("+")
        if self.peek().kind != "number":
            self.unexpected(what)
        text = self.take().text
        value = int(text, 16) if text[:2] in ("0x", "0X") else int(text, 10)
        value = -value if negative else value
        if not low <= value <= high:
            self.fail(f"{what} {value:#x} does not fit: it must be between {low} and {high}", start.column)
        return value

    def imm32(self) -> int:
        """A 32-bit immediate: -2^31 to 2^32-1; the upper half is taken as negative, as the kernel prints it."""
        value = self.integer(-(1 << 31), (1 << 32) - 1, "the immediate")
        return value - (1 << 32) if value >= 1 << 31 else value

    def imm64(self) -> int:
        return self.integer(-(1 << 63), (1 << 64) - 1, "the immediate")

    def off16(self) -> int:
        return self.integer(-(1 << 15), (1 << 15) - 1, "the offset")

    def target(self, field: str) -> int | LabelRef:
        """``+3``, ``pc+3`` or a label."""
        token = self.peek()
        if token.text == "pc" and self.peek(1).text in ("+", "-"):
            self.take()
        if self.at_number():
            return self.off16() if field == "off" else self.integer(-(1 << 31), (1 << 31) - 1, "the offset")
        return LabelRef(self.word("a branch target").text, field, token.column)
