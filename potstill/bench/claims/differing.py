"""In what two reports differ before anything was measured: machine, software, files, data."""

from collections.abc import Mapping

from potstill.bench import report_schema

_MACHINE = ("cpu", "cores", "cpu_quota", "threads", "spinning", "governor", "turbo", "smt")
_UNKNOWN_IS_FINE = ("governor", "turbo", "smt")


def other_machine(old: report_schema.Report, new: report_schema.Report) -> list[str]:
    """Return what makes times incomparable, each as `threads: 2, now 4`; what a system does not tell is left out."""
    found = []
    for field in _MACHINE:
        before, after = getattr(old.environment, field), getattr(new.environment, field)
        unknown = field in _UNKNOWN_IS_FINE and None in (before, after)
        if before != after and not unknown:
            found.append(f"{field}: {before}, now {after}")
    lost = sorted(set(old.environment.cpu_features) ^ set(new.environment.cpu_features))
    return found + ([f"cpu_features: {', '.join(lost)} on one alone"] if lost else [])


def other_software(old: report_schema.Report, new: report_schema.Report) -> list[str]:
    """Return the packages, the Python and the system that are not the same."""
    before, after = (
        dict(report.environment.packages) | {"Python": report.environment.python, "system": report.environment.os}
        for report in (old, new)
    )
    return [
        f"{name} {before.get(name, 'not installed')}, now {after.get(name, 'not installed')}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def other_files(old: report_schema.Report, new: report_schema.Report) -> list[str]:
    """Return the rows that both have, `KEY (FILE, FILE)`, with the files whose SHA-256 is another."""
    found = []
    for row in old.contestants:
        again = new.contestant(row.key)
        files = differing_files(row.sha256, again.sha256) if again is not None else []
        if files:
            found.append(f"{row.key} ({', '.join(files)})")
    return found


def differing_files(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return the names that have another SHA-256, or are on one side alone."""
    return [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]


def other_data(old: report_schema.Report, new: report_schema.Report) -> list[str]:
    """Return the names of the data sets that both have and whose examples are not the same."""
    after = {quality.name: quality.data_sha256 for quality in new.quality}
    return [row.name for row in old.quality if after.get(row.name, row.data_sha256) != row.data_sha256]
