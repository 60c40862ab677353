import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from potstill.bundle import (
    MANIFEST_NAME,
    MODEL_FILES,
    SCHEMA_VERSION,
    FileRecord,
    Manifest,
    ModelRecord,
    read_bundle,
    record_files,
    sha256_of,
    write_manifest,
)
from potstill.errors import BundleError, TamperedError
from tests import onnx_graphs

FP32 = onnx_graphs.classifier().SerializeToString()
INT8 = onnx_graphs.classifier(onnx_graphs.dynamic_product).SerializeToString()
FILES = {
    "config.json": b"{}\n",
    "tokenizer.json": b'{"model": {}}\n',
    "tokenizer_config.json": b"{}\n",
    "onnx/model.onnx": FP32,
    "onnx/model_int8.onnx": INT8,
}


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "student-onnx"
    for name, content in FILES.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    seal(out)
    return out


def seal(out, **records):
    """Write the manifest over whatever lies in the folder; `records` change what it says of a model."""
    models = {
        "fp32": ModelRecord(file=MODEL_FILES["fp32"]),
        "int8": ModelRecord(file=MODEL_FILES["int8"], batch_invariant=False),
    } | {name.replace("_", "-"): ModelRecord(**record) for name, record in records.items()}
    manifest = Manifest(
        task="text-classification",
        labels=["negative", "positive"],
        max_length=64,
        inputs=["input_ids", "attention_mask"],
        outputs=["logits"],
        parameters=12,
        models=models,
        files=record_files(out),
    )
    write_manifest(out, manifest)


def edit(folder, change):
    """Change the manifest as JSON."""
    file = folder / MANIFEST_NAME
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def refusal(folder):
    with pytest.raises(TamperedError) as caught:
        read_bundle(folder)
    return str(caught.value)


def test_a_good_bundle_reads_back_as_it_was_written(folder):
    bundle = read_bundle(folder)
    assert bundle.folder == folder
    assert bundle.manifest.labels == ["negative", "positive"]
    assert bundle.manifest.schema_version == SCHEMA_VERSION == 2
    assert bundle.manifest.padding_side == "right"
    assert not bundle.model_record("int8").batch_invariant
    assert bundle.model_file("fp32") == folder / "onnx" / "model.onnx"
    assert bundle.record_of("int8").size_bytes == len(INT8)
    assert bundle.record_of("fp32").sha256 == hashlib.sha256(FP32).hexdigest()


def test_a_manifest_written_again_is_the_same_bytes(folder):
    before = (folder / MANIFEST_NAME).read_bytes()
    write_manifest(folder, read_bundle(folder).manifest)
    assert (folder / MANIFEST_NAME).read_bytes() == before
    assert before.endswith(b"}\n")


def test_labels_are_readable_in_the_manifest(folder):
    edit(folder, lambda content: content.update(labels=["très bien"]))
    write_manifest(folder, read_bundle(folder).manifest)
    assert "très bien" in (folder / MANIFEST_NAME).read_text(encoding="utf-8")


