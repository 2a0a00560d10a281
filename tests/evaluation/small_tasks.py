"""A small data set in the harness's own form: several choices, log-likelihoods, answers with stops.

The words come from the text that the tests' tokenizer is trained on.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

GROUP = "small"
CHOICES, LIKELIHOOD, ANSWERS = "small_choices", "small_likelihood", "small_answers"

_WORDS = (
    "text",
    "line",
    "width",
    "indent",
    "paragraph",
    "whitespace",
    "words",
    "the",
    "wrap",
    "fill",
)

_DATA = "dataset_path: json\ndataset_kwargs:\n  data_files:\n"
_MEAN = "    aggregation: mean\n    higher_is_better: true\n"

YAML = {
    CHOICES: f"""\
task: {CHOICES}
{_DATA}    test: {CHOICES}.jsonl
    train: shots.jsonl
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
{_MEAN}  - metric: acc_norm
{_MEAN}metadata:
  version: 1.0
""",
    LIKELIHOOD: f"""\
task: {LIKELIHOOD}
tag: small_tag
{_DATA}    test: {LIKELIHOOD}.jsonl
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{target}}}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
{_MEAN}metadata:
  version: 1.0
""",
    ANSWERS: f"""\
task: {ANSWERS}
tag: small_tag
{_DATA}    test: {LIKELIHOOD}.jsonl
test_split: test
output_type: generate_until
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{target}}}}"
generation_kwargs:
  until: ["\\n", "."]
  max_gen_toks: 8
  do_sample: false
metric_list:
  - metric: exact_match
{_MEAN}metadata:
  version: 1.0
""",
    GROUP: f"""\
group: {GROUP}
task:
  - {CHOICES}
  - {LIKELIHOOD}
  - {ANSWERS}
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
metadata:
  version: 1.0
""",
}


def write_tasks(folder: Path, questions: int = 12) -> Path:
    """Write the tasks and their data into `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, yaml in YAML.items():
        (folder / f"{name}.yaml").write_text(yaml)
    _write(folder / f"{CHOICES}.jsonl", choices(questions))
    _write(folder / "shots.jsonl", choices(4, seed=1))
    _write(folder / f"{LIKELIHOOD}.jsonl", likelihoods(questions))
    return folder


def choices(questions: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions with three answers each, of different lengths."""
    draw = random.Random(seed)
    return [
        {
            "question": f"which {' '.join(draw.choices(_WORDS, k=draw.randint(1, 9)))}?",
            "choices": [" ".join(draw.choices(_WORDS, k=k)) for k in (1, 2, 3)],
            "answer": draw.randrange(3),
        }
        for _ in range(questions)
    ]


def likelihoods(questions: int) -> list[dict[str, Any]]:
    """Contexts and what follows them."""
    draw = random.Random(2)
    return [
        {
            "context": " ".join(draw.choices(_WORDS, k=draw.randint(2, 12))),
            "target": " ".join(draw.choices(_WORDS, k=2)),
        }
        for _ in range(questions)
    ]


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
