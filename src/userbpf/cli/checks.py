"""What ``userbpf doctor`` looks at: each check tries the thing itself and says what follows."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from userbpf.errors import UserBpfError

State = Literal["ok", "limited", "missing"]

_PTRACE_SEIZE: Final = 0x4206
_SYS_PIDFD_GETFD: Final = 438  # the same on every architecture
_AT_HWCAP2: Final = 26
_HWCAP2_FSGSBASE: Final = 1 << 1  # arch/x86/include/uapi/asm/hwcap2.h

# Run by another process than ours, so that it is a stranger to the target as a tracer usually is.
_SEIZE: Final = (
    "import ctypes, sys; libc = ctypes.CDLL(None, use_errno=True); "
    f"print(ctypes.get_errno() if libc.ptrace({_PTRACE_SEIZE}, int(sys.argv[1]), None, None) else 0)"
)


@dataclass(frozen=True)
class Row:
    """One finding. ``advice`` is the one thing to do, empty when there is nothing to do."""

    name: str
    state: State
    detail: str
    advice: str = ""


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


@contextlib.contextmanager
def _victim() -> Iterator[int]:
    """A child that waits for us to close its input."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        try:
            yield child.pid
        finally:
            child.kill()


def check_python() -> Row:
    return Row("python", "ok", f"{platform.python_version()}, {sys.executable}")


def check_machine() -> Row:
    machine, system = platform.machine(), platform.system()
    detail = f"{system} {platform.release()}, {machine}"
    if system != "Linux" or machine != "x86_64":
        return Row("machine", "missing", detail, "attaching works on Linux x86-64; cc and inspect work here")
    return Row("machine", "ok", detail)


def check_compiler() -> Row:
    """Compiles the smallest BPF program, as ``userbpf cc`` would."""
    from userbpf.toolchain import compile_c, find_compiler

    try:
        name = f"{find_compiler().name} (ziglang {_version('ziglang')})"
    except UserBpfError as error:
        return Row("compiler", "missing", error.message, error.hint or "pip install ziglang")
    with tempfile.TemporaryDirectory(prefix="userbpf-doctor-") as folder:
        source = Path(folder, "probe.bpf.c")
        source.write_text(
            '#include "vmlinux.h"\n#include <bpf/bpf_helpers.h>\nchar _license[] SEC("license") = "GPL";\n'
        )
        try:
            compile_c(source)
        except UserBpfError as error:
            return Row("compiler", "missing", f"{name}: {error.message}", error.hint or "pip install ziglang")
    return Row("compiler", "ok", f"{name} compiles BPF C")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def check_llvm() -> Row:
    """The bitcode of the runtime must be readable by the LLVM that generates code: same major version."""
    name = f"llvmlite {_version('llvmlite')}"
    try:
        import llvmlite.binding as llvm
    except ImportError as error:
        return Row("llvm", "missing", f"{name} cannot be imported: {error}", "pip install 'llvmlite>=0.50,<0.51'")
    name += f", LLVM {'.'.join(map(str, llvm.llvm_version_info))}"
    from userbpf import native

    try:
        llvm.parse_bitcode(native.runtime_bitcode()).close()
    except (OSError, RuntimeError, UserBpfError) as error:
        first = (str(error).splitlines() or ["no reason given"])[0]
        return Row(
            "llvm",
            "missing",
            f"{name} cannot read the runtime's bitcode: {first}",
            "pip install --force-reinstall userbpf",
        )
    return Row("llvm", "ok", f"{name} reads the runtime's bitcode")


def check_native() -> Row:
    from userbpf import native

    try:
        native.library()
    except (OSError, UserBpfError) as error:
        first = (str(error).splitlines() or ["no reason given"])[0]
        return Row("native runtime", "missing", first, "pip install --force-reinstall userbpf")
    return Row("native runtime", "ok", f"{native.LIB} is complete and loads")


def check_ptrace() -> Row:
    """Seizes a running process from a process that is not its parent, as attaching to --pid does."""
    scope = _read("/proc/sys/kernel/yama/ptrace_scope")
    shown = f"yama ptrace_scope {scope}" if scope is not None else "no yama"
    with _victim() as pid:
        answer = subprocess.run(
            [sys.executable, "-I", "-c", _SEIZE, str(pid)], capture_output=True, text=True, check=False
        ).stdout.strip()
    if answer == "0":
        return Row("ptrace", "ok", f"a running process of the same user can be attached to ({shown})")
    reason = os.strerror(int(answer)) if answer.isdecimal() else "the trial process died"
    libc = ctypes.CDLL(None, use_errno=True)
    with _victim() as pid:
        own_child = libc.ptrace(_PTRACE_SEIZE, pid, None, None) == 0
    if own_child:
        return Row(
            "ptrace",
            "limited",
            f"running processes cannot be attached to: {reason} ({shown})",
            "start the program under us: userbpf attach PROG -- COMMAND; or as root: sysctl kernel.yama.ptrace_scope=0",
        )
    return Row(
        "ptrace",
        "missing",
        f"not even our own children can be attached to: {reason} ({shown})",
        "allow ptrace: in a container --cap-add SYS_PTRACE; on the host sysctl kernel.yama.ptrace_scope=0",
    )


