"""One score for a model, whoever asks: `evaluate`, `bench`, and a client that posts one text after the other.

The client's scores are made by scikit-learn, scipy and seqeval of the JSON that it gets. All five tasks, with random
models, whose answers are as near to ties as any; windows, cut texts and questions without an answer among them.
"""

import asyncio
import json

import numpy as np
import pytest
import scipy.stats
import seqeval.metrics
import sklearn.metrics

from potstill.bench.measure.memory import MemoryGrowth
from potstill.bench.worker_commands import WorkerCommands
from potstill.bundle import Pooling
from potstill.data import Examples
from potstill.distill.evaluation import Evaluation
from potstill.evaluation.comparison import compare_models
from potstill.evaluation.predictions import load_predictions, mask_words
from potstill.evaluation.summary import evaluate_bundle
from potstill.serve.batching import Engine, EngineSettings
from potstill.serve.http import create_app
from potstill.serve.limits import Limits
from potstill.tasks import get_task
from tests.evaluation.test_independent import squad
from tests.serve.tasks import models

WORDS = (
    *("ada", "lovelace", "lived", "in", "london", "near", "the", "good", "film", "was"),
    *("not", "very", "bad", "but", "it", "had", "a", "long", "story", "about", "sea"),
)


def draw(seed):
    return np.random.default_rng(seed)


def sentences(count, *, seed=0, longest=30):
    """Some of them are longer than the 48 tokens that the models read."""
    return [" ".join(draw([seed, n]).choice(WORDS, size=draw([seed, n]).integers(1, longest))) for n in range(count)]


def examples(texts, labels, names=()):
    return Examples(name="made", split="test", texts=texts, labels=labels, label_names=tuple(names), sha256="0" * 64)


class Client:
    """Posts one request after the other to the application in front of the real engine."""

    def __init__(self, encoder):
        self._encoder = encoder

    def post(self, items, parameters=None):
        """Return the answer to each item."""

        async def main():
            limits = Limits()
            engine = Engine({"model": self._encoder}, settings=EngineSettings(threads=1, limits=limits))
            app = create_app(engine, limits=limits)
            await asyncio.to_thread(engine.warm_up)
            engine.start(asyncio.get_running_loop())
            try:
                given = parameters if isinstance(parameters, list) else [parameters] * len(items)
                return [await _post(app, item, own) for item, own in zip(items, given, strict=True)]
            finally:
                await engine.close()

        return asyncio.run(main())


async def _post(app, item, parameters):
    body = json.dumps({"inputs": item} | ({"parameters": parameters} if parameters else {})).encode()
    sent = []

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "headers": [(b"content-type", b"application/json")],
        "state": {"received_at": asyncio.get_running_loop().time()},
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent[1]["body"]
    return json.loads(sent[1]["body"])


def bench_score(folder, data, *, kind, metric, tmp_path):
    """Return the score that a bench makes of a bundle by its worker."""
    duties = WorkerCommands(MemoryGrowth(interpreter_rss_bytes=1), process_ms=0.0, import_ms=0.0)
    duties.answer(
        {
            "do": "load",
            "runner": "onnxruntime-cpu",
            "folder": str(folder),
            "precision": "fp32",
            "threads": 1,
            "seed": 0,
            "spinning": False,
            "task": "",
            "problem_type": None,
            "max_length": None,
        }
    )
    file = tmp_path / "answers.npz"
    # As they come through a pipe to the worker.
    texts = json.loads(json.dumps(data.texts))
    duties.answer({"do": "answer", "texts": texts, "kind": kind, "file": str(file)})
    compared = compare_models(
        {"a/fp32": load_predictions(file)},
        data,
        name="made",
        kind=kind,
        metric=metric,
        baseline="a/fp32",
        pairs=[],
        seed=0,
        resamples=50,
    )
    return compared.quality.scores[0].scores


