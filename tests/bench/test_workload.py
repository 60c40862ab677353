import numpy as np
import pytest

from potstill.bench import workload
from potstill.bench.report_schema import Load
from potstill.bundle import read_bundle
from potstill.errors import BundleError, UsageError
from potstill.serve import BundleTokenizer
from potstill.timing.worker_loop import run_block

INPUTS = ("input_ids", "attention_mask")
IDS = np.arange(5, 64)


class FakeRunner:
    """Write down what it is asked to run."""

    inputs, vocab_size = INPUTS, 64

    def __init__(self, tokenizer):
        self.tokenizer, self.prepared, self.ran, self.called = tokenizer, [], [], []

    def run(self, feeds):
        self.ran.append(feeds["input_ids"].tolist())
        return {"logits": np.zeros((1, 2))}

    def prepare(self, feeds):
        self.prepared.append(feeds)
        return lambda: self.called.append(feeds["input_ids"].shape[1])


@pytest.fixture(scope="module")
def tokenizer(teacher_dir):
    return BundleTokenizer(teacher_dir, read_bundle(teacher_dir, verify=False).manifest)


@pytest.fixture
def runner(tokenizer):
    return FakeRunner(tokenizer)


def words(count):
    return " ".join(["word1"] * count)


def test_grid_feeds_are_exactly_as_large_as_asked():
    feeds = workload.grid_feeds(Load(batch_size=3, num_tokens=7), inputs=INPUTS, ids=IDS, seed=0)
    assert list(feeds) == ["input_ids", "attention_mask"]
    assert {values.shape for values in feeds.values()} == {(3, 7)}
    assert {values.dtype for values in feeds.values()} == {np.dtype(np.int64)}
    assert feeds["attention_mask"].min() == 1


def test_grid_feeds_hold_ordinary_tokens_of_every_kind_and_no_others():
    feeds = workload.grid_feeds(Load(batch_size=64, num_tokens=64), inputs=INPUTS, ids=np.array([5, 9, 11]), seed=0)
    assert set(np.unique(feeds["input_ids"])) == {5, 9, 11}


def test_token_types_are_zero_where_a_model_wants_them():
    feeds = workload.grid_feeds(Load(num_tokens=4), inputs=["token_type_ids", "input_ids"], ids=IDS, seed=0)
    assert list(feeds) == ["token_type_ids", "input_ids"]
    assert feeds["token_type_ids"].tolist() == [[0, 0, 0, 0]]


def test_the_same_load_and_seed_give_every_model_the_same_tokens():
    def ids(load=Load(batch_size=2, num_tokens=9), inputs=INPUTS, seed=1):  # noqa: B008 (frozen)
        return workload.grid_feeds(load, inputs=inputs, ids=IDS, seed=seed)["input_ids"]

    assert np.array_equal(ids(), ids(inputs=("token_type_ids", "attention_mask", "input_ids")))
    assert not np.array_equal(ids(), ids(seed=2))
    assert not np.array_equal(ids()[0], ids(Load(batch_size=3, num_tokens=9))[0])


def test_an_input_that_nobody_fills_is_refused():
    with pytest.raises(BundleError, match="'pixel_values'"):
        workload.grid_feeds(Load(num_tokens=1), inputs=["pixel_values"], ids=IDS, seed=0)


@pytest.mark.parametrize(("load", "ids"), [(Load(), IDS), (Load(num_tokens=4), IDS[:0])])
def test_a_grid_without_length_or_tokens_is_refused(load, ids):
    with pytest.raises(UsageError, match="a length and ordinary tokens"):
        workload.grid_feeds(load, inputs=INPUTS, ids=ids, seed=0)


def test_ordinary_tokens_are_the_vocabulary_without_the_special_ones(tokenizer):
    # 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK].
    assert tokenizer.ordinary_ids().tolist() == list(range(5, 64))
    assert tokenizer.ordinary_ids(1000).tolist() == list(range(5, 64))
    assert tokenizer.ordinary_ids(20).tolist() == list(range(5, 20))


def test_a_load_longer_than_the_models_positions_is_refused_up_front():
    workload.check_loads([Load(num_tokens=32), Load(kind="texts")], name="teacher", positions=32)
    with pytest.raises(UsageError, match="33 tokens are more than the 32 positions of the teacher"):
        workload.check_loads([Load(num_tokens=8), Load(num_tokens=33)], name="teacher", positions=32)


