"""BPF object files: ELF in, linked and CO-RE-relocated programs and map declarations out."""

from userbpf.object.model import Initialiser, Ksym, LineInfo, MapSpec, Object, Program, Subprog

__all__ = ["Initialiser", "Ksym", "LineInfo", "MapSpec", "Object", "Program", "Subprog"]
