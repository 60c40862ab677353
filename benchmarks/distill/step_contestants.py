"""Who races in `step.py`, and on what: models, batches, training loops, and how many operations a step needs.

Every training loop calls a gate after each step, which halts it until its turn.
"""

import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizer, Trainer, TrainerCallback
from transformers.utils import logging

from potstill.bench.measure.memory import peak, restart_peak
from potstill.config import DistillConfig
from potstill.distill import create_student
from potstill.distill.batches import LENGTH_COLUMN, EpochRows, make_mlm_collator
from potstill.distill.methods.distilbert import TripleLoss
from potstill.distill.methods.minilmv2 import MiniLMv2
from potstill.distill.trainer import TrainingRun, train
from potstill.distill.training_args import training_arguments

TEMPERATURE, KL, MLM, COS, CLIP = 2.0, 5.0, 2.0, 1.0, 5.0
IGNORED, MASKED_SHARE, EXTRA_SHARE, HEADS, SEED = -100, 0.15, 0.15, 48, 0
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TRIPLES = {
    "floor": None,
    "naive": None,
    "potstill": {},
    "potstill-compiled": {},
    "potstill-extra": {"extra_share": EXTRA_SHARE},
    "potstill-all": {"kl_positions": "all"},
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """What all contestants share."""

    device: str
    batch: int
    length: int
    layers: int
    width: int
    vocabulary: int
    ragged: bool
    threads: int
    steps: int
    warmup: int
    turns: int
    bertdistiller: str | None

    @property
    def half(self):
        return self.device == "cuda"


def narrow_width(size, name):
    return size.width if name.endswith("768") else size.width // 2


# --- the work: models, rows and batches, and what a step multiplies ---


def make_teacher(size):
    torch.manual_seed(SEED)
    config = BertConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=2 * size.layers,
        intermediate_size=4 * size.width,
        architectures=["BertForMaskedLM"],
    )
    return BertForMaskedLM(config).eval()


def make_tokenizer(size):
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    vocabulary |= {f"w{number}": number for number in range(len(SPECIAL), size.vocabulary)}
    return BertTokenizer(tokenizer_object=Tokenizer(WordPiece(vocabulary, unk_token="[UNK]")))


