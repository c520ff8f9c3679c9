"""``userbpf attach``, ``link`` and ``detach`` as a user calls them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = """
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
struct event { __u64 size; __u32 pid; };
const struct event *unused __attribute__((unused));
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 64);
    __type(key, __u32);
    __type(value, __u64);
} counts SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } events SEC(".maps");
const volatile __u64 least = 3000000;
char LICENSE[] SEC("license") = "GPL";
SEC("uprobe/libc.so.6:malloc")
int BPF_UPROBE(on_malloc, size_t size)
{
    __u32 pid = bpf_get_current_pid_tgid() >> 32;
    __u64 one = 1, *count;
    struct event event = {.size = size, .pid = pid};
    if (size < least)
        return 0;
    count = bpf_map_lookup_elem(&counts, &pid);
    if (count)
        __sync_fetch_and_add(count, 1);
    else
        bpf_map_update_elem(&counts, &pid, &one, BPF_ANY);
    bpf_ringbuf_output(&events, &event, sizeof(event), 0);
    bpf_printk("size %llu", size);
    return 0;
}
"""
APP = "for _ in range(5): bytearray(3_000_000)"
LOOP = "import time\nprint('ready', flush=True)\nwhile True: bytearray(3_000_000); time.sleep(0.01)"


def userbpf(*args: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "userbpf.cli.app", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 or not check, done.stderr
    return done


@pytest.fixture(scope="module")
def prog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attach")
    (folder / "big.bpf.c").write_text(SOURCE)
    userbpf("cc", folder / "big.bpf.c", "-o", folder / "big.bpf.o")
    return folder / "big.bpf.o"


def test_a_command_is_traced_from_its_start_and_reported_as_json(prog: Path) -> None:
    done = userbpf("attach", prog, "--json", "--", sys.executable, "-S", "-c", f"print('mine')\n{APP}")
    report = json.loads(done.stdout)
    assert "mine" in done.stderr
    (link,) = report["links"]
    assert link["prog"] == "on_malloc"
    assert link["target"].endswith(":malloc")
    assert link["hits"] > 100
    assert report["maps"]["counts"] == [{"key": link["pid"], "value": 5}]
    assert [event["value"] for event in report["events"]] == [{"size": 3_000_001, "pid": link["pid"]}] * 5
    assert [line["text"] for line in report["trace"]] == ["size 3000001"] * 5


def test_a_running_process_is_traced_for_a_time(prog: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, text=True) as app:
        try:
            assert app.stdout is not None and app.stdout.readline() == "ready\n"
            report = json.loads(userbpf("attach", prog, "--pid", str(app.pid), "--duration", "0.3", "--json").stdout)
            assert report["maps"]["counts"][0]["key"] == report["links"][0]["pid"] == app.pid
            assert len(report["events"]) == report["maps"]["counts"][0]["value"] > 3
            less = userbpf(
                "attach", prog, "--pid", str(app.pid), "--duration", "0.1", "--set", "least=9000000", "--json"
            )
            assert json.loads(less.stdout)["events"] == []
            text = userbpf("attach", prog, "--pid", str(app.pid), "--duration", "0.1").stdout
            assert "events: size=3000001 pid=" in text and "on_malloc" in text
            assert app.poll() is None
        finally:
            app.kill()


def test_ctrl_c_ends_with_the_report(prog: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, text=True) as app:
        command = [sys.executable, "-m", "userbpf.cli.app", "attach", str(prog), "--pid", str(app.pid)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tracer:
            try:
                assert tracer.stdout is not None
                assert tracer.stdout.readline().startswith("attached to")
                tracer.stdout.readline()
                tracer.send_signal(signal.SIGINT)
                output, error = tracer.communicate(timeout=30)
                assert (tracer.returncode, error) == (0, "")
                assert "links" in output
            finally:
                app.kill()


def test_a_killed_userbpf_is_listed_and_detached(prog: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE, text=True) as app:
        command = [sys.executable, "-m", "userbpf.cli.app", "attach", str(prog), "--pid", str(app.pid)]
        try:
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tracer:
                assert tracer.stdout is not None and tracer.stdout.readline().startswith("attached to")
                refused = userbpf("detach", "--pid", str(app.pid), check=False)
                assert refused.returncode == 1 and f"kill {tracer.pid}" in refused.stderr
                tracer.kill()
            (link,) = json.loads(userbpf("link", "list", "--pid", str(app.pid), "--json").stdout)
            assert (link["prog"], link["controller"]) == ("on_malloc", 0)
            assert str(app.pid) in userbpf("link", "list").stdout
            done = json.loads(userbpf("detach", "--pid", str(app.pid), "--json").stdout)
            assert done["detached"] == [{"pid": app.pid, "object": "big", "links": 1}]
            assert json.loads(userbpf("link", "list", "--pid", str(app.pid), "--json").stdout) == []
            assert "memfd:userbpf" not in Path(f"/proc/{app.pid}/maps").read_text()
            assert app.poll() is None
        finally:
            app.kill()


@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        (["nosuch.bpf.o", "--pid", "1"], 1, "nosuch.bpf.o"),
        (["OBJ"], 1, "either --pid PID or -- COMMAND"),
        (["OBJ", "--pid", "4194000"], 1, "there is no process"),
        (["OBJ", "--pid", str(os.getpid()), "--prog", "other"], 1, "it has: on_malloc"),
        (["OBJ", "--pid", "x"], 2, "--pid"),
        (["OBJ", "--", "/nonexistent/program"], 1, "/nonexistent/program"),
        (["OBJ", "--set", "leest=1", "--", "true"], 1, "there is no constant 'leest'"),
        (["OBJ", "--event-type", "events=typo", "--", "true"], 1, "typo"),
    ],
)
def test_bad_requests_get_one_sentence(prog: Path, args: list[str], status: int, text: str) -> None:
    done = userbpf("attach", *(str(prog) if arg == "OBJ" else arg for arg in args), check=False)
    assert done.returncode == status
    assert text in done.stderr
    assert "Traceback" not in done.stderr
