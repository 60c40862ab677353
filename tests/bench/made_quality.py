"""The quality of a made report: answers are drawn, and everything else is counted from them."""

import functools
import math

import numpy as np
import scipy.stats

from potstill.bench import report_schema
from potstill.metrics import retention_by_definition

LABELS = ("negative", "positive")
# How sure each row is of the right answer, beside how hard the texts are: higher scores better.
ABILITY = {"teacher": 1.55, "student": 1.36, "tiny": 1.14}
WORSE = {"fp32": 0.0, "int8": 0.03, "int8-static": 0.12}
# By each one's own tokenizer; the tiny one's vocabulary is smaller.
TOKENS = {"teacher": 25.2, "student": 25.2, "tiny": 30.1}
TEXTS = [
    "it 's a charming and often affecting journey .",
    "unflinchingly bleak and desperate",
    "allows us to hope that nolan is poised to embark a major career as a commercial yet inventive filmmaker .",
    "the acting , costumes , music , cinematography and sound are all astounding given the austere locales .",
    "it 's slow -- very , very slow .",
    "although laced with humor and a few fanciful touches , the film is a refreshingly serious look at young women .",
    "a sometimes tedious film .",
    "or doing last year 's taxes with your ex-wife .",
]
PAIRS = [
    (
        "He said the foodservice pie business doesn 't fit the company 's long-term growth strategy .",
        '" The foodservice pie business does not fit our long-term growth strategy .',
    ),
    (
        "Magnarelli said Racicot hated the Iraqi regime and looked forward to using his long years of training .",
        "His wife said he was 100 percent behind George Bush and looked forward to using his training in the war .",
    ),
    (
        "The dollar was at 116.92 yen against the yen , flat on the session .",
        "The dollar was at 116.78 yen JPY = , virtually flat on the session .",
    ),
]


def accuracy(gold, given):
    """Return the share of right answers."""
    return float(np.mean(gold == given))


def f1(gold, given):
    """Return F1 of label 1."""
    right = np.sum((gold == 1) & (given == 1))
    return float(2 * right / (np.sum(gold == 1) + np.sum(given == 1)))


def pearson(gold, given):
    """Return the correlation."""
    return float(np.corrcoef(gold, given)[0, 1])


# name: kind, metric, examples, share of label 1, what makes it harder, trivial score
SETS = {
    "SST-2": ("single_label_classification", accuracy, 872, 0.51, 0.0, 0.509),
    "MRPC": ("single_label_classification", f1, 408, 0.68, 0.35, 0.812),
    "STS-B": ("regression", pearson, 1500, 0.5, 0.0, 0.0),
    "WNLI": ("single_label_classification", accuracy, 71, 0.44, 1.4, 0.563),
}


@functools.cache
def made_quality(keys):
    """Return one `Quality` per data set for the rows called `keys`; the first is the baseline."""
    return [_quality(name, tuple(keys)) for name in SETS]


def made_glue(qualities, baseline):
    """Return the GLUE rows of every other row over `qualities`."""
    scores = {
        row.key: {q.name: s.value for q in qualities for s in q.scores if s.key == row.key}
        for row in qualities[0].scores
    }
    rows = []
    for key, values in scores.items():
        if key == baseline:
            continue
        found = retention_by_definition(scores[baseline], values)
        ratios = {name: value / scores[baseline][name] for name, value in values.items() if name != "WNLI"}
        rows.append(
            report_schema.GlueRow(
                baseline=baseline,
                candidate=key,
                scores=values,
                baseline_scores=scores[baseline],
                **found,
                worst_task_name=min(ratios, key=lambda name: ratios[name]),
                macro_interval=(found["macro"] - 0.011, found["macro"] + 0.01),
            )
        )
    return rows


def _answers(name, keys):
    """Draw the gold labels and every row's answers (probability of label 1, or the amount)."""
    kind, _, count, share, harder, _ = SETS[name]
    draw = np.random.default_rng(len(name) * 1000 + count)
    if kind == "regression":
        gold = draw.uniform(0, 5, count)
        return gold, {key: gold + draw.normal(0, 0.68 + 0.4 * (1.55 - _ability(key)), count) for key in keys}
    gold = (draw.random(count) < share).astype(int)
    hardness = draw.normal(harder, 1.0, count)
    margins = {key: _ability(key) - hardness + draw.normal(0, 0.25, count) for key in keys}
    return gold, {key: 1 / (1 + np.exp(-2.6 * margin * (2 * gold - 1))) for key, margin in margins.items()}


def _ability(key):
    model, precision = key.partition("@")[0].split("/")
    return ABILITY[model] - WORSE[precision]


