"""`potstill show`: print what is in a bundle, a checkpoint, a run or a report."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.bundle import (
    MANIFEST_NAME,
    WEIGHT_ONLY,
    AgainstTrivial,
    BatchInvariance,
    Bundle,
    Fusion,
    Manifest,
    ModelRecord,
    QualityLoss,
    Quantization,
    Saturation,
    Speed,
    TrimmedVocabulary,
    Tuning,
    read_bundle,
)
from potstill.checkpoint import TRAINING_REPORT
from potstill.checkpoint.folder import read_trimming
from potstill.cli.options import JsonOption
from potstill.errors import UsageError
from potstill.hub import similar
from potstill.tasks import lower_is_better

# How many label names are printed before an ellipsis.
_LABELS_SHOWN = 8


def show(
    folder: Annotated[Path, typer.Argument(help="A bundle, checkpoint, run or report folder.", show_default=False)],
    as_json: JsonOption = False,
    card: Annotated[bool, typer.Option("--card", help="Print a bundle's model card, for the hub.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="With --card: a bench of the bundle, for its scores and verdicts."),
    ] = None,
) -> None:
    """Tell what a folder holds, and how it was checked.

    What it is, from where, and how big.

    Example: potstill show student-onnx/
    """
    from potstill.cli.render import print_json

    if report is not None and not card:
        raise UsageError("--report is for --card, which prints a bundle's model card; pass both")
    if card and as_json:
        raise UsageError("--card prints Markdown and --json JSON; pass one of them")
    if not folder.exists():
        raise UsageError(f"there is no folder {folder}; {similar(str(folder)) or 'name one that potstill has made'}")
    report_file = next(
        (folder / name for name in ("report.json", "report/report.json") if (folder / name).is_file()), None
    )
    if card:
        typer.echo(_card(folder, report), nl=False)
    elif (folder / MANIFEST_NAME).exists():
        if as_json:
            print_json(read_bundle(folder).manifest.model_dump(mode="json"))
        else:
            print_bundle(folder)
    elif report_file is not None:
        _print_report(report_file, as_json=as_json)
    elif (folder / "config.json").is_file():
        _print_checkpoint(folder, as_json=as_json)
    else:
        raise UsageError(
            f"{folder} is neither a bundle ({MANIFEST_NAME}), a report (report.json), "
            "a run nor a checkpoint (config.json)"
        )


def _card(folder: Path, report_path: Path | None) -> str:
    """Return the model card of a bundle, with what a bench says of it: the given one, or that of its own run."""
    from potstill.bench import read_report
    from potstill.bench.report.card import card_with_report
    from potstill.card import model_card

    manifest = read_bundle(folder).manifest
    name, beside = folder.resolve().name, folder.resolve().parent / "report" / "report.json"
    if report_path is not None:
        found = card_with_report(manifest, read_report(report_path), name=name)
        if found is None:
            raise UsageError(f"{report_path} measured no file of {folder}; bench the bundle as it is now")
        return found
    measured = card_with_report(manifest, read_report(beside), name=name) if beside.is_file() else None
    return measured or model_card(manifest, name=name)


def _print_report(file: Path, *, as_json: bool) -> None:
    from potstill.bench import read_report
    from potstill.cli.render import out
    from potstill.cli.report import render_report

    report = read_report(file)
    if as_json:
        typer.echo(report.model_dump_json(by_alias=True))
    else:
        render_report(report, out)


def _print_checkpoint(folder: Path, *, as_json: bool) -> None:
    from potstill.cli.render import print_json, print_pairs

    config = _read_json(folder / "config.json")
    weights = [file for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern)]
    report = _read_json(folder / TRAINING_REPORT) if (folder / TRAINING_REPORT).is_file() else {}
    # A distillation's report describes the student, and a fine-tuning's the model under "teacher".
    scores = report.get("student", report.get("teacher", {})).get("scores") or {}
    learned = report.get("data", {})
    made_from = "fine-tuned from" if report.get("method") == "finetune" else "distilled from"
    trimmed = read_trimming(folder)
    content = {
        "architecture": ", ".join(config.get("architectures") or [str(config.get("model_type"))]),
        # DistilBERT's configuration has names of its own for both.
        "layers": config.get("num_hidden_layers", config.get("n_layers")),
        "hidden size": config.get("hidden_size", config.get("dim")),
        "labels": some([str(label) for label in (config.get("id2label") or {}).values()]),
        "weights": f"{sum(file.stat().st_size for file in weights) / 1e6:.1f} MB",
        "vocabulary": describe_trimming(trimmed) if trimmed else None,
        "trimmed from": report.get("trimmed_from", {}).get("name"),
        made_from: report.get("teacher", {}).get("name"),
        "taught by": learned.get("taught_by"),
        "learned from": _learned_from(learned),
        "scores": ", ".join(f"{name} {value:.4f}" for name, value in scores.items()) or None,
        "steps": report.get("steps"),
    }
    if as_json:
        print_json(content | {"distill": report or None})
    else:
        print_pairs(f"Checkpoint {folder}", content)


def _learned_from(learned: Mapping[str, Any]) -> str | None:
    """Return how many rows a checkpoint was trained on, and how many of them had a label if not all had."""
    rows, labelled = learned.get("train_examples"), learned.get("labelled_examples")
    if rows is None:
        return None
    return f"{rows:,} rows" + (f", {labelled:,} with a label" if labelled not in (None, rows) else "")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{file} is not JSON: {error}") from error
    return content


def print_bundle(folder: Path) -> None:
    """Print a bundle's manifest, after its files were verified against their SHA-256."""
    from potstill.cli.render import out, print_pairs, print_table

    bundle = read_bundle(folder)
    print_pairs(f"Bundle {folder} (every file matches its SHA-256)", _about(bundle.manifest))
    rows = [_file_row(bundle, precision, record) for precision, record in bundle.manifest.models.items()]
    # 12 digits of the hash: enough to tell files apart; the manifest has all of them.
    head = ["file", "MB", "fused", "max |diff|", "same label", "lost", "batch flips", "speed", "sha256"]
    print_table("\nFiles; differences are on random token ids, which are harder than texts", head, rows)
    for precision, record in bundle.manifest.models.items():
        facts = dict(_facts(record))
        if facts:
            print_pairs(f"\n{precision}", facts)
        if record.tuning:
            _print_tuning(record.tuning)
    gained = summarize(bundle.manifest)
    if gained:
        out.print("\n" + "\n".join(gained), highlight=False, markup=False, soft_wrap=True)


