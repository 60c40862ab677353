"""Tuning: which recipes are tried, how winners are joined, and that the gates have the last word."""

from dataclasses import replace

import numpy as np
import pytest

from potstill.bundle import ModelRecord
from potstill.errors import BundleError, ParityError
from potstill.export.quantize import Int8Recipe
from potstill.export.tuning import Candidate, candidates, join, race_candidates, tune
from potstill.timing import Race

CELL = (1, 16)


def test_each_candidate_differs_from_the_default_in_one_thing():
    tried = candidates(Int8Recipe())
    assert tried["default"] == Candidate(Int8Recipe())
    names = {"integer attention", "tanh gelu", "per tensor", "fused skip norm", "no smoothing", "static"}
    assert set(tried) == names | {"default"}
    for name in names - {"fused skip norm"}:
        recipe = tried[name].recipe
        changed = [field for field in Int8Recipe.__slots__ if getattr(recipe, field) != getattr(Int8Recipe(), field)]
        assert len(changed) == 1, name
    assert tried["fused skip norm"] == Candidate(Int8Recipe(), ())


def test_a_static_file_stays_static_and_without_texts_nothing_needs_them():
    assert "static" not in candidates(Int8Recipe(method="static"))
    assert not {"static", "no smoothing"} & set(candidates(Int8Recipe(smoothing=None)))


def test_joining_makes_every_change():
    tried = candidates(Int8Recipe(weight_bits=7))
    joined = join([tried[name] for name in ("tanh gelu", "static", "fused skip norm")], tried["default"])
    assert joined == Candidate(Int8Recipe(weight_bits=7, gelu="tanh", method="static"), ())


def race_of(speeds, *, failures=None):
    """A race in which each one always takes 10 ms divided by its speed."""
    rounds = {name: {CELL: [np.full(3, 10 / speed)] * 4} for name, speed in speeds.items()}
    return Race((CELL,), rounds, failures or {})


class Gates:
    """Stands in for the making of a file: some recipes do not hold, and some make files that nobody can load."""

    def __init__(self, refused=(), broken=()):
        self.refused, self.broken, self.made = refused, broken, []

    def __call__(self, candidate):
        self.made.append(candidate.recipe)
        if candidate.recipe in self.refused:
            raise ParityError("int8 loses more\nthan is allowed")
        if candidate.recipe in self.broken:
            raise BundleError("cannot be loaded")
        return ModelRecord(file="onnx/model_int8.onnx", disabled_optimizers=list(candidate.disabled_optimizers))


def tuned(time, gates=None):
    """Tune int8, with races that are decided by `time`."""
    return tune(Int8Recipe(), time=time, make=gates or Gates(), say=lambda note: None)


SPEEDS = {"integer attention": 1.2, "tanh gelu": 1.1, "integer attention + tanh gelu": 1.3}


def by_table(tried):
    return race_of({name: SPEEDS.get(name, 0.9 if name != "default" else 1.0) for name in tried})


def test_the_fastest_recipe_that_holds_is_kept_and_all_are_told():
    both = Int8Recipe(attention="integer", gelu="tanh")
    gates = Gates(refused=[both])
    record = tuned(by_table, gates)
    assert gates.made == [both, Int8Recipe(attention="integer")]
    rows = {row.name: row for row in record.tuning.candidates}
    assert record.tuning.kept == "integer attention"
    assert list(rows)[:2] == ["integer attention + tanh gelu", "integer attention"]
    assert rows["integer attention + tanh gelu"].refused == "int8 loses more"
    assert rows["integer attention"].ratio == pytest.approx(1.2)
    assert rows["default"].ms == {"1x16": 10.0}
    assert len(rows) == 8


def test_the_default_is_kept_where_nothing_is_faster():
    record = tuned(lambda tried: race_of({name: 0.9 if name != "default" else 1.0 for name in tried}))
    assert record.tuning.kept == "default"


