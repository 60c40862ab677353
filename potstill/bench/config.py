"""What a bench is asked for (`Request` with the recipe's `BenchConfig`), and the same resolved (`ResolvedBench`).

`resolve` reads the models and data sets and refuses whatever cannot be measured before anything starts.

A suite is a YAML file with several data sets, such as GLUE's, each with the models that answer it:

    tasks:
      SST-2:
        data: nyu-mll/glue:sst2
        models: {teacher: teacher-sst2-onnx, student: student-sst2-onnx}
      MRPC:
        data: shared/mrpc
        split: test
        text_columns: [sentence1, sentence2]
        models: {teacher: teacher-mrpc-onnx, student: student-mrpc-onnx}

Places are read as on the command line: from the folder that a bench is started in, or from the hub.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from potstill import machine
from potstill.bench import report_schema
from potstill.bench.claims import Claim, load_claims
from potstill.bench.models import BenchModel, Configuration, list_configurations, pick_baseline, read_models
from potstill.bench.report_schema import Load
from potstill.bench.runners import check_runner
from potstill.bench.workload import check_loads, make_loads
from potstill.config import BenchConfig, Section
from potstill.data import Examples, load_examples
from potstill.errors import UsageError
from potstill.evaluation.decision import power
from potstill.evaluation.scores import check_examples
from potstill.messages import describe_fault, did_you_mean
from potstill.metrics import GLUE_METRICS, glue_task
from potstill.tasks import METRICS, get_task, kind_of, primary_metric

# Between a configuration's key and the data set that it has a model of its own for, in the journal.
_OWN_MODEL = "#"
# Their examples are words or questions with a context, which a worker does not time as texts.
_NOT_TIMED_AS_TEXTS = frozenset({"token-classification", "question-answering"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """The place of a data set, and what of it is read."""

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
class Request:
    """What a bench is asked to measure.

    Attributes:
        models: pairs of name and place: a bundle's folder, a checkpoint's folder or a hub id; see `name_models`.
        baseline: the model that all are compared with; None takes the first.
        data: what quality is scored on; without any it stays unmeasured.
        suite: a YAML file with more data sets, each with models of its own, as described above.
        claims: a YAML file with claims in the place of the package's own; see `potstill.bench.claims.claim_file`.
    """

    models: Sequence[tuple[str, str]]
    baseline: str | None = None
    data: Sequence[DataSet] = ()
    suite: Path | None = None
    claims: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedDataset:
    """One data set, and the configurations that are scored on it."""

    name: str
    examples: Examples
    kind: str
    metric: str
    configurations: tuple[Configuration, ...]
    """With the folders of the models for this data set; the keys are those of the report."""
    has_own_models: bool
    """Whether the models are other ones than those that are timed."""

    def power(self) -> report_schema.Power:
        """Return the statistical power: which differences this many examples can and cannot show."""
        return power(self.examples, kind=self.kind, metric=self.metric)

    def journal_key(self, key: str) -> str:
        """Return what the journal calls a configuration that answers this data set."""
        return f"{key}{_OWN_MODEL}{self.name}" if self.has_own_models else key


def split_journal_key(key: str) -> tuple[str, str | None]:
    """Return a configuration's key as reports have it, and the data set that its model was only for, if so."""
    name, _, dataset = key.partition(_OWN_MODEL)
    return name, dataset or None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedBench:
    """A bench that was checked and is ready to run.

    Attributes:
        configurations: what is measured, in the order of the report.
        baseline: the configuration that all are compared with.
        loads: what latency is measured at.
        config: what else is measured, and for how long.
        seed: of the inputs, the order of turns and the bootstraps.
        threads: how many each configuration computes with.
        models: the models by name.
        datasets: what quality is scored on.
        texts: the data's own, for the loads that are not random tokens.
        data: the data sets as the request names them.
        claims: what is decided from the report.
        command: the command line that repeats the bench, for the report.
    """

    configurations: tuple[Configuration, ...]
    baseline: Configuration
    loads: tuple[Load, ...]
    config: BenchConfig
    seed: int
    threads: int
    models: Mapping[str, BenchModel] = field(default_factory=dict)
    datasets: tuple[LoadedDataset, ...] = ()
    texts: tuple[object, ...] = ()
    data: tuple[DataSet, ...] = ()
    claims: tuple[Claim, ...] = ()
    command: str = ""

    @property
    def throughput_loads(self) -> list[Load]:
        """Return what throughput is measured at."""
        sizes = dict.fromkeys(self.config.throughput_batch_sizes)
        return [Load(batch_size=size, num_tokens=self.config.throughput_tokens) for size in sizes]

    @property
    def callers(self) -> list[int]:
        """Return the numbers of concurrent callers that throughput is measured with."""
        return list(dict.fromkeys(self.config.callers))

    @property
    def scaling_load(self) -> Load:
        """Return what numbers of threads are compared at: one text of the grid's greatest length."""
        return Load(batch_size=1, num_tokens=max(self.config.num_tokens))

    def file_bytes(self, configuration: Configuration) -> int | None:
        """Return the bytes of the files with a configuration's weights; None of a hub id."""
        files = self.models[configuration.model].weight_files(configuration)
        return sum(file.stat().st_size for file in files) or None

    def select(self, *, keys: Sequence[str], loads: Sequence[Load]) -> "ResolvedBench":
        """Return this bench with only these configurations and loads; the data sets stay."""
        return replace(
            self,
            configurations=tuple(each for each in self.configurations if each.key in keys),
            loads=tuple(loads),
            datasets=tuple(
                replace(each, configurations=tuple(one for one in each.configurations if one.key in keys))
                for each in self.datasets
            ),
        )


