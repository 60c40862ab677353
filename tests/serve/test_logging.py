import asyncio

import pytest

from potstill.serve.logging import log_failure
from potstill.serve.server import _log_loop_failure

SECRET = "the text of a client"


def failing():
    raise ValueError(SECRET)


@pytest.mark.parametrize("through_the_loop", [False, True])
def test_a_failure_is_one_line_with_its_kind_and_place_and_without_its_message(through_the_loop, caplog):
    try:
        failing()
    except ValueError as error:
        if through_the_loop:
            loop = asyncio.new_event_loop()
            loop.set_exception_handler(_log_loop_failure)
            loop.call_exception_handler({"message": SECRET, "exception": error})
            loop.close()
        else:
            log_failure("this", error)
    (line,) = caplog.messages
    assert "ValueError at " in line
    assert "test_logging.py:" in line
    assert SECRET not in caplog.text


def test_an_error_that_was_never_raised_has_no_place(caplog):
    log_failure("this", MemoryError())
    assert caplog.messages == ["this: MemoryError at an unknown place"]
