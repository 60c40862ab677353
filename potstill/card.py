"""The model card of a bundle: its README.md as the Hugging Face hub reads it, with metadata and a `model-index`.

The format is that of https://github.com/huggingface/hub-docs/blob/main/modelcard.md. A folder's path stays out of it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import yaml

from potstill.bundle import RECOMMENDED, Manifest, Precision
from potstill.hub import looks_local

_WHAT = {
    "text-classification": "A text classifier",
    "token-classification": "A model that tags words",
    "question-answering": "A model that finds the answer to a question in a text",
    "fill-mask": "A masked language model",
    "feature-extraction": "A model that turns texts into vectors",
}
# Where the hub knows a metric by another name.
_HUB_METRICS = {"macro_f1": "f1", "micro_f1": "f1", "pearson": "pearsonr", "spearman": "spearmanr"}
_MOST_LABELS = 30
# Markdown's own characters, and a line's end, in what comes from other people's files.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The score of one file of a bundle on one data set."""

    precision: str
    data: str
    """A hub id, with its configuration behind a colon, or a path."""
    split: str
    metric: str
    value: float


def model_card(manifest: Manifest, *, name: str, results: Sequence[Result] = (), findings: Sequence[str] = ()) -> str:
    """Write the card of a bundle.

    Args:
        manifest: the bundle's.
        name: what to call it, such as the bundle's folder.
        results: scores from a bench; without any, those that the manifest holds.
        findings: sentences from a bench, such as how claims were decided.
    """
    results = list(results) or list(_manifest_results(manifest))
    warning = manifest.made.judged.sentence if manifest.made.judged else None
    lines = ["---", _metadata(manifest, name, results).rstrip(), "---", "", f"# {_plain(name)}", "", _about(manifest)]
    lines += ["", f"> **Be warned:** in fp32 it is {_plain(warning)}."] if warning else []
    lines += ["", "## Files", "", *_files(manifest, results)]
    if findings:
        lines += ["", "## Measured", "", *(f"- {_plain(sentence)}" for sentence in findings)]
    lines += ["", "## Use it", "", *_use(manifest)]
    lines += _labels(manifest)
    lines += ["", "## What to know", "", *(f"- {sentence}" for sentence in _limits(manifest))]
    lines += ["", "## How it was made", "", *(f"- {sentence}" for sentence in _origin(manifest))]
    return "\n".join(lines) + "\n"


def recommended(manifest: Manifest) -> Precision:
    """Return the precision to serve on a CPU."""
    return next(precision for precision in RECOMMENDED if precision in manifest.models)


def _manifest_results(manifest: Manifest) -> Iterator[Result]:
    """Yield what the export scored: fp32 on the labelled texts, and the other files on the same."""
    judged = manifest.made.judged
    if judged is not None and "fp32" in manifest.models and judged.on:
        data, split = _data_and_split(judged.on)
        yield Result(precision="fp32", data=data, split=split, metric=judged.metric, value=judged.value)
    for precision, record in manifest.models.items():
        quality = record.quality
        if quality is not None and quality.labelled is not None and quality.on:
            data, split = _data_and_split(quality.on)
            labelled = quality.labelled
            yield Result(precision=precision, data=data, split=split, metric=labelled.metric, value=labelled.candidate)


def _data_and_split(told: str) -> tuple[str, str]:
    """Return data set and split of `reviews.csv (validation)`."""
    found = re.fullmatch(r"(.*) \(([^()]*)\)", told)
    return (found[1], found[2]) if found else (told, "")


