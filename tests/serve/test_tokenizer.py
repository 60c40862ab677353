"""The bundle's tokenizer against transformers' own, and its edges."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from potstill.bundle import read_bundle
from potstill.errors import BundleError, UsageError
from potstill.serve import BundleTokenizer

NASTY = [
    "",
    " ",
    "\t\n\r",
    "a good film",
    "a good film. " * 40,
    "x" * 100_000,
    "good " * 20_000,
    "🙂🙂 film 🏳️‍🌈 👩‍👩‍👧",
    "שלום good مرحبا",
    "\u202eevil\u202c \u200bzero\u200dwidth",
    "[MASK] the [CLS] film [SEP] [PAD]",
    "[mask] [ MASK ] [MASK][MASK]",
    "e\u0301" * 50,
    "\ufdfa" * 20,
    "中文中",
    "nul \x00 and \x07 bell \ufffe \ufffd",
    "111 1,1.1!?",
    ("a good film", "a bad book"),
    ("", ""),
    ("", "not good"),
    ("very good " * 30, "it was bad"),
    ("it was bad", "very good " * 30),
    ("good " * 100, "bad " * 100),
    ("[SEP]", "[CLS] 🙂"),
]


def tokenizer_of(folder):
    return BundleTokenizer(folder, read_bundle(folder).manifest)


def reference(folder, **settings):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask", "token_type_ids"],
        **settings,
    )


def assert_equal_to_reference(mine, theirs, texts):
    # transformers takes texts or pairs, not both in one call.
    for kind in (str, tuple):
        group = [text for text in texts if isinstance(text, kind)]
        if not group:
            continue
        first = group if kind is str else [text[0] for text in group]
        second = None if kind is str else [text[1] for text in group]
        want = theirs(first, second, padding=True, truncation=True, max_length=32, return_tensors="np")
        got = mine.encode(group)
        assert sorted(got) == sorted(want)
        for name in got:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)
            assert got[name].dtype == np.int64


def test_ids_and_masks_equal_those_of_transformers_for_nasty_texts(bundle_dir):
    assert_equal_to_reference(tokenizer_of(bundle_dir), reference(bundle_dir), NASTY)
    for text in NASTY:
        assert_equal_to_reference(tokenizer_of(bundle_dir), reference(bundle_dir), [text, text])


def test_ids_and_masks_equal_those_of_transformers_on_the_left_side(resealed):
    folder = resealed(padding_side="left")
    (folder / "tokenizer_config.json").write_text(json.dumps({"truncation_side": "left"}))
    mine = BundleTokenizer(folder, read_bundle(folder, verify=False).manifest)
    assert_equal_to_reference(mine, reference(folder, padding_side="left", truncation_side="left"), NASTY)


def test_special_tokens_in_a_text_stay_text_where_the_checkpoint_says_so(own_bundle):
    (own_bundle / "tokenizer_config.json").write_text(json.dumps({"split_special_tokens": True}))
    mine = BundleTokenizer(own_bundle, read_bundle(own_bundle, verify=False).manifest)
    mask = 4
    assert mask not in mine.encode(["[MASK]"])["input_ids"]
    (own_bundle / "tokenizer_config.json").unlink()
    mine = BundleTokenizer(own_bundle, read_bundle(own_bundle, verify=False).manifest)
    assert mine.encode(["[MASK]"])["input_ids"].tolist() == [[2, mask, 3]]


def test_padding_uses_the_pad_token_of_the_manifest(resealed):
    mine = tokenizer_of(resealed(pad_token_id=4))
    encoded = mine.encode(["good", "a good film"])
    assert encoded["input_ids"][0].tolist()[-2:] == [4, 4]
    assert encoded["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_only_the_inputs_that_the_manifest_declares_are_made(resealed):
    mine = tokenizer_of(resealed(inputs=["input_ids", "attention_mask"]))
    assert list(mine.encode(["good"])) == ["input_ids", "attention_mask"]


def test_lengths_count_the_special_tokens_and_stop_at_the_max_length(bundle_dir):
    mine = tokenizer_of(bundle_dir)
    assert mine.lengths(["", "good", ("good", "bad"), "good " * 100]).tolist() == [2, 3, 5, 32]


def test_a_lone_surrogate_reads_as_the_replacement_character(bundle_dir):
    mine = tokenizer_of(bundle_dir)
    for broken, whole in [("a \ud83d b", "a \ufffd b"), ("\udc00", "\ufffd"), ("\ud83d\ude42 good", "🙂 good")]:
        got, want = mine.encode([broken, (broken, broken)]), mine.encode([whole, (whole, whole)])
        np.testing.assert_array_equal(got["input_ids"], want["input_ids"])


def test_no_texts_give_empty_arrays(bundle_dir):
    assert {name: block.shape for name, block in tokenizer_of(bundle_dir).encode([]).items()} == {
        "input_ids": (0, 0),
        "attention_mask": (0, 0),
        "token_type_ids": (0, 0),
    }


@pytest.mark.parametrize("texts", ["one string", [None], [("a", "b", "c")], [["a", "b"]], [("a", 1)], [b"bytes"]])
def test_what_is_no_text_is_refused_by_name(bundle_dir, texts):
    with pytest.raises(UsageError, match=r"list of texts|must be a str"):
        tokenizer_of(bundle_dir).encode(texts)


def test_eight_threads_get_the_ids_that_one_gets(bundle_dir):
    mine = tokenizer_of(bundle_dir)
    texts = [text for text in NASTY if len(text) < 1000]
    want = mine.encode(texts)["input_ids"]
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: mine.encode(texts)["input_ids"], range(64)):
            np.testing.assert_array_equal(got, want)


def test_a_broken_tokenizer_file_is_a_bundle_error(own_bundle):
    (own_bundle / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be loaded"):
        BundleTokenizer(own_bundle, read_bundle(own_bundle, verify=False).manifest)


def test_inputs_that_no_tokenizer_makes_are_a_bundle_error(resealed):
    with pytest.raises(BundleError, match="position_ids"):
        tokenizer_of(resealed(inputs=["input_ids", "position_ids"]))


def test_a_max_length_without_room_for_text_is_a_bundle_error(resealed):
    with pytest.raises(BundleError, match="leaves no room"):
        tokenizer_of(resealed(max_length=3))


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_pair_of_lengths_is_cut_as_the_tokenizers_library_cuts_it(own_bundle, side):
    (own_bundle / "tokenizer_config.json").write_text(json.dumps({"truncation_side": side}))
    mine = BundleTokenizer(own_bundle, read_bundle(own_bundle, verify=False).manifest)
    theirs = mine.copy()
    for room in (4, 11, 32):
        mine.max_length = room
        theirs.enable_truncation(room, strategy="longest_first", direction=side)
        for first in range(0, 36, 5):
            for second in range(36):
                text = ("a b c d e f g h i " * 4)[: 2 * first], ("1 , . ! ? " * 8)[: 2 * second]
                want = theirs.encode(*text)
                assert mine.rows([text])[0]["input_ids"].tolist() == want.ids
                assert mine.rows([text])[0]["token_type_ids"].tolist() == want.type_ids


def test_a_pair_of_very_long_texts_takes_no_longer_than_their_length_says(bundle_dir):
    # The library cuts such a pair into all combinations of their parts: 34 s and 3.9 GB were measured at 512 tokens.
    mine = tokenizer_of(bundle_dir)
    started = time.process_time()
    assert mine.lengths([("good film " * 12_800, "bad book " * 14_200)]).tolist() == [32]
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "processor",
    [
        None,
        processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
        processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)),
        processors.ByteLevel(),
        processors.TemplateProcessing(
            single="$A [SEP]", pair="$A:1 [SEP]:1 $B:0 [SEP]:0 [CLS]:1", special_tokens=[("[SEP]", 3), ("[CLS]", 2)]
        ),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_special_tokens_stand_where_the_tokenizer_puts_them(own_bundle, processor):
    whole = Tokenizer.from_file(str(own_bundle / "tokenizer.json"))
    whole.no_padding()
    whole.no_truncation()
    content = json.loads(whole.to_str()) | {"post_processor": None}
    whole = Tokenizer.from_str(json.dumps(content))
    if processor is not None:
        whole.post_processor = processor
    whole.save(str(own_bundle / "tokenizer.json"))
    mine = BundleTokenizer(own_bundle, read_bundle(own_bundle, verify=False).manifest)
    for text in ("", "good", "a good film", ("a good film", "a bad book"), ("", "not good"), ("good", "")):
        want = whole.encode(*text) if isinstance(text, tuple) else whole.encode(text)
        row = mine.rows([text])[0]
        assert row["input_ids"].tolist() == want.ids
        assert row["token_type_ids"].tolist() == want.type_ids
        assert row["attention_mask"].tolist() == want.attention_mask


def test_a_tokenizer_that_does_not_put_one_text_behind_the_other_is_refused(own_bundle):
    whole = Tokenizer.from_file(str(own_bundle / "tokenizer.json"))
    whole.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", pair="$B:1 [SEP] $A:0 [SEP]", special_tokens=[("[SEP]", 3)]
    )
    whole.save(str(own_bundle / "tokenizer.json"))
    with pytest.raises(BundleError, match="does not put one text behind the other"):
        BundleTokenizer(own_bundle, read_bundle(own_bundle, verify=False).manifest)


def test_masks_are_shared_so_nobody_may_write_to_them_and_as_long_as_the_ids(encoder):
    tokenizer = encoder.tokenizer
    row = tokenizer.frame([5] * 4)
    with pytest.raises(ValueError, match="read-only"):
        row["attention_mask"][0] = 0
    longer = tokenizer.frame([5] * (2 * tokenizer.max_length))  # `frame` cuts nothing
    assert {len(values) for values in longer.values()} == {2 * tokenizer.max_length + tokenizer.single.size}
    assert longer["attention_mask"].all()
