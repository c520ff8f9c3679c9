"""The memory that one attachment shares with its target: counts of hits, and all that a detach needs.

It is a memfd named ``userbpf-session:NAME``, mapped in the target, so that it lives as long as the probes do and
whoever comes later finds it in the target's list of mappings, even when the process that made it is gone.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
from typing import Any, Final

from userbpf.errors import AttachError
from userbpf.native.abi import ROWS

MAGIC: Final = b"UBPFSES1"
PAGE: Final = 4096
_HEADER: Final = struct.Struct("<8sIIQQQQ")
_DESCRIPTION_BASE: Final = 8192
_DESCRIPTION_PER_LINK: Final = 1024


class SharedState:
    """Hits and description of one attachment.

    Layout: a page with the header (magic, number of links, log2 of the counters per row, offset of the rows,
    offset, capacity and length of the description), then ROWS rows of counters, then the description as JSON.
    """

    def __init__(self, name: str, links: int) -> None:
        self.links = links
        self.shift = max(3, (max(links, 1) - 1).bit_length())
        rows = ROWS * 8 << self.shift
        self.rows_size = (rows + PAGE - 1) // PAGE * PAGE
        self.description_off = PAGE + self.rows_size
        self.capacity = (_DESCRIPTION_BASE + _DESCRIPTION_PER_LINK * links + PAGE - 1) // PAGE * PAGE
        self.size = self.description_off + self.capacity
        self.fd = os.memfd_create(f"userbpf-session:{name}"[:200], os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, self.size)
            self._memory = mmap.mmap(self.fd, self.size)
        except OSError:
            os.close(self.fd)
            raise
        self._length = 0
        self._write_header()

    def _write_header(self) -> None:
        _HEADER.pack_into(
            self._memory,
            0,
            MAGIC,
            self.links,
            self.shift,
            PAGE,
            self.description_off,
            self.capacity,
            self._length,
        )

    def describe(self, description: dict[str, Any]) -> None:
        """Replaces the description. The length is written last, 0 while the text is being written."""
        data = json.dumps(description, separators=(",", ":")).encode()
        if len(data) > self.capacity:
            raise AttachError(
                f"the description of the attachment has {len(data)} bytes, and room is for {self.capacity}",
                hint="attach fewer programs at a time, or shorten the paths of their targets",
            )
        self._length = 0
        self._write_header()
        self._memory[self.description_off : self.description_off + len(data)] = data
        self._length = len(data)
        self._write_header()

    def hits(self) -> list[int]:
        """How often each link was hit until now, over all threads."""
        totals = [0] * self.links
        width = 8 << self.shift
        for row in range(ROWS):
            start = PAGE + row * width
            values = struct.unpack_from(f"<{self.links}Q", self._memory, start)
            if any(values):
                totals = [a + b for a, b in zip(totals, values, strict=True)]
        return totals

    def close(self) -> None:
        """Unmaps and closes; the target's own mapping is not touched."""
        with contextlib.suppress(BufferError):
            self._memory.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def read_description(memory: bytes) -> dict[str, Any] | None:
    """The description in the bytes of a session's memory, None when it is not one or is being written."""
    if len(memory) < _HEADER.size or memory[:8] != MAGIC:
        return None
    _, _, _, _, offset, capacity, length = _HEADER.unpack_from(memory)
    if not 0 < length <= capacity or offset + length > len(memory):
        return None
    try:
        value = json.loads(memory[offset : offset + length])
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
