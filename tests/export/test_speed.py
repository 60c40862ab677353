"""The speed line of an export: a ratio with its interval, or none where the machine was busy."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from potstill.config import ExportConfig
from potstill.export import checks
from potstill.export.checks import compare_speed
from potstill.timing import Race
from tests.cli.conftest import potstill  # noqa: F401 (a fixture)

CELL = (1, 16)


def measured(monkeypatch, **more):
    rounds = {
        name: {CELL: [np.full(3, milliseconds * (1 + turn / 100)) for turn in range(5)]}
        for name, milliseconds in (("fp32", 20.0), ("int8", 10.0))
    }
    monkeypatch.setattr(checks, "race", lambda *_, **__: Race((CELL,), rounds=rounds, **more))
    return compare_speed(
        Path("fp32.onnx"),
        Path("int8.onnx"),
        fp32_disabled=(),
        int8_disabled=(),
        vocab_size=90,
        max_length=16,
        rounds=5,
        cells=[CELL],
    )


def test_an_undisturbed_race_gives_a_ratio(monkeypatch):
    found = measured(monkeypatch)
    assert found.ratio == pytest.approx(2.0)
    assert found.verdict == "faster"


def test_a_disturbed_race_gives_no_figure_but_the_reason(monkeypatch):
    found = measured(monkeypatch, disturbances={CELL: ["other processes took 60% of the time of the cores"]})
    assert found.verdict == "not measured"
    assert found.model_dump().keys() == {"verdict", "failures"}
    assert "other processes took 60%" in found.failures["the machine"]


def test_one_turn_has_no_interval_and_is_refused_before_anything_is_loaded(potstill, tmp_path):  # noqa: F811
    with pytest.raises(ValidationError, match="rounds is 1, and an interval needs 2 turns"):
        ExportConfig(rounds=1)
    ExportConfig(rounds=0)
    code, _, said = potstill("export", tmp_path, "--out", tmp_path / "out", "--rounds", "1")
    assert code == 2
    assert "rounds is 1, and an interval needs 2 turns" in said.splitlines()[-1]
