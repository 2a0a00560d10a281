"""A few generations of the trained INT4 checkpoint, for the report."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mobilemoe_mlx.checkpoint import load_save
from mobilemoe_mlx.generate import Statistics, Step, stream
from mobilemoe_mlx.generation_options import GenerationOptions
from mobilemoe_mlx.tokenizer import encode_text

# Of the standard library; json is a held-out module, the others were seen in training.
QUESTIONS = (
    "What does `os.path.isdir` do?",
    "What is the signature of `shutil.copyfile`?",
    "What does `json.dumps` do?",
)
CODE_PROMPT = "import os\nimport sys\n\n\nclass Error(Exception):\n"


class Sample(NamedTuple):
    """One prompt and its greedy continuation."""

    prompt: str
    is_chat: bool
    text: str
    statistics: Statistics


def generate_samples(model_folder: Path, max_tokens: int = 60) -> list[Sample]:
    """Load the checkpoint as a user would and continue each prompt, greedily."""
    model, tokenizer = load_save.load(model_folder)
    samples = []
    for prompt in (*QUESTIONS, CODE_PROMPT):
        is_chat = prompt is not CODE_PROMPT
        if is_chat:
            message = {"role": "user", "content": prompt}
            tokens = tokenizer.apply_chat_template([message], add_generation_prompt=True)
        else:
            tokens = [tokenizer.bos_token_id, *encode_text(tokenizer, prompt)]
        text = ""
        options = GenerationOptions(max_tokens=max_tokens, repetition_penalty=1.1)
        for part in stream(model, tokenizer, tokens, options):
            if isinstance(part, Step):
                text += part.text
            else:
                samples.append(Sample(prompt, is_chat, text, part))
    return samples
