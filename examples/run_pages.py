"""Run every command and every Python block that the README and the docs show, on small data.

    python examples/run_pages.py ENCODER FOLDER [PAGE ...]

The commands run in FOLDER as they are printed, page after page. What they name lies there: the examples' data, and the
checkpoint ENCODER under the name of the hub's. Options that make them short are put behind them, and what they write is
removed first, so that a page can write what another page wrote. The Python of docs/interop.md is what `make interop`
runs in other tools.
"""

import contextlib
import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "data"
# The README first: others go on with what it makes.
PAGES = ["README.md", *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md")))]
PAGES += ["CONTRIBUTING.md"]
PROGRAMS = ("potstill", "curl", "zcat", "pip", "make", "docker", "serve", "accelerate", "git", ".venv/bin/")
# Commands that run in another place, by how they begin.
ELSEWHERE = {
    "pip install": "make wheel",
    "git clone": "what brought you here",
    "make": "the workflow, or by hand: each is a target of its own",
    ".venv/bin/": "make check, make test",
    "docker": "the workflow",
    "serve run": "make ray",
    "accelerate launch": "two processes without GPUs: tests/distill/test_two_processes.py",
}
# Pieces of a command, which the text around them is about.
FRAGMENTS = {
    "potstill COMMAND --help",
    "potstill --install-completion",
    "potstill distill A --teacher B --teacher C",
    "potstill export --check-engine openvino",
    "potstill serve --engine openvino",
    "potstill distill --controls",
}
# As in the scripts of examples/, for data and encoder are small. These stand in front of a command's own options.
TRAINING = "--epochs 6 --set distill.batch_size=16 --set distill.learning_rate=3e-4"
SHORT = {
    r"potstill (finetune|distill)\b": TRAINING,
    r"potstill export\b": "--max-loss 0.2 --max-label-loss 1",
    r"potstill bench\b(?!.*--verify)": "--quick --budget 30s",
    r"potstill evaluate\b(?=.*--glue)": "--learning-rates 3e-4 --epochs 1 --seeds 1",
}
SHORT_PYTHON = {"BenchConfig(rounds=12)": "BenchConfig(rounds=5, budget_s=30, cold_starts=0, compressed=False)"}


def lay_out(folder: Path, encoder: Path) -> None:
    """Write what the commands of the pages name and no page makes."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "sentence-transformers").mkdir(parents=True)
    for name in ("sentence-transformers/all-MiniLM-L6-v2", "encoder", "ENCODER"):
        (folder / name).symlink_to(encoder.resolve())
    with (DATA / "reviews.csv").open(encoding="utf-8", newline="") as lines:
        # Under other names as well, for pages that name the columns.
        rows = [row | {"body": row["review"], "grade": row["stars"]} for row in csv.DictReader(lines)]
    lines_of_rows = "".join(json.dumps(row) + "\n" for row in rows)
    with (folder / "reviews.csv").open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "reviews.jsonl").write_text(lines_of_rows, encoding="utf-8")
    (folder / "texts.jsonl").symlink_to("reviews.jsonl")
    with gzip.open(folder / "reviews.jsonl.gz", "wt", encoding="utf-8") as out:
        out.write(lines_of_rows)
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "reviews.parquet")
    shutil.copy(DATA / "few.csv", folder / "labelled.csv")
    shutil.copy(DATA / "texts.txt", folder / "texts.txt")
    # Folders with a file per split. A path comes before a hub id, so this takes the place of the hub's GLUE.
    for name in ("data", "my-data", "few", "DATA", "nyu-mll/glue:sst2", "nyu-mll/glue:mrpc"):
        write_splits(folder / name, [{"sentence": row["review"], "label": row["stars"]} for row in rows])
    write_splits(
        folder / "nyu-mll/glue/cola", [{"sentence": row["review"], "label": int(row["stars"] > "3")} for row in rows]
    )
    with (DATA / "pairs.csv").open(encoding="utf-8", newline="") as lines:
        pairs = [(row["premise"], row["hypothesis"], row["label"]) for row in csv.DictReader(lines)]
    write_splits(
        folder / "nyu-mll/glue/mrpc",
        [{"sentence1": one, "sentence2": two, "label": int(label == "entailment")} for one, two, label in pairs],
    )
    with (DATA / "tickets.csv").open(encoding="utf-8", newline="") as lines:
        write_splits(folder / "FILE", [row | {"score": float(row["score"])} for row in csv.DictReader(lines)])
    # What the README makes, under the names that other pages have for it.
    for name, made in {
        "TEACHER": "teacher",
        "BUNDLE": "student-onnx",
        "bert-checkpoint": "teacher",
        "bert-onnx": "teacher-onnx",
        "distilbert-onnx": "student-onnx",
        "teacher-sst2-onnx": "teacher-onnx",
        "student-sst2-onnx": "student-onnx",
        "teacher-mrpc-onnx": "teacher-onnx",
        "student-mrpc-onnx": "student-onnx",
    }.items():
        (folder / name).symlink_to(made)


def write_splits(folder: Path, rows: list[dict[str, object]]) -> None:
    """Write train.jsonl and validation.jsonl; every fifth row is of the second."""
    folder.mkdir(parents=True)
    for split, wanted in (("train", False), ("validation", True)):
        lines = [json.dumps(row) for number, row in enumerate(rows) if (number % 5 == 0) == wanted]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def commands_of(page: str) -> Iterator[tuple[str, str]]:
    """Yield ("sh" or "python" or a file's name, content) for what a page shows, in its order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for language, block, inline in re.findall(
        r"^```(\w*)\n(.*?)^```|`(potstill [^`]+)`", text, re.MULTILINE | re.DOTALL
    ):
        if inline:
            words = " ".join(inline.split())
            # A name alone, `potstill show`, says which command is meant.
            if len(words.split()) > 2 or "--" in words:
                yield "sh", words
        elif language == "python" and page != "docs/interop.md":
            yield "python", block
        elif language == "yaml" and (name := re.match(r"# ([\w-]+\.yaml)", block)):
            yield name[1], block
        elif language in ("", "sh"):
            lines = re.sub(r"\\\n\s*", "", block).splitlines()
            yield from (("sh", re.sub(r"\s+#\s.*", "", line)) for line in lines if line.startswith(PROGRAMS))


def shorten(command: str) -> str:
    """Return a command with the options that make it short."""
    for verb, options in SHORT.items():
        command = re.sub(f"^{verb}", lambda found, options=options: f"{found[0]} {options}", command)
    return command


def clear_outputs(command: str, folder: Path) -> None:
    """Remove what a command is to write, if an earlier one wrote it."""
    for name in re.findall(r"--(?:out|copy)[ =](\S+)", command):
        place = folder / name.rstrip("/")
        if name != "-" and place.is_dir():
            shutil.rmtree(place)
        elif name != "-":
            place.unlink(missing_ok=True)


@contextlib.contextmanager
def serving(command: str, folder: Path, log: Path) -> Iterator[bool]:
    """Run `potstill serve ...` until the block ends, which begins when the server is ready or has ended; say which."""
    port = (re.findall(r"--port (\d+)", command) or ["8000"])[0]
    with log.open("w") as out, subprocess.Popen(command.split(), cwd=folder, stdout=out, stderr=out) as server:
        try:
            ready, until = False, time.monotonic() + 120
            while not ready and server.poll() is None and time.monotonic() < until:
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    urllib.request.urlopen(f"http://localhost:{port}/health/ready", timeout=5).close()
                    ready = server.poll() is None
                time.sleep(0.2)
            yield ready
        finally:
            server.terminate()


def run(kind: str, content: str, folder: Path, log: Path) -> bool:
    """Run a command or a block of Python, and return whether it did what it says."""
    if kind == "python":
        for name in re.findall(r'Path\("([\w-]+)"\)', content):
            shutil.rmtree(folder / name, ignore_errors=True)
        for said, short in SHORT_PYTHON.items():
            content = content.replace(said, short)
    else:
        clear_outputs(content, folder)
    words = [sys.executable, "-c", content] if kind == "python" else ["sh", "-c", shorten(content)]
    with log.open("w") as out:
        code = subprocess.run(words, cwd=folder, stdout=out, stderr=out, timeout=600).returncode
    if content.startswith("potstill bench") and (folder / "report" / "report.json").is_file():
        (folder / "last-week").mkdir(exist_ok=True)
        shutil.copy(folder / "report" / "report.json", folder / "last-week")
    if content.startswith("potstill export teacher/") and not (folder / "somebody").exists():
        # Another tool's file, as far as a command can see.
        shutil.copytree(folder / "teacher", folder / "somebody")
        shutil.copy(folder / "teacher-onnx" / "onnx" / "model.onnx", folder / "somebody")
    # A claim need not hold on a model this small.
    return code == 0 or (code == 1 and "--require" in content)


def main(encoder: Path, folder: Path, pages: list[str]) -> int:
    """Run the pages, print a line for each command, and return how many failed."""
    lay_out(folder, encoder)
    log, failed, done, begun = folder / "log.txt", 0, 0, time.monotonic()
    elsewhere: dict[str, str] = {}
    for page in pages:
        with contextlib.ExitStack() as servers:
            for kind, content in dict.fromkeys(commands_of(page)):
                where = next((place for start, place in ELSEWHERE.items() if content.startswith(start)), None)
                if kind.endswith(".yaml"):
                    (folder / kind).write_text(content, encoding="utf-8")
                elif kind == "sh" and where is not None:
                    elsewhere[content] = where
                elif content not in FRAGMENTS:
                    print(f"{page}: {content.strip().splitlines()[0][:150]}", flush=True)
                    done += 1
                    if content.startswith("potstill serve"):
                        servers.close()  # the port is the same
                        fits = servers.enter_context(serving(content, folder, log))
                    else:
                        fits = run(kind, content, folder, log)
                    if not fits:
                        failed += 1
                        print(f"FAILED:\n{log.read_text(encoding='utf-8')[-3000:]}", flush=True)
    for command, place in sorted(elsewhere.items()):
        print(f"not here: {command[:90]} ({place})")
    print(f"{done} commands in {time.monotonic() - begun:.0f} s, {failed} failed")
    return failed


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    sys.exit(bool(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or PAGES)))
