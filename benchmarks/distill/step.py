"""Whole training steps: ours against the original triple loss, `bertdistiller`, and a step without a teacher.

    python benchmarks/distill/step.py --out benchmarks/results/distill-step.json --bertdistiller FOLDER

FOLDER holds `bertdistiller` (`pip install --no-deps --target FOLDER bertdistiller==0.1.2`); without it that half is
left out. BERT-base with random weights teaches 6 layers. A step is everything from the batch to the changed weights:
masking, both forwards, loss, backward, clipping, AdamW. Ours and `bertdistiller` run inside their real training loops,
which a callback halts between two steps; the naive step has a loop of its own, as the original had.

All get the same batches. Each contestant is a process; they take turns of a few steps, in another order each round, and
a ratio is the median of the rounds' ratios with a bootstrap interval. The matrix products that a step cannot do without
are counted, and compared with the fastest product of large matrices seen between the turns. Run it on an otherwise idle
machine; figures of CPU seconds stand beside those of the clock, because other work disturbs them less. It takes about 6
minutes on two cores, and 15 GB of memory.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from dataclasses import asdict
from datetime import date
from importlib import metadata
from pathlib import Path

import numpy as np
from step_contestants import SEED, TRIPLES, Size, compete

from potstill import machine
from potstill.evaluation.intervals import decide_by_interval
from potstill.timing import Estimate, ratio_interval

# Ratio: who is asked, against whom, and the goal on a CPU and on a GPU.
RATIOS = {
    "potstill": ("naive", 2.0, 3.0),
    "potstill-extra": ("naive", None, None),
    "potstill-all": ("naive", None, None),
    "potstill-compiled": ("potstill", None, None),
    "floor": ("potstill", None, None),
    "minilmv2-768": ("bertdistiller-768", 2.0, 2.0),
    "minilmv2-384": ("bertdistiller-384", 2.0, 2.0),
}
PEAK_GOALS = {"cpu": 0.6, "cuda": 0.4}


def race(size, names):
    """Let the contestants take turns; return the reports of each."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in (*names, "products"):
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=compete, args=(theirs, size, name), daemon=True))
        processes[-1].start()
        theirs.close()
        pipes[name].recv()  # built and warm: one after the other
    reports = {name: [] for name in pipes}
    for turn in range(size.turns):
        order = list(pipes)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            pipes[name].send(True)
            reports[name].append(pipes[name].recv())
        print(f"  round {turn + 1} of {size.turns}", file=sys.stderr, flush=True)
    for name, process in zip(pipes, processes, strict=True):
        pipes[name].send(False)
        process.join()
    return reports


def summarise(reports, best):
    """Return medians with intervals of one contestant; `best` has the fastest product's speed by clock."""

    def speed(what, clock):
        costs = [[report[clock] / report[what]] for report in reports]
        ones = [[1.0]] * len(costs)
        return asdict(ratio_interval(ones, costs, rng=np.random.default_rng(SEED)))

    flops = {clock: speed("flops", clock) for clock in best}
    return {
        "tokens_per_second": speed("tokens", "wall"),
        "tokens_per_cpu_second": speed("tokens", "cpu"),
        "flops_per_token": statistics.median(report["flops"] / report["tokens"] for report in reports),
        "flops_per_second": flops["wall"],
        "share_of_peak": {key: value / best["wall"] for key, value in flops["wall"].items()},
        "share_of_peak_in_cpu_seconds": {key: value / best["cpu"] for key, value in flops["cpu"].items()},
        "peak_bytes": max(report["peak"] for report in reports),
        "gpu_peak_bytes": max(report["gpu_peak"] or 0 for report in reports) or None,
        "rounds": reports,
    }


def compare(reports, device):
    """Return the ratios of tokens per second, and whether the goals are met."""
    rows = []
    for name, (other, *goals) in RATIOS.items():
        if name not in reports or other not in reports:
            continue
        goal = goals[device == "cuda"]
        row = {"contestant": name, "against": other, "goal": goal}
        for clock in ("wall", "cpu"):
            costs = [[[each[clock] / each["tokens"]] for each in reports[who]] for who in (other, name)]
            ratio = ratio_interval(*costs, rng=np.random.default_rng(SEED))
            row[clock] = asdict(ratio)
            if clock == "wall":
                row["verdict"] = decide_by_interval(ratio.interval(), goal, at_least=True) if goal else None
        rows.append(row)
    return rows


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--bertdistiller", help="folder that holds the package")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=machine.available_cores())
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, help="steps of a turn; 1 on a CPU, 10 on a GPU")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6, help="of the student; the teacher has twice as many")
    parser.add_argument("--ragged", action="store_true", help="texts of an eighth of the length up to all of it")
    parser.add_argument("--tiny", action="store_true", help="tiny models: does everything run?")
    parser.add_argument("--only", nargs="*", help="these contestants alone")
    return parser.parse_args()


