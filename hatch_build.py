"""Builds the CPU kernel's libraries for wheels and editable installs.

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
        """Build the libraries and put them into the wheel; editable, they are in the checkout."""
        script = runpy.run_path(str(Path(self.root) / "coreml" / "kernel" / "build_library.py"))
        try:
            libraries = script["build_library"]()
        except script["NoCompiler"] as error:
            self.app.display_warning(f"Installed without the CPU kernel. {error}")
            return
        build_data["pure_python"] = False
        # They are loaded by name and know nothing of Python: one wheel serves all versions.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"] += [str(library.relative_to(self.root)) for library in libraries]
