"""Batches: every row once, similar lengths together, the same order again."""

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader

from potstill.distill.batches import EpochRows, LengthGroupedSampler, make_collator, make_mlm_collator
from potstill.distill.teacher import train_tokenizer
from potstill.errors import DataError, RecipeError


@pytest.fixture
def lengths():
    return np.random.default_rng(0).integers(3, 60, size=1003).tolist()


def test_every_row_comes_once_in_an_epoch(lengths):
    assert sorted(LengthGroupedSampler(lengths, batch_size=16, seed=1)) == list(range(1003))


def test_the_order_depends_on_seed_and_epoch_alone(lengths):
    one, two = (LengthGroupedSampler(lengths, batch_size=16, seed=1) for _ in range(2))
    first = list(one)
    np.random.seed(5)  # noqa: NPY002 - the global generator must not matter
    assert list(two) == first
    one.set_epoch(1)
    assert list(one) != first
    assert list(LengthGroupedSampler(lengths, batch_size=16, seed=2)) != first


def test_batches_waste_less_than_a_tenth_of_what_random_ones_waste(lengths):
    def padding(order):
        batches = [[lengths[row] for row in order[start : start + 16]] for start in range(0, len(order), 16)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    grouped = padding(list(LengthGroupedSampler(lengths, batch_size=16, seed=1)))
    assert grouped < 0.1 * padding(np.random.default_rng(0).permutation(1003).tolist())


def test_batches_do_not_come_from_short_to_long(lengths):
    order = list(LengthGroupedSampler(lengths, batch_size=16, seed=1))
    means = [np.mean([lengths[row] for row in order[start : start + 16]]) for start in range(0, 992, 16)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4


@pytest.mark.parametrize("rows", [1, 15, 16, 17])
def test_small_data_sets_work(rows):
    assert sorted(LengthGroupedSampler([5] * rows, batch_size=16, seed=1)) == list(range(rows))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["ak bl cm dn eo fp gq hr is jt"], vocab_size=60, max_length=64)


@pytest.fixture(scope="module")
def rows():
    """61 rows of 5 to 20 tokens."""
    generator = np.random.default_rng(0)
    ids = [[2, *generator.integers(5, 20, size=size).tolist(), 3] for size in generator.integers(3, 19, size=61)]
    return Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "length": [len(row) for row in ids]}
    )


def loader(rows, collate, *, processes=1, index=0, workers=0, epoch=0, skip=0):
    """Return the batches that Trainer would see: a loader prepared by accelerate, its epoch set, batches skipped."""
    rows = EpochRows(rows)
    plain = DataLoader(
        rows,
        batch_size=4,
        sampler=rows.sampler(batch_size=4 * processes, seed=1),
        collate_fn=collate,
        num_workers=workers,
    )
    prepared = prepare_data_loader(plain, num_processes=processes, process_index=index, put_on_device=False)
    if skip:
        prepared = skip_first_batches(prepared, skip)
    prepared.set_epoch(epoch)
    return list(prepared)


