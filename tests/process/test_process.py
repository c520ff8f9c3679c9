"""Processes as objects: who they are, what they map, and one clear sentence when they cannot be used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from userbpf.errors import ProcessError
from userbpf.process import Process, ProcessExitedError, load_elf, spawn
from userbpf.process.tracer import thread_state

from .programs import as_nobody, running

CLOCK_NANOSLEEP = "230 "


def wait_until_asleep(pid: int) -> None:
    """Until the sleep program has started and sleeps: proc_pid_syscall(5)."""
    deadline = time.monotonic() + 10
    while not Path(f"/proc/{pid}/syscall").read_text().startswith(CLOCK_NANOSLEEP):
        assert time.monotonic() < deadline


@pytest.fixture
def sleeper() -> Iterator[Process]:
    """An ordinary process of another program."""
    with subprocess.Popen(["sleep", "60"]) as child:
        wait_until_asleep(child.pid)
        with Process(child.pid) as process:
            yield process
        child.kill()


def refusal(pid: int) -> str:
    with pytest.raises(ProcessError) as caught:
        Process(pid)
    assert caught.value.hint
    return caught.value.message


def test_processes_that_cannot_be_used_are_refused_with_a_sentence() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert refusal(child.pid) == f"process {child.pid} (true) has ended and is a zombie"
    child.wait()
    assert refusal(child.pid) == f"there is no process {child.pid}"
    assert refusal(0) == "there is no process 0"
    assert refusal(-1) == "there is no process -1"
    assert "is this very process" in refusal(os.getpid())


def test_a_kernel_thread_is_refused() -> None:
    if not Path("/proc/2/comm").exists() or Path("/proc/2/comm").read_text() != "kthreadd\n":
        pytest.skip("the kernel's threads are not visible in this pid namespace")
    assert "is a thread of the kernel" in refusal(2)


def test_a_thread_id_is_refused_with_its_process(blocked: Path) -> None:
    with running([str(blocked)]) as child, Process(child.pid) as process:
        tid = process.thread_ids()[-1]
        assert refusal(tid) == f"{tid} is a thread of process {child.pid}"


def test_another_users_process_is_refused_to_an_ordinary_user(sleeper: Process) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to be two users")
    as_nobody(lambda: _refused_as_foreign(sleeper.pid))


def _refused_as_foreign(pid: int) -> None:
    assert f"process {pid} (sleep) belongs to root (uid 0), and you are" in refusal(pid)


def test_modules_symbols_and_memory_agree_with_the_file(sleeper: Process) -> None:
    libc = sleeper.resolve_library("libc.so.6")
    assert libc.path.endswith("/libc.so.6")
    assert libc.build_id
    malloc = libc.function("malloc")
    assert malloc.size > 16
    assert libc.contains(malloc.addr)
    assert sleeper.read(malloc.addr, 32) == libc.elf.read(libc.vaddr(malloc.addr), 32)
    around = libc.function_around(malloc.addr + 5)
    assert around is not None
    assert (around.addr, around.size) == (malloc.addr, malloc.size)
    assert libc.function("memcpy").ifunc
    assert sleeper.main_module().name == "sleep"


def test_libraries_are_found_by_path_soname_and_program_name(sleeper: Process, tmp_path: Path) -> None:
    libc = sleeper.resolve_library("libc.so.6")
    link = tmp_path / "other-name"
    link.symlink_to(libc.path)
    for name in (libc.path, str(link), "libc.so.6"):
        assert sleeper.resolve_library(name).start == libc.start
    program = sleeper.main_module()
    assert sleeper.resolve_library("sleep").start == program.start
    with pytest.raises(ProcessError, match="has not mapped libc.so.7") as caught:
        sleeper.resolve_library("libc.so.7")
    assert "libc.so.6" in (caught.value.hint or "")
    with pytest.raises(ProcessError, match="does not exist"):
        sleeper.resolve_library("/no/such/file.so")
    with pytest.raises(ProcessError, match="there is no function malok") as caught:
        libc.function("malok")
    assert "malloc" in (caught.value.hint or "")


def test_symbol_versions_choose_as_the_linker_does() -> None:
    libc = load_elf(os.path.realpath("/lib/x86_64-linux-gnu/libc.so.6"))
    default = libc.find("pthread_cond_wait")
    old = libc.find("pthread_cond_wait@GLIBC_2.2.5")
    if default is None or old is None:
        pytest.skip("this C library has no two versions of pthread_cond_wait")
    assert default.default
    assert not old.default
    assert default.vaddr != old.vaddr


def test_frame_descriptions_give_the_sizes_of_symbols() -> None:
    libc = load_elf(os.path.realpath("/lib/x86_64-linux-gnu/libc.so.6"))
    sized = [s for s in libc.functions if s.size and not s.ifunc]
    agree = sum(libc.frame_extent(s.vaddr) == (s.vaddr, s.size) for s in sized)
    assert agree > 0.9 * len(sized)  # hand-written assembly and functions with a cold part differ


def test_a_deleted_executable_is_still_read(tmp_path: Path) -> None:
    copy = tmp_path / "sleep"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", copy)
    with subprocess.Popen([str(copy), "60"]) as child:
        try:
            wait_until_asleep(child.pid)
            copy.unlink()
            with Process(child.pid) as process:
                module = process.main_module()
                assert module.deleted
                assert module.build_id == load_elf(shutil.which("sleep") or "/bin/sleep").build_id
        finally:
            child.kill()


def test_memory_that_is_not_mapped_is_an_error(sleeper: Process) -> None:
    with pytest.raises(ProcessError, match="8 bytes at 0x10 of process .* could not be read"):
        sleeper.read(0x10, 8)
    with pytest.raises(ProcessError, match="could not be written"):
        sleeper.write(0x10, b"x")


def test_code_is_written_although_it_is_mapped_read_only(sleeper: Process) -> None:
    addr = sleeper.resolve_library("libc.so.6").function("abort").addr
    original = sleeper.read(addr, 4)
    sleeper.write(addr, b"\xcc\xcc\xcc\xcc")
    assert sleeper.read(addr, 4) == b"\xcc\xcc\xcc\xcc"
    sleeper.write(addr, original)
    assert sleeper.read(addr, 4) == original


def test_many_ranges_are_read_at_once(sleeper: Process) -> None:
    start = sleeper.main_module().start
    parts = sleeper.read_many([(start + i, 1) for i in range(3000)])
    assert b"".join(parts) == sleeper.read(start, 3000)


def test_the_vdso_gives_its_symbols(sleeper: Process) -> None:
    addr = sleeper.vdso_symbol("__vdso_clock_gettime")
    assert addr is not None
    assert any(addr in m for m in sleeper.mappings() if m.path == "[vdso]")
    assert sleeper.vdso_symbol("__vdso_nonesuch") is None


HOSTED = """
#include <unistd.h>
int main(void) { return write(1, "hello\\n", 6) != 6; }
"""
FREESTANDING = """
static long call(long nr, long a, const char *b, long c) {
    __asm__ volatile("syscall" : "+a"(nr) : "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return nr;
}
void _start(void) { call(1, 1, "hello\\n", 6); for (;;) call(60, 0, 0, 0); }
"""


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_a_spawned_command_is_held_before_its_own_code(tmp_path: Path, static: bool) -> None:
    source = tmp_path / "hello.c"
    source.write_text(FREESTANDING if static else HOSTED)
    program = tmp_path / "hello"
    flags = ["-static", "-nostdlib", "-ffreestanding"] if static else []
    subprocess.run([sys.executable, "-m", "ziglang", "cc", *flags, "-o", program, source], check=True)
    reader, writer = os.pipe()
    with spawn([str(program)], stdout=writer) as process:
        os.close(writer)
        assert thread_state(process.pid) == "T"
        assert ("libc.so.6" in [m.name for m in process.modules()]) is not static
        with process.stop() as stopped:
            (regs,) = stopped.threads.values()
            assert regs.ip == process.entry_point
        assert process.read(process.entry_point, 1) != b"\xcc"
        process.resume()
        with open(reader, "rb") as output:
            assert output.read() == b"hello\n"
        assert process.wait(10) == 0
        assert process.wait(10) == 0


def test_commands_that_cannot_be_started_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="there is no command nonesuch"):
        spawn(["nonesuch"])
    with pytest.raises(ProcessError, match="there is no command to run"):
        spawn([])
    script = tmp_path / "script"
    script.write_text("no interpreter line\n")
    script.chmod(0o755)
    with pytest.raises(ProcessError, match="could not be run: Exec format error"):
        spawn([str(script)])


def test_a_process_that_ends_is_told(sleeper: Process) -> None:
    assert sleeper.alive
    sleeper.terminate()
    assert sleeper.wait(10) == 0  # not a child of Process: only the end is known
    assert not sleeper.alive
    with pytest.raises(ProcessExitedError):
        sleeper.mappings()
