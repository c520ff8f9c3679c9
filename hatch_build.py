"""Build hook: compiles ``native/`` with the C compiler that ziglang carries and ships the result in the wheel.

It runs for wheels and for editable installs alike; the source distribution carries ``native/`` itself.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIB = Path("src", "userbpf", "native", "lib")


class NativeBuildHook(BuildHookInterface):  # type: ignore[misc]  # hatchling ships no types
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        spec = importlib.util.spec_from_file_location("userbpf_native_build", root / "native" / "build.py")
        if spec is None or spec.loader is None:
            raise RuntimeError("native/build.py is missing from the source tree")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.build(root / LIB)
        # The files are ignored by git, so they have to be named; machine code makes the wheel a platform's own,
        # but of any Python 3 (the library is loaded by ctypes, not by the interpreter's C API).
        build_data["artifacts"].append(f"{LIB.as_posix()}/*")
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
