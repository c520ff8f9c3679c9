"""Programs in live processes: they count exactly, read rightly, and the process does not notice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import userbpf
from tests.process.programs import as_nobody
from tests.session.conftest import Target
from userbpf.errors import AttachError, ObjectError, ProcessError, UserBpfError
from userbpf.process import Process
from userbpf.session.found import detach, find

NOBODY = 65534


def totals(obj: userbpf.LoadedObject) -> int:
    return sum(obj.maps["by_thread"].values())


def test_every_call_of_every_thread_is_counted_and_nothing_stays(target: Target, probes: Path) -> None:
    original = target.ask("bytes")
    target.ask("threads 4 1000")  # the C library keeps the stacks of four threads for the next ones
    before = target.state()
    with userbpf.load(probes, programs=["count", "nothing", "count_per_cpu"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}) as attachment:
            assert target.ask("bytes") != original
            target.ask("call 100000")
            target.ask("threads 4 100000")
            assert [link.hits for link in attachment.links] == [500_000] * 3
        assert [link.hits for link in attachment.links] == [500_000] * 3
        assert totals(obj) == 500_000
        assert sum(obj.maps["per_cpu"][0]) == 500_000
        assert obj.maps["by_thread"][target.pid] == 100_000
        assert len(obj.maps["by_thread"]) == 5
    assert target.ask("bytes") == original
    assert target.state() == before
    target.ask("call 1000")


def test_more_threads_than_rows_are_counted_exactly(target: Target, probes: Path) -> None:
    """There are 127 rows of one thread each; the others share one, and rows of dead threads are used again."""
    with userbpf.load(probes, programs=["nothing"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}) as attachment:
            for _ in range(3):
                target.ask("threads 200 500")
            assert attachment.links[0].hits == 300_000


def test_threads_that_inherit_a_dead_threads_stack_have_their_own_id(target: Target, probes: Path) -> None:
    with userbpf.load(probes, programs=["count"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}):
            for _ in range(20):
                target.ask("threads 1 10")
        assert list(obj.maps["by_thread"].values()) == [10] * 20


def test_return_values_are_seen_with_threads_recursion_and_jumps(target: Target, probes: Path) -> None:
    with userbpf.load(probes, programs=["on_return"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}) as attachment:
            target.ask("call 1000")
            target.ask("threads 4 1000")
            assert obj.maps[".bss"].variables["returns"] == 5000
            assert obj.maps[".bss"].variables["returned"] == 5 * 1000 * 1000
            assert attachment.links[0].hits == 5000
        with obj.attach(pid=target.pid, targets={"*": target.at("recursive_fn")}) as attachment:
            assert target.ask("recurse 100") == "101"
            assert attachment.links[0].hits == 101
        with obj.attach(pid=target.pid, targets={"*": target.at("jumping_fn")}) as attachment:
            assert target.ask("jump 100000") == "100000"
            assert target.ask("call 5") == "25"
            assert attachment.links[0].hits == 0
            assert attachment.missed_returns == 0
        assert target.ask("recurse 10000") == "10001"


def test_recursion_deeper_than_the_table_is_counted_as_missed(target: Target, probes: Path) -> None:
    with userbpf.load(probes, programs=["on_return"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("recursive_fn")}) as attachment:
            assert target.ask("recurse 2000") == "2001"
            assert attachment.links[0].hits + attachment.missed_returns == 2001
            assert attachment.missed_returns > 0


@pytest.mark.parametrize("linking", ["own unwinder", "libgcc_s"])
def test_exceptions_pass_frames_with_return_probes(program: Path, probes: Path, linking: str) -> None:
    """The unwinder meets the real return addresses; the returns of those frames are counted as missed."""
    source, output = Path(__file__).parent / "throwing.cc", program.parent / f"throwing-{linking.split()[0]}"
    zig = [sys.executable, "-m", "ziglang", "c++", "-O1", "-fno-sanitize=all"]
    compiler = zig if linking == "own unwinder" else ["g++", "-O1"]
    if linking == "libgcc_s" and shutil.which("g++") is None:
        pytest.skip("g++ is not installed: only the unwinder of ziglang's libc++ is tried")
    subprocess.run([*compiler, "-o", str(output), str(source)], check=True)
    target = Target(output)
    expected = sum(i + 1 if i % 2 == 0 else -1 for i in range(1000))
    with userbpf.load(probes, programs=["on_return", "count"]) as obj:
        for function, returns in (("thrower", 500), ("middle", 500), ("catcher", 1000)):
            with obj.attach(pid=target.pid, targets={"*": target.at(function)}) as attachment:
                assert target.ask("1000") == str(expected)
                by_prog = {link.prog: link.hits for link in attachment.links}
                assert by_prog["count"] == 1000
                assert by_prog["on_return"] + attachment.missed_returns == 1000
                assert by_prog["on_return"] == (returns if function != "catcher" else 500)
    assert target.ask("1000") == str(expected)
    assert target.end() == 0


def test_detaching_while_probed_functions_are_on_the_stack(program: Path, probes: Path) -> None:
    """A frame that waits in a probed function returns to its real caller when the probe is gone."""
    script = "import time\nprint('ready', flush=True)\nfor _ in range(40): time.sleep(0.05)\nprint('fine', flush=True)"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    with userbpf.load(probes, programs=["on_return"]) as obj:
        for _ in range(5):
            with obj.attach(pid=child.pid, targets={"*": "libc.so.6:clock_nanosleep"}) as attachment:
                while attachment.links[0].hits == 0 and attachment.alive:
                    attachment.wait(0.01)
    assert child.stdout.read() == "fine\n"
    assert child.wait(20) == 0


def test_faulting_reads_give_efault_and_spare_the_target(target: Target, probes: Path) -> None:
    with userbpf.load(probes, programs=["read_badly"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}):
            target.ask("call 100")
            got = [value for _, value in sorted(obj.maps["out"].items())]
            assert got[:9] == [-14, 0, -14, -14, 0, 6, 3, 0, 0]


def test_the_programs_own_fault_handler_works_before_while_and_after(target: Target, probes: Path) -> None:
    target.ask("handler")
    assert target.ask("segv") == "1"
    with userbpf.load(probes, programs=["read_badly"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}):
            target.ask("call 10")
            assert target.ask("segv") == "1"
            target.ask("call 10")
            assert target.ask("segv") == "1"
    assert target.ask("segv") == "1"


def test_a_handler_that_is_installed_while_attached_does_not_displace_ours(target: Target, probes: Path) -> None:
    with userbpf.load(probes, programs=["read_badly"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}):
            target.ask("call 10")
            target.ask("handler")
            target.ask("call 10")
            assert target.ask("segv") == "1"
            assert obj.maps["out"][0] == -14
    assert target.ask("segv") == "1"


@pytest.mark.parametrize("early", [True, False])
def test_a_handler_for_one_fault_only_is_not_used_up_by_faulting_reads(
    target: Target, probes: Path, early: bool
) -> None:
    """redis-server has such a handler: SA_RESETHAND must not make the kernel forget ours."""
    if early:
        target.ask("once")
    with userbpf.load(probes, programs=["read_badly"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}):
            if not early:
                target.ask("once")
            target.ask("call 100")
            assert target.ask("default") == "0"
            assert target.ask("segv") == "1"
            assert target.ask("default") == "1"
            target.ask("call 100")
    assert target.ask("default") == "1"


def test_a_thread_that_blocks_every_signal_may_read_badly(target: Target, probes: Path) -> None:
    with userbpf.load(probes, programs=["read_badly"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}):
            target.ask("blocked 10")
            assert obj.maps["out"][0] == -14


def test_pt_regs_are_whole_when_the_program_reads_them(target: Target, probes: Path) -> None:
    with userbpf.load(probes, programs=["all_registers"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}):
            assert target.ask("registers") == "0"
            got = [value for _, value in sorted(obj.maps["out"].items())]
            assert got[0:2] == [7, 6]
            assert got[4:9] == [8, 9, 3, 12, 15]
            assert got[9] == got[11] != 0
            assert got[12] == 0x33


@pytest.mark.parametrize("names", [["nothing"], ["count"], ["stream"], ["on_return"], ["all_registers"], ["arguments"]])
def test_callers_keep_every_register(target: Target, probes: Path, names: list[str]) -> None:
    with userbpf.load(probes, programs=names) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}):
            for _ in range(3):
                assert target.ask("registers") == "0"


def test_arguments_come_from_registers_and_stack(target: Target, probes: Path) -> None:
    with userbpf.load(probes, programs=["arguments"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("eight_fn")}):
            assert target.ask("eight") == "87654321"
            got = [value for _, value in sorted(obj.maps["out"].items())]
            assert got[:8] == [1, 2, 3, 4, 5, 6, 7, 8]
            assert got[8:10] == [-22, -95]


def test_events_arrive_typed_and_in_order(target: Target, probes: Path) -> None:
    with userbpf.load(probes, programs=["stream"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}):
            target.ask("call 1000")
        events = list(obj.maps["ring"])
        assert [event["x"] for event in events] == list(range(1000))
        assert {(event["tid"], event["text"]) for event in events} == {(target.pid, "hello")}
        assert sorted(event["x"] for event in obj.maps["perf"]) == list(range(1000))
        assert [line.text for line in obj.trace()] == [f"x is {i} in hello" for i in range(3)]


def test_iteration_ends_when_the_target_does(program: Path, probes: Path) -> None:
    target = Target(program)
    with userbpf.load(probes, programs=["stream"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}) as attachment:
            target.ask("call 10")
            threading.Timer(0.1, target.end).start()
            assert len(list(obj.maps["ring"])) == 10
            assert not attachment.alive
        assert attachment.links[0].hits == 10


def test_a_forked_child_is_not_counted_and_lives(target: Target, probes: Path) -> None:
    with userbpf.load(probes, programs=["count", "on_return"]) as obj:
        where = {"count": target.at("target_fn"), "on_return": target.at("target_fn")}
        with obj.attach(pid=target.pid, targets=where) as attachment:
            assert target.ask("fork 1000") == "7"
            assert [link.hits for link in attachment.links] == [1000, 1000]
            assert totals(obj) == 1000


def test_an_instruction_inside_a_function_can_be_probed(target: Target, probes: Path) -> None:
    with Process(target.pid) as process:
        function = process.resolve_library(str(target.path)).function("recursive_fn")
        sizes = _instruction_offsets(process.read(function.addr, function.size), function.addr)
    probed = 0
    with userbpf.load(probes, programs=["all_registers"]) as obj:
        for offset in sizes[1:]:
            try:
                attachment = obj.attach(pid=target.pid, targets={"*": target.at(f"recursive_fn+{offset}")})
            except AttachError:
                continue
            with attachment:
                assert target.ask("recurse 50") == "51"
                assert attachment.links[0].hits > 0
            probed += 1
    assert probed >= 2
    assert target.ask("recurse 50") == "51"


def _instruction_offsets(code: bytes, addr: int) -> list[int]:
    from userbpf.attach.decode import decode_all

    return [insn.addr - addr for insn in decode_all(code, addr)]


def test_many_processes_share_the_maps_of_one_object(program: Path, probes: Path) -> None:
    targets = [Target(program) for _ in range(4)]
    with userbpf.load(probes, programs=["count", "count_per_cpu"]) as obj:
        for target in targets:
            obj.attach(pid=target.pid, targets={"*": target.at("target_fn")})
        for target in targets:
            target.tell("threads 2 20000")
        for target in targets:
            assert target._line() == "done"
        assert totals(obj) == sum(obj.maps["per_cpu"][0]) == 160_000
        assert len(obj.maps["by_thread"]) == 8
    assert [target.end() for target in targets] == [0] * 4


def test_a_target_that_executes_another_program_takes_the_probes_with_it(probes: Path) -> None:
    script = "import os\nprint('ready', flush=True)\nos.read(0, 3)\nos.execv('/bin/cat', ['cat'])"
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert child.stdin is not None and child.stdout is not None and child.stdout.readline() == "ready\n"
    with userbpf.load(probes, programs=["count", "on_return", "read_badly"]) as obj:
        with obj.attach(pid=child.pid, targets={"*": "libc.so.6:execve"}) as attachment:
            print("go", file=child.stdin, flush=True)
            print("hello", file=child.stdin, flush=True)
            assert child.stdout.readline() == "hello\n"  # it is cat by now
        assert [link.hits for link in attachment.links if link.kind == "entry"] == [1, 1]
        assert attachment.problems == ()
    child.stdin.close()
    assert child.wait(10) == 0


def test_two_objects_in_one_process_come_and_go_in_any_order(target: Target, probes: Path) -> None:
    before = target.state()
    with userbpf.load(probes, programs=["count"]) as first, userbpf.load(probes, programs=["on_return"]) as second:
        one = first.attach(pid=target.pid, targets={"*": target.at("target_fn")})
        two = second.attach(pid=target.pid, targets={"*": target.at("recursive_fn")})
        target.ask("call 100")
        target.ask("recurse 9")
        one.detach()
        target.ask("call 100")
        target.ask("recurse 9")
        assert (one.links[0].hits, two.links[0].hits) == (100, 20)
        two.detach()
    assert target.state() == before


def test_attaching_again_after_detaching_works_under_load(target: Target, probes: Path) -> None:
    before = target.state()
    target.tell("threads 4 30000000")
    with userbpf.load(probes, programs=["count", "on_return"]) as obj:
        where = {"count": target.at("target_fn"), "on_return": target.at("target_fn")}
        for _ in range(15):
            with obj.attach(pid=target.pid, targets=where) as attachment:
                attachment.wait(0.01)
    assert target._line() == "done"
    assert [line for line in target.state()[0].splitlines() if "memfd:userbpf" in line] == []
    assert target.state()[1] == before[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_attaches_to_a_process_of_the_same_user(program: Path, probes: Path, tmp_path: Path) -> None:
    target = Target(program, user=NOBODY)
    copy = program.parent / "probes.bpf.o"
    copy.write_bytes(probes.read_bytes())

    def attach_and_count() -> None:
        assert os.geteuid() == NOBODY
        with userbpf.load(copy, programs=["count"]) as obj:
            with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}) as attachment:
                target.ask("threads 2 1000")
                assert attachment.links[0].hits == 2000
        with pytest.raises(ProcessError, match="belongs to root"):
            with userbpf.load(copy, programs=["count"]) as obj:
                obj.attach(pid=os.getppid(), targets={"*": target.at("target_fn")})

    as_nobody(attach_and_count)
    assert target.end() == 0


def test_a_controller_that_is_killed_leaves_a_working_target_and_can_be_undone(target: Target, probes: Path) -> None:
    original = target.ask("bytes")
    script = (
        "import userbpf, sys, time\n"
        "obj = userbpf.load(sys.argv[1], programs=['count', 'on_return'])\n"
        "where = {'count': sys.argv[3], 'on_return': sys.argv[3]}\n"
        "a = obj.attach(pid=int(sys.argv[2]), targets=where)\n"
        "print('attached', flush=True); time.sleep(1000)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(probes), str(target.pid), target.at("target_fn")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "attached\n"
    target.ask("call 1000")
    with Process(target.pid) as process:
        assert [(link.prog, link.hits) for found in find(process) for link in found.links] == [
            ("count", 1000),
            ("on_return", 1000),
        ]
        assert find(process)[0].controller == child.pid
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    target.ask("threads 4 1000")
    assert target.ask("recurse 5") == "6"
    with userbpf.load(probes, programs=["count"]) as obj:
        with pytest.raises(AttachError, match="userbpf has already patched it"):
            obj.attach(pid=target.pid, targets={"*": target.at("target_fn")})
        with obj.attach(pid=target.pid, targets={"*": target.at("recursive_fn")}) as attachment:
            target.ask("recurse 5")
            assert attachment.links[0].hits == 6
    target.ask("call 1000")
    with Process(target.pid) as process:
        (found,) = find(process)
        assert (found.controller, [link.hits for link in found.links]) == (0, [6000, 6000])
        detach(process, found)
        assert find(process) == []
    assert target.ask("bytes") == original
    assert "userbpf" not in "".join(line for line in target.state()[0].splitlines() if "memfd:" in line)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_controller_that_is_killed_before_it_patches_can_be_undone(target: Target, probes: Path, call: int) -> None:
    """Killed instead of its first, second or third patching: guards of signals, of unwinders, the probes."""
    before, original = target.state(), target.ask("bytes")
    script = (
        "import os, signal, sys, userbpf, userbpf.attach as attach\n"
        "real, calls = attach.apply, []\n"
        "def apply(*args, **options):\n"
        "    calls.append(1)\n"
        "    if len(calls) == int(sys.argv[4]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*args, **options)\n"
        "attach.apply = apply\n"
        "obj = userbpf.load(sys.argv[1], programs=['read_badly', 'on_return'])\n"
        "obj.attach(pid=int(sys.argv[2]), targets={'*': sys.argv[3]})\n"
        "print('attached', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(probes), str(target.pid), target.at("target_fn"), str(call)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30)
    target.ask("call 10")
    with Process(target.pid) as process:
        (found,) = find(process)
        detach(process, found)
    assert target.state() == before
    if done.returncode != -signal.SIGKILL:
        assert "attached" in done.stdout  # the target has fewer guards than that
    with userbpf.load(probes, programs=["read_badly", "on_return"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}) as attachment:
            target.ask("call 10")
            assert [link.hits for link in attachment.links] == [10, 10]
            assert obj.maps["out"][0] == -14
    assert target.ask("bytes") == original
    assert target.state() == before


def test_the_same_program_counts_the_same_in_the_kernel(target: Target, probes: Path, kernel_bpf: None) -> None:
    from userbpf import kernel
    from userbpf.session import read_object

    commands = ("call 1000", "threads 4 500")
    with userbpf.load(probes, programs=["count", "on_return"]) as obj:
        where = {"count": target.at("target_fn"), "on_return": target.at("target_fn")}
        with obj.attach(pid=target.pid, targets=where):
            for command in commands:
                target.ask(command)
        ours = sorted(obj.maps["by_thread"].values()), dict(obj.maps[".bss"].variables)
    with Process(target.pid) as process:
        module = process.resolve_library(str(target.path))
        function = module.function("target_fn")
        mapping = next(m for m in module.mappings if function.addr in m)
        offset = function.addr - mapping.start + mapping.offset
    with kernel.load_object(read_object(probes), programs=["count", "on_return"]) as loaded:
        loaded.attach_uprobe("count", target.pid, str(target.path), offset)
        loaded.attach_uprobe("on_return", target.pid, str(target.path), offset, is_return=True)
        for command in commands:
            target.ask(command)
        counts = sorted(int.from_bytes(v, "little") for _, v in loaded.maps["by_thread"].items())
        bss = loaded.maps[".bss"].lookup(bytes(4))
    assert ours[0] == counts
    assert bss is not None
    words = [int.from_bytes(bss[i : i + 8], "little") for i in range(0, len(bss), 8)]
    assert sorted(filter(None, words)) == sorted([ours[1]["returned"], ours[1]["returns"]])


def test_constants_are_set_before_the_program_is_verified(target: Target, tmp_path: Path) -> None:
    source = tmp_path / "constant.bpf.c"
    source.write_text(
        '#include "vmlinux.h"\n#include <bpf/bpf_helpers.h>\nconst volatile __u64 step = 1;\n__u64 total;\n'
        'SEC("uprobe") int add(void *ctx) { if (step) __sync_fetch_and_add(&total, step); return 0; }\n'
        'char LICENSE[] SEC("license") = "GPL";\n'
    )
    for step in (None, 5, 0):
        with userbpf.load(source, constants={} if step is None else {"step": step}) as obj:
            with obj.attach(pid=target.pid, targets={"*": target.at("target_fn")}):
                target.ask("call 10")
            assert obj.maps[".bss"].variables["total"] == (10 if step is None else 10 * step)
            with pytest.raises(UserBpfError, match="frozen"):
                obj.maps[".rodata"].variables["step"] = 7
    with pytest.raises(ObjectError, match="it has: step"):
        userbpf.load(source, constants={"stop": 1})


def test_a_pattern_probes_what_can_be_probed_and_names_the_rest(target: Target, probes: Path) -> None:
    before = target.state()
    with userbpf.load(probes, programs=["count"]) as obj:
        with obj.attach(pid=target.pid, targets={"*": target.at("*_fn")}) as attachment:
            target.ask("call 10")
            target.ask("recurse 4")
            hits = {link.target.rpartition(":")[2]: link.hits for link in attachment.links}
            assert {"target_fn": 10, "recursive_fn": 5}.items() <= hits.items()
            assert attachment.skipped == ()
        with obj.attach(pid=target.pid, targets={"*": "libc.so.6:str*"}) as attachment:
            assert len(attachment.links) >= 30
            assert target.ask("call 10") != ""
        with obj.attach(pid=target.pid, targets={"*": "/proc/self/exe:target_fn"}) as attachment:
            target.ask("call 10")
            assert attachment.links[0].hits == 10
    assert target.state() == before


def test_bad_requests_are_refused_with_a_sentence_and_change_nothing(target: Target, probes: Path) -> None:
    before = target.state()
    cases: list[tuple[type[UserBpfError], str, dict[str, str]]] = [
        (AttachError, "does not say where", {}),
        (ProcessError, "did you mean target_fn", {"*": target.at("target_fm")}),
        (UserBpfError, "nosuchlib", {"*": "nosuchlib.so.9:f"}),
        (AttachError, "is not PATH:SYMBOL", {"*": "::"}),
        (AttachError, "no program 'typo'", {"typo": target.at("target_fn")}),
        (AttachError, "not code", {"*": f"{target.path}:0x7fffffff"}),
    ]
    with userbpf.load(probes, programs=["count"]) as obj:
        for kind, text, where in cases:
            with pytest.raises(kind) as caught:
                obj.attach(pid=target.pid, targets=where)
            assert text in str(caught.value)
        with pytest.raises(ProcessError, match="there is no process"):
            obj.attach(pid=2**22 - 3, targets={"*": "libc.so.6:malloc"})
        with pytest.raises(ProcessError, match="this very process"):
            obj.attach(pid=os.getpid(), targets={"*": "libc.so.6:malloc"})
    assert target.state() == before
