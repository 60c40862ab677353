"""A whole report, made up: a teacher, a student and, if asked for, a tiny model, as one bench on a laptop finds them.

Its parts agree with one another: percentiles and quantiles come from the same drawn calls, ratios from the same
medians, scores, agreement, confusion and retention from the same drawn answers (`made_quality`), claims from all of
these. Nothing is random: the same call makes the same report.
"""

import functools

import numpy as np

from potstill.bench import report_schema
from tests.bench.made_claims import made_claims, undecided
from tests.bench.made_quality import made_glue, made_quality

FLOOR = 0.012
PERCENTILES = {"p50": (50, 11), "p90": (90, 64), "p95": (95, 130), "p99": (99, 662)}
LOADS = [
    *(report_schema.Load(batch_size=batch, num_tokens=tokens) for batch in (1, 8) for tokens in (16, 128)),
    report_schema.Load(kind="texts"),
    report_schema.Load(kind="texts_tokenised"),
]
# Time of a call beside that of one text of 128 tokens.
COST = {"1×16": 0.17, "1×128": 1.0, "8×16": 0.92, "8×128": 8.1, "own texts": 0.27, "own texts, tokenised": 0.276}
TOKENS = {"own texts": 25.2, "own texts, tokenised": 25.2}
# Milliseconds of one text of 128 tokens in fp32; parameters in all, of the encoder and of its embeddings; layers.
MODELS = {
    "teacher": (42.0, 109_483_778, 109_482_240, 23_837_184, 12, 768),
    "student": (20.9, 66_955_010, 66_362_880, 23_837_184, 6, 768),
    "tiny": (4.4, 22_714_370, 22_713_216, 11_921_664, 6, 384),
}
PRECISIONS = {"fp32": (1.0, 4.0), "int8": (0.47, 1.01), "int8-static": (0.42, 1.02)}
TORCH = "torch-cpu"
LOST = ("student/int8-static", "8×128")


def made_report(*, third=False, **changes):
    """Return the report, with `tiny` as a third model if asked for, and fields replaced by `changes`."""
    return report_schema.Report(**(dict(_base(third)) | changes))


def incomplete(**changes):
    """Return the report of an interrupted run on a busy machine."""
    quality = list(made_quality(tuple(names()))[:3])
    noise = {
        "floor": 0.061,
        "steal_share": 0.034,
        "throttled_share": 0.12,
        "others_share": 0.31,
        "repeated_rounds": 9,
        "flags": [
            "Other processes used 31 % of the machine's cores.",
            "The container's quota held the bench back for 12 % of the time.",
        ],
    }
    missing = ["latency of student/int8-static at 8×128", "throughput", "quality on WNLI"]
    return made_report(
        complete=False,
        missing=missing,
        noise=report_schema.Noise(**noise),
        throughput=[],
        quality=quality,
        glue=[],
        **changes,
    )


def disturbed(reason="other processes took 81% of the time of the cores"):
    """Return the report of a machine on which others worked all the time."""
    report = made_report()
    changed = {
        part: [row.model_copy(update={"disturbed": reason}) for row in getattr(report, part)]
        for part in ("latency", "ratios", "throughput", "scaling", "cold_start")
    }
    noise = report_schema.Noise(floor=0.1, flags=[f"While 1×128 was timed, {reason}."])
    return report.model_copy(update=changed | {"noise": noise})


def minimal(**changes):
    """Return the report of two models in one precision at one load, without data."""
    base = made_report()
    keys, load = ("teacher/fp32", "student/fp32"), LOADS[1]
    gone = {"cold_start": [], "throughput": [], "scaling": [], "memory": [], "quality": [], "glue": [], "failures": []}
    kept = {
        "contestants": [row for row in base.contestants if row.key in keys],
        "latency": [row for row in base.latency if row.key in keys and row.load == load],
        "ratios": [row for row in base.ratios if row.candidate in keys and row.load == load],
        "claims": [row for row in base.claims if row.id in {"size", "speed"}] + [undecided()],
    }
    return made_report(**(gone | kept | changes))


def names(*, third=False):
    """Return the keys of the rows, the baseline's first."""
    models = [name for name in MODELS if third or name != "tiny"]
    keys = [f"{model}/{precision}" for model in models for precision in PRECISIONS]
    return keys + [f"{model}/fp32@{TORCH}" for model in models if model != "tiny"]