def as_size(asked):
    return Size(
        device=asked.device,
        batch=asked.batch,
        length=asked.length,
        layers=2 if asked.tiny else asked.layers,
        width=192 if asked.tiny else 768,
        vocabulary=1000 if asked.tiny else 30522,
        ragged=asked.ragged,
        threads=asked.threads,
        steps=asked.steps or (10 if asked.device == "cuda" else 1),
        warmup=5 if asked.device == "cuda" else 1,
        turns=asked.rounds,
        bertdistiller=asked.bertdistiller,
    )


def groups(asked):
    """Return who races whom; more processes at once would not fit into memory."""
    found = [list(TRIPLES)]
    for width in ("768", "384"):
        found.append([f"minilmv2-{width}", *([f"bertdistiller-{width}"] if asked.bertdistiller else [])])
    chosen = [[name for name in group if not asked.only or name in asked.only] for group in found]
    return [group for group in chosen if group]


def show(result):
    best = result["peak_flops_per_second"]
    print(f"fastest product: {best['wall'] / 1e9:.1f} GFLOP/s, {best['cpu'] / 1e9:.1f} per CPU second")
    print(f"{'':20}{'tokens/s':>26}{'of peak':>9}{'by CPU':>9}{'memory GB':>11}")
    for name, row in result["contestants"].items():
        speed = row["tokens_per_second"]
        interval = f"{speed['value']:.0f} [{speed['low']:.0f}, {speed['high']:.0f}]"
        held = (row["gpu_peak_bytes"] or row["peak_bytes"]) / 1e9
        print(
            f"{name:20}{interval:>26}{row['share_of_peak']['value']:>9.1%}"
            f"{row['share_of_peak_in_cpu_seconds']['value']:>9.1%}{held:>11.2f}"
        )
    for row in result["ratios"]:
        wall, cpu = row["wall"], row["cpu"]
        goal = f"goal {row['goal']}: {row['verdict']}" if row["goal"] else ""
        print(
            f"{row['contestant']} against {row['against']}: {wall['value']:.2f} [{wall['low']:.2f}, "
            f"{wall['high']:.2f}] times the tokens/s, {cpu['value']:.2f} per CPU second  {goal}"
        )
    if share := result["share_of_peak"]:
        print(f"share of the matmul peak: {share['value']:.1%}, goal {share['goal']:.0%}: {share['verdict']}")


def main():
    asked = read_arguments()
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    if asked.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the training takes a GPU where it sees one
    else:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # and splits batches where it sees several
    size, started, reports = as_size(asked), time.perf_counter(), {}
    products = []
    for names in groups(asked):
        print(", ".join(names), file=sys.stderr, flush=True)
        found = race(size, names)
        products += found.pop("products")
        reports |= found
    best = {clock: max(each[clock] for each in products) for clock in ("wall", "cpu")}
    contestants = {name: summarise(rounds, best) for name, rounds in reports.items()}
    result = {"date": date.today().isoformat(), "machine": machine.describe(), "size": asdict(size)}
    if folder := result["size"].pop("bertdistiller"):  # its own code, unchanged, on this transformers
        result["bertdistiller"] = next(metadata.distributions(name="bertdistiller", path=[folder])).version
    result |= {"contestants": contestants, "ratios": compare(reports, size.device)}
    result |= {"peak_flops_per_second": best, "products": products}
    result["share_of_peak"] = None
    if "potstill" in contestants:
        share, goal = Estimate(**contestants["potstill"]["share_of_peak"]), PEAK_GOALS[size.device]
        result["share_of_peak"] = asdict(share) | {
            "goal": goal,
            "verdict": decide_by_interval(share.interval(), goal, at_least=True),
        }
    result["seconds"] = time.perf_counter() - started
    show(result)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
