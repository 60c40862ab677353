"""Train a small BERT teacher and its WordPiece tokenizer on the spot."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, PreTrainedTokenizerBase

from potstill.data import Examples, Text
from potstill.recipe import DistillConfig, ScratchConfig

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


def untrained_classifier(
    config: ScratchConfig, *, tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int, seed: int
) -> BertForSequenceClassification:
    """Return a BERT classifier with random weights that fits the tokenizer and the labels."""
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=max_length,
            # BERT's 0.02 suits 768 units; in a narrow model it leaves attention silent for the first epochs.
            initializer_range=config.hidden_size**-0.5,
            pad_token_id=tokenizer.pad_token_id,
            id2label=dict(enumerate(examples.label_names)),
            label2id={name: number for number, name in enumerate(examples.label_names)},
            problem_type="single_label_classification",
        )
    )


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
