"""One loaded model as the engine sees it: rows in, each row's outputs out."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from potstill.serve.encoder import Encoder
from potstill.serve.session import OnnxSession, Stop
from potstill.serve.tasks.prepared import Outputs
from potstill.serve.tokenizer import Row

Runs: TypeAlias = Callable[[Sequence[Row], Stop | None], list[Outputs]]
"""Runs rows together and returns each row's outputs; a stop that is set ends it with an error. Safe in any thread."""


def runs_of(encoder: Encoder, session: OnnxSession) -> Runs:
    """Return what runs rows of one encoder on one of its sessions."""

    def run(rows: Sequence[Row], stop: Stop | None) -> list[Outputs]:
        if len(rows) == 1:  # nothing to copy
            feeds = {name: values[None] for name, values in rows[0].items()}
        else:
            feeds = encoder.tokenizer.pad(rows)
        return encoder.unpad(session.run(feeds, stop), rows)

    return run
