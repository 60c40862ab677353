"""`potstill claims`: what the papers claim, and how each claim is defined here."""

import typer


def claims() -> None:
    """Print what the papers claim and how each claim is defined and decided here.

    Example: potstill claims
    """
    from potstill.bench.claims import CLAIMS, GLUE_BERT, GLUE_DISTILBERT
    from potstill.metrics import retention_by_definition

    for claim in CLAIMS:
        typer.echo(f"{claim.id}: {claim.claim} (at least {claim.target:g})")
        typer.echo(f"  here:   {claim.definition}")
        typer.echo(f"  source: {claim.source}\n")
    typer.echo("97 % by every definition, from the DistilBERT paper's own GLUE table:")
    kept = retention_by_definition(GLUE_BERT, GLUE_DISTILBERT)
    names = {
        "macro_with_wnli": "mean with WNLI",
        "macro": "mean without WNLI",
        "mean_of_ratios": "mean of the ratios, without WNLI",
        "worst_task": "worst task, without WNLI",
    }
    for key, name in names.items():
        typer.echo(f"  {kept[key]:6.1%}  {name}")
    typer.echo(
        "\nPASS and FAIL only where the whole 95 % interval is on one side of the target; else INCONCLUSIVE.\n"
        "DistilBERT: Sanh, Debut, Chaumond, Wolf (2019), arXiv:1910.01108."
    )