def test_loads_are_every_combination_once_smallest_first():
    assert list(map(str, workload.make_loads([8, 1, 8], [16, 4]))) == ["1×4", "1×16", "8×4", "8×16"]


def test_a_grid_load_is_one_prepared_call(runner):
    work = workload.make_workload(Load(batch_size=2, num_tokens=6), runner, texts=[], seed=3)
    work.go_round(5)()
    assert runner.called == [6]
    assert work.mean_tokens == 6
    assert work.calls == work.warm
    expected = workload.grid_feeds(Load(batch_size=2, num_tokens=6), inputs=INPUTS, ids=IDS, seed=3)
    assert np.array_equal(runner.prepared[0]["input_ids"], expected["input_ids"])


def test_texts_keep_their_own_lengths_and_are_tokenised_before(runner):
    work = workload.make_workload(Load(kind="texts"), runner, texts=[words(1), words(4), (words(2), words(3))], seed=0)
    # [CLS] and [SEP] around a text, one more [SEP] behind a pair.
    assert work.mean_tokens == (3 + 6 + 8) / 3
    call = work.go_round()
    for _ in range(4):
        call()
    assert sorted(runner.called[:3]) == [3, 6, 8]
    assert runner.called[3] == runner.called[0]
    assert runner.ran == []


def test_the_round_goes_on_where_it_was(runner):
    work = workload.make_workload(Load(kind="texts"), runner, texts=[words(count) for count in range(1, 6)], seed=0)
    call = work.go_round()
    for _ in range(5):
        call()
    whole = runner.called.copy()
    runner.called.clear()
    call = work.go_round(5 + 3)
    for _ in range(4):
        call()
    assert runner.called == [*whole[3:], *whole[:2]]


def test_tokenisation_is_part_of_the_call_where_it_is_asked_for(runner, monkeypatch):
    work = workload.make_workload(Load(kind="texts_tokenised"), runner, texts=["word1", "word2 word3"], seed=0)
    encoded = []
    monkeypatch.setattr(runner.tokenizer, "encode", lambda texts: encoded.append(texts) or {"input_ids": np.ones(1)})
    call = work.go_round()
    call(), call()
    assert sorted(encoded) == [["word1"], ["word2 word3"]]
    assert len(runner.ran) == 2
    assert runner.called == []


def test_the_warm_up_takes_texts_from_the_longest_to_the_shortest(runner):
    texts = [words(1 + number % 25) for number in range(100)]
    work = workload.make_workload(Load(kind="texts"), runner, texts=texts, seed=0)
    lengths = [feeds["input_ids"].shape[1] for feeds in work.samples]
    assert len(work.warm) == len(lengths) == 16
    assert lengths == sorted(lengths, reverse=True)
    assert (lengths[0], lengths[-1]) == (27, 3)
    for call in work.warm:
        call()
    assert runner.called == lengths


@pytest.mark.parametrize(("texts", "batch_size"), [([], 1), (["word1"], 2)])
def test_texts_are_there_and_come_one_by_one(runner, texts, batch_size):
    with pytest.raises(UsageError, match="one by one"):
        workload.make_workload(Load(kind="texts", batch_size=batch_size), runner, texts=texts, seed=0)


def test_any_few_texts_in_a_row_are_about_as_long_as_all():
    lengths = np.random.default_rng(0).lognormal(3, 0.6, size=128).astype(np.int64)
    order = workload.mix_lengths(lengths)
    assert sorted(order) == list(range(128))
    mixed = lengths[order]
    windows = np.lib.stride_tricks.sliding_window_view(mixed, 16)
    medians = np.median(windows, axis=1) / np.median(lengths)
    # A shuffled order: 0.62 to 1.31.
    assert medians.min() > 0.85
    assert medians.max() < 1.2


class Clock:
    """Each call of the model takes `call_ms`."""

    def __init__(self, call_ms):
        self.now_ns, self.calls, self.call_ms = 0, 0, call_ms

    def call(self):
        self.calls += 1
        self.now_ns += round(self.call_ms * 1e6)

    def read(self):
        return self.now_ns


def test_a_block_lasts_its_time_and_does_not_count_its_first_call():
    clock = Clock(10)
    latencies_ms = run_block(clock.call, seconds=0.25, min_calls=3, clock_ns=clock.read)
    assert latencies_ms == [10.0] * 25
    assert clock.calls == 26


def test_a_block_of_slow_calls_goes_on_until_there_are_enough():
    clock = Clock(1000)
    assert run_block(clock.call, seconds=0.25, min_calls=6, clock_ns=clock.read) == [1000.0] * 6
