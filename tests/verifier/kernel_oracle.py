"""The kernel's verdict on the corpus: the maps once, then one BPF_PROG_LOAD for each program."""

from __future__ import annotations

from userbpf.kernel import KernelError, KernelObject, load_object
from userbpf.object import Object
from userbpf.object.model import Program


class Oracle:
    """Loads programs of type KPROBE, which uprobes are, and forgets them at once."""

    def verdict(self, program: Program) -> tuple[bool, str]:
        """Whether the kernel accepts the program, and the last line of its log when not."""
        obj = Object(
            name="oracle",
            programs={program.name: program},
            maps={spec.name: spec for spec in program.maps},
            btf=program.btf,
            btf_ext=None,
            license=program.license,
            kversion=0,
        )
        try:
            loaded: KernelObject = load_object(obj)
        except KernelError as error:
            lines = [line for line in error.log.splitlines() if line and not line.startswith("processed ")]
            return False, lines[-1] if lines else str(error)
        loaded.close()
        return True, ""
