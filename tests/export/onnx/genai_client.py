"""An app that runs a folder with onnxruntime-genai: a process that knows nothing of ours.

python genai_client.py FOLDER < tasks.json > results.json
"""

import json
import sys

import numpy as np
import onnxruntime_genai as og

model = og.Model(sys.argv[1])
tokenizer = og.Tokenizer(model)


def generate(prompts, count, **options):
    """Token ids that continue each of `prompts`, lists of ids; padding goes to their right."""
    longest = max(map(len, prompts))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=longest + count, batch_size=len(prompts), **options)
    generator = og.Generator(model, params)
    rows = [prompt + [tokenizer.pad_token_id] * (longest - len(prompt)) for prompt in prompts]
    generator.append_tokens(np.array(rows if len(rows) > 1 else rows[0], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(i)[longest:].tolist() for i in range(len(prompts))]


def rewound(prompt, count):
    """The continuation of `prompt` after another one was fed and taken back to its middle."""
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + count)
    generator = og.Generator(model, params)
    middle = len(prompt) // 2
    generator.append_tokens(np.array([*prompt[:middle], 7, 8, 9], np.int32))
    generator.rewind_to(middle)
    generator.append_tokens(np.array(prompt[middle:], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return generator.get_sequence(0)[len(prompt) :].tolist()


def chat(messages, count):
    """(the template's text, its ids, the answer's ids)."""
    text = tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True)
    ids = tokenizer.encode(text).tolist()
    (answer,) = generate([ids], count)
    return text, ids, answer


def encode(texts, beginning):
    """Token ids of each text; `beginning`: with the token that begins one."""
    tokenizer.update_options(add_special_tokens="true" if beginning else "false")
    return [tokenizer.encode(text).tolist() for text in texts]


def decode(ids):
    """The text of token ids."""
    return tokenizer.decode(np.array(ids, np.int32))


tasks = json.load(sys.stdin)
known = {f.__name__: f for f in (generate, rewound, chat, encode, decode)}
json.dump([known[task.pop("do")](**task) for task in tasks], sys.stdout)
