"""What the server says of itself: info, metrics, pages."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

import potstill
from potstill.bundle import Parity, ParityCell
from tests.serve.http.conftest import LIMITS
from tests.serve.http.test_predict import post

PAGES = ("/", "/docs")


def test_info_tells_what_is_served_and_a_models_own_page_how_it_was_checked(client, encoder):
    info = client.get("/info").json()
    model = info["models"]["tiny"]
    file = encoder.manifest.files["onnx/model.onnx"]
    assert (model["model_sha256"], model["model_size_bytes"]) == (file.sha256, file.size_bytes)
    assert {name: model[name] for name in ("task", "labels", "precision", "engine", "max_length", "threads")} == {
        "task": "text-classification",
        "labels": ["negative", "neutral", "positive"],
        "precision": "fp32",
        "engine": "onnxruntime",
        "max_length": 32,
        "threads": 1,
    }
    whole = client.get(model.pop("evidence")).json()
    assert whole.items() >= model.items()
    assert (whole["source"], whole["parity"]) == ({"name": "tiny"}, {"max_difference": 0.0})
    assert (info["default_model"], info["engine"], info["settings"]["threads"]) == ("tiny", {"runners": 1}, 1)
    assert info["limits"]["inputs"] == LIMITS.inputs
    assert info["versions"]["potstill"] == potstill.__version__


def test_info_is_as_short_as_what_clients_need_of_it_however_much_evidence_a_model_has(client, encoder, monkeypatch):
    cells = [ParityCell(batch_size=size, length=128, max_abs_difference=1e-6) for size in range(1, 200)]
    monkeypatch.setattr(encoder, "record", encoder.record.model_copy(update={"parity": Parity(grid=cells)}))
    assert len(client.get("/models/tiny").content) > 10_000
    assert len(client.get("/info").content) < 2_500


def families(client):
    response = client.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def values(family):
    return {tuple(sorted(sample.labels.items())): sample.value for sample in family.samples}


def test_metrics_tell_what_runs_each_model(client):
    assert values(families(client)["potstill_model_info"]) == {
        (("engine", "onnxruntime"), ("model", "tiny"), ("precision", "fp32")): 1.0
    }


def test_metrics_count_requests_by_template_and_code(client):
    post(client, {"inputs": "good"})
    post(client, {"inputs": "good"}, "/models/tiny/predict")
    post(client, {"input": "good"})
    for path in ("/hunter2", "/models/hunter2/predict"):
        client.get(path)
    found = values(families(client)["potstill_requests"])
    assert {
        (dict(labels)["method"], dict(labels)["path"], dict(labels)["code"]): value for labels, value in found.items()
    } == {
        ("POST", "/predict", "200"): 1,
        ("POST", "/predict", "422"): 1,
        ("POST", "/models/{name}/predict", "200"): 1,
        ("any", "none", "404"): 1,
        ("any", "none", "405"): 1,
    }


def test_metrics_show_queue_batches_stages_and_memory(client, engine):
    post(client, {"inputs": ["good", "a good film"]})
    engine.observer.shadow("tiny", "other", agreed=True)
    engine.observer.outcome("tiny", "gone")
    found = families(client)
    assert values(found["potstill_queue_rows"]) == {(("model", "tiny"),): 3}
    assert values(found["potstill_predicted_wait_seconds"]) == {(("model", "tiny"),): 0.25}
    assert values(found["potstill_tokens"])[("kind", "padding"), ("model", "tiny")] == 2
    buckets = {sample.labels.get("le"): sample.value for sample in found["potstill_batch_rows"].samples}
    assert (buckets["1.0"], buckets["2.0"]) == (0, 1)
    stages = {sample.labels["stage"] for sample in found["potstill_stage_seconds"].samples}
    assert stages == {"tokenise", "queue", "infer", "read"}
    assert values(found["potstill_shadow_answers"])[("agreed", "true"), ("model", "tiny"), ("shadow", "other")] == 1
    assert values(found["potstill_outcomes"])[("model", "tiny"), ("outcome", "gone")] == 1
    assert values(found["process_resident_memory_bytes"])[()] > 1e6
    counted = {sample.name: sample.value for sample in found["potstill_request_seconds"].samples}
    assert counted["potstill_request_seconds_count"] == 1


def test_labels_stay_few_whatever_is_asked(client):
    for index in range(50):
        client.request(f"M{index}", f"/path-{index}")
        client.get(f"/models/{index}")
    assert len(families(client)["potstill_requests"].samples) == 2  # 404, of no path and of no model


@pytest.mark.parametrize("path", PAGES)
def test_a_page_loads_nothing_from_elsewhere_and_runs_nothing_inline(client, path):
    response = client.get(path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    links = re.findall(r'(?:src|href)="([^"]*)"', response.text)
    assert not [link for link in links if re.match(r"\w+:|//", link)]
    assert not re.search(r"<style|style=|<script(?![^>]*src=)|\son\w+=|javascript:", response.text)
    for link in links:
        if link.startswith("static/"):
            file = client.get("/" + link)
            assert (file.status_code, file.headers["x-content-type-options"]) == (200, "nosniff")


def test_scripts_never_write_markup(client):
    for name in ("page.js", "parts.js", "docs.js"):
        text = client.get(f"/static/{name}").text
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?://", text)
