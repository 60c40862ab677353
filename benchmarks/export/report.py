"""What came out: the ratios, the goals with their verdicts, and the tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.evaluation.intervals import decide_by_interval
from potstill.timing import Estimate, Race

# Who is timed against whom: the goals' pairs, and the same pairs without tuning.
PAIRS = (
    ("optimum-int8", "potstill-tuned"),
    ("openvino-int8", "potstill-tuned"),
    ("optimum-int8", "potstill-int8"),
    ("openvino-int8", "potstill-int8"),
    ("openvino-int8", "potstill-int8-static@openvino"),
    ("potstill-int8-static", "potstill-int8-static@openvino"),
    ("openvino-fp32", "potstill-fp32@openvino"),
    ("potstill-int8", "potstill-int8-static"),
    ("potstill-int8", "potstill-tuned"),
    ("optimum-o3", "potstill-fp32"),
    ("transformers-fused", "potstill-fp32"),
    ("transformers-int8", "potstill-int8"),
    ("potstill-int8", "potstill-int8-4bit-table"),
    ("potstill-fp32", "potstill-fp32@newest"),
    ("potstill-int8", "potstill-int8@newest"),
    ("potstill-int8-static", "potstill-int8-static@newest"),
    ("openvino-fp32", "potstill-fp32"),
    ("openvino-bf16", "potstill-tuned"),
    ("potstill-fp32", "potstill-int8"),
)
RIVALS_IN_FP32 = (
    "torch-fp32",
    "torch-compile-fp32",
    "optimum-plain",
    "optimum-o3",
    "transformers-plain",
    "transformers-fused",
    "openvino-fp32",
)
SHORT = (1, 16)
UNKNOWN = "NOT MEASURED"
FULL_SIZE = {
    "torch": "torch-fp32",
    "optimum": "optimum-plain",
    "transformers": "transformers-plain",
    "openvino": "openvino-fp32",
    "potstill": "potstill-fp32",
}


def label(cell: tuple[int, int]) -> str:
    """Return a cell's name."""
    return f"{cell[0]}x{cell[1]}"


def merge(races: Mapping[str, Race]) -> Race:
    """Return one race over all architectures; its cells are (architecture, cell), which `overall` takes as keys."""
    merged = Race(tuple((name, cell) for name, race in races.items() for cell in race.cells))
    for architecture, race in races.items():
        for name, cells in race.rounds.items():
            merged.rounds.setdefault(name, {}).update({(architecture, cell): cells[cell] for cell in cells})
    return merged


def shared_cells(race: Race, baseline: str, name: str) -> list[Any]:
    """Return the cells that both ran."""
    ran = [race.rounds.get(each, {}) for each in (baseline, name)]
    return [cell for cell in race.cells if all(cell in cells for cells in ran)]


def overall(race: Race, baseline: str, name: str) -> dict[str, Any] | None:
    """Return the geometric mean over the cells that both ran, as JSON holds it, or None if there are none."""
    shared = shared_cells(race, baseline, name)
    return _numbers(race.overall(baseline, name)) | {"cells": len(shared)} if shared else None


def list_ratios(races: Mapping[str, Race]) -> list[dict[str, Any]]:
    """Return how many times as fast one is as the other: per cell, per architecture and over everything."""
    rows = []
    scopes = [*races.items(), *([("all", merge(races))] if len(races) > 1 else [])]
    for baseline, name in PAIRS:
        for scope, race in scopes:
            if (mean := overall(race, baseline, name)) is None:
                continue
            row: dict[str, Any] = {"contestant": name, "against": baseline, "over": scope} | mean
            if scope in races:
                cells = shared_cells(race, baseline, name)
                row["by_cell"] = {label(cell): _numbers(race.ratio(baseline, name, cell)) for cell in cells}
            rows.append(row)
    return rows


