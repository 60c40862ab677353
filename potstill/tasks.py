"""The five tasks as data: checkpoint class, usual columns, graph output, and the metrics that judge a model."""

from dataclasses import dataclass

from potstill.errors import UsageError

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
"""What a text classifier answers, as `problem_type` in a checkpoint's config.json names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task, by the Hugging Face hub's name."""

    name: str
    """The hub's name of the task, which `--task` takes."""
    model_class: str
    """The transformers class that loads a checkpoint for the task."""
    heads: tuple[str, ...]
    """Suffixes of the class names in a checkpoint's `architectures` that mean a head for this task."""
    text_columns: tuple[tuple[str, ...], ...]
    """Column names that public data sets use for the text, tried in order; two names are a pair."""
    label_columns: tuple[str, ...]
    """Column names that public data sets use for the label, tried in order; empty if texts are enough."""
    output: str
    """The name of the model's first output, in transformers and in the ONNX graph."""
    metric: str
    """The metric that decides by default."""

    @property
    def lower_is_better(self) -> bool:
        """Whether a good model has a low value of `metric`."""
        return lower_is_better(self.metric)


_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
TEXT_NAMES = (
    "text",
    "sentence",
    "content",
    "review",
    "comment_text",
    "comment",
    "tweet",
    "document",
    "article",
    "passage",
)
"""Column names that public data sets use for one text, tried in this order by every command."""
_TEXTS = tuple((name,) for name in TEXT_NAMES)

TEXT_CLASSIFICATION = Task(
    name="text-classification",
    model_class="AutoModelForSequenceClassification",
    heads=("ForSequenceClassification",),
    # Pairs first: `sentence` beside `question` is half of a pair.
    text_columns=(*_PAIRS, *_TEXTS),
    label_columns=("label", "labels", "score", "class", "category", "sentiment", "stars", "rating", "target"),
    output="logits",
    metric="accuracy",
)
TOKEN_CLASSIFICATION = Task(
    name="token-classification",
    model_class="AutoModelForTokenClassification",
    heads=("ForTokenClassification",),
    text_columns=(("tokens",), ("words",)),
    label_columns=("ner_tags", "tags", "labels", "pos_tags", "chunk_tags"),
    output="logits",
    metric="f1",
)
QUESTION_ANSWERING = Task(
    name="question-answering",
    model_class="AutoModelForQuestionAnswering",
    heads=("ForQuestionAnswering",),
    text_columns=(("question", "context"),),
    label_columns=("answers",),
    output="start_logits",
    metric="f1",
)
FILL_MASK = Task(
    name="fill-mask",
    model_class="AutoModelForMaskedLM",
    # BERT's pre-training class holds the same masked-language head, beside one for the next sentence.
    heads=("ForMaskedLM", "ForPreTraining"),
    text_columns=_TEXTS,
    label_columns=(),
    output="logits",
    metric="perplexity",
)
FEATURE_EXTRACTION = Task(
    name="feature-extraction",
    model_class="AutoModel",
    heads=("Model",),
    text_columns=(*_PAIRS, ("anchor", "positive"), *_TEXTS),
    # STS-B's `score` before `label`, which may be a class.
    label_columns=("score", "label", "similarity_score"),
    output="last_hidden_state",
    metric="spearman",
)

TASKS = {
    task.name: task
    for task in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, QUESTION_ANSWERING, FILL_MASK, FEATURE_EXTRACTION)
}

METRICS = {
    SINGLE_LABEL: ("accuracy", "macro_f1", "matthews_correlation", "f1", "accuracy_and_f1"),
    MULTI_LABEL: ("micro_f1", "macro_f1", "subset_accuracy"),
    REGRESSION: ("pearson", "spearman", "pearson_and_spearman", "mse"),
    TOKEN_CLASSIFICATION.name: ("f1", "precision", "recall", "accuracy"),
    QUESTION_ANSWERING.name: ("f1", "exact_match"),
    FILL_MASK.name: ("perplexity", "loss", "accuracy"),
    FEATURE_EXTRACTION.name: ("spearman", "pearson", "pearson_and_spearman"),
}
"""The metrics of each kind (see `kind_of`); the first one decides by default."""

TWO_CLASS_METRICS = ("f1", "accuracy_and_f1")
"""The metrics of single-label classifiers that need exactly two labels, of which id 1 is the positive one."""

_LOWER_IS_BETTER = ("perplexity", "loss", "mse")


def get_task(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        UsageError: if there is none.
    """
    if name not in TASKS:
        raise UsageError(f"task {name!r} is not known; potstill knows {', '.join(TASKS)}")
    return TASKS[name]


def kind_of(task: Task, problem_type: str | None = None) -> str:
    """Return the key of `METRICS`: the problem type of a text classifier, else the task's name.

    Args:
        task: one of `TASKS`.
        problem_type: the checkpoint's word; None is a single label. Only text classifiers have one.

    Raises:
        UsageError: if a text classifier's problem type is not one of `PROBLEM_TYPES`.
    """
    if task.name != TEXT_CLASSIFICATION.name:
        return task.name
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise UsageError(f"problem type {problem_type!r} is not known; expected {', '.join(PROBLEM_TYPES)}")
    return problem_type or SINGLE_LABEL


def primary_metric(
    task: Task, problem_type: str | None = None, *, asked: str | None = None, num_labels: int | None = None
) -> str:
    """Return the metric that decides which model is better.

    Args:
        task: one of `TASKS`.
        problem_type: as in `kind_of`.
        asked: the metric that a recipe names; None takes the first in `METRICS`.
        num_labels: the model's number of labels, if known: F1 of the positive class needs two.

    Raises:
        UsageError: if `asked` is no metric of the task or problem type.
    """
    kind = kind_of(task, problem_type)
    if asked is None:
        return METRICS[kind][0]
    if asked not in METRICS[kind]:
        raise UsageError(f"metric {asked!r} does not judge {kind}; expected {', '.join(METRICS[kind])}")
    if kind == SINGLE_LABEL and asked in TWO_CLASS_METRICS and num_labels not in (None, 2):
        raise UsageError(f"metric {asked!r} needs 2 labels and the model has {num_labels}; take macro_f1")
    return asked


def lower_is_better(metric: str) -> bool:
    """Return whether a good model has a low value of this metric."""
    return metric in _LOWER_IS_BETTER
