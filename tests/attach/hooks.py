"""Small hooks written by hand, and a session as tests need it: sites of one process, patched and restored."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from userbpf.attach import (
    Cell,
    Injector,
    Patch,
    Region,
    RemoveReport,
    SealedImage,
    SitePlan,
    StopReport,
    apply,
    build_trampoline,
    plan_site,
    remove,
    trampoline_size,
)
from userbpf.process import Module, Process

PAGE = 4096
NOTHING = b"\xc3"


@dataclass(frozen=True)
class Code:
    """What SealedImage takes."""

    code: bytes
    data_size: int


def counter(slot: int, at: int) -> bytes:
    """``pushfq; lock incq slot(data); popfq; ret`` at offset ``at`` of a one-page image: clobbers nothing."""
    return b"\x9c\xf0\x48\xff\x05" + struct.pack("<i", PAGE + 8 * slot - (at + 9)) + b"\x9d\xc3"


COUNTERS = b"".join(counter(slot, 16 * slot).ljust(16, b"\xcc") for slot in range(16))


class Probes:
    """Counting probes on sites of one process; ``counts()`` reads them, ``remove()`` takes them out."""

    def __init__(
        self,
        process: Process,
        sites: Sequence[tuple[Module, int]],
        *,
        code: bytes = COUNTERS,
        plans: Sequence[SitePlan] = (),
        timeout: float = 2.0,
    ) -> None:
        self.process = process
        self.plans = list(plans)
        for module, addr in sites:
            self.plans.append(plan_site(process, module, addr, beside=self.plans))
        self.injector = Injector(process)
        self.patches: list[Patch] = []
        self.image: Region
        self.code = code
        try:
            self.stop = self._attach(timeout)
        except BaseException:
            with process.stop() as stopped:
                self.injector.unmap_all(stopped)
            raise

    def _attach(self, timeout: float) -> StopReport:
        by_module: dict[str, list[SitePlan]] = {}
        for plan in self.plans:
            by_module.setdefault(plan.module.path, []).append(plan)
        with SealedImage("test", Code(self.code, PAGE)) as image, self.process.stop() as stopped:
            self.image = self.injector.map_image(stopped, image)
            regions = [
                self.injector.map_trampolines(stopped, plans[0].module, sum(trampoline_size(p, 1) for p in plans))
                for plans in by_module.values()
            ]
        order = {id(plan): number for number, plan in enumerate(self.plans)}
        for region, plans in zip(regions, by_module.values(), strict=True):
            addr = region.addr
            code = bytearray()
            for plan in plans:
                slot = order[id(plan)] % 16 if self.code is COUNTERS else 0
                cell = Cell(self.image.addr + 16 * slot, plan.addr, plan.func.addr, order[id(plan)])
                patch = build_trampoline(plan, [cell], addr + len(code))
                code += patch.code.ljust(trampoline_size(plan, 1), b"\xcc")
                self.patches.append(patch)
            self.injector.write(addr, bytes(code))
        return apply(self.process, self.patches, timeout=timeout)

    def counts(self) -> list[int]:
        data = self.process.read(self.image.data, 8 * 16)
        return list(struct.unpack("<16Q", data))[: len(self.plans)]

    def remove(self, timeout: float = 5.0) -> RemoveReport:
        return remove(self.process, self.patches, self.injector, timeout=timeout)
