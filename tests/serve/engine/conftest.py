"""Fixtures of the engine's tests."""

import pytest

from tests.serve.engine.scripted import scripted


@pytest.fixture
def slow(encoder):
    return scripted(encoder)
