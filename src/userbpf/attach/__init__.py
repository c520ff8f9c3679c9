"""Programs into a running process: images and maps, sites and trampolines, patching and its undoing."""

from userbpf.attach.injector import CodeLike, Injector, Region, SealedImage
from userbpf.attach.patcher import RemoveReport, StopReport, apply, remove
from userbpf.attach.resolve import resolve_functions
from userbpf.attach.site import SitePlan, plan_site
from userbpf.attach.trampoline import Cell, Patch, build_trampoline, trampoline_size

__all__ = [
    "Cell",
    "CodeLike",
    "Injector",
    "Patch",
    "Region",
    "RemoveReport",
    "SealedImage",
    "SitePlan",
    "StopReport",
    "apply",
    "build_trampoline",
    "plan_site",
    "remove",
    "resolve_functions",
    "trampoline_size",
]
