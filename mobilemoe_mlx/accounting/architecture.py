"""What the cost of a decoder rests on: its matrices, its experts and what its attention keeps."""

from __future__ import annotations

from dataclasses import dataclass

from mobilemoe_mlx.config import ModelArgs


@dataclass(frozen=True)
class Layer:
    """One layer; parameters are counts, features are of all heads together."""

    packed: int  # parameters of matrices that every token passes; INT4 packs them
    vectors: int  # parameters in no matrix product: norms, biases, selection biases
    router: int = 0  # parameters of the router's matrix, which INT4 leaves in float32
    expert: int = 0  # parameters of one routed expert; INT4 packs them
    experts: int = 0
    experts_per_token: int = 0
    query_features: int = 0  # of softmax attention; 0: the layer has none
    key_value_features: int = 0  # keys of a token in the cache, and as many values
    window: int | None = None  # tokens that attention looks back at; None: all
    state: int = 0  # numbers of a recurrent state, float32, whatever the context
    state_flops: int = 0  # to bring that state forward by one token


@dataclass(frozen=True)
class Architecture:
    """A decoder."""

    vocab_size: int
    hidden_size: int
    tied: bool  # the output head is the embedding
    max_position_embeddings: int
    attention_heads: int
    key_value_heads: int
    layers: tuple[Layer, ...]

    @property
    def embedding(self) -> int:
        """Parameters of the embedding."""
        return self.vocab_size * self.hidden_size

    @property
    def final_norm(self) -> int:
        """Parameters of the norm after the last layer."""
        return self.hidden_size


def mobilemoe(args: ModelArgs) -> Architecture:
    """The architecture of a MobileMoE."""
    layer = mixture_layer(
        hidden_size=args.hidden_size,
        query_features=args.query_dim,
        key_value_features=args.key_value_dim,
        experts=args.num_local_experts,
        experts_per_token=args.num_experts_per_tok,
        expert_width=args.intermediate_size,
        shared_width=args.intermediate_size_mlp,
    )
    return Architecture(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        tied=True,
        max_position_embeddings=args.max_position_embeddings,
        attention_heads=args.num_attention_heads,
        key_value_heads=args.num_key_value_heads,
        layers=(layer,) * args.num_hidden_layers,
    )


def mixture_layer(
    *,
    hidden_size: int,
    query_features: int,
    key_value_features: int,
    experts: int,
    experts_per_token: int,
    expert_width: int,
    shared_width: int,
) -> Layer:
    """A layer as MobileMoE's: attention without weights in its head norms, experts with biases.

    No shared expert: `shared_width` is 0. All tokens pass one expert (a dense layer): `experts` 0,
    and the width is the shared one.
    """
    attention = 2 * hidden_size * (query_features + key_value_features)  # q, o and k, v
    return Layer(
        packed=attention + 3 * hidden_size * shared_width,  # gate, up, down
        vectors=2 * hidden_size + experts,  # norms, selection biases
        router=experts * hidden_size,
        expert=3 * hidden_size * expert_width if experts else 0,
        experts=experts,
        experts_per_token=experts_per_token,
        query_features=query_features,
        key_value_features=key_value_features,
    )