def all_scores(task, tokenizer, data, *, metric, kind=None, tmp_path, loaded=None, **settings):
    """Return the scores by `evaluate` of the bundle after they were found equal to the bench's, and near to torch's."""
    kind = kind or task
    model, theirs, encoder = loaded or models.load(task, tokenizer, tmp_path, **settings)
    folder = encoder.bundle.folder
    found = evaluate_bundle(folder, data, metric=metric, threads=1)
    assert found["lost_finite"] == 0
    assert bench_score(folder, data, kind=kind, metric=metric, tmp_path=tmp_path) == {
        name: found["scores"][name] for name in found["scores"]
    }
    torch = Evaluation(theirs, data, max_length=models.LONGEST, task=get_task(task), pooling="mean").score(model)
    assert torch[metric] == pytest.approx(found["value"], rel=1e-5, abs=1e-5)
    return found["scores"], Client(encoder), encoder


def test_classes(tmp_path):
    texts = sentences(60)
    data = examples(texts, draw(1).integers(6, size=60), models.TAGS)
    scores, client, _ = all_scores(
        "text-classification",
        "word pieces",
        data,
        metric="accuracy",
        kind="single_label_classification",
        tmp_path=tmp_path,
    )
    given = [models.TAGS.index(answer[0]["label"]) for answer in client.post(texts)]
    assert scores["accuracy"] == sklearn.metrics.accuracy_score(data.labels, given)
    assert scores["macro_f1"] == pytest.approx(
        sklearn.metrics.f1_score(data.labels, given, average="macro", zero_division=0), abs=1e-15
    )
    assert scores["matthews_correlation"] == pytest.approx(
        sklearn.metrics.matthews_corrcoef(data.labels, given), abs=1e-15
    )


def test_label_sets(tmp_path):
    texts = sentences(40, seed=2)
    labels = (draw(2).random((40, 6)) < 0.4).astype(float)
    scores, client, _ = all_scores(
        "text-classification",
        "word pieces",
        examples(texts, labels, models.TAGS),
        metric="micro_f1",
        kind="multi_label_classification",
        tmp_path=tmp_path,
        problem_type="multi_label_classification",
    )
    chosen = [{entry["label"] for entry in answer if entry["score"] > 0.5} for answer in client.post(texts)]
    given = np.array([[tag in labels for tag in models.TAGS] for labels in chosen])
    assert scores["micro_f1"] == sklearn.metrics.f1_score(labels, given, average="micro")
    assert scores["subset_accuracy"] == sklearn.metrics.accuracy_score(labels, given)


@pytest.mark.parametrize("problem_type", ["regression", None])
def test_amounts_of_pairs(problem_type, tmp_path):
    """Without a problem type of its own, a single output is served as a probability, and so it is scored."""
    pairs = list(zip(sentences(50, seed=3), sentences(50, seed=4), strict=True))
    data = examples(pairs, draw(3).uniform(0, 5, size=50))
    scores, client, _ = all_scores(
        "text-classification",
        "word pieces",
        data,
        metric="pearson",
        kind="regression",
        tmp_path=tmp_path,
        labels=["score"],
        problem_type=problem_type,
    )
    items = [{"text": one, "text_pair": two} for one, two in pairs]
    given = [answer[0]["score"] for answer in client.post(items)]
    assert (min(given) > 0 and max(given) < 1) is (problem_type is None)
    assert scores["pearson"] == pytest.approx(scipy.stats.pearsonr(data.labels, given).statistic, abs=1e-14)
    assert scores["spearman"] == pytest.approx(scipy.stats.spearmanr(data.labels, given).statistic, abs=1e-14)
    assert scores["mse"] == pytest.approx(sklearn.metrics.mean_squared_error(data.labels, given), rel=1e-14)


@pytest.mark.filterwarnings("ignore:.*seems not to be NE tag")
@pytest.mark.parametrize("tokenizer", ["word pieces", "byte pairs"])
def test_entities(tokenizer, tmp_path):
    """Byte-level tokenizers too, which know a word by the space before it: the text is what is served."""
    texts = [[*text.split(), "Don't", "U.S.", "東京"][-25:] for text in sentences(40, seed=5)]
    data = examples(texts, [draw([5, n]).integers(6, size=len(text)) for n, text in enumerate(texts)], models.TAGS)
    scores, client, _ = all_scores("token-classification", tokenizer, data, metric="f1", tmp_path=tmp_path)
    parameters = {"aggregation_strategy": "none", "ignore_labels": []}
    given = []
    for words, tokens in zip(texts, client.post([" ".join(words) for words in texts], parameters), strict=True):
        tags, start = [], 0
        for word in words:
            end = start + len(word)
            tags.append(next((t["entity"] for t in tokens if t["start"] < end and t["end"] > start), "O"))
            start = end + 1
        given.append(tags)
    wanted = [[models.TAGS[tag] for tag in row] for row in data.labels]
    assert any(tag != "O" for tags in given for tag in tags)
    for name in ("f1", "precision", "recall", "accuracy"):
        assert scores[name] == pytest.approx(getattr(seqeval.metrics, f"{name}_score")(wanted, given), abs=1e-15)


