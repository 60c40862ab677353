"""A bundle with one file, whatever its precision: every command serves it without being told which."""

import json
import shutil

import pytest

from potstill.bundle import Bundle, read_bundle, write_manifest
from potstill.errors import BundleError
from potstill.export import export_bundle
from potstill.serve import Encoder
from tests import sealed, tiny
from tests.faults.rawhttp import ask, get, predict_message
from tests.faults.served import Server


def keep(bundle, folder, *precisions):
    """Copy a bundle with some of its files."""
    shutil.copytree(bundle, folder)
    manifest = read_bundle(folder).manifest
    models = {name: record for name, record in manifest.models.items() if name in precisions}
    gone = {record.file for name, record in manifest.models.items() if name not in precisions}
    for name in gone:
        (folder / name).unlink()
    files = {name: file for name, file in manifest.files.items() if name not in gone}
    write_manifest(folder, manifest.model_copy(update={"models": models, "files": files}))
    return folder


@pytest.fixture
def only_int8(tiny_bundle, tmp_path):
    return keep(tiny_bundle, tmp_path / "only", "int8")


def takes_the_only_file(potstill, folder, precision, data, out):
    assert list(read_bundle(folder).manifest.models) == [precision]
    file = data / "validation.jsonl"
    code, _, err = potstill("predict", folder, file, "--out", out / "named.jsonl", "--precision", precision)
    assert (code, "error" in err) == (0, False)
    assert potstill("predict", folder, file, "--out", out / "unnamed.jsonl")[0] == 0
    assert (out / "unnamed.jsonl").read_bytes() == (out / "named.jsonl").read_bytes()
    code, told, _ = potstill("evaluate", folder, "--data", data, "--json")
    assert (code, list(json.loads(told))) == (0, [precision])
    code, told, _ = potstill("show", folder)
    assert code == 0
    assert precision in told
    texts = ["the sea", "the mountain"]
    assert Encoder(folder).predict(texts) == Encoder(folder, precision=precision).predict(texts)


def test_every_command_takes_the_only_file(potstill, only_int8, tiny_data, tmp_path):
    takes_the_only_file(potstill, only_int8, "int8", tiny_data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int8-static", "fp16"])
def test_an_export_of_one_precision_is_used_as_it_is(potstill, tiny_teacher, tiny_data, tmp_path, precision):
    folder = tmp_path / "alone"
    config = tiny.export_config().model_copy(update={"precisions": [precision]})
    export_bundle(str(tiny_teacher), folder, config=config, calibration=tiny.texts(80))
    takes_the_only_file(potstill, folder, precision, tiny_data, tmp_path)


def test_the_only_file_is_served(only_int8):
    folder = only_int8
    with Server([folder], options=["--threads", "1"]) as server:
        assert f"{folder.name} int8" in server.stderr
        assert ask(server.port, predict_message("the sea")).status == 200
        assert '"int8"' in get(server.port, "/info").body.decode()


def test_a_precision_that_is_not_there_lists_what_is(potstill, only_int8, tiny_data, tmp_path):
    folder, data = only_int8, tiny_data / "validation.jsonl"
    for command in (
        ("predict", folder, data, "--out", tmp_path / "out.jsonl", "--precision", "fp32"),
        ("evaluate", folder, "--data", tiny_data, "--precision", "fp32"),
        ("serve", folder, "--precision", "fp32", "--port", "0"),
    ):
        code, _, err = potstill(*command)
        assert code != 0
        assert f"{folder} has no fp32 model; it has int8" in err
        assert "Traceback" not in err


def test_where_several_could_be_meant_they_are_listed(tmp_path):
    folder = sealed.write_folder(tmp_path / "bundle")
    bundle = read_bundle(folder)
    record = bundle.manifest.models["int8"]

    def choose(*names, asked=None):
        manifest = bundle.manifest.model_copy(update={"models": dict.fromkeys(names, record)})
        return Bundle(folder, manifest).choose(asked)

    assert choose("int8", "fp32") == "fp32"
    assert [choose(name) for name in ("fp16", "int8", "int8-static")] == ["fp16", "int8", "int8-static"]
    assert choose("int8", "int8-static", asked="int8-static") == "int8-static"
    with pytest.raises(BundleError, match="has fp16, int8 and no fp32; name the precision that is meant"):
        choose("fp16", "int8")
    with pytest.raises(BundleError, match="has no int8-static model; it has fp32, int8"):
        choose("fp32", "int8", asked="int8-static")
