"""llama.cpp on a random model of a checkpoint's sizes, as a process that `measure.py` starts.

Runs in any Python that has `llama-cpp-python` and `gguf`; imports nothing of this package. It
speaks as `worker.py` does. argument: {"shape": sizes by config.json's names (`contenders.py`),
"threads": n, "context": n}
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

ARCHITECTURE = "qwen2moe"  # the nearest that llama.cpp knows: a shared expert beside routed ones
BLOCK_BYTES = 18  # of Q4_0: a float16 scale and 32 nibbles
BATCH = 2048  # most tokens of a call


def q4_0(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random weights [..., columns] as Q4_0 bytes; values of mean 0, as in our random model."""
    blocks = np.prod(shape, dtype=int) // 32
    data = np.empty((blocks, BLOCK_BYTES), np.uint8)
    scales = rng.uniform(0.5 / 32, 1.5 / 32, blocks).astype(np.float16)
    data[:, :2] = scales.view(np.uint8).reshape(-1, 2)
    pairs = rng.integers(0, 225, (blocks, 16), np.uint8)
    data[:, 2:] = (pairs % 15 + 1) | (pairs // 15 + 1) << 4  # nibbles 1 to 15: values -7 to 7
    return data.reshape(*shape[:-1], shape[-1] // 32 * BLOCK_BYTES)


def write_model(path: Path, shape: dict[str, int]) -> None:
    """A GGUF of ARCHITECTURE with random weights and the sizes of `shape`."""
    vocabulary, hidden = shape["vocab_size"], shape["hidden_size"]
    heads, kv_heads, head_dim = (
        shape[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    experts, width = shape["num_local_experts"], shape["intermediate_size"]
    shared = shape["intermediate_size_mlp"]
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_vocab_size(vocabulary)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(shape["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(width)
    writer.add_expert_shared_feed_forward_length(shared)
    writer.add_tokenizer_model("none")

    def packed(name: str, *size: int) -> None:
        writer.add_tensor(name, q4_0(rng, *size), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def floats(name: str, *size: int, value: float | None = None) -> None:
        random = rng.uniform(-0.05, 0.05, size)
        array = random if value is None else np.full(size, value)
        writer.add_tensor(name, array.astype(np.float32))

    packed("token_embd.weight", vocabulary, hidden)
    # This architecture has no tied head: more of file and memory, of which nothing is read twice.
    packed("output.weight", vocabulary, hidden)
    floats("output_norm.weight", hidden, value=1)
    for layer in range(shape["num_hidden_layers"]):
        at = f"blk.{layer}"
        floats(f"{at}.attn_norm.weight", hidden, value=1)
        for name, rows in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            packed(f"{at}.attn_{name}.weight", rows * head_dim, hidden)
            floats(f"{at}.attn_{name}.bias", rows * head_dim, value=0)
        packed(f"{at}.attn_output.weight", hidden, heads * head_dim)
        floats(f"{at}.ffn_norm.weight", hidden, value=1)
        floats(f"{at}.ffn_gate_inp.weight", experts, hidden)
        packed(f"{at}.ffn_gate_exps.weight", experts, width, hidden)
        packed(f"{at}.ffn_up_exps.weight", experts, width, hidden)
        packed(f"{at}.ffn_down_exps.weight", experts, hidden, width)
        floats(f"{at}.ffn_gate_inp_shexp.weight", hidden)
        packed(f"{at}.ffn_gate_shexp.weight", shared, hidden)
        packed(f"{at}.ffn_up_shexp.weight", shared, hidden)
        packed(f"{at}.ffn_down_shexp.weight", hidden, shared)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Rival:
    """A loaded model and its context."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Raises RuntimeError with llama.cpp's words when it refuses the model."""
        self.said: list[str] = []  # told only when it refuses the model
        self._log = llama_cpp.llama_log_callback(
            lambda _, text, __: self.said.append(text.decode())
        )
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, BATCH, 512
        settings.n_threads = settings.n_threads_batch = threads
        self.context = self.model and llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise RuntimeError(f"llama.cpp refused the model: {' '.join(self.said[-3:]).strip()}")

    def clear(self) -> None:
        """Forget all tokens."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def feed(self, ids: list[int]) -> None:
        """Append tokens and compute the logits after them."""
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            tokens = (llama_cpp.llama_token * len(part))(*part)
            batch = llama_cpp.llama_batch_get_one(tokens, len(part))
            if llama_cpp.llama_decode(self.context, batch):
                raise RuntimeError("llama.cpp could not decode.")
        llama_cpp.llama_synchronize(self.context)


def main() -> int:
    """Serve requests until standard input ends."""
    asked = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "rival.gguf"
        # By a process of its own, since the peak of this one's memory is measured.
        writer = multiprocessing.get_context("spawn").Process(
            target=write_model, args=(model, asked["shape"])
        )
        writer.start()
        writer.join()
        if writer.exitcode:
            say({"error": f"the random GGUF could not be written (status {writer.exitcode})"})
            return 2
        try:  # a model that is loaded stays when its file is gone
            rival = Rival(model, asked["threads"], asked["context"])
        except RuntimeError as error:
            say({"error": str(error)})
            return 2
    version = llama_cpp.__version__
    say(
        {
            "description": "another architecture of the same shape, random weights "
            f"({ARCHITECTURE}, Q4_0, llama-cpp-python {version}, {asked['threads']} threads)"
        }
    )
    for line in sys.stdin:
        request = json.loads(line)
        tokens, prompt = request["tokens"], request["prompt"]
        rival.clear()
        start = time.perf_counter()
        rival.feed(tokens[:prompt])
        first = time.perf_counter()
        for token in tokens[prompt:]:
            rival.feed([token])
        say(
            {
                "first_token_seconds": first - start,
                "decode_seconds": time.perf_counter() - first,
                "peak_bytes": peak_bytes(),
                "touched_bytes": None,
            }
        )
    return 0


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def say(answer: dict[str, Any]) -> None:
    """One line."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.exit(main())
