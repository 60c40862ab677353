"""Collect the answers of every configuration to every data set, each time from a fresh process."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from urllib.parse import quote

from potstill.bench.budget import COMPRESSED
from potstill.bench.config import LoadedDataset
from potstill.bench.measure.run import BenchRun

# The usual time limit is for so many texts: long ones of a large model take a second each.
_TEXTS_PER_TIMEOUT = 64


def collect_answers(run: BenchRun, datasets: Sequence[LoadedDataset], folder: Path) -> None:
    """Write each configuration's answers to each data set into a file of `folder` (`evaluation.predictions` reads it).

    The configurations answer one after the other, so that none needs memory beside another. What is in the journal and
    in `folder` is not asked again; one that fails at a data set has no file for it. A data set is not answered at all
    where the deadline leaves no time for all of them: scores are only good beside one another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for dataset in datasets:
        texts, configurations = dataset.examples.texts, dataset.configurations
        if not run.has_time(sum(_expected_s(run, dataset, each.key) for each in configurations), COMPRESSED):
            continue
        timeout_s = run.bench.config.timeout_s * ceil(len(texts) / _TEXTS_PER_TIMEOUT)
        for number, configuration in enumerate(configurations):
            key = dataset.journal_key(configuration.key)
            # Quoted, because a key holds a slash: `model/precision`.
            file = folder / f"{quote(f'{key} {dataset.name}', safe=' @+')}.npz"
            note = f"{key} on {dataset.name}"
            run.progress("score quality", number * len(texts), len(configurations) * len(texts), note)
            # Neither is flushed to the disk, so after a crash of the machine one may be there without the other.
            if run.journal.get("answers", key, dataset.name) is not None and file.is_file():
                continue
            command = {"do": "answer", "texts": list(texts), "kind": dataset.kind, "file": str(file)}
            with run.pool({key: run.setup_commands(configuration)}) as pool:
                answered = pool.ask(
                    key,
                    command,
                    read=lambda reply: {"texts": int(reply["texts"]), "mean_tokens": float(reply["mean_tokens"])},
                    stage="quality",
                    where=dataset.name,
                    timeout_s=timeout_s,
                )
            if answered is not None:
                # After the file is whole, so that an interrupted bench never takes a part for all answers.
                run.journal.put(("answers", key, dataset.name), {"file": file.name} | answered)
        run.progress("score quality", 1, 1, "")


def _expected_s(run: BenchRun, dataset: LoadedDataset, key: str) -> float:
    """Return about how long a configuration takes for all texts, by what its process has shown so far; 0 once done."""
    key = dataset.journal_key(key)
    if run.journal.get("answers", key, dataset.name) is not None:
        return 0.0
    loaded = run.journal.get("load", key) or {}
    start_s = sum(float(loaded.get(part, 0.0)) for part in ("process_ms", "import_ms", "load_ms")) / 1e3
    # Of the data's own texts where they were a load, else of those of one text: the shortest are the most like them.
    calls_ms = {
        str(load): value["call_ms"]
        for load in run.bench.loads
        if load.batch_size == 1
        for name, value in run.journal.parts("warm", str(load)).items()
        if name[-1] == key
    }
    per_text_ms = float(calls_ms.get("own texts", min(calls_ms.values(), default=0.0)))
    return start_s + len(dataset.examples.texts) * per_text_ms / 1e3
