"""The Swift package's own tests, and its numbers against MLX's and ours."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mobilemoe_mlx.checkpoint.random_weights import write_random_checkpoint
from mobilemoe_mlx.config import ModelArgs, RopeScaling
from mobilemoe_mlx.engines import open_engine
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.generation_options import GenerationOptions
from mobilemoe_mlx.sampling import Sampler

SwiftTest = Callable[..., str]

ROOT = Path(__file__).parents[2]


def test_its_own_tests(swift_test: SwiftTest) -> None:
    swift_test()


def shape(**sizes: Any) -> ModelArgs:
    """One layer of the smallest sizes, but for `sizes`."""
    smallest = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "intermediate_size": 32,
        "intermediate_size_mlp": 32,
        "num_local_experts": 1,
        "num_experts_per_tok": 1,
        "vocab_size": 37,
        "max_position_embeddings": 128,
        "rope_scaling": None,
        "bos_token_id": None,
        "eos_token_id": (),
    }
    return ModelArgs(**{**smallest, **sizes})


SHAPES = {
    "smallest": shape(),
    "a head of 2": shape(num_attention_heads=16, num_key_value_heads=2, head_dim=2),
    "many experts": shape(
        hidden_size=96,
        num_hidden_layers=3,
        num_local_experts=33,
        num_experts_per_tok=7,
        vocab_size=301,
    ),
    "all experts": shape(num_local_experts=5, num_experts_per_tok=5, intermediate_size=96),
    "dense": shape(num_local_experts=0, num_experts_per_tok=0, intermediate_size=0),
    "without a shared expert": shape(
        num_local_experts=4, num_experts_per_tok=2, intermediate_size_mlp=0
    ),
    "plain": shape(
        num_hidden_layers=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        use_qk_norm=False,
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
        rms_norm_eps=1e-3,
    ),
    "stretched": shape(
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=48,
        num_local_experts=3,
        num_experts_per_tok=2,
        rope_scaling=RopeScaling("llama3", 4.0, 64, 1.0, 4.0),
        rope_theta=1000.0,
        max_position_embeddings=256,
    ),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, int4_folder: Path) -> Path:
    """Folders with a checkpoint, the tokens that it is fed, and MLX's logits and greedy tokens."""
    home = tmp_path_factory.mktemp("swift")
    folders = {"tiny": int4_folder}
    for seed, (name, args) in enumerate(SHAPES.items()):
        folders[name] = home / f"{name} (checkpoint)"
        shards = {"max_shard_bytes": 20_000} if args.num_hidden_layers > 2 else {}
        write_random_checkpoint(folders[name], args, seed=seed, quantized=True, **shards)
    assert len(list(folders["many experts"].glob("*.safetensors"))) > 1
    for name, folder in folders.items():
        engine = open_engine(folder, "mlx")
        rng = np.random.default_rng(len(name))
        tokens = rng.integers(0, engine.args.vocab_size, 70).tolist()
        session = engine.session()
        logits = session.feed(tokens, all_logits=True)
        session.rewind(9)
        greedy = [int(logits[8].argmax())]
        while len(greedy) < 12:
            greedy.append(int(session.feed(greedy[-1:])[-1].argmax()))
        case = home / name
        case.mkdir()
        logits.astype("<f4").tofile(case / "logits.bin")
        content = {"folder": str(folder), "tokens": tokens, "greedy": greedy, "prompt": 9}
        (case / "case.json").write_text(json.dumps(content), encoding="utf-8")
    return home


def test_logits_are_those_of_mlx(cases: Path, swift_test: SwiftTest) -> None:
    swift_test("AgainstMLXTests", MOBILEMOE_CASES=str(cases))


def test_greedy_tokens_are_those_of_mlx(cases: Path, run_program: Callable[..., Any]) -> None:
    found = [*cases.glob("*/case.json")]
    assert len(found) == 1 + len(SHAPES)
    for path in found:
        case = json.loads(path.read_text(encoding="utf-8"))
        ids = ",".join(map(str, case["tokens"][: case["prompt"]]))
        line = ["generate", case["folder"], "--token-ids", ids, "--max-tokens", "12"]
        done = run_program(*line, "--precision", "exact", "--ignore-eos", "--print-ids")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == ",".join(map(str, case["greedy"])), path


# Each is put in the place of a field's value.
VALUES = [
    None, True, False, -1, 0, 1, 2, 3, 32, 64, 1.5, 1e400, 2**31, 2**70, "", "silu", "bfloat16",
    "full_attention", [], [1], [1, 1], [0, 1], [1, 1, 1], ["full_attention"] * 2, {}, {"a": 1},
]  # fmt: skip
# Fields that may be added, with values of both kinds.
ADDED: dict[str, list[Any]] = {
    "dtype": ["bfloat16", "torch.bfloat16", "float16", 3],
    "mlp_bias": [False, 0, True],
    "sliding_window": [None, 128, 256, 300],
    "attention_chunk_size": [8192, 12],
    "query_pre_attn_scalar": [16, 64],
    "num_experts": [7, 8],
    "norm_eps": [1e-5, 1e-6],
    "moe_layers": [[0, 1], [1]],
    "no_rope_layer_interval": [4],
    "n_group": [1, 2],
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 500000.0},
        {"full_attention": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_type": "yarn"},
        {"type": "llama3", "factor": 16.0},
    ],
    "original_max_position_embeddings": [8192, 4096, 256],
    "quantization_config": [{"bits": 4}, {}],
    "note": ["a description", 3, ["a"]],
    "activation": ["gelu", "quick"],
    "hiden_size": [64, 65],
    "_private": [3],
    "id2label": [{"0": "a"}],
}