def summarize(manifest: Manifest) -> list[str]:
    """Return a line for each file beside fp32: how many times smaller and as fast it is, and what it loses.

    Everything was measured when the bundle was made; what was not is left out.
    """
    lines, fp32 = [], manifest.models.get("fp32")
    for precision, record in manifest.models.items():
        if fp32 is None or record is fp32:
            continue
        times = manifest.model_bytes(fp32) / manifest.model_bytes(record)
        said = [f"{times:.1f} times smaller" if times >= 1 else f"{1 / times:.1f} times larger"]
        if record.speed is not None and record.speed.ratio is not None:
            said.append(f"{record.speed.ratio:.1f} times as fast")
        if record.quality is not None:
            labelled, agreement = record.quality.labelled, record.quality.agreement
            if labelled is not None and not lower_is_better(labelled.metric):
                lost, metric = 100 * (labelled.reference - labelled.candidate), labelled.metric.replace("_", " ")
                # Rounded first: -0.04 is no gain that could be seen.
                said.append(f"{abs(round(lost, 1))} points of {metric} {'gained' if round(lost, 1) < 0 else 'lost'}")
            elif agreement is not None and agreement.flips is not None and agreement.decisions:
                said.append(f"{1 - agreement.flips / agreement.decisions:.1%} of the answers the same")
        lines.append(f"{precision}: {', '.join(said)}")
    return lines


