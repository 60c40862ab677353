"""Manifests: read back as they were written, refused where a file or a word in them is not what it should be."""

import hashlib

import pytest

from potstill.bundle import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    FileRecord,
    read_bundle,
    record_files,
    sha256_of,
    write_manifest,
)
from potstill.errors import BundleError, TamperedError
from tests.sealed import FILES, FP32, INT8, edit, refusal, write_folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "student-onnx")


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


def test_no_flipped_bit_of_the_manifest_goes_unnoticed(folder):
    file = folder / MANIFEST_NAME
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 7]) + whole[place + 1 :])
        with pytest.raises((TamperedError, BundleError)):
            read_bundle(folder, verify=False)
    file.write_bytes(whole)
    read_bundle(folder)


def test_a_manifest_from_before_there_were_digests_is_read(folder):
    edit(folder, lambda content: None)
    assert read_bundle(folder).manifest.digest is None


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
    assert "not a valid manifest: surprise: unknown key" in refusal(folder)


def test_an_unknown_key_of_a_model_is_refused_by_its_path(folder):
    edit(folder, lambda content: content["models"]["fp32"].update(providers=["x"]))
    assert "not a valid manifest: models.fp32.providers: " in refusal(folder)


@pytest.mark.parametrize("key", ["task", "max_length", "inputs", "outputs", "parameters", "models", "files"])
def test_a_manifest_without_a_needed_key_is_refused(folder, key):
    edit(folder, lambda content: content.pop(key))
    assert f"not a valid manifest: {key}: is missing" in refusal(folder)


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


def test_a_classifier_without_labels_is_refused_and_another_task_needs_none(folder):
    edit(folder, lambda content: content.update(labels=[]))
    assert "labels are missing, and text-classification answers with them" in refusal(folder)
    edit(folder, lambda content: content.update(task="fill-mask"))
    assert read_bundle(folder).manifest.labels == []


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