def configs(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """`config` with one thing changed."""
    yield config
    for name in config:
        yield {n: v for n, v in config.items() if n != name}
        for value in VALUES:
            yield {**config, name: value}
        for inside in config[name] if isinstance(config[name], dict) else ():
            block = {n: v for n, v in config[name].items() if n != inside}
            yield {**config, name: block}
            for value in (*VALUES, 8192, 16, "llama3", "default", "in", "in dim", "float32"):
                yield {**config, name: {**block, inside: value}}
            yield {**config, name: {**config[name], f"{inside}_": 1}}
    for name, values in ADDED.items():
        for value in values:
            yield {**config, name: value}
            yield {n: v for n, v in config.items() if n != "rope_scaling"} | {name: value}


def test_configurations_are_judged_alike(
    tmp_path: Path, tiny_args: ModelArgs, swift_test: SwiftTest
) -> None:
    lines = []
    verdicts = [0, 0]
    for config in configs(copy.deepcopy(tiny_args.to_dict() | _quantized())):
        # Written as Python writes it: 1e400 is Infinity, which is no JSON.
        text = json.dumps(config)
        if "Infinity" in text or '"bits": 4' in text:
            continue
        try:
            ModelArgs.from_dict(config)
            accepted = True
        except UserError:
            accepted = False
        verdicts[accepted] += 1
        lines.append(json.dumps({"config": config, "accepted": accepted}))
    assert verdicts[0] > 500 and verdicts[1] > 50
    (tmp_path / "configs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    swift_test("ConfigurationTests", MOBILEMOE_CONFIGS=str(tmp_path / "configs.jsonl"))


def _quantized() -> dict[str, Any]:
    from mobilemoe_mlx.config import INT4_QUANTIZATION

    return {"quantization": dict(INT4_QUANTIZATION)}


def test_tokens_are_drawn_with_the_same_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swift_test: SwiftTest
) -> None:
    scores: list[np.ndarray] = []

    def categorical(found: mx.array) -> mx.array:
        scores.append(np.asarray(found[0], np.float64))
        return mx.array([0])

    monkeypatch.setattr(mx.random, "categorical", categorical)
    rng = np.random.default_rng(2)
    lines = []
    for number in range(60):
        size = int(rng.choice([5, 50, 2000]))
        logits = (rng.standard_normal(size) * rng.choice([0.5, 3, 10])).astype(np.float32)
        options = {
            "temperature": float(rng.choice([0.3, 1.0, 2.0])),
            "top_p": float(rng.choice([1.0, 0.9, 0.4])),
            "top_k": int(rng.choice([0, 1, 4, 40])),
            "min_p": float(rng.choice([0.0, 0.05])),
            "repetition_penalty": float(rng.choice([1.0, 1.3])),
        }
        history = rng.integers(0, size, 30).tolist()
        Sampler(GenerationOptions(**options), size).choose(history, logits)
        weights = np.exp(scores[number] - scores[number].max())
        expected = (weights / weights.sum()).tolist()
        case = {**options, "history": history, "logits": logits.tolist(), "expected": expected}
        lines.append(json.dumps(case))
    (tmp_path / "cases.jsonl").write_text("\n".join(lines), encoding="utf-8")
    swift_test("ProbabilityTests", MOBILEMOE_PROBABILITIES=str(tmp_path / "cases.jsonl"))


@pytest.mark.parametrize("document", ["README.md", "docs/ios.md"])
def test_the_code_in_the_documents_compiles(
    document: str, tmp_path: Path, swift: str, program: Path
) -> None:
    page = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- of the package -->\n```swift\n(.*?)^```", page, re.M | re.S)
    assert blocks
    for number, block in enumerate(blocks):
        lines = [line for line in block.splitlines() if not line.startswith("import ")]
        body = "\n".join(f"    {line}" for line in lines)
        (tmp_path / f"{number}.swift").write_text(
            "import Foundation\nimport MobileMoE\n"
            f"func block{number}(folder: URL) async throws {{\n{body}\n}}\n",
            encoding="utf-8",
        )
    kernel = program.parent / "MobileMoEKernel.build" / "module.modulemap"
    modules = ["-I", program.parent / "Modules", "-Xcc", f"-fmodule-map-file={kernel}"]
    command = [Path(swift).with_name("swiftc"), "-typecheck", "-swift-version", "6", *modules]
    done = subprocess.run(
        [*command, *tmp_path.glob("*.swift")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
