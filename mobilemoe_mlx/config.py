"""The model's configuration: config.json read field by field, validated, and the presets."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from mobilemoe_mlx import config_spelling, end_tokens, files, tables
from mobilemoe_mlx.config_spelling import bad
from mobilemoe_mlx.errors import UserError, did_you_mean
from mobilemoe_mlx.finite_number import is_finite_number

MODEL_TYPE = "mobilemoe"
ARCHITECTURE = "MobileMoEForCausalLM"
INT4_FORMAT = "mobilemoe-int4-g32"
GROUP_SIZE = 32

# How the scale of a group of INT4 follows from its values: see `int4.quantize`.
ScaleRule = Literal["unclipped", "paper"]
SCALE_RULES: tuple[ScaleRule, ...] = typing.get_args(ScaleRule)

# Added to the sum of the selected experts' scores before they are divided by it: of the published
# model's code, not of config.json (docs/model.md, "Forward pass").
NORMALIZE_EPS = 1e-20
# Far above any decoder: a damaged number would fill the memory with lists of layers.
MOST_LAYERS = 1000

# MLX counts an array's axes in int32.
Size = Annotated[int, tables.Bounds(least=1, below=2**31)]
SizeOrZero = Annotated[int, tables.Bounds(least=0, below=2**31)]

# One form of the `quantization` block: the published one, value by value.
INT4_QUANTIZATION: dict[str, Any] = {
    "format": INT4_FORMAT,
    "group_size": GROUP_SIZE,
    "embedding_group_size": GROUP_SIZE,
    "qmin": -8,
    "qmax": 7,
    "symmetric": True,
    "packed": True,
    "scale_dtype": "float16",
    "linear_group_axis": "in (last dim of [out, in])",
    "expert_group_axis": "out (last dim of [E, in, out])",
}

# The other form: mlx-lm's own block, written by `mobilemoe convert --to mlx` for its commands.
MLX_QUANTIZATION: dict[str, Any] = {"group_size": GROUP_SIZE, "bits": 4, "mode": "affine"}

# Fields whose other values describe models this package does not implement.
_ONLY_VALUE: dict[str, tuple[Any, str]] = {
    "model_type": (MODEL_TYPE, "this is not a MobileMoE checkpoint"),
    "hidden_act": ("silu", "the experts are SwiGLU"),
    "interleave_moe_layer_step": (1, "every MobileMoE layer is a mixture of experts"),
    "attn_temperature_tuning": (False, "MobileMoE does not scale queries by position"),
    "tie_word_embeddings": (True, "MobileMoE ties the output head to the embedding"),
    "attention_bias": (False, "MobileMoE's attention has no biases"),
    "attention_dropout": (0.0, "MobileMoE trains without dropout"),
}


@dataclass(frozen=True)
class RopeScaling:
    """config.json's `rope_scaling`: how rotary frequencies are stretched.

    `rope_type` is "default" (no stretching) or "llama3" (long wavelengths divided by `factor`).
    """

    rope_type: str = "llama3"
    factor: float = 16.0
    original_max_position_embeddings: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0

    @classmethod
    def from_dict(cls, values: dict[str, Any], block: str = "rope_scaling") -> RopeScaling:
        """Read the block, which messages call `block`.

        Raises UserError for an unknown type, an unknown or missing key, or a senseless number.
        """
        values = dict(values)
        kind = values.pop("rope_type", None)
        if kind not in ("llama3", "default"):
            raise UserError(
                f"config.json: {block}.rope_type is {kind!r}; "
                "MobileMoE uses 'llama3' (or 'default' for none)."
            )
        known = {f.name for f in dataclasses.fields(cls)} - {"rope_type"}
        if kind == "default" and values:
            raise UserError(
                f"config.json: {block}.rope_type is 'default', which has no {min(values)}: "
                "remove it, or say 'llama3'."
            )
        for name in values:
            if name not in known:
                raise UserError(
                    f"config.json: {block}.{name} is not a known field{did_you_mean(name, known)}."
                )
        for name, value in values.items():
            if not is_finite_number(value) or not value > 0:
                raise UserError(
                    f"config.json: {block}.{name} is {value!r}; "
                    "it must be a positive, finite number."
                )
        if kind == "llama3" and (missing := sorted(known - set(values))):
            raise UserError(f"config.json: {block} lacks {', '.join(missing)}.")
        scaling = cls(rope_type=kind, **values)
        if scaling.high_freq_factor < scaling.low_freq_factor:
            raise UserError(
                f"config.json: {block}.high_freq_factor ({scaling.high_freq_factor}) is below "
                f"{block}.low_freq_factor ({scaling.low_freq_factor})."
            )
        return scaling

    def to_dict(self) -> dict[str, Any]:
        """The block as config.json holds it."""
        return dataclasses.asdict(self) if self.rope_type == "llama3" else {"rope_type": "default"}


@dataclass(frozen=True)
class ModelArgs:
    """The published config.json, field by field; sizes are counts, widths are in features.

    Beside the published form there are two for comparison: without a shared expert
    (`intermediate_size_mlp` 0), and dense (the three numbers of routed experts 0), where all tokens
    pass what is the shared expert elsewhere, and nothing else.
    """

    hidden_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    intermediate_size: SizeOrZero  # width of one routed expert
    intermediate_size_mlp: SizeOrZero  # width of the shared expert
    num_key_value_heads: Size = 4
    head_dim: Size = 64
    vocab_size: Size = 128256
    num_local_experts: SizeOrZero = 60
    num_experts_per_tok: SizeOrZero = 4
    routed_scaling_factor: tables.Positive = 2.5
    norm_topk_prob: bool = True
    use_qk_norm: bool = True
    rms_norm_eps: tables.Positive = 1e-5
    rope_theta: tables.Positive = 500000.0
    rope_scaling: RopeScaling | None = field(default_factory=RopeScaling)
    max_position_embeddings: Size = 8192
    no_rope_layers: tuple[int, ...] = ()  # 1 = this layer uses RoPE; filled in when empty
    layer_types: tuple[str, ...] = ()  # filled in when empty
    bos_token_id: int | None = 128000
    eos_token_id: tuple[int, ...] = (128001, 128008, 128009)
    quantized: bool = False  # the `quantization` block is present (INT4, groups of 32)
    model_type: str = MODEL_TYPE
    hidden_act: str = "silu"
    interleave_moe_layer_step: Size = 1
    attn_temperature_tuning: bool = False
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    attention_dropout: tables.NotNegative = 0.0
    torch_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        layers = self.num_hidden_layers
        if isinstance(layers, int) and layers > MOST_LAYERS:
            raise bad("num_hidden_layers", layers, f"it must be at most {MOST_LAYERS}")
        if not self.no_rope_layers and isinstance(layers, int):
            object.__setattr__(self, "no_rope_layers", (1,) * layers)
        if not self.layer_types and isinstance(layers, int):
            object.__setattr__(self, "layer_types", ("full_attention",) * layers)
        self._check_types()
        self._check_supported()
        self._check_sizes()

    def _check_types(self) -> None:
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            if name == "rope_scaling":  # read by `RopeScaling.from_dict`
                continue
            read = tables.read_value(hint, value, f"config.json: {name}")
            if type(read) is int and type(value) is not int:  # 768.0, which TOML may write
                raise bad(name, value, "it must be a whole number")
            if isinstance(read, tuple) and not isinstance(value, tuple):
                raise bad(name, value, "it must be a list")

    def _check_supported(self) -> None:
        for name, (only, why) in _ONLY_VALUE.items():
            if getattr(self, name) != only:
                raise bad(name, getattr(self, name), f"only {only!r} is supported: {why}")
        for name, only in (("no_rope_layers", 1), ("layer_types", "full_attention")):
            values = getattr(self, name)
            if len(values) != self.num_hidden_layers:
                raise UserError(
                    f"config.json: {name} has {len(values)} entries but num_hidden_layers is "
                    f"{self.num_hidden_layers}."
                )
            for layer, value in enumerate(values):
                if value != only:
                    raise bad(
                        f"{name}[{layer}]",
                        value,
                        f"only {only!r} is supported: every MobileMoE layer attends in full, "
                        "with RoPE",
                    )

    def _check_sizes(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"config.json: num_attention_heads ({self.num_attention_heads}) is not a multiple "
                f"of num_key_value_heads ({self.num_key_value_heads})."
            )
        if self.head_dim % 2:
            raise bad("head_dim", self.head_dim, "RoPE turns pairs, so it must be even")
        self._check_experts()
        # Every size that INT4 packs or groups; BF16 models keep to it, to be quantisable.
        grouped = {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "intermediate_size_mlp": self.intermediate_size_mlp,
            "num_attention_heads x head_dim": self.num_attention_heads * self.head_dim,
        }
        for name, size in grouped.items():
            if size % GROUP_SIZE:
                raise bad(name, size, f"it must be a multiple of the INT4 group, {GROUP_SIZE}")
        scaling = self.rope_scaling
        if scaling is not None and scaling.rope_type == "llama3":
            original = scaling.original_max_position_embeddings
            if original * scaling.factor < self.max_position_embeddings:
                raise UserError(
                    f"config.json: max_position_embeddings ({self.max_position_embeddings}) "
                    f"contradicts rope_scaling: {original} x {scaling.factor:g} positions at most."
                )
        for name, ids in (
            ("bos_token_id", (self.bos_token_id,)),
            ("eos_token_id", self.eos_token_id),
        ):
            for token in ids:
                if token is not None and not 0 <= token < self.vocab_size:
                    raise bad(name, token, f"the vocabulary has {self.vocab_size} entries")

    def _check_experts(self) -> None:
        experts, selected = self.num_local_experts, self.num_experts_per_tok
        if experts == 0:
            for name in ("num_experts_per_tok", "intermediate_size"):
                if value := getattr(self, name):
                    why = "it must be 0 where num_local_experts is 0: the model is dense"
                    raise bad(name, value, f"{why}, of the width intermediate_size_mlp")
            if self.intermediate_size_mlp == 0:
                raise bad("intermediate_size_mlp", 0, "a layer without experts needs a width")
            return
        for name in ("num_experts_per_tok", "intermediate_size"):
            if getattr(self, name) == 0:
                why = f"it must be 1 or more, or num_local_experts ({experts}) 0 as well"
                raise bad(name, 0, why)
        if selected > experts:
            raise UserError(
                f"config.json: num_experts_per_tok ({selected}) is above num_local_experts "
                f"({experts})."
            )

    def check_routed_and_shared(self, what: str) -> None:
        """Raise UserError, as `what` needs it, unless the model is of the published form."""
        if not self.num_local_experts:
            raise UserError(f"{what} needs routed experts; this model is dense.")
        if not self.intermediate_size_mlp:
            raise UserError(f"{what} needs a shared expert, and this model has none.")

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> ModelArgs:
        """Read config.json's content; the published files are accepted as they are.

        Fields of no account for the numbers are ignored (docs/checkpoints.md). Raises UserError
        naming the field and the value for anything that is missing, unknown, of the wrong type,
        contradictory, or not a MobileMoE.
        """
        if not isinstance(config, dict):
            raise UserError(f"config.json: expected an object, found {type(config).__name__}.")
        if config.get("model_type") != MODEL_TYPE:
            only, why = _ONLY_VALUE["model_type"]
            raise bad("model_type", config.get("model_type"), f"only {only!r} is supported: {why}")
        names = {f.name for f in dataclasses.fields(cls)} - {"quantized"}
        values = config_spelling.published_fields(config, names)
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in _OPTIONAL | {*values}]
        if missing:
            unknown = [n for n in config if n not in names]
            raise UserError(
                f"config.json: the field {missing[0]} is missing"
                f"{_present_instead(missing[0], unknown)}."
                + (f" Also missing: {', '.join(missing[1:])}." if missing[1:] else "")
            )
        config_spelling.check_unknown(config, names)
        if (block := values.get("rope_scaling")) is not None:
            spelling = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
            block = RopeScaling.from_dict(block, spelling)
        values["rope_scaling"] = block
        for name in ("no_rope_layers", "layer_types"):
            if name in values:
                if not isinstance(values[name], list):
                    raise bad(name, values[name], "it must be a list, one entry for each layer")
                if not values[name]:
                    raise bad(name, values[name], "it must have one entry for each layer")
                values[name] = tuple(values[name])
        eos = end_tokens.token_ids("config.json: eos_token_id", values.get("eos_token_id"))
        values["eos_token_id"] = eos
        values.setdefault("bos_token_id", None)
        values["quantized"] = _is_quantized(config.get("quantization"))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The configuration as the published config.json writes it."""
        config: dict[str, Any] = {"architectures": [ARCHITECTURE]}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.name == "quantized":
                continue
            if f.name == "rope_scaling":
                value = value.to_dict() if value is not None else None
            config[f.name] = list(value) if isinstance(value, tuple) else value
        if self.quantized:
            config["quantization"] = dict(INT4_QUANTIZATION)
        return config

    @property
    def query_dim(self) -> int:
        """Features of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_dim(self) -> int:
        """Features of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim


