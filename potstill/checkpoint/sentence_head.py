"""From a text's token vectors to its one vector, in torch: the rule of sentence-transformers, for every command.

B texts, T tokens, H the width of a token's vector, E that of a text's.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from potstill.checkpoint.loading import Checkpoint, load_checkpoint
from potstill.checkpoint.sentence_transformers import (
    MODULES_FILE,
    POOLING_FLAGS,
    PROMPTS_FILE,
    WEIGHT_FILES,
    Dense,
    Layer,
    LayerNorm,
    SentenceTransformers,
    read_sentence_transformers,
)
from potstill.errors import CheckpointError
from potstill.tasks import FEATURE_EXTRACTION

# As sentence-transformers' Pooling and torch's normalize have them.
_FEWEST_TOKENS, _SHORTEST_VECTOR = 1e-9, 1e-12


class SentenceHead(nn.Module):
    """Pooling and what follows it."""

    def __init__(self, pooling: Sequence[str], layers: Sequence[nn.Module] = ()) -> None:
        """Take the modes, whose vectors stand side by side, and the layers behind them, in order."""
        super().__init__()
        self.pooling = tuple(pooling)
        self.layers = nn.ModuleList(layers)

    def width(self, hidden_size: int) -> int:
        """Return how many numbers a text's vector has, where a token's has `hidden_size`."""
        dense = [layer.linear.out_features for layer in self.layers if isinstance(layer, DenseLayer)]
        return dense[-1] if dense else hidden_size * len(self.pooling)

    def describe(self) -> str:
        """Return in words what it does, such as `cls, 24 numbers, length 1`."""
        words = ["+".join(self.pooling)]
        for layer in self.layers:
            if isinstance(layer, DenseLayer):
                words.append(f"{layer.linear.out_features} numbers")
            elif isinstance(layer, UnitLength):
                words.append("length 1")
        return ", ".join(words)

    def extra_repr(self) -> str:
        """Return the modes."""
        return ", ".join(self.pooling)

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Return one vector per text, (B, E), of token vectors (B, T, H) and the mask (B, T) of a text's tokens."""
        vector = torch.cat([pool(states, attention_mask, mode) for mode in self.pooling], dim=-1)
        for layer in self.layers:
            vector = layer(vector)
        return vector


class SentenceEncoder(nn.Module):
    """An encoder with its head: what the encoder gives, and `sentence_embedding` beside it."""

    def __init__(self, encoder: PreTrainedModel, head: SentenceHead) -> None:
        """Take both, on the same device and in the same numbers."""
        super().__init__()
        self.encoder, self.head, self.config = encoder, head, encoder.config

    @property
    def device(self) -> torch.device:
        """Where the encoder runs."""
        return self.encoder.device

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Return `last_hidden_state`, (B, T, H), and `sentence_embedding`, (B, E)."""
        states = self.encoder(**inputs).last_hidden_state
        return {"last_hidden_state": states, "sentence_embedding": self.head(states, inputs["attention_mask"])}


class UnitLength(nn.Module):
    """Divide a vector by its length."""

    def forward(self, vector: Tensor) -> Tensor:
        """Return (B, E) of (B, E)."""
        return vector / vector.norm(dim=-1, keepdim=True).clamp_min(_SHORTEST_VECTOR)


class DenseLayer(nn.Module):
    """A linear layer, its activation, and where the settings say so its input added to that."""

    def __init__(self, dense: Dense) -> None:
        """Make the layer; its weights are yet to be loaded, under sentence-transformers' names."""
        super().__init__()
        self.linear = nn.Linear(dense.in_features, dense.out_features, bias=dense.bias)
        self.activation: nn.Module = getattr(nn, dense.activation)()
        self.adds_input = dense.residual
        if dense.residual and dense.in_features != dense.out_features:
            self.residual = nn.Linear(dense.in_features, dense.out_features, bias=False)

    def forward(self, vector: Tensor) -> Tensor:
        """Return (B, out_features) of (B, in_features)."""
        result: Tensor = self.activation(self.linear(vector))
        if not self.adds_input:
            return result
        return result + (self.residual(vector) if hasattr(self, "residual") else vector)


class NormLayer(nn.Module):
    """A layer norm, with the weights' names of sentence-transformers."""

    def __init__(self, dimension: int) -> None:
        """Make the layer; its weights are yet to be loaded."""
        super().__init__()
        self.norm = nn.LayerNorm(dimension)

    def forward(self, vector: Tensor) -> Tensor:
        """Return (B, E) of (B, E)."""
        normed: Tensor = self.norm(vector)
        return normed


def pool(states: Tensor, attention_mask: Tensor, mode: str) -> Tensor:
    """Return one vector per text, (B, H), of token vectors (B, T, H) whose padding is on the right.

    `mode` is one of `potstill.checkpoint.sentence_transformers.POOLING_MODES`.
    """
    tokens = attention_mask[:, :, None].to(states.dtype)
    if mode == "cls":
        return states[:, 0]
    if mode == "max":
        return states.masked_fill(tokens == 0, torch.finfo(states.dtype).min).amax(1)
    weights = tokens
    if mode in {"lasttoken", "weightedmean"}:
        # The first token counts once, the second twice, and so on; as shares of the length, whose sum float16 holds.
        # A cumulative sum, because old operator sets have no range of a length that is yet to be seen.
        places = (tokens * 0 + 1).cumsum(1)
        weights = tokens * places / places.amax(1, keepdim=True)
    if mode == "lasttoken":
        return (states * tokens * (weights == weights.amax(1, keepdim=True)).to(states.dtype)).sum(1)
    count = weights.sum(1).clamp(min=_FEWEST_TOKENS)
    return (states * weights).sum(1) / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


