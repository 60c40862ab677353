"""Does the bench see a difference where there is one, and none where there is none?

A bundle is benched against itself (A/A), and against a copy that does a tenth more work (A/B): one more matrix product
whose result is multiplied by 1e-30 and added to the logits. Of 20 runs of each, at least 19 should hold 1 with half a
width of 3 % at most, and at least 19 should call the copy slower.

    python benchmarks/bench/a_a.py BUNDLE --work out/again --result benchmarks/results/bench-again.json

Run it on an otherwise idle machine. About 12 minutes for a MiniLM on two cores.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from potstill import machine
from potstill.bench import Request, bench
from potstill.bundle import MANIFEST_NAME, read_bundle, record_files, write_manifest
from potstill.config import BenchConfig
from potstill.files import write_text
from potstill.timing import RaceEntry, race
from potstill.timing.race import session

WIDEST = 0.03
SLOWED = 0.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--num-tokens", type=int, default=128)
    parser.add_argument("--only-same", action="store_true", help="leave the slowed copy out")
    arguments = parser.parse_args()
    slowed = arguments.work / "slowed"
    slowing = None if arguments.only_same else slow_down(arguments.bundle, slowed, num_tokens=arguments.num_tokens)
    content = {
        "environment": machine.describe(),
        "settings": {name: getattr(arguments, name) for name in ("runs", "rounds", "num_tokens")},
        "slowed_by": slowing,
        "same": [],
        "slower": [],
    }
    for run in range(arguments.runs):
        content["same"].append(one_run(arguments, arguments.bundle, seed=run))
        if not arguments.only_same:
            content["slower"].append(one_run(arguments, slowed, seed=1000 + run))
        print(run, content["same"][-1], content["slower"][-1:], flush=True)
        content["summary"] = summarise(content)
        write_text(arguments.result, json.dumps(content, indent=2) + "\n")
    print(json.dumps(content["summary"], indent=2))


def one_run(arguments, candidate, *, seed):
    """Return what one bench says of a candidate against the bundle."""
    config = BenchConfig(
        batch_sizes=[1],
        num_tokens=[arguments.num_tokens],
        precisions=["fp32"],
        rounds=arguments.rounds,
        realistic=False,
        throughput_batch_sizes=[],
        thread_scaling=False,
        cold_starts=0,
    )
    report = bench(
        Request(models=[("a", str(arguments.bundle)), ("b", str(candidate))]),
        config=config,
        out_dir=arguments.work / "report",
        seed=seed,
        overwrite=True,
    )
    (row,) = (row for row in report.ratios if row.candidate == "b/fp32" and row.comparison == "to_baseline")
    return {
        "value": row.value,
        "interval": row.interval,
        "finding": row.finding,
        "floor": report.noise.floor,
        "rounds": row.rounds,
        "repeated_rounds": report.noise.repeated_rounds,
        "flags": report.noise.flags,
    }


def summarise(content):
    same, slower = content["same"], content["slower"]
    halves = [(row["interval"][1] - row["interval"][0]) / 2 for row in same]
    return {
        "runs": len(same),
        "same_holds_1": sum(row["interval"][0] <= 1 <= row["interval"][1] for row in same),
        "same_narrow": sum(half <= WIDEST for half in halves),
        "same_holds_1_and_narrow": sum(
            row["interval"][0] <= 1 <= row["interval"][1] and half <= WIDEST
            for row, half in zip(same, halves, strict=True)
        ),
        "same_no_difference_shown": sum(row["finding"] == "no difference shown" for row in same),
        "same_half_widths": [round(half, 4) for half in halves],
        "slower_called_slower": sum(row["finding"] == "slower" for row in slower),
        "slower_values": [round(row["value"], 4) for row in slower],
    }


def slow_down(bundle, slowed, *, num_tokens):
    """Make the copy, with as much more work as takes a tenth more time here; return how much more it takes."""
    share = SLOWED
    for _ in range(6):
        shutil.rmtree(slowed, ignore_errors=True)
        add_work(bundle, slowed, share=share)
        slowing = measure_slowing(bundle, slowed, num_tokens=num_tokens)
        print(f"{share:.3f} more products: {slowing}", flush=True)
        if abs(slowing["value"] - 1 - SLOWED) < 0.005:
            break
        share *= min(3.0, max(0.5, SLOWED / max(slowing["value"] - 1, 0.01)))
    return slowing


def measure_slowing(bundle, slowed, *, num_tokens):
    """Return how many times as long a call of the copy takes, by the exporter's own race, which is long here."""
    contestants: dict[str, RaceEntry] = {
        name: session(
            read_bundle(folder).model_file("fp32"),
            threads=machine.available_cores(),
            vocab_size=read_bundle(folder).manifest.architecture.vocab_size,
        )
        for name, folder in (("a", bundle), ("b", slowed))
    }
    cell = (1, num_tokens)
    raced = race(contestants, [cell], rounds=40)
    ratio = raced.ratio("b", "a", cell)
    return {"value": ratio.value, "interval": ratio.interval()}


def add_work(bundle_dir, slowed, *, share):
    """Copy a bundle with `share` more matrix products in its fp32 graph."""
    shutil.copytree(bundle_dir, slowed)
    bundle = read_bundle(slowed)
    file = bundle.model_file("fp32")
    model = onnx.load(str(file))
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in {"MatMul", "Gemm"} and node.input[1] in weights]
    largest = max(products, key=lambda node: np.prod(weights[node.input[1]].dims))
    total = sum(int(np.prod(weights[node.input[1]].dims)) for node in products)
    width = int(weights[largest.input[1]].dims[0])
    columns = round(share * total / width)
    extra = np.random.default_rng(0).normal(size=(width, columns)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(extra, "extra"))
    graph.initializer.append(numpy_helper.from_array(np.float32(1e-30), "tiny"))
    output = graph.output[0].name
    (last,) = (node for node in graph.node if output in node.output)
    last.output[list(last.output).index(output)] = "logits_before"
    graph.node.extend(
        [
            helper.make_node("MatMul", [largest.input[0], "extra"], ["more"]),
            helper.make_node("ReduceMax", ["more"], ["one"], keepdims=0),
            helper.make_node("Mul", ["one", "tiny"], ["nothing"]),
            helper.make_node("Add", ["logits_before", "nothing"], [output]),
        ]
    )
    onnx.save(model, str(file))
    (slowed / MANIFEST_NAME).unlink()
    write_manifest(slowed, bundle.manifest.model_copy(update={"files": record_files(slowed)}))


if __name__ == "__main__":
    main()
