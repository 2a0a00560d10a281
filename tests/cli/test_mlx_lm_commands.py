"""mlx-lm's server and evaluation harness on a converted folder (`generate`: test_convert)."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from mobilemoe_mlx import load
from mobilemoe_mlx.checkpoint.rewrite import convert


@pytest.fixture(scope="module")
def mlx_folder(tmp_path_factory: pytest.TempPathFactory, bf16_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("mlx") / "model"
    convert(bf16_folder, folder, to="mlx")
    return folder


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_the_server_answers_a_chat(mlx_folder: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(mlx_folder)]
    command += ["--trust-remote-code", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        body = {"messages": [{"role": "user", "content": "indent"}], "max_tokens": 5}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    answer = json.load(response)
                break
            except urllib.error.URLError:
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.5)
        assert answer["usage"]["completion_tokens"] >= 1
        assert answer["choices"][0]["message"]["role"] == "assistant"
    finally:
        server.kill()
        server.wait()


def test_the_evaluation_harness_scores_as_we_do(mlx_folder: Path) -> None:
    """Needs `pip install lm-eval`, which mlx_lm.evaluate asks for as well."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from mlx_lm.evaluate import MLXLM

    pairs = [("def indent(text):", "\n    return text"), ("import re", "\nimport sys")]
    harness = MLXLM(str(mlx_folder), trust_remote_code=True)
    scores = harness.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs])
    model, tokenizer = load(mlx_folder, dtype=mx.bfloat16)
    for (context, continuation), (score, _) in zip(pairs, scores, strict=True):
        start = len(tokenizer.encode(context, add_special_tokens=False))
        tokens = tokenizer.encode(context + continuation, add_special_tokens=False)
        logits = model(mx.array([tokens])).astype(mx.float32)
        chosen = nn.log_softmax(logits, axis=-1)[0]
        ours = sum(chosen[i - 1, tokens[i]].item() for i in range(start, len(tokens)))
        # bfloat16: with and without a cache the sums round differently.
        assert score == pytest.approx(ours, rel=1e-2)
