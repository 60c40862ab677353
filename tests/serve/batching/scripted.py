"""An encoder whose runs a test can hold, slow down, break and count; its answers are the real ones."""

import copy
import threading
import time

from potstill.errors import CheckError


class ScriptedSession:
    """A session that passes a gate before each run; a stop opens it with an error, unless it is deaf."""

    def __init__(self, session):
        self._session = session
        self.inputs, self.outputs, self.threads = session.inputs, session.outputs, session.threads
        self.engine, self.model_file = session.engine, session.model_file
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.runs = []
        self.seconds = 0.0
        self.deaf = False
        self.breaks = lambda feeds: None

    def run(self, feeds, stop=None):
        self.runs.append(feeds["input_ids"].shape)
        self.entered.release()
        while not self.gate.wait(0.002):
            if stop is not None and stop.is_set and not self.deaf:
                raise CheckError("stopped")
        time.sleep(self.seconds)
        error = self.breaks(feeds)
        if error is not None:
            raise error
        return self._session.run(feeds, stop)

    def hold(self):
        self.gate.clear()

    def wait_for_a_run(self):
        assert self.entered.acquire(timeout=10)


def scripted(encoder):
    own = copy.copy(encoder)
    own.session = ScriptedSession(encoder.session)
    return own
