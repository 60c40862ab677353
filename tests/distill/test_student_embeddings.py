"""A sentence encoder's vectors are those of its folder's modules: scored, distilled and exported without an option.

What is right is written out here: each text alone, ids by tokenizer.json, torch for the encoder and numpy behind it.
"""

import json

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import BertModel

from potstill.bench import evaluate_bundle
from potstill.checkpoint import read_folder
from potstill.cli.checks import check_run
from potstill.config import ExportConfig, build_recipe
from potstill.data import load_examples
from potstill.distill import distill
from potstill.distill.evaluation import evaluate
from potstill.errors import CheckpointError, RecipeError, UsageError
from potstill.export import export_bundle
from potstill.serve import Encoder
from potstill.tasks import FEATURE_EXTRACTION
from tests.checkpoint.sentence_folders import dense, make_folder, old_pooling
from tests.cli.conftest import potstill  # noqa: F401 (a fixture)
from tests.end_to_end.test_one_score import bench_score
from tests.export.conftest import few_texts  # noqa: F401 (a fixture)

pytestmark = pytest.mark.usefixtures("few_texts")

WIDTH, LONGEST = 32, 12
WORDS = ["wave tide", "sail shore", "peak ridge", "snow climb", "the old things of the sea " * 4 + "wave"]
NORMALIZE = ("Normalize", {}, {})
TO_24 = dense(WIDTH, 24)


def tanh_to_24(vector):
    return np.tanh(TO_24[2]["linear.weight"].numpy() @ vector + TO_24[2]["linear.bias"].numpy())


@pytest.fixture(scope="module")
def teacher(tiny_teacher, tmp_path_factory):
    """A CLS model with a Dense layer, length 1, and fewer tokens than the encoder has positions for."""
    made = tmp_path_factory.mktemp("sentences") / "teacher"
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": None}
    make_folder(made, old_pooling("cls"), TO_24, NORMALIZE, encoder=tiny_teacher, longest=LONGEST, prompts=prompts)
    return rename(made, "BertModel")


def rename(folder, architecture):
    content = json.loads((folder / "config.json").read_text()) | {"architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rows = [
        {"sentence1": one, "sentence2": other, "score": float(abs(i - j))}
        for i, one in enumerate(WORDS)
        for j, other in enumerate(WORDS)
        if i != j
    ]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def states_of(folder, text, longest=LONGEST):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    encoded = tokenizer.encode(text)
    model = BertModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        given = model(input_ids=torch.tensor([encoded.ids]), token_type_ids=torch.tensor([encoded.type_ids]))
    return given.last_hidden_state[0].numpy()


def unit(vector):
    return vector / np.linalg.norm(vector)


def rank_correlation(vectors, rows):
    cosines = [unit(vectors[row["sentence1"]]) @ unit(vectors[row["sentence2"]]) for row in rows]
    return scipy.stats.spearmanr([row["score"] for row in rows], cosines).statistic


def read(data):
    return [json.loads(line) for line in (data / "validation.jsonl").read_text().splitlines()]


def train(teacher, data, out, **settings):
    keys = {"task": "feature-extraction", "distill.method": "embedding", "distill.max_steps": 2, "student.layers": 2}
    keys |= {"teacher.model": str(teacher), "data.name": str(data), "distill.allow_weak_teacher": True, **settings}
    return distill(build_recipe({}, overrides=list(keys.items()), origin="a test"), out)


def export(folder, out):
    return export_bundle(str(folder), out, config=ExportConfig(precisions=["fp32"], rounds=0))


def test_checkpoint_bundle_and_bench_give_one_score_that_is_the_folders_rule(teacher, pairs, tmp_path):
    found = evaluate(teacher, data=pairs)  # the task is inferred, too
    right = {text: tanh_to_24(states_of(teacher, text)[0]) for text in WORDS}
    assert found["scores"]["spearman"] == pytest.approx(rank_correlation(right, read(pairs)), abs=1e-12)
    assert found["task"] == "feature-extraction"
    assert f"cut to {LONGEST} tokens, the max_seq_length of" in found["notes"][0]
    export(teacher, tmp_path / "bundle")
    examples = load_examples(str(pairs), split="validation", task=FEATURE_EXTRACTION)
    bundle = evaluate_bundle(tmp_path / "bundle", examples, threads=1)["scores"]
    bench = bench_score(tmp_path / "bundle", examples, kind="feature-extraction", metric="spearman", tmp_path=tmp_path)
    assert bench == bundle
    assert bundle["spearman"] == pytest.approx(found["scores"]["spearman"], abs=1e-12)
    assert bundle["pearson"] == pytest.approx(found["scores"]["pearson"], abs=1e-5)
    with pytest.raises(UsageError, match=r"pooling is mean, and .*modules.json pools by cls"):
        evaluate(teacher, data=pairs, pooling="mean")
    with pytest.raises(CheckpointError, match=rf"max_seq_length of .*config.json is {LONGEST}; .*, or raise that"):
        evaluate(teacher, data=pairs, max_length=LONGEST + 1)


