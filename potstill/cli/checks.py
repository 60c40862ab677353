"""Checks that commands make before torch is imported: names, folders, tasks, layers, lengths, splits, columns.

A typing error then costs a second and not the minutes of loading a model. The packages behind check the same and more
once they have the model; nothing is refused here that they would accept. Nothing here imports torch, transformers or
onnx.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from potstill.bundle import LABELLED_TASKS, MANIFEST_NAME
from potstill.checkpoint import Folder, read_folder
from potstill.checkpoint.sentence_transformers import check_pooling
from potstill.config import ExportConfig, Recipe, parse_vocabulary
from potstill.data import Extra, choose_splits
from potstill.data.read import SUFFIXES
from potstill.data.splits import find_files, parse_split
from potstill.errors import (
    BundleError,
    CheckpointError,
    DataError,
    MissingExtraError,
    OutputError,
    RecipeError,
    UsageError,
)
from potstill.extras import require
from potstill.files import check_free
from potstill.hub import check_name, similar
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    REGRESSION,
    SINGLE_LABEL,
    TASKS,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Task,
    get_task,
    kind_of,
    primary_metric,
)

# Data up to this size is read here as it will be read later, which takes a second at most; larger data is not read.
_READ_AT_ONCE_BYTES = 32 * 2**20
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
# Running text may also be .txt, one text per line.
_DATA_SUFFIXES = (*SUFFIXES, ".txt")

# Models


def find_checkpoint(name: str, *, what: str | None = None) -> Folder:
    """Return a checkpoint's description from its small files, which are fetched for a hub id; no weights are read.

    Args:
        name: a folder or hub id.
        what: the option that it was given by, such as `--set student.model`; None for the command's own model.

    Raises:
        CheckpointError: if it is neither a folder nor on the hub, or no checkpoint that potstill can use.
    """
    prefix = f"{what}: " if what else ""
    if not name.strip():
        raise CheckpointError(f"{prefix}the name of a model is empty; name a checkpoint folder or a hub id")
    folder = Path(name).expanduser()
    if folder.is_dir() and not _has_weights(folder):
        if (folder / MANIFEST_NAME).is_file():
            raise CheckpointError(f"{prefix}{name} is a bundle, which is finished; name the checkpoint it came from")
        if (folder / "config.json").is_file():
            raise CheckpointError(
                f"{prefix}{name} has no weights (model.safetensors); copy the checkpoint's files there"
            )
    try:
        return read_folder(name)
    except CheckpointError as error:
        raise CheckpointError(f"{prefix}{error}") from error


def _has_weights(folder: Path) -> bool:
    return any(file.is_file() for pattern in _WEIGHTS for file in folder.glob(pattern))


def check_head(folder: Folder | None, task: Task, *, data: str | None = None) -> None:
    """Raise if a checkpoint has a head for another task, or none where the task needs a trained one.

    Args:
        folder: the checkpoint; None for one that is yet to be trained.
        task: the task that it will be used for.
        data: data that it could be fine-tuned on, for the command in the message.

    Raises:
        CheckpointError: with both tasks, and the command that would help.
    """
    # Any encoder gives sentence vectors, whatever head stands on it.
    if folder is None or folder.task in (None, task) or task is FEATURE_EXTRACTION:
        return
    out = f"{Path(folder.name).name}-{task.name}"
    train = shlex.join(
        ["potstill", "finetune", folder.name, "--task", task.name, "--data", data or "DATA", "--out", out]
    )
    architecture = folder.architectures[0]
    if folder.task is FEATURE_EXTRACTION:
        raise CheckpointError(
            f"{folder.name} is an encoder without a head ({architecture}): it is not fine-tuned for {task.name}; "
            f"fine-tune it first (`{train}`) or name another checkpoint"
        )
    assert folder.task is not None
    raise CheckpointError(
        f"{folder.name} is made for {folder.task.name} ({architecture}) and the task is {task.name}; pass "
        f"--task {folder.task.name}, or fine-tune it first (`{train}`)"
    )


def check_task(name: str | None) -> Task:
    """Return the task that `--task` names; None is text-classification.

    Raises:
        UsageError: if there is no such task, with the one that other libraries call so.
    """
    try:
        return get_task(name or TEXT_CLASSIFICATION.name)
    except UsageError as error:
        plain = str(name).lower().replace("_", "-").removesuffix("s")
        meant = next((f" (did you mean {task}?)" for task, others in _OTHER_NAMES.items() if plain in others), "")
        raise UsageError(f"--task {name!r} is not known{meant}; it is {_either(TASKS)}") from error


# The names of tasks in other libraries, for "did you mean".
_OTHER_NAMES = {
    "text-classification": [
        "classification",
        "sequence-classification",
        "sentiment",
        "sentiment-analysis",
        "nli",
        "regression",
        "text-classifier",
    ],
    "token-classification": ["ner", "pos", "tagging", "tag", "named-entity-recognition"],
    "question-answering": ["qa", "squad", "question-answer", "extractive-qa"],
    "fill-mask": ["mlm", "masked-lm", "masked-language-modeling", "lm", "mask-fill"],
    "feature-extraction": ["embedding", "sentence-embedding", "sentence-similarity", "feature", "similarity"],
}


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


# Data


def check_data(
    name: str,
    splits: Sequence[str],
    *,
    task: Task,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    problem_type: str | None = None,
    needs_labels: bool = True,
    extra: Extra | None = None,
) -> None:
    """Raise if data cannot be read: it does not exist, or a split, a column or a row is missing or broken.

    Args:
        name: as given to `--data`.
        splits: the splits that the command reads; of two, the first is for training and the second for scoring.
        task: decides which columns there must be.
        text_columns: as in `potstill.data.load_examples`, and so are the next three.
        label_column: the column of the label.
        label_names: the model's labels, if known.
        problem_type: of a text classifier.
        needs_labels: whether the command needs labels as well as texts.
        extra: what a teacher's student learns from beside labels; it is read here, whatever its size.

    Raises:
        DataError: as the data's reader raises it.
    """
    from potstill.data import EMBEDDED, load_examples, load_splits, load_texts

    if name in EMBEDDED:
        return
    if not name.strip():
        raise DataError("the name of the data is empty; name a data folder, a file, or a hub id")
    check_name(name, "dataset")
    path = Path(name).expanduser()
    if not path.exists():
        return  # on the hub or in its cache: reading it would download it
    if task in (FILL_MASK, FEATURE_EXTRACTION):
        # Running text may be of any size, and the corpus reader streams it by rules of its own: only look for files.
        for split in splits:
            find_files(name, parse_split(split)[0], _DATA_SUFFIXES)
        return
    if not _is_read_at_once(path):
        return
    # The real loaders, with their results thrown away: checks of our own would come to differ from them.
    reading: dict[str, Any] = {"task": task, "text_columns": text_columns}
    labelled: dict[str, Any] = reading | {
        "label_column": label_column,
        "label_names": label_names,
        "problem_type": problem_type,
    }
    if needs_labels and len(splits) == 2:
        load_splits(name, train=(splits[0], None), evaluation=(splits[1], None), extra=extra, **labelled)
        return
    for split in splits:
        if needs_labels:
            load_examples(name, split=split, **labelled)
        else:
            load_texts(name, split=split, **reading)


def _is_read_at_once(path: Path) -> bool:
    """Return whether data is small enough to be read here, and needs no library that is missing."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in _DATA_SUFFIXES]
    needs_arrow = any(file.suffix in {".parquet", ".arrow"} for file in files)
    small = sum(file.stat().st_size for file in files) <= _READ_AT_ONCE_BYTES
    return small and (not needs_arrow or find_spec("pyarrow") is not None)


