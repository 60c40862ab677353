"""`potstill claims`: print the claims, their definitions, and the metrics that claims of one's own can use."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli.options import JsonOption

if TYPE_CHECKING:
    from potstill.bench.claims import Claim

_WIDTH = 98
_EXAMPLE = """\
claims:
  - size
  - id: p95
    claim: p95 at most 10 ms
    measure: latency_p95_ms
    at_most: 10
    where: {load: 1x16}
  - id: int8
    claim: int8 loses at most 0.5 points
    measure: points_lost
    at_most: 0.5
    where: {precision: int8, against: fp32, data: sst2}
  - {id: memory, claim: at most 200 MB resident, measure: resident_mb, at_most: 200}
"""
_DEFINITIONS = {
    "macro_with_wnli": "mean with WNLI",
    "macro": "mean without WNLI",
    "mean_of_ratios": "mean of the ratios, without WNLI",
    "worst_task": "worst task, without WNLI",
}


def claims(
    file: Annotated[
        Path | None,
        typer.Option(
            "--claims", help="YAML with your own claims: they are checked and printed instead.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the claims, and how each is decided.

    Also what claims can measure.

    Example: potstill claims --claims mine.yaml
    """
    from potstill.bench.claims import GLUE_BERT, GLUE_DISTILBERT, load_claims
    from potstill.bench.claims.metrics import METRICS
    from potstill.cli.render import print_json
    from potstill.metrics import retention_by_definition

    if as_json:
        metrics = [
            {"name": metric.name, "unit": metric.unit, "words": metric.words, "where": sorted(metric.fields)}
            for metric in METRICS.values()
        ]
        print_json({"claims": [claim.model_dump(mode="json") for claim in load_claims(file)], "metrics": metrics})
        return
    for claim in load_claims(file):
        _print_claim(claim)
    typer.echo("97 % by every definition, from the DistilBERT paper's own GLUE table:")
    kept = retention_by_definition(GLUE_BERT, GLUE_DISTILBERT)
    for key, name in _DEFINITIONS.items():
        typer.echo(f"  {kept[key]:6.1%}  {name}")
    typer.echo(
        "\nPASS and FAIL only where the whole 95 % interval is on one side of the target, and a ratio of\n"
        "times is outside the noise floor around it; INCONCLUSIVE otherwise, and where the\nmachine was disturbed.\n"
        "DistilBERT: Sanh, Debut, Chaumond, Wolf (2019), arXiv:1910.01108.\n\n"
        "Claims of your own take the place of these: a file for --claims, which names any that\nshall stay, such as\n"
    )
    typer.echo(textwrap.indent(_EXAMPLE, "  "))
    typer.echo("What they can measure (what `where` takes beside model in brackets):")
    for metric in METRICS.values():
        unit = f", {metric.unit}" if metric.unit else ""
        fields = f" [{', '.join(sorted(metric.fields))}]" if metric.fields else ""
        typer.echo(_wrapped(f"{metric.name}{unit}: {metric.words}{fields}", first="  ", rest="      "))


def _print_claim(claim: "Claim") -> None:
    from potstill.bench.claims.metrics import METRICS

    metric = METRICS[claim.measure]
    unit = f" {metric.unit}" if metric.unit not in {"", "share"} else ""
    typer.echo(f"{claim.id}: {claim.claim} ({claim.direction.replace('_', ' ')} {claim.target:g}{unit})")
    typer.echo(_wrapped(claim.definition or metric.words, first="  here:    ", rest="           "))
    typer.echo(f"  measure: {metric.name}{_where(claim)}")
    if claim.source:
        typer.echo(_wrapped(claim.source, first="  source:  ", rest="           "))
    typer.echo()


def _where(claim: "Claim") -> str:
    """Return the conditions of a claim as the end of a line, or an empty string."""
    named = [f"{name} {value}" for name, value in claim.where.model_dump().items() if value is not None]
    return f", {', '.join(named)}" if named else ""


def _wrapped(text: str, *, first: str, rest: str) -> str:
    """Wrap a text, with `first` before its first line and `rest` before the others."""
    text = text.replace(" %", "\u00a0%")  # a no-break space keeps a number and its % on one line
    return textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
