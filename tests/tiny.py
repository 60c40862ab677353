"""A data set and a trained teacher small enough for every test; run as a script it writes a bundle of the teacher.

The task is real though easy: a sentence is about the sea or about the mountains, and says so with one or two words
among neutral ones. A 4-layer BERT of 32 units learns it in about three seconds.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

NEUTRAL = ("we", "saw", "many", "old", "things", "and", "a", "few", "new", "ones", "there", "that", "day", "in", "the")
TELLING = {
    "sea": ("wave", "tide", "sail", "shore", "gull", "salt"),
    "mountain": ("peak", "ridge", "snow", "climb", "rock", "trail"),
}
LABELS = ("mountain", "sea")


def sentences(count, *, seed):
    """Return (text, label id) rows of 4 to 16 words."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        label = number % 2
        words = list(generator.choice(NEUTRAL, size=generator.integers(3, 15)))
        for word in generator.choice(TELLING[LABELS[label]], size=generator.integers(1, 3)):
            words.insert(int(generator.integers(0, len(words) + 1)), word)
        rows.append((" ".join(words), label))
    return rows


def write_data(folder, *, train=192, validation=80):
    """Write train.jsonl and validation.jsonl with columns sentence and label."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, seed in (("train", train, 1), ("validation", validation, 2)):
        lines = [json.dumps({"sentence": text, "label": label}) for text, label in sentences(count, seed=seed)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def make_teacher(folder, *, steps=120):
    """Train a BERT of 4 layers x 32 units on the task and save it with its tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification

    from potstill.distill.teacher import train_tokenizer

    rows = sentences(256, seed=3)
    tokenizer = train_tokenizer([text for text, _ in rows], vocab_size=300, max_length=64)
    # Of this teacher int8 moves with its batch and loses no label, which the tests of export hold against each other.
    torch.manual_seed(3)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.2,
            id2label=dict(enumerate(LABELS)),
            label2id={name: number for number, name in enumerate(LABELS)},
            problem_type="single_label_classification",
        )
    )
    batch = tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")
    labels = torch.tensor([label for _, label in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for step in range(steps):
        chosen = torch.arange(64) + 64 * (step % 4)
        loss = model(**{name: value[chosen] for name, value in batch.items()}, labels=labels[chosen]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def texts(count):
    """Return texts of the task."""
    return [text for text, _ in sentences(count, seed=9)]


def export_config():
    """Return what makes an export quick: few texts, and no speeds."""
    from potstill.config import ExportConfig

    return ExportConfig(calibration_texts=32, judged_texts=48, rounds=0, max_loss=0.05)


if __name__ == "__main__":
    from potstill.export import export_bundle

    with tempfile.TemporaryDirectory() as scratch:
        teacher = make_teacher(Path(scratch) / "teacher")
        export_bundle(str(teacher), Path(sys.argv[1]), config=export_config(), calibration=texts(80), overwrite=True)
    sys.stdout.write(f"wrote {sys.argv[1]}\n")
