"""Objects that Debian compiled for libbpf-tools run in user processes, unmodified."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

import userbpf
from userbpf.cli.embedded import find_embedded

LOOKUPS = """
import socket
print("ready", flush=True)
input()
for _ in range(3): socket.getaddrinfo("localhost", 80)
"""


def embedded(tool: str, folder: Path) -> Path:
    """The object inside a tool of the package."""
    path = Path("/usr/sbin") / tool
    if not path.exists():
        pytest.skip(f"{path} is not installed (Debian: libbpf-tools)")
    output = folder / f"{tool}.bpf.o"
    output.write_bytes(find_embedded(path.read_bytes())[0].data)
    return output


def test_gethostlatency_measures_the_lookups_of_a_process(tmp_path: Path) -> None:
    """Its programs are declared as kprobes and attached to functions of libc by the tool itself; here by us."""
    path = embedded("gethostlatency", tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-c", LOOKUPS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert child.stdin is not None and child.stdout is not None and child.stdout.readline() == "ready\n"
    where = {"handle_entry": "libc.so.6:getaddrinfo", "handle_return": "libc.so.6:getaddrinfo"}
    with userbpf.load(path) as obj, obj.attach(pid=child.pid, targets=where):
        obj.maps["events"].typed("event")
        child.communicate("go\n", timeout=20)
        events = list(obj.maps["events"])
    assert [(event["pid"], event["host"]) for event in events] == [(child.pid, "localhost")] * 3
    assert all(0 < event["time"] < 10_000_000_000 for event in events)


def test_bashreadline_sees_the_lines_that_a_shell_reads(tmp_path: Path) -> None:
    path = embedded("bashreadline", tmp_path)
    master, slave = pty.openpty()
    shell = subprocess.Popen(
        ["/bin/bash", "--norc", "--noprofile", "-i"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env={"PS1": "ready> ", "TERM": "dumb", "PATH": os.defpath, "HOME": str(tmp_path)},
    )
    os.close(slave)
    try:
        seen = b""
        while b"ready> " not in seen:
            assert select.select([master], [], [], 20)[0], f"bash shows no prompt: {seen!r}"
            seen += os.read(master, 4096)
        with userbpf.load(path) as obj, obj.attach(pid=shell.pid, targets={"*": "/bin/bash:readline"}) as attachment:
            # The shell waits in a readline that was called before: the next ones are seen.
            for line in (b"true first\n", b"true second\n", b"exit 7\n"):
                os.write(master, line)
            attachment.wait(20)
            texts = [bytes(event) for event in obj.maps["events"]]
        assert any(b"true second\0" in text for text in texts)
        assert all(text[:4] == shell.pid.to_bytes(4, "little") for text in texts)
        assert shell.wait(10) == 7
    finally:
        shell.kill()
        shell.wait()
        os.close(master)
