"""What the outcome of a load says: goodput, latencies, refusals, recovery, and whether the goals are met."""

from typing import Any

import numpy as np

MULTIPLES = (0.1, 0.5, 0.8, 0.9, 1.0, 1.5, 10.0)
"""Offered loads, as multiples of what the model does alone."""
UNLOADED = 0.1
DEADLINE = 1.0
"""Seconds after which an answer is of no use."""
REFUSALS = (429, 503)
LONGEST_RETRY = 60


def figures(out: dict[str, Any], *, seconds: float) -> dict[str, Any]:
    """Return what one constant load showed. The first fifth is left out: queues are still growing then.

    Goodput counts answers by the moment they came, all else requests by the moment they were due: what was waiting
    when the counting began makes up for what is waiting when it ends.
    """
    start = seconds / 5
    every = out["kind"] < 0
    body = every & (out["due"] >= start)
    latency = out["done"] - out["due"]
    answered = body & (out["status"] == 200)
    refused = body & np.isin(out["status"], REFUSALS)
    good = every & (out["status"] == 200) & (latency <= DEADLINE) & (out["done"] >= start) & (out["done"] <= seconds)
    probes = (out["kind"] >= 0) & (out["due"] >= start)
    return {
        "offered_per_second": float(body.sum() / (seconds - start)),
        "goodput_per_second": float(good.sum() / (seconds - start)),
        "answered": int(answered.sum()),
        "refused": int(refused.sum()),
        "failed": int(body.sum() - answered.sum() - refused.sum()),
        "accepted_ms": quantiles(latency[answered]),
        "refused_ms": quantiles(latency[refused]),
        # What the server took to refuse: without the wait for this machine's turn to send.
        "refused_from_sent_ms": quantiles((out["done"] - out["sent"])[refused]),
        "retry_after_valid": share_of_valid(out["retry_after"], np.flatnonzero(refused)),
        "probe_ms": quantiles(latency[probes & (out["status"] == 200)]),
        "probes_failed": int((probes & (out["status"] != 200)).sum()),
        "sent_late_ms_p99": quantiles((out["sent"] - out["due"])[body])["p99"],
        "client_cpu_share": float(out["cpu_seconds"] / max(out["done"].max(), seconds)),
    }


def quantiles(seconds: np.ndarray) -> dict[str, float | None]:
    if not len(seconds):
        return {"p50": None, "p99": None, "max": None}
    p50, p99, most = np.quantile(seconds, [0.5, 0.99, 1.0]) * 1e3
    return {"p50": float(p50), "p99": float(p99), "max": float(most)}


def share_of_valid(texts: list[str], refused: np.ndarray) -> float | None:
    """Return the share of refusals whose Retry-After is a whole number of seconds from 1 to 60."""
    if not len(refused):
        return None
    valid = [texts[number].isdecimal() and 1 <= int(texts[number]) <= LONGEST_RETRY for number in refused]
    return float(np.mean(valid))


def recovery(out: dict[str, Any], phases: list[list[float]]) -> float:
    """Return how many seconds after the flood requests are answered as before it.

    That is the end of the last quarter of a second, by the moment requests were due, of whose requests more than one
    in 20 was refused, failed, or slower than twice the 99th percentile before the flood.
    """
    body = out["kind"] < 0
    latency = out["done"] - out["due"]
    before = body & (out["phase"] == 0) & (out["status"] == 200) & (out["due"] > 1)
    slow = 2 * float(np.quantile(latency[before], 0.99)) if before.any() else 0.0
    end, worst = phases[0][1] + phases[1][1], 0.0
    for start in np.arange(0, phases[2][1], 0.25):
        window = body & (out["due"] >= end + start) & (out["due"] < end + start + 0.25)
        bad = window & ((out["status"] != 200) | (latency > slow))
        if window.any() and bad.sum() > max(1, 0.05 * window.sum()):
            worst = float(start + 0.25)
    return worst


