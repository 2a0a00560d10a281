"""MobileMoE for Hugging Face transformers, as files that travel with a checkpoint.

`mobilemoe convert --to transformers` copies them beside the weights, and transformers runs them
with `trust_remote_code=True`: they import nothing of this package.
"""

from __future__ import annotations

import importlib.resources

# For each of transformers' Auto classes, the class of this folder (config.json's `auto_map`).
AUTO_MAP = {
    "AutoConfig": "configuration_mobilemoe.MobileMoEConfig",
    "AutoModel": "modeling_mobilemoe.MobileMoEModel",
    "AutoModelForCausalLM": "modeling_mobilemoe.MobileMoEForCausalLM",
}

_FILES = tuple(f"{part}_mobilemoe.py" for part in ("configuration", "int4", "layers", "modeling"))


def model_files() -> dict[str, str]:
    """Name -> text of each Python file that a checkpoint folder for transformers holds."""
    here = importlib.resources.files(__name__)
    return {name: here.joinpath(name).read_text(encoding="utf-8") for name in _FILES}