def some(names: list[str]) -> str:
    """Join the first few names, with the total if there are more."""
    return ", ".join(names[:_LABELS_SHOWN]) + (f", ... ({len(names)} labels)" if len(names) > _LABELS_SHOWN else "")


def _about(manifest: Manifest) -> dict[str, str | None]:
    """Return the facts about a whole bundle by name; those that are None are not printed."""
    architecture, pooling = manifest.architecture, manifest.pooling
    kind = manifest.problem_type or manifest.task
    what = manifest.task if kind in {manifest.task, "single_label_classification"} else f"{manifest.task} ({kind})"
    tokens, source = manifest.tokenizer_parity, manifest.source
    return {
        "task": f"{what}: {some(manifest.labels)}" if manifest.labels else what,
        "model": f"{architecture.model_type}, {architecture.layers} layers of {architecture.hidden_size}, "
        f"{manifest.parameters:,} parameters",
        "texts": f"up to {manifest.max_length} tokens, padded on the {manifest.padding_side}",
        "graph": f"{', '.join(manifest.inputs)} -> {', '.join(manifest.outputs)}",
        "pooling": f"{pooling.mode}, {'length 1' if pooling.normalize else 'not normalised'}" if pooling else None,
        "tokenizer": f"the ids of the checkpoint's on {tokens.texts} texts, {tokens.nasty} of them nasty"
        if tokens.texts
        else None,
        "vocabulary": describe_trimming(source.vocabulary) if source.vocabulary else None,
        "made from": f"{source.name}" + (f" (sha256 {source.sha256[:12]})" if source.sha256 else ""),
        "made on": f"{manifest.made.created}, {manifest.made.cpu}",
        "by": manifest.made.command,
        "score": _score(manifest.made.judged),
        "warning": worthless(manifest),
    }


def describe_trimming(vocabulary: TrimmedVocabulary) -> str:
    """Describe what trimming a vocabulary saved, and what it costs in tokens."""
    costs = ", ".join(f"{texts.more:+.1%} on {texts.texts}" for texts in vocabulary.tokens_per_text)
    return (
        f"{vocabulary.rows:,} of {vocabulary.rows_before:,} pieces, {vocabulary.parameters_saved:,} parameters fewer; "
        f"tokens a text {costs}"
    )


def worthless(manifest: Manifest) -> str | None:
    """Return a warning if the fp32 model is not shown to be better than an answer that ignores the text, else None."""
    sentence = manifest.made.judged and manifest.made.judged.sentence
    return None if sentence is None else f"fp32 is {sentence}"


def _score(judged: AgainstTrivial | None) -> str | None:
    """Describe the score of fp32 on the texts that the other files were judged on, beside the trivial answer's."""
    if judged is None:
        return None
    low, high = judged.interval
    return (
        f"fp32 has {judged.metric.replace('_', ' ')} {judged.value:.4f} (95 % interval {low:.4f} to {high:.4f}) "
        f"on {judged.num_examples:,} texts of {judged.on}; {judged.trivial_answer} scores {judged.trivial:.4f}"
    )


def _file_row(bundle: Bundle, precision: str, record: ModelRecord) -> list[str]:
    """Return the row of one file in the table; `-` is not measured, `?` unknown, as in files made elsewhere."""
    fusion, parity, quality, moved = record.fusion, record.parity, record.quality, record.invariance
    expected = "?" if fusion.attention_expected is None else fusion.attention_expected
    return [
        precision,
        f"{bundle.manifest.model_bytes(record) / 1e6:.1f}",
        f"{'?' if fusion.attention_found is None else fusion.attention_found} of {expected}",
        f"{parity.max_abs_difference:.2g}",
        f"{parity.label_agreement:.1%}",
        f"{quality.loss:.2%}" if quality else "-",
        f"{moved.flips} of {moved.rows}" if moved and moved.flips is not None else "-",
        f"{record.speed.ratio:.2f}x" if record.speed and record.speed.ratio is not None else "-",
        bundle.record_of(precision).sha256[:12],
    ]


