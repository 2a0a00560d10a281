"""What the trained checkpoints write, for the report."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mobilemoe_mlx.chat_format import encode_text
from mobilemoe_mlx.generate import Statistics, Step, open_with_tokenizer, stream
from mobilemoe_mlx.generation_options import GenerationOptions

CODE, DOCUMENTATION, QUESTION = "code", "documentation", "question"

# Each kind of text is asked of the checkpoint whose stage trained on it: SFT and QAT train on
# answers alone. The last is the INT4 checkpoint.
STAGES = {CODE: "pretrain", DOCUMENTATION: "midtrain", QUESTION: "qat"}

# Beginnings as the corpus has them, the most telling of each kind first; json is a held-out module.
PROMPTS = (
    (CODE, 'def read_lines(path):\n    """'),
    (DOCUMENTATION, "FUNCTIONS\n    read_lines(path)\n        "),
    (QUESTION, "What does `os.path.isdir` do?"),
    (CODE, "class Error(Exception):\n"),
    (QUESTION, "What is the signature of `shutil.copyfile`?"),
    (QUESTION, "What is the module `queue` for?"),
    (QUESTION, "What does `json.dumps` do?"),
)

# The likeliest continuation of so small a model goes round in circles, and an even draw from all
# that it holds possible breaks off in the middle of words: docs/training-speed.md has the figures.
SAMPLING = GenerationOptions(max_tokens=80, temperature=1.0, min_p=0.2, seed=0)


class Sample(NamedTuple):
    """One prompt and what followed it."""

    kind: str  # CODE, DOCUMENTATION or QUESTION
    prompt: str
    text: str
    statistics: Statistics


def generate_samples(training: Path) -> list[Sample]:
    """Load the checkpoints of a run's stages as a user would, and continue each prompt."""
    checkpoints = {
        kind: open_with_tokenizer(training / stage / "model") for kind, stage in STAGES.items()
    }
    samples = []
    for kind, prompt in PROMPTS:
        engine, tokenizer = checkpoints[kind]
        if kind == QUESTION:
            message = {"role": "user", "content": prompt}
            tokens = tokenizer.apply_chat_template([message], add_generation_prompt=True)
        else:
            tokens = [tokenizer.bos_token_id, *encode_text(tokenizer, prompt)]
        text = ""
        for part in stream(engine.session(), tokenizer, tokens, SAMPLING):
            if isinstance(part, Step):
                text += part.text
            else:
                samples.append(Sample(kind, prompt, text, part))
    return samples
