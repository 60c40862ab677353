"""Give the layers that int8 hurts most back to fp32, until the file holds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from potstill.bundle import QualityLoss
from potstill.errors import ParityError


def sensitivity(
    layers: Sequence[str], error_without: Callable[[frozenset[str]], float]
) -> list[tuple[str, float]]:  # fmt: skip
    """Return each layer with the error that is left when it alone stays fp32, the most helpful layer first.

    Args:
        layers: names, as the quantiser takes them.
        error_without: quantises all but these layers and returns the error against fp32, such as the mean KL.
    """
    return sorted(((layer, error_without(frozenset({layer}))) for layer in layers), key=lambda pair: pair[1])


def fall_back(
    layers: Sequence[str],
    *,
    quantize_and_judge: Callable[[frozenset[str]], QualityLoss],
    order: Callable[[], Sequence[str]],
    max_fp32_layers: int,
) -> tuple[frozenset[str], QualityLoss, list[dict[str, Any]]]:
    """Return the fewest layers of `order` that must stay fp32 for the file to hold, the evidence, and all steps.

    Args:
        layers: all that could be quantised.
        quantize_and_judge: quantises all but these layers and returns the evidence of
            `potstill.evaluation.decision.compare_outputs`. The last call made the file that holds.
        order: returns layers, the most helpful first; called once, and only if int8 everywhere does not hold, because
            measuring it quantises once per layer.
        max_fp32_layers: how many may stay fp32.

    Returns:
        The layers that stay fp32, their evidence, and one row per step: `fp32_layers`, `added`, `loss`,
        `loss_interval`, `verdict`.

    Raises:
        ParityError: with the table of all steps, if it holds with none of them.
    """
    kept: frozenset[str] = frozenset()
    evidence = quantize_and_judge(kept)
    steps = [_step(kept, None, evidence)]
    candidates = () if evidence.holds or max_fp32_layers < 1 else order()[:max_fp32_layers]
    for layer in candidates:
        kept |= {layer}
        evidence = quantize_and_judge(kept)
        steps.append(_step(kept, layer, evidence))
        if evidence.holds:
            break
    if not evidence.holds:
        raise ParityError(
            f"int8 loses more than the {evidence.max_loss:.2%} allowed, with up to {len(kept)} of {len(layers)} "
            f"layers in fp32:\n{show_steps(steps)}\nAllow more with --max-fp32-layers or --max-loss, or calibrate on "
            "texts that are more like the task's; nothing was published"
        )
    return kept, evidence, steps


def show_steps(steps: Sequence[Mapping[str, Any]]) -> str:
    """Return the steps of `fall_back` as a table for people."""
    lines = [f"{'fp32 layers':>11}  {'loss':>8}  {'95 % interval':>18}  {'verdict':12}  added"]
    for step in steps:
        low, high = step["loss_interval"]
        lines.append(
            f"{step['fp32_layers']:>11}  {step['loss']:>8.2%}  {f'{low:.2%} to {high:.2%}':>18}  "
            f"{step['verdict']:12}  {step['added'] or '-'}"
        )
    return "\n".join(lines)


def _step(kept: frozenset[str], added: str | None, evidence: QualityLoss) -> dict[str, Any]:
    return {
        "fp32_layers": len(kept),
        "added": added,
        "loss": evidence.loss,
        "loss_interval": evidence.loss_interval,
        "verdict": evidence.verdict,
    }