def test_every_file_but_the_manifest_is_recorded_with_its_hash(folder):
    assert record_files(folder) == {
        name: FileRecord(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        for name, content in FILES.items()
    }


def test_the_hash_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_precision_that_is_not_there_is_refused_with_those_that_are(folder):
    with pytest.raises(BundleError, match=r"has no fp16 model; it has fp32, int8$"):
        read_bundle(folder).model_file("fp16")


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_in_any_file_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert f"{folder / name} is not the file that was exported" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_any_file_cut_short_is_refused(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    assert f"{folder / name} is not the file that was exported" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_any_file_that_grew_is_refused(folder, name):
    with (folder / name).open("ab") as stream:
        stream.write(b"\n")
    assert f"{folder / name} is not the file that was exported" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_any_file_that_is_missing_is_refused(folder, name):
    (folder / name).unlink()
    assert f"{folder / name} is missing" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_a_files_place_is_refused(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"{folder / name} is missing" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_folder_is_refused_even_with_the_right_bytes(folder, tmp_path, name):
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert f"{folder / name} is a link that leaves the bundle" in refusal(folder)


def test_a_linked_folder_out_of_the_bundle_is_refused(folder, tmp_path):
    (folder / "onnx").rename(tmp_path / "onnx")
    (folder / "onnx").symlink_to(tmp_path / "onnx")
    assert "is a link that leaves the bundle" in refusal(folder)


def test_a_link_to_a_sibling_whose_name_begins_alike_leaves_the_folder(folder, tmp_path):
    sibling = tmp_path / f"{folder.name}-2"
    sibling.mkdir()
    (folder / "config.json").rename(sibling / "config.json")
    (folder / "config.json").symlink_to(sibling / "config.json")
    assert "is a link that leaves the bundle" in refusal(folder)


def test_a_link_inside_the_folder_and_a_link_to_the_folder_are_fine(folder, tmp_path):
    (folder / "config.json").rename(folder / "real.json")
    (folder / "config.json").symlink_to("real.json")
    (tmp_path / "link").symlink_to(folder)
    assert read_bundle(tmp_path / "link").manifest.parameters == 12


@pytest.mark.parametrize(
    "name",
    ["../secret", "onnx/../../secret", "/etc/hostname", "onnx\\..\\secret", "..", "C:\\secret", "onnx/.."],
)
def test_a_name_that_leaves_the_folder_is_refused_before_any_file_is_read(folder, tmp_path, name):
    (tmp_path / "secret").write_bytes(b"abc")
    record = FileRecord(sha256=sha256_of(tmp_path / "secret"), size_bytes=3).model_dump()
    edit(folder, lambda content: content["files"].update({name: record}))
    message = refusal(folder)
    assert "leaves the folder" in message
    assert repr(name) in message


@pytest.mark.parametrize("name", ["", ".", "onnx", "a\0b"])
def test_a_name_that_is_no_file_is_refused(folder, name):
    record = FileRecord(sha256="0" * 64, size_bytes=0).model_dump()
    edit(folder, lambda content: content["files"].update({name: record}))
    assert "is missing" in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"not JSON", b"\xff\xfe{}", b"[1, 2]", b"null", b'"text"', b"{} {}", b"[" * 100_000, b"1" * 10_000],
    ids=["empty", "half", "words", "bytes", "array", "null", "text", "two", "deep", "digits"],
)
def test_a_manifest_that_is_not_one_is_refused(folder, content):
    (folder / MANIFEST_NAME).write_bytes(content)
    message = refusal(folder)
    assert f"{folder / MANIFEST_NAME} is not a valid manifest: " in message
    assert "\n" not in message


def test_a_deeply_nested_value_in_a_good_manifest_is_refused(folder):
    text = (folder / MANIFEST_NAME).read_text()
    nested = '{"a":' * 50_000 + "1" + "}" * 50_000
    (folder / MANIFEST_NAME).write_text(text.replace('"made": {}', f'"made": {nested}'))
    assert "is not a valid manifest" in refusal(folder)


def test_an_unknown_key_is_refused_by_name(folder):
    edit(folder, lambda content: content.update(surprise=1))
    assert "not a valid manifest: surprise: Extra inputs are not permitted" in refusal(folder)


def test_an_unknown_key_of_a_model_is_refused_by_its_path(folder):
    edit(folder, lambda content: content["models"]["fp32"].update(providers=["x"]))
    assert "not a valid manifest: models.fp32.providers: " in refusal(folder)


@pytest.mark.parametrize("key", ["task", "max_length", "inputs", "outputs", "parameters", "models", "files"])
def test_a_manifest_without_a_needed_key_is_refused(folder, key):
    edit(folder, lambda content: content.pop(key))
    assert f"not a valid manifest: {key}: Field required" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inputs", []),
        ("outputs", []),
        ("models", {}),
        ("models", {"fp64": {"file": "onnx/model.onnx"}}),
        ("max_length", 0),
        ("max_length", "many"),
        ("parameters", 0),
        ("pad_token_id", -1),
        ("padding_side", "middle"),
        ("schema_version", 0),
        ("schema_version", 2.0),
        ("schema_version", "2"),
        ("files", {"tokenizer.json": {"sha256": "00", "size_bytes": 1}}),
        ("files", {"tokenizer.json": {"sha256": "A" * 64, "size_bytes": 1}}),
        ("files", {"tokenizer.json": {"sha256": "a" * 64, "size_bytes": -1}}),
    ],
)
def test_a_value_that_cannot_be_is_refused(folder, key, value):
    edit(folder, lambda content: content.update({key: value}))
    assert f"not a valid manifest: {key}" in refusal(folder)