# Outputs


def check_output_file(file: Path, *, option: str, suffixes: Sequence[str] = ()) -> None:
    """Raise if an output file could not be written.

    Raises:
        UsageError: if its name ends in none of `suffixes`.
        OutputError: if it is a folder, or its folder does not exist.
    """
    if suffixes and file.suffix not in suffixes:
        raise UsageError(f"{option} {file}: the name must end in {_either(suffixes)}")
    if file.is_dir():
        raise OutputError(f"{option} {file} is a folder; name a file")
    if not file.parent.is_dir():
        raise OutputError(f"{option}: there is no folder {file.parent} to write {file.name} to; make it first")


# Whole commands


def check_training(recipe: Recipe, out: Path, *, overwrite: bool, flags: Mapping[str, str], teaches: bool) -> None:
    """Check the recipe of `distill`, which has a teacher, or of `finetune`, which makes one.

    Args:
        recipe: the resolved recipe.
        out: the folder to write.
        overwrite: whether it may be replaced.
        flags: the options that the recipe's keys have on this command line, for messages.
        teaches: whether the recipe's model teaches (`distill`), and so must be fine-tuned already.

    Raises:
        PotstillError: with the first fault.
    """
    check_free(out, overwrite=overwrite)
    task = get_task(recipe.task)
    folder = find_checkpoint(recipe.teacher.model) if recipe.teacher.model is not None else None
    if teaches:
        _check_teachers(recipe, folder, what="--teacher")
        check_student(recipe, folder, flags=flags)
        _check_embedding(recipe, folder, option="--set distill.pooling")
        option = flags.get("student.vocabulary", "student.vocabulary")
        check_vocabulary(None if recipe.tokenizer else folder, recipe.student.vocabulary, option=option)
    elif task is FEATURE_EXTRACTION:
        raise RecipeError(
            "a sentence encoder is not fine-tuned on labels; distil one with `potstill distill` --task "
            "feature-extraction --method embedding"
        )
    # Only a length that was asked for: the default is cut to what the model reads.
    if folder is not None and "max_length" in recipe.model_fields_set and not recipe.teacher.is_stored:
        folder.check_length(recipe.max_length, option="--set max_length")
    if recipe.tokenizer is not None:
        check_tokenizer(recipe.tokenizer, what="--set tokenizer")
    if recipe.distill.augment_model is not None:
        find_checkpoint(recipe.distill.augment_model, what="distill.augment_model")
    for tracker in recipe.distill.trackers:
        if find_spec(tracker) is None:
            raise MissingExtraError(f"{tracker} is not installed and this needs it: pip install 'potstill[trackers]'")
    # `finetune` gives the model a new head, so the labels of its old one say nothing about the data.
    trained = _labelled_by(recipe, folder) if teaches else None
    if recipe.metric is not None:
        problem = trained.problem_type if trained else recipe.data.problem_type
        primary_metric(task, problem if task is TEXT_CLASSIFICATION else None, asked=recipe.metric)
    _check_recipe_data(recipe, task, trained=trained, is_taught=teaches)


