"""Fixtures of the engine's tests."""

import pytest

from tests.serve.batching.engines import scripted


@pytest.fixture
def slow(encoder):
    return scripted(encoder)
