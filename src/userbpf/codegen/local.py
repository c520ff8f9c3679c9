"""An image in this process: programs as plain functions, for tests and test runs."""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Sequence
from types import TracebackType

from userbpf.codegen.image import CodeImage, HookKind
from userbpf.errors import CodegenError
from userbpf.native import library
from userbpf.native.abi import Env

_LIBC = ctypes.CDLL(None, use_errno=True)
_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4


class LocalImage:
    """Maps an image whose entries are :data:`HookKind.PLAIN`. A context manager.

    map_addresses: where each of ``image.maps`` lies in this process, in order. Code is written first and made
    executable then: never both at once.
    """

    def __init__(self, image: CodeImage, map_addresses: Sequence[int] = ()) -> None:
        if any(entry.kind is not HookKind.PLAIN for entry in image.entries):
            raise CodegenError("only images of plain functions can run in this process")
        if len(map_addresses) != len(image.maps):
            raise CodegenError(f"the image needs the addresses of {len(image.maps)} maps, got {len(map_addresses)}")
        self._image = image
        self._memory = mmap.mmap(-1, image.size)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        env = ctypes.string_at(library().raw.ub_library_env(), ctypes.sizeof(Env))
        data = env + struct.pack(f"<{len(map_addresses)}Q", *map_addresses)
        self._memory[: len(image.code)] = image.code
        self._memory[len(image.code) : len(image.code) + len(data)] = data
        if _LIBC.mprotect(ctypes.c_void_p(self._address), len(image.code), _PROT_READ | _PROT_EXEC) != 0:
            raise CodegenError("the code could not be made executable", hint="the system may forbid new code here")

    def run(self, context: bytes | bytearray = b"", entry: int = 0) -> int:
        """Runs an entry once with a copy of ``context``; what is in r0 at the end, unsigned."""
        symbol = self._image.entries[entry].body
        if self._address == 0 or symbol is None:
            raise CodegenError("the image is closed")
        function = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(self._address + self._image.symbols[symbol])
        buffer = ctypes.create_string_buffer(bytes(context), max(len(context), 1))
        result = int(function(ctypes.addressof(buffer)))
        if isinstance(context, bytearray):
            context[:] = buffer.raw[: len(context)]
        return result

    def close(self) -> None:
        """Makes the memory plain again; it goes with the last reference."""
        if self._address:
            _LIBC.mprotect(ctypes.c_void_p(self._address), len(self._image.code), _PROT_READ | _PROT_WRITE)
            self._address = 0

    def __enter__(self) -> LocalImage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
