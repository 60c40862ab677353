"""The losses alone, forward and backward: ours against the naive triple loss and against `bertdistiller`.

    PYTHONPATH=FOLDER python benchmarks/distill/losses.py --out result.json

FOLDER holds `bertdistiller` (`pip install --no-deps --target FOLDER bertdistiller==0.1.2`); without it that half is
left out. Same inputs for all, in alternation, one thread; times are medians of CPU seconds, which other work on the
machine disturbs least, with wall seconds beside them. Peak memory is what the resident set grows by above the inputs,
each in a fresh process, gradients included.
"""

import argparse
import json
import multiprocessing
import re
import statistics
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from potstill import machine
from potstill.distill.methods.distilbert import IGNORED, Head, vocabulary_loss
from potstill.distill.methods.minilmv2 import relation_loss_sum

BATCH, LENGTH, WIDTH, VOCABULARY = 8, 128, 768, 30522
MASKED_SHARE, TEMPERATURE, HEADS = 0.15, 2.0, 48
MEGABYTE = 1e6


def triple_inputs():
    """Hidden states after the heads' transforms, decoders, and labels of BATCH x LENGTH tokens."""
    generator = torch.Generator().manual_seed(0)
    count = BATCH * LENGTH

    def head(grad):
        hidden = torch.randn(count, WIDTH, generator=generator)
        weight = torch.randn(VOCABULARY, WIDTH, generator=generator).mul_(0.05)
        return Head(*(tensor.requires_grad_(grad) for tensor in (hidden, weight, torch.zeros(VOCABULARY))))

    labels = torch.full((count,), IGNORED)
    masked = torch.randperm(count, generator=generator)[: round(MASKED_SHARE * count)].sort().values
    labels[masked] = torch.randint(0, VOCABULARY, (len(masked),), generator=generator)
    return head(True), head(False), labels


def naive_triple(student, teacher, labels):
    """As the original script: whole logits of both, selected by a mask, softmax of each, then labels."""
    ours = F.linear(*student).view(BATCH, LENGTH, -1)
    with torch.no_grad():
        theirs = F.linear(*teacher).view(BATCH, LENGTH, -1)
    mask = torch.ones(BATCH, LENGTH, 1, dtype=torch.bool).expand_as(ours)
    chosen, target = (torch.masked_select(each, mask).view(-1, VOCABULARY) for each in (ours, theirs))
    kl = F.kl_div(
        F.log_softmax(chosen / TEMPERATURE, dim=-1), F.softmax(target / TEMPERATURE, dim=-1), reduction="batchmean"
    )
    mlm = F.cross_entropy(ours.view(-1, VOCABULARY), labels, ignore_index=IGNORED)
    return 5 * kl * TEMPERATURE**2 + 2 * mlm


def ours_at(student, teacher, labels, positions):
    scales = {"kl_scale": 5 / len(positions), "mlm_scale": 2 / int((labels != IGNORED).sum())}
    chosen, target = (Head(each.hidden[positions], each.weight, each.bias) for each in (student, teacher))
    return vocabulary_loss(chosen, target, labels[positions], temperature=TEMPERATURE, **scales)[0]


def ours_all(student, teacher, labels):
    positions = (labels == IGNORED).to(torch.int8).argsort(stable=True)  # masked ones first, as the collator gives them
    return ours_at(student, teacher, labels, positions)


def ours_masked(student, teacher, labels):
    return ours_at(student, teacher, labels, (labels != IGNORED).nonzero().squeeze(1))


TRIPLES = {"naive": naive_triple, "ours_all": ours_all, "ours_masked": ours_masked}


def relation_inputs(batch, width):
    generator = torch.Generator().manual_seed(0)
    student = [torch.randn(batch, LENGTH, width, generator=generator).requires_grad_() for _ in range(3)]
    teacher = [torch.randn(batch, LENGTH, WIDTH, generator=generator) for _ in range(3)]
    return student, teacher, torch.ones(batch, LENGTH, dtype=torch.long)


def ours_relations(student, teacher, mask):
    parts = [relation_loss_sum(own, other, HEADS, mask) for own, other in zip(student, teacher, strict=True)]
    return sum(parts) / mask.sum()


class Given(nn.Module):
    """A model whose projections are already there, so that only the loss is timed."""

    def __init__(self, states):
        super().__init__()
        self.config = SimpleNamespace(hidden_size=states[0].shape[-1])
        given = [lambda _, state=state: state for state in states]
        attention = SimpleNamespace(query=given[0], key=given[1], value=given[2])
        self.encoder = SimpleNamespace(layer=[SimpleNamespace(attention=SimpleNamespace(self=attention))])

    def forward(self, **_):
        return SimpleNamespace(hidden_states=(None,))


