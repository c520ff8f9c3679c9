"""Starting a command so that probes can be placed before its first instruction of its own runs.

The child runs under ptrace until the dynamic linker has mapped the libraries and jumps to the executable's entry point
(AT_ENTRY); for a static executable that is its first instruction. Then it is let go into a group-stop (SIGSTOP), so it
can be attached to like any other process, and :meth:`Process.resume` (SIGCONT) sets it free.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingType
from typing import Final, NoReturn

from userbpf.errors import Place, ProcessError
from userbpf.process import sys as psys
from userbpf.process.errors import ProcessExitedError
from userbpf.process.linux import Process
from userbpf.process.linux_x86_64 import BREAKPOINT
from userbpf.process.tracer import Gone, Tracer

__all__ = ["spawn"]

_START_TIMEOUT: Final = 30.0
_EXEC_FAILED: Final = 127


def spawn(
    argv: Sequence[str],
    env: MappingType[str, str] | None = None,
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Process:
    """Start ``argv`` and return it, held at its entry point with all its libraries mapped.

    The caller owns the process: ``resume()`` it, or ``terminate()`` it, and ``wait()`` for it.
    stdin, stdout, stderr: descriptors for the child, by default ours. ProcessError when it cannot be started.
    """
    if not argv:
        raise ProcessError("there is no command to run", hint="give a command after --")
    environ = dict(os.environ if env is None else env)
    path = argv[0] if "/" in argv[0] else shutil.which(argv[0], path=environ.get("PATH", os.defpath))
    if path is None:
        raise ProcessError(f"there is no command {argv[0]}", hint="check the spelling, or give the path")
    go_read, go_write = os.pipe()
    report_read, report_write = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            _child(path, argv, environ, (stdin, stdout, stderr), go_read, report_write)
        os.close(report_write)
        report_write = -1
        tracer = Tracer()
        try:
            tracer.run(_run_to_entry, tracer, pid, go_write, report_read, path)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            tracer.finish(lambda: None)
    except ProcessError:
        os.waitpid(pid, 0)
        raise
    finally:
        for fd in (go_read, go_write, report_read, report_write):
            if fd >= 0:
                os.close(fd)
    # The stop takes effect a moment after the tracer has let go.
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    try:
        process = Process(pid)
    except ProcessError:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    process.child = True
    return process


def _child(
    path: str,
    argv: Sequence[str],
    environ: dict[str, str],
    fds: tuple[int | None, int | None, int | None],
    go: int,
    report: int,
) -> NoReturn:
    try:
        os.read(go, 1)  # until the parent traces us
        for target, fd in enumerate(fds):
            if fd is not None:
                os.dup2(fd, target)
        # Python ignores these two; a program expects the defaults.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.execve(path, list(argv), environ)
    except OSError as error:
        os.write(report, (error.strerror or "unknown error").encode())
    finally:
        os._exit(_EXEC_FAILED)


def _run_to_entry(tracer: Tracer, pid: int, go: int, report: int, path: str) -> None:
    """In the worker: seize the waiting child, let it exec, run it to its entry point, leave it in a group-stop."""
    deadline = time.monotonic() + _START_TIMEOUT
    place = Place(file=path)
    psys.ptrace(psys.PTRACE_SEIZE, pid, 0, psys.PTRACE_O_TRACEEXEC)
    os.write(go, b"g")
    try:
        _run_until(tracer, pid, deadline, lambda status: status >> 8 == psys.PTRACE_EVENT_EXEC)
        with Process(pid) as process:
            entry = process.entry_point
            original = process.read(entry, len(BREAKPOINT))
            process.write(entry, BREAKPOINT)

            def at_entry(status: int) -> bool:
                return status == signal.SIGTRAP and tracer.get_registers(pid).ip == entry + len(BREAKPOINT)

            psys.ptrace(psys.PTRACE_CONT, pid)
            _run_until(tracer, pid, deadline, at_entry)
            process.write(entry, original)
        regs = tracer.get_registers(pid)
        regs.ip = entry
        tracer.set_registers(pid, regs)
        psys.ptrace(psys.PTRACE_DETACH, pid, 0, signal.SIGSTOP)
    except (Gone, ProcessExitedError, ProcessLookupError):
        raise ProcessError(
            f"the command could not be run: {_report(report) or 'it ended at once'}", place=place
        ) from None
    except TimeoutError:
        raise ProcessError("the command did not reach its entry point in 30 s", place=place) from None


def _report(fd: int) -> str:
    """What the child wrote before it ended: why execve(2) failed, or nothing."""
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 256).decode(errors="replace")
    except BlockingIOError:
        return ""


def _run_until(tracer: Tracer, pid: int, deadline: float, arrived: Callable[[int], bool]) -> None:
    """Let the child run, with every signal it gets passed on, until a stop that ``arrived`` accepts."""
    while True:
        status = tracer.wait(pid, deadline)
        if arrived(status):
            return
        psys.ptrace(psys.PTRACE_CONT, pid, 0, status & 0x7F if status >> 8 == 0 else 0)