def test_a_student_has_its_teachers_head_and_exports_the_vectors_that_were_trained(teacher, pairs, tmp_path):
    report = train(teacher, pairs, tmp_path / "student")
    right = {text: tanh_to_24(states_of(teacher, text)[0]) for text in WORDS}
    assert report["teacher"]["scores"]["spearman"] == pytest.approx(rank_correlation(right, read(pairs)), abs=1e-12)
    assert report["data"]["teacher_vectors"] == "cls, 24 numbers, length 1"
    assert f"cut to {LONGEST} tokens" in report["data"]["notes"][0]
    student = tmp_path / "student"
    modules = [row["path"] for row in json.loads((student / "modules.json").read_text())]
    assert modules == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    assert (student / "config_sentence_transformers.json").is_file()
    assert read_folder(student).longest == LONGEST
    layer = load_file(student / "2_Dense" / "model.safetensors")
    expected = {
        text: unit(np.tanh(layer["linear.weight"] @ states_of(student, text)[0] + layer["linear.bias"]))
        for text in WORDS
    }
    assert report["student"]["scores"]["spearman"] == pytest.approx(rank_correlation(expected, read(pairs)), abs=1e-12)
    assert evaluate(student, data=pairs)["scores"] == report["student"]["scores"]
    export(student, tmp_path / "bundle")
    found = Encoder(tmp_path / "bundle").predict(WORDS)
    np.testing.assert_allclose(found, list(expected.values()), atol=1e-5)


def test_a_narrower_student_of_a_plain_teacher_keeps_the_projection_that_it_learned(tiny_teacher, pairs, tmp_path):
    report = train(tiny_teacher, pairs, tmp_path / "student", **{"student.hidden_size": 16, "max_length": 20})
    student = tmp_path / "student"
    layer = load_file(student / "2_Dense" / "model.safetensors")
    expected = {text: layer["linear.weight"] @ states_of(student, text, 20).mean(axis=0) for text in WORDS}
    assert expected[WORDS[0]].shape == (WIDTH,)
    assert report["student"]["scores"]["spearman"] == pytest.approx(rank_correlation(expected, read(pairs)), abs=1e-12)
    assert read_folder(student).longest == 20
    assert evaluate(student, data=pairs)["scores"] == report["student"]["scores"]


def test_a_student_with_modules_of_its_own_keeps_them(teacher, tiny_teacher, pairs, tmp_path):
    student = make_folder(
        tmp_path / "own",
        old_pooling("mean"),
        dense(WIDTH, 24, seed=5),
        NORMALIZE,
        encoder=tiny_teacher,
        longest=LONGEST,
    )
    keys = {"student.layers": None, "student.model": str(student)}
    with pytest.raises(UsageError, match=r"is cls, and .*modules.json pools by mean; leave distill.pooling out"):
        train(teacher, pairs, tmp_path / "student", **keys, **{"distill.pooling": "cls"})
    train(teacher, pairs, tmp_path / "student", **keys)
    flags = json.loads((tmp_path / "student" / "1_Pooling" / "config.json").read_text())
    assert [flag for flag, is_set in flags.items() if is_set is True] == ["pooling_mode_mean_tokens"]


def test_another_pooling_and_unknown_modules_are_refused_before_torch_is_imported(teacher, pairs, tmp_path, potstill):  # noqa: F811
    data = ["--data", str(pairs)]
    code, _, said = potstill("evaluate", str(teacher), *data, "--pooling", "mean")
    assert (code, said.count("\n")) == (2, 1)
    assert "pools by cls; leave --pooling out" in said
    code, _, said = potstill("evaluate", str(teacher), *data, "--max-length", "13")
    assert (code, said.count("\n")) == (2, 1)
    assert "max_seq_length" in said
    odd = make_folder(tmp_path / "odd", {"pooling_mode": "attention"}, encoder=teacher)
    distil = ("distill", str(odd), *data, "--method", "embedding", "--layers", "2", "--out", str(tmp_path / "out"))
    for command in (
        ("evaluate", str(odd), *data),
        ("export", str(odd), "--out", str(tmp_path / "out")),
        distil,
    ):
        code, _, said = potstill(*command)
        assert (code, said.count("\n")) == (2, 1), said
        assert "1_Pooling/config.json pools by attention" in said


def test_a_chain_refuses_to_export_other_vectors_than_are_trained_before_it_trains(teacher, tiny_teacher, pairs):
    def check(model, **settings):
        keys = {"task": "feature-extraction", "distill.method": "embedding", "student.layers": 2}
        keys |= {"teacher.model": str(model), "data.name": str(pairs), **settings}
        check_run(build_recipe({}, overrides=list(keys.items()), origin="a test"))

    check(teacher, **{"export.pooling": "cls", "export.normalize": True})
    check(tiny_teacher, **{"export.pooling": "mean", "export.normalize": False})
    check(tiny_teacher, **{"export.pooling": "cls", "distill.pooling": "cls"})
    with pytest.raises(RecipeError, match=r"export.pooling is mean, and the student pools by cls; leave it out"):
        check(teacher, **{"export.pooling": "mean"})
    with pytest.raises(RecipeError, match=r"export.normalize is true, and the vectors keep their length"):
        check(tiny_teacher, **{"export.normalize": True})


def test_an_encoder_one_level_down_and_one_saved_as_another_class_are_sentence_encoders(tiny_teacher, pairs, tmp_path):
    folder = make_folder(tmp_path / "model", old_pooling("cls"))
    rows = json.loads((folder / "modules.json").read_text())
    rows[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(rows))
    make_folder(folder / "0_Transformer", {}, encoder=tiny_teacher, longest=LONGEST)
    (folder / "0_Transformer" / "modules.json").unlink()
    rename(folder / "0_Transformer", "BertForMaskedLM")
    right = {text: states_of(folder / "0_Transformer", text)[0] for text in WORDS}
    found = evaluate(folder, data=pairs)
    assert (found["task"], read_folder(folder).longest) == ("feature-extraction", LONGEST)
    assert found["scores"]["spearman"] == pytest.approx(rank_correlation(right, read(pairs)), abs=1e-12)
