"""What it is worth to compute the last layer for the first token alone: one checkpoint exported both ways, in turns.

    python -m benchmarks.export.first_token --checkpoint minilm-l3=FOLDER --checkpoint distilbert=FOLDER \\
        --texts FILE.jsonl --work out/first-token --result benchmarks/results/export-first-token.json

Every file runs in a process of its own, in random turns, while the others are stopped (`potstill.timing`). Cells are
batch size x tokens, random tokens without padding; and "as they come": the lengths of the first texts of FILE, in
batches with padding, one call for all of them. Dynamic int8 runs one text at a time, as it is served. Run it on an
otherwise idle machine.
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.serve.raw import read_texts
from potstill import machine
from potstill.bundle import MODEL_FILES, Precision, read_bundle
from potstill.config import ExportConfig
from potstill.export import export_bundle
from potstill.files import write_text
from potstill.serve import BundleTokenizer
from potstill.timing import RaceEntry, race
from potstill.timing.race import Cell

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int8-static")
SIZES: tuple[Cell, ...] = ((1, 16), (1, 128), (8, 128))
# Cells of texts as they come have no number of tokens of their own.
AS_THEY_COME = 0
BATCH_SIZES = (1, 8, 32)
TEXTS = 64
_WORKER = Path(__file__).with_name("first_token_worker.py")


def export(checkpoint: str, folder: Path, *, first_token_only: bool) -> None:
    """Export a checkpoint in every precision, unless it is there."""
    if not folder.is_dir():
        # Random weights are judged by no score.
        config = ExportConfig(
            precisions=list(PRECISIONS), first_token_only=first_token_only, max_length=128, max_loss=0.99, rounds=0
        )
        export_bundle(checkpoint, folder, config=config)


def compare(
    folders: dict[str, Path], precision: Precision, lengths: list[int], *, threads: int, rounds: int
) -> dict[str, dict[str, object]]:
    """Race both files of one precision and return, by cell, how many times as fast the one with the first token is."""
    contestants = {}
    for name, folder in folders.items():
        manifest = read_bundle(folder).manifest
        load = {
            "file": str(folder / MODEL_FILES[precision]),
            "threads": threads,
            "disabled_optimizers": manifest.models[precision].disabled_optimizers,
            "vocab_size": manifest.architecture.vocab_size,
            "lengths": lengths,
        }
        contestants[name] = RaceEntry((sys.executable, str(_WORKER)), load)
    sizes = [size for size in BATCH_SIZES if size == 1 or precision != "int8"]
    cells = [*SIZES, *((size, AS_THEY_COME) for size in sizes)]
    result = race(contestants, cells, rounds=rounds, block_s=0.3)
    if result.failures:
        raise SystemExit(f"{precision}: {result.failures}")
    found: dict[str, dict[str, object]] = {}
    for cell in cells:
        estimate = result.ratio("whole", "first", cell)
        found[f"{cell[0]} as they come" if cell[1] == AS_THEY_COME else f"{cell[0]}x{cell[1]}"] = {
            "ratio": estimate.value,
            "interval": [estimate.low, estimate.high],
            "whole_ms": result.median_ms("whole", cell),
            "first_ms": result.median_ms("first", cell),
            "disturbed": result.disturbances.get(cell, []),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--texts", type=Path, required=True, help="jsonl file")
    parser.add_argument("--column", default="sentence")
    parser.add_argument("--work", type=Path, required=True, help="folder for the bundles")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--precision", nargs="*", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--result", type=Path, help="JSON file")
    arguments = parser.parse_args()
    environment, models = machine.describe(), {}
    for given in arguments.checkpoint:
        name, checkpoint = given.split("=", 1)
        folders = {kind: arguments.work / f"{name}-{kind}" for kind in ("whole", "first")}
        for kind, folder in folders.items():
            export(checkpoint, folder, first_token_only=kind == "first")
        manifest = read_bundle(folders["first"]).manifest
        texts = read_texts(arguments.texts, arguments.column)[:TEXTS]
        lengths = [len(row["input_ids"]) for row in BundleTokenizer(folders["first"], manifest).rows(texts)]
        models[name] = {"architecture": manifest.architecture.model_dump(mode="json"), "lengths": lengths}
        for precision in arguments.precision:
            for threads in arguments.threads:
                found = compare(folders, precision, lengths, threads=threads, rounds=arguments.rounds)
                models[name][f"{precision}, {threads} thread{'s' * (threads > 1)}"] = found
                for cell, one in found.items():
                    times = f"{one['whole_ms']:.2f} to {one['first_ms']:.2f} ms"
                    ratio = "{:.2f} [{:.2f}, {:.2f}]".format(one["ratio"], *one["interval"])
                    note = " DISTURBED" if one["disturbed"] else ""
                    print(f"{name} {precision} {threads} threads, {cell}: {times}, {ratio}{note}", flush=True)
    if arguments.result:
        content = {
            "about": "one checkpoint exported with its last layer whole and for the first token alone; in turns",
            "date": datetime.now(UTC).date().isoformat(),
            "environment": environment,
            "texts": TEXTS,
            "models": models,
        }
        write_text(arguments.result, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
