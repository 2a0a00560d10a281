"""llama.cpp on a random model of S's shape: the rival of benchmarks/cpu_kernel.py, which starts it.

Runs where `llama-cpp-python` and `gguf` are installed; needs nothing of this package. For each line
on standard input one round is timed and printed as a line of JSON.
Run: python benchmarks/llama_cpp_rival.py model.gguf --threads 2
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import sys
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 128256, 768, 20, 12, 4, 64
EXPERTS, SLOTS, WIDTH, SHARED = 60, 4, 384, 1536
BLOCK_BYTES = 18  # of Q4_0: a float16 scale and 32 nibbles
DECODE_TOKENS = 32


def q4_0(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random weights [..., columns] as Q4_0 bytes; values of mean 0, as in our random model."""
    blocks = np.prod(shape, dtype=int) // 32
    data = np.empty((blocks, BLOCK_BYTES), np.uint8)
    scales = rng.uniform(0.5 / 32, 1.5 / 32, blocks).astype(np.float16)
    data[:, :2] = scales.view(np.uint8).reshape(-1, 2)
    pairs = rng.integers(0, 225, (blocks, 16), np.uint8)
    data[:, 2:] = (pairs % 15 + 1) | (pairs // 15 + 1) << 4  # nibbles 1 to 15: values -7 to 7
    return data.reshape(*shape[:-1], shape[-1] // 32 * BLOCK_BYTES)


def write_model(path: Path) -> None:
    """A GGUF of the nearest architecture that llama.cpp knows, of exactly S's sizes."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "qwen2moe")
    writer.add_block_count(LAYERS)
    writer.add_context_length(8192)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(SLOTS)
    writer.add_expert_feed_forward_length(WIDTH)
    writer.add_expert_shared_feed_forward_length(SHARED)
    writer.add_tokenizer_model("none")

    def packed(name: str, *shape: int) -> None:
        writer.add_tensor(name, q4_0(rng, *shape), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def floats(name: str, *shape: int, value: float | None = None) -> None:
        random = rng.uniform(-0.05, 0.05, shape)
        array = random if value is None else np.full(shape, value)
        writer.add_tensor(name, array.astype(np.float32))

    packed("token_embd.weight", VOCABULARY, HIDDEN)
    # This architecture has no tied head: 55 MB more of file and memory, none of them read twice.
    packed("output.weight", VOCABULARY, HIDDEN)
    floats("output_norm.weight", HIDDEN, value=1)
    for layer in range(LAYERS):
        at = f"blk.{layer}"
        floats(f"{at}.attn_norm.weight", HIDDEN, value=1)
        for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            packed(f"{at}.attn_{name}.weight", rows * HEAD_DIM, HIDDEN)
            floats(f"{at}.attn_{name}.bias", rows * HEAD_DIM, value=0)
        packed(f"{at}.attn_output.weight", HIDDEN, HEADS * HEAD_DIM)
        floats(f"{at}.ffn_norm.weight", HIDDEN, value=1)
        floats(f"{at}.ffn_gate_inp.weight", EXPERTS, HIDDEN)
        packed(f"{at}.ffn_gate_exps.weight", EXPERTS, WIDTH, HIDDEN)
        packed(f"{at}.ffn_up_exps.weight", EXPERTS, WIDTH, HIDDEN)
        packed(f"{at}.ffn_down_exps.weight", EXPERTS, HIDDEN, WIDTH)
        floats(f"{at}.ffn_gate_inp_shexp.weight", HIDDEN)
        packed(f"{at}.ffn_gate_shexp.weight", SHARED, HIDDEN)
        packed(f"{at}.ffn_up_shexp.weight", SHARED, HIDDEN)
        packed(f"{at}.ffn_down_shexp.weight", HIDDEN, SHARED)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Rival:
    """A loaded model and its context."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self.said: list[str] = []  # told only when it refuses the model
        self._log = llama_cpp.llama_log_callback(
            lambda _, text, __: self.said.append(text.decode())
        )
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self.model:
            raise SystemExit(f"llama.cpp did not load {path}:\n{''.join(self.said[-8:])}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, 2048, 512
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit(f"llama.cpp made no context for {path}:\n{''.join(self.said[-8:])}")
        self.position = 0

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.position = 0

    def feed(self, count: int) -> float:
        """Seconds that the next `count` tokens take."""
        ids = [(self.position + i) * 7919 % VOCABULARY for i in range(count)]
        tokens = (llama_cpp.llama_token * count)(*ids)
        start = time.perf_counter()
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(tokens, count)):
            raise SystemExit("llama.cpp could not decode.")
        llama_cpp.llama_synchronize(self.context)
        self.position += count
        return time.perf_counter() - start


def main() -> int:
    """Time one round for each line that comes in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="the GGUF; written if it is not there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contexts", default="0,1024")
    parser.add_argument("--prompts", default="512,1024")
    options = parser.parse_args()
    if not options.model.exists():
        temporary = options.model.with_suffix(".part")
        write_model(temporary)
        temporary.rename(options.model)
    contexts = [int(n) for n in options.contexts.split(",")]
    prompts = [int(n) for n in options.prompts.split(",")]
    rival = Rival(options.model, options.threads, max(*prompts, max(contexts) + 64))
    version = {"engine": "llama.cpp", "llama_cpp_python": llama_cpp.__version__}
    for _ in sys.stdin:
        found: dict[str, object] = dict(version)
        for prompt in prompts:
            rival.clear()
            found[f"prefill_{prompt}"] = prompt / rival.feed(prompt)
        for context in contexts:
            rival.clear()
            if context:
                rival.feed(context)
            rival.feed(1)
            seconds = sum(rival.feed(1) for _ in range(DECODE_TOKENS))
            found[f"decode_{context}"] = DECODE_TOKENS / seconds
        found["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
