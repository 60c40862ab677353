"""BERT-base against a 6-layer DistilBERT: size and speed, which do not depend on weights.

Both are built from their default configurations with random weights, exported to fp32 and int8 and benched; quality
is off, because random weights have none. Run it on an otherwise idle machine:

    python benchmarks/architectures.py --out out/architectures --result benchmarks/results/architectures.json

It takes about 7 minutes on two cores and 3 GB of memory.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from potstill.bench import Request, bench
from potstill.config import BenchConfig, ExportConfig
from potstill.data import load_examples
from potstill.distill.teacher import train_tokenizer
from potstill.export import export_bundle
from potstill.files import write_text
from potstill.tasks import TEXT_CLASSIFICATION

MAX_LENGTH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, bundles and the report")
    parser.add_argument("--result", type=Path, required=True, help="JSON file for the report")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    report = bench(
        Request(models=[(role, str(build(role, arguments.out))) for role in ("teacher", "student")]),
        config=BenchConfig(rounds=arguments.rounds),
        out_dir=arguments.out / "report",
        seed=42,
        overwrite=True,
        command="python benchmarks/architectures.py",
    )
    content = {"weights": "random", **report.model_dump(mode="json", by_alias=True)}
    write_text(arguments.result, json.dumps(content, indent=2) + "\n")
    small, large = (report.contestant(key).file_bytes for key in ("student/int8", "teacher/fp32"))
    print(f"student int8 file / teacher fp32 file: {small / large:.3f}")
    for row in report.ratios:
        print(row.comparison, row.candidate, row.load, f"{row.value:.3f}", row.interval)
    for claim in report.claims:
        print(claim.verdict, claim.summary)


def build(role: str, folder: Path) -> Path:
    """Write the bundle of one architecture, unless it is there already."""
    bundle, checkpoint = folder / role, folder / "checkpoints" / role
    if bundle.is_dir():
        return bundle
    torch.manual_seed(0)
    # Random weights of standard deviation 0.02 answer alike to every text; larger ones make the parity check bite.
    if role == "teacher":
        model = BertForSequenceClassification(BertConfig(initializer_range=0.05))
    else:
        model = DistilBertForSequenceClassification(DistilBertConfig(initializer_range=0.05))
    texts = load_examples("python-docs", split="train", task=TEXT_CLASSIFICATION).texts
    tokenizer = train_tokenizer(texts, vocab_size=30522, max_length=MAX_LENGTH)
    model.eval().save_pretrained(checkpoint)
    tokenizer.save_pretrained(checkpoint)
    # Random weights answer by chance, so what int8 changes of their answers says nothing.
    export_bundle(str(checkpoint), bundle, config=ExportConfig(max_length=MAX_LENGTH, max_loss=0.99))
    return bundle


if __name__ == "__main__":
    main()