def bertdistiller_relations(student, teacher, mask):
    """Its trainer's own compute_loss, on given projections."""
    from bertdistiller.distillation.minilm.trainer import BertAttentionExtractor, MiniLMTrainer

    trainer = MiniLMTrainer.__new__(MiniLMTrainer)
    relations = {(part, part): 1.0 for part in (1, 2, 3)}
    trainer.args = SimpleNamespace(teacher_layer=1, student_layer=1, num_relation_heads=HEADS, relations=relations)
    trainer.teacher, trainer.attention_extractor = Given(teacher), BertAttentionExtractor()
    trainer.kl_loss = nn.KLDivLoss(reduction="sum")
    return trainer.compute_loss(Given(student), {"attention_mask": mask})


RELATIONS = {"bertdistiller": bertdistiller_relations, "ours": ours_relations}


def timed(ways, inputs, leaves, *, rounds):
    """Return CPU and wall seconds of forward and backward by way, and the last losses."""
    seconds = {name: {"cpu": [], "wall": []} for name in ways}
    values = {}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            for leaf in leaves:
                leaf.grad = None
            wall, cpu = time.perf_counter(), time.process_time()
            loss = way(*inputs)
            loss.backward()
            if turn:  # the first is to warm up
                seconds[name]["cpu"].append(time.process_time() - cpu)
                seconds[name]["wall"].append(time.perf_counter() - wall)
            values[name] = loss.item()
    return seconds, values


def summary(seconds, values, reference):
    medians = {name: {kind: statistics.median(each) for kind, each in kinds.items()} for name, kinds in seconds.items()}
    return {
        "loss": values,
        "seconds": medians,
        "times_faster": {
            name: {kind: medians[reference][kind] / value for kind, value in kinds.items()}
            for name, kinds in medians.items()
            if name != reference
        },
    }


def peak_kilobytes():
    """Read the highest resident set of this process; getrusage's is inherited from the parent."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def peak_in_child(connection, kind, name, size):
    torch.set_num_threads(1)
    inputs = triple_inputs() if kind == "triple" else relation_inputs(*size)
    way = (TRIPLES if kind == "triple" else RELATIONS)[name]
    small = relation_inputs(1, 384)
    ours_relations(*small).backward()  # loads what the first backward loads
    if name == "bertdistiller":
        bertdistiller_relations(*small).backward()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the inputs
    before = peak_kilobytes()
    way(*inputs).backward()
    connection.send((peak_kilobytes() - before) * 1024 / MEGABYTE)


def peak_megabytes(kind, name, size=()):
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=peak_in_child, args=(sender, kind, name, size))
    child.start()
    peak = receiver.recv()
    child.join()
    return peak


def triple(rounds):
    inputs = triple_inputs()
    result = summary(*timed(TRIPLES, inputs, inputs[0], rounds=rounds), "naive")
    peaks = {name: peak_megabytes("triple", name) for name in TRIPLES}
    shares = {name: peak / peaks["naive"] for name, peak in peaks.items()}
    return result | {"peak_megabytes": peaks, "share_of_naive_peak": shares}


def relations(batch, width, rounds):
    inputs = relation_inputs(batch, width)
    result = summary(*timed(RELATIONS, inputs, inputs[0], rounds=rounds), "bertdistiller")
    peaks = {name: peak_megabytes("relations", name, (batch, width)) for name in RELATIONS}
    return {"batch": batch, "student_width": width, **result, "peak_megabytes": peaks}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 32])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    result = {"date": date.today().isoformat(), "machine": machine.describe(), "threads": 1, "rounds": asked.rounds}
    result["triple"] = {"batch": BATCH, "tokens": LENGTH, "width": WIDTH, "vocabulary": VOCABULARY}
    result["triple"] |= triple(asked.rounds)
    print(json.dumps(result["triple"]), flush=True)
    try:
        import bertdistiller  # noqa: F401
    except ImportError:
        print("bertdistiller is not on the path: its comparison is left out")
    else:
        result["relations"] = []
        for batch in asked.batches:
            for width in (384, 768):
                rounds = asked.rounds if batch < 16 else max(1, asked.rounds // 2)
                result["relations"].append(relations(batch, width, rounds))
                print(json.dumps(result["relations"][-1]), flush=True)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