def make_lengths(size):
    count = size.batch * (size.warmup + (size.turns + 1) * size.steps + 2)  # loops fetch a batch ahead
    if not size.ragged:
        return np.full(count, size.length)
    return np.random.default_rng(SEED).integers(size.length // 8, size.length + 1, count)


def make_rows(size):
    generator, (opening, closing) = np.random.default_rng(SEED), (SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]"))
    lengths = make_lengths(size)
    words = [generator.integers(len(SPECIAL), size.vocabulary, length - 2) for length in lengths]
    ids = [[opening, *each.tolist(), closing] for each in words]
    masks = [[1] * length for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": masks, LENGTH_COLUMN: lengths.tolist()})


def make_collate(size, settings, *, mask=True):
    return make_mlm_collator(make_tokenizer(size), seed=SEED, share=MASKED_SHARE, mask=mask, **settings)


def make_loader(size, collate):
    """Return the very batches that our training loop draws, for the loops of others."""
    rows = EpochRows(make_rows(size))
    return DataLoader(
        rows,
        batch_size=size.batch,
        sampler=rows.sampler(batch_size=size.batch, seed=SEED),
        collate_fn=collate,
        pin_memory=size.half,
    )


def step_costs(size, name):
    """Return tokens and floating-point operations of every step, in the order of the batches."""
    sampler = EpochRows(make_rows(size)).sampler(batch_size=size.batch, seed=SEED)
    lengths = make_lengths(size)[list(sampler)].reshape(-1, size.batch)
    return [(int(batch.sum()), operations(size, name, batch)) for batch in lengths]


def operations(size, name, lengths):
    """Count what the products of a step need, twice the multiply-adds; padding counts as far as layers compute it.

    The backward pass takes twice the forward's. What a contestant computes without need does not count.
    """
    padded, words = len(lengths) * int(lengths.max()), size.vocabulary

    def layers(count, width):
        return count * padded * (12 * width**2 + 2 * int(lengths.max()) * width)

    if name in TRIPLES:
        heads = head_positions(name, lengths) * (size.width**2 + size.width * words)
        student = layers(size.layers, size.width) + heads
        taught = 0 if name == "floor" else layers(2 * size.layers, size.width) + heads
        return 2 * (3 * student + taught)
    ours, theirs = narrow_width(size, name), size.width
    pairs = int((lengths**2).sum())
    student = layers(size.layers - 1, ours) + 3 * padded * ours**2 + 3 * pairs * ours
    return 2 * (3 * student + layers(2 * size.layers - 1, theirs) + 3 * padded * theirs**2 + 3 * pairs * theirs)


def head_positions(name, lengths):
    masked = int(np.ceil(np.round(MASKED_SHARE * (lengths - 2), 9)).sum())
    everywhere = len(lengths) * int(lengths.max())
    return {
        "floor": everywhere,
        "naive": everywhere,
        "potstill": masked,
        "potstill-compiled": masked,
        "potstill-extra": masked + round(EXTRA_SHARE * (int(lengths.sum()) - 2 * len(lengths) - masked)),
        "potstill-all": int(lengths.sum()),
    }[name]


# --- the contestants: each calls `gate` after every step ---


class Done(Exception):
    """Ends a training loop from inside."""


class Gate:
    """Halts a training loop after each turn, reports it, and waits for the next one."""

    def __init__(self, connection, size, name):
        self._connection, self._size = connection, size
        self._costs = step_costs(size, name)
        self._step, self._left = 0, size.warmup
        self._started, self._at = (0.0, 0.0), 0

    def __call__(self):
        self._step, self._left = self._step + 1, self._left - 1
        if self._left:
            return
        if self._size.half:
            torch.cuda.synchronize()
        now = (time.perf_counter(), time.process_time())
        tokens, flops = (sum(each) for each in zip(*self._costs[self._at : self._step], strict=True))
        wall, cpu = (end - start for end, start in zip(now, self._started, strict=True))
        gpu = torch.cuda.max_memory_allocated() if self._size.half else None
        report = {"wall": wall, "cpu": cpu, "tokens": tokens, "flops": flops, "peak": peak(), "gpu_peak": gpu}
        self._connection.send(report)
        if not self._connection.recv():
            raise Done
        if self._step == self._size.warmup:  # what building the models took is not the step's
            restart_peak()
            if self._size.half:
                torch.cuda.reset_peak_memory_stats()
        self._at, self._left = self._step, self._size.steps
        self._started = (time.perf_counter(), time.process_time())


class Halt(TrainerCallback):
    """Lets the gate into a plain Trainer."""

    def __init__(self, gate):
        self._gate = gate

    def on_step_end(self, args, state, control, **kwargs):
        self._gate()


def our_config(size, method, folder, *, compiled=False):
    settings = {"preset": "released"} if method == "distilbert" else {}
    config = DistillConfig(
        method=method,
        batch_size=size.batch,
        gradient_accumulation=1,
        max_steps=len(make_lengths(size)) // size.batch,
        max_grad_norm=CLIP,
        dtype="bfloat16" if size.half else "float32",
        eval_every=10**6,
        compile=compiled,
        **settings,
    )
    return config, Path(folder) / "work"


def run_ours(size, gate, folder, *, student, teacher, objective, collate, method, compiled=False):
    """Train as `potstill distill` does."""
    config, work = our_config(size, method, folder, compiled=compiled)
    run = TrainingRun(
        config=config,
        metric="loss",
        maximise=False,
        seed=SEED,
        work_dir=work,
        resume=False,
        stage="bench",
        progress=lambda stage, done, total, note: gate() if done else None,
    )
    rows = make_rows(size)
    train(student, teacher=teacher, objective=objective, train_set=rows, collate=collate, score=lambda _: {}, run=run)


def run_potstill(size, gate, folder, name):
    teacher = make_teacher(size)
    student = create_student(teacher, layers=size.layers, family="distilbert")
    objective = TripleLoss(alpha_kl=KL, alpha_mlm=MLM, alpha_cos=COS, temperature=TEMPERATURE)
    run_ours(
        size,
        gate,
        folder,
        student=student,
        teacher=teacher,
        objective=objective,
        collate=make_collate(size, TRIPLES[name]),
        method="distilbert",
        compiled=name == "potstill-compiled",
    )


def run_minilmv2(size, gate, folder, name):
    teacher, width = make_teacher(size), narrow_width(size, name)
    narrower = {"hidden_size": width, "num_heads": 12} if width != size.width else {}
    student = create_student(teacher, layers=size.layers, **narrower)
    objective = MiniLMv2(teacher_layer=2 * size.layers - 1, student_width=width, teacher_width=size.width, heads=HEADS)
    collate, method = make_collate(size, {}, mask=False), "minilmv2"
    run_ours(size, gate, folder, student=student, teacher=teacher, objective=objective, collate=collate, method=method)


def run_plain(trainer, loader, gate):
    """Run another's Trainer on our batches."""
    trainer.get_train_dataloader = lambda: trainer.accelerator.prepare(loader)
    trainer.add_callback(Halt(gate))
    trainer.train()


def run_floor(size, gate, folder, name):
    """Train the student on masked words alone, by transformers' own model and Trainer."""
    student = create_student(make_teacher(size), layers=size.layers, family="distilbert")
    collate = make_collate(size, {})

    def as_transformers(rows):
        batch = collate(rows)
        return {key: batch[key] for key in ("input_ids", "attention_mask")} | {"labels": batch["masked_labels"]}

    config, work = our_config(size, "distilbert", folder)
    arguments = training_arguments(config, seed=SEED, work_dir=work, num_rows=len(make_lengths(size)))
    loader = make_loader(size, as_transformers)
    run_plain(
        Trainer(model=student, args=arguments, train_dataset=loader.dataset, eval_dataset=loader.dataset), loader, gate
    )


def run_naive(size, gate, folder, name):
    """Take the steps of the original script, after its description in the paper and the defaults it is run with."""
    teacher = make_teacher(size)
    student = create_student(teacher, layers=size.layers, family="distilbert").train().to(size.device)
    teacher.to(size.device, torch.bfloat16 if size.half else torch.float32)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    for batch in make_loader(size, make_collate(size, {})):
        here = {key: value.to(size.device, non_blocking=True) for key, value in batch.items()}
        with torch.autocast(size.device, dtype=torch.bfloat16, enabled=size.half):
            loss = naive_loss(student, teacher, here)
        # It stops on a loss that is no number and keeps sums for its log, reading both at every micro-batch.
        if (loss != loss).data.any() or not np.isfinite(loss.item()):
            raise ArithmeticError("the loss is no number")
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        gate()


def naive_loss(student, teacher, batch):
    """Return the triple loss from whole logits of both models, with everything it keeps for its log."""
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    ours = student(**inputs, output_hidden_states=True)
    with torch.no_grad():
        theirs = teacher(**inputs, output_hidden_states=True)
    real = batch["attention_mask"].bool().unsqueeze(-1)
    everywhere = real.expand_as(ours.logits)
    chosen, target = (
        torch.masked_select(each.logits, everywhere).view(-1, each.logits.shape[-1]) for each in (ours, theirs)
    )
    softened = F.log_softmax(chosen / TEMPERATURE, dim=-1), F.softmax(target / TEMPERATURE, dim=-1)
    kl = F.kl_div(*softened, reduction="batchmean") * TEMPERATURE**2
    labels = batch["masked_labels"].view(-1)
    mlm = F.cross_entropy(ours.logits.view(-1, ours.logits.shape[-1]), labels, ignore_index=IGNORED)
    states = [each.hidden_states[-1] for each in (ours, theirs)]
    everywhere = real.expand_as(states[0])
    states = [torch.masked_select(each, everywhere).view(-1, each.shape[-1]) for each in states]
    cos = F.cosine_embedding_loss(*states, states[0].new_ones(len(states[0])), reduction="mean")
    _ = [part.item() for part in (kl, mlm, cos)]
    return KL * kl + MLM * mlm + COS * cos


def run_bertdistiller(size, gate, folder, name):
    """Run its own student, trainer and loss; its loader is ours, so that the batches are the same."""
    sys.path.insert(0, size.bertdistiller)
    from bertdistiller import MiniLMTrainer, MiniLMTrainingArguments, create_student

    checkpoint = Path(folder) / "teacher"
    make_teacher(size).save_pretrained(checkpoint)
    arguments = MiniLMTrainingArguments(
        str(Path(folder) / "work"),
        per_device_train_batch_size=size.batch,
        learning_rate=6e-4,
        max_steps=len(make_lengths(size)) // size.batch,
        max_grad_norm=CLIP,
        use_cpu=not size.half,
        bf16=size.half,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        teacher_layer=2 * size.layers,
        student_layer=size.layers,
        student_hidden_size=narrow_width(size, name),
        student_attention_heads=12,
        num_relation_heads=HEADS,
    )
    loader = make_loader(size, make_collate(size, {}, mask=False))
    student = create_student(str(checkpoint), arguments, use_teacher_weights=True)
    teacher = BertModel.from_pretrained(checkpoint)
    trainer = MiniLMTrainer(model=student, args=arguments, train_dataset=loader.dataset, teacher_model=teacher)
    run_plain(trainer, loader, gate)


RUNNERS = {
    "floor": run_floor,
    "naive": run_naive,
    "potstill": run_potstill,
    "minilmv2": run_minilmv2,
    "bertdistiller": run_bertdistiller,
}


def multiply(connection, size):
    """Report the speed of a product of large matrices whenever asked."""
    edge, repeats = (8192, 20) if size.half else (2048, 3)
    dtype = torch.bfloat16 if size.half else torch.float32
    one, other = (torch.randn(edge, edge, device=size.device, dtype=dtype) for _ in range(2))
    asked = True
    while asked:
        seconds = []
        for _ in range(repeats):
            wall, cpu = time.perf_counter(), time.process_time()
            torch.mm(one, other)
            if size.half:
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
        fastest = [2 * edge**3 / min(each) for each in zip(*seconds, strict=True)]
        connection.send(dict(zip(("wall", "cpu"), fastest, strict=True)))
        asked = connection.recv()


def compete(connection, size, name):
    """Be one contestant, in a process of its own."""
    torch.set_num_threads(size.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if name == "products":
        multiply(connection, size)
        return
    gate = Gate(connection, size, name)
    with tempfile.TemporaryDirectory() as folder, suppress(Done):
        RUNNERS[name.split("-")[0]](size, gate, folder, name)
