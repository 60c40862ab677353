"""Every way a user has to run a BERT on a CPU, beside ours: same weights, inputs, threads, and turns.

    make grid CHECKPOINT=folder DATA=folder     # environments, files, bundles, accuracy: out/grid
    .venv/bin/python benchmarks/export/grid.py measure --out benchmarks/results/export-grid.json

`make grid` runs the first three of these, and makes the environments, whose packages ask for versions of their own
(`requirements-*.txt`): optimum-onnx, OpenVINO with NNCF, and the newest release of onnxruntime.

    grid.py prepare --checkpoint CHECKPOINT --data DATA
    grid.py bundles --data DATA
    grid.py accuracy
    grid.py measure

`prepare` makes checkpoints with random weights, which neither size nor speed depends on, and the peers' files: of these
and of CHECKPOINT, a trained classifier. `bundles` runs `potstill export`, plain and with --tune, and writes down what
that costs. `accuracy` asks everybody's files of CHECKPOINT for every validation text of DATA. `measure` first asks
every contestant alone for the same answer, so that none races with other weights, then gives each a process of its own
and turns in random order while the others are stopped. What cannot be made or run is a row with its reason. Run
`measure`, and `bundles` where its costs and --tune matter, on an otherwise idle machine.
"""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from accuracy import measure_accuracy
from contestants import Places, list_entries
from costs import export_bundles, read_costs
from measure import check_answers, peer_versions, run_race
from prepare import ARCHITECTURES, SEED, TRAINED, link_trained, prepare
from report import describe, list_goals, list_ratios, markdown

from potstill import machine
from potstill.files import write_text
from potstill.timing.race import GRID


def main() -> None:
    asked = _parse()
    bundles = asked.bundles or asked.work / "bundles"
    pythons = {"opt_python": asked.opt_python, "ov_python": asked.ov_python}
    places = Places(work=asked.work, bundles=bundles, new_python=asked.new_python, **pythons)

    def without(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in asked.without)

    if asked.do == "prepare":
        trained = []
        if asked.checkpoint is not None:
            link_trained(asked.work, asked.checkpoint, asked.data)
            trained = [TRAINED]
        prepare(asked.work, [*asked.only, *trained], **pythons)
    elif asked.do == "bundles":
        trained = [TRAINED] if asked.data is not None else []
        export_bundles(asked.work, bundles, [*asked.only, *trained], data=asked.data, without=without)
    elif asked.do == "accuracy":
        entries = list_entries(TRAINED, places, threads=1, without=without)
        found = where(places) | measure_accuracy(entries, asked.work / TRAINED / "judged.npz", seed=SEED)
        for file in [accuracy_file(asked.work), *([asked.out] if asked.out is not None else [])]:
            write_text(file, json.dumps(found, indent=1) + "\n")
    else:
        result = measure(places, asked, without=without)
        if asked.out is not None:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            write_text(asked.out, json.dumps(result, indent=1) + "\n")
        print(markdown(result))


def measure(places: Places, asked: argparse.Namespace, *, without: Callable[[str], bool]) -> dict[str, object]:
    """Race every architecture and return the result, with the accuracy that was measured before."""
    threads, environment = machine.available_cores(), where(places)
    races, sizes, described = {}, {}, {}
    for name in asked.only:
        print(name, file=sys.stderr, flush=True)
        entries = list_entries(name, places, threads=threads, without=without)
        if asked.contestants:
            entries = {each: entries[each] for each in asked.contestants}
        checked = check_answers(entries, seed=SEED)
        races[name] = run_race(entries, checked, cells=GRID, rounds=asked.rounds, block_s=asked.block, seed=SEED)
        sizes[name] = {each: entry.size_bytes for each, entry in entries.items() if entry.files}
        described[name] = describe(races[name], sizes[name], checked)
    costs, file = read_costs(places.bundles, asked.only), accuracy_file(asked.work)
    accuracy = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return environment | {
        "weights": f"random, seed {SEED}; neither size nor speed depends on them",
        "settings": {"threads": threads, "rounds": asked.rounds, "block_s": asked.block, "seed": SEED},
        # Of such a race nothing may be believed, the verdicts below included.
        "disturbed": {name: why for name, race in races.items() if (why := race.disturbed()) is not None},
        "goals": list_goals(races, sizes, costs, accuracy),
        "export": costs,
        "accuracy": accuracy,
        "architectures": described,
        "ratios": list_ratios(races),
    }


def where(places: Places) -> dict[str, Any]:
    """Return when, on which machine and with which packages something is measured."""
    pythons = {"optimum": places.opt_python, "openvino": places.ov_python, "newest": places.new_python}
    return {
        "date": date.today().isoformat(),
        "machine": machine.describe(),
        "peers": {name: peer_versions(python) for name, python in pythons.items()},
    }


def accuracy_file(work: Path) -> Path:
    """Return the file that `accuracy` writes."""
    return work / TRAINED / "accuracy.json"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("prepare", "bundles", "accuracy", "measure"))
    parser.add_argument("--work", type=Path, default=Path("out/grid"), help="checkpoints and the peers' files")
    parser.add_argument("--bundles", type=Path, help="potstill's bundles; WORK/bundles unless given")
    parser.add_argument("--checkpoint", type=Path, help="a trained text classifier, to compare answers with torch's")
    parser.add_argument("--data", help="its data, with train and validation")
    environments = Path(".venv")
    parser.add_argument(
        "--opt-python",
        type=Path,
        default=environments / "interop/optimum/bin/python",
        help="with optimum-onnx",
    )
    parser.add_argument(
        "--ov-python", type=Path, default=environments / "grid/openvino/bin/python", help="with openvino and nncf"
    )
    parser.add_argument(
        "--new-python",
        type=Path,
        default=environments / "grid/newest/bin/python",
        help="with onnxruntime's newest release",
    )
    parser.add_argument("--only", nargs="*", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--contestants", nargs="+", help="only these; all unless given")
    parser.add_argument("--without", nargs="+", default=[], help="patterns of contestants or bundles to leave out")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant per cell")
    parser.add_argument("--block", type=float, default=0.2, help="seconds that a turn lasts at least")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    asked = parser.parse_args()
    if (asked.checkpoint is None) != (asked.data is None) and asked.do == "prepare":
        parser.error("--checkpoint and --data come together: the trained classifier and the texts of its task")
    return asked


if __name__ == "__main__":
    main()
