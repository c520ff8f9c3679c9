"""One small program per rule, as assembler text, with the verdict that the rules demand.

A case is a line ``## name: verdict`` and the program below it. The verdict is ``ok`` or the code of the rejection.
A note after ``|`` says where Linux 6.18 with CAP_PERFMON differs and why: ``looser`` when we accept what it rejects
(each has an argument why that is safe), ``stricter`` when we reject what it accepts, ``skip`` when it
cannot be asked.

Macros: ``@lookup N`` calls bpf_map_lookup_elem on map N with a key on the stack; ``@value N`` also leaves when the
result is NULL; ``@key`` writes an 8-byte key at r10-8 and points r2 to it; ``@ctx`` keeps the context in r6.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from userbpf.isa import Insn, assemble
from userbpf.object.model import MapSpec, Program, Subprog
from userbpf.tables.helpers import HELPERS
from userbpf.tables.maps import MapFlag, MapType
from userbpf.tables.programs import parse_section

NAMES = {helper.name: number for number, helper in HELPERS.items()} | {
    f"bpf_{helper.name}": number for number, helper in HELPERS.items()
}

MAPS = (
    MapSpec("hash", MapType.HASH, 8, 48, 64),
    MapSpec("array", MapType.ARRAY, 4, 64, 16),
    MapSpec("percpu", MapType.PERCPU_ARRAY, 4, 32, 1),
    MapSpec("ring", MapType.RINGBUF, 0, 0, 4096),
    MapSpec("perf", MapType.PERF_EVENT_ARRAY, 4, 4, 0),
    MapSpec(
        ".rodata",
        MapType.ARRAY,
        4,
        32,
        1,
        MapFlag.RDONLY_PROG,
        kind="rodata",
        initial=(5).to_bytes(4, "little") + b"\xff\xff\xff\xff" + b"hello\0" + bytes(18),
    ),
    MapSpec(".bss", MapType.ARRAY, 4, 128, 1, kind="bss"),
    MapSpec("wronly", MapType.ARRAY, 4, 64, 1, MapFlag.WRONLY_PROG),
    MapSpec("rdonly", MapType.ARRAY, 4, 64, 1, MapFlag.RDONLY_PROG),
    MapSpec("percpuhash", MapType.PERCPU_HASH, 8, 16, 64),
)

_KEY = ["*(u64 *)(r10 -8) = 0", "r2 = r10", "r2 += -8"]


@dataclass(frozen=True)
class Case:
    name: str
    verdict: str
    text: str
    differs: str
    note: str

    @property
    def accepted(self) -> bool:
        return self.verdict == "ok"

    @property
    def kernel_accepts(self) -> bool | None:
        """What the kernel is expected to say; None when the case cannot be put to it."""
        if self.differs == "skip":
            return None
        return self.accepted != (self.differs in ("looser", "stricter"))

    def program(self) -> Program:
        return program(self.text, name=self.name)


def expand(text: str) -> str:
    out: list[str] = []
    for line in text.splitlines():
        words = line.split()
        match words:
            case ["@ctx"]:
                out.append("r6 = r1")
            case ["@key"]:
                out += _KEY
            case ["@lookup", number]:
                out += [*_KEY, f"r1 = map[idx:{number}]", "call bpf_map_lookup_elem"]
            case ["@value", number]:
                out += ["r9 = 1", *_KEY, "*(u64 *)(r10 -8) = r9", f"r1 = map[idx:{number}]"]
                out += ["call bpf_map_lookup_elem", "if r0 == 0 goto exit"]
            case _:
                out.append(line)
    return "\n".join(out)


def subprogs(insns: tuple[Insn, ...]) -> tuple[Subprog, ...]:
    """Functions as the calls show them."""
    starts = sorted({0} | {i + 1 + insn.imm for i, insn in enumerate(insns) if insn.op == 0x85 and insn.src == 1})
    ends = [*starts[1:], len(insns)]
    return tuple(Subprog(f"f{start}", start, end) for start, end in zip(starts, ends, strict=True))


def program(text: str, *, name: str = "prog", license: str = "GPL", section: str = "uprobe") -> Program:
    insns = assemble(expand(text), helpers=NAMES)
    return Program(name, parse_section(section), insns, MAPS, subprogs(insns), (), None, license, "corpus")


def load_cases() -> list[Case]:
    cases: list[Case] = []
    for path in sorted((Path(__file__).parent / "cases").glob("*.txt")):
        head: str | None = None
        body: list[str] = []
        for line in [*path.read_text().splitlines(), "## end: ok"]:
            if not line.startswith("## "):
                body.append(line)
                continue
            if head is not None:
                cases.append(_case(path.stem, head, "\n".join(body)))
            head, body = line[3:], []
    return cases


def _case(group: str, head: str, text: str) -> Case:
    title, _, note = head.partition("|")
    name, _, verdict = title.partition(":")
    differs, _, reason = note.strip().partition(" ")
    return Case(f"{group}/{name.strip()}", verdict.strip(), text, differs.rstrip(":"), reason.strip())


CASES = load_cases()