def resolve(request: Request, *, config: BenchConfig, seed: int, command: str = "") -> ResolvedBench:
    """Read the claims, models and data of a request.

    Raises:
        BundleError, TamperedError, CheckpointError: if a model cannot be used.
        UsageError, DataError, RecipeError: if models, loads, data or claims do not fit.
        MissingError: if this machine lacks an engine.
    """
    claims = load_claims(request.claims)
    if not request.models:
        raise UsageError("there is no model to bench; name a bundle or a checkpoint")
    names = list(dict.fromkeys(name for name, _ in request.models))
    if request.baseline is not None and request.baseline not in names:
        raise UsageError(f"--baseline {request.baseline}: no model is called so; there are {', '.join(names)}")
    suite = read_suite(request.suite, models=names) if request.suite is not None else None
    models = read_models(request.models)
    threads = config.threads or machine.available_cores()
    configurations = list_configurations(models, config, threads=threads)
    # Before data sets are fetched, so that a missing engine costs no waiting.
    for runner in dict.fromkeys(each.runner for each in configurations):
        check_runner(runner)
    baseline = pick_baseline(configurations, request.baseline or next(iter(models)))
    loads = make_loads(config.batch_sizes, config.num_tokens)
    for name, model in models.items():
        check_loads(loads, name=name, positions=model.positions)
    task = models[baseline.model].facts.task
    for name, model in models.items():
        if model.facts.task != task:
            raise UsageError(
                f"{baseline.model} does {task}, {name} {model.facts.task}; only models of one task can be compared"
            )
    datasets = _load_datasets(request.data, suite, models, configurations, baseline=baseline, config=config)
    texts: Sequence[object] = ()
    if config.realistic and datasets and not datasets[0].has_own_models:
        first = datasets[0]
        if first.kind not in _NOT_TIMED_AS_TEXTS:
            # Evenly from the whole split, which may be sorted.
            step = max(1, len(first.examples.texts) // config.realistic_texts)
            texts = first.examples.texts[::step][: config.realistic_texts]
    if texts:
        loads = [*loads, Load(kind="texts"), Load(kind="texts_tokenised")]
    return ResolvedBench(
        models=models,
        configurations=tuple(configurations),
        baseline=baseline,
        loads=tuple(loads),
        datasets=tuple(datasets),
        texts=tuple(texts),
        data=tuple(request.data),
        claims=tuple(claims),
        config=config,
        seed=seed,
        command=command,
        threads=threads,
    )


def _load_datasets(
    data: Sequence[DataSet],
    suite: "Suite | None",
    models: Mapping[str, BenchModel],
    configurations: Sequence[Configuration],
    *,
    baseline: Configuration,
    config: BenchConfig,
) -> list[LoadedDataset]:
    """Load all data sets, each with the label order of its baseline's model."""
    datasets = []
    if data:
        _check_labels(models, baseline.model)
    for each in data:
        datasets.append(_load_dataset(each, each.title, models[baseline.model], configurations, has_own_models=False))
    known = {each.key for each in configurations}
    for name, task in suite.tasks.items() if suite is not None else ():
        if baseline.model not in task.models:
            raise UsageError(f"{name} in the suite has no model called {baseline.model}, which all are held against")
        own = read_models(list(task.models.items()))
        _check_labels(own, baseline.model)
        # A precision that only a suite's model has would be a row without times.
        answering = [each for each in list_configurations(own, config, threads=baseline.threads) if each.key in known]
        place = DataSet(
            data=task.data,
            split=task.split,
            text_columns=task.text_columns,
            label_column=task.label_column,
            limit=task.limit,
        )
        datasets.append(_load_dataset(place, name, own[baseline.model], answering, has_own_models=True))
    names = [dataset.name for dataset in datasets]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two data sets are called {name}; give one of them another name in a --suite file")
    return datasets


def _load_dataset(
    data: DataSet, name: str, model: BenchModel, configurations: Sequence[Configuration], *, has_own_models: bool
) -> LoadedDataset:
    facts = model.facts
    task = get_task(facts.task)
    examples = load_examples(
        data.data,
        split=data.split,
        task=task,
        text_columns=data.text_columns,
        label_column=data.label_column,
        # The baseline's order: it decides which class a number in an answer is.
        label_names=facts.labels or None,
        problem_type=facts.problem_type,
        limit=data.limit,
    )
    kind = kind_of(task, facts.problem_type)
    check_examples(examples, kind)
    # GLUE's metric by the data set's name, unless the models do another task than GLUE's.
    glue_metric = GLUE_METRICS.get(name)
    metric = glue_metric if glue_metric in METRICS[kind] else primary_metric(task, facts.problem_type)
    return LoadedDataset(
        name=name,
        examples=examples,
        kind=kind,
        metric=metric,
        configurations=tuple(configurations),
        has_own_models=has_own_models,
    )


def _check_labels(models: Mapping[str, BenchModel], baseline: str) -> None:
    wanted = models[baseline].facts
    for name, model in models.items():
        theirs = model.facts
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


class SuiteTask(Section):
    """One data set of a suite, and the models that answer it."""

    data: str = Field(min_length=1)
    """A hub id, folder or file."""
    models: dict[str, str] = Field(min_length=1)
    """A bundle or checkpoint by the name of a bench's model."""
    split: str = "validation"
    text_columns: list[str] | None = Field(default=None, min_length=1, max_length=2)
    """None takes the usual names, and so does `label_column`."""
    label_column: str | None = None
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many examples."""


class Suite(Section):
    """The data sets of a suite by name; GLUE's tasks are called as GLUE calls them."""

    tasks: dict[str, SuiteTask] = Field(min_length=1)


def read_suite(path: Path, *, models: Sequence[str] | None = None) -> Suite:
    """Read a suite from a YAML file.

    Args:
        path: the file.
        models: the names of the bench's models; None takes any.

    Raises:
        UsageError: if there is no such file or it is no YAML; or with every fault, one per line, if it is not valid.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no file {path}; --suite names a YAML file with the data sets under tasks"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text: {error}; --suite names a YAML file") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping):
        raise UsageError(f"{path} holds no suite; it needs data sets by name under tasks")
    # Collected beside pydantic's, so that one attempt shows every fault.
    faults = _suite_name_faults(values, models)
    try:
        suite = Suite.model_validate(values)
    except ValidationError as error:
        faults = [*(describe_fault(fault, Suite) for fault in error.errors()), *faults]
        raise _invalid_suite(path, faults) from error
    if faults:
        raise _invalid_suite(path, faults)
    return suite.model_copy(update={"tasks": {_glue_name(name): task for name, task in suite.tasks.items()}})


def _suite_name_faults(values: Mapping[str, object], models: Sequence[str] | None) -> list[str]:
    """Return what is wrong with the names of data sets and models, whatever pydantic finds."""
    tasks = values.get("tasks")
    if not isinstance(tasks, Mapping):
        return []
    titles = {name: _glue_name(str(name)) for name in tasks}
    faults = [
        f"tasks.{name}: is {title}, which is there twice"
        for name, title in titles.items()
        if list(titles.values()).count(title) > 1
    ]
    for name, task in tasks.items():
        places = task.get("models") if isinstance(task, Mapping) else None
        for model, place in places.items() if isinstance(places, Mapping) else ():
            if models is not None and model not in models:
                hint = did_you_mean(str(model), models)
                faults.append(f"tasks.{name}.models.{model}: is no model of this bench{hint}")
            if place == "":
                faults.append(f"tasks.{name}.models.{model}: is empty")
    return faults


def _invalid_suite(path: Path, faults: Sequence[str]) -> UsageError:
    listed = "\n".join(f"  {fault}" for fault in faults)
    return UsageError(f"suite {path} is not valid:\n{listed}")


def _glue_name(name: str) -> str:
    try:
        return glue_task(name)
    except UsageError:
        return name