_OPTIONAL = {
    # What a config may leave out, with one meaning whatever the model: the published defaults.
    "rope_scaling",
    "no_rope_layers",
    "layer_types",
    "bos_token_id",
    "eos_token_id",
    "quantized",
    "hidden_act",
    "interleave_moe_layer_step",
    "attn_temperature_tuning",
    "tie_word_embeddings",
    "attention_bias",
    "attention_dropout",
    "torch_dtype",
    "norm_topk_prob",
    "use_qk_norm",
}


def _present_instead(name: str, unknown: list[str]) -> str:
    for other in config_spelling.other_names(name):
        if other in unknown:
            return f" (the file has '{other}', another model's name)"
    hint = did_you_mean(name, unknown)
    return hint.replace("did you mean", "the file has") if hint else ""


def _is_quantized(block: Any) -> bool:
    if block is None:
        return False
    if not isinstance(block, dict):
        raise bad("quantization", block, "it must be an object or null")
    if "format" not in block and block.get("bits") == 4:
        only_values = MLX_QUANTIZATION
    elif block.get("format") == INT4_FORMAT:
        only_values = INT4_QUANTIZATION
    else:
        raise bad("quantization", block, f"only format {INT4_FORMAT!r} is supported")
    for name, value in block.items():
        if name not in only_values:
            raise bad(f"quantization.{name}", value, "MobileMoE's INT4 has no such field")
        only = only_values[name]
        # An axis is a sentence, which may be worded differently; its first word is the axis.
        same = (
            str(value).split(" ")[0] == only.split(" ")[0]
            if name.endswith("_axis")
            else value == only
        )
        if not same:
            raise bad(f"quantization.{name}", value, f"only {only!r} is supported")
    if only_values is MLX_QUANTIZATION and "group_size" not in block:
        raise bad("quantization", block, "its group_size is missing")
    return True