def _facts(record: ModelRecord) -> Iterator[tuple[str, str]]:
    """Yield (name, description) of what is known of one file."""
    recipe = record.quantisation
    last_layer = "computed for the first token alone, as the head reads no other"
    found = {
        "padding": "left out of the products: a batch costs what its tokens cost" if record.unpadded else None,
        "last layer": last_layer if record.first_token_only else None,
        "read by": _describe_readers(record.fusion),
        "not compared": record.parity.left_out,
    }
    yield from ((name, what) for name, what in found.items() if what)
    if recipe:
        yield "recipe", _describe_recipe(recipe)
    if recipe and recipe.fp32_layers:
        yield "left in fp32", ", ".join(recipe.fp32_layers)
    if record.quality:
        yield "quality", _describe_quality(record.quality)
        yield from _label_facts(record.quality)
    if record.invariance:
        yield "in batches", _describe_invariance(record.invariance)
    if record.saturation:
        yield "other CPUs", _describe_saturation(record.saturation)
    # A file that somebody else quantised was not raced against fp32 here.
    if recipe and not recipe.made_by:
        yield "speed", _describe_speed(record.speed)
        yield "made for", f"{', '.join(record.cpu_features) or 'a CPU of unknown features'}"
    yield from _engines(record)
    if record.parity.gpu:
        yield "checked on", f"{record.parity.checked_on}; GPU: {record.parity.gpu}"


def _describe_readers(found: Fusion) -> str:
    """Describe what a runtime must know to read a file."""
    if found.opset is None:  # made by an older potstill
        return "not said; `potstill serve` tries"
    own = found.onnxruntime_operators
    beside = f" and onnxruntime's {', '.join(own)}" if own else ""
    return f"runtimes that know opset {found.opset}{beside}, see docs/interop.md"


def _describe_recipe(recipe: Quantization) -> str:
    """Describe how an int8 file was quantised."""
    if recipe.made_by:
        how = "int8 weights, products of floats" if recipe.method == WEIGHT_ONLY else str(recipe.method)
        products = recipe.integer_products + recipe.float_products
        return f"quantised by {recipe.made_by}: {how}, {recipe.integer_products} of {products} products of integers"
    parts = [
        str(recipe.method),
        f"{recipe.weight_bits}-bit weights with one scale per " + ("column" if recipe.per_channel else "matrix"),
        "words in 4 bits" if recipe.embedding_bits == 4 else "",
        f"outliers smoothed ({recipe.smoothing})" if recipe.smoothing else "outliers left",
        f"fitted to {recipe.texts}" if recipe.texts else "",
        f"attention {recipe.attention}" if recipe.attention != "float" else "",
        f"gelu {recipe.gelu}" if recipe.gelu != "exact" else "",
    ]
    return ", ".join(part for part in parts if part)


def _describe_quality(quality: QualityLoss) -> str:
    """Describe a file's loss against fp32, with its interval and verdict."""
    low, high = quality.loss_interval
    loses = f"loses {quality.loss:.2%}" if quality.loss >= 0 else f"gains {-quality.loss:.2%}"
    text = (
        f"{quality.verdict}: {loses} of {quality.basis} (95 % interval of the loss {low:.2%} to {high:.2%}), "
        f"{quality.max_loss:.2%} may be lost, on {quality.texts} texts of {quality.on or 'unknown origin'}"
    )
    labelled, agreement = quality.labelled, quality.agreement
    if labelled:
        text += f"; {labelled.metric} {labelled.candidate:.4f}, fp32 {labelled.reference:.4f}"
    if agreement and agreement.flips is not None:
        text += f"; {agreement.flips} of {agreement.decisions} answers changed"
    if quality.texts_needed:
        text += f"; {quality.texts_needed} texts would decide"
    return text