def test_the_default_is_kept_where_what_looks_faster_may_not_be():
    """Twice as fast in half of the rounds, and half as fast in the others."""

    def fake(tried):
        result = race_of({"default": 1.0})
        result.rounds["static"] = {CELL: [np.full(3, latency_ms) for latency_ms in (5, 20, 5, 20)]}
        result.rounds["tanh gelu"] = {CELL: [np.full(3, latency_ms) for latency_ms in (5, 20, 5, 5)]}
        return result

    record = tuned(fake)
    assert record.tuning.kept == "default"
    rows = {row.name: row for row in record.tuning.candidates}
    assert rows["tanh gelu"].ratio == 2
    assert rows["tanh gelu"].interval[0] <= 1


def test_nothing_is_published_if_nothing_holds():
    everything = [candidate.recipe for candidate in candidates(Int8Recipe()).values()]
    everything.append(replace(Int8Recipe(), attention="integer", gelu="tanh"))
    with pytest.raises(ParityError, match=r"no recipe holds.*nothing was published"):
        tuned(by_table, Gates(refused=everything))


def test_a_candidate_that_cannot_run_is_told_and_never_kept():
    def fake(tried):
        return race_of({"default": 1.0, "static": 0.9}, failures={"integer attention": "no kernel"})

    record = tuned(fake)
    rows = {row.name: row for row in record.tuning.candidates}
    assert record.tuning.kept == "default"
    assert rows["integer attention"].failed == "no kernel"
    assert rows["integer attention"].ratio is None


@pytest.mark.parametrize("everywhere", [True, False])
def test_a_candidate_that_failed_in_the_race_is_listed_but_never_made(everywhere):
    """Whoever fails in a single cell may look fast in the others."""

    def fake(tried):
        speeds = {"default": 1.0, "static": 0.9} | ({} if everywhere else {"integer attention": 2.0})
        return race_of(speeds, failures={"integer attention": "no kernel"})

    default, static, broken = Int8Recipe(), Int8Recipe(method="static"), Int8Recipe(attention="integer")
    gates = Gates(refused=[default], broken=[broken])
    record = tuned(fake, gates)
    assert gates.made == [default, static]
    assert record.tuning.kept == "static"
    names = [row.name for row in record.tuning.candidates]
    assert names[:2] == ["default", "static"]
    assert set(names) == set(candidates(default))
    with pytest.raises(ParityError, match=r"no recipe holds: default: [^;]*; static: [^;]*; nothing was published"):
        tuned(fake, Gates(refused=[default, static], broken=[broken]))


def test_candidates_really_race(tiny_bundle):
    from potstill.export.onnx_files import load_model
    from potstill.export.quantize import prepare
    from potstill.serve import Encoder

    encoder = Encoder(tiny_bundle)
    prepared = prepare(load_model(tiny_bundle / "onnx" / "model.onnx"), [encoder.tokenizer.encode(["we saw a wave"])])
    tried = {name: candidates(Int8Recipe())[name] for name in ("default", "integer attention")}
    result = race_candidates(tried, prepared, vocab_size=90, max_length=32, rounds=2)
    assert result.failures == {}
    assert result.cells == ((1, 16), (1, 32), (8, 32), (32, 32))
    assert result.overall("default", "integer attention").value > 0


@pytest.mark.parametrize("number", [0, 1])
def test_what_disturbed_either_race_is_told(number):
    races = []

    def fake(tried):
        result = by_table(tried)
        if len(races) == number:
            result.disturbances[CELL] = ["other processes took 40% of the time of the cores"]
        races.append(result)
        return result

    record = tuned(fake)
    assert record.tuning.disturbed == "other processes took 40% of the time of the cores (at 1x16)"
    ratios = {row.name: row.ratio for row in record.tuning.candidates}
    # Of a disturbed first race nothing is known; of a disturbed second one the joined recipe.
    assert (ratios["default"] is None) == (number == 0)
    assert ratios.get("integer attention + tanh gelu") is None
    assert record.tuning.kept == ("default" if number == 0 else "integer attention")
