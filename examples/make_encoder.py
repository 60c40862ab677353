"""Write a tiny encoder that needs no download: a BERT of 4 layers, trained for seconds on the examples' texts.

    python examples/make_encoder.py FOLDER

It stands in for a real one where there is no network, as in CI: `make examples` runs every example with it.
"""

import csv
import json
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling
from transformers.utils import logging

from potstill.distill.teacher import train_tokenizer

DATA = Path(__file__).parent / "data"


def texts() -> list[str]:
    """Return every text of the examples."""
    found = (DATA / "texts.txt").read_text(encoding="utf-8").splitlines()
    for file in sorted(DATA.glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as lines:
            found += [value for row in csv.DictReader(lines) for value in row.values() if not value[0].isdigit()]
    for line in (DATA / "answers.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found += [row["question"], row["context"]]
    for line in (DATA / "tags.jsonl").read_text(encoding="utf-8").splitlines():
        found.append(" ".join(json.loads(line)["tokens"]))
    return found


def main(folder: str) -> None:
    """Train tokenizer and model, and save both as a checkpoint with a masked-language head."""
    torch.manual_seed(1)
    logging.disable_progress_bar()
    corpus = texts()
    tokenizer = train_tokenizer(corpus, vocab_size=1200, max_length=128)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
        # 0.02 suits 768 units; in a narrow model it leaves attention silent.
        initializer_range=128**-0.5,
    )
    model = BertForMaskedLM(config).train()
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(600):
        chosen = torch.randint(len(corpus), (32,)).tolist()
        batch = collate([tokenizer(corpus[number], truncation=True) for number in chosen])
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sys.stdout.write(f"wrote {folder}: {model.num_parameters():,} parameters, loss {loss.item():.2f}\n")


if __name__ == "__main__":
    main(sys.argv[1])
