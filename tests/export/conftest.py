"""Exports of the same model trace it once: the exporter takes seconds even for a tiny one."""

import onnx
import pytest

from potstill.export import precisions, tokenizer_parity

_TRACED: dict[tuple[str, ...], bytes] = {}


@pytest.fixture(autouse=True)
def _trace_once(monkeypatch):
    original = precisions.build_graph

    def build_graph(model, **settings):
        key = (model.config.name_or_path, type(model).__name__, repr(sorted(settings.items())))
        if key not in _TRACED:
            _TRACED[key] = original(model, **settings).SerializeToString()
        return onnx.load_from_string(_TRACED[key])

    monkeypatch.setattr(precisions, "build_graph", build_graph)


@pytest.fixture
def few_texts(monkeypatch):
    """Compare tokenizers on fewer texts than an export does."""
    monkeypatch.setattr(tokenizer_parity, "TEXTS", 200)