def merge(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures that the goals speak of, as medians over rounds."""
    for one in rounds:
        for row in one["sweep"]:
            row["share_of_raw"] = row["goodput_per_second"] / row["raw_per_second"]

    def over(pick: Any) -> float | None:
        values = [value for value in map(pick, rounds) if value is not None]
        return float(np.median(values)) if values else None

    def at(multiple: float, *keys: str) -> float | None:
        def pick(one: dict[str, Any]) -> Any:
            value: Any = next(row for row in one["sweep"] if row["multiple"] == multiple)
            for key in keys:
                value = value[key]
            return value

        return over(pick)

    peak = max(at(multiple, "goodput_per_second") or 0.0 for multiple in MULTIPLES)
    share = max(at(multiple, "share_of_raw") or 0.0 for multiple in MULTIPLES)
    unloaded, flooded = at(UNLOADED, "accepted_ms", "p99"), at(10.0, "accepted_ms", "p99")
    return {
        "peak_goodput_per_second": peak,
        "share_of_raw": share,
        "added_ms_median": over(lambda one: one["one_client"]["added_ms"]["median"]),
        "unloaded_p50_ms": at(UNLOADED, "accepted_ms", "p50"),
        "unloaded_p99_ms": unloaded,
        "at_10x": {
            "goodput_of_peak": (at(10.0, "share_of_raw") or 0.0) / share if share else None,
            "accepted_p99_ms": flooded,
            "accepted_p99_of_unloaded": flooded / unloaded if flooded and unloaded else None,
            "refused_p99_ms": at(10.0, "refused_ms", "p99"),
            "refused_from_sent_p99_ms": at(10.0, "refused_from_sent_ms", "p99"),
            "retry_after_valid": at(10.0, "retry_after_valid"),
            "probe_max_ms": at(10.0, "probe_ms", "max"),
            "probes_failed": at(10.0, "probes_failed"),
            "client_cpu_share": at(10.0, "client_cpu_share"),
        },
        "recovery_seconds": over(lambda one: one["recovery_seconds"]),
    }


GOALS = (
    ("goodput of raw", lambda found: found["share_of_raw"], ">=", 0.90),
    ("added at one client, ms", lambda found: found["added_ms_median"], "<=", 0.8),
    ("goodput at 10x of peak", lambda found: found["at_10x"]["goodput_of_peak"], ">=", 0.85),
    ("accepted p99 at 10x of unloaded", lambda found: found["at_10x"]["accepted_p99_of_unloaded"], "<=", 5),
    ("refusal p99 at 10x, ms", lambda found: found["at_10x"]["refused_p99_ms"], "<=", 25),
    ("refusals with a valid Retry-After", lambda found: found["at_10x"]["retry_after_valid"], ">=", 1.0),
    ("recovery, s", lambda found: found["recovery_seconds"], "<=", 3),
)


def judge(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each goal of ours with what was measured."""
    rows = []
    for name, pick, sign, bound in GOALS:
        value = pick(found)
        met = value is not None and (value >= bound if sign == ">=" else value <= bound)
        rows.append({"goal": f"{name} {sign} {bound}", "value": value, "met": met})
    return rows


def table(summary: dict[str, dict[str, Any]]) -> str:
    heads = [
        "server",
        "goodput/s",
        "of raw",
        "added ms",
        "p99 at 0.1x",
        "goodput at 10x",
        "p99 at 10x",
        "refused p99",
        "recovers",
    ]
    rows = [heads]
    for name, found in summary.items():
        flood = found["at_10x"]
        rows.append(
            [
                name,
                shown(found["peak_goodput_per_second"], 0),
                shown(found["share_of_raw"], 2),
                shown(found["added_ms_median"], 2),
                shown(found["unloaded_p99_ms"], 1),
                shown(flood["goodput_of_peak"], 2),
                shown(flood["accepted_p99_ms"], 0),
                shown(flood["refused_p99_ms"], 1),
                shown(found["recovery_seconds"], 2),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def shown(value: float | None, digits: int) -> str:
    """Return a figure for a table."""
    return "-" if value is None else f"{value:.{digits}f}"
