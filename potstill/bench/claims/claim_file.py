"""Claims as a YAML file holds them: the package's own, or a user's own in their place.

All faults of a file are told at once, each with the claim's id, and an unknown word is answered with the nearest
known one.
"""

import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from potstill.bench.claims.metrics import METRICS
from potstill.config import Runner
from potstill.errors import RecipeError
from potstill.messages import describe_fault, did_you_mean

Against = Literal["like_for_like", "baseline", "fp32"]
# Strict, because YAML 1.1 reads `yes` as true, which pydantic would take for 1.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_BUILT_IN = resources.files("potstill.bench.claims") / "claims.yaml"
_LOAD = re.compile(r"(?P<batch>[1-9]\d*) ?[x×] ?(?P<tokens>[1-9]\d*|longest)|own texts(, tokenised)?")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Where(_Part):
    """Which of the measured rows a claim is about; what is left out takes the default."""

    model: str | None = None
    """A model's name; None takes every model but the baseline."""
    precision: Literal["fp32", "fp16", "bf16", "int8", "int8-static", "recommended"] | None = None
    """None decides for every precision that was measured of the model; `recommended` for the one to serve, which is
    int8 where the model has it."""
    runner: Runner | None = None
    """None takes the baseline's engine, or all of the model's where it was not measured by that one."""
    load: str | None = None
    """`1x64` (batch x tokens), `1xlongest`, `own texts`, `own texts, tokenised`; None is `1xlongest`."""
    callers: int | None = Field(default=None, ge=1, strict=True)
    """How many ask at once; None takes the most that were measured."""
    data: str | None = None
    """A data set's name; None decides for each, and `score_kept` for the mean over GLUE's tasks."""
    label: str | None = None
    """A label, or a type of entity; None decides for each that occurs."""
    against: Against | None = None
    """`like_for_like`: the baseline model in the same precision and engine (the default). `baseline`: the baseline row.
    `fp32`: the same model's fp32 in the same engine."""


class Claim(_Part):
    """A sentence that a bench decides."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    claim: str = Field(min_length=1)
    """As a manager says it: "p95 at most 10 ms"."""
    measure: str
    """A name of `potstill.bench.claims.metrics.METRICS`."""
    at_least: Number | None = None
    at_most: Number | None = None
    where: Where = Where()
    definition: str = ""
    """Empty takes the measure's own words."""
    source: str = ""

    @property
    def direction(self) -> Literal["at_least", "at_most"]:
        """Return which of the two targets it has."""
        return "at_most" if self.at_least is None else "at_least"

    @property
    def target(self) -> float:
        """Return what is asked for, in the measure's unit."""
        target = self.at_most if self.at_least is None else self.at_least
        assert target is not None
        return target


def load_claims(path: Path | None) -> list[Claim]:
    """Return the package's claims, or those of a user's file in their place.

    A file takes one of the package's by naming it: `claims: [size, {id: p95, ...}]`.

    Raises:
        RecipeError: if the file cannot be read, or a claim in it is not valid; the message holds every fault.
    """
    if path is None:
        return parse_claims(_BUILT_IN.read_text(encoding="utf-8"), origin="claims.yaml")
    try:
        own = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as claims: {error}; name a YAML file") from error
    return parse_claims(own, origin=str(path))


def parse_claims(text: str, *, origin: str) -> list[Claim]:
    """Read claims from YAML; `origin` names the file in errors.

    Raises:
        RecipeError: with every fault, one per line.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not isinstance(values.get("claims"), list) or not values["claims"]:
        raise RecipeError(f"{origin} has no list called claims; `potstill claims` prints one to start from")
    faults = [f"{key}: unknown key{did_you_mean(str(key), ['claims'])}" for key in values if key != "claims"]
    seen: set[str] = set()
    claims = []
    for number, given in enumerate(values["claims"], start=1):
        raw = _built_in(given) if isinstance(given, str) else given
        name = given if isinstance(given, str) else f"claim {number}"
        if isinstance(raw, dict) and raw.get("id"):
            name = str(raw["id"])
        # A string is what `_built_in` has found wrong with the name.
        found = [raw] if isinstance(raw, str) else list(_faults(raw))
        found += ["id: is there twice; give each claim its own"] if name in seen else []
        faults += [f"{name}: {fault}" for fault in found]
        seen.add(name)
        if not found:
            claims.append(Claim.model_validate(raw))
    if faults:
        raise RecipeError(f"{origin} is not valid:\n" + "\n".join(f"  {fault}" for fault in faults))
    return claims


def _built_in(name: str) -> dict[str, Any] | str:
    """Return one of the package's claims as its file holds it, or what is wrong with the name."""
    known = {str(claim["id"]): dict(claim) for claim in yaml.safe_load(_BUILT_IN.read_text(encoding="utf-8"))["claims"]}
    return known.get(name) or f"is none of potstill's own claims{did_you_mean(name, list(known))}"


def normal_load(text: str) -> str | None:
    """Return a load as reports write it (`1×64`, `1×longest`, `own texts`); None if it is no load."""
    found = _LOAD.fullmatch(text.strip())
    if found is None:
        return None
    return found[0] if found["batch"] is None else f"{found['batch']}×{found['tokens']}"


def _faults(raw: Any) -> Iterator[str]:
    """Yield what is wrong with one claim: first field by field, then where fields do not go together."""
    try:
        Claim.model_validate(raw)
    except ValidationError as error:
        yield from map(_describe, error.errors())
    if isinstance(raw, dict):
        if raw.get("id") == "all":
            yield "id: 'all' stands for every claim (--require all); take another"
        yield from _combination_faults(raw, raw.get("where") or {})


def _describe(fault: ErrorDetails) -> str:
    if fault["type"] == "literal_error":
        *above, last = map(str, fault["loc"])
        annotation = (Where if above else Claim).model_fields[last].annotation
        # `Literal[...] | None`: the members of the union, then the words of the literal.
        known = [word for kind in get_args(annotation) for word in get_args(kind)]
        where = ".".join((*above, last))
        return f"{where}: {fault['input']!r} is unknown{did_you_mean(str(fault['input']), known)}"
    return describe_fault(fault, Claim)


def _combination_faults(raw: Mapping[str, Any], where: Any) -> Iterator[str]:
    if (raw.get("at_least") is None) == (raw.get("at_most") is None):
        yield "give either at_least or at_most, in the measure's unit"
    if not isinstance(where, dict):
        return
    load, metric = where.get("load"), METRICS.get(str(raw.get("measure")))
    if isinstance(load, str) and normal_load(load) is None:
        yield f"where.load: {load!r} is no load; write 1x64 (batch x tokens), 1xlongest, or own texts"
    if metric is None:
        if isinstance(raw.get("measure"), str):
            yield f"measure: {raw['measure']!r} is unknown{did_you_mean(raw['measure'], list(METRICS))}"
        return
    for field in where:
        if field in Where.model_fields and field != "model" and field not in metric.fields:
            taken = ", ".join(["model", *sorted(metric.fields)])
            yield f"where.{field}: {metric.name} does not depend on it; it takes {taken}"
    if where.get("against") == "fp32" == where.get("precision"):
        yield "where.against: fp32 against fp32 compares nothing; leave precision out, or name another"
    targets = [raw.get(key) for key in ("at_least", "at_most")]
    if metric.floor == "load" and any(isinstance(target, int | float) and target <= 0 for target in targets):
        yield "the target of a ratio must be above 0"