@functools.cache
def _base(third):
    keys = names(third=third)
    latency = [row for key in keys for load in LOADS if (row := _latency(key, load)) is not None]
    quality, ratios = made_quality(tuple(keys)), _ratios(latency)
    memory = {key: _memory(key) for key in keys}
    claims = made_claims(
        MODELS["student"][2],
        MODELS["teacher"][2],
        peak=memory["student/fp32"].peak_bytes,
        quality=quality,
        ratios=ratios,
    )
    return report_schema.Report(
        created="2026-02-11T09:41:27+00:00",
        command="potstill bench teacher=models/teacher student=models/student --data nyu-mll/glue:sst2 --out report",
        seed=42,
        config={"rounds": 12, "block_s": 0.25, "resamples": 2000, "batch_sizes": [1, 8], "num_tokens": [16, 128]},
        baseline="teacher/fp32",
        candidates=["student", "tiny"] if third else ["student"],
        environment=_environment(),
        noise=report_schema.Noise(
            floor=FLOOR, steal_share=0.0, throttled_share=0.0, others_share=0.018, repeated_rounds=1
        ),
        models={name: _model(name) for name in MODELS if third or name != "tiny"},
        contestants=[_contestant(key) for key in keys],
        cold_start=[_cold_start(key) for key in keys],
        latency=latency,
        ratios=ratios,
        throughput=[_throughput(key, batch, callers) for key in keys for batch in (1, 8, 32) for callers in (1, 4)],
        scaling=[_scaling(key, threads) for key in keys for threads in (1, 2, 4)],
        memory=list(memory.values()),
        quality=quality,
        glue=made_glue(quality, "teacher/fp32"),
        energy=report_schema.Energy(source=None, reason="this machine has no readable RAPL counters and no NVIDIA GPU"),
        claims=claims,
        failures=[_failure()],
        notes=[
            "Everything ran with 4 threads; idle models did not spin.",
            "int8 scales its activations by the batch, so the same text in another batch may score otherwise.",
        ],
    )


def _parts(key):
    name, _, runner = key.partition("@")
    model, precision = name.split("/")
    return model, precision, runner or "onnxruntime-cpu"


def _draw(*words):
    return np.random.default_rng(sum(ord(letter) * 31**place % 2**31 for place, letter in enumerate("".join(words))))


def _centre(key, load):
    """Milliseconds that a call takes in the middle."""
    model, precision, runner = _parts(key)
    slower = 1.24 if runner == TORCH else 1.0
    return MODELS[model][0] * PRECISIONS[precision][0] * COST[str(load)] * slower


def _latency(key, load):
    if (key, str(load)) == LOST:
        return None
    draw, centre = _draw(key, str(load)), _centre(key, load)
    count = int(np.clip(3000 / centre, 72, 1400))
    count = 620 if (key, str(load)) == ("student/fp32", "1×16") else count
    late = 1 + (draw.random(count) < 0.03) * draw.gamma(2, 0.2, count)
    calls = centre * np.exp(draw.normal(0, 0.035, count)) * late
    if str(load).startswith("own"):
        calls *= np.exp(draw.normal(0, 0.3, count))
    there = {name: float(np.percentile(calls, at)) for name, (at, needs) in PERCENTILES.items() if count >= needs}
    flops = _flops(_parts(key)[0], TOKENS.get(str(load), load.num_tokens)) * TOKENS.get(str(load), load.num_tokens)
    rate = flops * load.batch_size / (there["p50"] / 1000)
    peak = 6.5e11 if _parts(key)[1] == "fp32" else 2.2e12
    return report_schema.Latency(
        key=key,
        load=load,
        mean_tokens=TOKENS.get(str(load), load.num_tokens),
        samples=count,
        **{f"{name}_ms": value for name, value in there.items()},
        missing={name: needs - count for name, (_, needs) in PERCENTILES.items() if count < needs},
        intervals={name: (value * 0.988, value * (1.013 if name == "p50" else 1.06)) for name, value in there.items()},
        quantiles_ms=[float(value) for value in np.quantile(calls, np.linspace(0, 1, 51))],
        throughput_per_s=1000 * load.batch_size / there["p50"],
        drift=1.004,
        cpu_share=0.94,
        flops_per_s=rate,
        peak_share=rate / peak,
        stationary=key != "teacher/int8" or load.num_tokens != 16,
    )


def _flops(model, tokens):
    _, _, encoder, embeddings, layers, hidden = MODELS[model]
    return 2.0 * (encoder - embeddings) + 4.0 * layers * hidden * tokens


def _ratios(latency):
    p50 = {(row.key, str(row.load)): row.p50_ms for row in latency}
    rows = []
    for (key, where), value in p50.items():
        _, precision, runner = _parts(key)
        like = f"teacher/{precision}" + (f"@{runner}" if runner == TORCH else "")
        load = next(load for load in LOADS if str(load) == where)
        pairs = {"like_for_like": like} if not key.startswith("teacher/") else {}
        pairs |= {"to_baseline": "teacher/fp32"} if key != "teacher/fp32" else {}
        rows += [_ratio(name, other, key, load, p50[other, where] / value) for name, other in pairs.items()]
    return rows + [_ratio("again", "teacher/fp32", "teacher/fp32#again", load, 1.003) for load in LOADS]


def _ratio(comparison, baseline, candidate, load, value):
    low, high = value * 0.985, value * 1.016
    finding = "faster" if low > 1 + FLOOR else "slower" if high < 1 - FLOOR else "no difference shown"
    return report_schema.Ratio(
        comparison=comparison,
        baseline=baseline,
        candidate=candidate,
        load=load,
        rounds=12,
        value=value,
        interval=(low, high),
        finding=finding,
    )


