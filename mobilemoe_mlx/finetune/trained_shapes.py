"""How many weights a method trains and leaves, counted from the model's shape alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mobilemoe_mlx.adapters.config import EMBEDDING, LAYER_MODULES, AdapterConfig
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.finetune.recipe import FinetuneConfig


@dataclass(frozen=True)
class TrainedShapes:
    """Counts of numbers: those that INT4 packs and those it leaves, of the whole model; and those
    that are trained."""

    packed: int
    unpacked: int
    trained: int


def trained_shapes(args: ModelArgs, config: FinetuneConfig) -> TrainedShapes:
    """Count for a base of `args`.

    The method `experts` trains as many as have its share of the use; here as if all were used
    alike, when they are most.
    """
    layers, hidden, experts = args.num_hidden_layers, args.hidden_size, args.num_local_experts
    matrices = _matrices(args)
    router = matrices.pop("router")
    packed = layers * sum(count * a * b for count, a, b in matrices.values())
    packed += args.vocab_size * hidden
    routers = layers * router[1] * router[2]
    unpacked = routers + layers * (2 * hidden + experts) + hidden  # norms and selection biases
    if config.adapter is not None:
        trained = _adapter_numbers(args, config.adapter)
    elif config.experts is not None:
        chosen = max(1, math.ceil(config.experts.share * experts))
        trained = layers * chosen * 3 * hidden * args.intermediate_size
    else:
        trained = packed + unpacked - routers - layers * experts
    if config.routing.train and config.adapter is None:
        trained += routers
    return TrainedShapes(packed, unpacked, trained)


def _matrices(args: ModelArgs) -> dict[str, tuple[int, int, int]]:
    """Name in a layer -> (how many, inputs, outputs)."""
    hidden, width, shared = args.hidden_size, args.intermediate_size, args.intermediate_size_mlp
    queries, keys, experts = args.query_dim, args.key_value_dim, args.num_local_experts
    return {
        "q_proj": (1, hidden, queries),
        "k_proj": (1, hidden, keys),
        "v_proj": (1, hidden, keys),
        "o_proj": (1, queries, hidden),
        "shared_expert.gate_proj": (1, hidden, shared),
        "shared_expert.up_proj": (1, hidden, shared),
        "shared_expert.down_proj": (1, shared, hidden),
        "experts.gate_up_proj": (experts, hidden, 2 * width),
        "experts.down_proj": (experts, width, hidden),
        "router": (1, hidden, experts),
    }


def _adapter_numbers(args: ModelArgs, adapter: AdapterConfig) -> int:
    names = {f".{path}": name for name, path in LAYER_MODULES.items()}
    matrices = _matrices(args)
    total = 0
    for path in adapter.module_paths(args.num_hidden_layers):
        if path == EMBEDDING:
            count, inputs, outputs = 1, args.vocab_size, args.hidden_size
        else:
            name = next(name for end, name in names.items() if path.endswith(end))
            count, inputs, outputs = matrices[name]
        lengths = 0
        if adapter.kind == "dora":  # of rows of the embedding, else of outputs
            lengths = inputs if path == EMBEDDING else outputs
        total += count * (adapter.rank * (inputs + outputs) + lengths)
    return total
