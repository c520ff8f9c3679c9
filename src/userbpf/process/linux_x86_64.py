"""The x86-64 machine as ptrace shows it: registers, and how a system call is made with them.

Sources: arch/x86/include/asm/user_64.h (register set), arch/x86/entry/syscall_64.c (convention),
include/linux/errno.h (restart codes). Another architecture gives the same names in a module beside this one.
"""

from __future__ import annotations

import ctypes
from typing import Final

__all__ = [
    "BREAKPOINT",
    "ELF_MACHINE",
    "NR",
    "SYSCALL_INSN",
    "Registers",
    "hide_interruption",
    "parked",
    "point_at_syscall",
    "restarts_with_block",
]

ELF_MACHINE: Final = 62
"""EM_X86_64."""
SYSCALL_INSN: Final = b"\x0f\x05"
BREAKPOINT: Final = b"\xcc"

NR: Final[dict[str, int]] = {
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "madvise": 28,
    "close": 3,
    "recvmsg": 47,
    "socketpair": 53,
}
"""System calls that are made in a target: arch/x86/entry/syscalls/syscall_64.tbl."""

_EINTR = 4
_ERESTARTNOHAND = 514
_ERESTART_RESTARTBLOCK = 516
_RESTARTS: Final = frozenset((512, 513, _ERESTARTNOHAND, _ERESTART_RESTARTBLOCK))
_NR_RESTART_SYSCALL: Final = 219

_EINTR_WITHOUT_HANDLER: Final = frozenset((65, 128, 208, 220, 232, 281, 333, 441))
"""semop, rt_sigtimedwait, io_getevents, semtimedop, epoll_wait, epoll_pwait, io_pgetevents, epoll_pwait2: calls that
fail with EINTR after any stop, even when no signal handler runs (signal(7), "Interruption of system calls")."""


class Registers(ctypes.Structure):
    """struct user_regs_struct: the NT_PRSTATUS register set."""

    _fields_ = [
        ("r15", ctypes.c_uint64),
        ("r14", ctypes.c_uint64),
        ("r13", ctypes.c_uint64),
        ("r12", ctypes.c_uint64),
        ("rbp", ctypes.c_uint64),
        ("rbx", ctypes.c_uint64),
        ("r11", ctypes.c_uint64),
        ("r10", ctypes.c_uint64),
        ("r9", ctypes.c_uint64),
        ("r8", ctypes.c_uint64),
        ("rax", ctypes.c_uint64),
        ("rcx", ctypes.c_uint64),
        ("rdx", ctypes.c_uint64),
        ("rsi", ctypes.c_uint64),
        ("rdi", ctypes.c_uint64),
        ("orig_rax", ctypes.c_uint64),
        ("rip", ctypes.c_uint64),
        ("cs", ctypes.c_uint64),
        ("eflags", ctypes.c_uint64),
        ("rsp", ctypes.c_uint64),
        ("ss", ctypes.c_uint64),
        ("fs_base", ctypes.c_uint64),
        ("gs_base", ctypes.c_uint64),
        ("ds", ctypes.c_uint64),
        ("es", ctypes.c_uint64),
        ("fs", ctypes.c_uint64),
        ("gs", ctypes.c_uint64),
    ]

    @property
    def ip(self) -> int:
        return int(self.rip)

    @ip.setter
    def ip(self, value: int) -> None:
        self.rip = value

    @property
    def sp(self) -> int:
        return int(self.rsp)

    @sp.setter
    def sp(self, value: int) -> None:
        self.rsp = value

    @property
    def thread_pointer(self) -> int:
        return int(self.fs_base)

    @property
    def in_syscall(self) -> bool:
        """Stopped on the way out of a system call, which may be restarted (ip then moves back over it)."""
        return bool(ctypes.c_int64(self.orig_rax).value >= 0)

    @property
    def result(self) -> int:
        """What a system call returned: a value, or minus an errno."""
        return int(ctypes.c_int64(self.rax).value)

    def copy(self) -> Registers:
        return Registers.from_buffer_copy(self)


def point_at_syscall(saved: Registers, insn_addr: int, nr: int, args: tuple[int, ...]) -> Registers:
    """Registers that run system call ``nr`` at ``insn_addr``.

    orig_rax = -1 says that the thread is in no system call, so the kernel restarts nothing before ours.
    """
    regs = saved.copy()
    regs.rip = insn_addr
    regs.rax = nr
    regs.orig_rax = 0xFFFF_FFFF_FFFF_FFFF
    for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), args, strict=False):
        setattr(regs, name, value & 0xFFFF_FFFF_FFFF_FFFF)
    return regs


def parked(saved: Registers) -> Registers:
    """Registers with which a thread may go on from outside the signal code, where the kernel restarts nothing.

    An interrupted call is set up to be made again, as the kernel would (arch_do_signal_or_restart()).
    """
    regs = saved.copy()
    if saved.in_syscall and -saved.result in _RESTARTS:
        regs.rip = saved.rip - len(SYSCALL_INSN)
        regs.rax = _NR_RESTART_SYSCALL if restarts_with_block(saved) else saved.orig_rax
    regs.orig_rax = 0xFFFF_FFFF_FFFF_FFFF
    return regs


def hide_interruption(regs: Registers) -> bool:
    """Make a call restart that would tell the program of our stop by EINTR. True when ``regs`` were changed.

    ERESTARTNOHAND still becomes EINTR when a signal handler really runs (arch/x86/kernel/signal.c).
    """
    if not regs.in_syscall or regs.result != -_EINTR or int(regs.orig_rax) not in _EINTR_WITHOUT_HANDLER:
        return False
    regs.rax = -_ERESTARTNOHAND & 0xFFFF_FFFF_FFFF_FFFF
    return True


def restarts_with_block(regs: Registers) -> bool:
    """True when the interrupted call continues from the task's restart block, of which there is one per thread."""
    return regs.in_syscall and regs.result == -_ERESTART_RESTARTBLOCK