def _model(name):
    _, parameters, encoder, embeddings, layers, hidden = MODELS[name]
    return report_schema.Model(
        bundle=f"models/{name}",
        checkpoint=f"models/{name}-checkpoint",
        task="text-classification",
        labels=["negative", "positive"],
        parameters=parameters,
        encoder_parameters=encoder,
        embedding_parameters=embeddings,
        max_length=512,
        architecture={"model_type": "bert", "num_hidden_layers": layers, "hidden_size": hidden},
        flops_per_token={tokens: _flops(name, tokens) for tokens in (16, 128)},
    )


def _contestant(key):
    model, precision, runner = _parts(key)
    size = int(MODELS[model][1] * PRECISIONS[precision][1] + 310_000)
    file = {"fp32": "model.onnx", "int8": "model_quantized.onnx"}.get(precision, "model_int8_static.onnx")
    file = "model.safetensors" if runner == TORCH else f"onnx/{file}"
    digest = f"{abs(hash_of(key)):016x}" * 4
    return report_schema.Contestant(
        key=key,
        model=model,
        precision=precision,
        runner=runner,
        threads=4,
        file_bytes=size,
        compressed_bytes=int(size * (0.925 if precision == "fp32" else 0.78)),
        sha256={file: digest},
        quantisation=None if precision == "fp32" else {"weights": "int8, per channel"},
        batch_invariant=precision != "int8",
    )


def hash_of(text):
    """Return a number that stands for `text` in every process."""
    return int(_draw(text, "hash").integers(2**62))


def _cold_start(key):
    model, precision, runner = _parts(key)
    imported = 1850.0 if runner == TORCH else 212.0
    load = MODELS[model][1] * PRECISIONS[precision][1] / 1e6 * 1.1
    total = 31.0 + imported + load + _centre(key, LOADS[0]) * 2.5
    return report_schema.ColdStart(
        key=key,
        starts=3,
        process_ms=31.0,
        import_ms=imported,
        load_ms=load,
        first_answer_ms=_centre(key, LOADS[0]) * 2.5,
        total_ms=total,
        interval=(total * 0.97, total * 1.06),
    )


def _throughput(key, batch, callers):
    alone = 1000 / (_centre(key, LOADS[1]) * 0.55)
    value = alone * (1 + 0.16 * np.log2(batch)) * (1 + 0.11 * (callers > 1) / batch)
    return report_schema.Throughput(
        key=key,
        load=report_schema.Load(batch_size=batch, num_tokens=64),
        callers=callers,
        texts_per_s=value,
        interval=(value * 0.975, value * 1.02),
        p50_ms=1000 * batch * callers / value,
    )


def _scaling(key, threads):
    speedup = {1: 1.0, 2: 1.87, 4: 3.1}[threads] - (0.5 if "int8" in key and threads == 4 else 0)
    p50 = _centre(key, LOADS[1]) * 3.1 / speedup
    return report_schema.Scaling(
        key=key, load=LOADS[1], threads=threads, p50_ms=p50, interval=(p50 * 0.98, p50 * 1.03), speedup=speedup
    )


def _memory(key):
    model, precision, runner = _parts(key)
    file = MODELS[model][1] * PRECISIONS[precision][1]
    imported = 318e6 if runner == TORCH else 71e6
    loaded = imported + 1.12 * file
    return report_schema.Memory(
        key=key,
        interpreter_rss_bytes=int(14e6),
        imported_rss_bytes=int(imported),
        loaded_rss_bytes=int(loaded),
        loading_peak_bytes=int(loaded + 0.9 * file),
        peak_bytes=int(loaded + 96e6),
        after_rss_bytes=int(loaded + 88e6),
        after_uss_bytes=int(loaded + 52e6),
        after_pss_bytes=int(loaded + 61e6),
        limit_bytes=int(8e9),
    )


def _environment():
    return report_schema.Environment(
        os="Linux 6.8.0 x86_64",
        python="3.12.3",
        cpu="AMD Ryzen 7 7840U with Radeon 780M Graphics",
        cpu_features=["avx2", "avx512f", "avx512_vnni", "f16c"],
        cores=4,
        cores_of_host=16,
        cpu_quota=4.0,
        memory_bytes=int(32e9),
        memory_limit_bytes=int(8e9),
        threads=4,
        spinning=False,
        governor="performance",
        turbo=True,
        smt=True,
        load_before=[0.12, 0.2, 0.31],
        load_after=[3.41, 2.2, 1.4],
        packages={"potstill": "0.4.0", "onnxruntime": "1.31.1", "torch": "2.13.0", "numpy": "2.4.6"},
        peaks=report_schema.Peaks(threads=4, fp32_flops_per_s=6.5e11, int8_ops_per_s=2.2e12),
    )


def _failure():
    return report_schema.Failure(
        key=LOST[0],
        stage="latency",
        where=LOST[1],
        kind="out of memory",
        reason="the process was killed by signal 9 at 8×128, probably for want of memory",
    )
