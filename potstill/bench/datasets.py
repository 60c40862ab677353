"""The data sets that quality is scored on, and the rows that are scored on each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from potstill.bench import report_schema
from potstill.bench.measuring.plan import Plan
from potstill.bench.subjects import Entry, Subject, list_entries, read_subjects
from potstill.bench.suite import SuiteTask, read_suite
from potstill.config import BenchConfig
from potstill.data import Examples, load_examples
from potstill.errors import UsageError
from potstill.evaluation.decision import power
from potstill.evaluation.predictions import check_examples
from potstill.metrics import GLUE_METRICS, glue_task
from potstill.tasks import METRICS, get_task, kind_of, primary_metric

# Between a row's key and the data set that it has a model of its own for.
_OWN = "#"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Where labelled texts are."""

    data: str
    """A hub id, folder or file."""
    split: str = "validation"
    text_columns: Sequence[str] | None = None
    label_column: str | None = None
    limit: int | None = None

    @property
    def title(self) -> str:
        """What a table calls it: GLUE's spelling where its last part is a task of GLUE, else that part."""
        last = self.data.rstrip("/").replace(":", "/").rsplit("/", 1)[-1].split(".")[0]
        try:
            return glue_task(last)
        except UsageError:
            return last or self.data


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One data set, and the rows that are scored on it."""

    name: str
    examples: Examples
    kind: str
    metric: str
    entries: tuple[Entry, ...]
    """With the folders of the models for this data set; the keys are those of the report."""
    own: bool
    """Whether the models are other ones than those that are timed."""

    def power(self) -> report_schema.Power:
        """Return what so many examples can and cannot show."""
        return power(self.examples, kind=self.kind, metric=self.metric)

    def plan(self, plan: Plan) -> Plan:
        """Return the plan by which the rows answer; models of its own have keys of their own in the journal."""
        return replace(plan, entries=[replace(entry, key=self.asked(entry.key)) for entry in self.entries])

    def asked(self, key: str) -> str:
        """Return what the journal calls a row of this data set."""
        return f"{key}{_OWN}{self.name}" if self.own else key


def split_asked(key: str) -> tuple[str, str | None]:
    """Return a row's key as reports have it, and the data set that its model was only for, if so."""
    name, _, data = key.partition(_OWN)
    return name, data or None


def load_trials(
    data: Sequence[DataSet],
    *,
    suite: Path | None,
    subjects: Mapping[str, Subject],
    entries: Sequence[Entry],
    baseline: Entry,
    config: BenchConfig,
) -> list[Trial]:
    """Load all data sets, each with the label order of its baseline's model.

    Args:
        data: those that the timed models answer.
        suite: a YAML file with those that have models of their own.
        subjects: the timed models.
        entries: the rows.
        baseline: the row that all are held against.
        config: of the rows.

    Raises:
        DataError: if one cannot be read, or cannot judge the models.
        UsageError: if the suite is not valid, two data sets have one name, or labels differ between models.
    """
    trials = []
    if data:
        _check_labels(subjects, baseline.model)
    for each in data:
        trials.append(_trial(each, each.title, subjects[baseline.model], entries, own=False))
    tasks = read_suite(suite, models=list(subjects)).tasks if suite is not None else {}
    for name, task in tasks.items():
        trials.append(_suite_trial(name, task, entries=entries, baseline=baseline, config=config))
    names = [trial.name for trial in trials]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two data sets are called {name}; give one of them another name in a --suite file")
    return trials


def _suite_trial(
    name: str, task: SuiteTask, *, entries: Sequence[Entry], baseline: Entry, config: BenchConfig
) -> Trial:
    if baseline.model not in task.models:
        raise UsageError(f"{name} in the suite has no model called {baseline.model}, which all are held against")
    subjects = read_subjects(list(task.models.items()))
    _check_labels(subjects, baseline.model)
    known = {entry.key for entry in entries}
    rows = [row for row in list_entries(subjects, config, threads=baseline.threads) if row.key in known]
    place = DataSet(
        data=task.data,
        split=task.split,
        text_columns=task.text_columns,
        label_column=task.label_column,
        limit=task.limit,
    )
    return _trial(place, name, subjects[baseline.model], rows, own=True)


def _trial(data: DataSet, name: str, subject: Subject, entries: Sequence[Entry], *, own: bool) -> Trial:
    facts = subject.facts
    task = get_task(facts.task)
    examples = load_examples(
        data.data,
        split=data.split,
        task=task,
        text_columns=data.text_columns,
        label_column=data.label_column,
        label_names=facts.labels or None,
        problem_type=facts.problem_type,
        limit=data.limit,
    )
    kind = kind_of(task, facts.problem_type)
    check_examples(examples, kind)
    asked = GLUE_METRICS.get(name)
    metric = asked if asked in METRICS[kind] else primary_metric(task, facts.problem_type)
    return Trial(name=name, examples=examples, kind=kind, metric=metric, entries=tuple(entries), own=own)


def _check_labels(subjects: Mapping[str, Subject], baseline: str) -> None:
    wanted = subjects[baseline].facts
    for name, subject in subjects.items():
        theirs = subject.facts
        if (theirs.task, theirs.problem_type) != (wanted.task, wanted.problem_type):
            raise UsageError(
                f"{baseline} answers {wanted.problem_type or wanted.task}, {name} "
                f"{theirs.problem_type or theirs.task}; quality can be compared on the same question only"
            )
        if theirs.labels != wanted.labels:
            raise UsageError(
                f"the labels of {baseline} are {', '.join(wanted.labels)}, those of {name} {', '.join(theirs.labels)}; "
                "quality can be compared on the same labels only"
            )
