"""Train a small BERT teacher and its WordPiece tokenizer on the spot."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, PreTrainedTokenizerBase

from potstill.checkpoint import Checkpoint
from potstill.config import DistillConfig, Recipe, ScratchConfig
from potstill.data import Text
from potstill.distill.data import read_splits
from potstill.tasks import REGRESSION

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_tokenizer(texts: Sequence[Text], *, vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """Return a lower-casing WordPiece tokenizer of at most `vocab_size` pieces, trained on `texts`."""
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=_SPECIAL, show_progress=False)
    flat = (part for text in texts for part in (text if isinstance(text, tuple) else (text,)))
    tokenizer.train_from_iterator(flat, trainer)
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", _SPECIAL.index("[SEP]")), ("[CLS]", _SPECIAL.index("[CLS]"))
    )
    return BertTokenizer(tokenizer_object=tokenizer, do_lower_case=True, model_max_length=max_length)


def new_teacher(recipe: Recipe, config: ScratchConfig) -> Checkpoint:
    """Return a BERT classifier with random weights and a tokenizer trained on the recipe's data."""
    examples = read_splits(recipe, label_names=None, problem_type=recipe.data.problem_type).train
    tokenizer = train_tokenizer(examples.texts, vocab_size=config.vocab_size, max_length=recipe.max_length)
    torch.manual_seed(recipe.seed)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=recipe.max_length,
            # BERT's 0.02 suits 768 units; in a narrow model it leaves attention silent for the first epochs.
            initializer_range=config.hidden_size**-0.5,
            pad_token_id=tokenizer.pad_token_id,
            **head_config(examples.label_names, examples.problem_type),
        )
    )
    return Checkpoint("scratch", model, tokenizer)


def head_config(names: Sequence[str], problem_type: str | None) -> dict[str, object]:
    """Return the settings of a model's configuration that say what its head answers."""
    if problem_type == REGRESSION:
        return {"num_labels": 1, "problem_type": REGRESSION}
    labels: dict[str, object] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }
    return labels | ({"problem_type": problem_type} if problem_type else {})


def training_config(config: ScratchConfig, base: DistillConfig) -> DistillConfig:
    """Return the training settings of the teacher: its own pace, everything else as for the student."""
    return base.model_copy(
        update={
            "learning_rate": config.learning_rate,
            "batch_size": config.batch_size,
            "epochs": config.epochs,
            "max_steps": None,
        }
    )