def _family(hidden_size: int, layers: int) -> ModelArgs:
    # Routed experts are half the hidden size wide, the shared expert twice (docs/model.md).
    return ModelArgs(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        intermediate_size=hidden_size // 2,
        intermediate_size_mlp=hidden_size * 2,
    )


# S, M, L: paper table of sizes. tiny: ours, the same ratios at a size two CPU cores can train.
PRESETS: dict[str, ModelArgs] = {
    "tiny": ModelArgs(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=32,
        intermediate_size_mlp=128,
        vocab_size=4096,
        max_position_embeddings=1024,
        rope_theta=10000.0,
        rope_scaling=None,
        bos_token_id=0,
        eos_token_id=(1,),
    ),
    "S": _family(768, 20),
    "M": _family(1024, 26),
    "L": _family(1280, 32),
}


def preset(name: str) -> ModelArgs:
    """Return a preset by name; raises UserError naming the nearest one."""
    if name not in PRESETS:
        raise UserError(
            f"There is no preset '{name}'{did_you_mean(name, PRESETS)}. "
            f"Presets: {', '.join(PRESETS)}."
        )
    return PRESETS[name]


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Read `folder`/`name`; raises UserError when it is absent or not a JSON object."""
    path = folder / name
    if not path.exists():
        raise UserError(f"{folder} has no {name}: is it a model folder?")
    config = files.read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected an object, found {type(config).__name__}.")
    return config
