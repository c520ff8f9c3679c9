"""A directory of the user's for files that can be made again."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def cache_dir() -> Path | None:
    """``$USERBPF_CACHE``, ``$XDG_CACHE_HOME/userbpf`` or ``~/.cache/userbpf``; None when none can be written."""
    for base in _candidates():
        try:
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # Headers from here are compiled: a directory that somebody else could write is not trusted.
        status = base.stat()
        if status.st_uid == os.geteuid() and not status.st_mode & 0o022 and os.access(base, os.W_OK):
            return base
    return None


def _candidates() -> list[Path]:
    chosen = os.environ.get("USERBPF_CACHE")
    if chosen:
        return [Path(chosen)]
    found: list[Path] = []
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and Path(xdg).is_absolute():
        found.append(Path(xdg) / "userbpf")
    with contextlib.suppress(RuntimeError):  # no home directory is known for this user
        found.append(Path.home() / ".cache" / "userbpf")
    return found


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one, or the new one, or none; never a part."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