def list_goals(
    races: Mapping[str, Race],
    sizes: Mapping[str, Mapping[str, int]],
    costs: Mapping[str, Mapping[str, Any]],
    accuracy: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return every goal: what was asked, what was measured, and PASS, FAIL or INCONCLUSIVE."""
    whole, ours, theirs = merge(races), "potstill-tuned", "openvino-int8"
    short = Race(tuple(cell for cell in whole.cells if cell[1] == SHORT), whole.rounds)
    speed = (
        ("int8 is 1.10x as fast as optimum's int8", whole, "optimum-int8", "potstill-int8", 1.10),
        ("tuned int8 is 1.10x as fast as optimum's int8", whole, "optimum-int8", ours, 1.10),
        ("tuned int8 takes at most 1.05x the time of OpenVINO's int8", whole, theirs, ours, 1 / 1.05),
        ("tuned int8 is ahead of OpenVINO's int8 on short texts (1x16)", short, theirs, ours, 1.0),
        ("int8-static takes at most 1.10x the time of int8", whole, "potstill-int8", "potstill-int8-static", 1 / 1.1),
        (
            "int8-static in OpenVINO takes at most 1.10x the time of OpenVINO's own int8",
            whole,
            theirs,
            "potstill-int8-static@openvino",
            1 / 1.1,
        ),
    )
    goals = [_speed_goal(goal, overall(race, base, name), target) for goal, race, base, name, target in speed]
    goals.append(_never_slower("fp32 is never slower than anybody's fp32", races, RIVALS_IN_FP32, "potstill-fp32"))
    goals.append(_fewest_changes("int8 changes the fewest answers of all int8", accuracy, "potstill-int8"))
    for name in ("potstill-int8", "potstill-int8-static", "potstill-tuned"):
        shares = [each[name] / each["potstill-fp32"] for each in sizes.values() if {name, "potstill-fp32"} <= set(each)]
        worst = round(max(shares), 4) if shares else None
        goals.append(_limit_goal(f"bytes of {name} as a share of potstill-fp32's", worst, 0.26))
    export, tune = costs.get("bert-base-fp32", {}), costs.get("bert-base-tuned", {})
    for goal, cost, key, limit in (
        ("seconds of BERT-base's export with validation", export, "seconds", 60),
        ("bytes of memory of BERT-base's export with validation", export, "peak_rss_bytes", 4 * 2**30),
        ("seconds of BERT-base's export with --tune", tune, "seconds", 300),
    ):
        goals.append(_limit_goal(goal, cost.get(key) if cost.get("exit_code") == 0 else None, limit))
    return goals


def _speed_goal(goal: str, measured: dict[str, Any] | None, target: float) -> dict[str, Any]:
    said = decide_by_interval(measured["interval_95"], target, at_least=True) if measured else UNKNOWN
    return {"goal": goal, "asked": f"at least {target:.3f}", "measured": measured, "verdict": said}


def _never_slower(goal: str, races: Mapping[str, Race], rivals: Sequence[str], name: str) -> dict[str, Any]:
    """Judge every cell by itself: one that is surely slower fails, and all must surely be as fast to pass."""
    found: list[tuple[Estimate, str]] = []
    for architecture, race in races.items():
        for rival in rivals:
            cells = shared_cells(race, rival, name)
            found += [(race.ratio(rival, name, cell), f"{architecture} {label(cell)}, {rival}") for cell in cells]
    row: dict[str, Any] = {"goal": goal, "asked": "at least 1 in every cell"}
    if not found:
        return row | {"measured": None, "verdict": UNKNOWN}
    verdicts = {decide_by_interval(estimate.interval(), 1.0, at_least=True) for estimate, _ in found}
    said = next((each for each in ("FAIL", "INCONCLUSIVE") if each in verdicts), "PASS")
    worst, where = min(found, key=lambda each: each[0].value)
    return row | {"measured": _numbers(worst) | {"worst_cell": where}, "verdict": said}


def _fewest_changes(goal: str, accuracy: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Judge by the answers that are not torch's, each text alone; potstill's other files are no rivals."""
    rows = {each: row["changed"] for each, row in accuracy.get("contestants", {}).items() if "changed" in row}
    rivals = {each: changed for each, changed in rows.items() if "int8" in each and not each.startswith("potstill")}
    row: dict[str, Any] = {"goal": goal, "asked": "fewer than any other tool's"}
    if name not in rows or not rivals:
        return row | {"measured": None, "verdict": UNKNOWN}
    best = min(rivals, key=rivals.__getitem__)
    said = "PASS" if rows[name] < rivals[best] else "FAIL"
    return row | {"measured": {name: rows[name], best: rivals[best], "texts": accuracy["texts"]}, "verdict": said}


def _limit_goal(goal: str, measured: float | None, limit: float) -> dict[str, Any]:
    said = UNKNOWN if measured is None else "PASS" if measured <= limit else "FAIL"
    return {"goal": goal, "asked": f"at most {limit:,}", "measured": measured, "verdict": said}


def _numbers(estimate: Estimate) -> dict[str, Any]:
    return {"ratio": round(estimate.value, 4), "interval_95": [round(each, 4) for each in estimate.interval()]}


def describe(race: Race, sizes: Mapping[str, int], checked: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return one architecture's contestants: times, sizes, memory, and how far they are from torch."""
    described = {}
    for name, found in checked.items():
        times = {label(cell): race.median_ms(name, cell) for cell in race.cells}
        full = sizes.get(FULL_SIZE[name.split("-")[0]])
        row: dict[str, Any] = {
            "median_ms": {cell: None if value is None else round(value, 3) for cell, value in times.items()},
            "size_bytes": sizes.get(name),
            "share_of_fp32_bytes": round(sizes[name] / full, 4) if full and name in sizes else None,
            "difference": found.get("difference"),
            "peak_rss_bytes": found.get("peak_rss_bytes"),
        }
        if (speed := overall(race, "torch-fp32", name)) is not None:
            row["times_torch_fp32"] = speed
        if name in race.failures:
            row["failure"] = race.failures[name]
        described[name] = row
    return described


def markdown(result: Mapping[str, Any]) -> str:
    """Return the tables a person reads."""
    parts = [f"NOT TO BE BELIEVED: {name}: {why}\n" for name, why in result["disturbed"].items()]
    parts += _accuracy_table(result.get("accuracy", {}))
    for architecture, contestants in result["architectures"].items():
        parts += [f"### {architecture}, median ms", ""]
        cells = list(next(iter(contestants.values()))["median_ms"])
        rows = [_contestant_row(name, row, cells) for name, row in contestants.items()]
        parts += _table(["contestant", *cells, "× torch fp32", "MB", "note"], rows)
    rows = [
        [row["contestant"], row["against"], row["over"], _shown(row), _cells(row.get("by_cell", {}))]
        for row in result["ratios"]
    ]
    parts += ["### How many times as fast", ""]
    parts += _table(["contestant", "against", "over", "geometric mean", "cells"], rows)
    costs = [
        [name, f"{cost['seconds']:.0f}", f"{cost['peak_rss_bytes'] / 2**30:.2f}", cost.get("error", "")]
        for name, cost in result["export"].items()
    ]
    parts += ["### What the exports cost", "", *_table(["bundle", "seconds", "GiB", "failure"], costs)]
    parts += ["### Goals", ""]
    goals = [[goal["goal"], goal["asked"], _measured(goal["measured"]), goal["verdict"]] for goal in result["goals"]]
    parts += _table(["goal", "asked", "measured", "verdict"], goals)
    return "\n".join(parts)


def _accuracy_table(accuracy: Mapping[str, Any]) -> list[str]:
    """Return the table of answers on real texts, or nothing where they were not measured."""
    if not accuracy:
        return []
    rows = []
    for name, row in accuracy["contestants"].items():
        keys = ("accuracy", "changed", "error", "batch_changed", "batch_drift")
        rows.append([name, *(str(row.get(key, "–")) for key in keys), row.get("reason", "")])
    head = ["contestant", "accuracy", "changed", "logit error", "changed in batches", "largest drift", "note"]
    return [f"### Answers on {accuracy['texts']} texts, beside torch's", "", *_table(head, rows)]


def _contestant_row(name: str, row: Mapping[str, Any], cells: Sequence[str]) -> list[str]:
    times = ["–" if row["median_ms"][cell] is None else f"{row['median_ms'][cell]:.1f}" for cell in cells]
    size = "–" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.1f}"
    speed = _shown(row["times_torch_fp32"]) if "times_torch_fp32" in row else "–"
    return [name, *times, speed, size, row.get("failure", "")]


def _cells(cells: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{cell} {numbers['ratio']:.2f}" for cell, numbers in cells.items())


def _shown(numbers: Mapping[str, Any]) -> str:
    low, high = numbers["interval_95"]
    return f"{numbers['ratio']:.3f} ({low:.3f} to {high:.3f})"


def _measured(measured: Any) -> str:
    if not isinstance(measured, Mapping):
        return "–" if measured is None else f"{measured:,}"
    if "ratio" not in measured:
        return ", ".join(f"{name} {value}" for name, value in measured.items())
    return _shown(measured) + (f" in {measured['worst_cell']}" if "worst_cell" in measured else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(each.replace("|", "/") for each in line) + " |" for line in lines), ""]
