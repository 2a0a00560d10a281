"""The design space of the paper: expert equivalents, granularity, a shared expert, width, depth."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mobilemoe_mlx.accounting.architecture import Architecture, mixture_layer
from mobilemoe_mlx.config import GROUP_SIZE, PRESETS, ModelArgs

# Published of S, M and L (docs/model.md): heads, vocabulary, context.
_HEAD_DIM, _KEY_VALUE_HEADS, _VOCABULARY, CONTEXT = 64, 4, 128256, 8192
FEED_FORWARD_RATIO = 4  # width of the dense feed-forward layer over the hidden size
SHARED_UNITS = 4  # active fine-grained experts that the one shared expert replaces

# A width of query heads that the four key/value heads divide.
WIDTH_STEP = _HEAD_DIM * _KEY_VALUE_HEADS


@dataclass(frozen=True)
class Shape:
    """One point of the design space, in the paper's symbols where it has them."""

    E: int  # expert equivalents of a dense feed-forward layer, in all
    k: int  # of them active for a token; E = k is a dense model
    g: int  # fine-grained experts that each is split into
    shared: bool  # four of the active fine-grained ones are fused into one that all tokens pass
    hidden_size: int
    layers: int

    @property
    def is_dense(self) -> bool:
        """Whether every token passes all of it."""
        return self.k == self.E

    @property
    def expert_width(self) -> int:
        """Features of one fine-grained expert."""
        return FEED_FORWARD_RATIO * self.hidden_size // self.g

    @property
    def shared_width(self) -> int:
        """Features of what all tokens pass: the shared expert, or the dense layer; 0: nothing."""
        if self.is_dense:
            return FEED_FORWARD_RATIO * self.hidden_size * self.k
        return SHARED_UNITS * self.expert_width * self.shared

    @property
    def routed(self) -> tuple[int, int]:
        """Routed experts, and how many of them a token selects."""
        if self.is_dense:
            return 0, 0
        fused = SHARED_UNITS * self.shared
        return self.g * self.E - fused, self.g * self.k - fused

    def architecture(self) -> Architecture:
        """What its cost is counted from."""
        experts, selected = self.routed
        layer = mixture_layer(
            hidden_size=self.hidden_size,
            query_features=self.hidden_size,
            key_value_features=_HEAD_DIM * _KEY_VALUE_HEADS,
            experts=experts,
            experts_per_token=selected,
            expert_width=self.expert_width,
            shared_width=self.shared_width,
        )
        return Architecture(
            vocab_size=_VOCABULARY,
            hidden_size=self.hidden_size,
            tied=True,
            max_position_embeddings=CONTEXT,
            attention_heads=self.hidden_size // _HEAD_DIM,
            key_value_heads=_KEY_VALUE_HEADS,
            layers=(layer,) * self.layers,
        )

    def model_args(self, like: ModelArgs = PRESETS["S"]) -> ModelArgs:
        """The configuration to build and train; what a shape does not say is as in `like`.

        Raises UserError for sizes that no model can have, by the name of config.json's field.
        """
        experts, selected = self.routed
        return dataclasses.replace(
            like,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            no_rope_layers=(),
            layer_types=(),
            num_attention_heads=self.hidden_size // like.head_dim,
            intermediate_size=self.expert_width if experts else 0,
            intermediate_size_mlp=self.shared_width,
            num_local_experts=experts,
            num_experts_per_tok=selected,
            # A single expert's score over itself is 1: its router would never learn.
            norm_topk_prob=like.norm_topk_prob and selected != 1,
        )

    def to_dict(self) -> dict[str, Any]:
        """Its six numbers as plain JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __str__(self) -> str:
        kind = "dense" if self.is_dense else f"g={self.g}{', shared' if self.shared else ''}"
        return f"E={self.E}, k={self.k}, {kind}, {self.layers} layers of {self.hidden_size}"


def can_share(k: int, g: int) -> bool:
    """Whether a shared expert leaves a routed one to be selected."""
    return g * k > SHARED_UNITS


def fits_groups(hidden_size: int, g: int) -> bool:
    """Whether the experts' width is made of whole INT4 groups."""
    return FEED_FORWARD_RATIO * hidden_size % (g * GROUP_SIZE) == 0
