"""Log failures by their class and place, never by their message, which may quote the client's text."""

import logging
import traceback

_LOG = logging.getLogger("potstill.serve")


def log_failure(what: str, error: BaseException) -> None:
    """Log one line: what failed, the exception's class, and where it was raised."""
    # No `exc_info` either: a traceback ends with the message.
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"
    _LOG.error("%s: %s at %s", what, type(error).__name__, place)
