"""The usual remedy for each rule, by the code of the rejection. The codes are stable: scripts may match on them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["REMEDIES"]

REMEDIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "structure": "this bytecode was not made by a compiler as it is; rebuild the object",
        "uninit-reg": "give the variable a value on every path before it is read",
        "uninit-stack": "initialise the whole variable, padding included:\n"
        "struct key k = {};   or   __builtin_memset(&k, 0, sizeof(k));",
        "stack-bounds": "keep the index inside the array:\nif (i >= sizeof(buf)) return 0;",
        "stack-unaligned": "access the variable through its own type",
        "stack-too-deep": "put large buffers into a per-CPU array map and look them up",
        "mem-out-of-bounds": "bound the index before the access, with a mask or a comparison:\n"
        "i &= SIZE - 1;   or   if (i >= SIZE) return 0;",
        "mem-unaligned": "align the variable: atomics work on naturally aligned int and long",
        "null-deref": "test the pointer first:\nif (!value) return 0;",
        "bad-pointer": "only pointers that come from the context, a map, the stack or a helper can be followed;\n"
        "read other memory with bpf_probe_read_user(&copy, sizeof(copy), address)",
        "bad-pointer-arith": "bound the offset before it is added:\nif (offset > MAX) return 0;",
        "map-pointer": "a map is used through helpers only: bpf_map_lookup_elem(&map, &key)",
        "ctx-write": "copy the value into a variable and change that",
        "ctx-access": "read whole fields of the context through its struct (PT_REGS_PARM1(ctx), …)",
        "read-only": "declare the variable without const to be able to write it",
        "write-only": "the map was declared with BPF_F_WRONLY_PROG; remove the flag to read it",
        "helper-unsupported": "see `userbpf doctor` for the helpers that are offered",
        "helper-arg": "compare the arguments with the helper's declaration in bpf_helpers.h",
        "helper-map": "use the helper that belongs to this type of map",
        "helper-size": "bound the size before the call:\nif (size > sizeof(buf)) size = sizeof(buf);",
        "helper-license": 'declare a GPL-compatible licence:\nchar LICENSE[] SEC("license") = "GPL";',
        "kfunc-unsupported": "kernel functions exist only in the kernel; use a helper",
        "unreleased-ref": "submit or discard the record on every path:\nbpf_ringbuf_discard(record, 0);",
        "infinite-loop": "let every turn change a counter that ends the loop:\nfor (int i = 0; i < MAX; i++)",
        "too-complex": "give loops smaller constant bounds, or move parts into __noinline functions",
        "recursion": "write the recursion as a loop with a constant bound",
        "div": "test the divisor first",
        "shift": "shift by less than the width of the type",
        "packet-load": "read memory with bpf_probe_read_user",
        "return-value": "return a value that the program type allows",
        "program-type": "userbpf runs uprobe, uretprobe and usdt programs",
        "unsupported": "rebuild the object without this feature",
    }
)
