"""One exception tree. Every error says what happened, where, and what to do next.

The command line prints :meth:`UserBpfError.__str__`: one sentence, the place, the next step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Place:
    """Where an error is: any part may be missing."""

    file: str | None = None
    section: str | None = None
    prog: str | None = None
    insn: int | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        parts: list[str] = []
        if self.file is not None:
            where = self.file
            if self.line is not None:
                where += f":{self.line}"
                if self.column is not None:
                    where += f":{self.column}"
            parts.append(where)
        elif self.line is not None:
            parts.append(f"line {self.line}")
        if self.section is not None:
            parts.append(f"section {self.section}")
        if self.prog is not None:
            parts.append(f"program {self.prog}")
        if self.insn is not None:
            parts.append(f"instruction {self.insn}")
        return ", ".join(parts)


class UserBpfError(Exception):
    """Base of all errors that userbpf raises on purpose.

    message: one sentence, no final full stop needed. place: where. hint: the one thing to do about it.
    ``code`` is stable: scripts may match on it.
    """

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, place: Place | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.place = place or Place()
        self.hint = hint

    def __str__(self) -> str:
        where = str(self.place)
        text = f"{where}: {self.message}" if where else self.message
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class IsaError(UserBpfError):
    """An instruction is not one of RFC 9669, or a program's structure is broken."""

    code = "isa"


class BtfError(UserBpfError):
    """BTF data is malformed, or a type that is needed is not in it."""

    code = "btf"


class ObjectError(UserBpfError):
    """A BPF object file cannot be read, linked or relocated."""

    code = "object"


class ToolchainError(UserBpfError):
    """BPF C could not be compiled: no compiler, or the compiler's own errors."""

    code = "toolchain"


class VerifierError(UserBpfError):
    """A program is rejected. Subclassed in ``verifier`` with the whole diagnosis."""

    code = "verifier"


class UnsupportedError(UserBpfError):
    """A helper, map type, program type or attach kind that userbpf does not offer."""

    code = "unsupported"


class CodegenError(UserBpfError):
    """Machine code could not be made."""

    code = "codegen"


class MapError(UserBpfError):
    """A map operation failed. ``errno`` is the kernel's number for the same failure."""

    code = "map"

    def __init__(self, message: str, *, errno: int, place: Place | None = None, hint: str | None = None) -> None:
        super().__init__(message, place=place, hint=hint)
        self.errno = errno


class ProcessError(UserBpfError):
    """A process cannot be found, read, stopped or changed."""

    code = "process"


class AttachError(UserBpfError):
    """A program cannot be attached at a place; the target is as it was before."""

    code = "attach"