@pytest.fixture(scope="module")
def questions_model(tmp_path_factory):
    return models.load("question-answering", "word pieces", tmp_path_factory.mktemp("questions"))


@pytest.mark.parametrize("unanswerable", [False, True])
def test_answers_to_questions(unanswerable, questions_model, tmp_path):
    contexts = sentences(25, seed=6, longest=120)
    golds = [[" ".join(text.split()[n % 3 : n % 3 + 2])] for n, text in enumerate(contexts)]
    if unanswerable:
        golds[::2] = [[] for _ in golds[::2]]
    labels = [{"text": gold, "answer_start": [0] * len(gold)} for gold in golds]
    data = examples([("where was it?", context) for context in contexts], labels)
    scores, client, encoder = all_scores(
        "question-answering", "word pieces", data, metric="f1", tmp_path=tmp_path, loaded=questions_model
    )
    items = [{"question": question, "context": context} for question, context in data.texts]
    assert len(encoder.prepare(items[:25]).rows) > 25  # windows
    parameters = {"handle_impossible_answer": True} if unanswerable else None
    given = [answer["answer"] for answer in client.post(items, parameters)]
    assert {name: scores[name] for name in ("f1", "exact_match")} == pytest.approx(squad(golds, given), abs=1e-15)
    assert scores["f1"] > 0


def test_similarities(tmp_path):
    pairs = list(zip(sentences(40, seed=7), sentences(40, seed=8), strict=True))
    data = examples(pairs, draw(7).uniform(0, 5, size=40))
    scores, client, _ = all_scores(
        "feature-extraction",
        "word pieces",
        data,
        metric="spearman",
        tmp_path=tmp_path,
        pooling=Pooling(mode="mean", normalize=True),
    )
    vectors = [np.array(client.post(list(side))) for side in zip(*pairs, strict=True)]
    cosines = [one @ two / np.linalg.norm(one) / np.linalg.norm(two) for one, two in zip(*vectors, strict=True)]
    assert scores["spearman"] == pytest.approx(scipy.stats.spearmanr(data.labels, cosines).statistic, abs=1e-15)
    assert scores["pearson"] == pytest.approx(scipy.stats.pearsonr(data.labels, cosines).statistic, abs=1e-12)


def test_hidden_words(tmp_path):
    """A client hides the same words behind masks, and asks for the score of each, and for the likeliest."""
    texts = [*models.TEXTS, *sentences(10, seed=9)]
    data = examples(texts, None)
    scores, client, encoder = all_scores("fill-mask", "word pieces", data, metric="perplexity", tmp_path=tmp_path)
    asked = [found for found in (mask_words(encoder.tokenizer, text) for text in texts) if found[1]]
    mask = encoder.tokenizer.token(encoder.tokenizer.mask_id)
    asked = [(text, hidden) for text, hidden in asked if text.count(mask) == len(hidden)]
    assert len(asked) > 5
    targets = [{"targets": [encoder.tokenizer.token(token) for token in hidden], "top_k": 1000} for _, hidden in asked]
    surprises, hits = [], []
    for answer, best, (_, hidden) in zip(
        client.post([text for text, _ in asked], targets),
        client.post([text for text, _ in asked], {"top_k": 1}),
        asked,
        strict=True,
    ):
        # A text with one mask is answered with one list, one with several with a list of lists.
        several, bests = (found if len(hidden) > 1 else [found] for found in (answer, best))
        for token, fillings, first in zip(hidden, several, bests, strict=True):
            surprises.append(-np.log(next(filling["score"] for filling in fillings if filling["token"] == token)))
            hits.append(first[0]["token"] == token)
    assert scores["perplexity"] == pytest.approx(np.exp(np.mean(surprises)), rel=1e-12)
    assert scores["accuracy"] == pytest.approx(np.mean(hits), abs=1e-15)
