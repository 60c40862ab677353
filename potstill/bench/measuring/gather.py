"""Have every row answer every data set."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from potstill.bench.measuring.budget import COMPRESSED
from potstill.bench.measuring.plan import Plan
from potstill.bench.measuring.team import Team

_STAGE = "score quality"
# The usual time limit is for so many texts: long ones of a large model take a second each.
_TEXTS_PER_LIMIT = 64


def gather_answers(
    plan: Plan, datasets: Mapping[str, tuple[Sequence[Any], str]], folder: Path
) -> dict[tuple[str, str], Path]:
    """Return where each row's answers to each data set are: files of `potstill.evaluation.predictions`.

    The rows answer one after the other, each in a fresh process, so that none needs memory beside another. What is in
    the journal and in `folder` is not asked again; a row that fails at a data set has no file for it. Nobody is asked
    where the plan's deadline leaves no time for all of them: scores are only good beside one another.

    Args:
        plan: the rows and the journal.
        datasets: name -> texts and `potstill.tasks.kind_of`.
        folder: gets the files; is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not plan.has(sum(_seconds(plan, entry.key, datasets) for entry in plan.entries), COMPRESSED):
        return {}
    total = len(plan.entries) * sum(len(texts) for texts, _ in datasets.values())
    done, files = 0, dict[tuple[str, str], Path]()
    for entry in plan.entries:
        with plan.team({entry.key: plan.greetings(entry)}) as team:
            for name, (texts, kind) in datasets.items():
                plan.progress(_STAGE, done, total, f"{entry.key} on {name}")
                file = folder / f"{quote(f'{entry.key} {name}', safe=' @+')}.npz"
                if _answer(plan, team, entry.key, name=name, texts=texts, kind=kind, file=file):
                    files[entry.key, name] = file
                done += len(texts)
    plan.progress(_STAGE, 1, 1, "")
    return files


def _seconds(plan: Plan, key: str, datasets: Mapping[str, tuple[Sequence[Any], str]]) -> float:
    """Return about how long a row takes for all texts, by what its process has shown so far; 0 once it has answered."""
    texts = sum(len(each) for name, (each, _) in datasets.items() if plan.journal.get("answers", key, name) is None)
    if not texts:
        return 0.0
    loaded = plan.journal.get("load", key) or {}
    start_s = sum(float(loaded.get(part, 0.0)) for part in ("process_ms", "import_ms", "load_ms")) / 1e3
    # Of the data's own texts where they were a load, else of those of one text: the shortest are the most like them.
    calls_ms = {
        str(load): value["call_ms"]
        for load in plan.loads
        if load.batch_size == 1
        for name, value in plan.journal.parts("warm", str(load)).items()
        if name[-1] == key
    }
    per_text_ms = float(calls_ms.get("own texts", min(calls_ms.values(), default=0.0)))
    return start_s + texts * per_text_ms / 1e3


def _answer(plan: Plan, team: Team, key: str, *, name: str, texts: Sequence[Any], kind: str, file: Path) -> bool:
    """Have one row answer one data set, if it has not; tell whether its answers are there."""
    if plan.journal.get("answers", key, name) is not None and file.is_file():
        return True
    command = {"do": "answer", "texts": list(texts), "kind": kind, "file": str(file)}
    limit_s = plan.config.timeout_s * ceil(len(texts) / _TEXTS_PER_LIMIT)
    count = team.ask(
        key, command, read=lambda reply: int(reply["texts"]), stage="quality", where=name, timeout_s=limit_s
    )
    if count is None:
        return False
    plan.journal.put(("answers", key, name), {"file": file.name, "texts": count})
    return True