def check_pidfd() -> Row:
    libc = ctypes.CDLL(None, use_errno=True)
    with _victim() as pid:
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            return Row("pidfd_getfd", "missing", f"pidfd_open: {error.strerror}", "needs Linux 5.6 or newer")
        fd = libc.syscall(_SYS_PIDFD_GETFD, pidfd, 0, 0)
        number = ctypes.get_errno()
        os.close(pidfd)
    if fd >= 0:
        os.close(fd)
        return Row("pidfd_getfd", "ok", "descriptors can be exchanged with a target")
    hint = "needs Linux 5.6 or newer" if number == errno.ENOSYS else "needs the same rights as ptrace"
    return Row("pidfd_getfd", "missing", os.strerror(number), hint)


def check_memfd() -> Row:
    """Images are sealed memfds that are mapped executable."""
    try:
        fd = os.memfd_create("userbpf-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        return Row("memfd", "missing", f"memfd_create: {error.strerror}", "needs Linux 3.17 and no filter on it")
    try:
        os.write(fd, b"\xc3".ljust(mmap.PAGESIZE, b"\0"))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        mmap.mmap(fd, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
    except OSError as error:
        return Row(
            "memfd",
            "missing",
            f"sealed executable memory is refused: {error.strerror}",
            "a security module forbids it: allow memfd execution for this user",
        )
    finally:
        os.close(fd)
    return Row("memfd", "ok", "sealed executable images can be shared")


def check_fsgsbase() -> Row:
    libc = ctypes.CDLL(None)
    libc.getauxval.restype = ctypes.c_ulong
    if libc.getauxval(ctypes.c_ulong(_AT_HWCAP2)) & _HWCAP2_FSGSBASE:
        return Row("fsgsbase", "ok", "threads are told apart without a system call")
    return Row(
        "fsgsbase",
        "limited",
        "the thread pointer cannot be read by an instruction: only targets that keep it at fs:0 (glibc, musl) work",
        "needs Linux 5.9 or newer on a CPU with FSGSBASE",
    )


def check_seccomp() -> Row:
    status = _read("/proc/self/status") or ""
    mode = next((line.split()[1] for line in status.splitlines() if line.startswith("Seccomp:")), "0")
    if mode == "0":
        return Row("seccomp", "ok", "no system-call filter on us")
    return Row(
        "seccomp",
        "limited",
        "a system-call filter is on us (a container's default, for instance); the rows above were tried under it",
        "where one of them is missing, start the container with --security-opt seccomp=unconfined",
    )


def check_kernel_btf() -> Row:
    path = "/sys/kernel/btf/vmlinux"
    if os.access(path, os.R_OK):
        return Row("kernel BTF", "ok", f"{path}, {os.stat(path).st_size >> 10} KB: vmlinux.h and CO-RE see this kernel")
    return Row(
        "kernel BTF",
        "limited",
        f"{path} cannot be read: a small built-in vmlinux.h is used, CO-RE against kernel types fails",
        "boot a kernel with CONFIG_DEBUG_INFO_BTF, or mount sysfs",
    )


def check_bpf() -> Row:
    from userbpf import kernel

    reason = kernel.available()
    if reason is None:
        return Row("bpf(2)", "ok", "the kernel takes programs: comparisons with the kernel are possible")
    return Row("bpf(2)", "limited", f"{reason}; userbpf does not need it", "run as root to compare with the kernel")


def _cpu_flags() -> tuple[str, frozenset[str]]:
    model, flags = "unknown CPU", frozenset[str]()
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
        elif name.strip() == "flags":
            flags = frozenset(value.split())
    return model, flags


def check_cpu() -> Row:
    model, flags = _cpu_flags()
    shown = " ".join(name for name in ("cx16", "bmi2", "avx2", "avx512f", "erms", "rdpid", "ibt") if name in flags)
    return Row("cpu", "ok", f"{model}, {os.cpu_count()} CPUs; {shown}")


def check_shadow_stack() -> Row:
    _, flags = _cpu_flags()
    active = "shstk" in (_read("/proc/self/status") or "").partition("x86_Thread_features:")[2].partition("\n")[0]
    if "user_shstk" not in flags:
        return Row("shadow stacks", "ok", "not used by this CPU and kernel: return probes work everywhere")
    return Row(
        "shadow stacks",
        "ok" if not active else "limited",
        "on in our own process" if active else "offered by this machine; processes that turn them on are detected",
        "return probes are refused in such processes: GLIBC_TUNABLES=glibc.cpu.x86_shstk=off" if active else "",
    )


def attempt(check: Callable[[], Row]) -> Row:
    """The check's row; a check that cannot even be made has found something broken."""
    try:
        return check()
    except (ImportError, OSError, UserBpfError) as error:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return Row(name, "missing", f"the check itself failed: {first}", "pip install --force-reinstall userbpf")


CHECKS: Final[tuple[Callable[[], Row], ...]] = (
    check_python,
    check_machine,
    check_compiler,
    check_llvm,
    check_native,
    check_ptrace,
    check_pidfd,
    check_memfd,
    check_fsgsbase,
    check_cpu,
    check_shadow_stack,
    check_seccomp,
    check_kernel_btf,
    check_bpf,
)