def _check_teachers(recipe: Recipe, teacher: Folder | None, *, what: str) -> None:
    """Raise unless the teacher, and those that it is averaged with, are fine-tuned for the recipe's task."""
    task = get_task(recipe.task)
    check_head(teacher, task, data=recipe.data.name)
    for name in recipe.teacher.ensemble:
        check_head(find_checkpoint(name, what=what), task, data=recipe.data.name)


def _labelled_by(recipe: Recipe, teacher: Folder | None) -> Folder | None:
    """Return the model whose labels the data must have: a student's own if answers are stored, else the teacher."""
    if recipe.teacher.is_stored and recipe.student.model is not None:
        start = find_checkpoint(recipe.student.model, what="student.model")
        if start.task is get_task(recipe.task):
            return start
    return teacher


def _check_embedding(recipe: Recipe, teacher: Folder | None, *, option: str) -> None:
    """For method `embedding`, raise if the sentence-transformers modules of teacher or student are not supported."""
    if recipe.distill.method != "embedding":
        return
    if teacher is not None:
        check_vectors(teacher, pooling=None)
    if recipe.student.model is not None:
        check_vectors(find_checkpoint(recipe.student.model), pooling=recipe.distill.pooling, option=option)


def _check_export_of_vectors(recipe: Recipe, teacher: Folder | None) -> None:
    """Raise if `export` would pool or normalise vectors in another way than the student will be trained with."""
    is_here = teacher is not None and Path(teacher.name).expanduser().is_dir()
    if recipe.distill.method != "embedding" or not is_here or recipe.student.model is not None:
        return
    assert teacher is not None
    found = teacher.sentence_transformers()
    mode = recipe.distill.pooling or (found.mode if found else "") or "mean"
    if recipe.export.pooling not in (None, mode):
        raise RecipeError(f"export.pooling is {recipe.export.pooling}, and the student pools by {mode}; leave it out")
    has_length_1 = found is not None and found.normalize
    if recipe.export.normalize not in (None, has_length_1):
        says = "have length 1" if has_length_1 else "keep their length"
        raise RecipeError(
            f"export.normalize is {str(recipe.export.normalize).lower()}, and the vectors {says}, as the teacher's do; "
            "leave it out"
        )


