"""Masking: the right share, the right tokens, and the same ones whatever stands around a row."""

import numpy as np
import pytest
from datasets import Dataset

from potstill.distill.corpus import token_counts
from potstill.distill.masking import IGNORED, make_masking, mask_batch
from potstill.distill.teacher import train_tokenizer
from potstill.errors import DataError, RecipeError

CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def tokenizer():
    words = [f"{one}{two}" for one in "abcdefghij" for two in "klmnopqrst"]
    return train_tokenizer([" ".join(words)], vocab_size=500, max_length=64)


def batch(tokenizer, *, rows=400, length=22, seed=0):
    """Return ids (rows, length): [CLS], 20 ordinary tokens, [SEP]."""
    ids = np.random.default_rng(seed).integers(5, len(tokenizer), size=(rows, length))
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids


def mask(ids, masking, *, rows=None, epoch=0):
    rows = range(len(ids)) if rows is None else rows
    return mask_batch(ids, ids != 0, rows=list(rows), epochs=[epoch] * len(ids), masking=masking)


def test_each_row_gets_its_share_rounded_up(tokenizer):
    masked = mask(batch(tokenizer), make_masking(tokenizer, seed=1, share=0.15))
    assert ((masked.labels != IGNORED).sum(axis=1) == 3).all()  # 0.15 of 20
    one = mask(batch(tokenizer, length=3), make_masking(tokenizer, seed=1, share=0.15))
    assert ((one.labels != IGNORED).sum(axis=1) == 1).all()


def test_nothing_but_special_tokens_leaves_nothing_to_mask(tokenizer):
    ids = np.array([[CLS, SEP, 0, 0], [CLS, 9, 8, SEP]])
    masked = mask(ids, make_masking(tokenizer, seed=1, extra_share=1))
    assert (masked.labels[0] == IGNORED).all()
    assert (masked.ids[0] == ids[0]).all()
    assert (masked.labels[1] != IGNORED).sum() == 1


def test_labels_are_what_stood_there_and_the_rest_stays(tokenizer):
    ids = batch(tokenizer)
    masked = mask(ids, make_masking(tokenizer, seed=1))
    chosen = masked.labels != IGNORED
    assert (masked.labels[chosen] == ids[chosen]).all()
    assert (masked.ids[~chosen] == ids[~chosen]).all()
    assert not chosen[:, [0, -1]].any()


def test_eight_tenths_become_the_mask_one_another_token_one_stays(tokenizer):
    ids = batch(tokenizer, rows=20_000)
    masked = mask(ids, make_masking(tokenizer, seed=1))
    chosen = masked.labels != IGNORED
    became, was = masked.ids[chosen], ids[chosen]
    # 60,000 draws: one standard deviation is 0.0016 at 0.8. One random token in 100 is the one that was there.
    assert np.mean(became == MASK) == pytest.approx(0.8, abs=0.008)
    others = became[became != MASK]
    assert np.mean(others == was[became != MASK]) == pytest.approx(0.5, abs=0.02)
    assert others.min() >= 5
    assert len(set(others)) == len(tokenizer) - 5  # every ordinary token is drawn


def test_every_place_is_chosen_equally_often_and_another_in_each_epoch(tokenizer):
    ids, masking = batch(tokenizer, rows=20_000), make_masking(tokenizer, seed=1)
    first, second = (mask(ids, masking, epoch=epoch).labels != IGNORED for epoch in (0, 1))
    # One standard deviation of a place's share of 0.15 over 20,000 rows is 0.0025.
    assert first.mean(axis=0)[1:-1] == pytest.approx(0.15, abs=0.0125)
    assert np.mean(first & second) == pytest.approx(np.mean(first) * 0.15, rel=0.1)  # independent


def test_masks_depend_on_seed_epoch_and_row_alone(tokenizer):
    ids = batch(tokenizer, rows=50)
    masking = make_masking(tokenizer, seed=1, extra_share=0.3)
    straight = mask(ids, masking)
    np.random.seed(9)  # noqa: NPY002 - the global generator must not matter
    turned = np.random.default_rng(3).permutation(50)
    padded = np.pad(ids[turned], ((0, 0), (0, 13)))
    again = mask(padded, masking, rows=turned)
    assert (again.ids[:, :22] == straight.ids[turned]).all()
    assert (again.labels[:, :22] == straight.labels[turned]).all()
    assert (again.extra[:, :22] == straight.extra[turned]).all()
    assert (again.labels[:, 22:] == IGNORED).all()
    assert not again.extra[:, 22:].any()
    for other in (
        mask(ids, masking, epoch=1),
        mask(ids, make_masking(tokenizer, seed=2)),
        mask(ids, masking, rows=range(50, 100)),
    ):
        assert np.mean((other.labels != IGNORED) == (straight.labels != IGNORED)) < 0.9


def test_rare_tokens_are_chosen_in_proportion_to_their_weight(tokenizer):
    counts = np.ones(len(tokenizer), dtype=np.int64)
    counts[7] = 1000  # weight 1000 ** -0.7 = 0.00794
    ids = np.tile([CLS, 7, 8, SEP], (40_000, 1))
    masked = mask(ids, make_masking(tokenizer, seed=1, counts=counts))
    # One of two is drawn, so token 7 with 0.00794 / 1.00794 = 0.00788; one standard deviation is 0.00044.
    assert np.mean(masked.labels[:, 1] == 7) == pytest.approx(0.00788, abs=0.0018)
    assert ((masked.labels != IGNORED).sum(axis=1) == 1).all()


def test_extra_positions_are_a_share_of_the_others(tokenizer):
    ids = batch(tokenizer)
    masked = mask(ids, make_masking(tokenizer, seed=1, extra_share=0.25))
    assert (masked.extra.sum(axis=1) == 5).all()  # ceil(0.25 * 17)
    assert not (masked.extra & (masked.labels != IGNORED)).any()
    assert not masked.extra[:, [0, -1]].any()
    everything = mask(ids, make_masking(tokenizer, seed=1, extra_share=1))
    assert (everything.extra.sum(axis=1) == 17).all()


def test_counts_are_those_of_the_corpus(tokenizer):
    corpus = Dataset.from_dict({"input_ids": [[2, 5, 5, 3], [2, 7, 3]]}).select([1, 0, 1])
    assert token_counts(corpus, 9).tolist() == [0, 0, 3, 3, 0, 2, 0, 2, 0]
    with pytest.raises(DataError, match="token 7 and the vocabulary 6"):
        token_counts(corpus, 6)


def test_settings_that_cannot_be_are_refused(tokenizer):
    with pytest.raises(RecipeError, match="share must lie in"):
        make_masking(tokenizer, seed=1, share=0)
    with pytest.raises(DataError, match="3 entries"):
        make_masking(tokenizer, seed=1, counts=np.ones(3, dtype=np.int64))
    bare = train_tokenizer(["a b c"], vocab_size=20, max_length=8)
    bare.mask_token = None
    with pytest.raises(DataError, match="no mask token"):
        make_masking(bare, seed=1)
