"""Where the time of a run goes: rounds over launches, a budget over loads, and how long it all takes."""

from collections.abc import Collection, Mapping, Sequence
from math import ceil, inf

from potstill.bench.contract import Load
from potstill.sections import BenchConfig

# With a budget, every load has at least so many rounds: fewer carry no interval of 95 %.
LEAST_ROUNDS = 5
# Calls per turn at least: of 3 one may be an outlier.
MIN_CALLS = 3
# Turns of each row at a load and a number of callers, and how long one lasts at least.
THROUGHPUT_TURNS, THROUGHPUT_S = 3, 0.3
# Where the turns of all rows so far took longer than this, 2 of each must do.
THROUGHPUT_SLOW_S, THROUGHPUT_SLOW_TURNS = 4.0, 2
# Rounds of each number of threads, and how long a turn lasts at least.
SCALING_ROUNDS, SCALING_S = 5, 0.2
# Seconds of a process from its start to its first block, measured with MiniLM-L6 (onnxruntime, 2 cores): 1 to load,
# which is 0.7 where others begin meanwhile, and 0.12 of warm-up per load.
_LOAD_S, _BESIDE_S, _WARM_S = 1.0, 0.7, 0.12
# Texts of a data set have about so many tokens (SST-2: 25, MRPC: 53); a scored text is a share of the longest load.
_SCORED_TOKENS = 32


def split_rounds(rounds: int, launches: int) -> list[int]:
    """Divide rounds among launches as evenly as they go, the first ones getting more: 5 in 4 are 2, 1, 1, 1."""
    launches = min(rounds, launches)
    return [rounds // launches + (number < rounds % launches) for number in range(launches)]


def next_load(widths: Mapping[str, float], costs_s: Mapping[str, float], *, left_s: float) -> str | None:
    """Return which load should have another round: the one with the widest interval of those that fit.

    Args:
        widths: load -> half the width of its widest interval / the value; infinity where there is none yet.
        costs_s: load -> seconds that its last round took, which is what the next one will take.
        left_s: seconds that are left of the budget.

    Returns:
        None where no round fits any more, or nothing is uncertain.
    """
    fitting = [load for load, width in widths.items() if width > 0 and costs_s.get(load, inf) <= left_s]
    return max(fitting, key=lambda load: widths[load], default=None)


def estimate_seconds(
    call_ms: Mapping[str, Mapping[Load, float]],
    config: BenchConfig,
    *,
    cores: int,
    scored_texts: int = 0,
) -> dict[str, float]:
    """Estimate how long each stage of a run takes.

    Args:
        call_ms: row -> load -> milliseconds of a call, from the warm-up or an earlier run; the twin is a row as well.
        config: what is measured.
        cores: that threads are scaled up to.
        scored_texts: in all data sets together.

    Returns:
        Seconds by stage, as `progress` calls them: `measure latency`, `measure throughput`, `scale threads`,
        `score quality`, `cold start`.
    """
    rows = {key: loads for key, loads in call_ms.items() if loads}
    started_s = len(rows) * (_BESIDE_S + _WARM_S * max((len(loads) for loads in rows.values()), default=0))
    warmed_s = sum(MIN_CALLS * ms for loads in rows.values() for ms in loads.values()) / 1e3
    rounds_s = sum(_turn_s(ms, config.block_s) for loads in rows.values() for ms in loads.values()) * config.rounds
    used_s = config.budget_s if config.budget_s is not None else rounds_s
    real = {key: loads for key, loads in rows.items() if "#" not in key}
    largest = {key: max(loads, key=_tokens) for key, loads in real.items()}
    token_ms = {key: loads[largest[key]] / _tokens(largest[key]) for key, loads in real.items()}
    counts = len(thread_counts(cores)) if config.thread_scaling and cores > 1 else 0
    longest = max(config.num_tokens)
    scaled_s = sum(
        counts * _LOAD_S + SCALING_ROUNDS * counts * _turn_s(per_token * longest, SCALING_S)
        for per_token in token_ms.values()
    )
    return {
        "measure latency": used_s + config.launches * (started_s + warmed_s),
        "measure throughput": _throughput_s(token_ms.values(), config),
        "scale threads": scaled_s,
        "score quality": sum(
            _LOAD_S + scored_texts * _SCORED_TOKENS * per_token / 1e3 for per_token in token_ms.values()
        ) if scored_texts else 0.0,
        "cold start": len(real) * config.cold_starts * _LOAD_S,
    }  # fmt: skip


def _turn_s(call_ms: float, block_s: float) -> float:
    """Return the seconds of one turn: a call that is not timed, and the block."""
    calls = max(MIN_CALLS, ceil(block_s * 1e3 / call_ms))
    return (calls + 1) * call_ms / 1e3


def _throughput_s(token_ms: Collection[float], config: BenchConfig) -> float:
    seconds = _LOAD_S * len(token_ms) if config.throughput_batch_sizes else 0.0
    for batch_size in config.throughput_batch_sizes:
        calls_s = [one * batch_size * config.throughput_tokens / 1e3 for one in token_ms]
        seconds += MIN_CALLS * sum(calls_s)
        for callers in config.callers:
            # Every caller makes one call that is not counted, and they share the cores.
            turn_s = sum(2 * callers * call_s + THROUGHPUT_S for call_s in calls_s)
            slow = THROUGHPUT_SLOW_TURNS * turn_s > THROUGHPUT_SLOW_S
            seconds += turn_s * (THROUGHPUT_SLOW_TURNS if slow else THROUGHPUT_TURNS)
    return seconds


def _tokens(load: Load) -> int:
    return load.batch_size * (load.num_tokens or _SCORED_TOKENS)


def thread_counts(cores: int) -> Sequence[int]:
    """Return 1, 2, 4 and so on, and all cores."""
    return sorted({cores, *(2**power for power in range(cores.bit_length()) if 2**power <= cores)})
