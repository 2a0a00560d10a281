"""Builds the CPU kernel's library for wheels and editable installs.

Where there is no C++ compiler the package is installed without it, and says so when it is needed.
"""

from __future__ import annotations

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelBuildHook(BuildHookInterface):
    """Hatchling's hook: compiles before the files are collected."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library and put it into the wheel; an editable one finds it in the checkout."""
        script = runpy.run_path(str(Path(self.root) / "coreml" / "kernel" / "build_library.py"))
        try:
            library = script["build_library"]()
        except script["NoCompiler"] as error:
            self.app.display_warning(f"Installed without the CPU kernel. {error}")
            return
        build_data["pure_python"] = False
        # The library is loaded by name and knows nothing of Python: one wheel serves all versions.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append(str(library.relative_to(self.root)))