def _check_recipe_data(recipe: Recipe, task: Task, *, trained: Folder | None, is_taught: bool = False) -> None:
    """Check both splits of a recipe's data with `check_data`.

    Args:
        recipe: names the data and its columns.
        task: decides which columns there must be.
        trained: a model whose labels the data must have; None if one is first trained on that data.
        is_taught: whether there is a teacher, with which texts need no label.
    """
    data = recipe.data
    label_names, problem = (trained.labels, trained.problem_type) if trained else (data.labels, data.problem_type)
    check_data(
        data.name,
        (data.train_split, data.eval_split),
        task=task,
        text_columns=data.text_columns,
        label_column=data.label_column,
        label_names=label_names if problem != REGRESSION else None,
        problem_type=problem if task is TEXT_CLASSIFICATION else None,
        needs_labels=task not in (FILL_MASK, FEATURE_EXTRACTION),
        extra=_check_extra(recipe) if is_taught else None,
    )


def _check_extra(recipe: Recipe) -> Extra:
    """Return what the student learns from beside labels, as far as it may be read here.

    Raises:
        DataError: if the texts without labels are not there.
    """
    further, answers = recipe.data.unlabelled, recipe.teacher.column
    if further is None:
        return Extra(answers=answers)
    check_name(further, "dataset", what="--unlabelled")
    files = find_files(further, "train", _DATA_SUFFIXES)
    is_read = files is not None and _is_read_at_once(Path(further).expanduser())
    return Extra(unlabelled=further if is_read else None, answers=answers)


def check_student(recipe: Recipe, folder: Folder | None, *, flags: Mapping[str, str]) -> None:
    """Raise if the student cannot be cut from its teacher, or from the checkpoint that `student.model` names.

    Args:
        recipe: says what to cut, and the settings of a teacher that it trains.
        folder: the teacher's checkpoint, if there is one already.
        flags: the options that the recipe's keys have on this command line, for messages.

    Raises:
        CheckpointError: with the layers that there are, or the family that fits.
    """
    scratch = recipe.teacher.scratch
    total = scratch.num_layers if scratch is not None else folder.layers if folder is not None else None
    layer = recipe.distill.settings().get("teacher_layer")
    if layer is not None and total is not None and layer >= total:
        raise CheckpointError(f"--set distill.teacher_layer={layer}: the teacher has the layers 0 to {total - 1}")
    who, asked = "the teacher", recipe.student_layers
    if recipe.student.model is not None:
        folder = find_checkpoint(recipe.student.model, what="student.model")
        if folder.task not in (None, FEATURE_EXTRACTION, FILL_MASK):  # these have no head, or none to lose
            check_head(folder, get_task(recipe.task))
        total, who, asked = folder.layers, recipe.student.model, recipe.student.layers
    given = f"{flags['student.layers']} " if "student.layers" in flags else "student.layers="
    if total is not None and asked is not None:
        if isinstance(asked, int) and asked > total:
            source = "a teacher" if who == "the teacher" else who
            raise CheckpointError(
                f"{given}{asked}: a student of {asked} layers cannot be cut from {source} with {total}; "
                f"ask for 1 to {total}"
            )
        # The recipe has checked that listed layers rise.
        if isinstance(asked, list) and asked[-1] >= total:
            raise CheckpointError(
                f"{given}{','.join(map(str, asked))}: {who} has the layers 0 to {total - 1}; name some of them"
            )
    if folder is None:
        return
    if recipe.student.family == "distilbert" and folder.model_type not in {"bert", "distilbert", None}:
        option = "--family " if "student.family" in flags else "student.family="
        raise CheckpointError(
            f"{option}distilbert: a DistilBERT student is cut from a BERT, and {folder.name} is a {folder.model_type}; "
            "leave it out"
        )


