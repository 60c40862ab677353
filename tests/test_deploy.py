"""The files of deploy/ say what the code does: paths, ports, times, options, and the bill of materials."""

import asyncio
import hashlib
import importlib.util
import json
import re
from pathlib import Path

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from potstill.cli.app import app as commands
from potstill.cli.serve import read_specs
from potstill.serve import Encoder
from potstill.serve.batching import Engine, EngineSettings
from potstill.serve.http import create_app
from potstill.serve.limits import Limits
from tests import sealed

ROOT = Path(__file__).parents[1]
OBJECTS = {
    content["kind"]: content for content in yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
}
POD = OBJECTS["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
# The server may need this long to hang up and to end its threads.
LAST_SECONDS = 10


def options(arguments):
    return dict(one.removeprefix("--").split("=") for one in arguments if one.startswith("--"))


@pytest.fixture(scope="module")
def statuses(tmp_path_factory):
    """Return what the application answers to GET before the engine has started."""
    folder = sealed.write_folder(tmp_path_factory.mktemp("deploy") / "bundle")
    write_tokenizer(folder)
    sealed.seal(folder)
    app = create_app(Engine({"model": Encoder(folder, threads=1)}, settings=EngineSettings()))

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return {path: (await client.get(path)).status_code for path in ("/health/live", "/health/ready", "/none")}

    return asyncio.run(ask())


def write_tokenizer(folder):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))


def test_probes_ask_paths_that_there_are(statuses):
    assert statuses == {"/health/live": 200, "/health/ready": 503, "/none": 404}
    paths = {name: CONTAINER[name]["httpGet"]["path"] for name in PROBES}
    assert paths == {
        "startupProbe": "/health/ready",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health/live",
    }


def test_one_port_from_the_argument_to_the_service():
    (port,) = CONTAINER["ports"]
    assert options(CONTAINER["args"])["port"] == str(port["containerPort"])
    assert {CONTAINER[name]["httpGet"]["port"] for name in PROBES} == {port["name"]}
    (service,) = OBJECTS["Service"]["spec"]["ports"]
    assert service["targetPort"] == port["name"]
    assert options(CONTAINER["args"])["host"] == "0.0.0.0"
    assert f"EXPOSE {port['containerPort']}" in DOCKERFILE


def test_pods_are_killed_after_they_have_ended():
    given = options(CONTAINER["args"])
    drain, shutdown = float(given["drain-seconds"]), float(given["shutdown-seconds"])
    assert POD["spec"]["terminationGracePeriodSeconds"] >= drain + shutdown + LAST_SECONDS
    # It goes on answering for longer than it takes to be found not ready.
    ready = CONTAINER["readinessProbe"]
    assert drain >= Limits().drain_seconds
    assert ready["periodSeconds"] * 2 <= drain
    # A probe may not be slower than the next.
    assert all(CONTAINER[name]["timeoutSeconds"] <= max(2, CONTAINER[name]["periodSeconds"]) for name in PROBES)


def test_labels_select_the_pods():
    labels = POD["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert OBJECTS[kind]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert OBJECTS["Service"]["spec"]["selector"].items() <= labels.items()
    assert OBJECTS["PodDisruptionBudget"]["spec"]["maxUnavailable"] < OBJECTS["Deployment"]["spec"]["replicas"]


def test_nothing_is_allowed_that_is_not_needed():
    assert POD["spec"]["securityContext"]["runAsNonRoot"] is True
    assert f"USER {POD['spec']['securityContext']['runAsUser']}:" in DOCKERFILE
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["spec"]["automountServiceAccountToken"] is False
    assert all(mount["readOnly"] for mount in CONTAINER["volumeMounts"])
    assert {"cpu", "memory"} == CONTAINER["resources"]["limits"].keys() == CONTAINER["resources"]["requests"].keys()


def test_the_memory_limit_holds_bert_base_while_it_loads():
    size = {"Mi": 2**20, "Gi": 2**30}
    limit = CONTAINER["resources"]["limits"]["memory"]
    page = " ".join((ROOT / "docs" / "deploy.md").read_text().split())
    # Three times the file, as docs/serve.md says, and the interpreter with its libraries.
    assert int(limit[:-2]) * size[limit[-2:]] >= 3 * 440e6 + 0.5e9
    assert f"{limit[:-2]} {limit[-2:]}B is enough for BERT-base in fp32 (440 MB)" in page
    assert "three times its size" in " ".join((ROOT / "docs" / "serve.md").read_text().split())


def test_the_servers_own_options_are_used():
    command = json.loads(re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[1])
    shown = CliRunner().invoke(commands, ["serve", "--help"], terminal_width=200).stdout
    for arguments in (CONTAINER["args"], command):
        assert arguments[0] == "serve"
        assert all(re.search(rf"{one.partition('=')[0]}\b", shown) for one in arguments if one.startswith("--"))
        (spec,) = read_specs([arguments[1]], precision="fp32")
        assert (spec.name, str(spec.folder)) == ("model", "/bundle")
    assert CONTAINER["volumeMounts"][0]["mountPath"] == "/bundle"
    assert "COPY ${BUNDLE} /bundle" in DOCKERFILE
    (keys,) = CONTAINER["env"]
    assert keys["name"] in (ROOT / "potstill" / "cli" / "serve.py").read_text()


def test_the_image_holds_the_server_and_no_more():
    assert re.findall(r'"\.\[(.*?)\]"', DOCKERFILE) == ["serve"]
    assert "ENV ORT_DISABLE_TELEMETRY=1\n" in DOCKERFILE
    copied = re.findall(r"^COPY (?!--|\$)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert copied == ["pyproject.toml README.md LICENSE constraints.txt", "potstill"]
    assert all((ROOT / name).exists() for line in copied for name in line.split())
    assert re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE) == ["build", "serve", "bundled"]


@pytest.fixture(scope="module")
def sbom():
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "deploy" / "sbom.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_bill_names_every_file_of_a_bundle(sbom, tmp_path):
    folder = sealed.write_folder(tmp_path / "student-onnx")
    component = sbom.model(folder)
    listed = {one["name"]: one["hashes"][0]["content"] for one in component["components"]}
    assert listed == {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert component["hashes"][0]["content"] == listed["potstill.json"]
    assert component["name"] == "student-onnx"
    assert str(tmp_path) not in json.dumps(component)
    document = {"components": [{"name": "numpy"}], "dependencies": [{"ref": "numpy"}]}
    sbom.add_models(document, [component])
    assert [one["name"] for one in document["components"]] == ["numpy", "student-onnx"]
    assert document["dependencies"][-1] == {"ref": component["bom-ref"]}


def test_the_bill_refuses_a_file_that_changed(sbom, tmp_path):
    folder = sealed.write_folder(tmp_path / "student-onnx")
    (folder / "config.json").write_text("{ }")
    with pytest.raises(SystemExit, match=r"config.json is not the file that potstill.json names"):
        sbom.model(folder)


def test_commands_of_the_page_are_real():
    page = (ROOT / "docs" / "deploy.md").read_text()
    lines = re.findall(
        r"potstill (predict .*?)(?: \| |$)", "\n".join(re.findall(r"```\n(.*?)```", page, re.DOTALL)), re.M
    )
    assert len(lines) == 3
    shown = CliRunner().invoke(commands, ["predict", "--help"], terminal_width=200).stdout
    for line in lines:
        assert all(re.search(rf"{one}\b", shown) for one in re.findall(r"--[a-z-]+", line))
    for path in re.findall(r"deploy/[\w.]+", page):
        assert (ROOT / path).exists()
