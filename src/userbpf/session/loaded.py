"""An object made ready to run: verified programs, maps that exist, and attachments to processes."""

from __future__ import annotations

import errno
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final

from userbpf.errors import AttachError, MapError, ObjectError, Place, UnsupportedError, UserBpfError
from userbpf.kernel.host import kernel_btf, running_kernel
from userbpf.maps import Map
from userbpf.object import MapSpec, Object, Program
from userbpf.session.constants import set_constants, with_maps
from userbpf.session.events import event_types
from userbpf.tables.maps import MAP_TYPES, MapType, type_name
from userbpf.verifier import Verified, verify

if TYPE_CHECKING:
    from userbpf.codegen import CodeImage, HookKind
    from userbpf.process import Process
    from userbpf.session.attachment import Attachment
    from userbpf.session.trace import TraceLine

TRACE_BYTES: Final = 1 << 20
"""Size of the ring that bpf_trace_printk writes to."""


def read_object(path: str | Path) -> Object:
    """Reads a BPF object file; C source (``.c``) is compiled first.

    Raises ObjectError, BtfError or ToolchainError with the file as its place.
    """
    path = Path(path)
    if path.suffix == ".c":
        from userbpf.toolchain import compile_c

        data = compile_c(path)
    else:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ObjectError(
                f"cannot be read: {error.strerror}",
                place=Place(file=str(path)),
                hint="give a BPF object (.o) or BPF C source (.c)",
            ) from error
    return Object.parse(data, name=str(path), kernel_btf=kernel_btf, kernel=running_kernel())


def load(
    path: str | Path, *, programs: Sequence[str] | None = None, constants: Mapping[str, Any] | None = None
) -> LoadedObject:
    """Reads, verifies and prepares an object: ``load("prog.bpf.c")`` or ``load("prog.bpf.o")``.

    programs: names (or glob patterns) of the programs to load; by default all whose section name does not begin
    with ``?``. Every one of them is verified: a VerifierError says what is wrong and where. constants: values for
    ``const volatile`` globals by name. The result owns the maps; use it as a context manager or call
    :meth:`LoadedObject.close`.
    """
    return LoadedObject(read_object(path), programs=programs, constants=constants)


@dataclass(frozen=True)
class _Chosen:
    program: Program
    verified: Verified


