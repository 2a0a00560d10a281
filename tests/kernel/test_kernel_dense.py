"""A dense decoder with sliding windows as a whole, against float64."""

from __future__ import annotations

import kernel_reference as reference
import numpy as np
import pytest
from kernel_library import Library
from kernel_reference import Packed, random_int4

from mobilemoe_mlx.cpu_kernel.library import Model, floats, tensor
from mobilemoe_mlx.cpu_kernel.structures import Config, Int4, LayerWeights, MoeWeights, Weights

VOCABULARY, D, WIDTH, HEADS, KV_HEADS, HEAD_DIM = 97, 64, 96, 4, 2, 16
WINDOWS = (0, 7, 20, 0)  # of each layer; 0: everything
EPS = 1e-5
LIMITS = {"exact": 1e-5, "int16": 2e-3, "int8": 8e-2}  # of the logits of four layers


class Dense:
    """Random weights, and what they make of tokens."""

    def __init__(self) -> None:
        rng = np.random.default_rng(11)
        q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
        shapes = {"q": (q, D), "k": (kv, D), "v": (kv, D), "o": (D, q)}
        shapes |= {"gate": (WIDTH, D), "up": (WIDTH, D), "down": (D, WIDTH)}
        # Logits of two tokens that are alike differ by their positions' angles alone.
        self.periods = (50.0 ** (np.arange(HEAD_DIM // 2) * 2 / HEAD_DIM)).astype(np.float32)
        self.embed = random_int4(rng, VOCABULARY, D)
        self.norm = self.random_norm(rng)
        self.layers = [
            {name: random_int4(rng, *shape) for name, shape in shapes.items()} for _ in WINDOWS
        ]
        self.norms = [(self.random_norm(rng), self.random_norm(rng)) for _ in WINDOWS]

    @staticmethod
    def random_norm(rng: np.random.Generator) -> np.ndarray:
        return np.exp(0.2 * rng.standard_normal(D)).astype(np.float32)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """float64 [tokens, vocabulary]."""
        at = np.arange(len(tokens))
        x = self.embed.values[tokens]
        for window, m, (before, after) in zip(WINDOWS, self.layers, self.norms, strict=True):
            h = reference.rms_norm(x, EPS) * before
            q, k, v = ((h @ m[name].values.T).reshape(len(tokens), -1, HEAD_DIM) for name in "qkv")
            q, k = (reference.rotate(part, at, self.periods) for part in (q, k))
            keys, values = (part.transpose(1, 0, 2) for part in (k, v))
            mixed = reference.attention(q, keys, values, 0, window)
            x = x + mixed.reshape(len(tokens), -1) @ m["o"].values.T
            h = reference.rms_norm(x, EPS) * after
            x = x + reference.swiglu(h, *(m[name].values.T for name in ("gate", "up", "down")))
        return (reference.rms_norm(x, EPS) * self.norm) @ self.embed.values.T

    def open(self, library: Library, precision: str, cpu_path: str) -> Model:
        """The kernel's model over the same weights."""

        def int4(packed: Packed) -> Int4:
            return Int4(tensor(packed.codes), tensor(packed.scales))

        layers = (LayerWeights * len(WINDOWS))()
        for layer, window, m, norms in zip(layers, WINDOWS, self.layers, self.norms, strict=True):
            layer.input_layernorm, layer.post_attention_layernorm = map(tensor, norms)
            for name in "qkvo":
                setattr(layer, f"{name}_proj", int4(m[name]))
            layer.feed_forward = MoeWeights(
                shared_gate=int4(m["gate"]),
                shared_up=int4(m["up"]),
                shared_down=int4(m["down"]),
            )
            layer.sliding_window = window
        config = Config(
            vocab_size=VOCABULARY,
            hidden_size=D,
            num_hidden_layers=len(WINDOWS),
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            intermediate_size_mlp=WIDTH,
            rms_norm_eps=EPS,
            routed_scaling_factor=1,
            rope_periods=floats(self.periods),
        )
        weights = Weights(int4(self.embed), tensor(self.norm), layers)
        return Model(library.runtime(precision, 2, cpu_path), config, weights, (self, layers))


@pytest.fixture(scope="module")
def dense() -> Dense:
    return Dense()


@pytest.mark.parametrize("precision", LIMITS)
def test_logits_are_those_of_float64(
    library: Library, cpu_path: str, dense: Dense, precision: str
) -> None:
    """Prefill and decode, across windows and blocks of the cache."""
    tokens = np.random.default_rng(3).integers(0, VOCABULARY, 300).astype(np.int32)
    wanted = dense.logits(tokens)
    session = dense.open(library, precision, cpu_path).session(len(tokens), block=50)
    cuts = [1, 2, 40, 270, 271, 272]
    logits = [session.feed(part, all_logits=True) for part in np.split(tokens, cuts)]
    assert reference.relative_error(np.concatenate(logits), wanted) < LIMITS[precision]
