"""What is typed into a chat: messages, commands, and conversations that are kept in files."""

from __future__ import annotations

import io
import json
import shutil
import stat
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mobilemoe_mlx import chat, chat_commands, conversation_file
from mobilemoe_mlx.chat import Conversation
from mobilemoe_mlx.chat_commands import Command
from mobilemoe_mlx.cli import main
from mobilemoe_mlx.config import ModelArgs
from mobilemoe_mlx.data.chat import template_difference
from mobilemoe_mlx.engines.mlx import MLXEngine
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.generation_options import GenerationOptions
from mobilemoe_mlx.model import Model
from mobilemoe_mlx.tokenizer import CHAT_TEMPLATE, load_tokenizer

OPTIONS = GenerationOptions(max_tokens=4)
TALK = [{"role": "user", "content": "é\n<|eot|>"}, {"role": "assistant", "content": " ok "}]


@pytest.fixture
def conversation(tiny_args: ModelArgs, tokenizer_folder: Path) -> Conversation:
    mx.random.seed(7)
    return Conversation(MLXEngine(Model(tiny_args)), load_tokenizer(tokenizer_folder), OPTIONS)


def talk(conversation: Conversation, *lines: str, **options: Any) -> tuple[str, str, bool]:
    """(Answers, notes, what `run` returned)."""
    queue, output, notes = list(lines), io.StringIO(), io.StringIO()
    fine = chat.run(conversation, lambda: queue.pop(0) if queue else None, output, notes, **options)
    return output.getvalue(), notes.getvalue(), fine


def sent(conversation: Conversation) -> list[str]:
    return [m["content"] for m in conversation.messages if m["role"] == "user"]


def test_a_template_that_writes_nothing_is_told(conversation: Conversation) -> None:
    conversation.tokenizer._tokenizer.chat_template = "{# nothing #}"
    _, notes, fine = talk(conversation, "hi")
    assert "The chat template gives no tokens" in notes and not fine


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/exit", Command("/exit", "")),
        ("/help", Command("/help", "")),
        ("/help me", None),
        (" /reset ", Command("/reset", "")),
        ("/save a b.json", Command("/save", "a b.json")),
        ("/load", Command("/load", "")),
        ("/send /exit", Command("/send", "/exit")),
        ("/send\t two", Command("/send", "two")),
        ("/exit 1 means what?", None),
        ("/reset the clock", None),
        ("/etc/hosts maps what?", None),
        ("/etc/hosts", None),
        ("/usr", None),
        ("/", None),
        ("//", None),
        ("/EXIT", None),
        ("exit", None),
        ("/saved", None),
        ("", None),
    ],
)
def test_only_known_words_are_commands(line: str, command: Command | None) -> None:
    assert chat_commands.parse(line) == command


def test_other_lines_are_sent(conversation: Conversation) -> None:
    texts = ["/etc/hosts maps what?", "/etc/hosts", "/exit 1 means what?", "/test", "// x"]
    commands = ["/help", "/send /reset", "/send", "/exit", "never read"]
    _, notes, fine = talk(conversation, *texts, *commands)
    assert notes.count(chat_commands.HELP) == 1
    assert sent(conversation) == [*texts, "/reset"]
    assert fine
    assert "no command" not in notes


def test_a_slip_of_the_finger_is_not_sent(conversation: Conversation) -> None:
    _, notes, fine = talk(conversation, "/rest", "/exti", "/lod", "/send /rest")
    assert "no command /rest (did you mean '/reset'?). `/send /rest` sends it." in notes
    assert notes.count("There is no command") == 3
    assert sent(conversation) == ["/rest"]
    assert fine


def test_the_room_that_is_left(conversation: Conversation) -> None:
    _, notes, _ = talk(conversation, "/context", "hello", "/context")
    full = conversation.session.context
    assert f"Context: 0 of {full} tokens used, {full} left." in notes
    used = len(
        conversation.tokenizer.apply_chat_template(
            conversation.messages, add_generation_prompt=True
        )
    )
    assert f"Context: {used} of {full} tokens used, {full - used} left." in notes
    assert "Context" not in talk(conversation, "again")[1]
    assert talk(conversation, "again", interactive=True)[1].count("Context: ") == 1


def test_a_conversation_is_kept_in_a_file(conversation: Conversation, tmp_path: Path) -> None:
    file = tmp_path / "my talk.json"
    _, notes, _ = talk(conversation, "hello é", f"/save {file}", "more", f"/load {file}")
    assert "Saved 2 messages" in notes
    assert "Went back to 2 messages. Context: " in notes
    assert conversation.messages == json.loads(file.read_text("utf-8"))["messages"]
    assert sent(conversation) == ["hello é"]
    answer = talk(conversation, "more")[0]
    talk(conversation, "/reset", f"/load {file}")
    assert talk(conversation, "more")[0] == answer


