"""Load one precision of a bundle and answer texts with it.

Everything in potstill that asks an exported model goes through `Encoder`: parity checks, benchmarks, `evaluate` and the
server.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from potstill import machine
from potstill.bundle import LABELLED_TASKS, Bundle, EngineName, ModelContent, ModelRecord, read_bundle, verify_files
from potstill.errors import BundleError, CheckError, OtherCpuWarning, UsageError
from potstill.extras import require
from potstill.serve.limits import Limits
from potstill.serve.session import OnnxSession, Session, Stop
from potstill.serve.tasks import Features, Outputs, ServedTask, TaskModel, served_task
from potstill.serve.tasks.feature_extraction import SENTENCE_EMBEDDING
from potstill.serve.tasks.inputs import read_parameters
from potstill.serve.tasks.text_classification import scoring_function
from potstill.serve.tokenizer import BundleTokenizer, Row, Text
from potstill.tasks import FILL_MASK, TEXT_CLASSIFICATION

RunRows: TypeAlias = Callable[[Sequence[Row], Stop | None], list[Outputs]]
"""The type of `Encoder.run_rows`."""

# Most numbers that one run of a language model may give in `predict`, 256 MB as float32: it gives every token a row of
# vocabulary size.
_MOST_NUMBERS = 2**26
_BATCH = 32
_MOST_WINDOWS = Limits().windows


class Encoder:
    """One precision of one bundle, loaded.

    Attributes:
        bundle: the folder and its manifest.
        manifest: the content of `potstill.json`.
        precision: the precision that answers.
        record: how that precision's file was made and checked.
        engine: what runs it, `onnxruntime` or `openvino`.
        task: the schemas of its requests, and the decoder of its answers.
        function: turns a classifier's logits into scores: `softmax`, `sigmoid` or `none`.
        tokenizer: turns texts into ids.
        session: turns ids into the graph's outputs.
    """

    def __init__(
        self,
        bundle_dir: str | PathLike[str],
        *,
        precision: str | None = None,
        engine: EngineName = "onnxruntime",
        threads: int | None = None,
        spinning: bool = True,
        runners: int = 1,
        verify: bool = True,
    ) -> None:
        """Load one precision of a bundle, after checking every file against its hash unless `verify` is false.

        The bytes that are loaded are the bytes that were hashed, so swapping a file meanwhile has no effect.

        Args:
            bundle_dir: the folder.
            precision: which of its files answers; None is fp32, or the only one there is.
            engine: what runs it; openvino needs the extra of that name.
            threads: threads of one run; None takes the cores of this process.
            spinning: whether idle threads wait busily, as in `OnnxSession`; OpenVINO has no such choice.
            runners: how many threads will ask at once; OpenVINO needs to know, see `OpenVinoSession`.
            verify: whether files are checked.

        Raises:
            UsageError: if there is no such engine.
            MissingExtraError: if it is not installed.
            BundleError: if the folder is not a bundle, has no such precision, or cannot be loaded.
            TamperedError: if a file is not the one that the manifest names.
        """
        if engine not in get_args(EngineName):
            raise UsageError(f"engine is {engine!r}; expected {' or '.join(get_args(EngineName))}")
        if engine == "openvino":
            require("potstill.serve.openvino_session", extra=engine)  # before gigabytes are hashed
        bundle_dir = Path(bundle_dir)
        self.bundle = read_bundle(bundle_dir, verify=False)
        self.manifest = self.bundle.manifest
        self.precision = self.bundle.choose(precision)
        self.record = self.bundle.model_record(self.precision)
        self.engine = engine
        if verify:
            verify_files(self.bundle, but=self.bundle.loaded_files(self.precision))
        self.task: ServedTask = served_task(self.manifest.task)
        self.function = _function_of(self.bundle, verify=verify)
        _warn_of_other_cpu(self.record, bundle_dir)
        self.tokenizer = BundleTokenizer(bundle_dir, self.manifest, read=self.bundle.read if verify else None)
        # No name is bound to the bytes, so that they are freed as soon as the session has its own copy.
        self.session = _open_session(
            self.bundle.read_model(self.precision) if verify else self.bundle.model_file(self.precision),
            engine=engine,
            threads=threads,
            spinning=spinning,
            runners=runners,
            disabled_optimizers=self.record.disabled_optimizers or self.manifest.disabled_optimizers,
        )
        self._check_graph()
        self._task_model = TaskModel(
            tokenizer=self.tokenizer,
            outputs=self.manifest.outputs,
            labels=self.manifest.labels,
            function=self.function,
            pooling=self.manifest.pooling,
            width=self.session.output_widths[self.session.outputs[-1]],
        )

    @property
    def batch_invariant(self) -> bool:
        """Whether a text gets the same answer alone and in a batch.

        The manifest says it of onnxruntime. Of a quantised file on another engine it must have been seen there
        (`export --check-engine`): the last bit of a float sum, which the batch may change, decides between two steps.
        """
        if self.engine == "onnxruntime" or self.precision not in ("int8", "int8-static"):
            return self.record.batch_invariant
        seen = self.record.engines[self.engine].invariance if self.engine in self.record.engines else None
        return seen is not None and seen.invariant

    def outputs(self, texts: Sequence[Text], *, batch_size: int = 32) -> list[dict[str, NDArray[np.float32]]]:
        """Return every output of the graph for each text, in the order given, padding cut off.

        By task, for a text of T tokens: `logits` of shape (labels,) for text-classification, (T, labels) for
        token-classification and (T, vocabulary) for fill-mask; `start_logits` and `end_logits` of shape (T,) for
        question-answering; `last_hidden_state` (T, hidden), and `sentence_embedding` (hidden,) if the bundle pools,
        for feature-extraction. Batches are made as by `logits`.

        Raises:
            UsageError: if `batch_size` is below 1.
            CheckError: if the model fails to run.
        """
        with _panic_as_error():
            rows = self.tokenizer.rows(texts)
        found: list[Outputs] = [{}] * len(rows)  # one shared placeholder, replaced below
        for indices, batch in self._batches(rows, batch_size):
            for index, own in zip(indices, self.run_rows(batch), strict=True):
                found[index] = {name: values for name, values in own.items() if name in self.manifest.outputs}
        return found

    def logits(self, texts: Sequence[Text], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Return the logits of every text, shape (texts, labels), in the order given.

        Texts of similar length share a batch, so little is padded. A file whose answers depend on the batch (the
        `batch_invariant` is false: dynamic int8) gets one text per run, whatever `batch_size` says. Answers
        of other files are equal alone and in a batch up to rounding, not to the bit (int8-static: 3e-8).

        Raises:
            UsageError: if the task has not one row of logits per text, or `batch_size` is below 1.
            CheckError: if the model answers NaN or infinity, or in another shape.
        """
        if self.manifest.task != TEXT_CLASSIFICATION.name:
            raise UsageError(f"{self.manifest.task} has not one row of logits per text; take `outputs`")
        with _panic_as_error():
            rows = self.tokenizer.rows(texts)
        logits = np.empty((len(rows), len(self.manifest.labels)), dtype=np.float32)
        for indices, batch in self._batches(rows, batch_size):
            found = self.session.run(self.tokenizer.pad(batch))[self.manifest.outputs[0]]
            expected = (len(batch), len(self.manifest.labels))
            if found.shape != expected:
                raise CheckError(f"{self.session.model_file} answers in shape {found.shape}, not {expected}")
            logits[indices] = found
        if not np.isfinite(logits).all():
            bad = int((~np.isfinite(logits)).any(axis=1).sum())
            raise CheckError(
                f"{self.session.model_file} gave NaN or infinite logits for {bad} of {len(rows)} texts; "
                "use another precision or export the checkpoint again"
            )
        return logits

    def prepare(
        self,
        items: Sequence[Any],
        parameters: BaseModel | Mapping[str, Any] | None = None,
        *,
        most_windows: int = _MOST_WINDOWS,
    ) -> Features:
        """Tokenise a request: return its rows for the model, and the function that decodes its answers.

        Pure, and safe in any thread.

        Args:
            items: of the type `task.item`: texts, pairs or questions. A pair, and a question with its context, may be a
                tuple.
            parameters: an instance of `task.parameters`, or a mapping of its fields; None takes the defaults.
            most_windows: most windows into which one question's context may be split.

        Raises:
            RequestError: if an item or a parameter does not fit the task; no message repeats a text.
            CheckError: if the tokenizer fails on a text.
        """
        if not isinstance(parameters, self.task.parameters):
            parameters = read_parameters(self.task.parameters, parameters)
        with _panic_as_error():
            features = self.task.preprocess(self._task_model, items, parameters, most_windows)
        return features._replace(decide=self.task.decide)

    def predict(
        self, inputs: Any, *, parameters: BaseModel | Mapping[str, Any] | None = None, top_k: int | None = None
    ) -> Any:
        """Return the answer to one input, or to a list of inputs the list of their answers, as `POST /predict` does.

        Args:
            inputs: one text, (text, text_pair) or (question, context), or a list of these.
            parameters: of the task, as in `prepare`.
            top_k: shorthand for the parameter of this name.

        Returns:
            Plain JSON values, by task: labels with scores, entities, an answer, words for each mask, or a vector.

        Raises:
            UsageError: if an input or a parameter does not fit the task.
            CheckError: if the tokenizer or the model fails, or the model answers NaN or infinity.
        """
        items = inputs if isinstance(inputs, list) else [inputs]
        if top_k is not None:
            given = read_parameters(self.task.parameters, parameters).model_dump(exclude_unset=True)
            parameters = given | {"top_k": top_k}
        # No other client waits here, so a context may take as many windows as it needs.
        features = self.prepare(items, parameters, most_windows=2**31)
        batch_size = _BATCH
        if self.manifest.task == FILL_MASK.name:
            longest = max((len(row["input_ids"]) for row in features.rows), default=1)
            batch_size = max(1, min(_BATCH, _MOST_NUMBERS // (longest * self.tokenizer.vocabulary_size())))
        kept: list[Outputs] = [{}] * len(features.rows)
        for indices, batch in self._batches(features.rows, batch_size):
            for index, own in zip(indices, self.run_rows(batch), strict=True):
                kept[index] = features.keep(index, own)
        answers = features.decode(kept)
        return answers if isinstance(inputs, list) else answers[0]

    def unpad(self, given: Mapping[str, NDArray[Any]], rows: Sequence[Row]) -> list[Outputs]:
        """Return each row's outputs without padding, as the function `unpad` does, for this model's task."""
        return unpad(given, rows, task=self.task, left=self.manifest.padding_side == "left")

    def run_rows(self, rows: Sequence[Row], stop: Stop | None = None) -> list[Outputs]:
        """Run rows together and return each row's outputs; safe in any thread.

        Args:
            rows: elements of `Features.rows`.
            stop: ends the run with an error when it is set.

        Raises:
            CheckError: if the model fails, or was stopped.
        """
        # A single row, the common case of an idle server, needs no copy: a view with a batch axis will do.
        one = len(rows) == 1
        feeds = {name: values[None] for name, values in rows[0].items()} if one else self.tokenizer.pad(rows)
        return self.unpad(self.session.run(feeds, stop), rows)

    def _batches(self, rows: Sequence[Row], batch_size: int) -> Iterator[tuple[list[int], list[Row]]]:
        """Yield batches of similar length, each with its rows' numbers.

        The longest come first: onnxruntime's memory grows to the largest batch and stays there, so it grows once.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
        size = batch_size if self.batch_invariant else 1
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]["input_ids"]))
        for start in range(0, len(rows), size):
            indices = order[start : start + size]
            yield indices, [rows[index] for index in indices]

    def _check_graph(self) -> None:
        file, inputs, outputs = self.session.model_file, self.session.inputs, self.session.outputs
        if not set(inputs) <= set(self.manifest.inputs):
            raise BundleError(f"{file} takes {', '.join(inputs)}; its manifest says {', '.join(self.manifest.inputs)}")
        missing = [name for name in self.manifest.outputs if name not in outputs]
        if missing:
            raise BundleError(f"{file} gives {', '.join(outputs)}; its manifest says {', '.join(missing)} too")
        labels = len(self.manifest.labels)
        width = self.session.output_widths[self.manifest.outputs[0]]
        if self.manifest.task in LABELLED_TASKS and width not in (None, labels):
            raise BundleError(f"{file} answers with {width} labels; its manifest names {labels}; export it again")


def _open_session(
    model: Path | ModelContent,
    *,
    engine: EngineName,
    threads: int | None,
    spinning: bool,
    runners: int,
    disabled_optimizers: Sequence[str],
) -> Session:
    """Load a model into the engine that was asked for."""
    if engine == "onnxruntime":
        return OnnxSession(model, threads=threads, spinning=spinning, disabled_optimizers=disabled_optimizers)
    from potstill.serve.openvino_session import OpenVinoSession  # only here: it is an extra, and takes memory

    return OpenVinoSession(model, threads=threads, runners=runners)


@contextmanager
def _panic_as_error() -> Iterator[None]:
    """Turn a panic of the tokenizers library into an error.

    Rust panics where a pattern of the tokenizer backtracks too often. pyo3's PanicException derives from BaseException,
    so `except Exception` would not catch it, and the thread or the process would end.

    Raises:
        CheckError: if the library panics.
    """
    try:
        yield
    except BaseException as error:
        # pyo3 exports the class nowhere, so its module is all there is to know it by.
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise CheckError(
            "the tokenizers library failed on a text (a panic, as patterns cause that backtrack without end); "
            "leave the text out, or mend the pattern in tokenizer.json"
        ) from error


def unpad(
    given: Mapping[str, NDArray[Any]], rows: Sequence[Row], *, task: ServedTask, left: bool = False
) -> list[Outputs]:
    """Return the outputs of each row of a batch without padding, as views into the arrays of the run.

    Args:
        given: the model's outputs for the batch: name -> (rows, ...) or (rows, padded tokens, ...).
        rows: the batch's rows, before they were padded.
        task: tells whether outputs have an entry per text or per token.
        left: whether the rows were padded on the left.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    padded = max(lengths, default=0)
    found: list[Outputs] = []
    for at, length in enumerate(lengths):
        tokens = slice(padded - length, None) if left else slice(length)
        found.append(
            {
                name: values[at] if task.one_output_per_text or name == SENTENCE_EMBEDDING else values[at][tokens]
                for name, values in given.items()
            }
        )
    return found


def _function_of(bundle: Bundle, *, verify: bool) -> str:
    """Return the function that makes scores of a classifier's logits, `softmax`, `sigmoid` or `none`."""
    name = "config.json"
    if name not in bundle.manifest.files:  # such a file has no hash, so anybody may have put it there
        return scoring_function(bundle.manifest.problem_type, None)
    content = bundle.read(name) if verify else (bundle.folder / name).read_bytes()
    return scoring_function(bundle.manifest.problem_type, content)


def _warn_of_other_cpu(record: ModelRecord, folder: Path) -> None:
    """Warn if an int8 file was made for another kind of CPU: here it may be slow, or its products may saturate.

    Without VNNI, AVX2's VPMADDUBSW adds two products of 8 bits in 16 bits, which saturates; 7-bit weights fit.
    """
    if record.quantisation is None or not record.cpu_features:
        return
    made_exact, here_exact = machine.multiplies_exactly(record.cpu_features), machine.has_fast_int8()
    breaks = record.saturation.breaks_without_vnni if record.saturation is not None else None
    if breaks is None:  # a manifest from before it was measured
        breaks = record.quantisation.weight_bits == 8
    if made_exact and not here_exact:
        worse = "its products overflow there, so the answers are wrong" if breaks else "it will be slow"
        warnings.warn(
            f"{folder}: {record.file} was made for a CPU that multiplies int8 exactly (VNNI, AMX, ARM's dot product), "
            f"and this one does not: {worse}; export it again on this machine",
            OtherCpuWarning,
            stacklevel=3,
        )
    elif here_exact and not made_exact:
        warnings.warn(
            f"{folder}: {record.file} was made for a CPU without exact int8 products, so it has 7-bit weights; "
            "exported again on this machine it would be closer to fp32",
            OtherCpuWarning,
            stacklevel=3,
        )
