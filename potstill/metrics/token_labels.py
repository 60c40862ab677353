"""Metrics of token classification: whole entities, not single words.

The rules are those of CoNLL's `conlleval` as seqeval 1.2.2 reads them by default, which everybody's published numbers
come from: an entity counts when its type, first and last word are all right, and a beginning that is no `B-` still
begins. `L-` and `U-` (BILOU) are letters without a meaning there: an entity ends at them only by a change of type, and
two in a row become one. Rename them to `E-` and `S-` where that matters.
"""

from collections.abc import Sequence
from typing import TypeAlias

from potstill.metrics.classification import ClassRow

Tags: TypeAlias = Sequence[str]
Entity: TypeAlias = tuple[str, int, int]

_OUTSIDE = "O"
# conlleval treats a lone "." as outside, and seqeval 1.2.2 keeps that.
_NOTHING = (_OUTSIDE, ".")
# seqeval's type of a tag without one, such as a bare "B".
_UNTYPED = "_"


def get_entities(tags: Tags) -> list[Entity]:
    """Return (type, first word, last word) of each entity of one text, words counted from 0."""
    found = []
    before, before_type, start = _OUTSIDE, "", 0
    # One `O` more ends an entity that reaches to the last word.
    for place, tag in enumerate((*tags, _OUTSIDE)):
        # Split once: in `B-geo-loc` the type is `geo-loc`.
        letter, kind = tag[:1], tag[1:].split("-", 1)[-1] or _UNTYPED
        changed = kind != before_type
        if _ends(before, letter, changed=changed):
            found.append((before_type, start, place - 1))
        if _starts(before, letter, changed=changed):
            start = place
        before, before_type = letter, kind
    return found


def _ends(before: str, letter: str, *, changed: bool) -> bool:
    """Return whether an entity ends between two words; `changed` tells that their types differ."""
    # IOB1, IOB2 and IOBES are read by the same rules: nobody has to say which scheme the tags are in.
    if before in ("E", "S") or (before in ("B", "I") and letter in ("B", "S", "O")):
        return True
    return changed and before not in _NOTHING


def _starts(before: str, letter: str, *, changed: bool) -> bool:
    """Return whether an entity starts with the second of two words."""
    if letter in ("B", "S") or (letter in ("I", "E") and before in ("O", "E", "S")):
        return True
    # `I-` after another type or after `O` starts an entity, as conlleval has it; seqeval's strict mode would drop it.
    return changed and letter not in _NOTHING


def entity_scores(labels: Sequence[Tags], predictions: Sequence[Tags]) -> dict[str, float]:
    """Return `f1`, `precision` and `recall` of all entities together (micro average), and the words' `accuracy`.

    Each is 0 where there is nothing to divide by. Tags without entities, such as parts of speech, are judged by
    `accuracy` alone.

    Args:
        labels: the tags of each text, such as `["B-LOC", "I-LOC", "O"]`.
        predictions: likewise, one tag for every word.

    Raises:
        ValueError: if a text has more or fewer predictions than labels.
    """
    wanted, given = _entity_sets(labels), _entity_sets(predictions)
    pairs = [pair for row in zip(labels, predictions, strict=True) for pair in zip(*row, strict=True)]
    precision, recall, f1 = _scores(len(wanted & given), wanted=len(wanted), given=len(given))
    return {
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "accuracy": sum(label == prediction for label, prediction in pairs) / max(len(pairs), 1),
    }


def entity_report(labels: Sequence[Tags], predictions: Sequence[Tags]) -> list[ClassRow]:
    """Return precision, recall, F1 and counts of each type of entity, in the order of their names."""
    wanted, given = _entity_sets(labels), _entity_sets(predictions)
    rows = []
    for kind in sorted({entity[1] for entity in wanted | given}):
        ours, theirs = ({entity for entity in found if entity[1] == kind} for found in (wanted, given))
        precision, recall, f1 = _scores(len(ours & theirs), wanted=len(ours), given=len(theirs))
        rows.append(
            ClassRow(label=kind, precision=precision, recall=recall, f1=f1, support=len(ours), predicted=len(theirs))
        )
    return rows


def tag_names(ids: Sequence[Sequence[int]], names: Sequence[str]) -> list[list[str]]:
    """Return the names of each text's tag ids."""
    return [[names[number] for number in row] for row in ids]


def _entity_sets(texts: Sequence[Tags]) -> set[tuple[int, str, int, int]]:
    # The text's number keeps equal entities of different texts apart in one set.
    return {(number, *entity) for number, tags in enumerate(texts) for entity in get_entities(tags)}


def _scores(hits: int, *, wanted: int, given: int) -> tuple[float, float, float]:
    """Return precision, recall and F1."""
    return hits / max(given, 1), hits / max(wanted, 1), 2 * hits / max(wanted + given, 1)
