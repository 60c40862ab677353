import re

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from potstill import bundle
from potstill.bench.report.card import card_with_report
from potstill.card import Result, model_card
from tests.bench import made

DIGEST = "ab" * 32


def manifest(**changes):
    """Return a manifest with the evidence that an export leaves: a judged fp32 and an int8 that lost little."""
    files = {
        "onnx/model.onnx": {"sha256": DIGEST, "size_bytes": 40_000_000},
        "onnx/model_int8.onnx": {"sha256": "cd" * 32, "size_bytes": 10_000_000},
    }
    labels = [
        {"label": "negative", "support": 428, "reference": 0.8925, "candidate": 0.8902},
        {"label": "posi|tive", "support": 444, "reference": 0.8851, "candidate": 0.8829},
    ]
    quality = {
        "labelled": {"metric": "macro_f1", "reference": 0.9123, "candidate": 0.9101},
        "labels": labels,
        "on": "/home/me/secret/reviews.csv (validation)",
    }
    content = {
        "task": "text-classification",
        "labels": ["negative", "posi|tive"],
        "max_length": 128,
        "inputs": ["input_ids"],
        "outputs": ["logits"],
        "parameters": 9_086_978,
        "architecture": {"model_type": "distilbert", "layers": 3, "hidden_size": 384},
        "models": {
            "fp32": {"file": "onnx/model.onnx"},
            "int8": {
                "file": "onnx/model_int8.onnx",
                "batch_invariant": False,
                "quality": quality,
                "invariance": {"rows": 872, "flips": 16},
                "speed": {"ratio": 2.26},
            },
        },
        "files": files,
        "source": {"name": "/home/me/secret/student", "sha256": "ef" * 32, "kind": "checkpoint"},
        "made": {
            "created": "2026-12-01T00:50:31+00:00",
            "packages": {"potstill": "0.1.0"},
            "judged": {"metric": "macro_f1", "value": 0.91234, "on": "/home/me/secret/reviews.csv (validation)"},
        },
    }
    return bundle.Manifest.model_validate(content | changes)


def scores(card):
    """Return what the hub's own parser reads of a card: (data, split, metric, its name, value)."""
    return [
        (row.dataset_type, row.dataset_split, row.metric_type, row.metric_name, row.metric_value)
        for row in ModelCard(card).data.eval_results
    ]


def test_the_hubs_parser_reads_task_tags_and_the_results_of_the_export():
    data = ModelCard(model_card(manifest(), name="student-onnx")).data
    assert (data.pipeline_tag, data.library_name, data.model_name) == (
        "text-classification",
        "transformers.js",
        "student-onnx",
    )
    assert data.tags == ["onnx", "potstill", "int8"]
    assert data.metrics == ["f1"]
    assert scores(model_card(manifest(), name="student-onnx")) == [
        ("reviews", "validation", "f1", "macro f1 (fp32)", 0.9123),
        ("reviews", "validation", "f1", "macro f1 (int8)", 0.9101),
    ]
    head = yaml.safe_load(model_card(manifest(), name="x").split("---")[1])
    assert len(model_index_to_eval_results(head["model-index"])[1]) == 2


def test_a_card_shows_files_and_labels_and_no_path_of_the_machine():
    card = model_card(manifest(), name="student-onnx")
    assert "| `onnx/model.onnx` | 40.0 | 0.9123 |  | yes |" in card
    assert "| `onnx/model_int8.onnx` | 10.0 | 0.9101 | 2.3 | 98.2% |" in card
    assert r"| posi\|tive | 444 | 0.885 | 0.883 |" in card
    assert "/home" not in card
    assert "base_model" not in card


def test_a_model_of_the_hub_is_named_as_the_base_and_its_warning_is_told():
    source = {"name": "distilbert/distilbert-base-uncased", "kind": "checkpoint"}
    made_so = {"judged": {"metric": "accuracy", "value": 0.5, "sentence": "no better than always positive", "on": "d"}}
    card = model_card(manifest(source=source, made=made_so), name="x")
    assert ModelCard(card).data.base_model == "distilbert/distilbert-base-uncased"
    assert "> **Be warned:** in fp32 it is no better than always positive." in card


def test_without_labelled_texts_there_is_no_model_index():
    plain = {"fp32": {"file": "onnx/model.onnx"}}
    card = model_card(manifest(models=plain, made={}), name="x")
    assert ModelCard(card).data.eval_results is None
    assert "- posi\\|tive" not in card
    assert r"negative, posi\|tive" in card


def test_a_data_set_of_the_hub_is_named_as_the_hub_does():
    row = Result(precision="fp32", data="nyu-mll/glue:sst2", split="validation", metric="pearson", value=0.5)
    (found,) = ModelCard(model_card(manifest(), name="x", results=[row])).data.eval_results
    assert (found.dataset_type, found.dataset_config, found.dataset_split) == ("nyu-mll/glue", "sst2", "validation")
    assert (found.metric_type, found.metric_name) == ("pearsonr", "pearson (fp32)")


@pytest.mark.parametrize(("fp32", "expected"), [(True, 'backend="onnx")'), (False, '"file_name": "model_int8.onnx"')])
def test_a_model_with_pooling_says_how_sentence_transformers_loads_it(fp32, expected):
    models = {name: row.model_dump() for name, row in manifest().models.items() if fp32 or name == "int8"}
    changes = {"task": "feature-extraction", "labels": [], "models": models, "pooling": {"mode": "mean"}}
    card = model_card(manifest(**changes), name="x")
    assert "sentence-transformers" in ModelCard(card).data.tags
    assert expected in card
    assert "{ pooling: 'mean', normalize: true }" in card


def test_a_bench_adds_its_scores_and_verdicts_to_the_bundle_whose_files_it_measured():
    report = made.made_report()
    digests = {row.key: next(iter(row.sha256.values())) for row in report.contestants}
    files = {name: row.model_dump() for name, row in manifest().files.items()}
    files["onnx/model_int8.onnx"]["sha256"] = digests["student/int8"]
    files["onnx/model.onnx"]["sha256"] = digests["student/fp32"]
    card = card_with_report(manifest(files=files), report, name="student-onnx")
    wanted = {
        (quality.data, row.key.partition("/")[2]): round(row.value, 4)
        for quality in report.quality
        for row in quality.scores
        if row.key in ("student/fp32", "student/int8")
    }
    found = ModelCard(card).data.eval_results
    assert {(row.dataset_name, row.metric_name.split("(")[1][:-1]): row.metric_value for row in found} == wanted
    findings = re.findall(r"^- .*?: (PASS|FAIL|INCONCLUSIVE)\. ", card, re.MULTILINE)
    own = [claim.verdict for claim in report.claims if claim.subject in ("student", "student/fp32", "student/int8")]
    assert findings == own
    assert own
    assert card_with_report(manifest(), report, name="x") is None


def test_whoever_edits_the_card_breaks_no_bundle(tmp_path):
    (tmp_path / "onnx").mkdir()
    for name in ("README.md", "config.json", "onnx/README.md"):
        (tmp_path / name).write_text("{}")
    assert set(bundle.record_files(tmp_path)) == {"config.json", "onnx/README.md"}
