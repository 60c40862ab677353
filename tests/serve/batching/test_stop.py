import pytest

from potstill.errors import CheckError
from potstill.serve.session import Stop


def test_a_stopped_run_raises_and_the_next_one_does_not(encoder, capfd):
    feeds = encoder.tokenizer.encode(["a good film"])
    expected = encoder.session.run(feeds)
    stop = Stop()
    assert not stop.is_set
    assert (encoder.session.run(feeds, stop)["logits"] == expected["logits"]).all()
    stop.set()
    assert stop.is_set
    with pytest.raises(CheckError, match="failed to run"):
        encoder.session.run(feeds, stop)
    assert (encoder.session.run(feeds, Stop())["logits"] == expected["logits"]).all()
    assert capfd.readouterr() == ("", "")
