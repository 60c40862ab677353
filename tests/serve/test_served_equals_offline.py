"""Served answers are the offline ones, whoever shares a batch: 2000 texts in random concurrent requests.

A tiny bundle in every test run. With POTSTILL_BUNDLE (a classifier's bundle) and POTSTILL_DATA (its data), `make slow`
does the same with real ones.
"""

import os
import random
import threading
from pathlib import Path

import numpy as np
import pytest

from potstill.serve import Encoder
from tests.faults.rawhttp import Connection, predict_message
from tests.faults.served import Server

# Both are the same file on the same machine; fp32 differs in its last bits with the shape of a batch: 3e-7 measured.
TOLERANCE = 1e-6
CLIENTS = 6
SIZES = (1, 1, 1, 2, 3, 5, 8, 17, 40)
BUNDLE, DATA = (os.environ.get(name) for name in ("POTSTILL_BUNDLE", "POTSTILL_DATA"))


def made_texts(count):
    draw = random.Random(3)
    words = [
        "good",
        "bad",
        "film",
        "book",
        "the",
        "was",
        "not",
        "very",
        "it",
        "warm",
        "zebra",
        "é",
        "שלום",
        "🙂",
        "x" * 9,
    ]
    return [" ".join(draw.choices(words, k=int(2 ** draw.uniform(0, 6)))) for _ in range(count)]


def scores(answer):
    return {entry["label"]: entry["score"] for entry in answer}


def ask_all(port, texts, *, seed):
    """Return one answer per text: requests of random sizes, from several clients at once, in random order."""
    order = list(range(len(texts)))
    draw = random.Random(seed)
    draw.shuffle(order)
    requests = []
    while order:
        size = draw.choice(SIZES)
        requests.append([order.pop() for _ in range(min(size, len(order)))])
    answers, lock, failures = [None] * len(texts), threading.Lock(), []

    def client():
        with Connection(port) as connection:
            while True:
                with lock:
                    if not requests or failures:
                        return
                    indices = requests.pop()
                asked = [texts[index] for index in indices]
                while (response := connection.ask(predict_message(asked))).status == 429:
                    threading.Event().wait(0.05)
                if response.status != 200:
                    failures.append((response.status, response.body[:200]))
                    return
                for index, answer in zip(indices, response.json(), strict=True):
                    answers[index] = scores(answer)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[:3]
    return answers


def compare(bundle, precision, texts, *, rounds):
    """Return the largest difference over all rounds, and how many labels changed."""
    encoder = Encoder(bundle, precision=precision, threads=1)
    alone = [scores(encoder.predict(text)) for text in texts]
    worst, changed = 0.0, 0
    with Server([bundle], options=["--precision", precision, "--threads", "1"]) as server:
        for seed in range(rounds):
            for got, want in zip(ask_all(server.port, texts, seed=seed), alone, strict=True):
                assert got.keys() == want.keys()
                worst = max(worst, *(abs(got[label] - want[label]) for label in want))
                changed += max(got, key=got.get) != max(want, key=want.get)
    return worst, changed


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_served_equals_offline(bundle_dir, precision):
    worst, changed = compare(bundle_dir, precision, made_texts(2000), rounds=1)
    assert worst <= TOLERANCE
    assert changed == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not (BUNDLE and DATA), reason="POTSTILL_BUNDLE and POTSTILL_DATA do not name a classifier and its data"
)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_served_equals_offline_on_real_texts(precision):
    from potstill.data import load_texts
    from potstill.tasks import TEXT_CLASSIFICATION

    texts = load_texts(DATA, split="train", task=TEXT_CLASSIFICATION, limit=2000)
    assert len(texts) == 2000
    worst, changed = compare(Path(BUNDLE), precision, texts, rounds=2)
    print(f"{precision}: largest difference {worst:.2e}, {changed} labels changed")
    assert worst <= TOLERANCE
    assert changed == 0


def test_int8_that_depends_on_its_batch_would_be_noticed(bundle_dir):
    """The check has teeth: this bundle's dynamic int8 does change with its batch mates, if it gets any."""
    encoder = Encoder(bundle_dir, precision="int8", threads=1)
    rows = encoder.tokenizer.rows(made_texts(60))
    alone = np.concatenate([encoder.session.run(encoder.tokenizer.pad([row]))["logits"] for row in rows])
    together = encoder.session.run(encoder.tokenizer.pad(rows))["logits"]
    assert np.abs(together - alone).max() > 1000 * TOLERANCE
