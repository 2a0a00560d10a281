"""A second reading of config.json, by which the first one is checked.

The PyTorch reference is built from it, and `verify` compares it with the `ModelArgs` that the model
and the exports are built from: a field that `config.py` misreads shows as a difference. So nothing
here is shared with that module, and this one is written from the field's meaning: every number of
the forward pass is looked up under each name it may have, and what is left over must be off.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mobilemoe_mlx import files
from mobilemoe_mlx.errors import UserError

if TYPE_CHECKING:
    from mobilemoe_mlx.config import ModelArgs, RopeScaling


@dataclass(frozen=True)
class Llama3Stretching:
    """How llama3 stretches long wavelengths."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int
    rope_type: str = "llama3"


@dataclass(frozen=True)
class ReferenceConfig:
    """The numbers of the forward pass."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    intermediate_size_mlp: int
    vocab_size: int
    num_local_experts: int
    num_experts_per_tok: int
    routed_scaling_factor: float
    rms_norm_eps: float
    rope_theta: float
    norm_topk_prob: bool
    use_qk_norm: bool
    rope_scaling: Llama3Stretching | None

    @property
    def query_dim(self) -> int:
        """Features of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_dim(self) -> int:
        """Features of all key (or value) heads together."""
        return self.num_key_value_heads * self.head_dim


Config: TypeAlias = "ReferenceConfig | ModelArgs"

# Words of fields that could change the forward pass; a field with one is read, off, or refused.
_WORDS = (
    "activation attention attn bias chunk expert feed ffn gate glu head hidden layer linear logit "
    "mlp moe norm position quant rope rotary rout scal softcap theta window"
)
# Fields with such a word that say nothing of it.
_NO_PART = (
    "output_attentions output_hidden_states output_router_logits router_aux_loss_coef "
    "router_z_loss_coef router_jitter_noise attn_scale floor_scale attn_implementation "
    "experts_implementation max_position_embeddings attention_dropout"
)
# Fields with such a word whose one right value is not an "off".
_RIGHT = {
    "hidden_act": "silu",
    "activation_function": "silu",
    "scoring_func": "sigmoid",
    "interleave_moe_layer_step": 1,
    "decoder_sparse_step": 1,
    "moe_layer_freq": 1,
    "partial_rotary_factor": 1,
    "logit_scale": 1,
    "logits_scaling": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "rope_interleave": True,
    "tie_word_embeddings": True,
}


def read_reference_config(folder: Path) -> ReferenceConfig:
    """Read `folder`/config.json; raises UserError for one that this second reading refuses."""
    text = files.read_text(folder / "config.json")
    try:
        config = json.loads(text, object_pairs_hook=_unambiguous, parse_constant=_refuse_constant)
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is not valid JSON: {error}.") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} is not a JSON object.")
    return reference_config(config)