def _metadata(manifest: Manifest, name: str, results: Sequence[Result]) -> str:
    """Write the YAML head. License, language and training data are not known here, and the card says so below."""
    tags = ["onnx", "potstill", *(precision for precision in manifest.models if precision.startswith("int8"))]
    tags += ["sentence-transformers"] if manifest.pooling else []
    head: dict[str, object] = {
        # By it the hub shows how to load the model; it needs nothing that is not in the bundle.
        "library_name": "transformers.js",
        "pipeline_tag": manifest.task,
        "tags": tags,
    }
    source = manifest.source
    # A checkpoint folder has a hash, and a hub id has none.
    if source.name and source.kind == "checkpoint" and source.sha256 is None and not looks_local(source.name):
        head["base_model"] = source.name
    if results:
        head["metrics"] = list(dict.fromkeys(_HUB_METRICS.get(row.metric, row.metric) for row in results))
        by_data: dict[tuple[str, str], list[Result]] = {}
        for row in results:
            by_data.setdefault((row.data, row.split), []).append(row)
        found = [
            {
                "task": {"type": manifest.task},
                "dataset": _dataset(data, split),
                "metrics": [
                    {
                        "type": _HUB_METRICS.get(row.metric, row.metric),
                        "value": round(row.value, 4),
                        "name": f"{row.metric.replace('_', ' ')} ({row.precision})",
                    }
                    for row in rows
                ],
            }
            for (data, split), rows in by_data.items()
        ]
        head["model-index"] = [{"name": name, "results": found}]
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _dataset(data: str, split: str) -> dict[str, str]:
    """Return a data set as the hub names it; of a file or folder its last name alone."""
    path, _, config = data.partition(":")
    if looks_local(data) or "/" not in path or not config:
        short = PurePath(data).name
        found = {"type": re.sub(r"[^a-z0-9]+", "-", PurePath(data).stem.lower()).strip("-") or "data", "name": short}
    else:
        found = {"type": path, "name": data, "config": config}
    return found | ({"split": split} if split else {})


def _about(manifest: Manifest) -> str:
    sizes = manifest.architecture
    layers = f", {sizes.layers} layers of {sizes.hidden_size}" if sizes.layers and sizes.hidden_size else ""
    family = f"{sizes.model_type}{layers}, " if sizes.model_type else ""
    labels = f" into {len(manifest.labels)} labels" if len(manifest.labels) > 1 else ""
    return (
        f"{_WHAT.get(manifest.task, manifest.task)}{labels}: {family}{manifest.parameters / 1e6:.1f} million "
        "parameters, as ONNX files that need no PyTorch."
    )


