"""Is a model's score one number? `evaluate` of a checkpoint, of its bundle, `bench`, and a client of `serve`.

    python benchmarks/evaluate/one_score.py CHECKPOINT DATA [--task token-classification] [--limit 300] [--out FOLDER]

The commands are run as a user runs them. The client posts the data's rows one after the other and scores what it gets
with scikit-learn, scipy and seqeval. It exits with 1 where the three that ask the bundle do not agree to the last digit
(the client's, computed by other code, to 12), or the checkpoint in torch is further from them than 0.002.
"""

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import scipy.stats
import seqeval.metrics
import sklearn.metrics

from potstill.bundle import read_bundle
from potstill.data import load_examples
from potstill.tasks import get_task, kind_of, primary_metric

POTSTILL = [sys.executable, "-m", "potstill"]


def main():
    """Compare the four scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--task", default="text-classification")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = given.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        sys.exit(0 if compare(given, folder) else 1)


def compare(given, folder):
    """Print the scores; tell whether they are one."""
    bundle, limit = folder / "bundle", ["--limit", str(given.limit)]
    task, length = ["--task", given.task], ["--max-length", str(given.max_length)]
    if not bundle.is_dir():
        potstill("export", given.checkpoint, "--out", bundle, "--precision", "fp32", *task, *length)
    manifest = read_bundle(bundle).manifest
    metric = primary_metric(get_task(given.task), manifest.problem_type)
    torch = json.loads(potstill("evaluate", given.checkpoint, "--data", given.data, *task, *limit, *length, "--json"))[
        "torch"
    ]["scores"]
    served = json.loads(potstill("evaluate", bundle, "--data", given.data, *limit, "--json"))["fp32"]["scores"]
    report = json.loads(
        potstill(
            "bench",
            bundle,
            "--data",
            given.data,
            *limit,
            "--out",
            folder / "report",
            "--overwrite",
            "--quick",
            "--rounds",
            "5",
            "--batch-size",
            "1",
            "--num-tokens",
            "16",
            "--set",
            "launches=1",
            "--json",
        )
    )
    benched = report["quality"][0]["scores"][0]["scores"]
    examples = load_examples(
        given.data,
        split="validation",
        task=get_task(given.task),
        label_names=manifest.labels or None,
        problem_type=manifest.problem_type,
        limit=given.limit,
    )
    with serve(bundle) as port:
        client = score_as_a_client(port, examples, kind=kind_of(get_task(given.task), manifest.problem_type))
    print(f"{'score':<22} {'checkpoint':>20} {'bundle':>20} {'bench':>20} {'client':>20}")
    for name, value in client.items():
        cells = " ".join(f"{found:>20.16g}" for found in (torch[name], served[name], benched[name], value))
        print(f"{name:<22} {cells}")
    same = all(served[name] == benched[name] for name in served)
    by_hand = all(np.isclose(served[name], value, rtol=0, atol=1e-12) for name, value in client.items())
    near = abs(torch[metric] - served[metric]) <= 0.002
    print(f"bundle = bench: {same}, = client: {by_hand}, checkpoint within 0.002: {near}")
    return same and by_hand and near


def potstill(*arguments):
    """Run a command and return its stdout."""
    done = subprocess.run([*POTSTILL, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"potstill {' '.join(map(str, arguments))}: {done.stderr}")
    return done.stdout


@contextlib.contextmanager
def serve(bundle):
    """Serve a bundle; give the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [*POTSTILL, "serve", str(bundle), "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5)
                break
            time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def post(port, item, parameters=None):
    """Return the answer to one item."""
    body = json.dumps({"inputs": item} | ({"parameters": parameters} if parameters else {})).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/predict", body, {"Content-Type": "application/json", "X-Request-Timeout-Ms": "60000"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


def score_as_a_client(port, examples, *, kind):
    """Return scores of what `POST /predict` answers to each row."""
    if kind == "token-classification":
        return entities(port, examples)
    if kind == "feature-extraction":
        cosines = [similarity(*(post(port, text) for text in pair)) for pair in examples.texts]
        return correlations(examples.labels, cosines)
    items = [{"text": text[0], "text_pair": text[1]} if isinstance(text, tuple) else text for text in examples.texts]
    answers = [post(port, item)[0] for item in items]
    if kind == "regression":
        return correlations(examples.labels, [answer["score"] for answer in answers])
    given = [examples.label_names.index(answer["label"]) for answer in answers]
    scores = {
        "accuracy": sklearn.metrics.accuracy_score(examples.labels, given),
        "macro_f1": sklearn.metrics.f1_score(examples.labels, given, average="macro"),
        "matthews_correlation": sklearn.metrics.matthews_corrcoef(examples.labels, given),
    }
    return scores | ({"f1": sklearn.metrics.f1_score(examples.labels, given)} if len(examples.label_names) == 2 else {})


def similarity(one, two):
    """Return the cosine of two vectors."""
    return np.dot(one, two) / np.linalg.norm(one) / np.linalg.norm(two)


def correlations(labels, given):
    """Return Pearson's and Spearman's."""
    return {
        "pearson": scipy.stats.pearsonr(labels, given).statistic,
        "spearman": scipy.stats.spearmanr(labels, given).statistic,
    }


def entities(port, examples):
    """Tag each word with the label of the first token that touches it."""
    tagged = []
    for words in examples.texts:
        tokens = post(port, " ".join(words), {"aggregation_strategy": "none", "ignore_labels": []})
        tags, start = [], 0
        for word in words:
            end = start + len(word)
            found = (token["entity"] for token in tokens if token["start"] < end and token["end"] > start)
            tags.append(next(found, "O"))
            start = end + 1
        tagged.append(tags)
    wanted = [[examples.label_names[tag] for tag in row] for row in examples.labels]
    return {name: getattr(seqeval.metrics, f"{name}_score")(wanted, tagged) for name in ("f1", "precision", "recall")}


if __name__ == "__main__":
    main()
