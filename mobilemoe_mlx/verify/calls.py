"""In which calls tokens are fed to an export: a prompt in blocks, then single tokens; or a chat."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple


class Call(NamedTuple):
    """One call of the model: `length` tokens from `start`."""

    start: int
    length: int
    is_decode: bool  # which function, where there are two


def plan(prompt: int, total: int, block: int, context: int) -> Iterator[Call]:
    """Calls for `prompt` tokens in blocks and then one by one up to `total`.

    A block may not reach beyond the context, padding included: one that would starts earlier, with
    tokens that the cache has already, which gives the same rows again (docs/ios.md).
    """
    for start in range(0, prompt, block):
        yield _block(start, min(start + block, prompt), block, context)
    for position in range(prompt, total):
        yield Call(position, 1, is_decode=True)


def _block(start: int, end: int, block: int, context: int) -> Call:
    start = min(start, context - block)
    return Call(start, end - start, is_decode=False)


def chat_plan(total: int, block: int, context: int) -> Iterator[Call]:
    """Calls as turns of a chat make them: blocks of all lengths from any position, single tokens.

    The first token goes to `decode`, the second to `prefill` by itself.
    """
    yield Call(0, 1, is_decode=True)
    position = 1
    for length in itertools.cycle((1, block, block * 2 // 3, block // 3, block - 1)):
        if position >= total:
            return
        end = min(position + max(1, length), total)
        yield _block(position, end, block, context)
        if end < total:
            yield Call(end, 1, is_decode=True)
        position = end + 1
