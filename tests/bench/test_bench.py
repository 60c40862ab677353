"""The bench as a whole, on tiny bundles that really run."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper, numpy_helper

from potstill.bench import DataSet, Request, bench, evaluate_bundle, name_models, pipeline, read_report, verify_report
from potstill.bench.claims import load_claims
from potstill.bench.config import read_suite
from potstill.bench.measure.samples import FILE_NAME
from potstill.bundle import MANIFEST_NAME, read_bundle, record_files, sha256_of, write_manifest
from potstill.config import BenchConfig
from potstill.data import load_examples
from potstill.errors import CheckError, OutputError, TamperedError, UsageError
from potstill.serve import Encoder
from potstill.tasks import TEXT_CLASSIFICATION

from .conftest import LABELS, WORDS, write_bundle

CONFIG = BenchConfig(
    batch_sizes=[1, 2],
    num_tokens=[8, 32],
    threads=1,
    rounds=5,
    launches=2,
    block_s=0.005,
    warm_up_s=0.05,
    resamples=200,
    throughput_batch_sizes=[2],
    throughput_tokens=8,
    callers=[1, 2],
    cold_starts=1,
    realistic_texts=16,
    max_repeats=0,
    extra_launches=0,
)
SHORT = CONFIG.model_copy(
    update={
        "batch_sizes": [1],
        "precisions": ["fp32"],
        "peak": False,
        "throughput_batch_sizes": [],
        "thread_scaling": False,
        "cold_starts": 0,
        "realistic": False,
        "compressed": False,
    }
)


def write_data(folder, count=120):
    draw = np.random.default_rng(3)
    folder.mkdir(exist_ok=True)
    texts = (" ".join(draw.choice(WORDS[5:], size=draw.integers(1, 20))) for _ in range(count))
    rows = [{"text": text, "label": LABELS[draw.integers(2)]} for text in texts]
    (folder / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return DataSet(data=str(folder))


def run(bundles, out_dir, *, config=SHORT, data=(), **more):
    models = [(name, str(folder)) for name, folder in bundles.items()]
    return bench(Request(models=models, data=data), config=config, out_dir=out_dir, seed=5, **more)


@pytest.fixture(scope="module")
def bundles(teacher_dir, student_dir):
    return {"teacher": teacher_dir, "student": student_dir}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "words")


@pytest.fixture(scope="module")
def examples(data):
    return load_examples(data.data, split="validation", task=TEXT_CLASSIFICATION, label_names=LABELS)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def out_dir(bundles, data, told, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("reports") / "report"
    run(bundles, out_dir, config=CONFIG, data=[data], command="potstill bench a b <c>", tell=told.append)
    return out_dir


@pytest.fixture(scope="module")
def report(out_dir):
    return read_report(out_dir)


def test_the_output_holds_the_report_in_three_forms_and_the_samples(out_dir):
    assert {file.name for file in out_dir.iterdir()} == {"report.json", "report.md", "report.html", FILE_NAME}
    assert [file.name for file in out_dir.parent.iterdir()] == ["report"]


def test_the_report_is_complete_and_every_part_is_there(report):
    assert report.complete
    assert report.missing == report.failures == []
    assert report.baseline == "teacher/fp32"
    assert report.candidates == ["student"]
    keys = [f"{name}/{precision}" for name in ("teacher", "student") for precision in ("fp32", "int8")]
    for part in (report.contestants, report.memory, report.cold_start):
        assert [row.key for row in part] == keys
    loads = {"1×8", "1×32", "2×8", "2×32", "own texts", "own texts, tokenised"}
    assert {(row.key, str(row.load)) for row in report.latency} == {(key, load) for key in keys for load in loads}
    assert {(row.key, row.callers) for row in report.throughput} == {(key, n) for key in keys for n in (1, 2)}
    assert report.environment.peaks.fp32_flops_per_s > 1e9
    assert [claim.id for claim in report.claims] == ["size", "file", "speed", "quality"]


def test_before_it_begins_it_tells_what_the_data_can_show(told):
    assert len(told) == 2
    assert told[0].startswith("words: With 120 examples")
    assert told[1].startswith("This takes about ")


def test_the_report_names_the_bytes_and_hashes_of_what_was_measured(report, bundles):
    for name, folder in bundles.items():
        row, file = report.contestant(f"{name}/fp32"), folder / "onnx/model.onnx"
        assert row.sha256["onnx/model.onnx"] == sha256_of(file)
        assert row.file_bytes == file.stat().st_size
        assert row.compressed_bytes < row.file_bytes
        assert report.models[name].parameters == read_bundle(folder).manifest.parameters


def test_ratios_compare_like_with_like_with_the_baseline_and_the_baseline_with_itself(report):
    pairs = {(row.comparison, row.baseline, row.candidate) for row in report.ratios}
    assert pairs == {
        ("like_for_like", "teacher/fp32", "student/fp32"),
        ("like_for_like", "teacher/int8", "student/int8"),
        ("to_baseline", "teacher/fp32", "teacher/int8"),
        ("to_baseline", "teacher/fp32", "student/fp32"),
        ("to_baseline", "teacher/fp32", "student/int8"),
        ("to_own_fp32", "student/fp32", "student/int8"),
        ("again", "teacher/fp32", "teacher/fp32#again"),
    }
    p50 = {(row.key, str(row.load)): row.p50_ms for row in report.latency}
    disturbed = {str(row.load) for row in report.latency if row.disturbed}
    for row in report.ratios:
        if row.comparison != "again" and row.load.kind == "grid":
            assert row.interval[0] <= row.value <= row.interval[1]
            # The median of ratios within rounds, not the ratio of medians: near it, unless others took the cores.
            apart = p50[row.baseline, str(row.load)] / p50[row.candidate, str(row.load)]
            assert str(row.load) in disturbed or row.value == pytest.approx(apart, rel=0.5)


def test_quality_is_what_the_encoder_itself_says(report, bundles, examples):
    (quality,) = report.quality
    scores = {row.key: row for row in quality.scores}
    reference = Encoder(bundles["teacher"], threads=1).logits(examples.texts).argmax(axis=-1)
    for name, folder in bundles.items():
        for precision in ("fp32", "int8"):
            answers = Encoder(folder, precision=precision, threads=1).logits(examples.texts).argmax(axis=-1)
            row = scores[f"{name}/{precision}"]
            assert row.value == np.mean(answers == examples.labels)
            assert row.agreement == np.mean(answers == reference)
            assert evaluate_bundle(folder, examples, precision=precision, threads=1)["value"] == row.value
    assert (quality.num_examples, quality.metric, quality.data_sha256) == (120, "accuracy", examples.sha256)


def test_nothing_is_measured_twice_and_a_finished_bench_is_its_own_answer(bundles, data, out_dir, report):
    before = (out_dir / "report.json").stat().st_mtime_ns
    assert run(bundles, out_dir, config=CONFIG, data=[data], resume=True) == report
    assert (out_dir / "report.json").stat().st_mtime_ns == before


def test_a_finished_bench_is_resumed_for_other_claims_but_not_for_other_models(bundles, data, out_dir, tmp_path):
    copied = tmp_path / "report"
    shutil.copytree(out_dir, copied)
    mine = tmp_path / "mine.yaml"
    mine.write_text("claims:\n- {id: tiny, claim: tiny, measure: file_mb, at_most: 100}\n")
    models = [(name, str(folder)) for name, folder in bundles.items()]
    again = Request(models=models, data=[data], claims=mine)
    report = bench(again, config=CONFIG, out_dir=copied, seed=5, resume=True)
    assert {claim.id for claim in report.claims} == {"tiny"}
    assert read_report(copied) == report
    with pytest.raises(OutputError, match="other models"):
        bench(Request(models=models[::-1][:1], data=[data]), config=CONFIG, out_dir=copied, seed=5, resume=True)


def test_with_overwrite_an_old_report_is_not_taken_for_a_resumed_bench(bundles, data, out_dir, tmp_path):
    class Begins(Exception):
        """The bench has said what it is about to measure."""

    def tell(sentence):
        raise Begins

    copied = tmp_path / "report"
    shutil.copytree(out_dir, copied)
    with pytest.raises(Begins):
        run(bundles, copied, config=CONFIG, data=[data], resume=True, overwrite=True, tell=tell)


def test_a_report_holds_when_some_of_it_is_measured_again(out_dir):
    findings = verify_report(out_dir)
    scores = [row for row in findings if "words" in row.what]
    # Times of microseconds on a machine that runs tests beside it prove nothing; scores must be the same.
    assert scores
    assert all(row.holds for row in scores)


SMALL = [*WORDS[:15], *(f"##{digit}" for digit in range(10))]
"""A third of the words; the others are two pieces each."""


def test_models_of_two_vocabularies_are_held_against_each_other_on_the_same_texts(
    teacher_dir, data, examples, tmp_path
):
    """The student's table has 25 rows: an id of the teacher's would crash it."""
    student = write_bundle(tmp_path / "small", hidden=16, layers=1, words=SMALL)
    changes = {"precisions": ["fp32"], "realistic": True, "throughput_batch_sizes": [2], "num_tokens": [8]}
    claims = tmp_path / "mine.yaml"
    claims.write_text("claims: [{id: tokens, claim: few more, measure: tokens_ratio, at_most: 1.3}]")
    request = Request(models=[("teacher", str(teacher_dir)), ("small", str(student))], data=[data], claims=claims)
    report = bench(request, config=SHORT.model_copy(update=changes), out_dir=tmp_path / "report", seed=5)
    assert report.complete
    assert report.failures == []
    assert report.models["small"].architecture["vocab_size"] == 25
    # [CLS] and [SEP]; word10 to word58 are two pieces; nobody reads more than 32.
    lengths = [
        [2 + sum(1 + many * (len(word) > 5) for word in text.split()) for text in examples.texts] for many in (0, 1)
    ]
    whole, pieces = (np.mean(np.minimum(each, 32)) for each in lengths)
    (quality,) = report.quality
    assert {row.key: row.tokens_per_text for row in quality.scores} == pytest.approx(
        {"teacher/fp32": whole, "small/fp32": pieces}
    )
    assert pieces > 1.5 * whole
    assert f"small reads {pieces / whole:.2f} times as many tokens of a text as teacher" in quality.notes[-1]
    (claim,) = report.claims
    assert (claim.verdict, claim.value) == ("FAIL", pytest.approx(pieces / whole))
    own = {row.key: row.mean_tokens for row in report.latency if row.load.kind == "texts"}
    assert own["small/fp32"] > 1.3 * own["teacher/fp32"]
    # The same texts, each by its own ids.
    answers = Encoder(student, threads=1).logits(examples.texts).argmax(axis=-1)
    assert next(row.value for row in quality.scores if row.key == "small/fp32") == np.mean(answers == examples.labels)
    page = (tmp_path / "report/report.md").read_text()
    assert f"{pieces:.1f} ({pieces / whole:.2f}×)" in page


def test_without_data_quality_is_inconclusive_with_a_reason(bundles, tmp_path):
    report = run(bundles, tmp_path / "report")
    quality = next(claim for claim in report.claims if claim.id == "quality")
    assert report.quality == []
    assert (quality.verdict, quality.value) == ("INCONCLUSIVE", None)
    assert quality.reason


class Breaks:
    """Raise `error` the first time that progress says `word`."""

    def __init__(self, word, act):
        self.word, self.act = word, act

    def __call__(self, stage, done, total, note):
        if self.word in note and self.act is not None:
            act, self.act = self.act, None
            act()


def interrupt():
    raise KeyboardInterrupt


def test_ctrl_c_leaves_an_incomplete_report_and_resume_finishes_it(bundles, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(bundles, tmp_path / "report", progress=Breaks("1×32, round 2", interrupt))
    half = read_report(tmp_path / "report")
    assert not half.complete
    assert any("1×32" in part for part in half.missing)
    assert {str(row.load) for row in half.latency} >= {"1×8"}
    assert not psutil.Process().children()
    with pytest.raises(OutputError, match="--resume"):
        run(bundles, tmp_path / "report")
    with pytest.raises(OutputError, match="another config"):
        run(bundles, tmp_path / "report", config=SHORT.model_copy(update={"rounds": 6}), resume=True)
    whole = run(bundles, tmp_path / "report", resume=True)
    assert whole.complete
    assert {str(row.load) for row in whole.latency} == {"1×8", "1×32"}
    assert [file.name for file in tmp_path.iterdir()] == ["report"]
    kept = {(row.key, str(row.load)): row.samples for row in half.latency}
    for row in whole.latency:
        assert row.samples >= kept.get((row.key, str(row.load)), 0)


def test_a_resumed_budget_without_its_choice_chooses_anew(bundles, tmp_path, monkeypatch):
    """The journal was made, and the machine went down before the choice was in it."""
    seen = []

    def stop(run, *, answers):
        seen.append(run)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "measure", stop)
    config = CONFIG.model_copy(update={"budget_s": 20.0})
    with pytest.raises(KeyboardInterrupt):
        run(bundles, tmp_path / "report", config=config)
    journal = tmp_path / ".report.bench" / FILE_NAME
    lines = journal.read_text().splitlines()
    kept = [line for line in lines if json.loads(line).get("name") != ["fit"]]
    assert len(kept) == len(lines) - 1
    journal.write_text("\n".join(kept) + "\n")
    with pytest.raises(KeyboardInterrupt):
        run(bundles, tmp_path / "report", config=config, resume=True)
    first, again = seen
    assert again.bench.loads == first.bench.loads
    assert again.deadline is not None
    assert [json.loads(line)["name"] for line in journal.read_text().splitlines()[1:]].count(["fit"]) == 1


def test_a_worker_that_is_killed_costs_its_cell_alone(bundles, tmp_path):
    def kill_one():
        for child in psutil.Process().children():
            child.send_signal(signal.SIGKILL)
            return

    report = run(bundles, tmp_path / "report", progress=Breaks("1×8, round 2", kill_one))
    assert [(row.stage, row.where, row.kind) for row in report.failures] == [("latency", "1×8", "out of memory")]
    assert "signal 9" in report.failures[0].reason
    rows = {str(load): sum(str(row.load) == load for row in report.latency) for load in ("1×8", "1×32")}
    assert rows["1×32"] == 2
    assert rows["1×8"] in (1, 2)  # 2 if it was the baseline's second process
    assert report.failures[0].reason in (tmp_path / "report/report.md").read_text()


def break_at(bundle_dir, folder, tokens):
    """Copy a bundle whose logits are infinite for texts of exactly so many tokens."""
    shutil.copytree(bundle_dir, folder)
    bundle = read_bundle(folder)
    file = bundle.model_file("fp32")
    model = onnx.load(str(file))
    graph = model.graph
    (last,) = (node for node in graph.node if "logits" in node.output)
    last.output[0] = "good"
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "second"))
    graph.initializer.append(numpy_helper.from_array(np.array([tokens], dtype=np.float32), "bad_length"))
    graph.node.extend(
        [
            helper.make_node("Shape", ["input_ids"], ["shape"]),
            helper.make_node("Gather", ["shape", "second"], ["length"]),
            helper.make_node("Cast", ["length"], ["real_length"], to=1),
            helper.make_node("Sub", ["real_length", "bad_length"], ["apart"]),
            helper.make_node("Div", ["good", "apart"], ["logits"]),
        ]
    )
    onnx.save(model, str(file))
    (folder / MANIFEST_NAME).unlink()
    write_manifest(folder, bundle.manifest.model_copy(update={"files": record_files(folder)}))
    return folder


def test_answers_that_are_no_numbers_cost_their_cell_alone(bundles, student_dir, tmp_path):
    broken = break_at(student_dir, tmp_path / "broken", tokens=8)
    report = run(bundles | {"student": broken}, tmp_path / "report")
    assert [(row.key, row.where, row.kind) for row in report.failures] == [("student/fp32", "1×8", "not finite")]
    assert {str(row.load) for row in report.latency if row.key == "student/fp32"} == {"1×32"}
    assert any(row.candidate == "student/fp32" and str(row.load) == "1×32" for row in report.ratios)


def test_when_nothing_can_be_measured_there_is_no_report(teacher_dir, tmp_path):
    broken = break_at(teacher_dir, tmp_path / "broken", tokens=8)
    config = SHORT.model_copy(update={"num_tokens": [8]})
    with pytest.raises(CheckError, match="NotFinite"):
        run({"teacher": broken}, tmp_path / "report", config=config)
    assert not (tmp_path / "report").exists()


def test_what_cannot_be_measured_is_refused_before_anything_starts(bundles, data, tmp_path):
    with pytest.raises(UsageError, match="64 tokens are more than the 32 positions"):
        run(bundles, tmp_path / "a", config=BenchConfig(num_tokens=[64]))
    with pytest.raises(UsageError, match="has no fp16"):
        run(bundles, tmp_path / "a", config=BenchConfig(num_tokens=[8], precisions=["fp16"]))
    with pytest.raises(UsageError, match="there are teacher, student"):
        bench(
            Request(models=[(name, str(place)) for name, place in bundles.items()], baseline="tacher"),
            config=SHORT,
            out_dir=tmp_path / "a",
        )
    other = write_bundle(tmp_path / "other", hidden=8, layers=1, labels=["no", "yes"])
    with pytest.raises(UsageError, match="labels of teacher are bad, good, those of student no, yes"):
        run({**bundles, "student": other}, tmp_path / "a", data=[data])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(OutputError, match="not empty"):
        run(bundles, tmp_path / "full")
    with pytest.raises(UsageError, match="neither a bundle"):
        run({"teacher": tmp_path / "full"}, tmp_path / "a")
    (other / "onnx/model.onnx").write_bytes(b"other bytes")
    with pytest.raises(TamperedError, match=r"model\.onnx"):
        run({**bundles, "student": other}, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert not list(tmp_path.glob(".a*"))


def test_models_are_named_by_their_folders_or_by_hand():
    assert name_models(["a/teacher", "b/teacher", "small=c/x"]) == [
        ("teacher", "a/teacher"),
        ("teacher-2", "b/teacher"),
        ("small", "c/x"),
    ]
    for bad in ("=x", "a/b=x", "a#b=x"):
        with pytest.raises(UsageError, match="is no name for a model"):
            name_models([bad])


def blocks(language):
    page = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_the_python_of_the_page_runs(bundles, data, tmp_path, monkeypatch, capsys):
    (block,) = blocks("python")
    for name, folder in bundles.items():
        (tmp_path / f"{name}-onnx").symlink_to(folder)
    (tmp_path / "data").symlink_to(data.data)
    monkeypatch.chdir(tmp_path)
    exec(compile(block.replace("BenchConfig(rounds=12)", "SHORT"), "bench.md", "exec"), {"SHORT": SHORT})
    assert "speed" in capsys.readouterr().out
    assert read_report(tmp_path / "report").complete


def test_the_yaml_of_the_page_is_valid(tmp_path):
    claims, suite = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(claims)
    (tmp_path / "suite.yaml").write_text(suite)
    assert {claim.id for claim in load_claims(tmp_path / "mine.yaml")} == {
        "size",
        "p95",
        "int8",
        "memory",
        "jailbreak",
        "labels",
    }
    assert set(read_suite(tmp_path / "suite.yaml", models=["teacher", "student"]).tasks) == {"SST-2", "MRPC"}


def test_importing_the_room_loads_neither_torch_nor_the_drawing_libraries():
    code = (
        "import sys, potstill.bench as b; b.bench, b.evaluate_bundle, b.read_report\n"
        "print([n for n in ('torch', 'transformers', 'onnx', 'datasets', 'matplotlib', 'jinja2', 'rich') "
        "if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
