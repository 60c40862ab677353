"""What every part of a report is made of."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Interval = tuple[float, float]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
LoadKind = Literal["grid", "texts", "texts_tokenised"]
"""`grid`: random tokens, every text of one length. `texts`: the data's own texts in their own lengths, tokenised
before. `texts_tokenised`: the same with tokenisation inside the timed region."""


class Part(BaseModel):
    """A part of the report: unknown fields are an error, and nothing changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Load(Part):
    """What one call is given."""

    kind: LoadKind = "grid"
    batch_size: int = Field(default=1, ge=1)
    num_tokens: int | None = Field(default=None, ge=1)
    """Tokens of every text, special ones included; None for texts of their own lengths."""

    def __str__(self) -> str:
        if self.kind == "grid":
            return f"{self.batch_size}×{self.num_tokens}"
        return "own texts" if self.kind == "texts" else "own texts, tokenised"