def test_files_survive_what_goes_wrong(conversation: Conversation, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    conversation_file.save(file, TALK)
    assert conversation_file.load(file) == TALK
    before = file.read_bytes()
    (tmp_path / "closed").mkdir()
    for line, message in (
        ("/save", "/save needs the name of a file"),
        (f"/save {tmp_path}", "cannot be written"),
        (f"/save {tmp_path}/absent/x", "cannot be written"),
        ("/load", "/load needs the name of a file"),
        (f"/load {tmp_path}/absent", "Cannot read"),
    ):
        talk(conversation, "/reset", "hello")
        held = list(conversation.messages)
        assert message in talk(conversation, line)[1]
        assert conversation.messages == held
    assert file.read_bytes() == before
    assert stat.S_ISREG(file.stat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["closed", "talk.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("7", 'no list of "messages"'),
        ('{"messages": 7}', 'no list of "messages"'),
        ("[7]", "message 1 is not an object"),
        ('[{"role": "tool", "content": "x"}]', "message 1 has the role 'tool'"),
        ('[{"role": "user"}]', "message 1 has no text"),
        ('[{"role": "user", "content": ["x"]}]', "message 1 has no text"),
        ('[{"role": "user", "content": "\\ud800"}]', "message 1 is not Unicode"),
        ('[{"role": "assistant", "content": "x"}]', "message 1 is of the assistant"),
        ('[{"role": "user", "content": "x"}]', "ends with a user's message"),
    ],
)
def test_files_that_hold_no_conversation(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "talk.json"
    file.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        conversation_file.load(file)
    assert str(file) in str(error.value)


def test_lists_byte_order_marks_and_system_messages_are_read(
    conversation: Conversation, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    messages = [{"role": "system", "content": "Be brief."}, *TALK]
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(messages).encode())
    conversation.load(conversation_file.load(file))
    assert conversation.messages == messages
    conversation.reset()
    assert conversation.messages == messages[:1]
    conversation.load(TALK)
    assert conversation.messages == messages
    long = {"role": "user", "content": "zq" * conversation.session.context}
    with pytest.raises(UserError, match="but the model's context is"):
        conversation.load([long, TALK[1]])
    assert conversation.messages == messages


def run_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    lines: str,
    *options: str,
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    status = main.main(["chat", str(folder), "--max-tokens", "2", *options])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_goes_on_with_a_file(
    bf16_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "talk.json"
    conversation_file.save(file, TALK)
    after = tmp_path / "after.json"
    status, _, _ = run_command(
        monkeypatch, capsys, bf16_folder, f"more\n/save {after}\n", "--load", str(file)
    )
    assert status == 0
    assert json.loads(after.read_text("utf-8"))["messages"][:3] == [
        *TALK,
        {"role": "user", "content": "more"},
    ]
    conversation_file.save(file, [{"role": "system", "content": "Be brief."}, *TALK])
    arguments = ("--load", str(file), "--system", "Be long.")
    status, _, notes = run_command(monkeypatch, capsys, bf16_folder, "", *arguments)
    assert (status, "leave out --system" in notes) == (2, True)


@pytest.mark.parametrize("template", ["{{ 1 + 'a' }}", "{{ a.b.c }}", "{% if %}"])
def test_a_chat_that_answers_nothing_fails(
    bf16_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    template: str,
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(bf16_folder, folder)
    (folder / "chat_template.jinja").write_text(template)
    status, answers, notes = run_command(monkeypatch, capsys, folder, "hi\nagain\n")
    assert (status, answers) == (1, "")
    assert notes.count("The chat template fails on this conversation: ") == 2
    assert "Traceback" not in notes
    assert run_command(monkeypatch, capsys, folder, "/context\n")[0] == 0  # nothing was sent


def test_a_template_of_another_format_is_told_once(
    conversation: Conversation, tokenizer_folder: Path
) -> None:
    assert template_difference(conversation.tokenizer) is None
    other = load_tokenizer(tokenizer_folder)
    other.chat_template = CHAT_TEMPLATE.replace("<|header_end|>\\n\\n", "<|header_end|>\\n")
    difference = template_difference(other)
    assert difference is not None
    assert r"after '<|begin_of_text|><|header_start|>system<|header_end|>\n' the" in difference
    assert "writes 'Be br" in difference
    assert r"training '\nBe br" in difference
    conversation.tokenizer = other
    _, notes, _ = talk(conversation, "one", "two")
    assert notes.count("differs from the format that MobileMoE is trained in") == 1
    other.chat_template = CHAT_TEMPLATE.replace(
        "{% for", "{% if messages[0].role != 'system' %}You are brief.{% endif %}{% for", 1
    )
    assert "the template writes 'You are" in str(template_difference(other))
    other.chat_template = "{{ messages[-1].content }}"
    assert "at its beginning the template writes" in str(template_difference(other))
