"""Check that the bundle's tokenizer gives the ids of the checkpoint's tokenizer.json, on real and adversarial texts."""

from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

from potstill.bundle import TokenizerParity
from potstill.data import Text
from potstill.errors import ParityError
from potstill.serve import BundleTokenizer

TEXTS = 2000
# At most this many real texts, so that at least half are adversarial.
_MOST_REAL = 1000
_LONG = 100_000
_AT_ONCE = 100
_SHOWN = 60

NASTY: tuple[Text, ...] = (
    "",
    " ",
    "\t\n\r\x0b\x0c",
    "\u00a0\u2003\u3000\u2028\ufeff",
    "x" * _LONG,
    "good " * (_LONG // 5),
    "中" * (_LONG // 10),
    ("good " * (_LONG // 5), "bad"),  # two long ones take gigabytes: the parts that are cut off are paired
    "🙂🙂 film 🏳️‍🌈 👩‍👩‍👧 👍🏽 🇨🇭",
    "\ufdfa" * 20,  # NFKC makes 18 characters of it
    "ﬁ ㎦ ½ Ⅷ ① ｆｕｌｌ ﷽",
    "e\u0301" * 50 + " a" + "\u0300" * 200,  # combining marks, one heap of them
    "İstanbul ß ẞ ǅ Σίσυφος ΣΑΣ",  # lower case has another length
    "שלום good مرحبا",
    "\u202eevil\u202c \u200bzero\u200dwidth\u200e \u2066x\u2069",
    "nul \x00 and \x07 bell \x1b[0m \x7f \x85 \x9f",
    "\ufffe \uffff \ufffd \U0010ffff \ue000",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠀀𠀁 𓀀 \U0001d11e",
    "中文中 日本語 カタカナ ｶﾀｶﾅ 한국어 \u1112\u1161\u11ab ไทย हिन्दी",
    "[CLS] the [MASK] film [SEP] [PAD] [UNK]",
    "[mask] [ MASK ] [MASK][MASK] [SEP]",
    "<s> </s> <mask> <pad> <unk> <|endoftext|> ▁ ▁▁ Ġ ##ing @@",
    "111 1,1.1!? 1e-9 0x1F 3.14.15 $5 €5 #tag @user https://a.b/c?d=e&f",
    "don't can’t “so” «so» — – - ... …",
    "x" * 101 + " " + "x" * 100,  # WordPiece gives up on long words
    ("", ""),
    ("", "not good"),
    ("good", ""),
    ("[SEP]", "[CLS] 🙂"),
    ("very good " * 300, "it was bad"),
    ("it was bad", "very good " * 300),
    ("good " * 400, "bad " * 400),
)
"""Texts that tokenizers are known to read differently, without lone surrogates, which transformers refuses."""

# Unicode ranges and pieces of which random texts are made: scripts, combining marks, private use, emoji, tokens.
_RANGES = (
    (0x00, 0x7F),
    (0x80, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x52F),
    (0x590, 0x6FF),
    (0x900, 0x97F),
    (0xE00, 0xE7F),
    (0x1F00, 0x1FFF),
    (0x2000, 0x206F),
    (0x2100, 0x214F),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xE000, 0xE0FF),
    (0xFB00, 0xFDFF),
    (0xFE00, 0xFFFF),
    (0x1D400, 0x1D7FF),
    (0x1F300, 0x1FAFF),
    (0x20000, 0x200FF),
)
_PIECES = ("[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "<mask>", "\u200d", "\ufe0f", "\u0301", " ", "\n", "good", "##s")


def check_tokenizer_parity(
    ours: BundleTokenizer, reference: Tokenizer, texts: Sequence[Text], *, max_length: int, seed: int = 0
) -> TokenizerParity:
    """Check that both tokenizers give the same ids, masks and token types for 2000 texts.

    Args:
        ours: the bundle's tokenizer.
        reference: the checkpoint's, from `reference_tokenizer`; its truncation is set here.
        texts: real texts, of which up to 1000 are used; adversarial ones make up the rest of the 2000.
        max_length: longer texts are cut to this many tokens, special tokens included.
        seed: of the random texts.

    Raises:
        ParityError: with the first text that is read differently, and both lists of numbers.
    """
    reference.enable_truncation(max_length, strategy="longest_first", direction=ours.truncation_side)
    real = list(texts[:_MOST_REAL])
    nasty = list(nasty_texts(real, count=TEXTS - len(real), seed=seed))
    asked = [*real, *nasty]
    for start in range(0, len(asked), _AT_ONCE):
        some = asked[start : start + _AT_ONCE]
        for text, row, encoding in zip(some, ours.rows(some), reference.encode_batch(some), strict=True):
            expected = ours.row_of(encoding)
            for name, values in row.items():
                if not np.array_equal(values, expected[name]):
                    raise ParityError(
                        f"the bundle's tokenizer reads {_short(repr(text))} differently from the checkpoint's: {name} "
                        f"{_short(str(values.tolist()))}, expected {_short(str(expected[name].tolist()))}; nothing was "
                        "published"
                    )
    return TokenizerParity(texts=len(asked), nasty=len(nasty), max_length=max_length, equal=True)


def nasty_texts(real: Sequence[Text], *, count: int, seed: int) -> Iterator[Text]:
    """Yield `count` texts: `NASTY`, then in turns random texts, random pairs, and real texts with random insertions."""
    yield from NASTY[:count]
    generator = np.random.default_rng(seed)
    for number in range(count - len(NASTY)):
        if number % 3 == 0:
            yield _random_text(generator)
        elif number % 3 == 1:
            yield _random_text(generator), _random_text(generator)
        else:
            text = real[int(generator.integers(len(real)))] if real else "it was good"
            first, rest = text if isinstance(text, tuple) else (text, None)
            place = int(generator.integers(len(first) + 1))
            disturbed = first[:place] + _random_text(generator) + first[place:]
            yield disturbed if rest is None else (disturbed, rest)


def _random_text(generator: np.random.Generator) -> str:
    parts = []
    for _ in range(generator.integers(1, 30)):
        if generator.random() < 0.2:
            parts.append(_PIECES[generator.integers(len(_PIECES))])
        else:
            low, high = _RANGES[generator.integers(len(_RANGES))]
            parts.append("".join(map(chr, generator.integers(low, high + 1, size=generator.integers(1, 6)))))
    return "".join(parts)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