def test_a_newer_schema_is_not_tampering_but_asks_for_an_update(folder):
    edit(folder, lambda content: content.update(schema_version=3, from_the_future=True))
    with pytest.raises(BundleError, match=r"has schema 3, newer than 2; update potstill"):
        read_bundle(folder)


def test_a_model_without_a_hash_is_refused(folder):
    edit(folder, lambda content: content["files"].pop("onnx/model_int8.onnx"))
    assert "names onnx/model_int8.onnx as int8 without a hash" in refusal(folder)


def test_a_model_outside_the_folder_is_refused_for_want_of_a_hash(folder):
    edit(folder, lambda content: content["models"]["fp32"].update(file="../model.onnx"))
    assert "names ../model.onnx as fp32 without a hash" in refusal(folder)


def test_a_tokenizer_without_a_hash_is_refused(folder):
    edit(folder, lambda content: content["files"].pop("tokenizer.json"))
    assert "has no hash of tokenizer.json" in refusal(folder)


def test_a_tokenizer_config_that_was_put_beside_the_manifest_is_refused(folder):
    edit(folder, lambda content: content["files"].pop("tokenizer_config.json"))
    assert "tokenizer_config.json is not named by potstill.json" in refusal(folder)
    (folder / "tokenizer_config.json").unlink()
    assert "tokenizer_config.json" not in read_bundle(folder).manifest.files


def test_names_are_checked_without_hashing_too(folder):
    (folder / "config.json").write_text("other")
    assert read_bundle(folder, verify=False).manifest.parameters == 12
    edit(folder, lambda content: content["files"].pop("onnx/model.onnx"))
    with pytest.raises(TamperedError, match="without a hash"):
        read_bundle(folder, verify=False)


def test_a_folder_that_is_not_there_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"nothing is not a folder; export a checkpoint first: potstill export"):
        read_bundle(tmp_path / "nothing")


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"has no potstill.json, so it is not a bundle"):
        read_bundle(tmp_path)


def test_a_file_is_no_bundle(folder):
    with pytest.raises(BundleError, match="is not a folder"):
        read_bundle(folder / MANIFEST_NAME)


def test_a_manifest_of_schema_1_reads(folder):
    def to_schema_1(content):
        content["schema_version"] = 1
        content["disabled_optimizers"] = ["SkipLayerNormFusion"]
        for name in ("problem_type", "pooling", "tokenizer_parity"):
            content.pop(name)
        old = {"file", "quantisation", "cpu_features", "batch_invariant", "fusion", "parity"}
        for record in content["models"].values():
            for name in set(record) - old:
                record.pop(name)

    edit(folder, to_schema_1)
    bundle = read_bundle(folder)
    assert bundle.manifest.disabled_optimizers == ["SkipLayerNormFusion"]
    assert bundle.model_record("fp32").external_data == []


MODEL, SIDE = MODEL_FILES["fp32"], "onnx/model.onnx_data"


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
        (onnx_graphs.float_product, "0 of its 4 products with a weight multiply int8"),
        (onnx_graphs.folded_product, "4 int8 weights are only dequantised"),
        (onnx_graphs.late_product, "0 of its 4 products with a weight multiply int8"),
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


def test_a_classifier_without_labels_is_refused_and_another_task_needs_none(folder):
    edit(folder, lambda content: content.update(labels=[]))
    assert "labels are missing, and text-classification answers with them" in refusal(folder)
    edit(folder, lambda content: content.update(task="fill-mask"))
    assert read_bundle(folder).manifest.labels == []
