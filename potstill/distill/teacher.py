"""Teachers that are trained on labels first: a checkpoint with a head for the data, or a small BERT from scratch."""

import contextlib
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from potstill.checkpoint import Checkpoint, load_checkpoint, load_config, task_of_architectures
from potstill.config import DistillConfig, Recipe, ScratchConfig
from potstill.data import Text
from potstill.distill.data import read_splits
from potstill.errors import DataError
from potstill.progress import Announce
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    QUESTION_ANSWERING,
    REGRESSION,
    TEXT_CLASSIFICATION,
    Task,
    get_task,
)

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def load_to_finetune(recipe: Recipe, announce: Announce) -> Checkpoint:
    """Load the model to fine-tune, with a head for the data's labels if it has none yet.

    A head that gives way to a new one, because the data has another number of labels, is announced.
    """
    assert recipe.teacher.model is not None
    task, config = get_task(recipe.task), load_config(recipe.teacher.model)
    head = {} if task in (FILL_MASK, FEATURE_EXTRACTION, QUESTION_ANSWERING) else _new_head(recipe, task, config)
    # A new head is drawn from the recipe's seed, whatever was drawn before.
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        teacher = load_checkpoint(recipe.teacher.model, task, tokenizer=recipe.tokenizer, new_head=head)
    ours = teacher.model.config
    if type(teacher.model).__name__ in (config.architectures or []) and config.num_labels != ours.num_labels:
        announce("head", {"before": list(config.id2label.values()), "after": list(ours.id2label.values())})
    return teacher


def _new_head(recipe: Recipe, task: Task, config: PretrainedConfig) -> dict[str, object]:
    """Return the settings of the head that the data needs: none if the checkpoint's own has its labels already."""
    declared = recipe.data.problem_type
    if task_of_architectures(config.architectures or ()) is task and declared in (None, config.problem_type):
        names = tuple(str(config.id2label[number]) for number in range(config.num_labels))
        single = config.problem_type or (REGRESSION if config.num_labels == 1 else None)
        # Data that cannot be read with the checkpoint's labels only says that it needs another head.
        with contextlib.suppress(DataError):
            problem = single if task is TEXT_CLASSIFICATION else None
            found = read_splits(recipe, label_names=names, problem_type=problem).train
            # Bare numbers have no names that the checkpoint's could be: 0 of another task is not its `negative`.
            if found.labels_read.startswith("by name") or problem == REGRESSION:
                return {}
    examples = read_splits(recipe, label_names=None, problem_type=declared).train
    return head_config(examples.label_names, examples.problem_type)


def train_tokenizer(texts: Sequence[Text], *, vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """Return a lower-casing WordPiece tokenizer of at most `vocab_size` pieces, the same for the same `texts`."""
    parts = [part for text in texts for part in (text if isinstance(text, tuple) else (text,))]
    normalizer, words = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    # The trainer numbers pieces as a hash table happens to list the words, by which equally frequent pairs are then
    # told apart, and with them every piece. Pieces that it is given have the numbers in which they come.
    inner = {
        "##" + one
        for part in parts
        for word, _ in words.pre_tokenize_str(normalizer.normalize_str(part))
        for one in word[1:]
    }
    training = Tokenizer(WordPiece(unk_token="[UNK]"))
    training.normalizer, training.pre_tokenizer = normalizer, words
    given = [*_SPECIAL, *sorted(inner)]
    training.train_from_iterator(
        parts, trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=given, show_progress=False)
    )
    tokenizer = Tokenizer(WordPiece(training.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, words
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", _SPECIAL.index("[SEP]")), ("[CLS]", _SPECIAL.index("[CLS]"))
    )
    return BertTokenizer(tokenizer_object=tokenizer, do_lower_case=True, model_max_length=max_length)


def scratch_teacher(recipe: Recipe, config: ScratchConfig) -> Checkpoint:
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
