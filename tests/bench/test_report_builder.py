"""A report of language models with tokenizers of their own: times stand side by side, perplexities do not."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from potstill.bench.config import LoadedDataset
from potstill.bench.report_builder import make_report
from potstill.bench.report_schema import Contestant, Model
from potstill.data import Examples
from tests.bench.fake_worker import SHORT, World, make_run
from tests.bench.test_results import fill

KEYS = ("t/fp32", "s/fp32", "same/fp32")


def test_language_models_with_other_words_are_timed_and_not_scored(tmp_path):
    run = make_run(tmp_path, World(), keys=KEYS, loads=[SHORT])
    fill(run, SHORT, {"t/fp32": 8, "s/fp32": 4, "same/fp32": 2})
    texts = Examples(name="own", split="test", texts=["a b", "c d"], labels=None, label_names=(), sha256="0" * 64)
    facts = Model(task="fill-mask", parameters=9, encoder_parameters=9, max_length=512)
    dataset = LoadedDataset(
        name="own",
        examples=texts,
        kind="fill-mask",
        metric="perplexity",
        configurations=run.bench.configurations,
        has_own_models=False,
    )
    models = {key.partition("/")[0]: SimpleNamespace(facts=facts, flops_per_token=lambda *_: None) for key in KEYS}
    bench = replace(run.bench, models=models, datasets=(dataset,))
    answers = {
        "nll": np.ones(2),
        "choices": np.array([1, 2]),
        "wanted": np.array([1, 3]),
        "texts": np.array([0, 1]),
        "vocabulary": np.array(50),
        "choice_words": np.array(["b", "d"]),
    }
    (tmp_path / "answers").mkdir()
    for number, key in enumerate(KEYS):
        words = np.array(["b", "##d" if key == "s/fp32" else "d"])
        np.savez(tmp_path / "answers" / f"{number}.npz", allow_pickle=False, wanted_words=words, **answers)
        given = {"file": f"{number}.npz", "texts": 2, "mean_tokens": 4.0 + (key == "s/fp32")}
        run.journal.put(("answers", key, "own"), given)
    rows = [
        Contestant(key=key, model=key[:-5], precision="fp32", runner="onnxruntime-cpu", threads=2).model_dump(
            mode="json"
        )
        for key in KEYS
    ]
    run.journal.put(("rows",), rows)
    report = make_report(bench, run.journal, tmp_path)
    (quality,) = report.quality
    assert [row.key for row in quality.scores] == ["t/fp32", "same/fp32"]
    assert [row.tokens_per_text for row in quality.scores] == [4.0, 4.0]
    (failure,) = report.failures
    assert (failure.key, failure.stage, failure.where) == ("s/fp32", "quality", "own")
    assert "splits words otherwise than the baseline's" in failure.reason
    assert {row.key for row in report.latency} == set(KEYS)
    # Nothing is still to be answered.
    assert not [part for part in report.missing if "quality" in part]
