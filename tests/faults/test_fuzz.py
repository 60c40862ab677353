"""A small, seeded share of the fuzzing; `python -m tests.faults.fuzz` sends 200,000 inputs."""

import pytest

from tests.faults.bed import Bed, tiny_bundle, well
from tests.faults.fuzz import Documented, send_hypothesis, send_made


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with tiny_bundle() as bundle:
        bed = Bed(bundle=bundle, scratch=tmp_path_factory.mktemp("fuzz"))
        with bed.server() as (server, _):
            yield server


def test_made_inputs_get_documented_answers(server):
    seen = send_made(server, Documented(server.port), count=3000, seed_number=1)
    assert not seen.failures, (seen.failures, {kind: examples[0] for kind, examples in seen.examples.items()})
    assert sum(seen.inputs.values()) == 3000
    assert {"200", "400", "404", "405", "415", "422"} <= set(seen.statuses)
    well(server)


def test_any_bytes_and_any_json_get_documented_answers(server):
    seen = send_hypothesis(server, Documented(server.port), count=400, seed_number=1)
    assert not seen.failures, (seen.failures, {kind: examples[0] for kind, examples in seen.examples.items()})
    well(server)
