"""The results of an evaluation, as they stand in report.json: scores, intervals, retention, and what data can show.

An `interval` is the lower and upper end of a 95 % interval. None means "not measured", and never zero.
"""

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

Interval: TypeAlias = tuple[float, float]
Verdict: TypeAlias = Literal["PASS", "FAIL", "INCONCLUSIVE"]


class Result(BaseModel):
    """A part of the result: unknown fields are an error, and nothing changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LabelRecall(Result):
    """How many of the texts with one label, or of the entities of one type, a contestant finds."""

    label: str
    support: int
    """How many there are."""
    recall: float
    interval: Interval
    """Wilson's, or of entities the bootstrap's over texts where that is wider."""


class LabelDifference(Result):
    """By how much the recall of one label, or of one type of entity, differs from another contestant's."""

    label: str
    difference: float
    """Candidate's recall - baseline's; negative is worse."""
    interval: Interval
    """By paired bootstrap over examples, and no narrower than so few of them leave open."""


class Score(Result):
    """How good one contestant is on one data set."""

    key: str
    value: float
    """By the data set's metric."""
    interval: Interval
    scores: dict[str, float]
    calibration_error: float | None = None
    """Expected calibration error over 15 bins (Guo et al. 2017); classifiers only."""
    calibration_interval: Interval | None = None
    """By bootstrap over examples."""
    agreement: float | None = None
    """Share of the decisions that are the baseline's; None where answers are numbers."""
    lost_finite: int = 0
    """Texts whose answer was NaN or infinite."""
    better_than_trivial: bool | None = None
    """Whether it is surely better than an answer that ignores the text: the 95 % interval of their difference, by
    bootstrap over examples, lies above 0. None where there is no such answer."""
    labels: list[LabelRecall] = []
    """Of classifiers: the recall of every label that occurs; of token-classification, of every type of entity."""
    worst_label: LabelRecall | None = None
    """The lowest of them. Its interval is of the lowest recall, whichever label has it: all labels' together."""
    tokens_per_text: float | None = None
    """Mean tokens of a text by its own tokenizer, special ones included, cut to its longest input."""


class Retention(Result):
    """One contestant's score against another's, on the same examples."""

    comparison: Literal["like_for_like", "to_baseline", "to_own_fp32"]
    baseline: str
    candidate: str
    kept: float | None
    """Candidate's score / baseline's, the other way round where a low value is good; None where it would be divided by
    0 or less."""
    kept_interval: Interval | None
    difference: float
    """Candidate's score - baseline's; negative is worse, also where a low value is good."""
    difference_interval: Interval
    test: Literal["McNemar, exact", "paired bootstrap"]
    p_value: float
    gained: int | None = None
    """Examples that only the candidate has right."""
    lost: int | None = None
    """Examples that only the baseline has right."""
    labels: list[LabelDifference] = []
    """Of classifiers: the difference of every label's recall."""


class Power(Result):
    """What so many examples can and cannot show."""

    num_examples: int
    smallest_loss: float | None
    """The smallest loss, in the metric's own unit, that a paired test at 5 % finds 4 times in 5."""
    sentence: str


class Difference(Result):
    """An example that candidate and baseline answer most differently."""

    baseline: str
    candidate: str
    text: str | tuple[str, str]
    label: str
    baseline_answer: str
    candidate_answer: str
    distance: float
    """Between their probabilities (total variation, 0 to 1) or their numbers; 1 - F1 between answers to questions."""


class Confusion(Result):
    """Counts of examples by two contestants' answers."""

    rows: str
    """Whose answers the rows are: the baseline's key, or `label`."""
    columns: str
    labels: list[str]
    counts: list[list[int]]


class Quality(Result):
    """Every contestant on one data set."""

    name: str
    """As a table calls it: GLUE's spelling where it is one of GLUE's tasks."""
    data: str
    split: str
    num_examples: int
    data_sha256: str
    task: str
    kind: str
    """`potstill.tasks.kind_of`."""
    metric: str
    lower_is_better: bool = False
    trivial: float | None = None
    """The score of an answer that does not look at the text: the best one that is always the same."""
    trivial_answer: str | None = None
    """What that answer is, such as "always negative"."""
    scores: list[Score]
    retention: list[Retention] = []
    power: Power
    confusion: list[Confusion] = []
    differences: list[Difference] = []
    notes: list[str] = []
    """What to know of the scores, such as labels that do not occur."""


class GlueRow(Result):
    """One candidate's scores over several data sets, against the baseline's by every definition in use."""

    baseline: str
    candidate: str
    scores: dict[str, float]
    baseline_scores: dict[str, float]
    macro_with_wnli: float | None
    macro: float | None
    mean_of_ratios: float | None
    worst_task: float | None
    worst_task_name: str | None = None
    macro_interval: Interval | None = None
    """Of `macro`: paired bootstrap over the examples of every data set."""
