"""How large a model is: parameters of its embeddings, operations per token, and bytes after compression.

Sizes come from a model's `config.json` as transformers writes it, which a bundle holds too. They are None for a family
that is not listed here, or one whose configuration lacks a size.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from potstill.checkpoint import usable_positions
from potstill.machine import available_cores

Config = Mapping[str, Any]

LENGTHS = (1, 8, 16, 32, 64, 128, 256, 512)
"""The lengths in tokens that a report tells the operations of."""

# As BERT: four square products for attention and two for the feed-forward part.
_LIKE_BERT = frozenset(
    {
        "bert",
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "roberta-prelayernorm",
        "data2vec-text",
        "electra",
        "ernie",
        "megatron-bert",
        "mpnet",
        "distilbert",
        "albert",
        "deberta",
        "deberta-v2",
    }
)
_RELATIVE = frozenset({"deberta", "deberta-v2"})
# Of its scores by distance: content to position, and position to content.
_KINDS = frozenset({"c2p", "p2c"})
# DistilBERT calls its sizes by other names.
_NAMES = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "intermediate_size": "hidden_dim"}
_LEVEL = 6  # zlib's default, which a container's layers and most downloads are packed with
_PIECE = 2**20
# So many pieces stand for a large file.
_SAMPLED = 16


@dataclass(frozen=True, slots=True)
class _OperationCounts:
    """What the operations of an encoder come from."""

    once: int
    """Weights that each token is multiplied with before the layers."""
    per_layer: int
    """Weights that each token is multiplied with in each layer."""
    for_keys: int
    """Those of them that make keys and values, and what these need."""
    layers: int
    width: int
    """Of queries, keys and values, all heads together."""


def count_flops_per_token(
    config: Config, lengths: Sequence[int] = LENGTHS, *, first_token_only: bool = False
) -> dict[int, float] | None:
    """Return the floating-point operations of one token, by the length of its text in tokens.

    2 for every weight of every matrix product, and for attention 4 × length × width per layer: 2 for the scores and 2
    for the mean (Kaplan et al. 2020, arXiv:2001.08361, table 1). Task heads, lookups and norms are left out.
    Attention that looks at a window only is counted whole, since these engines compute it whole and mask it.
    DeBERTa's two further scores per pair of tokens are counted; its projected positions are not, which are the same
    for all texts.

    Args:
        config: the configuration.
        lengths: those above the model's positions are left out.
        first_token_only: whether the last layer is computed for the first token of a text alone; what is done once per
            text is then spread over its tokens.
    """
    counts, limit = _count_operations(config), usable_positions(config)
    if counts is None:
        return None
    found = {}
    for length in lengths:
        if limit is None or length <= limit:
            # Twice: once for the scores, once for the mean of the values.
            keys = 2 * length + _relative_keys(config, length)
            per_layer = 2 * counts.per_layer + 2 * counts.width * keys
            last: float = per_layer
            if first_token_only:
                # Every token is a key, for DeBERTa's position-to-content scores too.
                always = 2 * counts.for_keys + 2 * counts.width * _relative_keys(config, length, kinds={"p2c"})
                last = always + (per_layer - always) / length
            found[length] = 2.0 * counts.once + (counts.layers - 1) * per_layer + last
    return found


def embedding_parameters(config: Config) -> int | None:
    """Return how many numbers the tables of words, positions and token types hold."""
    family, vocabulary, hidden = config.get("model_type"), config.get("vocab_size"), _size(config, "hidden_size")
    if not vocabulary or not hidden:
        return None
    if family == "modernbert":  # positions are turned into its attention
        return int(vocabulary * hidden)
    places, kinds = config.get("max_position_embeddings"), config.get("type_vocab_size", 0)
    if (family not in _LIKE_BERT and family != "mobilebert") or not places:
        return None
    width = config.get("embedding_size") or hidden
    if family == "mobilebert":
        # Only MobileBERT's words are narrow; positions and token types have the full width.
        return int(vocabulary * width + (places + kinds) * hidden)
    if family in {"distilbert", "mpnet"}:  # which have no token types, whatever their configuration says
        kinds = 0
    # Such a DeBERTa knows relative positions alone and has no table of absolute ones.
    if family in _RELATIVE and not config.get("position_biased_input", True):
        places = 0
    return int((vocabulary + places + kinds) * width)


def compressed_bytes(files: Iterable[Path]) -> int:
    """Return about how many bytes the files have together after zlib at its default level.

    Of a large file 16 pieces of 1 MiB stand for the whole, evenly spread: a core packs 6 to 30 MB per second, weights
    that were rounded to 16 bits slowest. Of MiniLM's and BERT-base's files that was within 1 % of packing them whole.
    """
    total = 0
    for file in files:
        size = file.stat().st_size
        starts = range(0, size, _PIECE)
        if len(starts) > _SAMPLED:
            # The last piece is a shorter one; whole ones stand for all.
            starts = range(0, size - _PIECE + 1, max(1, (size - _PIECE) // (_SAMPLED - 1)))[:_SAMPLED]
        with ThreadPoolExecutor(available_cores()) as pool:  # zlib lets other threads run
            packed = sum(pool.map(partial(_packed_bytes, file), starts))
        read = min(size, len(starts) * _PIECE)
        total += round(packed * size / read) if read else 0
    return total


def _packed_bytes(file: Path, start: int) -> int:
    with file.open("rb") as stream:
        stream.seek(start)
        return len(zlib.compress(stream.read(_PIECE), _LEVEL))


def _count_operations(config: Config) -> _OperationCounts | None:
    family = config.get("model_type")
    layers, hidden = _size(config, "num_hidden_layers"), _size(config, "hidden_size")
    inner = _size(config, "intermediate_size")
    if not (layers and hidden and inner) or _is_unusual(config):
        return None
    if family == "mobilebert":
        return _mobilebert(config, layers=layers, hidden=hidden, inner=inner)
    if family == "modernbert":  # one half of the feed-forward part gates the other
        square = hidden * hidden
        # One matrix makes queries, keys and values, and is not taken apart.
        return _OperationCounts(0, 4 * square + 3 * hidden * inner, 3 * square, layers, hidden)
    if family not in _LIKE_BERT:
        return None
    width = config.get("embedding_size") or hidden
    # ALBERT projects always, ELECTRA and DeBERTa only where the widths differ.
    once = width * hidden if family == "albert" or width != hidden else 0
    square = hidden * hidden
    layers *= int(config.get("inner_group_num", 1))
    return _OperationCounts(once, 4 * square + 2 * hidden * inner, 2 * square, layers, hidden)


def _mobilebert(config: Config, *, layers: int, hidden: int, inner: int) -> _OperationCounts | None:
    """Return the counts with bottlenecks (Sun et al. 2020, arXiv:2004.02984, table 1)."""
    embedded, narrow = config.get("embedding_size"), config.get("intra_bottleneck_size")
    usual = config.get("use_bottleneck", True) and config.get("key_query_shared_bottleneck", True)
    if not embedded or not narrow or not usual or config.get("use_bottleneck_attention", False):
        return None
    stacks = config.get("num_feedforward_networks", 4)
    # `key_query_shared_bottleneck` lets queries and keys share one projection to the narrow width.
    bottlenecks = 3 * hidden * narrow  # in, in for queries and keys, out
    attention = 3 * narrow * narrow + hidden * narrow  # values come from the full width
    # A word's vector is joined with those of its neighbours on both sides.
    words = 3 if config.get("trigram_input", True) else 1
    return _OperationCounts(
        once=words * embedded * hidden,
        per_layer=bottlenecks + attention + stacks * 2 * narrow * inner,
        # The bottleneck of queries and keys, the keys, and the values.
        for_keys=hidden * narrow + narrow * narrow + hidden * narrow,
        layers=layers,
        width=narrow,
    )


def _relative_keys(config: Config, length: int, *, kinds: Set[str] = _KINDS) -> int:
    """Return how many keys DeBERTa's queries, and queries its keys, meet beside the tokens themselves."""
    if config.get("model_type") not in _RELATIVE or not config.get("relative_attention", False):
        return 0
    span = config.get("max_relative_positions", -1)
    span = span if span > 0 else config["max_position_embeddings"]
    if config["model_type"] == "deberta":
        # transformers' v1 cuts its table of relative positions to the text; its v2 multiplies with all of it.
        span = min(span, length)
    elif config.get("position_buckets", -1) > 0:
        span = config["position_buckets"]
    used = config.get("pos_att_type") or []
    # Microsoft's own configurations write the list as one string: `c2p|p2c`.
    used = used.split("|") if isinstance(used, str) else used
    return int(2 * span * len(kinds & set(used)))


def _is_unusual(config: Config) -> bool:
    """Tell whether a model has products that are not counted here."""
    return bool(config.get("talking_head") or config.get("conv_kernel_size") or config.get("add_cross_attention"))


def _size(config: Config, name: str) -> int | None:
    value = config.get(name, config.get(_NAMES[name]))
    return int(value) if value else None
