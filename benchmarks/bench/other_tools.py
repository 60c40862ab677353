"""Hold the bench's figures against independent judges, on the same file, threads and input size.

p50 against onnxruntime's own perf test (`onnxruntime.transformers.bert_perf_test`), in alternation; the peak of
resident memory against `/usr/bin/time -v`. optimum-benchmark 0.6.0 does not start its onnxruntime backend with
optimum-onnx 0.1.0.

    python benchmarks/bench/other_tools.py BUNDLE --result benchmarks/results/bench-judge.json

Run it on an otherwise idle machine. About 2 minutes for a MiniLM.
"""

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from potstill import machine
from potstill.bench.report_schema import Load
from potstill.bundle import read_bundle
from potstill.files import write_text
from potstill.timing.workers import Worker, python_module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--num-tokens", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each judge's turn lasts")
    arguments = parser.parse_args()
    rows = [judge(precision, arguments) for precision in arguments.precision]
    content = {
        "environment": machine.describe(),
        "settings": {k: str(v) for k, v in vars(arguments).items() if k not in ("bundle", "result")},
        "rows": rows,
    }
    write_text(arguments.result, json.dumps(content, indent=2) + "\n")
    for row in rows:
        print(json.dumps(row, indent=2))


def judge(precision, arguments):
    """Return p50 by every judge, turn by turn, and the peak of memory by both."""
    bundle = read_bundle(arguments.bundle)
    file, threads = bundle.model_file(precision), machine.available_cores()
    load = Load(batch_size=arguments.batch_size, num_tokens=arguments.num_tokens).model_dump()
    p50 = {"potstill": [], "onnxruntime bert_perf_test": []}
    for _ in range(arguments.turns):
        with worker(bundle, precision, threads) as ours:
            ours.ask({"do": "warm", "load": load, "max_s": 3.0})
            reply = ours.ask({"do": "block", "load": load, "seconds": arguments.seconds, "min_calls": 11})
            p50["potstill"].append(statistics.median(reply["latencies_ms"]))
        p50["onnxruntime bert_perf_test"].append(perf_test(file, threads, arguments, calls=len(reply["latencies_ms"])))
    medians = {name: statistics.median(turns) for name, turns in p50.items() if turns}
    return {
        "precision": precision,
        "threads": threads,
        "p50_ms": {name: turns for name, turns in p50.items() if turns},
        "median_p50_ms": medians,
        "ours_over_theirs": {
            name: statistics.median(ours / theirs for ours, theirs in zip(p50["potstill"], p50[name], strict=True))
            for name in medians
            if name != "potstill"
        },
        "peak_rss_bytes": peaks(bundle, precision, threads, load),
    }


@contextmanager
def worker(bundle, precision, threads, *before) -> Iterator[Worker]:
    """Run a worker of the bench with a model loaded; `before` stands before its command."""
    process = Worker((*before, *python_module("potstill.bench.worker")))
    try:
        process.ask(
            {
                "do": "load",
                "runner": "onnxruntime-cpu",
                "folder": str(bundle.folder),
                "precision": precision,
                "threads": threads,
                "seed": 0,
                "spinning": True,
                "task": bundle.manifest.task,
                "problem_type": bundle.manifest.problem_type,
                "max_length": bundle.manifest.max_length,
            }
        )
        yield process
    finally:
        process.close()


def perf_test(file, threads, arguments, *, calls):
    """Return the p50 that onnxruntime's own test measures, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        linked = Path(folder) / file.name
        linked.symlink_to(file.resolve())
        command = [sys.executable, "-m", "onnxruntime.transformers.bert_perf_test", "--model", str(linked)]
        command += ["-b", str(arguments.batch_size), "-s", str(arguments.num_tokens), "-n", str(threads)]
        command += ["--samples", "1", "--test_times", str(calls), "--seed", "3"]
        subprocess.run(command, check=True, capture_output=True)
        (table,) = Path(folder).glob("perf_results_*.txt")
        with table.open(newline="") as stream:
            (row,) = csv.DictReader(stream, delimiter="\t")
    return float(row["Latency_P50"])


def peaks(bundle, precision, threads, load):
    """Return the highest resident set, as the worker tells it and as `/usr/bin/time -v` sees it."""
    with (
        tempfile.NamedTemporaryFile() as log,
        worker(bundle, precision, threads, "/usr/bin/time", "-v", "-o", log.name) as process,
    ):
        for call in (
            {"do": "warm", "load": load, "max_s": 2.0},
            {"do": "block", "load": load, "seconds": 2.0, "min_calls": 5},
        ):
            process.ask(call)
        told = process.ask({"do": "memory"})
        process.close()
        seen = re.search(r"Maximum resident set size \(kbytes\): (\d+)", Path(log.name).read_text())
    # The worker restarts the kernel's count after loading, and `time` reads the same count.
    ours, theirs = told["peak_bytes"], int(seen[1]) * 1024
    return {"potstill": ours, "/usr/bin/time -v": theirs, "ours_over_theirs": ours / theirs}


if __name__ == "__main__":
    main()
