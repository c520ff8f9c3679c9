"""A small client of bpf(2): runs the same objects in the kernel.

It is the oracle of the tests and the comparator of the benchmarks and of the demo; nothing else depends on it.
"""

from userbpf.kernel.loader import KernelObject, KernelProg, load_object
from userbpf.kernel.maps import KernelMap
from userbpf.kernel.perf import UprobeLink, attach_uprobe
from userbpf.kernel.ringbuf import RingReader
from userbpf.kernel.syscall import KernelError, available

__all__ = [
    "KernelError",
    "KernelMap",
    "KernelObject",
    "KernelProg",
    "RingReader",
    "UprobeLink",
    "attach_uprobe",
    "available",
    "load_object",
]
