"""Attach and detach, again and again, while the target works: it does not notice, and nothing stays.

USERBPF_TORTURE_SECONDS (default 6) makes it longer, for nights.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import userbpf
from tests.session.conftest import Target

SECONDS = float(os.environ.get("USERBPF_TORTURE_SECONDS", "6"))


def torture(pid: int, probes: Path, combinations: list[dict[str, str]], seed: int) -> int:
    """Rounds of random combinations of programs and places; the number of hits."""
    chance = random.Random(seed)
    with contextlib.ExitStack() as stack:
        objects = [(stack.enter_context(userbpf.load(probes, programs=list(c))), c) for c in combinations]
        hits, end = 0, time.monotonic() + SECONDS
        while time.monotonic() < end:
            obj, where = chance.choice(objects)
            with obj.attach(pid=pid, targets=where) as attachment:
                assert not attachment.wait(chance.random() * 0.03), f"the target died (seed {seed})"
            assert attachment.problems == (), f"seed {seed}"
            hits += sum(link.hits for link in attachment.links)
    return hits


def ours(pid: int) -> list[str]:
    return [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd:userbpf" in line]


def test_a_program_of_many_threads_that_jump_fault_and_return(program: Path, probes: Path) -> None:
    target = Target(program)
    original = target.ask("bytes")
    target.ask("handler")
    target.tell("threads 4 2000000000")
    fn = target.at("target_fn")
    combinations = [
        {"count": fn, "on_return": fn, "read_badly": fn},
        {"stream": fn, "on_return": fn, "all_registers": fn},
        {"count_per_cpu": fn, "arguments": fn},
    ]
    assert torture(target.pid, probes, combinations, seed=1) > 1000
    assert ours(target.pid) == []
    # Its threads still have hours to go: the bytes are read from outside.
    from userbpf.process import Process

    with Process(target.pid) as process:
        function = process.resolve_library(str(program)).function("target_fn")
        assert process.read(function.addr, 16).hex() == original
    assert target.process.poll() is None
    target.process.kill()
    target.process.wait()


@pytest.fixture
def redis() -> Iterator[tuple[int, int]]:
    """(pid, port) of a redis-server of ours on loopback."""
    path = shutil.which("redis-server")
    if path is None or shutil.which("redis-benchmark") is None:
        pytest.skip("redis-server and redis-benchmark are not installed (Debian: redis-server, redis-tools)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [path, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            while "Ready to accept connections" not in (line := server.stdout.readline()):
                assert line, "redis-server did not start"
            yield server.pid, port
        finally:
            server.kill()
            server.wait()


def test_redis_serves_every_request(redis: tuple[int, int], probes: Path) -> None:
    """It has a SIGSEGV handler for one fault only, and calls these functions thousands of times a second."""
    pid, port = redis
    load = subprocess.Popen(
        ["redis-benchmark", "-p", str(port), "-n", "100000000", "-c", "10", "-t", "set,get,lpush"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    combinations = [
        {"count": "libc.so.6:write", "on_return": "libc.so.6:read", "read_badly": "libc.so.6:write"},
        {"count": "libc.so.6:epoll_wait", "on_return": "libc.so.6:epoll_wait", "stream": "libc.so.6:write"},
    ]
    try:
        assert torture(pid, probes, combinations, seed=2) > 1000
        assert load.poll() is None, load.communicate()[1]
    finally:
        load.kill()
        load.communicate()
    assert ours(pid) == []
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"PING\r\n")
        assert client.recv(16) == b"+PONG\r\n"