def simple_head(mode: str, *, normalize: bool) -> SentenceHead:
    """Return a head that pools, and gives the vector length 1 if wanted."""
    return SentenceHead([mode], [UnitLength()] if normalize else [])


def load_head(found: SentenceTransformers) -> SentenceHead | None:
    """Return the head that a folder describes, with its weights as float32; None where it has no pooling.

    Raises:
        CheckpointError: if weights cannot be read, or are not those of the folder's settings.
    """
    if not found.pooling:
        return None
    return SentenceHead(found.pooling, [_load_layer(layer) for layer in found.layers]).eval()


def load_sentence_encoder(name: str, *, tokenizer: str | None = None) -> tuple[Checkpoint, SentenceHead | None]:
    """Load an encoder, and what its folder says follows it; None where it is none of sentence-transformers.

    Raises:
        CheckpointError: as `load_checkpoint`, `read_sentence_transformers` and `load_head`.
    """
    found = find_sentence_transformers(name)
    return load_checkpoint(name, FEATURE_EXTRACTION, tokenizer=tokenizer), load_head(found) if found else None


def write_sentence_transformers(
    head: SentenceHead, folder: Path, *, width: int, max_length: int, prompts: Path | None = None
) -> None:
    """Write beside an encoder what sentence-transformers, and `read_sentence_transformers`, make the same vectors by.

    Args:
        head: what follows the token vectors.
        folder: the encoder's.
        width: of a token's vector.
        max_length: the longest text in tokens.
        prompts: a config_sentence_transformers.json to copy; None and a missing one write none.
    """
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modes = {flag: mode in head.pooling for flag, mode in POOLING_FLAGS.items()}
    settings: list[dict[str, Any]] = [{}, {"word_embedding_dimension": width} | modes]
    for number, layer in enumerate(head.layers, start=2):
        kind, about = _describe(layer)
        modules.append((kind, f"{number}_{kind}"))
        settings.append(about)
    rows = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(modules)
    ]
    _write_json(folder / MODULES_FILE, rows)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    if prompts is not None and prompts.is_file():
        (folder / PROMPTS_FILE).write_bytes(prompts.read_bytes())
    for (_, path), about, layer in zip(modules[1:], settings[1:], [None, *head.layers], strict=True):
        (folder / path).mkdir()
        if about:
            _write_json(folder / path / "config.json", about)
        state = {} if layer is None else dict(layer.state_dict())
        if state:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / path / WEIGHT_FILES[0])


def _describe(layer: nn.Module) -> tuple[str, dict[str, Any]]:
    """Return the name of sentence-transformers' module and its settings."""
    if isinstance(layer, DenseLayer):
        activation = type(layer.activation)
        about = {
            "in_features": layer.linear.in_features,
            "out_features": layer.linear.out_features,
            "bias": layer.linear.bias is not None,
            "activation_function": f"{activation.__module__}.{activation.__qualname__}",
        }
        return "Dense", about | ({"use_residual": True} if layer.adds_input else {})
    if isinstance(layer, NormLayer):
        return "LayerNorm", {"dimension": layer.norm.normalized_shape[0]}
    return "Normalize", {}


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def find_sentence_transformers(name: str) -> SentenceTransformers | None:
    """Read what a folder or hub id says about its vectors; None if it is none of sentence-transformers.

    Raises:
        CheckpointError: as `read_sentence_transformers`.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        fetched = None if folder.exists() else _fetch(name)
        if fetched is None:
            return None
        folder = fetched
    return read_sentence_transformers(folder)


def _fetch(name: str) -> Path | None:
    """Bring the small files of a hub id into the hub's cache and return their folder; None if it has no modules.

    Dense layers' weights come too. What cannot be had is missing to the reader, who says so.
    """
    modules = _cached(name, MODULES_FILE)
    if modules is None:
        return None
    _cached(name, PROMPTS_FILE)
    folder = modules.parent
    _cached(name, "sentence_bert_config.json")
    _cached(name, "tokenizer.json")
    for row in json.loads(modules.read_text(encoding="utf-8")):
        path = str(row.get("path") or "") if isinstance(row, dict) else ""
        if path and _cached(name, f"{path}/config.json") and not str(row.get("type")).endswith(".Transformer"):
            any(_cached(name, f"{path}/{weights}") for weights in WEIGHT_FILES)
    return folder


def _cached(name: str, file: str) -> Path | None:
    try:
        found = cached_file(
            name,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except (OSError, ValueError):
        return None
    return Path(found) if found else None


def _load_layer(layer: Layer) -> nn.Module:
    if isinstance(layer, Dense):
        return _with_weights(DenseLayer(layer), layer.weights)
    if isinstance(layer, LayerNorm):
        return _with_weights(NormLayer(layer.dimension), layer.weights)
    return UnitLength()


def _with_weights(module: nn.Module, file: Path | None) -> nn.Module:
    assert file is not None
    try:
        state: Mapping[str, Tensor]
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
        module.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except Exception as error:  # pickles, safetensors and torch each have errors of their own
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file} is not the weights that its config.json describes: {reason}") from error
    return module
