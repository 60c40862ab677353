"""`potstill run` for the tasks that are no text classification: distilled, exported, benched, and answered."""

import json
import random

import pytest

from potstill.config import build_recipe
from potstill.pipeline import run
from potstill.serve import Encoder
from tests.serve.tasks.models import build, word_piece

pytestmark = pytest.mark.slow

WORDS = (
    *("the", "good", "film", "was", "not", "very", "bad", "but", "it", "had"),
    *("a", "long", "story", "about", "sea", "Ada", "London", "two", "spaces"),
)
METHODS = {
    "token-classification": "task",
    "question-answering": "task",
    "fill-mask": "distilbert",
    "feature-extraction": "embedding",
}
INPUTS = {
    "token-classification": "Ada saw London",
    "question-answering": ("what is good?", "the good film was long"),
    "fill-mask": "the [MASK] film",
    "feature-extraction": "the good film",
}
QUICK_EXPORT = {"calibration_texts": 16, "judged_texts": 20, "rounds": 0, "max_loss": 0.9}
QUICK_BENCH = {
    "rounds": 5,
    "block_s": 0.01,
    "warm_up_s": 0.1,
    "num_tokens": [16],
    "batch_sizes": [1],
    "launches": 1,
    "again": False,
    "realistic": False,
    "throughput_batch_sizes": [],
    "callers": [1],
    "thread_scaling": False,
    "compressed": False,
    "cold_starts": 0,
    "max_repeats": 0,
    "resamples": 200,
}


def row(task, number, words):
    """Return one labelled example of a task."""
    text = " ".join(words)
    if task == "token-classification":
        tags = ["B-PER" if word == "Ada" else "B-LOC" if word == "London" else "O" for word in words]
        return {"tokens": words, "ner_tags": tags}
    if task == "question-answering":
        start = len(" ".join(words[:2])) + 1
        return {"question": "what?", "context": text, "answers": {"text": [words[2]], "answer_start": [start]}}
    if task == "fill-mask":
        return {"text": text}
    return {"sentence1": text, "sentence2": " ".join(words[::-1]), "score": float(number % 5)}


@pytest.mark.parametrize("task", METHODS)
def test_the_whole_chain(task, tmp_path):
    draw, data = random.Random(0), tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 60), ("validation", 40)):
        rows = [row(task, number, draw.choices(WORDS, k=draw.randint(4, 9))) for number in range(count)]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = word_piece()
    build(task, tokenizer, labels=["O", "B-PER", "B-LOC"]).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    pooling = {"pooling": "cls"} if task == "feature-extraction" else {}
    recipe = {
        "task": task,
        "teacher": {"model": str(tmp_path / "teacher")},
        "student": {"layers": 1},
        "data": {"name": str(data)},
        "max_length": 48,
        "distill": {"method": METHODS[task], "max_steps": 2, "batch_size": 8, "allow_weak_teacher": True, **pooling},
        "export": QUICK_EXPORT,
        "bench": QUICK_BENCH,
    }
    run(build_recipe(recipe, origin="test"), tmp_path / "out")
    assert (tmp_path / "out" / "report" / "report.json").is_file()
    for role in ("teacher", "student"):
        encoder = Encoder(tmp_path / "out" / role, precision="int8", threads=1)
        assert encoder.predict([INPUTS[task]]) == [encoder.predict(INPUTS[task])]
        if pooling:
            assert encoder.manifest.pooling.mode == "cls"
        # Where there are labels, int8 is judged by the task's own score.
        labelled = encoder.record.quality.labelled
        own = {"token-classification": "f1", "question-answering": "f1", "feature-extraction": "spearman"}.get(task)
        assert (labelled and labelled.metric) == own
        assert (encoder.manifest.made.judged and encoder.manifest.made.judged.metric) == own
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    for scores in report["quality"][0]["scores"]:
        assert scores["better_than_trivial"] in (True, False)
