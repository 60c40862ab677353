"""A checkpoint through torch and transformers, on the CPU or a GPU, eager or compiled.

A GPU works on after the call that gave it work has returned, so a timed call ends with a wait for it; the call before
it ended so too, and nothing else is under way when the clock starts.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from potstill.bench.runners import Feeds, LoadCommand, Outputs
from potstill.bundle import sha256_of
from potstill.checkpoint.folder import USUAL_LENGTH, longest_text, read_folder
from potstill.checkpoint.model import (
    SentenceEncoder,
    accepted_inputs,
    count_parameters,
    hash_checkpoint,
    load_checkpoint,
    load_config,
    load_sentence_encoder,
    save_tokenizer,
)
from potstill.errors import CheckError, CheckpointError, MissingError, PotstillError, UsageError
from potstill.serve import BundleTokenizer
from potstill.serve.tasks.feature_extraction import SENTENCE_EMBEDDING
from potstill.tasks import (
    FEATURE_EXTRACTION,
    QUESTION_ANSWERING,
    REGRESSION,
    TASKS,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Task,
    get_task,
)

_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_SUFFIXES = (".safetensors", ".bin", ".json", ".txt", ".model")
# A graph of its own for every length of a grid, and for texts one whose length is free: more than torch's own limit
# of 8, beyond which it would run uncompiled without a word.
_MOST_GRAPHS = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that a `BundleTokenizer` needs (`potstill.serve.tokenizer.TokenizerSettings`)."""

    inputs: tuple[str, ...]
    max_length: int
    padding_side: str
    pad_token_id: int


def open_runner(command: LoadCommand) -> "TorchRunner":
    """Load a checkpoint by a worker's load command.

    Weights are cast from float32, and float32 products are not cut to TF32. A compiled model is compiled by its first
    calls of each size.

    Raises:
        UsageError: if torch has no such precision.
        CheckpointError: if the checkpoint cannot be loaded.
        MissingError: if a GPU is asked for and torch finds none.
        CheckError: if torch cannot compute in that precision there.
    """
    if command["precision"] not in _TYPES:
        raise UsageError(f"torch runs {', '.join(_TYPES)}, not {command['precision']!r}; export it to run that")
    on_gpu, compiled = "-cuda" in command["runner"], command["runner"].endswith("-compiled")
    if on_gpu and not torch.cuda.is_available():
        raise MissingError(f"runner {command['runner']} needs a GPU, and torch {torch.__version__} finds none")
    torch.set_num_threads(command["threads"])
    task = get_task(command["task"])
    # What makes a text's vector, where the checkpoint is one of sentence-transformers, runs and is timed with it.
    head = None
    if task is FEATURE_EXTRACTION:
        checkpoint, head = load_sentence_encoder(command["folder"])
    else:
        checkpoint = load_checkpoint(command["folder"], task)
    loaded = checkpoint.model if head is None else SentenceEncoder(checkpoint.model, head)
    model = loaded.to(device="cuda:0" if on_gpu else "cpu", dtype=_TYPES[command["precision"]])
    limits = (command["max_length"], read_folder(command["folder"]).max_seq_length)
    longest = min((limit for limit in limits if limit), default=None)
    settings = _settings(checkpoint.model, checkpoint.tokenizer, max_length=longest)
    with tempfile.TemporaryDirectory() as folder:
        # The checkpoint's own file, or what an older checkpoint without one is converted to.
        save_tokenizer(checkpoint.tokenizer, Path(folder))
        tokenizer = BundleTokenizer(Path(folder), settings)
    runner = TorchRunner(
        model,
        tokenizer,
        inputs=settings.inputs,
        outputs=_outputs(task) if head is None else (*_outputs(task), SENTENCE_EMBEDDING),
        synchronise=torch.cuda.synchronize if on_gpu else None,
        source=command["folder"],
    )
    _try(runner, command)
    if compiled:
        runner.compile(threads=command["threads"])
    return runner


