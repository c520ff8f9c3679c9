"""A process as an object: mappings, modules and symbols, threads, memory, and what can be done while it is stopped."""

from userbpf.process.elf import ElfFile, Symbol, load_elf
from userbpf.process.errors import ProcessExitedError
from userbpf.process.linux import Process, Thread
from userbpf.process.linux_x86_64 import Registers
from userbpf.process.mappings import PAGE, Mapping, find_gap, page_up, parse_maps
from userbpf.process.modules import Function, Module
from userbpf.process.spawn import spawn
from userbpf.process.stop import Stopped

__all__ = [
    "PAGE",
    "ElfFile",
    "Function",
    "Mapping",
    "Module",
    "Process",
    "ProcessExitedError",
    "Registers",
    "Stopped",
    "Symbol",
    "Thread",
    "find_gap",
    "load_elf",
    "page_up",
    "parse_maps",
    "spawn",
]
