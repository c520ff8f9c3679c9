"""Programs of one object in one process: the way in, what can be seen meanwhile, the way out."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Final

from userbpf.codegen import CodeImage, Entry
from userbpf.errors import AttachError, ProcessError
from userbpf.native import possible_cpus
from userbpf.native.abi import ABI, HAS_RDPID, TID_OFF_UNKNOWN, Env, Proc
from userbpf.process.errors import ProcessExitedError
from userbpf.session import agent as agents
from userbpf.session import residence
from userbpf.session.found import save_patch, start_time
from userbpf.session.shared import PAGE, SharedState
from userbpf.session.targets import Site

if TYPE_CHECKING:
    from userbpf.attach import Cell, Patch, SitePlan
    from userbpf.maps import Map
    from userbpf.process import Process, Stopped

OWNER_TAG_MASK: Final = 0xFFFFF
"""ub_env.owner_tag has 20 bits (native/src/ub_lock.h)."""
_VDSO_CLOCK: Final = "__vdso_clock_gettime"


@dataclass(frozen=True)
class Link:
    """One program at one place of one process."""

    prog: str
    target: str
    pid: int
    kind: str
    index: int
    attachment: Attachment

    @property
    def hits(self) -> int:
        """How often the program ran, over all threads; final once detached."""
        return self.attachment.hits()[self.index]


class Attachment:
    """What :meth:`LoadedObject.attach` gives back. A context manager: leaving it detaches.

    links: one for each program and place. stop_ns: the longest that the target stood still, of all stops of the
    attach. added_bytes: what was mapped into the target. skipped: functions that a pattern matched and that cannot be
    probed, in sentences. problems: after a detach, what could not be undone, in sentences.
    """

    def __init__(
        self,
        name: str,
        process: Process,
        sites: Sequence[Site],
        plans: Mapping[int, SitePlan],
        image: CodeImage,
        maps: Mapping[str, Map],
        *,
        on_end: Callable[[], None],
        owns_process: bool,
    ) -> None:
        self.process = process
        self.pid = process.pid
        self.name = name
        self.links = [
            Link(site.prog, site.target, process.pid, site.hook_kind(plans[site.addr]).value, n, self)
            for n, site in enumerate(sites)
        ]
        self.stop_ns = 0
        self.added_bytes = 0
        self.problems: tuple[str, ...] = ()
        self.skipped: tuple[str, ...] = ()
        self._sites = list(sites)
        self._image = image
        by_key = {(entry.prog, entry.kind): entry for entry in image.entries}
        self._entries = [by_key[site.prog, site.hook_kind(plans[site.addr])] for site in sites]
        self._plans = plans
        self._maps = maps
        self._patches: list[Patch] = []
        self._final_hits: list[int] | None = None
        self._shared = SharedState(name, len(sites))
        try:
            self._attach()
        except BaseException:
            self._shared.close()
            raise
        self._on_end = on_end
        self._owns_process = owns_process
        self._stop_watching = os.eventfd(0, os.EFD_CLOEXEC)
        self._watcher = threading.Thread(target=self._watch, name=f"userbpf-{process.pid}", daemon=True)
        self._watcher.start()

    # ---- the way in ----------------------------------------------------------------------------------

    def _attach(self) -> None:
        from userbpf.attach import Injector, apply

        process = self.process
        if any(site.is_return for site in self._sites) and process.shadow_stack:
            raise AttachError(
                f"process {process.pid} ({process.name}) has a hardware shadow stack, which return probes break",
                hint="use an entry probe, or start the process with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
            )
        self._injector = Injector(process)
        self._agent_injector = Injector(process)
        self._agent: agents.Agent | None = None
        try:
            with process.stop() as stopped:
                self._map(stopped)
            assert self._agent is not None
            # From here on a later userbpf can undo what is there, should this one be killed.
            self._shared.describe(self._description())
            if self._image.faulting:
                residence.catch_faults(process, self._agent, self._plans)
            if any(site.is_return for site in self._sites):
                residence.respect_unwinders(process, self._agent, self._plans)
            self._build()
            self._shared.describe(self._description())
            apply(process, self._patches)
            self.stop_ns = process.longest_stop_ns
        except BaseException:
            self._undo()
            raise

    def _map(self, stopped: Stopped) -> None:
        """First stop: everything that needs the target's own system calls."""
        from userbpf.attach import SealedImage, trampoline_size

        injector, image, plans = self._injector, self._image, self._plans
        self._agent = agents.enter(stopped, self._agent_injector)
        with SealedImage(self.name, image) as sealed:
            self._image_at = injector.map_image(stopped, sealed).addr
        used = [(name, self._maps[name]) for name in image.maps]
        files = [(m.fd, m.memory_size, not m.readonly, f"map:{name}") for name, m in used]
        files.append((self._shared.fd, self._shared.size, True, "session"))
        *maps, shared = injector.map_fds(stopped, files)
        self._map_at = [region.addr for region in maps]
        self._shared_at = shared.addr
        by_module: dict[int, list[SitePlan]] = {}
        modules = {}
        for site in self._sites:
            modules[site.module.start] = site.module
            group = by_module.setdefault(site.module.start, [])
            if plans[site.addr] not in group:
                group.append(plans[site.addr])
        self._trampoline_at: dict[int, int] = {}
        counts = self._cells_per_site()
        for start, group in by_module.items():
            size = sum(trampoline_size(plan, counts[plan.addr]) for plan in group)
            addr = injector.map_trampolines(stopped, modules[start], size).addr
            for plan in group:
                self._trampoline_at[plan.addr] = addr
                addr += trampoline_size(plan, counts[plan.addr])
        self._tid_offset = stopped.thread_id_offset()
        self.added_bytes = sum(region.size for owner in (injector, self._agent_injector) for region in owner.regions)

    def _cells_per_site(self) -> dict[int, int]:
        counts: dict[int, int] = {}
        for site in self._sites:
            counts[site.addr] = counts.get(site.addr, 0) + 1
        return counts

    def _build(self) -> None:
        """Between the stops, while the target runs: fill data areas and trampolines that nothing refers to yet."""
        from userbpf.attach import build_trampoline

        injector, image = self._injector, self._image
        data = self._env() + struct.pack(f"<{len(self._map_at)}Q", *self._map_at)
        injector.write(self._image_at + len(image.code), data)
        for addr, plan in self._plans.items():
            cells = [
                self._cell(site, entry, n)
                for n, (site, entry) in enumerate(zip(self._sites, self._entries, strict=True))
                if site.addr == addr
            ]
            patch = build_trampoline(plan, cells, self._trampoline_at[addr])
            injector.write(self._trampoline_at[addr], patch.code)
            self._patches.append(patch)

    def _cell(self, site: Site, entry: Entry, index: int) -> Cell:
        from userbpf.attach import Cell

        assert self._agent is not None
        symbols = self._image.symbols
        if entry.hook is not None:
            hook = self._image_at + symbols[entry.hook]
        else:
            assert entry.agent_hook is not None
            hook = self._agent.symbol(entry.agent_hook)
        body = self._image_at + symbols[entry.body] if entry.body is not None else 0
        return Cell(hook=hook, body=body, site=site.addr, func=site.addr, link=index)

    def _env(self) -> bytes:
        """``struct ub_env`` of this image in this process."""
        agent, process = self._agent, self.process
        assert agent is not None
        env = Env()
        env.abi = ABI
        env.threads = agent.threads
        env.hits = self._shared_at + PAGE
        env.hits_shift = self._shared.shift
        env.tid_off = TID_OFF_UNKNOWN if self._tid_offset is None else self._tid_offset
        env.tgid = process.ns_pid
        env.uid, env.gid = process.uid, process.gid
        env.n_cpus = possible_cpus()
        env.enter_slow = agent.symbol("ub_agent_enter_slow")
        env.copy_from_user = agent.symbol("ub_agent_copy_from_user")
        env.strncpy_from_user = agent.symbol("ub_agent_strncpy_from_user")
        env.vdso_clock_gettime = process.vdso_symbol(_VDSO_CLOCK) or 0
        env.owner_tag = os.stat(f"/proc/{process.pid}/ns/pid").st_ino & OWNER_TAG_MASK
        env.features = _cpu_features()
        return bytes(env)

    def _description(self) -> dict[str, object]:
        """All that a later command needs to undo this attachment."""
        assert self._agent is not None
        counts = self._cells_per_site()
        return {
            "version": 1,
            "name": self.name,
            "pid": self.process.ns_pid,
            "agent": [self._agent.code, self._agent.proc, self._agent.threads],
            "links": [[link.prog, link.target, link.kind] for link in self.links],
            "controller": [os.getpid(), start_time(os.getpid())],
            "patches": [save_patch(patch, counts[patch.plan.addr]) for patch in self._patches],
            "regions": [[r.addr, r.size, r.kind, r.name, r.code_size] for r in self._injector.regions],
        }

    # ---- meanwhile -----------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """False once the target has ended or this attachment was detached."""
        return self._final_hits is None and self.process.alive

    def hits(self) -> list[int]:
        """Runs of each link until now, in the order of :attr:`links`."""
        return self._final_hits if self._final_hits is not None else self._shared.hits()

    @property
    def missed_returns(self) -> int:
        """Returns that were not seen because a thread had too many probed frames at a time."""
        if self._agent is None or not self.alive:
            return 0
        with contextlib.suppress(ProcessError):
            field = Proc.missed_returns
            return int.from_bytes(self.process.read(self._agent.proc + field.offset, field.size), "little")
        return 0

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the target has ended; False when ``timeout`` seconds passed first."""
        return self.process.wait(timeout) is not None

    def _watch(self) -> None:
        """Tells when the target ends, so that nobody waits for its events for ever."""
        poll = select.poll()
        poll.register(self.process.pidfd, select.POLLIN)
        poll.register(self._stop_watching, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        if self._stop_watching not in ready:
            self._on_end()

    # ---- the way out ---------------------------------------------------------------------------------

    def detach(self) -> None:
        """Puts the original bytes back and takes everything out of the target. Does nothing when done already."""
        if self._final_hits is not None:
            return
        try:
            if self.process.alive:
                self._remove()
        finally:
            self._final_hits = self._shared.hits()
            self._shared.close()
            os.eventfd_write(self._stop_watching, 1)
            self._watcher.join()
            os.close(self._stop_watching)
            if self._owns_process:
                self.process.close()
            self._on_end()

    close = detach

    def _remove(self) -> None:
        agent = self._agent
        assert agent is not None
        if not self._is_mapped():
            return
        try:
            self._take_out(agent)
        except ProcessExitedError:
            return
        except (AttachError, ProcessError):
            if self._is_mapped():
                raise

    def _is_mapped(self) -> bool:
        """False when the process has executed another program, and everything of ours went with the old one."""
        with contextlib.suppress(ProcessError):
            return any(m.start == self._shared_at and "userbpf-session" in m.path for m in self.process.mappings())
        return False

    def _take_out(self, agent: agents.Agent) -> None:
        from userbpf.attach import remove

        cells = [range(r.addr, r.addr + r.size) for r in self._injector.regions if r.kind == "trampoline"]
        report = remove(
            self.process,
            self._patches,
            self._injector,
            before_scan=lambda stopped: agents.forget_returns(stopped, agent, cells),
            callees=[agent.span],
        )
        self.problems = tuple(report.conflicts)
        if report.left_mapped and not report.conflicts:
            self.problems = (
                "a thread still runs in code of ours, so its memory stays mapped; `userbpf detach` can free it later",
            )
        if not report.left_mapped:
            residence.leave(self.process, agent)

    def _undo(self) -> None:
        """After a failed attach: nothing of ours stays in the target."""
        with contextlib.suppress(ProcessExitedError):
            if self._agent is not None:
                self._take_out(self._agent)
            elif self._agent_injector.regions:
                with self.process.stop() as stopped:
                    self._agent_injector.unmap_all(stopped)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


@cache
def _cpu_features() -> int:
    """UB_HAS_* of this machine's processors."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return 0
    return HAS_RDPID if "rdpid" in flags else 0
