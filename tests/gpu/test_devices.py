"""The same answers on a GPU as on the CPU: losses, gradients, training, and every engine that can use one.

Each test runs on the CPU too, so that it is known to be a sound test before it meets a GPU. The GPU's half is marked
`gpu`: `pytest -m gpu` runs it, and fails where there is no GPU.
"""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from potstill.bench.runners import open_runner
from potstill.config import build_recipe
from potstill.distill import distill
from potstill.distill.methods.distilbert import IGNORED, Head, vocabulary_loss
from potstill.distill.methods.minilmv2 import relation_loss_sum

# float32 sums of some ten thousand terms in another order.
FLOAT32 = {"rtol": 2e-4, "atol": 2e-4}
# Logits of a small model: float32 in another order; 11 bits; 8 bits.
LOGITS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 2e-1}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda":
        assert torch.cuda.is_available(), "torch finds no GPU here, and these tests were asked for"
    return request.param


def normal(*shape, seed, device):
    # Drawn on the CPU, so that both devices get the same numbers.
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def test_the_vocabulary_loss_equals_the_naive_one(device):
    student = Head(*(normal(*size, seed=1, device=device).requires_grad_() for size in ((96, 32), (4000, 32), (4000,))))
    teacher = Head(*(normal(*size, seed=2, device=device) for size in ((96, 48), (4000, 48), (4000,))))
    labels = torch.arange(96, device=device)
    labels[::3] = IGNORED
    loss, _, _ = vocabulary_loss(student, teacher, labels, temperature=2.0, kl_scale=0.3, mlm_scale=0.7, chunk=40)
    ours, theirs = F.linear(*student), F.linear(*teacher)
    softened = [F.log_softmax(logits / 2, -1) for logits in (ours, theirs)]
    expected = 0.3 * 4 * F.kl_div(*softened, reduction="sum", log_target=True)
    expected = expected + 0.7 * F.cross_entropy(ours, labels, reduction="sum", ignore_index=IGNORED)
    torch.testing.assert_close(loss, expected, **FLOAT32)
    found = torch.autograd.grad(loss, student)
    torch.testing.assert_close(found, torch.autograd.grad(expected, student), **FLOAT32)


def test_the_relation_loss_equals_the_naive_one(device):
    student = normal(3, 20, 16, seed=1, device=device).requires_grad_()
    teacher = normal(3, 20, 24, seed=2, device=device)
    mask = (torch.arange(20) < torch.tensor([[20], [13], [4]])).long().to(device)
    loss = relation_loss_sum(student, teacher, 4, mask)
    shares = []
    for states in (student, teacher):
        split = states.unflatten(-1, (4, -1)).transpose(1, 2)
        scores = split @ split.mT / split.shape[-1] ** 0.5
        shares.append(F.log_softmax(scores.masked_fill((mask == 0)[:, None, None, :], -1e30), -1))
    expected = F.kl_div(*shares, reduction="none", log_target=True).sum(-1)
    expected = (expected * mask[:, None]).sum() / 4
    torch.testing.assert_close(loss, expected, **FLOAT32)
    found = torch.autograd.grad(loss, student)
    torch.testing.assert_close(found, torch.autograd.grad(expected, student), **FLOAT32)


@pytest.mark.parametrize("method", ["task", "tinybert"])
def test_a_student_learns(device, method, tiny_teacher, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0" if device == "cuda" else "")
    settings = {
        "max_length": 32,
        "student.layers": 2,
        "distill.method": method,
        "distill.max_steps": 20,
        "distill.learning_rate": 1e-3,
        "distill.log_every": 5,
    }
    values = {"teacher": {"model": str(tiny_teacher)}, "data": {"name": str(tiny_data)}}
    distill(build_recipe(values, overrides=list(settings.items())), tmp_path / "student")
    report = json.loads((tmp_path / "student" / "distill.json").read_text())
    losses = [row["loss"] for row in report["history"] if "loss" in row]
    assert len(losses) == 4
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("engine", "precision"), [("torch", "fp32"), ("torch", "fp16"), ("torch", "bf16"), ("onnxruntime", "fp32")]
)
def test_an_engine_answers_as_torch_does_on_the_cpu(device, engine, precision, tiny_teacher, tiny_bundle):
    command = {
        "threads": 1,
        "task": "text-classification",
        "problem_type": "single_label_classification",
        "max_length": 64,
        "seed": 0,
        "spinning": False,
    }
    folder = tiny_teacher if engine == "torch" else tiny_bundle
    here = open_runner(command | {"runner": f"{engine}-{device}", "folder": str(folder), "precision": precision})
    plain = open_runner(command | {"runner": "torch-cpu", "folder": str(tiny_teacher), "precision": "fp32"})
    assert here.device.startswith(device)
    feeds = plain.tokenizer.encode(["we saw the tide", "a peak", "the gull and the salt and a wave that day"])
    found, expected = here.run(feeds)["logits"], plain.run(feeds)["logits"]
    np.testing.assert_allclose(found, expected, atol=LOGITS[precision])
