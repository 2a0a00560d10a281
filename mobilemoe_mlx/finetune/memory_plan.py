"""What memory a run will take, part by part, from its recipe and the model's shape alone.

The counts of arrays are those of the code that they name. benchmarks/finetune_memory.py prints what
is predicted beside what MLX measures; tests/finetune/test_memory_plan.py holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

from mobilemoe_mlx import text_table
from mobilemoe_mlx.config import GROUP_SIZE, ModelArgs
from mobilemoe_mlx.experts import padded_rows
from mobilemoe_mlx.finetune.machine_memory import MOST_CACHE, MachineMemory, cache_bound
from mobilemoe_mlx.finetune.recipe import FinetuneConfig
from mobilemoe_mlx.finetune.trained_shapes import TrainedShapes, trained_shapes
from mobilemoe_mlx.linux_cpu.attention import scores_kept

_FLOAT32 = 4
_KEPT = 25_000_000  # by the C library and by threads, beside MLX's cache
_INT4 = 0.5 + 2 * 2 / GROUP_SIZE  # bytes of a packed weight: its code, a float16 scale and bias


@dataclass(frozen=True)
class MemoryPlan:
    """The largest moment of a step. `parts`: its bytes by what they are for; `peak`: their sum.

    `moment` says which it is; `others` the peaks of the other moments; `largest` the bytes of the
    largest array that a step makes.
    """

    what: str
    moment: str
    largest: int
    parts: dict[str, int]
    others: dict[str, int]

    @property
    def peak(self) -> int:
        """Bytes that MLX holds at that moment."""
        return sum(self.parts.values())

    @property
    def limit(self) -> int:
        """Bytes beyond which MLX must not run ahead: one more array, and it is at its peak."""
        return self.peak - self.largest

    @property
    def cache(self) -> int:
        """Bytes of freed arrays that are kept at most."""
        return cache_bound(self.peak)

    def process(self, before: int) -> int:
        """Bytes of the whole process at most, which holds `before` when no model is loaded yet:
        Python, libraries and data."""
        return before + self.peak + int(MOST_CACHE * self.peak) + _KEPT

    def short(self, machine: MachineMemory, before: int) -> str:
        """One sentence for the start of a run; `before`: see `process`."""
        largest = sorted(self.parts, key=lambda name: -self.parts[name])[:3]
        named = ", ".join(f"{name} {text_table.size(self.parts[name])}" for name in largest)
        return (
            f"A step takes {text_table.size(self.peak)} of memory at most ({named}), the process "
            f"with Python, libraries and data {text_table.size(self.process(before))}; "
            f"{machine.what} is {text_table.size(machine.bytes)}."
        )

    def text(self, machine: MachineMemory, before: int) -> str:
        """For people: a line for each part; `before`: see `process`."""
        rows = {name: text_table.size(size) for name, size in self.parts.items() if size}
        rows["in all, at most"] = text_table.size(self.peak)
        rows["Python, libraries, data"] = text_table.size(before)
        rows["the whole process, at most"] = text_table.size(self.process(before))
        rows["MLX's cache beside it"] = f"{text_table.size(self.cache)} at most"
        rows[machine.what] = text_table.size(machine.bytes)
        lines = [f"Memory of {self.what}, when it is highest ({self.moment}):"]
        lines.append(text_table.labelled(rows))
        lines += [
            f"At another moment ({name}) it is {text_table.size(size)}."
            for name, size in self.others.items()
        ]
        if machine.advice:
            lines.append(f"To have more: {machine.advice}.")
        return "\n".join(lines)


def plan_memory(args: ModelArgs, config: FinetuneConfig, *, on_cpu: bool) -> MemoryPlan:
    """Predict the memory of a run with the base `args`; nothing is loaded or allocated.

    `on_cpu`: MLX's CPU backend on Linux, whose forms of attention and of the experts are others
    than the GPU's.
    """
    step = _Step(args, config, on_cpu)
    held = step.held()
    moments = {
        "the loss": {**held, **step.at_the_loss()},
        "the gradient of a layer": {**held, **step.at_a_layer()},
        "the optimiser's step": {**held, **step.at_the_update()},
    }
    sums = {name: sum(parts.values()) for name, parts in moments.items()}
    highest = max(sums, key=lambda name: sums[name])
    return MemoryPlan(
        what=f"{config.method}, {step.rows} x {config.data.context:,} positions at a time",
        moment=highest,
        largest=round(step.largest_array()),
        parts={name: round(size) for name, size in moments[highest].items()},
        others={name: round(size) for name, size in sums.items() if name != highest},
    )


class _Step:
    """The arrays of one step, by what they are for, in bytes."""

    def __init__(self, args: ModelArgs, config: FinetuneConfig, on_cpu: bool) -> None:
        self.args, self.config, self.on_cpu = args, config, on_cpu
        self.shapes: TrainedShapes = trained_shapes(args, config)
        self.rows = config.rows_at_a_time
        self.tokens = self.rows * config.data.context
        self.size = _FLOAT32 if config.compute.dtype == "float32" else 2
        self.is_packed = args.quantized and config.adapter is not None
        self.fused_experts = config.adapter is None and config.experts is None

    # --- what is there all the time -----------------------------------------------------------

    def held(self) -> dict[str, float]:
        trained, config = self.shapes.trained, self.config
        whole = self.fused_experts
        masters = trained * (2 if config.weights == "bfloat16" else _FLOAT32)
        name = "trained weights" if config.adapter is None else "adapters"
        packed = self.shapes.packed * (_INT4 if self.is_packed else self.size)
        frozen = 0.0 if whole else packed + self.shapes.unpacked * self.size
        return {"frozen weights": frozen, name: masters, "optimiser": 2 * _FLOAT32 * trained}

    # --- the moments --------------------------------------------------------------------------

    def at_the_loss(self) -> dict[str, float]:
        args, config = self.args, self.config
        chunk = min(config.compute.loss_chunk, self.tokens)
        # Logits, and of their exponentials the power of two and the rest (softmax_parts); with
        # adapters on a float base one more was measured.
        more = config.adapter is not None and not self.is_packed
        logits = (4 if more else 3) * chunk * args.vocab_size * _FLOAT32
        matrix = args.vocab_size * args.hidden_size * _FLOAT32
        embedding = 0.0
        if self.fused_experts:
            embedding = 2.3 * matrix  # its gradient: the sum, and a chunk's part of it
        elif self.is_packed:
            embedding = matrix  # unpacked
        return {
            **self._kept(),
            **self._forward_form(),
            "logits": logits,
            "the output matrix": embedding,
        }

    def at_a_layer(self) -> dict[str, float]:
        return {
            **self._kept(),
            **self._forward_form(),
            "one layer's gradient": self._layer_working(),
            "gradients": _FLOAT32 * self.shapes.trained,
        }

    def at_the_update(self) -> dict[str, float]:
        # The new values and moments, beside the old ones and the gradients.
        return {"gradients and new values": 3 * _FLOAT32 * self.shapes.trained}

    def largest_array(self) -> float:
        """Bytes of the largest array that a step makes."""
        args, chunk = self.args, min(self.config.compute.loss_chunk, self.tokens)
        expert_rows = args.num_local_experts * args.hidden_size * 2 * args.intermediate_size
        embedding = args.vocab_size * args.hidden_size
        made = [chunk * args.vocab_size, expert_rows]
        if self.fused_experts or self.is_packed:
            made.append(embedding)
        return _FLOAT32 * max(made)

    # --- activations --------------------------------------------------------------------------

    def _forward_form(self) -> dict[str, float]:
        if self.config.quantize:
            return {"weights rounded to INT4": _FLOAT32 * self.shapes.trained}
        if self.fused_experts and self.size != _FLOAT32:
            return {"weights in the compute type": self.size * self.shapes.trained}
        return {}

    def _kept(self) -> dict[str, float]:
        """What the layers keep for the backward pass."""
        args = self.args
        layers = args.num_hidden_layers
        routing = 3 * self.tokens * args.num_local_experts * _FLOAT32
        each: float = self.tokens * args.hidden_size * self.size + routing
        if not self.config.compute.activation_checkpointing:
            each = self._layer_kept()
        return {f"activations, {layers} layers": layers * each}

    def _layer_kept(self) -> float:
        args, config, tokens = self.args, self.config, self.tokens
        hidden, width, shared = args.hidden_size, args.intermediate_size, args.intermediate_size_mlp
        queries, keys = args.query_dim, args.key_value_dim
        pairs = tokens * args.num_experts_per_tok
        rows = padded_rows(pairs, args.num_local_experts, on_cpu=self.on_cpu)
        numbers: float = 4 * tokens * hidden  # the stream before both blocks, and its norms
        numbers += 4 * tokens * (queries + keys)  # as projected, turned, normed, and attention's
        numbers += 4 * tokens * shared  # gate, up, sigmoid(gate), and their product
        numbers += rows * (hidden + 4 * width)  # the same of the routed experts, and their input
        if not self.fused_experts:
            numbers += pairs * hidden  # each expert's answer, which is weighted
        if (adapter := config.adapter) is not None:
            per_row = {"experts": 2 * rows, "attention": 4 * tokens, "shared_expert": 3 * tokens}
            numbers += adapter.rank * sum(per_row.get(name, tokens) for name in adapter.modules)
            if adapter.kind == "dora":  # what is scaled
                numbers += rows * (2 * width + hidden) + tokens * (2 * shared + hidden)
                numbers += tokens * (queries + 2 * keys + hidden)
        scores: float = 0.0
        if self.on_cpu and self.size == _FLOAT32:
            scores = self.rows * args.num_attention_heads * scores_kept(config.data.context)
        routing = 3 * tokens * args.num_local_experts
        return self.size * numbers + _FLOAT32 * (scores + routing)

    def _layer_working(self) -> float:
        """What the gradient of a layer makes; with checkpointing also its inner values again."""
        args = self.args
        pairs = self.tokens * args.num_experts_per_tok
        rows = padded_rows(pairs, args.num_local_experts, on_cpu=self.on_cpu)
        numbers = rows * (1.6 * args.hidden_size + 1.5 * args.intermediate_size)
        again = self._layer_kept() if self.config.compute.activation_checkpointing else 0.0
        return again + self.size * numbers + self._expert_copies()

    def _expert_copies(self) -> float:
        """Copies of a layer's experts: unpacked, rounded, or laid out for another product."""
        args, config = self.args, self.config
        matrix = args.num_local_experts * args.hidden_size * args.intermediate_size * _FLOAT32
        if config.adapter is not None and config.adapter.through_int4:
            return 9 * matrix
        return (3 if self.is_packed else 2) * matrix
