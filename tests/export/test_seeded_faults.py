"""Every seeded fault ends the export with exit code 1, and nothing is published."""

import shutil

import numpy as np
import onnx
import pytest

from potstill.config import ExportConfig
from potstill.errors import PotstillError
from potstill.export import export_bundle, precisions
from potstill.export.onnx_files import load_model, save_model

from .test_checks import FAULTS

pytestmark = pytest.mark.usefixtures("few_texts")
ONLY_FP32 = ExportConfig(precisions=["fp32"], judged_texts=5, calibration_texts=1)


def assert_refused(source, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(PotstillError) as caught:
        export_bundle(str(source), tmp_path / "bundle", config=ONLY_FP32)
    assert caught.value.exit_code == 1, caught.value
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_graph_that_answers_otherwise(fault, tiny_teacher, tmp_path, monkeypatch):
    original = precisions.build_graph

    def broken(model, **settings):
        graph = original(model, **settings)
        fault(graph.graph)
        return graph

    monkeypatch.setattr(precisions, "build_graph", broken)
    assert "differs from torch" in assert_refused(tiny_teacher, tmp_path)


@pytest.fixture
def existing(tiny_bundle, tmp_path):
    """An ONNX folder whose weights lie beside the model, as other tools write large ones."""
    folder = tmp_path / "theirs"
    (folder / "onnx").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bundle / name, folder / name)
    save_model(load_model(tiny_bundle / "onnx" / "model.onnx"), folder / "onnx" / "model.onnx", external=True)
    return folder


def point_at(file, location):
    """Let the weights of a file lie elsewhere."""
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    file.write_bytes(model.SerializeToString())


def test_an_existing_folder_with_its_weights_beside_it_is_fine(existing, tmp_path):
    manifest = export_bundle(str(existing), tmp_path / "bundle", config=ONLY_FP32)
    assert manifest.source.kind == "onnx"


def test_a_truncated_model(existing, tmp_path):
    file = existing / "onnx" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-200])
    assert "cut short" in assert_refused(existing, tmp_path)


def test_truncated_weights(existing, tmp_path):
    weights = existing / "onnx" / "model.onnx_data"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert "cut short" in assert_refused(existing, tmp_path)


@pytest.mark.parametrize("kind", ["parent", "absolute", "symlink", "hard link"])
def test_weights_outside_of_the_folder(kind, existing, tmp_path):
    inside, outside = existing / "onnx" / "model.onnx_data", tmp_path / "secret"
    shutil.move(inside, outside)
    if kind == "symlink":
        inside.symlink_to(outside)
    elif kind == "hard link":
        inside.hardlink_to(outside)
    else:
        point_at(existing / "onnx" / "model.onnx", "../../secret" if kind == "parent" else str(outside))
    assert "model.onnx" in assert_refused(existing, tmp_path)


def test_weights_that_are_not_a_number(existing, tmp_path):
    file = existing / "onnx" / "model.onnx"
    model = load_model(file)
    tensor = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(tensor.dims), np.nan, np.float32), tensor.name))
    save_model(model, file, external=True)
    assert_refused(existing, tmp_path)