def check_init(recipe: Recipe, out: Path, *, overwrite: bool, flags: Mapping[str, str]) -> None:
    """Check the recipe that `init` cuts a student by.

    Raises:
        PotstillError: with the first fault.
    """
    check_free(out, overwrite=overwrite)
    assert recipe.teacher.model is not None
    folder = find_checkpoint(recipe.teacher.model)
    check_head(folder, get_task(recipe.task))
    check_student(recipe, folder, flags=flags)
    if recipe.student.best_of:
        raise RecipeError("--set student.best_of scores students on data, and `init` has none; name the layers")
    if recipe.student.vocabulary is not None:
        raise RecipeError("a vocabulary is trimmed to data, and `init` has none; use `potstill trim`, or leave it out")
    if recipe.tokenizer is not None:
        check_tokenizer(recipe.tokenizer, what="--set tokenizer")


def check_vocabulary(folder: Folder | None, asked: str | int | None, *, option: str) -> None:
    """Raise if a local checkpoint's vocabulary cannot be trimmed, or not to the size that is asked for.

    Raises:
        UsageError: if the setting is none of the three.
        CheckpointError: with the sizes that there can be, and what it is about the tokenizer.
    """
    if asked is None:
        return
    try:
        size, _ = parse_vocabulary(asked)
    except ValueError as error:
        raise UsageError(f"{option} {asked}: {error}") from error
    if folder is None or folder.tokenizer_file is None:
        return  # its tokenizer is made when it is loaded
    tokenizers = require("tokenizers", extra="distill")
    from potstill.checkpoint.vocabulary import Vocabulary, special_ids

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(folder.tokenizer_file))
    except Exception:  # a broken file, of which loading it will tell
        return
    vocabulary = Vocabulary(tokenizer, name=folder.name, special=special_ids(folder.config))
    if size is not None:
        try:
            vocabulary.check_size(size)
        except CheckpointError as error:
            raise CheckpointError(f"{option} {asked}: {error}") from error


def check_trim(
    checkpoint: str,
    out: Path,
    *,
    vocabulary: str,
    data: str,
    other_data: str | None,
    text_column: Sequence[str] | None,
    task: str | None,
    overwrite: bool,
) -> None:
    """Check the options of `trim`, which are the arguments.

    Raises:
        PotstillError: with the first fault.
    """
    check_free(out, overwrite=overwrite)
    folder = find_checkpoint(checkpoint)
    known = check_task(task) if task is not None else folder.task or FEATURE_EXTRACTION
    check_head(folder, known)
    check_vocabulary(folder, vocabulary, option="--vocabulary")
    train, _ = choose_splits(data, train="train", evaluation="validation")
    check_data(data, [train], task=known, text_columns=text_column, needs_labels=False)
    if other_data is not None:
        check_data(other_data, ["validation"], task=FILL_MASK, needs_labels=False)


def check_tokenizer(name: str, *, what: str = "--tokenizer") -> None:
    """Raise if a name is neither a folder with a tokenizer nor a hub id.

    Raises:
        CheckpointError: if it is neither.
    """
    check_name(name, "model", what=what)
    folder = Path(name).expanduser()
    if folder.is_file():
        raise CheckpointError(f"{what}: {name} is a file; name the folder that it is in")
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise CheckpointError(f"{what}: {name} has no tokenizer ({', '.join(_TOKENIZER_FILES[:2])})")


_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spm.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


