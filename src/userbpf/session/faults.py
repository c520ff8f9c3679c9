"""Our handler for SIGSEGV and SIGBUS in a target: in front of the application's, and away again (agent_fault.c)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from userbpf.native.abi import Proc
from userbpf.session.agent import write_field
from userbpf.session.guards import C_LIBRARIES

if TYPE_CHECKING:
    from userbpf.process import Process, Stopped
    from userbpf.session.agent import Agent

NR_RT_SIGACTION: Final = 13
SIGBUS: Final = 7
SIGSEGV: Final = 11
SA_SIGINFO: Final = 0x4
SA_ONSTACK: Final = 0x08000000
SA_RESTORER: Final = 0x04000000
SA_RESETHAND: Final = 0x80000000
RESTORER_CODE: Final = bytes.fromhex("48c7c00f0000000f05")
"""mov $15, %rax; syscall (rt_sigreturn)."""
_SIGACTION: Final = struct.Struct("<QQQQ")


def find_restorer(process: Process) -> int:
    """Address of the C library's return from signal handlers: the one sequence that unwinders know. 0: none found."""
    for module in process.modules():
        if module.path != process.exe and not module.name.startswith(C_LIBRARIES):
            continue
        for mapping in module.mappings:
            if mapping.executable and mapping.readable:
                at = process.read(mapping.start, mapping.size).find(RESTORER_CODE)
                if at >= 0:
                    return mapping.start + at
    return 0


def install_handlers(stopped: Stopped, agent: Agent) -> None:
    """Our handler for SIGSEGV and SIGBUS before the application's, which stays in our table (see agent_fault.c)."""
    process = stopped.process
    scratch = agent.proc + Proc.reserved.offset
    for slot, signal_number in enumerate((SIGSEGV, SIGBUS)):
        old_at = agent.proc + Proc.old.offset + slot * _SIGACTION.size
        stopped.syscall(NR_RT_SIGACTION, signal_number, 0, old_at, 8)
        handler, flags, restorer, mask = _SIGACTION.unpack(process.read(old_at, _SIGACTION.size))
        if handler in (0, 1):
            flags, mask = SA_ONSTACK, 0
        if not flags & SA_RESTORER:
            restorer = agent.symbol("ub_agent_restorer")
        flags = (flags | SA_SIGINFO | SA_RESTORER) & ~SA_RESETHAND
        stopped.write(scratch, _SIGACTION.pack(agent.symbol("ub_agent_on_fault"), flags, restorer, mask))
        stopped.syscall(NR_RT_SIGACTION, signal_number, scratch, 0, 8)
    stopped.unblock_signals((SIGSEGV, SIGBUS))
    write_field(process, agent.proc, "faults", 1)


def remove_handlers(stopped: Stopped, agent: Agent) -> bool:
    """The application's handlers as if we had never been. False when one returns through the agent: it must stay."""
    process = stopped.process
    gone = True
    scratch = agent.proc + Proc.reserved.offset
    for slot, signal_number in enumerate((SIGSEGV, SIGBUS)):
        stopped.syscall(NR_RT_SIGACTION, signal_number, 0, scratch, 8)
        handler = _SIGACTION.unpack(process.read(scratch, _SIGACTION.size))[0]
        if handler == agent.symbol("ub_agent_on_fault"):
            old_at = agent.proc + Proc.old.offset + slot * _SIGACTION.size
            stopped.syscall(NR_RT_SIGACTION, signal_number, old_at, 0, 8)
            app_handler, _, restorer, _ = _SIGACTION.unpack(process.read(old_at, _SIGACTION.size))
            gone = gone and (app_handler <= 1 or restorer != agent.symbol("ub_agent_restorer"))
    write_field(process, agent.proc, "faults", 0)  # if the agent has to stay, who comes next installs them again
    return gone
