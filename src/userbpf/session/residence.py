"""What an attachment needs of the agent beyond its presence, and how it leaves it."""

from __future__ import annotations

import ctypes
from collections.abc import Collection

from userbpf.attach import Injector, Region, remove
from userbpf.native.abi import SHADOW_BYTES, Threads
from userbpf.process import Process, Stopped
from userbpf.session import guards
from userbpf.session.agent import (
    NAME,
    Agent,
    agent_image,
    page_up,
    read_field,
    restore_returns,
    shadow_tables,
    write_field,
)
from userbpf.session.faults import find_restorer, install_handlers, remove_handlers


def catch_faults(process: Process, agent: Agent, sites: Collection[int]) -> None:
    """From now on a faulting read of a program gives it -EFAULT instead of killing the process.

    sites: addresses that are to be probed. In a program whose C library has no symbols (static and stripped, or Go)
    there are no guards: it must not change its fault handlers, or block them, while programs read faulting memory.
    """
    if not read_field(process, agent.proc, "faults"):
        restorer = find_restorer(process)
        with process.stop() as stopped:
            write_field(process, agent.proc, "restorer", restorer)
            install_handlers(stopped, agent)
    guards.install(process, agent, guards.SIGNALS, sites)


def respect_unwinders(process: Process, agent: Agent, sites: Collection[int]) -> None:
    """From now on exceptions and backtraces pass frames with return probes as if there were none."""
    guards.install(process, agent, guards.UNWINDERS, sites)


def leave(process: Process, agent: Agent) -> None:
    """Ends one attachment's use of the agent; with the last one the agent goes, its guards and its handlers with it."""
    with process.stop():  # two userbpf may leave at the same time: only one can stop the process
        sessions = max(read_field(process, agent.proc, "sessions") - 1, 0)
        write_field(process, agent.proc, "sessions", sessions)
    if sessions:
        return
    image = agent_image()
    injector = Injector(process)
    injector.regions.append(Region(agent.code, image.size, "image", NAME, len(image.code)))
    injector.regions.append(Region(agent.threads, page_up(ctypes.sizeof(Threads)), "memory", "threads"))
    patches = guards.installed(process, agent, injector)
    caught_faults = bool(read_field(process, agent.proc, "faults"))

    def before_unmapping(stopped: Stopped) -> None:
        # In every stop, as a thread may have been on its way through a guard or an entry probe in the last one.
        unused = not read_field(process, agent.proc, "sessions")
        if not unused or (caught_faults and not remove_handlers(stopped, agent)):
            # Somebody attached meanwhile, or a handler of the application returns through the agent: it stays.
            injector.regions.clear()
            return
        restore_returns(stopped, agent)
        known = {region.addr for region in injector.regions}
        for table in shadow_tables(process, agent):
            if table not in known:
                injector.regions.append(Region(table, SHADOW_BYTES, "memory", "returns"))

    remove(process, patches, injector, before_scan=before_unmapping)
