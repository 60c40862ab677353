"""Export one small bundle per task, and write beside each what potstill's own session answers.

python tests/interop/make_bundles.py DIR

DIR/NAME is the bundle and DIR/NAME.json holds the texts, their ids and the answers of every precision. The scripts
beside this one load the bundles in other tools and compare.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"})
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from potstill.bundle import Bundle, read_bundle
from potstill.config import ExportConfig
from potstill.distill.teacher import train_tokenizer
from potstill.export import export_bundle
from potstill.serve.session import OnnxSession
from potstill.serve.tokenizer import BundleTokenizer
from tests import tiny

LENGTH = 64
WORDS = [text for text, _ in tiny.sentences(256, seed=3)]
# Of several lengths, so that a batch is padded; one has letters that tokenizers fold.
SINGLE = ["snow", *WORDS[:5], "Wave — ÉLAN, ﬁne & 東京 🙂 x̂"]
PAIRS = [("a few new ones", text) for text in WORDS[:6]]
TOO_LONG = "wave rock " * LENGTH
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    # What BERT's 0.02 is at 768 units.
    "initializer_range": 0.07,
}
# A model that nobody trained answers at random, so int8 may lose some of that.
EXPORT = {
    "precisions": ["fp32", "int8", "int8-static"],
    "calibration_texts": 64,
    "judged_texts": 192,
    "max_loss": 0.2,
    "rounds": 0,
}
LABELS = {"id2label": {0: "O", 1: "B-SEA", 2: "I-SEA"}, "label2id": {"O": 0, "B-SEA": 1, "I-SEA": 2}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One task: how its checkpoint is made, and what it is asked."""

    task: str
    make: Callable[[Path], object]
    asked: list[Any]
    settings: dict[str, Any] = field(default_factory=dict)


def word_pieces() -> Any:
    return train_tokenizer(WORDS, vocab_size=300, max_length=LENGTH)


def byte_pairs() -> Any:
    """Return a tokenizer as RoBERTa's; its special tokens have the numbers that RobertaConfig expects."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        WORDS, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return transformers.RobertaTokenizer(tokenizer_object=tokenizer, model_max_length=LENGTH)


def classless() -> Any:
    """Return a tokenizer without a class of its own, which transformers 5 saves under a name that 4 does not know."""
    pieces = word_pieces()
    special = {f"{name}_token": getattr(pieces, f"{name}_token") for name in ("pad", "cls", "sep", "mask", "unk")}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces.backend_tokenizer, model_max_length=LENGTH, extra_special_tokens=["[SEA]"], **special
    )


def checkpoint(family: str, head: str, tokenizer: Callable[[], Any], **settings: Any) -> Callable[[Path], None]:
    """Return what writes a random model of two layers and its tokenizer."""

    def make(folder: Path) -> None:
        pieces = tokenizer()
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(vocab_size=len(pieces), **SIZES, **settings)
        getattr(transformers, f"{family}{head}")(config).save_pretrained(folder)
        pieces.save_pretrained(folder)

    return make


CASES = [
    Case(task="text-classification", make=tiny.make_teacher, asked=SINGLE),
    Case(
        task="token-classification",
        make=checkpoint("Electra", "ForTokenClassification", word_pieces, max_position_embeddings=LENGTH, **LABELS),
        asked=SINGLE,
    ),
    Case(
        task="question-answering",
        make=checkpoint("Bert", "ForQuestionAnswering", word_pieces, max_position_embeddings=LENGTH),
        asked=PAIRS,
    ),
    Case(
        task="fill-mask",
        # RoBERTa counts positions from behind the padding's number.
        make=checkpoint("Roberta", "ForMaskedLM", byte_pairs, max_position_embeddings=LENGTH + 2),
        asked=[*SINGLE, "wave<mask> rock"],
    ),
    Case(
        task="feature-extraction",
        make=checkpoint("Bert", "Model", classless, max_position_embeddings=LENGTH),
        asked=SINGLE,
        settings={"pooling": "mean", "normalize": True, "embedding_bits": 4},
    ),
]


def answer(bundle: Bundle, asked: list[Any]) -> dict[str, Any]:
    """Return what the bundle answers: to all texts as one padded batch, to the first alone, to one that is cut off."""
    tokenizer = BundleTokenizer(bundle.folder, bundle.manifest)
    sessions = {
        name: OnnxSession(bundle.folder / record.file, threads=1, disabled_optimizers=record.disabled_optimizers)
        for name, record in bundle.manifest.models.items()
    }
    batches = []
    too_long = TOO_LONG if isinstance(asked[0], str) else (asked[0][0], TOO_LONG)
    for texts in (asked, asked[:1], [too_long]):
        inputs = tokenizer.pad(tokenizer.rows(texts))
        outputs = {
            name: {output: values.tolist() for output, values in session.run(inputs).items()}
            for name, session in sessions.items()
        }
        batches.append(
            {
                "texts": texts,
                "cut": texts == [too_long],
                "inputs": {name: values.tolist() for name, values in inputs.items()},
                "outputs": outputs,
            }
        )
    files = {name: Path(record.file).name for name, record in bundle.manifest.models.items()}
    return {"task": bundle.manifest.task, "files": files, "batches": batches}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            case.make(Path(scratch))
            export_bundle(
                scratch,
                folder / case.task,
                task=case.task,
                config=ExportConfig(**EXPORT | case.settings),
                calibration=WORDS if isinstance(case.asked[0], str) else list(zip(WORDS, reversed(WORDS), strict=True)),
                overwrite=True,
            )
        expected = answer(read_bundle(folder / case.task), case.asked)
        (folder / f"{case.task}.json").write_text(json.dumps(expected), encoding="utf-8")
        sys.stdout.write(f"wrote {folder / case.task}\n")
    # As docs/interop.md calls them.
    for name, task in (("student-onnx", "text-classification"), ("embedder-onnx", "feature-extraction")):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(task)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