def same(left, right):
    assert len(left) == len(right)
    for one, two in zip(left, right, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_epoch_travels_with_the_row(rows):
    wrapped = EpochRows(rows)
    found = wrapped[3 * 61 + 7]
    assert (found["row"], found["epoch"]) == (7, 3)
    assert found["input_ids"].tolist() == rows[7]["input_ids"]
    sampler = wrapped.sampler(batch_size=4, seed=1)
    sampler.set_epoch(2)
    keys = list(sampler)
    assert sorted(keys) == list(range(2 * 61, 3 * 61))
    assert [row["epoch"] for row in wrapped.__getitems__(keys)] == [2] * 61


def test_columns_of_any_kind_come_as_they_are():
    rows = Dataset.from_dict({"labels": [[0.0, 1.0], [1.0, 0.0]], "name": ["a", "b"], "parts": [[[1, 2]], [[3], []]]})
    one, two = EpochRows(rows).__getitems__([1, 0])
    assert (one["labels"].tolist(), one["name"], one["parts"]) == ([1.0, 0.0], "b", [[3], []])
    assert (two["labels"].tolist(), two["row"]) == ([0.0, 1.0], 0)


def test_workers_and_a_resume_give_the_batches_of_the_straight_run(rows, tokenizer):
    collate = make_mlm_collator(tokenizer, seed=1, extra_share=0.2)
    straight = loader(rows, collate, epoch=2)
    same(loader(rows, collate, epoch=2, skip=5), straight[5:])
    same(loader(rows, collate, epoch=2, workers=1), straight)
    assert not torch.equal(loader(rows, collate, epoch=1)[0]["input_ids"], straight[0]["input_ids"])


def test_two_processes_share_the_rows_of_one_and_resume_in_their_epoch(rows, tokenizer):
    def keys(batch):
        return [tuple(ids[ids > 0].tolist()) for ids in batch["input_ids"]]

    collate = make_mlm_collator(tokenizer, seed=1)
    wrapped = EpochRows(rows)
    sampler = wrapped.sampler(batch_size=8, seed=1)
    sampler.set_epoch(2)
    one = [collate(wrapped.__getitems__(list(sampler)[start : start + 8])) for start in range(0, 56, 8)]
    first, second = (loader(rows, collate, processes=2, index=index, epoch=2) for index in (0, 1))
    for whole, left, right in zip(one, first, second, strict=False):
        assert keys(whole) == keys(left) + keys(right)  # with the same masks
    for index, straight in enumerate((first, second)):
        same(loader(rows, collate, processes=2, index=index, epoch=2, skip=3), straight[3:])


def test_a_masked_batch_by_hand(tokenizer):
    rows = Dataset.from_dict({"input_ids": [[2, 5, 6, 7, 3], [2, 8, 3]], "attention_mask": [[1] * 5, [1] * 3]})
    rows = EpochRows(rows).__getitems__([0, 1])
    batch = make_mlm_collator(tokenizer, seed=1, share=0.3, extra_share=1)(rows)
    assert batch["input_ids"].shape == (2, 5)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    chosen = batch["masked_labels"] != -100
    assert chosen.sum(dim=1).tolist() == [1, 1]  # ceil(0.3 * 3), ceil(0.3 * 1)
    assert batch["masked_labels"][1].tolist() == [-100, 8, *[-100] * 3]
    assert sorted(batch["positions"].tolist()) == [1, 2, 3, 6]  # all that is not special: the rest is extra
    assert set(batch["positions"].tolist()[:2]) == set(chosen.flatten().nonzero()[:, 0].tolist())  # masked ones first
    only_masked = make_mlm_collator(tokenizer, seed=1, share=0.3)(rows)
    assert (
        only_masked["positions"].tolist() == (only_masked["masked_labels"].flatten() != -100).nonzero()[:, 0].tolist()
    )
    everywhere = make_mlm_collator(tokenizer, seed=1, share=0.3, kl_positions="all")(rows)
    assert sorted(everywhere["positions"].tolist()) == [0, 1, 2, 3, 4, 5, 6, 7]  # two rows of 5: all but the padding
    assert torch.equal(everywhere["masked_labels"], only_masked["masked_labels"])


def test_without_masks_the_inputs_stay_whole(tokenizer):
    rows = [{"input_ids": [2, 5, 3], "attention_mask": [1, 1, 1], "segments": [1, 1, 1], "position_ids": [0, 1, 2]}]
    batch = make_mlm_collator(tokenizer, seed=1, mask=False)(rows)
    assert {name: values.tolist() for name, values in batch.items()} == {
        name: [values] for name, values in rows[0].items()
    }


def test_what_cannot_be_masked_is_refused(tokenizer):
    with pytest.raises(RecipeError, match="no effect"):
        make_mlm_collator(tokenizer, seed=1, kl_positions="all", extra_share=0.1)
    with pytest.raises(DataError, match="EpochRows"):
        make_mlm_collator(tokenizer, seed=1)([{"input_ids": [2, 5, 3], "attention_mask": [1, 1, 1]}])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([1, 0], torch.tensor([1, 0])),
        ([0.5, 2.0], torch.tensor([0.5, 2.0])),
        ([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])),
        ([[-100, 4, -100, -100], [-100, 5, -100]], torch.tensor([[-100, 4, -100, -100], [-100, 5, -100, -100]])),
    ],
)
def test_labels_keep_their_kind(tokenizer, labels, expected):
    rows = Dataset.from_dict(
        {
            "input_ids": [[2, 5, 6, 3], [2, 7, 3]],
            "token_type_ids": [[0, 0, 1, 1], [0, 0, 1]],
            "attention_mask": [[1] * 4, [1] * 3],
            "length": [4, 3],
            "labels": labels,
        }
    )
    for read in ([rows[0], rows[1]], EpochRows(rows).__getitems__([0, 1])):
        batch = make_collator(tokenizer)(read)
        assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
        assert batch["labels"].dtype == expected.dtype
        assert torch.equal(batch["labels"], expected)
        assert batch["input_ids"].tolist() == [[2, 5, 6, 3], [2, 7, 3, 0]]
        assert batch["token_type_ids"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 0]]


def test_answer_positions_are_batched_and_other_columns_are_not(tokenizer):
    row = {"input_ids": [2, 5, 3], "attention_mask": [1, 1, 1], "start_positions": 1, "end_positions": 2, "example": 7}
    batch = make_collator(tokenizer)([row, row])
    assert batch["start_positions"].tolist() == [1, 1]
    assert batch["end_positions"].dtype == torch.int64
    assert set(batch) == {"input_ids", "attention_mask", "start_positions", "end_positions"}
