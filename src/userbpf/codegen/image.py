"""A CodeImage: finished machine code for one or many processes.

``code`` is position-independent and page-padded; the data area of ``data_size`` bytes follows it immediately in
memory and is the only thing that differs between processes. Code reaches it relative to the instruction, so the
same sealed file serves every process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

PAGE: Final = 4096


class HookKind(Enum):
    """Where a program runs: at a function's entry, at any other instruction, at a function's return, or nowhere
    (``PLAIN``): called as a C function, ``uint64_t f(void *ctx)``, in this process."""

    ENTRY = "entry"
    INNER = "inner"
    RETURN = "return"
    PLAIN = "plain"


@dataclass(frozen=True)
class Entry:
    """How to run one program: what a cell's ``hook`` and ``body`` must be.

    hook: symbol of this image when ``agent_hook`` is None, else 0 is meant. agent_hook: symbol of the agent that
    stands in for it and calls ``body``.
    """

    prog: str
    kind: HookKind
    hook: str | None
    agent_hook: str | None
    body: str | None


@dataclass(frozen=True)
class CodeImage:
    """Position-independent code with its symbols (offsets from the start).

    maps: names of the maps whose addresses stand behind ``struct ub_env`` in the data area, in order.
    faulting: the code reads memory that may not be there: the agent's fault handler must be installed.
    """

    code: bytes
    data_size: int
    symbols: Mapping[str, int]
    maps: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()
    faulting: bool = False

    @property
    def size(self) -> int:
        """Bytes of the whole mapping, a multiple of the page size."""
        return len(self.code) + (self.data_size + PAGE - 1) // PAGE * PAGE
