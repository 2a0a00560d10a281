"""Conversations: the same answers as without a cache, and a loop that people can interrupt."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper

from mobilemoe_mlx import chat
from mobilemoe_mlx.chat import Conversation
from mobilemoe_mlx.cli import main
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.engines import engine as engines
from mobilemoe_mlx.engines.mlx import MLXEngine
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.generate import Statistics, Step, stream
from mobilemoe_mlx.generation_options import GenerationOptions
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.tokenizer import load_tokenizer

OPTIONS = GenerationOptions(max_tokens=8)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> TokenizerWrapper:
    return load_tokenizer(tokenizer_folder)


@pytest.fixture(scope="module")
def engine(tiny_args: ModelArgs) -> MLXEngine:
    mx.random.seed(7)
    return MLXEngine(Model(tiny_args))


@pytest.fixture
def conversation(engine: MLXEngine, tokenizer: TokenizerWrapper) -> Conversation:
    return Conversation(engine, tokenizer, OPTIONS)


def answered(items: Iterator[Step | Statistics]) -> tuple[str, Statistics]:
    *steps, statistics = items
    assert isinstance(statistics, Statistics)
    return "".join(step.text for step in steps if isinstance(step, Step)), statistics


def without_cache(c: Conversation, messages: list[dict[str, str]]) -> tuple[str, Statistics]:
    prompt = c.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return answered(stream(c.session.engine.session(), c.tokenizer, prompt, c.options))


def lines(*texts: str) -> Callable[[], str | None]:
    queue = list(texts)
    return lambda: queue.pop(0) if queue else None


def talk(conversation: Conversation, *texts: str) -> tuple[str, str]:
    output, notes = io.StringIO(), io.StringIO()
    chat.run(conversation, lines(*texts), output, notes)
    return output.getvalue(), notes.getvalue()


# Conversations


@pytest.mark.parametrize(
    "options",
    [OPTIONS, GenerationOptions(max_tokens=8, temperature=1.0, seed=5, stop=("e",))],
    ids=["greedy", "sampled"],
)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_cache_changes_no_answer(
    engine: MLXEngine, tokenizer: TokenizerWrapper, options: GenerationOptions, system: str | None
) -> None:
    c = Conversation(engine, tokenizer, options, system)
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question in ("Hello, who are you?", "def", " two  spaces\nand a line"):
        messages.append({"role": "user", "content": question})
        expected, fresh = without_cache(c, messages)
        answer, statistics = answered(c.ask(question))
        assert answer == expected
        if len(messages) > 2:
            assert statistics.prompt_tokens < fresh.prompt_tokens / 2
        messages.append({"role": "assistant", "content": answer})
        assert c.messages == messages
    assert c.session.position == len(c._fed)


def test_reset_forgets_all_but_the_system_message(
    engine: MLXEngine, tokenizer: TokenizerWrapper
) -> None:
    c = Conversation(engine, tokenizer, OPTIONS, "Be brief.")
    first, _ = answered(c.ask("one"))
    answered(c.ask("two"))
    c.reset()
    assert c.messages == [{"role": "system", "content": "Be brief."}]
    assert answered(c.ask("one"))[0] == first


def test_a_turn_that_is_closed_keeps_what_was_said(conversation: Conversation) -> None:
    turn = conversation.ask("Tell me a story")
    said = [next(turn) for _ in range(3)]
    turn.close()
    assert [m["role"] for m in conversation.messages] == ["user", "assistant"]
    assert conversation.messages[1]["content"] == "".join(
        step.text for step in said if isinstance(step, Step)
    )
    messages = [*conversation.messages, {"role": "user", "content": "go on"}]
    assert answered(conversation.ask("go on"))[0] == without_cache(conversation, messages)[0]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("again", ["second", "a question long enough for several lots"])
def test_an_interrupted_prompt_is_forgotten(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch, share: float, again: str
) -> None:
    monkeypatch.setattr(engines, "PREFILL_TOKENS", 4)
    answered(conversation.ask("first"))
    messages = list(conversation.messages)

    def stop(done: int, total: int) -> None:
        if done >= total * share:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        answered(conversation.ask("a question long enough for several lots", stop))
    assert conversation.messages == messages
    messages.append({"role": "user", "content": again})
    assert answered(conversation.ask(again))[0] == without_cache(conversation, messages)[0]
    assert conversation.session.position == len(conversation._fed)


def test_a_conversation_that_outgrows_the_context(conversation: Conversation) -> None:
    answered(conversation.ask("hello"))
    before = list(conversation.messages)
    full = conversation.session.context
    with pytest.raises(UserError, match=rf"has \d+ tokens, but the model's context is {full}.*/re"):
        conversation.ask("zq" * full)
    assert conversation.messages == before
    output, notes = talk(conversation, "zq" * full, "hi")
    assert "/reset" in notes
    assert output.strip()  # it goes on


def test_an_answer_cut_by_the_context_says_so(
    engine: MLXEngine, tokenizer: TokenizerWrapper
) -> None:
    c = Conversation(engine, tokenizer, GenerationOptions(max_tokens=400))
    _, notes = talk(c, "hello")
    full = engine.args.max_position_embeddings
    assert f"fills the model's context of {full} tokens. /reset" in notes
    c = Conversation(engine, tokenizer, OPTIONS)
    assert "The answer is cut at max-tokens (8)." in talk(c, "hello")[1]


def test_base_checkpoints_are_told_to_use_generate(
    engine: MLXEngine, tokenizer_folder: Path
) -> None:
    base = load_tokenizer(tokenizer_folder)
    base.has_chat_template = False
    with pytest.raises(UserError, match=r"no chat template.*`mobilemoe generate`"):
        Conversation(engine, base, OPTIONS)


def test_a_template_that_refuses_says_why(engine: MLXEngine, tokenizer_folder: Path) -> None:
    strict = load_tokenizer(tokenizer_folder)
    strict.chat_template = "{{ raise_exception('no system messages here') }}"
    c = Conversation(engine, strict, OPTIONS, system="x")
    with pytest.raises(UserError, match="refuses this conversation: no system messages here"):
        c.ask("hello")


def test_text_that_is_not_unicode_is_refused(
    engine: MLXEngine, tokenizer: TokenizerWrapper
) -> None:
    with pytest.raises(UserError, match="The system message is not UTF-8 text: character 1 "):
        Conversation(engine, tokenizer, OPTIONS, system="\udcff")
    c = Conversation(engine, tokenizer, OPTIONS)
    with pytest.raises(UserError, match="The message is not UTF-8 text: character 4 "):
        c.ask("caf\udcff")
    assert c.messages == []


# The loop


def test_the_loop(conversation: Conversation) -> None:
    first, _ = talk(conversation, "hello")
    conversation.reset()
    output, notes = talk(conversation, "hello", "", "   ", "/reset", "hello", "/exit", "never read")
    assert output == first * 2
    assert notes.count("Peak memory") == 2
    assert "forgotten" in notes
    assert len(conversation.messages) == 2
    output, notes = talk(conversation, "/rest")
    assert (output, "no command /rest" in notes) == ("", True)


class InterruptingOutput(io.StringIO):
    """Presses Ctrl-C while the first text is being printed."""

    pressed = 0

    def write(self, text: str) -> int:
        if not self.pressed:
            self.pressed = 1
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_ctrl_c_stops_the_answer_not_the_program(
    engine: MLXEngine, tokenizer: TokenizerWrapper
) -> None:
    c = Conversation(engine, tokenizer, GenerationOptions(max_tokens=100))
    handler = signal.getsignal(signal.SIGINT)
    output, notes = InterruptingOutput(), io.StringIO()
    chat.run(c, lines("hello", "go on"), output, notes)
    assert notes.getvalue().count("(stopped)") == 1
    assert notes.getvalue().count("Peak memory") == 1
    assert signal.getsignal(signal.SIGINT) is handler
    assert [m["role"] for m in c.messages] == ["user", "assistant"] * 2
    interrupted, complete = c.messages[1]["content"], c.messages[3]["content"]
    assert output.getvalue().startswith(interrupted)
    assert len(interrupted) < len(complete)
    assert complete == without_cache(c, c.messages[:3])[0]


# The command


def test_chat_command_by_a_pipe(bf16_folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(chat.__file__).parents[1])}
    environment["PYTHONIOENCODING"] = "utf-8"
    command = [sys.executable, "-m", "mobilemoe_mlx.cli.main", "chat", str(bf16_folder)]
    done = subprocess.run(
        [
            *command,
            "--max-tokens",
            "6",
            "--temperature",
            "1",
            "--seed",
            "1",
            "--system",
            "Be brief.",
        ],
        input=b"\xef\xbb\xbfhello\n/reset\ncaf\xff\nhello\n",
        capture_output=True,
        env=environment,
        timeout=120,
    )
    output, notes = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0, notes
    half = len(output) // 2
    assert output.strip()
    assert output[:half] == output[half:]
    assert notes.count("Peak memory") == 2
    assert notes.count("The message is not UTF-8 text") == 1  # and the next line is answered
    assert not output.startswith("> ")  # the input's prompt is for terminals


def test_chat_command_on_a_base_checkpoint(
    bf16_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(bf16_folder, folder)
    file = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(file.read_text())
    del config["chat_template"]
    file.write_text(json.dumps(config))
    assert main.main(["chat", str(folder)]) == 2
    assert "Use `mobilemoe generate`" in capsys.readouterr().err
