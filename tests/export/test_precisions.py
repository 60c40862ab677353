"""Layers go back to fp32 one by one, the most helpful first, and no further than needed."""

import pytest

from potstill.bundle import QualityLoss
from potstill.errors import ParityError
from potstill.export.precisions import describe_loss, fall_back

LAYERS = ["layer.0", "layer.1", "layer.2", "layer.3"]
HARM = {"layer.0": 0.001, "layer.1": 0.02, "layer.2": 0.03, "layer.3": 0.002}


class Quantiser:
    """Loses the sum of what each quantised layer does; remembers what it was asked."""

    def __init__(self, max_loss):
        self.max_loss, self.asked = max_loss, []

    def __call__(self, kept):
        self.asked.append(kept)
        loss = sum(harm for layer, harm in HARM.items() if layer not in kept)
        holds = loss <= self.max_loss
        verdict = "PASS" if holds else "FAIL"
        return QualityLoss(
            loss=loss, loss_interval=(loss / 2, loss * 2), max_loss=self.max_loss, verdict=verdict, holds=holds
        )


def order():
    """Return the layers as sensitivity has them: the most harmful first."""
    return sorted(LAYERS, key=HARM.__getitem__, reverse=True)


def test_int8_that_holds_measures_nothing_else():
    quantize = Quantiser(0.1)

    def never():
        raise AssertionError

    kept, evidence, steps = fall_back(LAYERS, measure=quantize, order=never, max_fp32_layers=4)
    assert (kept, evidence.verdict, quantize.asked) == (frozenset(), "PASS", [frozenset()])
    assert [(step.fp32_layers, step.added) for step in steps] == [(0, None)]


def test_layers_are_added_until_it_holds_and_the_last_call_made_that_file():
    quantize = Quantiser(0.01)
    kept, evidence, steps = fall_back(LAYERS, measure=quantize, order=order, max_fp32_layers=4)
    assert kept == {"layer.1", "layer.2"} == quantize.asked[-1]
    assert evidence.loss == pytest.approx(0.003)
    assert [step.added for step in steps] == [None, "layer.2", "layer.1"]
    assert [step.verdict for step in steps] == ["FAIL", "FAIL", "PASS"]


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_too_few_layers_fail_with_the_table_of_all_steps(allowed):
    quantize = Quantiser(0.0025)
    with pytest.raises(ParityError) as caught:
        fall_back(LAYERS, measure=quantize, order=order, max_fp32_layers=allowed)
    message = str(caught.value)
    assert f"up to {allowed} of 4 layers" in message
    assert "0.25% allowed" in message
    assert "nothing was published" in message
    table = [line for line in message.splitlines() if line.strip()[:1].isdigit()]
    assert len(table) == allowed + 1 == len(quantize.asked)
    assert table[0].split() == ["0", "5.30%", "2.65%", "to", "10.60%", "FAIL", "-"]


def test_the_table_has_straight_columns():
    with pytest.raises(ParityError) as caught:
        fall_back(LAYERS, measure=Quantiser(0.0025), order=order, max_fp32_layers=2)
    assert str(caught.value).splitlines()[1:5] == [
        "fp32 layers      loss       95 % interval  verdict       added",
        "          0     5.30%     2.65% to 10.60%  FAIL          -",
        "          1     2.30%      1.15% to 4.60%  FAIL          layer.2",
        "          2     0.30%      0.15% to 0.60%  FAIL          layer.1",
    ]


def test_a_refusal_tells_the_score_the_label_or_both():
    loss = QualityLoss(loss=0.023, max_loss=0.01, reason="the recall of a falls")
    assert describe_loss(loss) == "2.30%, where 1.00% is allowed; the recall of a falls"
    assert describe_loss(loss.model_copy(update={"loss": 0.001})) == "the recall of a falls"
    assert describe_loss(loss.model_copy(update={"reason": None})) == "2.30%, where 1.00% is allowed"
