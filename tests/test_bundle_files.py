"""The ONNX files of a bundle: weights that lie beside them, files cut short, and whether a precision's name is true."""

import subprocess
import sys

import numpy as np
import pytest

from potstill.bundle import MODEL_FILES, read_bundle
from potstill.errors import TamperedError
from tests import onnx_graphs
from tests.sealed import FP32, INT8, edit, refusal, seal, write_folder

MODEL, SIDE = MODEL_FILES["fp32"], "onnx/model.onnx_data"


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "student-onnx")


def split(folder, location="model.onnx_data", *, listed=(SIDE,)):
    """Keep a weight of fp32 at `location`, as a bundle of a large model does, and seal that."""
    graph = onnx_graphs.classifier()
    onnx_graphs.keep_outside(graph, folder / MODEL, location, content=folder / "onnx" / location)
    seal(folder, fp32={"file": MODEL, "external_data": list(listed)})
    return folder / "onnx" / location


def test_a_model_in_two_files_reads(folder):
    split(folder)
    assert read_bundle(folder).model_record("fp32").external_data == [SIDE]
    seal(folder, fp32={"file": MODEL, "external_data": [SIDE]}, int8={"file": MODEL_FILES["int8"]})
    assert SIDE in read_bundle(folder).manifest.files


def test_weights_in_a_file_that_the_manifest_does_not_list_are_refused(folder):
    split(folder, listed=())
    assert refusal(folder) == (
        f"{folder / MODEL} keeps weights in 'model.onnx_data' and potstill.json does not say so; export it again"
    )


def test_a_list_of_files_that_the_model_does_not_use_is_refused(folder):
    split(folder)
    (folder / MODEL).write_bytes(FP32)
    seal(folder, fp32={"file": MODEL, "external_data": [SIDE]})
    assert "does not keep weights in 'model.onnx_data' and potstill.json says so" in refusal(folder)


@pytest.mark.parametrize(
    "location", ["../secret", "../../secret", "deep/data", "./model.onnx_data", "*/_ORT_MEM_ADDR_/*"]
)
def test_weights_elsewhere_than_beside_the_model_are_refused(folder, location):
    split(folder, location, listed=())
    assert f"keeps weights in {location!r} and potstill.json does not say so" in refusal(folder)


def test_weights_at_an_absolute_path_are_refused(folder, tmp_path):
    split(folder, str(tmp_path / "secret"), listed=())
    assert f"keeps weights in '{tmp_path}/secret' and" in refusal(folder)


@pytest.mark.parametrize("name", ["secret", "tokenizer.json", "onnx/deep/data"])
def test_a_listed_file_that_is_not_beside_the_model_is_refused(folder, name):
    (folder / "onnx" / "deep").mkdir()
    (folder / name).write_bytes(FP32)
    seal(folder, fp32={"file": MODEL, "external_data": [name]})
    assert f"names {name}, which is not beside {MODEL}" in refusal(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "onnx/absent"])
def test_a_listed_file_without_a_hash_is_refused(folder, name):
    edit(folder, lambda content: content["models"]["fp32"].update(external_data=[name]))
    assert f"names {name} for fp32 without a hash" in refusal(folder)


def test_weights_behind_a_link_are_refused_even_with_the_right_bytes(folder, tmp_path):
    side = split(folder)
    side.rename(tmp_path / "elsewhere")
    side.symlink_to(tmp_path / "elsewhere")
    assert f"{side} is a link that leaves the bundle" in refusal(folder)
    side.unlink()
    side.hardlink_to(tmp_path / "elsewhere")
    assert f"{side} is a link, so its weights may change from elsewhere; copy it here" in refusal(folder)
    side.unlink()
    (tmp_path / "elsewhere").rename(folder / "onnx" / "real")
    side.symlink_to("real")
    assert f"{side} is a link, so its weights may change from elsewhere; copy it here" in refusal(folder)


def test_truncated_weights_are_refused(folder):
    side = split(folder)
    side.write_bytes(side.read_bytes()[:-1])
    assert f"{side} is not the file that was exported" in refusal(folder)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_model_is_refused_even_with_a_hash_of_its_own(folder, precision, share):
    file = folder / MODEL_FILES[precision]
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    seal(folder)
    assert f"{file} is cut short or damaged" in refusal(folder)


def test_what_is_no_onnx_file_is_refused_even_with_a_hash_of_its_own(folder):
    (folder / MODEL).write_text("version https://git-lfs.github.com/spec/v1")
    seal(folder)
    assert f"{folder / MODEL} is not an ONNX file" in refusal(folder)


@pytest.mark.parametrize(
    ("product", "why"),
    [
        (onnx_graphs.float_product, "0 of its 4 matmuls with a weight multiply int8"),
        (onnx_graphs.folded_product, "4 int8 weights are only dequantised"),
        (onnx_graphs.late_product, "0 of its 4 matmuls with a weight multiply int8"),
    ],
)
def test_int8_that_is_not_is_refused(folder, product, why):
    file = folder / MODEL_FILES["int8"]
    file.write_bytes(onnx_graphs.classifier(product).SerializeToString())
    seal(folder)
    assert refusal(folder).startswith(f"{file} is not int8: ")
    assert why in refusal(folder)


def test_fp16_that_holds_float32_is_refused(folder):
    file = folder / MODEL_FILES["fp16"]
    file.write_bytes(FP32)
    seal(folder, fp16={"file": MODEL_FILES["fp16"]})
    assert f"{file} is not fp16: 0 of its 1600 float weights have 16 bits" in refusal(folder)
    file.write_bytes(onnx_graphs.classifier(dtype=np.float16).SerializeToString())
    seal(folder, fp16={"file": MODEL_FILES["fp16"]})
    assert "fp16" in read_bundle(folder).manifest.models


def test_static_int8_with_dynamic_scales_is_refused(folder):
    file = folder / MODEL_FILES["int8-static"]
    file.write_bytes(INT8)
    seal(folder, int8_static={"file": MODEL_FILES["int8-static"]})
    assert f"{file} is not int8-static: 4 of its activation scales are measured" in refusal(folder)
    file.write_bytes(onnx_graphs.classifier(onnx_graphs.static_product).SerializeToString())
    seal(folder, int8_static={"file": MODEL_FILES["int8-static"]})
    assert "int8-static" in read_bundle(folder).manifest.models


def test_onnxruntime_sees_no_byte_of_a_refused_bundle(folder, monkeypatch):
    import onnxruntime

    from potstill.serve import Encoder

    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("onnxruntime was asked"))
    split(folder, "../../secret", listed=())
    with pytest.raises(TamperedError, match="keeps weights in"):
        Encoder(folder, precision="int8")


def test_models_are_looked_at_without_onnx(folder):
    code = (
        f"import sys, pathlib; from potstill.bundle import read_bundle; read_bundle(pathlib.Path({str(folder)!r})); "
        "print({'onnx', 'onnxruntime', 'torch', 'google', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
