"""How much a program may ask of the verifier and of the machine. The defaults are Linux's."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT", "Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """visited: instructions walked over all paths (BPF_COMPLEXITY_LIMIT_INSNS). pending: branches waiting to be
    walked (BPF_COMPLEXITY_LIMIT_JMP_SEQ). frame_bytes, total_stack: one frame, and the deepest chain of calls
    (MAX_BPF_STACK). depth: nested frames (MAX_CALL_FRAMES). machine: names the layout of ``pt_regs``.
    store_often: keep a state at every place where states are compared (BPF_F_TEST_STATE_FREQ): slower, and what tests
    of pruning need.
    """

    visited: int = 1_000_000
    pending: int = 8192
    frame_bytes: int = 512
    total_stack: int = 512
    depth: int = 8
    machine: str = "x86_64"
    store_often: bool = False


DEFAULT = Limits()
