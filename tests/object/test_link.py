"""Programs are linked as libbpf links them: calls, addresses, externs, line info."""

from __future__ import annotations

from collections.abc import Callable

from userbpf.btf import Btf, Decoder
from userbpf.isa import check
from userbpf.object import KFUNC_POISON, Kernel, Object, Program

Compile = Callable[..., bytes]

CALLS = """
int total; static u64 bytes = 3; const volatile int limit = 10;
static noinline int in_text(int x) { total += x; return x * 2; }
noinline int global_one(int x) { return in_text(x) + limit; }
static long step(u32 i, void *sum) { bytes += i; return 0; }
SEC("socket") static noinline int near(int x) { return x - limit; }
SEC("socket") int first(void *ctx) {
    bpf_loop(4, step, 0, 0);
    return near(100) + in_text(1) + global_one(2) + (int)bytes;
}
SEC("socket") int second(void *ctx) { return near(20) + global_one(total); }
"""


def function_of(program: Program, slot: int) -> str:
    return next(sub.name for sub in program.subprogs if sub.start == slot)


def calls(program: Program) -> set[tuple[str, str]]:
    """(caller, callee) of each subprogram call and callback of the linked program."""
    found = set()
    for sub in program.subprogs:
        for at in range(sub.start, sub.end):
            insn = program.insns[at]
            if (insn.op, insn.src) in ((0x85, 1), (0x18, 4)):
                found.add((sub.name, function_of(program, at + insn.imm + 1)))
    return found


def test_all_three_encodings_of_calls_and_callbacks(bpf_cc: Compile) -> None:
    obj = Object.parse(bpf_cc(CALLS), name="x.o")
    assert not obj.errors
    first, second = obj.programs["first"], obj.programs["second"]
    assert calls(first) == {
        ("first", "step"), ("first", "near"), ("first", "in_text"), ("first", "global_one"), ("global_one", "in_text")
    }  # fmt: skip
    assert calls(second) == {("second", "near"), ("second", "global_one"), ("global_one", "in_text")}
    for program in (first, second):
        check(program.insns)
        assert program.subprogs[0].name == program.name and program.subprogs[0].start == 0
        assert program.subprogs[-1].end == len(program.insns)
        assert all(a.end == b.start for a, b in zip(program.subprogs, program.subprogs[1:], strict=False))
        assert {sub.name: sub.is_global for sub in program.subprogs}["global_one"]
        assert not {sub.name: sub.is_global for sub in program.subprogs}["in_text"]
        assert program.btf is not None
        assert all(program.btf.name(sub.func_btf) == sub.name for sub in program.subprogs)


def test_linked_programs_do_in_the_kernel_what_the_source_says(kernel_bpf: None, bpf_cc: Compile) -> None:
    from userbpf.kernel import load_object

    obj = Object.parse(bpf_cc(CALLS), name="x.o")
    with load_object(obj) as loaded:
        # bytes = 3 + 0+1+2+3 = 9; near(100) = 90; in_text(1) = 2; global_one(2) = 4 + 10
        assert loaded.programs["first"].test_run(bytes(64)).retval == 90 + 2 + 14 + 9
        # total = 1 + 2 = 3: global_one(3) = 6 + 10; near(20) = 10
        assert loaded.programs["second"].test_run(bytes(64)).retval == 10 + 16


def test_line_info_follows_functions_to_their_new_place(bpf_cc: Compile) -> None:
    program = Object.parse(bpf_cc(CALLS), name="x.o").programs["first"]
    by_function = {sub.name: [ln for ln in program.lines if sub.start <= ln.insn < sub.end] for sub in program.subprogs}
    assert "total += x" in by_function["in_text"][0].text
    assert any("bytes += i" in line.text for line in by_function["step"])
    assert all(lines[0].insn == sub.start for sub, lines in zip(program.subprogs, by_function.values(), strict=True))
    assert by_function["first"][0].file.endswith("test.bpf.c") and by_function["first"][0].line > 0
    assert [line.insn for line in program.lines] == sorted(line.insn for line in program.lines)


def test_kconfig_externs_are_values_of_a_read_only_map(bpf_cc: Compile) -> None:
    data = bpf_cc(
        """
        #define __kconfig __attribute__((section(".kconfig")))
        enum libbpf_tristate { TRI_NO, TRI_YES, TRI_MODULE };
        extern int LINUX_KERNEL_VERSION __kconfig;
        extern _Bool LINUX_HAS_BPF_COOKIE __kconfig;
        extern unsigned long CONFIG_HZ __kconfig;
        extern char CONFIG_HOST[8] __kconfig;
        extern enum libbpf_tristate CONFIG_MOD __kconfig;
        extern _Bool CONFIG_ABSENT __kconfig __attribute__((weak));
        extern int CONFIG_MISSING __kconfig;
        SEC("uprobe") int good(void *ctx) {
            return LINUX_KERNEL_VERSION + LINUX_HAS_BPF_COOKIE + CONFIG_HZ + CONFIG_HOST[2] + CONFIG_MOD +
                   CONFIG_ABSENT;
        }
        SEC("uprobe") int bad(void *ctx) { return CONFIG_MISSING; }
        """
    )
    config = {"CONFIG_HZ": "250", "CONFIG_HOST": '"abcdefghij"', "CONFIG_MOD": "m"}
    obj = Object.parse(data, name="x.o", kernel=Kernel(0x61203, lambda: config))
    spec = obj.maps[".kconfig"]
    assert spec.kind == "kconfig" and spec.initial is not None and spec.btf is not None
    values = Decoder(spec.btf, spec.datasec).decode(spec.initial)
    assert values == {
        "LINUX_KERNEL_VERSION": 0x61203,
        "LINUX_HAS_BPF_COOKIE": True,
        "CONFIG_HZ": 250,
        "CONFIG_HOST": "abcdefg",
        "CONFIG_MOD": "TRI_MODULE",
        "CONFIG_ABSENT": False,
        "CONFIG_MISSING": 0,
    }
    assert [m.name for m in obj.programs["good"].maps] == [".kconfig"]
    assert "CONFIG_MISSING" in obj.errors["bad"].message
    assert set(Object.parse(data, name="x.o").errors) == {"good", "bad"}