class TorchRunner:
    """A transformers model in inference mode."""

    def __init__(
        self,
        model: Any,
        tokenizer: BundleTokenizer,
        *,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        synchronise: Callable[[], object] | None = None,
        source: str = "",
    ) -> None:
        """Take a loaded model.

        Args:
            model: on the device and in the number type that it runs in.
            tokenizer: the checkpoint's.
            inputs: the names of its inputs.
            outputs: the names of its outputs, the task's first.
            synchronise: waits until the device has done all its work; None where calls return when they are done.
            source: the checkpoint's folder or hub id, whose files are named.
        """
        self.inputs, self.outputs, self.tokenizer = inputs, outputs, tokenizer
        self.vocab_size: int | None = getattr(model.config, "vocab_size", None)
        self.batch_invariant = True
        self.model, self.call, self._source = model, model, source
        self._place, self._synchronise = model.device, synchronise
        self.device = _name(model.device)
        self.pooling = "mean"  # without modules of sentence-transformers, which the model gives its vectors by

    @property
    def files(self) -> dict[str, str]:
        """Return the SHA-256 of the checkpoint's files, by name; of a hub id those in the hub's cache."""
        folder = _folder(self._source)
        if folder is None:
            return {}
        return {file.name: sha256_of(file) for file in sorted(folder.iterdir()) if file.suffix in _SUFFIXES}

    def compile(self, *, threads: int) -> None:
        """Compile the model; what cannot be compiled as one graph is an error at the first call, not a slow row."""
        import torch._dynamo
        import torch._inductor.config

        torch._dynamo.config.recompile_limit = _MOST_GRAPHS
        torch._inductor.config.cpp.threads = threads  # part of the key of its cache
        torch._inductor.config.compile_threads = 1  # no pool of processes beside the one that is measured
        self.call = torch.compile(self.model, fullgraph=True)

    def run(self, feeds: Feeds) -> Outputs:
        """Return every output by name, as float32."""
        given = self.prepare(feeds)()
        return {name: given[name].float().cpu().numpy() for name in self.outputs}

    def prepare(self, feeds: Feeds) -> Callable[[], Any]:
        """Copy the inputs to the device; return a call that gives the outputs, there, when the work is done."""
        tensors = {name: torch.from_numpy(feeds[name]).to(self._place) for name in self.inputs}
        model, wait = self.call, self._synchronise
        if wait is None:

            def call() -> Any:
                with torch.inference_mode():
                    return model(**tensors)

            return call
        wait()

        def call_and_wait() -> Any:
            with torch.inference_mode():
                given = model(**tensors)
            wait()
            return given

        return call_and_wait

    def gpu_memory(self) -> dict[str, int]:
        """Return the most that torch's allocator gave out, and the most that it took from the device."""
        if self._place.type != "cuda":
            return {}
        return {
            "gpu_peak_allocated_bytes": torch.cuda.max_memory_allocated(self._place),
            "gpu_peak_reserved_bytes": torch.cuda.max_memory_reserved(self._place),
        }


def _try(runner: TorchRunner, command: LoadCommand) -> None:
    """Refuse a precision that this build of torch has no kernels for, such as half on an old CPU build."""
    if command["precision"] == "fp32":
        return
    try:
        # The smallest batch: two texts of special tokens alone.
        runner.run(runner.tokenizer.encode(["", ""]))
    except (RuntimeError, NotImplementedError) as error:
        raise CheckError(
            f"torch {torch.__version__} cannot run {command['folder']} in {command['precision']} on {runner.device}: "
            f"{str(error).splitlines()[0]}; take fp32"
        ) from error


def _settings(model: Any, tokenizer: Any, *, max_length: int | None) -> Settings:
    if tokenizer.pad_token_id is None:
        raise CheckpointError(f"the tokenizer of {model.name_or_path} has no padding token; give it one")
    limits = (longest_text(model.config.to_dict(), tokenizer.model_max_length), max_length)
    longest = min(filter(None, limits), default=USUAL_LENGTH)
    return Settings(
        # A model that can take token types need not have a tokenizer that makes them: RoBERTa's does not.
        inputs=tuple(name for name in accepted_inputs(model) if name in tokenizer.model_input_names),
        max_length=int(longest),
        padding_side=tokenizer.padding_side,
        pad_token_id=tokenizer.pad_token_id,
    )


def _outputs(task: Task) -> tuple[str, ...]:
    return ("start_logits", "end_logits") if task is QUESTION_ANSWERING else (task.output,)


def _name(device: Any) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _folder(source: str) -> Path | None:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    try:
        # The model was loaded before, so its files are in the cache and nothing need be fetched.
        found = cached_file(source, "config.json", local_files_only=True)
    except OSError:
        return None
    return Path(found).parent if found else None


# A tokenizer without a limit says 1e30; a text of this length is what every family takes.
_LONGEST = 512


def facts(name: str) -> dict[str, Any]:
    """Return what the bench needs to know of a hub id or checkpoint folder.

    Raises:
        CheckpointError: if it cannot be loaded, or has no head of a task that potstill knows.
    """
    config = load_config(name)
    folder = read_folder(name)
    task = folder.task
    if task is None:
        named = ", ".join(config.architectures or []) or "model without a name"
        raise CheckpointError(f"{name} is a {named}, which does none of {', '.join(TASKS)}")
    head = None
    if task is FEATURE_EXTRACTION:
        loaded, head = load_sentence_encoder(name)
    else:
        loaded = load_checkpoint(name, task)
    model, problem = loaded.model, None
    if task is TEXT_CLASSIFICATION:
        # One label means regression, as transformers itself decides it.
        problem = config.problem_type or (REGRESSION if config.num_labels == 1 else None)
    # A model without a task head has no such attribute: it is the encoder.
    encoder = getattr(model, model.base_model_prefix, model)
    return {
        "task": task.name,
        "problem_type": problem,
        "labels": list(loaded.label_names) if task in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION) else [],
        "parameters": count_parameters(model) + (count_parameters(head) if head is not None else 0),
        "encoder_parameters": count_parameters(encoder),
        "architecture": {
            "model_type": config.model_type,
            "hidden_size": getattr(config, "hidden_size", None),
            "vocab_size": config.vocab_size,
            "max_position_embeddings": getattr(config, "max_position_embeddings", None),
        },
        "source": {"name": name, "sha256": hash_checkpoint(name), "kind": "checkpoint"},
        "max_length": min(folder.longest or _LONGEST, _LONGEST),
        # use_diff=False writes default values too, which counting the operations needs.
        "config": json.loads(config.to_json_string(use_diff=False)),
    }


def main() -> None:
    """Print the facts of the checkpoint named on the command line as one line of JSON."""
    try:
        sys.stdout.write(json.dumps(facts(sys.argv[1])) + "\n")
    except PotstillError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
