"""Which characters are letters and numbers to `tokenizers`, for the Swift package.

    python tests/swift/unicode_classes.py > coreml/Sources/MobileMoE/Text/UnicodeClasses.swift

Swift's own properties are of another version of Unicode on every system.
"""

from __future__ import annotations

import textwrap

from tokenizers import Regex, pre_tokenizers

SURROGATES = range(0xD800, 0xE000)
_BLOCK = 0x1000

_FILE = """\
/// Which characters the split patterns of tokenizers hold for letters and for numbers: Unicode's
/// general categories L and N, in the version that Hugging Face `tokenizers` has. Swift's own
/// properties are of another version on every system. Written by tests/swift/unicode_classes.py.

/// Bounds of the letters: first and last of each run, in rising order.
let letterBounds: [UInt32] = [
{letters}
]

/// Bounds of the numbers, likewise.
let numberBounds: [UInt32] = [
{numbers}
]
"""


def matched(pattern: str) -> list[int]:
    """The code points that a pattern of one character matches, in rising order."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    found = []
    for start in range(0, 0x110000, _BLOCK):
        block = [c for c in range(start, start + _BLOCK) if c not in SURROGATES]
        text = "".join(map(chr, block))
        left = set("".join(piece for piece, _ in split.pre_tokenize_str(text)))
        found += [c for c in block if chr(c) not in left]
    return found


def bounds(points: list[int]) -> list[int]:
    """First and last of each run of neighbours."""
    edges: list[int] = []
    for point in points:
        if edges and edges[-1] == point - 1:
            edges[-1] = point
        else:
            edges += [point, point]
    return edges


def swift_file() -> str:
    """The content of UnicodeClasses.swift."""
    blocks = {
        name: textwrap.fill(
            ", ".join(f"{edge:#x}" for edge in bounds(matched(pattern))),
            width=104,
            initial_indent="    ",
            subsequent_indent="    ",
        )
        + ","
        for name, pattern in (("letters", r"\p{L}"), ("numbers", r"\p{N}"))
    }
    return _FILE.format(**blocks)


if __name__ == "__main__":
    print(swift_file(), end="")