def _unambiguous(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of config.json, in which every name may stand once."""
    values: dict[str, Any] = {}
    for name, value in members:
        if name in values:
            raise UserError(f"config.json has two values of {name}: {values[name]} and {value}.")
        values[name] = value
    return values


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def reference_config(config: Mapping[str, Any]) -> ReferenceConfig:
    """The reading of config.json's content; raises UserError naming a field it cannot vouch for."""
    given = {name: value for name, value in config.items() if value is not None}
    rope_theta, stretching = _rope(given)
    switches = {"norm_topk_prob": True, "use_qk_norm": True}  # their values where they are absent
    try:
        numbers = {
            field.name: given[field.name]
            for field in dataclasses.fields(ReferenceConfig)
            if field.name not in ("head_dim", "rope_theta", "rope_scaling", *switches)
        }
    except KeyError as absent:
        raise UserError(f"config.json: the field {absent.args[0]} is missing.") from None
    head_dim = given.get("head_dim", numbers["hidden_size"] // numbers["num_attention_heads"])
    read = ReferenceConfig(
        **numbers,
        head_dim=head_dim,
        rope_theta=rope_theta,
        rope_scaling=stretching,
        **{name: given.get(name, default) for name, default in switches.items()},
    )
    _check_rest(given, read)
    return read


def disagreements(config: Mapping[str, Any], args: Config) -> list[str]:
    """Where `args`, read from config.json's content by other code, differ from this reading."""
    mine = reference_config(config)
    problems = []
    for field in dataclasses.fields(ReferenceConfig):
        ours, theirs = getattr(mine, field.name), getattr(args, field.name)
        if field.name == "rope_scaling":
            theirs = _as_stretching(theirs)
        if ours != theirs:
            problems.append(f"{field.name} was read as {theirs}, but config.json says {ours}")
    return problems


def check_agreement(config: Mapping[str, Any], args: Config) -> None:
    """Raise UserError unless both readings of config.json's content are the same."""
    if problems := disagreements(config, args):
        raise UserError(
            f"config.json is misread: {'; '.join(problems)}. This is a mistake of this program: "
            "please report it with the file."
        )


def _as_stretching(scaling: Llama3Stretching | RopeScaling | None) -> Llama3Stretching | None:
    if scaling is None or scaling.rope_type == "default":
        return None
    return Llama3Stretching(
        scaling.factor,
        scaling.low_freq_factor,
        scaling.high_freq_factor,
        scaling.original_max_position_embeddings,
        scaling.rope_type,
    )


def _rope(given: Mapping[str, Any]) -> tuple[float, Llama3Stretching | None]:
    """Every statement about RoPE, wherever it stands; all of them must agree."""
    said: dict[str, set[Any]] = {}
    for name, value in _rope_statements(given):
        said.setdefault(name, set()).add(value)
    for name, them in said.items():
        if len(them) > 1:
            both = " and ".join(sorted(map(str, them)))
            raise UserError(f"config.json says of RoPE that {name} is {both}.")
    values: dict[str, Any] = {name: next(iter(them)) for name, them in said.items()}
    if "rope_theta" not in values:
        raise UserError("config.json: the field rope_theta is missing.")
    theta = values.pop("rope_theta")
    if values.pop("partial_rotary_factor", 1) != 1:
        raise UserError("config.json: MobileMoE rotates whole heads (partial_rotary_factor 1).")
    kind = values.pop("rope_type", "default")
    if kind == "default":
        values.pop("original_max_position_embeddings", None)
        stretching = None
    elif kind == "llama3":
        names = [f.name for f in dataclasses.fields(Llama3Stretching) if f.name != "rope_type"]
        if missing := [name for name in names if name not in values]:
            raise UserError(f"config.json: RoPE of the type llama3 lacks {', '.join(missing)}.")
        stretching = Llama3Stretching(**{name: values.pop(name) for name in names})
    else:
        raise UserError(f"config.json: RoPE of the type {kind!r} is not MobileMoE's.")
    if values:
        raise UserError(f"config.json: RoPE of the type {kind!r} has no {', '.join(values)}.")
    return theta, stretching


def _rope_statements(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if name in given:
            yield name, given[name]
    blocks = [given[name] for name in ("rope_scaling", "rope_parameters") if given.get(name)]
    while blocks:
        block = blocks.pop()
        if not isinstance(block, dict):
            raise UserError(f"config.json: {block!r} is no description of RoPE.")
        inner = [value for value in block.values() if isinstance(value, dict)]
        if inner:  # a block for each layer type, which must all say the same
            if "full_attention" not in block:
                raise UserError("config.json: RoPE of layers that are not full_attention.")
            blocks += inner
            continue
        kinds = {"type", "rope_type"} & {*block}
        if not kinds:
            yield "rope_type", "default"
        for name, value in block.items():
            if value is not None:
                yield ("rope_type" if name in kinds else name), value


def _check_rest(given: Mapping[str, Any], read: ReferenceConfig) -> None:
    """Refuse what is neither read nor off."""
    fields = {field.name for field in dataclasses.fields(ReferenceConfig)}
    layers, context = read.num_hidden_layers, given.get("max_position_embeddings", 0)
    right = _RIGHT | {
        "layer_types": ["full_attention"] * layers,
        "no_rope_layers": [1] * layers,
        "moe_layers": [*range(layers)],
        "query_pre_attn_scalar": read.head_dim,
        "num_experts": read.num_local_experts,
        "n_routed_experts": read.num_local_experts,
        "num_routed_experts": read.num_local_experts,
        "moe_intermediate_size": read.intermediate_size,
        "shared_expert_intermediate_size": read.intermediate_size_mlp,
        "num_experts_per_token": read.num_experts_per_tok,
        "num_layers": layers,
        "norm_eps": read.rms_norm_eps,
        "layer_norm_eps": read.rms_norm_eps,
        "layer_norm_epsilon": read.rms_norm_eps,
        "hidden_activation": "silu",
    }
    whole_context = ["attention_chunk_size"]
    if given.get("use_sliding_window") is not False:
        whole_context.append("sliding_window")
    for name, value in given.items():
        if name in whole_context:
            wrong = value < context
        elif name in right:
            wrong = value != right[name]
        else:
            understood = name in fields or name.startswith(("rope_", "quantization", "_"))
            without_part = understood or name in _NO_PART.split() or name == "sliding_window"
            without_part |= name in ("original_max_position_embeddings", "no_rope_layer_interval")
            on = value not in (False, 0, [], {})
            wrong = not without_part and on and any(word in name for word in _WORDS.split())
        if wrong:
            raise UserError(
                f"config.json: {name} is {value!r}, which the reference does not implement."
            )
