"""Long texts cut into pieces where they have a seam."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Ends of pieces, the best first: blank lines before a line that is not indented (between two
# functions or sections), any blank lines, and the end of any line.
_SEAMS = tuple(map(re.compile, (r"\n{2,}(?=\S)", r"\n{2,}", r"\n")))


def pieces(text: str, most: int) -> Iterator[str]:
    """Yield `text` in pieces of at most `most` characters; joined, they are the text.

    Each piece ends at the last of the best seams beyond a quarter of `most`, and after `most`
    characters where there is none.
    """
    start = 0
    while len(text) - start > most:
        end = _end(text, start, most)
        yield text[start:end]
        start = end
    yield text[start:]


def _end(text: str, start: int, most: int) -> int:
    least = start + most // 4
    for seam in _SEAMS:
        ends = [match.end() for match in seam.finditer(text, least, start + most)]
        if ends:
            return ends[-1]
    return start + most