def check_export(
    checkpoint: str,
    out: Path,
    *,
    task: str | None,
    tokenizer: str | None,
    data: str | None,
    split: str,
    text_column: Sequence[str] | None,
    label_column: str | None,
    config: ExportConfig,
    overwrite: bool,
) -> None:
    """Check the options of `export`, which are the arguments, and its validated settings.

    Raises:
        PotstillError: with the first fault.
    """
    asked = check_task(task)
    check_free(out, overwrite=overwrite)
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    found = find_exportable(checkpoint)
    if isinstance(found, Folder):
        asked = asked if task is not None else found.task or asked
        check_head(found, asked)
        found.check_encoder()
        if config.max_length is not None:
            found.check_length(config.max_length, option="--max-length")
        if config.embedding_bits == 4 and asked is FILL_MASK and found.config.get("tie_word_embeddings", True):
            raise UsageError("--embedding-bits is 4, and fill-mask needs the table of words in 8; leave it out")
        if asked is FEATURE_EXTRACTION:
            check_vectors(found, pooling=config.pooling, normalize=config.normalize)
        elif config.pooling is not None or not config.token_vectors:
            option = "--no-token-vectors leaves" if config.pooling is None else "--pooling makes"
            raise UsageError(f"{option} one vector of a text; {asked.name} has none, so leave it out")
    if config.max_label_loss is not None and asked.name not in LABELLED_TASKS:
        raise UsageError(f"--max-label-loss holds each label's recall, and {asked.name} has no labels; leave it out")
    if data is not None:
        # Labels may be missing here: int8 is then judged without them.
        check_data(data, [split], task=asked, text_columns=text_column, needs_labels=False)
    elif label_column or text_column:
        raise UsageError("--text-column and --label-column name columns of --data, which is missing; add it")


def check_vectors(
    folder: Folder, *, pooling: str | None, normalize: bool | None = None, option: str = "--pooling"
) -> None:
    """Raise if a sentence encoder has modules that are not supported, or describes other vectors than those asked for.

    Only local folders are checked; the modules of a hub id are fetched and checked when it is loaded.

    Args:
        folder: the encoder.
        pooling: the pooling that was asked for, or None.
        normalize: whether vectors of length 1 were asked for, or None.
        option: the option that names the pooling.

    Raises:
        CheckpointError: with the module's file that is not supported.
        UsageError: with the file that says otherwise.
    """
    if Path(folder.name).expanduser().is_dir():
        found = folder.sentence_transformers()
        if found is not None:
            check_pooling(found, pooling=pooling, normalize=normalize, option=option)


def find_exportable(name: str) -> Folder | Path:
    """Return a checkpoint's description, or the path of an ONNX file, of a folder with one, or of a bundle.

    Raises:
        CheckpointError: if the name is none of them.
    """
    path = Path(name).expanduser()
    if path.suffix == ".onnx" and not path.is_dir():
        if not path.is_file():
            raise CheckpointError(f"there is no file {name}; name an ONNX file or a folder that holds one")
        return path
    if path.is_dir() and not _has_weights(path):
        if (path / MANIFEST_NAME).is_file():
            return path
        if any([*path.glob("*.onnx"), *path.glob("onnx/*.onnx")]):
            return path
    return find_checkpoint(name)


def refuse_options(options: Mapping[str, object], why: str) -> None:
    """Raise for the first of the options that was given, because an option that does nothing would mislead.

    Raises:
        UsageError: with the option's name before `why`.
    """
    for name, value in options.items():
        # Not by truth: 0 and an empty string are values that were given.
        if value is not None and value is not False:
            raise UsageError(f"{name} {why}")


def check_evaluate(
    model: str,
    data: str,
    *,
    split: str,
    task: str | None,
    metric: str | None,
    precisions: Iterable[str],
    pooling: str | None,
    max_length: int | None,
    text_columns: list[str] | None,
    label_column: str | None,
    confusion: Path | None,
    predictions: Path | None,
) -> None:
    """Check the options of `evaluate`, which are the arguments, for a bundle or a checkpoint.

    Raises:
        PotstillError: with the first fault.
    """
    if confusion is not None:
        check_output_file(confusion, option="--confusion", suffixes=(".png", ".svg"))
    if predictions is not None:
        check_output_file(predictions, option="--predictions")
    if (Path(model).expanduser() / MANIFEST_NAME).is_file():
        from potstill.bundle import read_bundle

        # Not verified: the files are hashed when the bundle is loaded.
        manifest = read_bundle(Path(model), verify=False).manifest
        known, problem = get_task(manifest.task), manifest.problem_type
        _check_evaluate_task(known, problem, predictions=predictions)
        check_precisions(model, manifest.models, precisions)
        primary_metric(known, problem, asked=metric, num_labels=len(manifest.labels) or None)
        check_data(
            data,
            [split],
            task=known,
            label_names=manifest.labels or None,
            problem_type=problem,
            needs_labels=known is not FILL_MASK,
            text_columns=text_columns,
            label_column=label_column,
        )
        return
    known, folder = check_task(task), find_checkpoint(model)
    if task is None:
        known = folder.task or known
    problem = folder.problem_type if known is TEXT_CLASSIFICATION else None
    _check_evaluate_task(known, problem, pooling=pooling, confusion=confusion, predictions=predictions)
    if known is FEATURE_EXTRACTION:
        check_vectors(folder, pooling=pooling)
    check_head(folder, known, data=data)
    if max_length is not None:
        folder.check_length(max_length, option="--max-length")
    # transformers gives a regression a label too (LABEL_0), which names nothing in the data.
    labelled = known in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION) and problem != REGRESSION
    if metric is not None:
        primary_metric(known, problem, asked=metric)
    check_data(
        data,
        [split],
        task=known,
        problem_type=problem,
        label_names=folder.labels if labelled else None,
        needs_labels=known not in (FILL_MASK, FEATURE_EXTRACTION),
        text_columns=text_columns,
        label_column=label_column,
    )


