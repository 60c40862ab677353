"""The tasks, as data: what goes in, what comes out, and by which number it is judged."""

from dataclasses import dataclass

from potstill.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One kind of question that a model answers."""

    name: str
    """The hub's name of the task, and the word on the command line."""
    model_class: str
    """The transformers class that loads a checkpoint for it."""
    text_columns: tuple[tuple[str, ...], ...]
    """Column names that public data sets use for the text, tried in this order; two names are a pair."""
    output: str
    """The name of the graph's output."""
    metric: str
    """The metric of `potstill.metrics.classification` that decides."""


TEXT_CLASSIFICATION = Task(
    name="text-classification",
    model_class="AutoModelForSequenceClassification",
    text_columns=(
        ("sentence1", "sentence2"),
        ("premise", "hypothesis"),
        ("question1", "question2"),
        ("question", "sentence"),
        ("sentence",),
        ("text",),
    ),
    output="logits",
    metric="accuracy",
)

TASKS = {task.name: task for task in (TEXT_CLASSIFICATION,)}


def get_task(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        UsageError: if there is none.
    """
    if name not in TASKS:
        raise UsageError(f"task {name!r} is not known; potstill knows {', '.join(TASKS)}")
    return TASKS[name]
