import pytest
from starlette.testclient import TestClient

from potstill.serve.http import create_app
from potstill.serve.limits import Limits
from tests.serve.http.fake import FakeEngine

LIMITS = Limits(body_bytes=20_000, inputs=4, characters_per_token=10)


@pytest.fixture
def engine(encoder):
    return FakeEngine(tiny=encoder)


@pytest.fixture
def client(engine):
    return TestClient(create_app(engine, limits=LIMITS))
