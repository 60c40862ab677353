"""Every way a user has to run a BERT on a CPU, beside ours: same weights, inputs, threads, and turns.

    python benchmarks/export/grid.py prepare --work out/grid --opt-python OPT --ov-python OV
    python benchmarks/export/grid.py bundles --work out/grid
    python benchmarks/export/grid.py measure --work out/grid --opt-python OPT --ov-python OV --out benchmarks/results/export-grid.json

OPT and OV are the Pythons of environments of their own, because optimum-onnx wants an older transformers:

    pip install optimum-onnx==0.1.0 onnxruntime            pip install openvino nncf

`prepare` makes checkpoints with random weights, which neither size nor speed depends on, and the peers' files.
`bundles` runs `potstill export`, plain and with --tune, and writes down what that costs. `measure` first asks every
contestant alone for the same answer, so that none races with other weights, then gives each a process of its own and
turns in random order while the others are stopped. What cannot be made or run is a row with its reason. Run the last
two on an otherwise idle machine.
"""  # noqa: E501

import argparse
import json
import sys
from datetime import date
from pathlib import Path

from contestants import Places, list_entries
from costs import export_bundles, read_costs
from measure import check_answers, peer_versions, run_race
from prepare import ARCHITECTURES, SEED, prepare
from report import describe, list_goals, list_ratios, markdown

from potstill import machine
from potstill.files import write_text
from potstill.timing.race import GRID


def main() -> None:
    asked = _parse()
    bundles = asked.bundles or asked.work / "bundles"
    if asked.do == "prepare":
        prepare(asked.work, asked.only, opt_python=asked.opt_python, ov_python=asked.ov_python)
    elif asked.do == "bundles":
        export_bundles(asked.work, bundles, asked.only)
    else:
        places = Places(work=asked.work, bundles=bundles, opt_python=asked.opt_python, ov_python=asked.ov_python)
        result = measure(places, asked.only, contestants=asked.contestants, rounds=asked.rounds, block_s=asked.block)
        if asked.out is not None:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            write_text(asked.out, json.dumps(result, indent=1) + "\n")
        print(markdown(result))


def measure(
    places: Places, architectures: list[str], *, contestants: list[str] | None, rounds: int, block_s: float
) -> dict[str, object]:
    """Race every architecture and return the result."""
    threads, environment = machine.available_cores(), machine.describe()
    races, sizes, described = {}, {}, {}
    for name in architectures:
        print(name, file=sys.stderr, flush=True)
        entries = list_entries(name, places, threads=threads)
        if contestants:
            entries = {each: entries[each] for each in contestants}
        checked = check_answers(entries, seed=SEED)
        races[name] = run_race(entries, checked, cells=GRID, rounds=rounds, block_s=block_s, seed=SEED)
        sizes[name] = {each: entry.size_bytes for each, entry in entries.items() if entry.files}
        described[name] = describe(races[name], sizes[name], checked)
    costs = read_costs(places.bundles, architectures)
    return {
        "date": date.today().isoformat(),
        "machine": environment,
        "peers": {
            "optimum": peer_versions(places.opt_python),
            "openvino": peer_versions(places.ov_python),
        },
        "weights": f"random, seed {SEED}; neither size nor speed depends on them",
        "settings": {"threads": threads, "rounds": rounds, "block_s": block_s, "seed": SEED},
        "goals": list_goals(races, sizes, costs),
        "export": costs,
        "architectures": described,
        "ratios": list_ratios(races),
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("prepare", "bundles", "measure"))
    parser.add_argument("--work", type=Path, default=Path("out/grid"), help="checkpoints and the peers' files")
    parser.add_argument("--bundles", type=Path, help="potstill's bundles; WORK/bundles unless given")
    parser.add_argument("--opt-python", type=Path, default=Path("opt/bin/python"), help="with optimum-onnx")
    parser.add_argument("--ov-python", type=Path, default=Path("ov/bin/python"), help="with openvino and nncf")
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--contestants", nargs="+", help="only these; all unless given")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant per cell")
    parser.add_argument("--block", type=float, default=0.2, help="seconds that a turn lasts at least")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    return parser.parse_args()


if __name__ == "__main__":
    main()
