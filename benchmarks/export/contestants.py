"""Who takes part: for each contestant its process, its files, and why it cannot come."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepare import VOCAB_SIZE, why_missing

from potstill.bundle import read_bundle
from potstill.errors import PotstillError
from potstill.timing import RaceEntry

WORKER = str(Path(__file__).with_name("worker.py"))
# The same file once more in the newest release of onnxruntime, after the name of the contestant in the pinned one.
NEWEST = "@newest"
_IN_NEWEST = ("optimum-int8", "potstill-fp32", "potstill-int8", "potstill-int8-static")


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where things are: the work folder, the folder of bundles, and the Pythons of the other environments."""

    work: Path
    bundles: Path
    opt_python: Path
    ov_python: Path
    new_python: Path


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A contestant, or why there is none.

    Attributes:
        files: what a user would have to ship for it.
        reason: why it cannot take part; None if it can.
    """

    contestant: RaceEntry
    files: tuple[Path, ...] = ()
    reason: str | None = None

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all its files."""
        return sum(file.stat().st_size for file in self.files)


def list_entries(name: str, places: Places, *, threads: int, without: Callable[[str], bool]) -> dict[str, Entry]:
    """Return every contestant of one architecture, but those that were left out by name."""
    common = {"threads": threads, "vocab_size": VOCAB_SIZE}
    entries = (
        _torch(places.work, name, common)
        | _optimum(places, name, common)
        | _transformers(places.work, name, common)
        | _openvino(places, name, common)
        | _potstill(places.bundles, name, common)
    )
    entries |= {f"{each}{NEWEST}": _in_newest(entries[each], places.new_python) for each in _IN_NEWEST}
    return {each: entry for each, entry in entries.items() if not without(each)}


def _torch(work: Path, name: str, common: dict[str, Any]) -> dict[str, Entry]:
    checkpoint = work / name / "checkpoint"
    load = common | {"checkpoint": str(checkpoint), "cache": str(work.resolve() / "inductor")}
    return {
        f"torch{'-compile' if compiled else ''}-{short}": _entry(
            Path(sys.executable),
            "torch",
            load | {"dtype": dtype, "compiled": compiled},
            files=[checkpoint / "model.safetensors"],
        )
        for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        for compiled in (False, True)
    }


def _optimum(places: Places, name: str, common: dict[str, Any]) -> dict[str, Entry]:
    made = {"plain": "model.onnx", "o3": "model_optimized.onnx", "int8": "model_quantized.onnx"}
    entries = {}
    for short, file_name in made.items():
        file = places.work / name / f"optimum-{short}" / file_name
        entries[f"optimum-{short}"] = _entry(
            places.opt_python, "onnxruntime", common | {"file": str(file)}, files=[file]
        )
    return entries


def _transformers(work: Path, name: str, common: dict[str, Any]) -> dict[str, Entry]:
    entries = {}
    for short in ("plain", "fused", "int8", "int8-static"):
        file = work / name / f"transformers-{short}" / "model.onnx"
        weights = file.with_name("model.onnx.data")
        entries[f"transformers-{short}"] = _entry(
            Path(sys.executable), "onnxruntime", common | {"file": str(file)}, files=[file, weights]
        )
    return entries


def _openvino(places: Places, name: str, common: dict[str, Any]) -> dict[str, Entry]:
    entries = {}
    for short, made, precision in (("fp32", "fp32", "f32"), ("bf16", "fp32", "bf16"), ("int8", "int8", "f32")):
        file = places.work / name / f"openvino-{made}" / "model.xml"
        load = common | {"file": str(file), "precision": precision}
        files = [file, file.with_suffix(".bin")]
        entries[f"openvino-{short}"] = _entry(places.ov_python, "openvino", load, files=files)
    return entries


def _potstill(bundles: Path, name: str, common: dict[str, Any]) -> dict[str, Entry]:
    entries = {}
    for short, folder, precision in (
        ("fp32", name, "fp32"),
        ("int8", name, "int8"),
        ("int8-static", name, "int8-static"),
        ("int8-4bit-table", f"{name}-4bit-table", "int8"),
        ("tuned", f"{name}-tuned", "int8"),
    ):
        try:
            bundle = read_bundle(bundles / folder)
            record = bundle.model_record(precision)
        except PotstillError as error:
            entries[f"potstill-{short}"] = Entry(contestant=RaceEntry((), {}), reason=str(error))
            continue
        switches = record.disabled_optimizers or bundle.manifest.disabled_optimizers
        load = common | {"file": str(bundle.model_file(precision)), "disabled_optimizers": switches}
        files = [bundle.folder / file for file in (record.file, *record.external_data)]
        entries[f"potstill-{short}"] = _entry(Path(sys.executable), "potstill", load, files=files)
        if short in {"fp32", "int8-static"}:
            entries[f"potstill-{short}@openvino"] = _entry(Path(sys.executable), "potstill-openvino", load, files=files)
    return entries


def _in_newest(entry: Entry, python: Path) -> Entry:
    """Return an entry of onnxruntime's in the environment with the newest release."""
    if entry.reason is not None:
        return entry
    return _entry(python, entry.contestant.command[-1], dict(entry.contestant.load), files=entry.files)


def _entry(python: Path, kind: str, load: dict[str, Any], *, files: Sequence[Path]) -> Entry:
    contestant = RaceEntry((str(python), WORKER, kind), load)
    missing = next((file for file in files if not file.is_file()), None)
    if not python.is_file():
        return Entry(contestant=contestant, reason=f"there is no {python}")
    if missing is not None:
        return Entry(contestant=contestant, reason=why_missing(missing.parent))
    return Entry(contestant=contestant, files=tuple(files))