class LoadedObject:
    """A loaded object. ``maps`` are live: they can be read and written before, while and after it is attached.

    programs: the verified programs by name. maps: by the names in the object, global data included (``.bss`` …).
    """

    def __init__(
        self, obj: Object, *, programs: Sequence[str] | None = None, constants: Mapping[str, Any] | None = None
    ) -> None:
        self.object = obj
        self.name = Path(obj.name).name.partition(".")[0] or "object"
        self._specs = set_constants(obj.maps, constants or {}, obj.name)
        chosen = with_maps(_choose(obj, programs), self._specs)
        self._chosen = [_Chosen(program, verify(program)) for program in chosen]
        self.programs: Mapping[str, Verified] = MappingProxyType({c.program.name: c.verified for c in self._chosen})
        self._maps: dict[str, Map] = {}
        self._attachments: list[Attachment] = []
        self._images: dict[tuple[tuple[tuple[str, HookKind], ...], bool], CodeImage] = {}
        self._closed = False
        try:
            self._create_maps()
        except BaseException:
            self.close()
            raise

    # ---- maps ----------------------------------------------------------------------------------------

    def _create_maps(self) -> None:
        used = {spec.name for c in self._chosen for spec in c.program.maps}
        for spec in self._specs.values():
            if spec.type in MAP_TYPES:
                self._maps[spec.name] = _create(spec, self.object.name)
                if spec.kind == "rodata":
                    # What the verifier took for granted: nobody may change it any more.
                    self._maps[spec.name].freeze()
            elif spec.name in used:
                raise UnsupportedError(
                    f"the map {spec.name} is of type {type_name(spec.type)}, which is not offered",
                    place=Place(file=self.object.name),
                    hint="offered are: " + ", ".join(type_name(number) for number in MAP_TYPES),
                )
        for name, struct in event_types(self.programs.values(), self.object.btf).items():
            if self._maps[name].info.value_btf == 0:
                self._maps[name].typed(struct)

    @property
    def maps(self) -> Mapping[str, Map]:
        """The maps by name."""
        return MappingProxyType({name: m for name, m in self._maps.items() if name != ".trace"})

    def _trace_map(self) -> Map:
        if ".trace" not in self._maps:
            self._maps[".trace"] = Map.create(MapSpec(".trace", MapType.RINGBUF, 0, 0, TRACE_BYTES))
        return self._maps[".trace"]

    @property
    def prints(self) -> bool:
        """True when an attached program can call bpf_printk, so that there may be lines to read."""
        return ".trace" in self._maps

    def trace(self, timeout: float | None = 0) -> list[TraceLine]:
        """Lines that programs have written with bpf_printk since the last call.

        timeout: seconds to wait for the first one; None waits until one comes or everything is detached.
        """
        from userbpf.session.trace import read_trace

        return read_trace(self._maps[".trace"], timeout) if self.prints else []

    # ---- attaching -----------------------------------------------------------------------------------

    def attach(
        self,
        pid: int | None = None,
        *,
        process: Process | None = None,
        targets: Mapping[str, str] | None = None,
    ) -> Attachment:
        """Puts every loaded program into the process ``pid`` (or ``process``), at the place its section names.

        targets: program name → ``PATH:SYMBOL[+OFFSET]`` for programs whose section names no place, or another
        one; the key ``*`` is for all without a place. The object may be attached to any number of processes: they
        share the maps. Raises AttachError, ProcessError or UnsupportedError; the target is then as it was.
        """
        from userbpf.process import Process as ProcessType
        from userbpf.session.attachment import Attachment
        from userbpf.session.targets import check_attachable, effective_section, plan_all, resolve

        self._check_open()
        if (pid is None) == (process is None):
            raise AttachError("attach needs either a pid or a process", hint="obj.attach(pid=1234)")
        targets = targets or {}
        _check_targets(targets, self.programs)
        for chosen in self._chosen:
            check_attachable(chosen.program, targets)
        sections = [effective_section(chosen.program, targets) for chosen in self._chosen]
        if not sections:
            raise AttachError("the object has no program to attach", place=Place(file=self.object.name))
        own = process is None
        if process is None:
            assert pid is not None
            process = ProcessType(pid)
        try:
            sites = [
                site
                for chosen, section in zip(self._chosen, sections, strict=True)
                for site in resolve(process, chosen.program, section)
            ]
            sites, plans, skipped = plan_all(process, sites)
            kinds = {(site.prog, site.hook_kind(plans[site.addr])) for site in sites}
            process.longest_stop_ns = 0
            with process.stop() as stopped:
                tp_self = stopped.thread_pointers_are_self()
            image = self._image(sorted(kinds, key=lambda key: (key[0], key[1].value)), tp_self=tp_self)
            for bpf_map in self._maps.values():
                if bpf_map.is_events:
                    bpf_map.events.restart()
            attachment = Attachment(
                self.name, process, sites, plans, image, self._maps, on_end=self._ended, owns_process=own
            )
        except BaseException:
            if own:
                process.close()
            raise
        attachment.skipped = tuple(skipped)
        self._attachments.append(attachment)
        return attachment

    def _image(self, wanted: Sequence[tuple[str, HookKind]], *, tp_self: bool) -> CodeImage:
        """The machine code for these programs at these kinds of place; made once, shared by all targets."""
        from userbpf.codegen import TRACE, MapBinding, Request, compile_programs, needs_trace

        key = (tuple(wanted), tp_self)
        if key not in self._images:
            requests = [Request(self.programs[name], kind) for name, kind in wanted]
            names = [spec.name for r in requests for spec in r.verified.program.maps]
            if any(needs_trace(request.verified) for request in requests):
                self._trace_map()
                names.append(TRACE)
            bindings = [
                MapBinding(name, self._maps[name].type, bytes(self._maps[name].definition))
                for name in dict.fromkeys(names)
            ]
            self._images[key] = compile_programs(requests, bindings, tp_self=tp_self)
        return self._images[key]

    # ---- end -----------------------------------------------------------------------------------------

    def _ended(self) -> None:
        """A target has ended or was detached: iterations over events end when it was the last one."""
        if not any(attachment.alive for attachment in self._attachments):
            for bpf_map in self._maps.values():
                if bpf_map.is_events:
                    bpf_map.finish()

    def _check_open(self) -> None:
        if self._closed:
            raise AttachError("the object is closed", hint="attach inside the `with userbpf.load(…)` block")

    def close(self) -> None:
        """Detaches everything and closes the maps."""
        self._closed = True
        for attachment in self._attachments:
            attachment.detach()
        for bpf_map in self._maps.values():
            bpf_map.close()

    def __enter__(self) -> LoadedObject:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _create(spec: MapSpec, object_name: str) -> Map:
    try:
        return Map.create(spec)
    except MapError as error:
        sizes = f"{spec.max_entries} entries of {spec.key_size} + {spec.value_size} bytes"
        too_large = error.errno in (errno.E2BIG, errno.ENOMEM, errno.EFBIG, errno.ENOSPC)
        raise MapError(
            f"the map {spec.name} ({type_name(spec.type)}, {sizes}, flags {spec.flags:#x}) cannot be made: "
            f"{errno.errorcode.get(error.errno, error.errno)}",
            errno=error.errno,
            place=Place(file=object_name),
            hint="lower max_entries or the size of the value" if too_large else error.hint,
        ) from error


def _choose(obj: Object, patterns: Sequence[str] | None) -> list[Program]:
    """The programs to load. A program that could not be linked raises its own error when it is chosen."""
    names: Iterable[str] = [*obj.programs, *obj.errors]
    if patterns is None:
        for name, error in obj.errors.items():
            raise _named(error, name)
        return [program for program in obj.programs.values() if program.section.autoload]
    chosen: list[Program] = []
    for pattern in patterns:
        matching = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            known = ", ".join(sorted(names)) or "none"
            raise ObjectError(f"there is no program {pattern!r}", place=Place(file=obj.name), hint=f"it has: {known}")
        for name in matching:
            if name in obj.errors:
                raise _named(obj.errors[name], name)
            if obj.programs[name] not in chosen:
                chosen.append(obj.programs[name])
    return chosen


def _named(error: UserBpfError, name: str) -> UserBpfError:
    return error if error.place.prog or error.place.section else type(error)(error.message, place=Place(prog=name))


def _check_targets(targets: Mapping[str, str], programs: Mapping[str, Verified]) -> None:
    for name in targets:
        if name != "*" and name not in programs:
            raise AttachError(f"there is no program {name!r} to give a target", hint=f"it has: {', '.join(programs)}")