def _check_evaluate_task(
    known: Task,
    problem: str | None,
    *,
    pooling: str | None = None,
    confusion: Path | None = None,
    predictions: Path | None,
) -> None:
    """Raise for options of `evaluate` that have no meaning for the model's task."""
    if pooling not in {None, "mean", "cls"}:
        raise UsageError(f"--pooling {pooling}: there is no such pooling; it is mean or cls")
    if pooling is not None and known is not FEATURE_EXTRACTION:
        raise UsageError(f"--pooling makes one vector of a text, which {known.name} does not; leave it out")
    if confusion is not None and known is not TEXT_CLASSIFICATION:
        raise UsageError(f"--confusion draws the classes of texts, and {known.name} has none; leave it out")
    if confusion is not None and kind_of(known, problem) != SINGLE_LABEL:
        raise UsageError("--confusion draws single labels, and this model gives several, or amounts; leave it out")
    if predictions is not None and known is FILL_MASK:
        raise UsageError("--predictions: fill-mask guesses words by the thousand and has no answer per example to keep")


def check_precisions(bundle: str, have: Iterable[str], asked: Iterable[str]) -> None:
    """Raise if a bundle has no file of a precision.

    Raises:
        UsageError: with the precisions that it has.
    """
    have = list(have)
    for precision in asked:
        if precision not in have:
            raise UsageError(f"--precision {precision}: {bundle} has no {precision} model; it has {', '.join(have)}")


def check_glue(
    model: str,
    data: str,
    *,
    out: Path,
    tasks: list[str] | None,
    teacher: str | None,
    reference: Path | None,
    resume: bool,
) -> None:
    """Check the options of `evaluate --glue`, which are the arguments.

    Raises:
        PotstillError: with the first fault.
    """
    if teacher is not None and reference is not None:
        raise UsageError("a teacher and a reference are two rows to compare with; give one of them")
    from potstill.metrics import glue_task

    if out.is_file():
        raise OutputError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not resume:
        raise OutputError(f"{out} is not empty; go on with its cells by --resume, or name another folder")
    if reference is not None and not reference.is_file():
        raise UsageError(f"--reference {reference}: there is no such file; `evaluate --glue` writes glue.json")
    for task in filter(None, tasks or ()):
        glue_task(task)
    find_checkpoint(model)
    if teacher is not None:
        find_checkpoint(teacher, what="--teacher")
    check_name(data, "dataset")


def check_run(recipe: Recipe) -> None:
    """Check the recipe of `run`, apart from its output folder, which `pipeline.check_out` checks.

    Raises:
        PotstillError: with the first fault.
    """
    task = get_task(recipe.task)
    if recipe.teacher.column is not None:
        raise RecipeError(
            "`run` holds a student against its teacher, and teacher.column has no model; use `potstill distill`, then "
            "export and bench the student"
        )
    folder = find_checkpoint(recipe.teacher.model, what="teacher.model") if recipe.teacher.model is not None else None
    _check_teachers(recipe, folder, what="teacher.ensemble")
    check_student(recipe, folder, flags={})
    check_vocabulary(None if recipe.tokenizer else folder, recipe.student.vocabulary, option="student.vocabulary")
    _check_embedding(recipe, folder, option="distill.pooling")
    _check_export_of_vectors(recipe, folder)
    if folder is not None and "max_length" in recipe.model_fields_set:
        folder.check_length(recipe.max_length, option="--set max_length")
    if recipe.tokenizer is not None:
        check_tokenizer(recipe.tokenizer, what="tokenizer")
    _check_recipe_data(recipe, task, trained=_labelled_by(recipe, folder), is_taught=True)


