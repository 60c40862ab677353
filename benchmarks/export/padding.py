"""What leaving padding out of the products is worth: one checkpoint, exported both ways, on batches of real texts.

    potstill export CHECKPOINT --out lean/ --data DATA
    potstill export CHECKPOINT --out plain/ --data DATA --no-unpad
    python -m benchmarks.export.padding --unpadded lean/ --plain plain/ --texts FILE.jsonl --result FILE.json

The two files take each batch in turns, first the one and then the other, on one thread that does not wait busily, so
neither slows the other. Batches are texts as they come and, as in bulk work, texts of similar length.
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.serve.raw import read_texts
from potstill import machine
from potstill.bundle import read_bundle
from potstill.files import write_text
from potstill.serve import Encoder

BATCH_SIZES = (1, 8, 32)


def compare(encoders: dict[str, Encoder], texts: list[str], *, batch_size: int, is_sorted: bool) -> dict[str, Any]:
    """Return seconds of both files over batches of the texts, and by how much their answers differ."""
    tokenizer = encoders["plain"].tokenizer
    rows = tokenizer.rows(texts)
    if is_sorted:
        rows.sort(key=lambda row: len(row["input_ids"]))
    batches = [tokenizer.pad(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    for encoder in encoders.values():
        encoder.session.run(max(batches, key=lambda batch: batch["input_ids"].size))
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    difference = 0.0
    for number, feeds in enumerate(batches):
        answers = {}
        for name in list(encoders) if number % 2 else list(encoders)[::-1]:
            began = perf_counter()
            answers[name] = encoders[name].session.run(feeds)
            seconds[name].append(perf_counter() - began)
        first, other = answers.values()
        difference = max(difference, *(float(np.abs(first[name] - other[name]).max()) for name in first))
    plain, unpadded = (np.array(seconds[name]) for name in ("plain", "unpadded"))
    draws = np.random.default_rng(0).integers(len(batches), size=(1000, len(batches)))
    low, high = np.quantile(plain[draws].sum(1) / unpadded[draws].sum(1), [0.025, 0.975])
    tokens = sum(int(feeds["attention_mask"].sum()) for feeds in batches)
    return {
        "batch_size": batch_size,
        "order": "by length" if is_sorted else "as they come",
        "padding_share": 1 - tokens / sum(feeds["input_ids"].size for feeds in batches),
        "plain_texts_per_second": len(rows) / float(plain.sum()),
        "unpadded_texts_per_second": len(rows) / float(unpadded.sum()),
        "ratio": float(plain.sum() / unpadded.sum()),
        "interval": [float(low), float(high)],
        "max_abs_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unpadded", type=Path, required=True)
    parser.add_argument("--plain", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True, help="jsonl file")
    parser.add_argument("--column", default="sentence")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--result", type=Path, help="JSON file")
    arguments = parser.parse_args()
    for name, wanted in (("unpadded", True), ("plain", False)):
        folder = getattr(arguments, name)
        if read_bundle(folder).model_record(arguments.precision).unpadded is not wanted:
            parser.error(f"{folder} is not {name}; export it with{'' if wanted else ' --no-unpad'}")
    environment = machine.describe()
    encoders = {
        name: Encoder(getattr(arguments, name), precision=arguments.precision, threads=1)
        for name in ("plain", "unpadded")
    }
    texts = read_texts(arguments.texts, arguments.column)
    found = []
    for is_sorted in (False, True):
        for batch_size in BATCH_SIZES:
            one = compare(encoders, texts, batch_size=batch_size, is_sorted=is_sorted)
            found.append(one)
            low, high = one["interval"]
            print(
                f"{batch_size} {one['order']}: {one['padding_share']:.0%} padding, {one['ratio']:.2f} "
                f"[{low:.2f}, {high:.2f}] times as fast, answers differ by {one['max_abs_difference']:.1g}",
                flush=True,
            )
    if arguments.result:
        manifest = encoders["unpadded"].manifest
        content = {
            "about": "one checkpoint exported with and without padding in its products; one thread, in turns",
            "date": datetime.now(UTC).date().isoformat(),
            "environment": environment,
            "architecture": manifest.architecture.model_dump(mode="json"),
            "precision": arguments.precision,
            "texts": len(texts),
            "batches": found,
        }
        write_text(arguments.result, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