def test_kernel_symbols_are_named_and_left_to_the_user_of_the_program(bpf_cc: Compile) -> None:
    data = bpf_cc(
        """
        #define __ksym __attribute__((section(".ksyms")))
        extern int bpf_kfunc_here(int x) __ksym;
        extern const int jiffies_there __ksym __attribute__((weak));
        SEC("uprobe") int prog(void *ctx) { return bpf_kfunc_here(1) + bpf_kfunc_here(2) + (&jiffies_there != 0); }
        """
    )
    program = Object.parse(data, name="x.o").programs["prog"]
    func, var = sorted(program.ksyms, key=lambda ksym: ksym.kind)
    assert (func.name, func.kind, func.weak, len(func.insns)) == ("bpf_kfunc_here", "func", False, 2)
    assert (var.name, var.kind, var.weak, len(var.insns)) == ("jiffies_there", "var", True, 1)
    number = program.ksyms.index(func)
    assert all((program.insns[i].src, program.insns[i].imm) == (2, KFUNC_POISON + number) for i in func.insns)
    assert program.insns[var.insns[0]][2:] == (0, 0, 0)


def test_one_program_that_cannot_be_linked_leaves_the_others(bpf_cc: Compile) -> None:
    data = bpf_cc(
        """
        extern int nowhere(int x);
        SEC("uprobe") int good(void *ctx) { return 1; }
        SEC("uprobe") int bad(void *ctx) { return nowhere(1); }
        SEC("uprobbe") int odd(void *ctx) { return 1; }
        """
    )
    obj = Object.parse(data, name="x.o")
    assert set(obj.programs) == {"good"}
    assert "'nowhere' is not defined" in obj.errors["bad"].message
    assert obj.errors["bad"].place.insn is not None and obj.errors["bad"].place.prog == "bad"
    assert "uprobbe" in obj.errors["odd"].message


def test_core_relocations_meet_the_kernels_types_or_the_programs_own(bpf_cc: Compile, vmlinux: Btf) -> None:
    data = bpf_cc(
        """
        struct task_struct { int pid; int not_there; } __attribute__((preserve_access_index));
        SEC("uprobe") int prog(struct task_struct *t) { return t->pid + t->not_there; }
        """
    )
    asked = []

    def kernel_btf() -> Btf:
        asked.append(1)
        return vmlinux

    own = Object.parse(data, name="x.o").programs["prog"]
    assert [insn.off for insn in own.insns if insn.op == 0x61] == [0, 4] and not own.core_failures
    met = Object.parse(data, name="x.o", kernel_btf=kernel_btf).programs["prog"]
    assert [failure.reason for failure in met.core_failures] == ["the target has no task_struct.not_there"]
    assert met.insns[met.core_failures[0].insn].imm == 0xBAD2310
    assert asked == [1]
    Object.parse(bpf_cc('SEC("uprobe") int prog(void *c) { return 0; }'), name="x.o", kernel_btf=kernel_btf)
    assert asked == [1]


def test_recursion_and_chains_are_linked_once_each(bpf_cc: Compile) -> None:
    source = """
        static noinline int a(int x); volatile int depth;
        static noinline int b(int x) { depth++; return x > 3 ? a(x - 1) : x; }
        static noinline int a(int x) { depth--; return x > 2 ? b(x - 1) + 1 : b(x); }
        SEC("uprobe") int prog(void *c) { return a(depth) + b(depth); }
    """
    program = Object.parse(bpf_cc(source), name="x.o").programs["prog"]
    assert sorted(sub.name for sub in program.subprogs) == ["a", "b", "prog"]
    assert calls(program) == {("prog", "a"), ("prog", "b"), ("a", "b"), ("b", "a")}


def test_license_and_version_are_read(bpf_cc: Compile) -> None:
    obj = Object.parse(
        bpf_cc('SEC("uprobe") int prog(void *c) { return 0; } u32 v SEC("version") = 0x50a00;'), name="x"
    )
    assert (obj.license, obj.kversion, obj.programs["prog"].license) == ("GPL", 0x50A00, "GPL")


def test_a_lone_function_without_section_is_a_program_of_no_type(bpf_cc: Compile) -> None:
    obj = Object.parse(bpf_cc("int prog(void *c) { return 0; }"), name="x.o")
    assert not obj.programs and '".text" is not a program type' in obj.errors["prog"].message
