"""Texts in many scripts, and random ones, for tokenizers to agree on."""

from __future__ import annotations

import random
from collections.abc import Iterator

CORPUS = (
    "The quick brown fox jumps over the lazy dog; it's what we'd say, they'll see, I'VE SEEN.",
    "def f(x):\n    return {'a': [1, 22, 333, 4444], \"b\": x ** 2}\n\n\tprint(f(10_000))\r\n",
    "Être ou ne pas être, voilà la question : «\u00a0naïve café\u202f» — œuvre.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. STRASSE straße ſie 'ſ",
    "Съешь ещё этих мягких французских булок, да выпей же чаю. Їжак, ґанок.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Ἀρχὴ ἥμισυ παντός.",
    "נראה אותך: דג סקרן שט בים. שָׁלוֹם",
    "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ إِذ بَزَغَت ١٢٣٤٥",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण १२३४ क्षत्रिय",
    "தமிழ் மொழி வாழ்க ౧౨౩ తెలుగు ಕನ್ನಡ മലയാളം বাংলা ၁၂၃ မြန်မာ ខ្មែរ ไทย ๑๒๓ ลาว",
    "いろはにほへと ちりぬるを、日本語の文章です。カタカナ、ﾊﾝｶｸ、漢字１２３４。",
    "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。简体中文测试：２０２６年。𠀀𠮷野家",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. 각",
    "👩‍👩‍👧‍👦 👨🏽‍💻 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇩🇪🇫🇷 ❤️‍🔥 1️⃣ ☺︎ 🤷🏿‍♀️",
    "e\u0301 vs é, A\u030a vs Å vs Å, ﬁ ﬃ Ⅷ ½ ² ① ㍿ Ω Ω",
    "\u0000\u0001\u0007\u0008\u001b[31m\u007f\u0080\u0085\u009f\u00ad\u200b\u200d\u200e\u2028\u2029\ufeff",
    "   leading,  double   triple    \n\n \n  blanks \t\t\ttabs\r\r\n\u3000\u2003 trailing   ",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β; ∫₀^∞ e^{-x²}dx = √π/2 ≈ 0.886226925452758",
    "https://example.org/a?b=c&d=%20#e user@example.org $1,234.56 €5 100% C++ C# .NET ''' \"\" ``",
    "ʼn ŉ 'S 'T 'RE 'vE 'Ll 'D 'M 's't're'll ’s don't Don'T 'x 'r 'l '",
    "\ufffd \ufdd0 \uffff \U0010ffff \ue000 \U000e0001 ᚠᛇᚻ 𐍈 𝔘𝔫𝔦 𒀀 𓀀 𞤀 ჰ Ⴀ Ა",
    "SELECT ?s WHERE { ?s ?p ?o . } -- isn 't it ? yes , it is !",
)

_BLANKS = " \t\n\r\u00a0\u2003\u3000\x0b\x0c\x1c\x85\u2028\u200b"
_PARTS = [
    *(_BLANKS * 2),
    *"abcxyzABCsStTdDmMlLrReEvV''''..,,0123456789",
    *"éßſÅ\u0301\u0308\u200d\ufe0f日本語あアㄱ가각กขकि",
    *("👩", "🏽", "👩‍👧", "🇩🇪", "\U0001d518", "\u0600", "\u0660", "²", "Ⅷ", "½"),
    *("'s", "'LL", "  ", "\n\n", " \n", "\r\n", "▁", "<0x0A>", "Ġ", "Ċ", "Ā"),
]


def random_texts(count: int, seed: int, names: list[str]) -> Iterator[str]:
    """Random texts of known traps, cut pieces of CORPUS, any characters, and tokens' `names`."""
    draw = random.Random(seed)
    whole = "".join(CORPUS)
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 12)):
            kind = draw.random()
            if kind < 0.6:
                parts += draw.choices(_PARTS, k=draw.randint(1, 5))
            elif kind < 0.8:
                start = draw.randrange(len(whole))
                parts.append(whole[start : start + draw.randint(1, 12)])
            elif kind < 0.9:
                parts.append(draw.choice(names))
            else:
                point = draw.choice([draw.randrange(0x300, 0xD800), draw.randrange(0x110000)])
                parts.append(" " if 0xD800 <= point < 0xE000 else chr(point))
        yield "".join(parts)