def check_bench(
    models: Sequence[str],
    out: Path,
    *,
    baseline: str | None,
    data: Sequence[str],
    split: str,
    precisions: Sequence[str],
    claims: Path | None,
    required: Sequence[str],
    resume: bool,
    overwrite: bool,
) -> None:
    """Check the options of `bench`, which are the arguments.

    Raises:
        PotstillError: with the first fault.
    """
    from potstill.bench import name_models

    named = name_models(models)
    # With a work folder of an interrupted bench there, the bench itself decides whether it may resume.
    work = out.resolve().with_name(f".{out.resolve().name}.bench")
    if not work.exists() and not resume:
        check_free(out, overwrite=overwrite)
    names = list(dict.fromkeys(name for name, _ in named))
    if baseline is not None and baseline not in names:
        raise UsageError(f"--baseline {baseline}: no model is called so; there are {', '.join(names)}")
    if required:
        from potstill.bench.claims import check_required, load_claims

        check_required(load_claims(claims), required)
    for _, place in named:
        _check_bench_model(place, precisions=precisions)
    for name in data:
        check_name(name, "dataset", what="--data")
        if Path(name).expanduser().is_dir():
            find_files(name, parse_split(split)[0], _DATA_SUFFIXES)


def _check_bench_model(place: str, *, precisions: Sequence[str]) -> None:
    folder = Path(place).expanduser()
    if (folder / MANIFEST_NAME).exists():
        from potstill.bundle import read_bundle

        have: list[str] = list(read_bundle(folder, verify=False).manifest.models)
        if precisions and not set(precisions) & set(have):
            raise UsageError(f"--precision: {place} has no {', '.join(precisions)}; it has {', '.join(have)}")
        return
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UsageError(
            f"{place} is neither a bundle ({MANIFEST_NAME}) nor a checkpoint (config.json); export a checkpoint first: "
            f"potstill export CHECKPOINT --out {place}"
        )
    find_checkpoint(place)


def check_predict(bundle: Path, file: str, out: str, *, precision: str | None, resume: bool, overwrite: bool) -> None:
    """Check the options of `predict`.

    Args:
        bundle: the bundle's folder.
        file: the input file, or `-` for standard input.
        out: the output file, or `-` for standard output.
        precision: which of the bundle's files answers; None leaves it to the bundle.
        resume: whether an earlier run is continued.
        overwrite: whether the output may be replaced.

    Raises:
        PotstillError: with the first fault.
    """
    from potstill.bundle import read_bundle

    if file != "-" and not Path(file).expanduser().is_file():
        near = similar(file)
        raise DataError(f"there is no file {file}; {near or 'name a .jsonl, .csv, .tsv or .parquet file, or -'}")
    if file != "-" and Path(file).suffix not in _ROWS:
        raise DataError(f"{file} must end in {_either(_ROWS)}")
    if out != "-":
        path = Path(out).expanduser()
        check_output_file(path, option="--out", suffixes=(".jsonl", ".csv", ".parquet"))
        # With a journal beside it, an existing output is one of this run, which may resume or be done already.
        was_begun = path.with_name(f".{path.name}.journal").exists()
        if path.exists() and not (overwrite or was_begun):
            raise OutputError(f"{out} is there already; pass --overwrite to replace it, or name another file")
    if resume and "-" in (file, out):
        raise UsageError("a run over standard input or output cannot be resumed; name files")
    if not bundle.is_dir() and similar(str(bundle)):
        raise BundleError(f"there is no folder {bundle}; {similar(str(bundle))}")
    opened = read_bundle(bundle, verify=False)
    if precision is None:
        opened.choose()
    else:
        check_precisions(str(bundle), opened.manifest.models, [precision])


_ROWS = (".jsonl", ".csv", ".tsv", ".parquet")
