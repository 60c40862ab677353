import numpy as np
import pytest

from potstill.bench import workload
from potstill.bench.workload import Cell, Vocabulary
from potstill.bundle import read_bundle
from potstill.errors import BundleError, UsageError
from potstill.timing.process import run_block


def test_inputs_are_exactly_as_large_as_asked_and_hold_no_special_token():
    feeds = workload.make_feeds(
        Cell(8, 128), inputs=["input_ids", "attention_mask"], vocabulary=Vocabulary(40, frozenset(range(5))), seed=1
    )
    assert set(feeds) == {"input_ids", "attention_mask"}
    assert feeds["input_ids"].shape == (8, 128)
    assert feeds["input_ids"].dtype == np.int64
    assert set(np.unique(feeds["input_ids"])) == set(range(5, 40))
    assert feeds["attention_mask"].all()


def test_the_same_seed_gives_the_same_inputs_and_another_gives_others():
    first, again, other = (
        workload.make_feeds(Cell(2, 9), inputs=["input_ids"], vocabulary=Vocabulary(40, frozenset()), seed=seed)
        for seed in (1, 1, 2)
    )
    assert (first["input_ids"] == again["input_ids"]).all()
    assert (first["input_ids"] != other["input_ids"]).any()


def test_an_unknown_input_is_refused_by_name():
    with pytest.raises(BundleError, match="pixel_values"):
        workload.make_feeds(Cell(1, 1), inputs=["pixel_values"], vocabulary=Vocabulary(9, frozenset()), seed=0)


def test_the_vocabulary_comes_from_manifest_and_tokenizer(teacher_dir):
    assert workload.read_vocabulary(read_bundle(teacher_dir)) == Vocabulary(64, frozenset({0, 1, 2, 3, 4}))


def test_a_cell_longer_than_the_models_positions_is_refused_up_front(teacher_dir):
    manifest = read_bundle(teacher_dir).manifest
    workload.check_cells([Cell(1, 32)], name="teacher", manifest=manifest)
    with pytest.raises(UsageError, match="33 tokens are more than the 32 positions of the teacher"):
        workload.check_cells([Cell(1, 33)], name="teacher", manifest=manifest)


def test_cells_are_every_combination_once_smallest_first():
    assert list(map(str, workload.make_cells([8, 1, 8], [16, 4]))) == ["1×4", "1×16", "8×4", "8×16"]


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
