"""A small, seeded share of the fuzzing; `python -m tests.faults.fuzz` sends 200,000 inputs."""

import pytest

from tests.faults.bed import Bed, tiny_bundle, well
from tests.faults.converse import send_grammar, spins
from tests.faults.fuzz import Documented, send_hypothesis, send_made
from tests.faults.grammar import Grammar
from tests.faults.rfc import read_requests

# Short, so that connections which are left open for the server to end do not hold the test up.
LIMITS = {"header_seconds": 3.0, "body_seconds": 3.0, "idle_seconds": 3.0}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with tiny_bundle() as bundle:
        bed = Bed(bundle=bundle, scratch=tmp_path_factory.mktemp("fuzz"))
        with bed.server(limits=LIMITS) as (server, _):
            yield server


def none(seen):
    assert not seen.failures, (seen.failures, {kind: examples[0] for kind, examples in seen.examples.items()})


def test_whatever_http_can_be_made_to_look_like_is_answered_as_the_standard_asks(server):
    seen, _ = send_grammar(server, sorted(Documented(server.port).paths), count=2000, seed=1, patience=5.0)
    none(seen)
    assert sum(seen.inputs.values()) == 2000
    assert {"200", "204", "400", "404", "405", "414", "415", "417", "422"} <= set(seen.statuses)
    assert spins(server, seconds=0.5) < 0.5
    well(server)


def test_made_inputs_get_documented_answers(server):
    seen = send_made(server, Documented(server.port), count=3000, seed_number=1)
    none(seen)
    assert sum(seen.inputs.values()) == 3000
    assert {"200", "400", "404", "405", "415", "422"} <= set(seen.statuses)
    well(server)


def test_any_bytes_and_any_json_get_documented_answers(server):
    seen = send_hypothesis(server, Documented(server.port), count=400, seed_number=1)
    none(seen)
    well(server)


def test_an_input_is_the_same_bytes_whatever_was_made_before_it():
    straight, back = Grammar(5, ["/docs"]), Grammar(5, ["/docs"])
    assert [straight.input(n) for n in range(50)] == [back.input(n) for n in reversed(range(50))][::-1]
    assert straight.input(7).data != Grammar(6, ["/docs"]).input(7).data


def test_the_grammar_makes_whole_requests_of_every_version_and_framing():
    inputs = [Grammar(1, []).input(number) for number in range(3000)]
    requests = [request for one in inputs for request in read_requests(one.data).requests]
    kinds = {
        (request.version, b"host" in request.fields, framing)
        for request in requests
        for framing in (b"content-length", b"transfer-encoding", b"connection", b"expect")
        if framing in request.fields
    }
    old = {(b"0", has_host, name) for has_host in (False, True) for name in (b"content-length", b"connection")}
    new = {(b"1", True, name) for name in (b"content-length", b"transfer-encoding", b"connection", b"expect")}
    assert old | new <= kinds
    assert {request.method for request in requests} >= {b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"}
    assert sum(len(read_requests(one.data).requests) > 1 for one in inputs) > 100  # pipelines
    for version in (b"HTTP/0.9", b"HTTP/2.0", b"PRI * HTTP/2.0\r\n\r\nSM", b"GET /health/live\r\n"):
        assert any(version in one.data for one in inputs), version
