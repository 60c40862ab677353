"""What a report adds to the model card of a bundle: its scores, and how the claims about it were decided."""

from potstill.bench.report.formatting import clean
from potstill.bench.report_schema import Contestant, Report
from potstill.bundle import Manifest
from potstill.card import Result, model_card


def card_with_report(manifest: Manifest, report: Report, *, name: str) -> str | None:
    """Write the card of a bundle with what a report measured; None if it measured no file of the bundle.

    Files are recognised by their SHA-256, whatever they were called.
    """
    own = {model.file: manifest.files[model.file].sha256 for model in manifest.models.values()}
    precisions = {own[model.file]: precision for precision, model in manifest.models.items()}

    def precision_of(row: Contestant) -> str | None:
        return next((precisions[digest] for digest in row.sha256.values() if digest in precisions), None)

    rows = {row.key: found for row in report.contestants if (found := precision_of(row)) is not None}
    if not rows:
        return None
    results: dict[tuple[str, str], Result] = {}
    for quality in report.quality:
        for score in quality.scores:
            # Of several engines the first: their scores are the same but for rounding.
            if score.key in rows and (rows[score.key], quality.data) not in results:
                results[rows[score.key], quality.data] = Result(
                    precision=rows[score.key],
                    data=quality.data,
                    split=quality.split,
                    metric=quality.metric,
                    value=score.value,
                )
    models = {row.model for row in report.contestants if row.key in rows}
    findings = [
        f"{clean(claim.claim)}: {claim.verdict}. {clean(claim.summary)}"
        for claim in report.claims
        if claim.subject in rows or claim.subject in models
    ]
    return model_card(manifest, name=name, results=list(results.values()), findings=findings)
