"""Errors of this room that callers tell apart from a plain :class:`userbpf.errors.ProcessError`."""

from __future__ import annotations

from userbpf.errors import ProcessError

__all__ = ["ProcessExitedError"]


class ProcessExitedError(ProcessError):
    """The process ended, or became another program, while it was being worked on."""