def _files(manifest: Manifest, results: Sequence[Result]) -> Iterator[str]:
    """Yield the table of the files: size, score, and what each gained and lost against fp32 when it was made."""
    columns = list(dict.fromkeys((row.metric, row.data) for row in results))
    scores = {(row.precision, row.metric, row.data): row.value for row in results}
    heads = [f"{metric.replace('_', ' ')} on {_plain(PurePath(data).name)}" for metric, data in columns]
    heads = ["file", "MB", *heads, "times as fast as fp32", "same answer alone and in batches"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for precision, record in manifest.models.items():
        cells = [f"`{record.file}`", f"{manifest.model_bytes(record) / 1e6:.1f}"]
        found = [scores.get((precision, metric, data)) for metric, data in columns]
        cells += ["" if value is None else f"{value:.4f}" for value in found]
        ratio, moved = record.speed.ratio if record.speed else None, record.invariance
        same = "yes" if record.batch_invariant else "no"
        if not record.batch_invariant and moved is not None and moved.flips is not None and moved.rows:
            same = f"{1 - moved.flips / moved.rows:.1%}"
        cells += [f"{ratio:.1f}" if ratio is not None else "", same]
        yield f"| {' | '.join(cells)} |"


def _use(manifest: Manifest) -> Iterator[str]:
    """Yield how the bundle is fetched, served and loaded elsewhere; `YOU/NAME` is where it lies on the hub."""
    precision = recommended(manifest)
    yield from ("```", 'pip install "potstill[serve]" huggingface_hub', "hf download YOU/NAME --local-dir model/")
    yield from (f"potstill serve model/ --precision {precision}", "```", "")
    yield from ("In a browser or Node, with [transformers.js](https://huggingface.co/docs/transformers.js):", "")
    yield from ("```js", "import { pipeline } from '@huggingface/transformers';", "")
    options = ""
    if manifest.task == "feature-extraction":
        mode = manifest.pooling.mode if manifest.pooling and manifest.pooling.is_simple else "mean"
        length = "true" if manifest.pooling is None or manifest.pooling.normalize else "false"
        options = f", {{ pooling: '{mode}', normalize: {length} }}"
    asked = {
        "question-answering": "'Where did she live?', 'Ada Lovelace lived in London.'",
        "fill-mask": "`Paris is the ${run.tokenizer.mask_token} of France.`",
    }.get(manifest.task, "'A text of yours.'")
    yield f"const run = await pipeline('{manifest.task}', 'YOU/NAME');"
    yield from (f"console.log(await run({asked}{options}));", "```")
    if manifest.pooling:
        file = PurePath(manifest.models[precision].file).name
        kwargs = "" if "fp32" in manifest.models else f', model_kwargs={{"file_name": "{file}"}}'
        yield from ("", "With sentence-transformers:", "", "```python")
        yield from ("from sentence_transformers import SentenceTransformer", "")
        yield f'model = SentenceTransformer("YOU/NAME", backend="onnx"{kwargs})'
        yield from ('print(model.encode(["A text of yours."]).shape)', "```")


def _labels(manifest: Manifest) -> list[str]:
    """Return the section on the labels: recall in fp32 and in the file to serve, where that was judged."""
    if not manifest.labels:
        return []
    precision = recommended(manifest)
    quality = manifest.models[precision].quality if precision in manifest.models else None
    rows = quality.labels if quality is not None and quality.labelled is not None else []
    lines = ["", "## Labels", ""]
    if rows:
        lines += [f"| label | texts | recall in fp32 | in {precision} |", "|---|---|---|---|"]
        lines += [
            f"| {_plain(row.label)} | {row.support:,} | {row.reference:.3f} | {row.candidate:.3f} |"
            for row in rows[:_MOST_LABELS]
        ]
        more = len(rows) - _MOST_LABELS
    else:
        lines.append(", ".join(map(_plain, manifest.labels[:_MOST_LABELS])))
        more = len(manifest.labels) - _MOST_LABELS
    return lines + (["", f"And {more} more, which `config.json` names."] if more > 0 else [])


def _limits(manifest: Manifest) -> Iterator[str]:
    yield f"Texts of more than {manifest.max_length} tokens are cut."
    for precision, record in manifest.models.items():
        if not record.batch_invariant:
            yield f"In {precision} an answer can change a little with the other texts of a batch."
        if record.saturation is not None and record.saturation.breaks_without_vnni:
            yield f"On x86 CPUs without VNNI the {precision} file answers wrongly: export it there, or serve fp32."
    vocabulary = manifest.source.vocabulary
    if vocabulary is not None:
        yield (
            f"Its vocabulary was trimmed to {vocabulary.rows:,} of {vocabulary.rows_before:,} pieces: texts of "
            "another domain become more tokens."
        )
    yield from (f"{_plain(note[:1].upper() + note[1:])}." for note in manifest.source.notes)
    yield "potstill knows neither license nor language nor training data: add `license`, `language`, `datasets` above."


def _origin(manifest: Manifest) -> Iterator[str]:
    source, made = manifest.source, manifest.made
    if source.name:
        name = source.name if source.sha256 is None else PurePath(source.name).name
        yield f"Exported from `{name}`" + (f" (sha256 `{source.sha256[:12]}`)." if source.sha256 else ".")
    packages = [name for name in ("potstill", "onnxruntime", "transformers") if name in made.packages]
    versions = [f"{name} {made.packages[name]}" for name in packages]
    yield f"With {', '.join(versions)}, {made.created[:10]}." if versions and made.created else "By potstill."
    yield "Every file was compared with its source; `potstill.json` has what was found, and every file's SHA-256."
    yield "`potstill show model/` checks the hashes, and prints it all."


def _plain(text: str) -> str:
    """Return text on one line that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
