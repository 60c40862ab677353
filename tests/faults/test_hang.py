"""Requests whose bytes nobody takes: the server must neither spin on them nor keep others waiting.

They speak TCP alone. Each is sent by a client that then stays silent with its connection open, which is when a loop
that waits for progress that never comes is seen.
"""

import time

import pytest

from tests.faults.bed import Bed, is_error, tiny_bundle, well
from tests.faults.converse import spins
from tests.faults.framing import HOSTLESS
from tests.faults.rawhttp import Connection, NoAnswer

SECONDS = 5.0


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    with tiny_bundle() as bundle:
        bed = Bed(bundle=bundle, scratch=tmp_path_factory.mktemp("hang"))
        yield bed
        bed.close()


def test_sigterm_is_obeyed_after_a_request_of_40_bytes(bed):
    with bed.server(limits={"header_seconds": 1.0, "body_seconds": 1.0}) as (server, _):
        with Connection(server.port, seconds=SECONDS) as connection:
            connection.send(b"GET / HTTP/1.0\r\nContent-Length: 1\r\n\r\nx")
            time.sleep(0.3)
            assert server.is_alive(), "one request keeps every other client waiting"
            response = connection.read()
            assert response.status in {200, 404}  # RFC 9112, section 6.1: the length says where the body ends
            assert response.closes
        assert spins(server, seconds=0.5) < 0.5
        assert server.terminate(seconds=15) == 0


@pytest.mark.parametrize("name", HOSTLESS)
def test_framing_is_read_of_requests_without_a_host_as_of_others(bed, name):
    data, statuses = HOSTLESS[name]
    server = bed.shared()
    with Connection(server.port, seconds=SECONDS) as connection:
        connection.send(data)
        found = []
        try:
            while len(found) < len(statuses):
                found.append(connection.read(head=data.startswith(b"HEAD")))
        except NoAnswer as error:
            pytest.fail(f"{error} after {[response.status for response in found]}")
        assert [response.status for response in found] == statuses
        for response in found:
            if response.status >= 400:
                is_error(response, response.status)
        closes = found[-1].closes
        assert connection.ended(seconds=SECONDS if closes else 0.2) == closes
    well(server)
