"""Writes ``include/bpf/bpf_helper_defs.h`` from the table of helpers.

Run ``python -m userbpf.toolchain.gen_helper_defs`` after a change of the table; a test checks that it was done.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from userbpf.tables.helpers import HELPERS, Helper

OUTPUT: Final = Path(__file__).parents[1] / "include" / "bpf" / "bpf_helper_defs.h"

_HEAD: Final = """\
/* Made by userbpf.toolchain.gen_helper_defs from the table of helpers. Do not edit. */
#ifndef __BPF_HELPER_DEFS__
#define __BPF_HELPER_DEFS__

"""
_PROTO: Final = re.compile(r"(?P<ret>.*?)(?P<name>bpf_\w+)\((?P<args>.*)\)")
# Types of the kernel's inside, as a program sees them.
_PROGRAM_TYPES: Final = (
    (re.compile(r"\bstruct bpf_map \*"), "void *"),
    (re.compile(r"\bstruct sk_buff\b"), "struct __sk_buff"),
    (re.compile(r"\bstruct sk_msg_buff\b"), "struct sk_msg_md"),
    (re.compile(r"\bstruct xdp_buff\b"), "struct xdp_md"),
    (re.compile(r"\bsize_t\b"), "unsigned long"),
    (re.compile(r"\b([us](?:8|16|32|64))\b"), r"__\1"),
)


def _declare(helper: Helper) -> str:
    match = _PROTO.fullmatch(helper.c_proto)
    if match is None:
        raise ValueError(f"the prototype of helper {helper.id} has no form that is known: {helper.c_proto}")
    ret, args = match["ret"].strip(), match["args"]
    for pattern, replacement in _PROGRAM_TYPES:
        ret, args = pattern.sub(replacement, ret), pattern.sub(replacement, args)
    gap = "" if ret.endswith("*") else " "
    text = helper.doc or f"Linux {helper.since}. Not offered by userbpf."
    return f"/* {text} */\nstatic {ret}{gap}(*const {match['name']})({args}) = (void *){helper.id};\n"


def render() -> str:
    """The whole header."""
    declarations = [_declare(helper) for helper in HELPERS.values()]
    structs = sorted(set(re.findall(r"\bstruct (\w+)", "\n".join(declarations))))
    forward = "".join(f"struct {name};\n" for name in structs)
    return _HEAD + forward + "\n" + "\n".join(declarations) + "\n#endif\n"


def main() -> None:
    OUTPUT.write_text(render())


if __name__ == "__main__":
    main()
