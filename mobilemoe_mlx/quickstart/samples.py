"""A few generations of the trained INT4 checkpoint, for the report."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mobilemoe_mlx.generate import Statistics, Step, open_with_tokenizer, stream
from mobilemoe_mlx.generation_options import GenerationOptions
from mobilemoe_mlx.tokenizer import encode_text

CODE, DOCUMENTATION, QUESTION = "code", "documentation", "question"

# The corpus' three kinds of text, the most telling of each first; json is a held-out module.
PROMPTS = (
    (CODE, "import os\nimport sys\n\n\nclass Error(Exception):\n"),
    (DOCUMENTATION, "NAME\n    queue - A multi-producer"),
    (QUESTION, "What does `os.path.isdir` do?"),
    (QUESTION, "What is the signature of `shutil.copyfile`?"),
    (QUESTION, "What does `json.dumps` do?"),
)
REPETITION_PENALTY = 1.1


class Sample(NamedTuple):
    """One prompt and its greedy continuation."""

    kind: str  # CODE, DOCUMENTATION or QUESTION
    prompt: str
    text: str
    statistics: Statistics


def generate_samples(model_folder: Path, max_tokens: int = 60) -> list[Sample]:
    """Load the checkpoint as a user would and continue each prompt, greedily."""
    engine, tokenizer = open_with_tokenizer(model_folder)
    options = GenerationOptions(max_tokens=max_tokens, repetition_penalty=REPETITION_PENALTY)
    samples = []
    for kind, prompt in PROMPTS:
        if kind == QUESTION:
            message = {"role": "user", "content": prompt}
            tokens = tokenizer.apply_chat_template([message], add_generation_prompt=True)
        else:
            tokens = [tokenizer.bos_token_id, *encode_text(tokenizer, prompt)]
        text = ""
        for part in stream(engine.session(), tokenizer, tokens, options):
            if isinstance(part, Step):
                text += part.text
            else:
                samples.append(Sample(kind, prompt, text, part))
    return samples
