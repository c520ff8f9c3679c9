"""Reads a ring-buffer map of the kernel from its mappings (Documentation/bpf/ringbuf.rst, kernel/bpf/ringbuf.c).

The first page holds the consumer's position (writable), the second the producer's; the data pages follow and
are mapped twice, so that a record which wraps around the end is contiguous.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from userbpf.kernel.maps import KernelMap

_BUSY: Final = 1 << 31
_DISCARD: Final = 1 << 30
_HEADER: Final = 8


class RingReader:
    """The one consumer of a ring buffer. ``read()`` gives what is there now and never waits."""

    def __init__(self, ring: KernelMap) -> None:
        page = mmap.PAGESIZE
        self._size = ring.max_entries
        self._consumer = mmap.mmap(ring.fd, page)
        self._producer = mmap.mmap(ring.fd, page + 2 * self._size, prot=mmap.PROT_READ, offset=page)

    def read(self) -> Iterator[bytes]:
        """Records that are committed, in order. A record that is still being written ends the iteration."""
        page = mmap.PAGESIZE
        (position,) = struct.unpack_from("=Q", self._consumer, 0)
        (end,) = struct.unpack_from("=Q", self._producer, 0)
        while position < end:
            start = page + (position & (self._size - 1))
            (header,) = struct.unpack_from("=I", self._producer, start)
            if header & _BUSY:
                return
            length = header & ~(_BUSY | _DISCARD)
            record = None if header & _DISCARD else self._producer[start + _HEADER : start + _HEADER + length]
            position += (length + _HEADER + 7) & ~7
            # Written only after the record was copied: from here the producer may reuse its bytes.
            struct.pack_into("=Q", self._consumer, 0, position)
            if record is not None:
                yield record

    def close(self) -> None:
        self._consumer.close()
        self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
