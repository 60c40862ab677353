"""What the model can do with nothing around it: `tokenizers` and `onnxruntime` in one process, and no server.

The loop knows nothing of potstill but the bundle's file format. It is tried in every way that is usual: one caller
with all threads, as many callers as threads with one each, spinning or not, one text per run or texts of similar
length in batches of 8 and 32. The fastest is what a server is compared with.

    python -m benchmarks.serve.raw --bundle BUNDLE --texts FILE.jsonl --threads 2
"""

import argparse
import json
import threading
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

GOLDEN_RATIO = (1 + 5**0.5) / 2
ATTRIBUTES = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


@dataclass(frozen=True, slots=True)
class Way:
    """One way to ask: callers x threads, texts per run."""

    callers: int
    threads: int
    batch_size: int
    spinning: bool


class Raw:
    """A bundle's model, its tokenizer and the last step to an answer."""

    def __init__(self, bundle: Path, *, precision: str, threads: int, spinning: bool) -> None:
        self.manifest = json.loads((bundle / "potstill.json").read_text())
        record = self.manifest["models"][precision]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        # The same graph as is served: the bundle names the fusions that changed its answers.
        left_out = record.get("disabled_optimizers") or self.manifest.get("disabled_optimizers") or []
        self.session = onnxruntime.InferenceSession(
            bundle / record["file"], options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
        )
        self.inputs = [node.name for node in self.session.get_inputs()]
        self.tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.manifest["max_length"])
        self.tokenizer.enable_padding(pad_id=self.manifest.get("pad_token_id", 0))

    def ask(self, texts: list[str]) -> np.ndarray:
        """Return probabilities of shape (texts, labels), or one vector per text."""
        encodings = self.tokenizer.encode_batch(texts)
        feeds = {
            name: np.array([getattr(encoding, ATTRIBUTES[name]) for encoding in encodings], dtype=np.int64)
            for name in self.inputs
        }
        outputs = self.session.run([self.manifest["outputs"][-1]], feeds)[0]
        if self.manifest["task"] != "text-classification":
            if outputs.ndim == 2:
                return outputs
            mask = np.array([encoding.attention_mask for encoding in encodings])[:, :, None]
            return (outputs * mask).sum(1) / mask.sum(1)
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def tokens(self, texts: list[str]) -> np.ndarray:
        """Return each text's length in tokens."""
        return np.array([sum(encoding.attention_mask) for encoding in self.tokenizer.encode_batch(texts)])


def ways(threads: int) -> list[Way]:
    found = [Way(1, threads, size, spinning) for size in (1, 8, 32) for spinning in (True, False)]
    if threads > 1:
        found += [Way(threads, 1, size, False) for size in (1, 8, 32)]
    return found


def rate(way: Way, bundle: Path, texts: list[str], *, precision: str, seconds: float) -> float:
    """Return texts per second.

    Batches are made of texts of similar length, and taken so that what is through after any time has lengths from
    everywhere. Seconds are too few for all texts, so tokens are counted, and divided by the mean text's.
    """
    raw = Raw(bundle, precision=precision, threads=way.threads, spinning=way.spinning)
    lengths = raw.tokens(texts)
    by_length = np.argsort(lengths, kind="stable")
    batches = [by_length[at : at + way.batch_size] for at in range(0, len(texts), way.batch_size)]
    # Multiples of the golden ratio, modulo 1, are as evenly spread as any sequence can be from its start on.
    order = np.argsort(np.argsort(np.arange(len(batches)) * GOLDEN_RATIO % 1))
    for batch in (batches[-1], batches[0]):
        raw.ask([texts[index] for index in batch])
    done, until = [0] * way.callers, time.perf_counter() + seconds

    def call(caller: int) -> None:
        position = caller
        while time.perf_counter() < until:
            batch = batches[order[position % len(order)]]
            raw.ask([texts[index] for index in batch])
            done[caller] += int(lengths[batch].sum())
            position += way.callers

    started = time.perf_counter()
    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(way.callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return float(sum(done) / lengths.mean() / (time.perf_counter() - started))


def read_texts(file: Path, column: str) -> list[str]:
    """Return the texts of a jsonl file."""
    return [json.loads(line)[column] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True, help="jsonl file")
    parser.add_argument("--column", default="sentence")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each way, in each of three rounds")
    parser.add_argument("--way", type=json.loads, help="measure this one once, and print texts per second")
    arguments = parser.parse_args()
    texts = read_texts(arguments.texts, arguments.column)
    ask = partial(rate, bundle=arguments.bundle, texts=texts, precision=arguments.precision, seconds=arguments.seconds)
    if arguments.way:
        print(ask(Way(**arguments.way)))
        return
    tried = ways(arguments.threads)
    measured: dict[Way, list[float]] = {way: [] for way in tried}
    for order in (tried, tried[::-1], tried):
        for way in order:
            measured[way].append(ask(way))
    lengths = Raw(arguments.bundle, precision=arguments.precision, threads=1, spinning=False).tokens(texts)
    content = {
        "ways": [asdict(way) | {"texts_per_second": median(rates), "rounds": rates} for way, rates in measured.items()],
        "tokens": {"mean": float(lengths.mean()), "p50": float(np.median(lengths)), "max": int(lengths.max())},
        "texts": len(texts),
    }
    print(json.dumps(content))


if __name__ == "__main__":
    main()
