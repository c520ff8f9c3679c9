"""Events out of ring buffers and perf event arrays."""

from __future__ import annotations

import ctypes
import errno
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from userbpf.errors import BtfError, MapError
from userbpf.maps.codec import Codec
from userbpf.maps.memory import MapMemory
from userbpf.native import library
from userbpf.native.abi import Event

__all__ = ["EventReader"]

_BATCH: Final = 256 << 10
_LONGEST_WAIT_NS: Final = 500_000_000


class EventReader:
    """The one consumer of a map's events in this process. Threads take turns.

    ``close`` may be called from any thread, and from a signal handler in the midst of a wait.
    """

    def __init__(self, memory: MapMemory) -> None:
        self._memory = memory
        self._lock = threading.RLock()
        self._buffer = ctypes.create_string_buffer(_BATCH + 8)
        self._finished = False
        self._closed = False
        self._codec: tuple[Codec, int] | None = None
        self.lost = 0
        """Events that perf event arrays reported as lost so far."""

    def set_type(self, codec: tuple[Codec, int] | None) -> None:
        """Events that are at least as large as this type are decoded by it."""
        self._codec = codec

    def finish(self) -> None:
        """No more events will come: iteration ends when those that are there have been read."""
        self._finished = True
        self._wake()

    def restart(self) -> None:
        """Undoes :meth:`finish`: programs write events again."""
        self._finished = self._closed

    def close(self) -> None:
        """Ends all waiting, and returns when nobody touches the memory any more."""
        self._closed = self._finished = True
        while not self._lock.acquire(timeout=0.02):
            self._wake()
        self._lock.release()

    def _wake(self) -> None:
        if not self._memory.closed and self._memory.address:
            library().raw.ub_map_wake(self._memory.address)

    def take(self) -> list[Any]:
        """What is there now, in order (of each ring); does not wait."""
        with self._lock:
            return [] if self._closed else self._take()

    def read(self, timeout: float | None) -> list[Any]:
        """Waits for events at most ``timeout`` seconds (None: until some come, or finish). [] when none came."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._lock:
                if self._closed:
                    return []
                finished = self._finished  # before the look: what came until then is seen by it
                since = library().raw.ub_map_wake_seq(self._memory.address)
                events = self._take()
                left = -1 if deadline is None else int((deadline - time.monotonic()) * 1e9)
                if events or finished or (deadline is not None and left <= 0):
                    return events
                # A signal's Python handler runs when this returns. One that comes just before the wait begins does
                # not end it, so none is longer than _LONGEST_WAIT_NS.
                library().raw.ub_map_wait(
                    ctypes.byref(self._memory.definition),
                    self._memory.address,
                    since,
                    _LONGEST_WAIT_NS if left < 0 else min(left, _LONGEST_WAIT_NS),
                )

    def __iter__(self) -> Iterator[Any]:
        """Every event, waiting for the next one; ends after ``finish`` or ``close``."""
        while True:
            events = self.read(None)
            if not events:
                return
            yield from events

    def _take(self) -> list[Any]:
        if self._memory.frozen:
            raise MapError(f"the map {self._memory.info.name!r} is frozen: it has no reader", errno=errno.EPERM)
        address = (ctypes.addressof(self._buffer) + 7) & ~7
        used = library().raw.ub_map_consume(
            ctypes.byref(self._memory.definition), self._memory.address, address, len(self._buffer) - 8
        )
        if used == -errno.ENOSPC:
            self._buffer = ctypes.create_string_buffer(2 * len(self._buffer))
            return self._take()
        if used < 0:
            raise MapError(f"the map {self._memory.info.name!r} has no events", errno=-used)
        return self._parse(ctypes.string_at(address, used))

    def _parse(self, data: bytes) -> list[Any]:
        events: list[Any] = []
        at, head_size = 0, ctypes.sizeof(Event)
        while at < len(data):
            head = Event.from_buffer_copy(data, at)
            if head.lost:
                self.lost += head.lost
            else:
                events.append(self._decode(data[at + head_size : at + head_size + head.size]))
            at += head_size + (head.size + 7) // 8 * 8
        return events

    def _decode(self, sample: bytes) -> Any:
        if self._codec is None or len(sample) < self._codec[1]:
            return sample
        try:
            return self._codec[0].decode(sample[: self._codec[1]])
        except BtfError:
            return sample
