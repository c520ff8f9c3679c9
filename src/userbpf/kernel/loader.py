"""An :class:`~userbpf.object.Object` into the kernel: its maps, its programs, their links.

Programs need no rewriting: their map references are indices into ``fd_array`` (BPF_PSEUDO_MAP_IDX), which is
exactly what BPF_PROG_LOAD takes.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from userbpf import isa
from userbpf.errors import Place
from userbpf.kernel import syscall
from userbpf.kernel.btf import loadable
from userbpf.kernel.maps import KernelMap
from userbpf.kernel.perf import UprobeLink, attach_uprobe
from userbpf.kernel.ringbuf import RingReader
from userbpf.kernel.syscall import KernelError, address_of, check, describe
from userbpf.object import MapSpec, Object, Program
from userbpf.tables.maps import MapType

_LOG_SIZE: Final = 1 << 20
_RDONLY_PROG: Final = 1 << 7  # BPF_F_RDONLY_PROG
_F_SLEEPABLE: Final = 1 << 4  # BPF_F_SLEEPABLE, BPF_F_XDP_HAS_FRAGS: flags of BPF_PROG_LOAD
_F_XDP_HAS_FRAGS: Final = 1 << 5
_LOG_TAIL: Final = 6
_BPF_LOG_LEVEL1: Final = 1


@dataclass(frozen=True)
class TestRun:
    """Outcome of BPF_PROG_TEST_RUN: ``duration_ns`` is the mean of one repetition."""

    retval: int
    data: bytes
    ctx: bytes
    duration_ns: int


class KernelProg:
    """A program that the kernel's verifier has accepted."""

    def __init__(self, name: str, fd: int, log: str) -> None:
        self.name = name
        self.fd = fd
        self.log = log

    def test_run(self, data: bytes = b"", *, ctx: bytes = b"", repeat: int = 1) -> TestRun:
        """Runs the program on ``data`` (packet programs) or ``ctx`` (raw tracepoint and syscall programs).

        Raises KernelError with ENOTSUPP for types that the kernel does not run this way, kprobes among them.
        """
        data_in = ctypes.create_string_buffer(data, len(data)) if data else None
        data_out = ctypes.create_string_buffer(len(data) + 512) if data else None
        ctx_in = ctypes.create_string_buffer(ctx, len(ctx)) if ctx else None
        # prog_fd retval data_size_in data_size_out data_in data_out repeat duration ctx_size_in ctx_size_out
        # ctx_in ctx_out flags cpu batch_size
        form = "=IIIIQQIIIIQQIIIxxxx"
        out_size = len(data_out) if data_out is not None else 0
        attr = ctypes.create_string_buffer(
            struct.pack(
                form,
                *(self.fd, 0, len(data), out_size, address_of(data_in), address_of(data_out)),
                *(repeat if data else 0, 0, len(ctx), 0, address_of(ctx_in), 0, 0, 0, 0),
            )
        )
        check(syscall.bpf_inout(syscall.PROG_TEST_RUN, attr), f"test run of {self.name}")
        fields = struct.unpack_from(form, attr.raw)
        out = data_out.raw[: fields[3]] if data_out is not None else b""
        return TestRun(fields[1], out, ctx_in.raw if ctx_in is not None else b"", fields[7])

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class KernelObject:
    """Maps and programs of one object in the kernel. Closing it detaches and frees everything."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.maps: dict[str, KernelMap] = {}
        self.programs: dict[str, KernelProg] = {}
        self._links: list[UprobeLink] = []
        self._fds: list[int] = []

    def attach_uprobe(
        self, prog: str, pid: int | None, path: str, file_offset: int, is_return: bool = False, cookie: int = 0
    ) -> UprobeLink:
        """Attaches a program by name; see :func:`userbpf.kernel.perf.attach_uprobe`. Closed with the object."""
        link = attach_uprobe(
            self.programs[prog].fd, pid=pid, path=path, file_offset=file_offset, is_return=is_return, cookie=cookie
        )
        self._links.append(link)
        return link

    def ring(self, name: str) -> RingReader:
        return RingReader(self.maps[name])

    def close(self) -> None:
        for link in self._links:
            link.close()
        for prog in self.programs.values():
            prog.close()
        for kernel_map in self.maps.values():
            kernel_map.close()
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_object(obj: Object, *, programs: Iterable[str] | None = None) -> KernelObject:
    """Creates the maps of ``obj`` and loads its programs (all, or those named), all or nothing.

    Raises KernelError with the kernel's number, and the verifier's log in ``log``.
    """
    loaded = KernelObject(obj.name)
    try:
        for spec in obj.maps.values():
            loaded.maps[spec.name] = _create(loaded, spec)
        for name in obj.programs if programs is None else programs:
            loaded.programs[name] = _load(loaded, obj.programs[name])
        _fill_values(loaded, obj)
    except BaseException:
        loaded.close()
        raise
    return loaded


def _create(loaded: KernelObject, spec: MapSpec) -> KernelMap:
    inner_fd = 0
    if spec.inner is not None:
        template = _create(loaded, spec.inner)
        loaded._fds.append(template.fd)
        inner_fd = template.fd
    # The value of a ring buffer is the type of its records, for readers; the kernel wants no sizes there.
    is_ring = spec.type in (MapType.RINGBUF, MapType.USER_RINGBUF)
    created = KernelMap.create(
        spec.type,
        key_size=0 if is_ring else spec.key_size,
        value_size=0 if is_ring else spec.value_size,
        max_entries=spec.max_entries,
        flags=spec.flags,
        name=spec.name,
        map_extra=spec.map_extra,
        inner_fd=inner_fd,
    )
    try:
        if spec.initial is not None:
            created.update(b"\0\0\0\0", spec.initial.ljust(spec.value_size, b"\0"))
        if spec.kind in ("rodata", "kconfig") and spec.flags & _RDONLY_PROG:
            created.freeze()
    except KernelError:
        created.close()
        raise
    return created


def _fill_values(loaded: KernelObject, obj: Object) -> None:
    """The ``values`` of maps of maps and of program arrays: the kernel takes descriptors."""
    for spec in obj.maps.values():
        for item in spec.values:
            source: dict[str, KernelMap] | dict[str, KernelProg]
            source = loaded.maps if item.kind == "map" else loaded.programs
            if item.target in source:
                fd = struct.pack("=I", source[item.target].fd)
                loaded.maps[spec.name].update(struct.pack("=I", item.index), fd)


def _func_info(prog: Program) -> bytes:
    """``struct bpf_func_info`` of each subprogram, when the program has more than one and BTF for all.

    The kernel needs them for callbacks and global functions; a program of one function does without.
    """
    if prog.btf is None or len(prog.subprogs) < 2 or not all(sub.func_btf for sub in prog.subprogs):
        return b""
    return b"".join(struct.pack("=II", sub.start, sub.func_btf) for sub in prog.subprogs)


def _flags(prog: Program) -> int:
    sleepable = _F_SLEEPABLE if prog.section.sleepable else 0
    return sleepable | (_F_XDP_HAS_FRAGS if prog.section.kind == "xdp.frags" else 0)


def _load(loaded: KernelObject, prog: Program) -> KernelProg:
    insns = isa.encode(prog.insns)
    insn_buffer = ctypes.create_string_buffer(insns, len(insns))
    license_buffer = ctypes.create_string_buffer(prog.license.encode())
    log = ctypes.create_string_buffer(_LOG_SIZE)
    fds = struct.pack(f"={len(prog.maps)}I", *(loaded.maps[spec.name].fd for spec in prog.maps))
    fd_array = ctypes.create_string_buffer(fds, max(len(fds), 1))
    func_info = _func_info(prog)
    func_buffer = ctypes.create_string_buffer(func_info, max(len(func_info), 1))
    btf_fd = syscall.load_btf(loadable(prog.btf.raw)) if func_info and prog.btf is not None else 0
    short = "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in prog.name)[:15].encode()
    try:
        # prog_type insn_cnt insns license log_level log_size log_buf kern_version prog_flags prog_name
        # prog_ifindex expected_attach_type prog_btf_fd func_info_rec_size func_info func_info_cnt
        # line_info_rec_size line_info line_info_cnt attach_btf_id attach_prog_fd core_relo_cnt fd_array
        attr = struct.pack(
            "=IIQQIIQII16sIIIIQIIQIIIIQ",
            *(int(prog.section.prog_type), len(prog.insns), address_of(insn_buffer), address_of(license_buffer)),
            *(_BPF_LOG_LEVEL1, _LOG_SIZE, address_of(log), 0, _flags(prog), short),
            *(0, int(prog.section.attach_type or 0), btf_fd, 8 if func_info else 0),
            *(address_of(func_buffer) if func_info else 0, len(func_info) // 8),
            *(0, 0, 0, 0, 0, 0, address_of(fd_array)),
        )
        fd = syscall.bpf(syscall.PROG_LOAD, attr)
    finally:
        if btf_fd:
            os.close(btf_fd)
    text = log.value.decode(errors="replace")
    if fd < 0:
        tail = [line for line in text.splitlines() if line and not line.startswith("processed ")][-_LOG_TAIL:]
        error = KernelError(
            f"the kernel does not load the program: {describe(-fd)}" + "".join(f"\n  | {line}" for line in tail),
            errno=-fd,
            log=text,
        )
        error.place = Place(file=prog.object_name, prog=prog.name)
        raise error
    return KernelProg(prog.name, fd, text)