def _label_facts(quality: QualityLoss) -> Iterator[tuple[str, str]]:
    """Yield the verdicts on the labels, and the one whose recall falls most against fp32's; nothing without labels."""
    worst = quality.worst_label
    if worst is None or quality.max_label_loss is None:
        return
    low, high = worst.loss_interval
    falls = f"falls by {100 * worst.loss:.1f} points" if worst.loss >= 0 else f"gains {-100 * worst.loss:.1f} points"
    verdicts = [row.verdict for row in quality.labels]
    tally = ", ".join(f"{verdicts.count(word)} {word}" for word in ("PASS", "INCONCLUSIVE", "FAIL") if word in verdicts)
    yield (
        "labels",
        f"{tally}; {100 * quality.max_label_loss:g} points of a label's recall may be lost; the worst of "
        f"{len(verdicts)}, {worst.label}, {falls} (95 % interval of all together {100 * low:.1f} to {100 * high:.1f}), "
        f"from {worst.reference:.4f} to {worst.candidate:.4f} of {worst.support}",
    )


def _describe_invariance(moved: BatchInvariance) -> str:
    """Describe how far answers change with the batch that a text is in."""
    flips = "" if moved.flips is None else f", {moved.flips} flips"
    sizes = " and ".join(moved.batches)
    same = "the same answer alone and in batches" if moved.invariant else "another answer in a batch than alone"
    return f"{same}: drift {moved.max_drift:.2g}{flips} over {moved.texts} texts in batches of {sizes}"


def _engines(record: ModelRecord) -> Iterator[tuple[str, str]]:
    """Yield (name, description) of how a file's answers on other engines compare with those of fp32 in onnxruntime."""
    for engine, check in record.engines.items():
        parts = [f"version {check.version}", f"max |diff| {check.parity.max_abs_difference:.2g}"]
        if check.quality:
            parts.append(f"{check.quality.loss:.2%} lost, on {check.quality.texts} texts")
        if check.invariance:
            parts.append(_describe_invariance(check.invariance))
        yield f"in {engine}", ", ".join(parts)


def _describe_saturation(found: Saturation) -> str:
    """Describe what 8-bit products do on a CPU without VNNI, whose 16-bit sums overflow."""
    share = f"{found.share:.2g} of the sums" if found.share else "none of the sums"
    if found.breaks_without_vnni:
        return f"without VNNI {share} overflow and spoil {found.worst}: export again on such a machine"
    return f"without VNNI {share} overflow, which spoils nothing"


def _describe_speed(speed: Speed | None) -> str:
    """Describe the speed of int8 relative to fp32, with its interval and the times of each cell."""
    if speed is None:
        return "not measured"
    if speed.ratio is None or speed.interval is None:
        return "not measured: " + "; ".join(speed.failures.values())
    low, high = speed.interval
    cells = ", ".join(
        f"{cell.batch_size}x{cell.num_tokens} {cell.int8_ms:.1f} ms (fp32 {cell.fp32_ms:.1f})" for cell in speed.cells
    )
    return (
        f"{speed.verdict} than fp32: {speed.ratio:.2f}x [{low:.2f}, {high:.2f}]; {cells}; "
        f"{speed.threads} threads of {speed.cpu}"
    )


def _print_tuning(tuning: Tuning) -> None:
    """Print the quantisation recipes that `--tune` tried, and which one was kept."""
    from potstill.cli.render import print_table

    rows = []
    for candidate in tuning.candidates:
        interval = candidate.interval
        fate = "failed" if candidate.failed else "refused" if candidate.refused else ""
        rows.append(
            [
                candidate.name,
                f"{candidate.ratio:.3f}" if candidate.ratio else "-",
                f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "-",
                *("-" if value is None else f"{value:.1f}" for value in candidate.ms.values()),
                "kept" if candidate.name == tuning.kept else fate,
            ]
        )
    cells = [f"{cell} ms" for cell in (tuning.candidates[0].ms if tuning.candidates else ())]
    title = f"\nTuned on {tuning.cpu}, {tuning.threads} threads"
    if tuning.disturbed:
        lost = "some times are missing" if any(candidate.ratio for candidate in tuning.candidates) else "no times"
        title += f"; {lost}, the machine was busy: {tuning.disturbed}"
    print_table(title, ["recipe", "times as fast", "95 % interval", *cells, ""], rows)