def _quality(name, keys):
    kind, metric, count, _, _, trivial = SETS[name]
    gold, answers = _answers(name, keys)
    sure = kind == "regression"
    given = {key: values if sure else (values > 0.5).astype(int) for key, values in answers.items()}
    draws = np.random.default_rng(7).integers(count, size=(200, count))
    resampled = {key: np.array([metric(gold[at], given[key][at]) for at in draws]) for key in keys}
    value = {key: metric(gold, given[key]) for key in keys}
    pairs = [("to_baseline", keys[0], key) for key in keys[1:]]
    pairs += [("like_for_like", _like(key), key) for key in keys if not key.startswith("teacher/")]
    student = next(key for key in keys if key.startswith("student/"))
    return report_schema.Quality(
        name=name,
        data=f"nyu-mll/glue:{name.lower().replace('-', '')}",
        split="validation",
        num_examples=count,
        data_sha256=f"{count:04x}" * 16,
        task="text-classification",
        kind=kind,
        metric=metric.__name__,
        trivial=trivial,
        scores=[
            report_schema.Score(
                key=key,
                value=value[key],
                interval=_ends(resampled[key]),
                scores={metric.__name__: value[key]},
                calibration_error=None if sure else _calibration(gold, answers[key]),
                agreement=None if sure else accuracy(given[keys[0]], given[key]),
                labels=[] if sure else _labels(gold, given[key], 0.95),
                # The lower one, by the intervals of both together.
                worst_label=None if sure else min(_labels(gold, given[key], 0.975), key=lambda row: row.recall),
                tokens_per_text=TOKENS[key.partition("/")[0]],
            )
            for key in keys
        ],
        retention=[_retention(*pair, gold=gold, given=given, value=value, resampled=resampled) for pair in pairs],
        power=_power(count, metric.__name__),
        confusion=[] if sure else [_confusion(keys[0], student, given), _confusion("label", student, given, gold)],
        differences=_differences(name, gold, answers, keys[0], student),
    )


def _labels(gold, given, confidence):
    rows = []
    for number, name in enumerate(LABELS):
        counts = int(np.sum((gold == number) & (given == number))), int(np.sum(gold == number))
        ends = scipy.stats.binomtest(*counts).proportion_ci(confidence, method="wilson")
        recall = counts[0] / counts[1]
        row = report_schema.LabelRecall(label=name, support=counts[1], recall=recall, interval=(ends.low, ends.high))
        rows.append(row)
    return rows


def _label_differences(gold, baseline, candidate):
    """Return the differences with the textbook's interval of paired shares."""
    rows = []
    for number, name in enumerate(LABELS):
        own = gold == number
        steps = (candidate[own] == number).astype(float) - (baseline[own] == number)
        half = 1.96 * steps.std() / np.sqrt(len(steps))
        ends = steps.mean() - half, steps.mean() + half
        rows.append(report_schema.LabelDifference(label=name, difference=steps.mean(), interval=ends))
    return rows


def _like(key):
    return "teacher/" + key.split("/")[1]


def _ends(values):
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))


def _calibration(gold, chance):
    sure = np.maximum(chance, 1 - chance)
    right = (chance > 0.5) == gold
    bins = np.minimum((sure * 15).astype(int), 14)
    return float(sum(abs(right[bins == b].mean() - sure[bins == b].mean()) * np.mean(bins == b) for b in set(bins)))


def _retention(comparison, baseline, candidate, *, gold, given, value, resampled):
    exact = given[candidate].dtype.kind == "i"
    gained = int(np.sum((given[candidate] == gold) & (given[baseline] != gold)))
    lost = int(np.sum((given[candidate] != gold) & (given[baseline] == gold)))
    tail = sum(math.comb(gained + lost, n) for n in range(min(gained, lost) + 1)) / 2 ** (gained + lost)
    differences = resampled[candidate] - resampled[baseline]
    return report_schema.Retention(
        comparison=comparison,
        baseline=baseline,
        candidate=candidate,
        kept=value[candidate] / value[baseline],
        kept_interval=_ends(resampled[candidate] / resampled[baseline]),
        difference=value[candidate] - value[baseline],
        difference_interval=_ends(differences),
        test="McNemar, exact" if exact else "paired bootstrap",
        p_value=min(1.0, 2 * tail) if exact else min(1.0, 2 * float(np.mean(differences > 0)) + 0.01),
        gained=gained if exact else None,
        lost=lost if exact else None,
        labels=_label_differences(gold, given[baseline], given[candidate]) if exact else [],
    )


def _power(count, metric):
    smallest = 1.02 / math.sqrt(count)
    return report_schema.Power(
        num_examples=count,
        smallest_loss=smallest,
        sentence=f"With {count:,} examples, a loss of less than {smallest:.3f} in {metric} is most likely not seen.",
    )


def _confusion(rows, columns, given, gold=None):
    left = given[rows] if gold is None else gold
    counts = [[int(np.sum((left == a) & (given[columns] == b))) for b in (0, 1)] for a in (0, 1)]
    return report_schema.Confusion(rows=rows, columns=columns, labels=list(LABELS), counts=counts)


def _differences(name, gold, answers, baseline, candidate):
    apart = np.abs(answers[baseline] - answers[candidate])
    pool = TEXTS if name == "SST-2" else PAIRS
    words = "{:.2f}".format if SETS[name][0] == "regression" else lambda chance: f"{LABELS[int(chance > 0.5)]}"
    return [
        report_schema.Difference(
            baseline=baseline,
            candidate=candidate,
            text=text,
            label=f"{gold[at]:.2f}" if gold.dtype.kind == "f" else LABELS[gold[at]],
            baseline_answer=words(answers[baseline][at]),
            candidate_answer=words(answers[candidate][at]),
            distance=float(apart[at]),
        )
        for at, text in zip(np.argsort(-apart), pool, strict=False)
    ]
