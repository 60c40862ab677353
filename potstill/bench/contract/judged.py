"""The parts of a report that judge: scores, comparisons on the same examples, and claims."""

from typing import Literal

from potstill.bench.contract.base import Interval, Part, Verdict


class Score(Part):
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
    """Share of the decisions that are the baseline's; None where answers are amounts."""
    lost_finite: int = 0
    """Texts whose answer was NaN or infinite."""
    better_than_trivial: bool | None = None
    """Whether it is surely better than an answer that ignores the text: the 95 % interval of their difference, by
    bootstrap over examples, lies above 0. None where there is no such answer."""


class Retention(Part):
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


class Power(Part):
    """What so many examples can and cannot show."""

    num_examples: int
    smallest_loss: float | None
    """The smallest loss, in the metric's own unit, that a paired test at 5 % finds 4 times in 5."""
    sentence: str


class Difference(Part):
    """An example that candidate and baseline answer most differently."""

    baseline: str
    candidate: str
    text: str | tuple[str, str]
    label: str
    baseline_answer: str
    candidate_answer: str
    distance: float
    """Between their probabilities (total variation, 0 to 1) or their amounts; 1 - F1 between answers to questions."""


class Confusion(Part):
    """Counts of examples by two contestants' answers."""

    rows: str
    """Whose answers the rows are: the baseline's key, or `label`."""
    columns: str
    labels: list[str]
    counts: list[list[int]]


class Quality(Part):
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


class GlueRow(Part):
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


class Decision(Part):
    """One claim about one candidate, decided."""

    id: str
    claim: str
    """The sentence, such as "40 % smaller"."""
    measure: str
    """A key of `potstill.bench.claims.measures.MEASURES`."""
    subject: str
    """The contestant it is about: a key, or a model's name where precision does not matter."""
    against: str | None = None
    """What it is held against, where the measure compares."""
    where: str | None = None
    """The load or data set."""
    definition: str
    source: str = ""
    direction: Literal["at_least", "at_most"]
    target: float
    unit: str = ""
    value: float | None
    interval: Interval | None
    verdict: Verdict
    summary: str
    """A sentence that a manager understands."""
    reason: str | None = None
    """Why nothing was decided."""
