"""A tokenizer with fewer pieces reads as before what its pieces suffice for, and knows every character as before."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from potstill.checkpoint.vocabulary import Vocabulary, count_pieces
from potstill.errors import CheckpointError
from tests.checkpoint import made

# Texts of the task: half of the words that the tokenizers know.
TASK = [" ".join(word for word in text.split() if word in made.WORDS[::2]) for text in made.corpus()[:60]]
OTHERS = [*made.TEXTS, *made.WORDS, *made.corpus()[60:120]]
ODD = [
    "👩‍👩‍👧 🏳️‍🌈 🇨🇭",
    "漢字かな交じり文",
    "مرحبا بالعالم",
    "\u1112\u1161\u11ab ไทย हिन्दी",
    "\x00 \ufffd \ue000",
    "x" * 120,
]


def byte_fallback():
    """Return a tokenizer as Gemma's and Llama's: BPE on words that begin with ▁, and bytes for other characters."""
    special = ["<pad>", "</s>", "<s>", "<unk>"]
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.normalizer = normalizers.Replace(" ", "▁")
    pieces.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*special, *alphabet], show_progress=False)
    pieces.train_from_iterator(made.corpus(), trainer)
    trained = pieces.model.__getstate__()
    import json

    content = json.loads(trained)
    merges = [tuple(pair) for pair in content["merges"]]
    tokenizer = Tokenizer(models.BPE(content["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = pieces.normalizer, pieces.pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> <s> $B </s>", special_tokens=[("<s>", 2), ("</s>", 1)]
    )
    return tokenizer


KINDS = {
    "WordPiece": made.word_piece,
    "byte-level BPE": made.byte_pairs,
    "BPE with byte fallback": byte_fallback,
    "Unigram": lambda: made.unigram(precompiled=True, fairseq=True),
    "Unigram with [MASK] behind": lambda: made.unigram(precompiled=False),
}


@pytest.fixture(scope="module", params=KINDS)
def whole(request):
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def vocabulary(whole):
    return Vocabulary(whole, name="the model")


@pytest.fixture(scope="module")
def counts(vocabulary):
    return count_pieces(vocabulary.tokenizer, TASK)


@pytest.fixture(scope="module")
def smaller(vocabulary, counts):
    """The tokenizer with every piece that the task has, and a few less than it had."""
    return vocabulary.trim(vocabulary.choose(counts, min_count=1))


def unknown(tokenizer, text):
    return [token for token in tokenizer.encode(text).tokens if token in ("[UNK]", "<unk>")]


def test_a_text_whose_pieces_all_stay_has_the_same_pieces(whole, smaller):
    have, seen = smaller.get_vocab(), 0
    assert len(have) < whole.get_vocab_size()
    for text in [*TASK, *OTHERS, *ODD]:
        pieces = whole.encode(text).tokens
        if all(piece in have for piece in pieces):
            seen += 1
            assert smaller.encode(text).tokens == pieces
    assert seen > len(TASK) + 5


def test_what_falls_out_is_written_in_smaller_pieces_and_nothing_becomes_unknown(whole, smaller):
    longer = 0
    for text in [*OTHERS, *ODD]:
        before, after = whole.encode(text), smaller.encode(text)
        assert len(unknown(smaller, text)) <= len(unknown(whole, text))
        assert smaller.decode(after.ids) == whole.decode(before.ids)
        longer += len(after) > len(before)
    assert longer > 5


def test_special_tokens_stand_where_they_stood(whole, smaller):
    for text in ("good film", ("good", "film is bad"), "a <mask> [MASK] film"):
        pairs = [tokenizer.encode(*((text,) if isinstance(text, str) else text)) for tokenizer in (whole, smaller)]
        before, after = pairs
        shown = [
            [token for token, special in zip(one.tokens, one.special_tokens_mask, strict=True) if special]
            for one in pairs
        ]
        assert shown[0] == shown[1] != []
        assert set(before.type_ids) == set(after.type_ids)
    assert {token.content for token in smaller.get_added_tokens_decoder().values()} == {
        token.content for token in whole.get_added_tokens_decoder().values()
    }


def test_ids_are_counted_up_in_the_old_order(whole, smaller):
    old, new = whole.get_vocab(), smaller.get_vocab()
    assert sorted(new.values()) == list(range(len(new)))
    assert sorted(new, key=new.get) == sorted(new, key=old.get)
    # The library alone reads the file so, too.
    assert Tokenizer.from_str(smaller.to_str()).get_vocab() == new


def test_every_piece_that_stays_can_still_be_arrived_at(whole, smaller):
    """For BPE: a piece without the merges that make it would take a row and never be seen."""
    reached = [piece for piece in smaller.get_vocab() if [one.value for one in whole.model.tokenize(piece)] == [piece]]
    assert len(reached) > 50
    for piece in reached:
        assert [one.value for one in smaller.model.tokenize(piece)] == [piece]


def test_a_size_is_what_is_kept_and_the_pieces_of_the_task_come_first(vocabulary, counts):
    size = len(vocabulary.indispensable) + 12
    kept = vocabulary.choose(counts, size=size)
    assert len(kept) == size
    assert vocabulary.indispensable <= set(kept)
    few = count_pieces(vocabulary.trim(kept), TASK).sum()
    rare = sorted(set(vocabulary.ids.values()) - vocabulary.indispensable, key=lambda number: counts[number])
    worst = count_pieces(vocabulary.trim(sorted({*vocabulary.indispensable, *rare[:12]})), TASK).sum()
    assert few < worst


def test_a_piece_that_no_text_of_the_task_has_is_not_kept_by_a_count(vocabulary, counts):
    kept = set(vocabulary.choose(counts, min_count=2)) - vocabulary.indispensable
    needed = {number for number in range(len(counts)) if counts[number] >= 2}
    assert needed <= kept | vocabulary.indispensable
    assert all(counts[number] for number in kept) or vocabulary.tokenizer.model.__class__.__name__ == "BPE"


@pytest.mark.parametrize("size", [5, 10_000])
def test_a_size_that_cannot_be_is_refused_with_those_that_can(vocabulary, counts, size):
    least, most = len(vocabulary.indispensable), len(vocabulary) - 1
    with pytest.raises(CheckpointError, match=rf"a vocabulary of {size:,} cannot be.*ask for {least:,} to {most:,}"):
        vocabulary.choose(counts, size=size)


def test_words_that_are_not_made_of_pieces_cannot_be_trimmed():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "good": 1}, unk_token="[UNK]"))
    with pytest.raises(CheckpointError, match=r"kind WordLevel.*would become unknown"):
        Vocabulary(words, name="the model")


def test_the_score_of_the_unknown_stays_though_its_piece_is_not_seen():
    """Unigram reckons an unknown character's cost from the lowest score of all."""
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("aab", -9.0), ("▁", -2.0), ("aa", -1.5)]
    vocabulary = Vocabulary(Tokenizer(models.Unigram(pieces, unk_id=0)), name="the model")
    assert vocabulary.ids["aab"] in vocabulary.indispensable
    assert vocabulary.ids["aa"] not in vocabulary.indispensable


def test_a_piece_that_single_characters_cannot_spell_stays():
    pieces = ["[UNK]", "a", "##a", "b", "##b", "ab", "aé", "##ba"]
    model = models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]")
    vocabulary = Vocabulary(Tokenizer(model), name="the model")
    assert {piece for piece, number in vocabulary.ids.items() if number not in vocabulary.indispensable} == {
        "ab",
        "##ba",
    }
