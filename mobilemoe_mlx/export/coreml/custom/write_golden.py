"""Write the golden files of the custom layers.

Run: python -m mobilemoe_mlx.export.coreml.custom.write_golden coreml/golden
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mobilemoe_mlx.export.coreml.custom.golden import write_golden


def main() -> None:
    """Write every file into the folder that the command line names, and say their sizes."""
    parser = argparse.ArgumentParser(description="Write the golden files of the custom layers.")
    parser.add_argument("output", type=Path, help="the folder to write")
    folder = parser.parse_args().output
    write_golden(folder)
    for path in sorted(folder.glob("*.safetensors")):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
