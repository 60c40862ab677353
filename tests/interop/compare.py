"""Read the bundles and what potstill answered, compare, and tell: shared by the scripts that load them elsewhere.

It runs in the environments of other tools, so it needs numpy and no potstill.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Of the largest answer, or of 1 if all are smaller. The files are the same and so is onnxruntime, but potstill leaves
# out a fusion of layer norms that other tools keep. That moves the last bits, measured 1e-6, and where scales are
# measured at each run (dynamic int8) a last bit decides how activations are rounded: 0 to 2 % in random models.
TOLERANCES = {"fp32": 1e-4, "int8": 3e-2, "int8-static": 1e-2}


@dataclass(frozen=True)
class Case:
    """One bundle with what make_bundles.py wrote beside it."""

    bundle: Path
    task: str
    files: Mapping[str, str]
    """The ONNX file's name of every precision."""
    batches: list[dict[str, Any]]
    """Texts, their ids as `inputs`, and `outputs` of every precision."""


Ask = Callable[[Case, str], list[Mapping[str, Any]]]
"""Load the file of that name from the bundle, and return a tool's outputs by name for every batch."""


def compare(tool: str, ask: Ask, *, tolerances: Mapping[str, float] = TOLERANCES, tasks: tuple[str, ...] = ()) -> None:
    """Compare a tool with potstill over the bundles in the folder of the command line, and exit: 0 if all fit.

    Of the outputs those are compared that the tool gives; of the bundles all, or those of `tasks`.
    """
    fits: list[bool] = []
    for case in _cases(Path(sys.argv[1])):
        for precision, file_name in case.files.items() if not tasks or case.task in tasks else ():
            wanted = [batch["outputs"][precision] for batch in case.batches]
            names, difference = _difference(ask(case, file_name), wanted, labels=case.task == "text-classification")
            fits.append(difference <= tolerances[precision])
            verdict = "ok" if fits[-1] else f"MISMATCH: at most {tolerances[precision]:.0e} was expected"
            print(f"{tool}: {case.task} {precision} ({', '.join(names)}): max difference {difference:.1e} {verdict}")
    sys.exit(not fits or not all(fits))


def columns(texts: list[Any]) -> list[list[str]]:
    """Return the texts as tokenizers take them: one list, or the two of a pair's halves."""
    return [texts] if isinstance(texts[0], str) else [list(half) for half in zip(*texts, strict=True)]


def _cases(folder: Path) -> Iterator[Case]:
    for file in sorted(folder.glob("*.json")):
        yield Case(file.with_suffix(""), **json.loads(file.read_text(encoding="utf-8")))


def _difference(
    answers: list[Mapping[str, Any]], wanted: list[Mapping[str, Any]], *, labels: bool
) -> tuple[list[str], float]:
    """Return the outputs that both have, and their largest difference; infinite for another shape or label."""
    names = sorted(wanted[0].keys() & answers[0].keys())
    worst = 0.0 if names else np.inf
    for name in names:
        for answer, expected in zip(answers, wanted, strict=True):
            ours, theirs = np.asarray(expected[name]), np.asarray(answer[name])
            if ours.shape != theirs.shape or (labels and (ours.argmax(-1) != theirs.argmax(-1)).any()):
                return names, np.inf
            worst = max(worst, float(np.abs(ours - theirs).max() / max(1, np.abs(ours).max())))
    return names, worst
