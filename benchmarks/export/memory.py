"""How much memory does an export take, as a multiple of the weights? A random BERT is made in a temporary folder.

python benchmarks/export/memory.py                      # 2.3 GB of weights, fp32
python benchmarks/export/memory.py --gb 0.6 --precision fp32 --precision int8
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

VOCABULARY, WIDTH, LENGTH = 30522, 1024, 512
_WORDS = 20_000


def make_checkpoint(folder, gigabytes):
    """Write a BERT of as many layers of 1,024 as fit into so many gigabytes, with a tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    layer = 4 * WIDTH * WIDTH + 2 * WIDTH * 4 * WIDTH
    rest = VOCABULARY * WIDTH + LENGTH * WIDTH + WIDTH * WIDTH
    layers = max(1, round((gigabytes * 1e9 / 4 - rest) / layer))
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=16,
        max_position_embeddings=LENGTH,
        # Small enough for the activations of so many random layers to stay where floats are exact.
        initializer_range=0.02,
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    model.save_pretrained(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(chr(code) for code in range(33, 127)), *(f"##{chr(code)}" for code in range(33, 127))]
    words += [f"word{number}" for number in range(_WORDS)]
    tokenizer = Tokenizer(models.WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=LENGTH, **dict(zip(names, special, strict=True))
    )
    fast.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    fast.save_pretrained(folder)


def run(command):
    """Run a command; return its exit code and the most memory that it held, in bytes."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    # Linux counts kibibytes, macOS bytes.
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gb", type=float, default=2.3, help="gigabytes of weights, in float32")
    parser.add_argument("--precision", action="append", help="repeatable; fp32")
    parser.add_argument("--most", type=float, default=3.0, help="exit with 1 above this multiple of the weights")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.make:
        make_checkpoint(asked.make, asked.gb)
        return 0
    precisions = asked.precision or ["fp32"]
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        checkpoint, bundle = Path(scratch) / "checkpoint", Path(scratch) / "bundle"
        # In a process of its own, so that the export starts from nothing.
        subprocess.run([sys.executable, __file__, "--make", str(checkpoint), "--gb", str(asked.gb)], check=True)
        weights = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
        command = [sys.executable, "-m", "potstill", "export", str(checkpoint), "--out", str(bundle), "--rounds", "0"]
        exit_code, peak = run(command + [part for name in precisions for part in ("--precision", name)])
    if exit_code:
        return exit_code
    ratio = peak / weights
    print(f"{weights / 1e9:.2f} GB of weights, peak {peak / 1e9:.2f} GB: {ratio:.2f} times the weights")
    if asked.json:
        found = {"weights_bytes": weights, "peak_bytes": peak, "ratio": ratio, "precisions": precisions}
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(ratio > asked.most)


if __name__ == "__main__":
    sys.exit(main())
