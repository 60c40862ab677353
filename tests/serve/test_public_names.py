"""The packages of the serving side export what they say, and say what they are for."""

from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("potstill.serve", {"SENTENCE_EMBEDDING", "BundleTokenizer", "Encoder", "OnnxSession", "Row", "Text"}),
        ("potstill.serve.tasks", {"Features", "Outputs", "ServedTask", "TaskModel", "served_task"}),
        (
            "potstill.serve.batching",
            {
                "Answered",
                "Engine",
                "EngineSettings",
                "Gauges",
                "Observer",
                "Outcome",
                "Plan",
                "Stage",
                "Timings",
                "nothing",
            },
        ),
    ],
)
def test_public_names_are_there(package, names):
    module = import_module(package)
    assert set(module.__all__) == names
    assert all(hasattr(module, name) for name in names)
    assert module.__doc__
