import sys

import pytest

from potstill.errors import CheckpointError
from potstill.hub import check_name


def test_without_the_hubs_client_it_is_the_client_that_is_missing_and_no_variable(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="huggingface_hub must be installed") as refused:
        check_name("somebody/a-model", "model")
    assert "HF_HUB_OFFLINE" not in str(refused.value)
