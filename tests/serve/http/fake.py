"""An engine without threads: it prepares, runs and reads on the spot."""

from types import SimpleNamespace

from potstill.errors import UsageError
from potstill.serve.batching import Answered, EngineSettings, Gauges, Timings, nothing
from potstill.serve.http_errors import RequestError, invalid


class FakeEngine:
    """Answers with real encoders; `refusal` and `failure` are raised where they are set."""

    def __init__(self, **models):
        self.models = models
        self.settings = EngineSettings(threads=1)
        self.plan = SimpleNamespace(describe=lambda: {"runners": 1})
        self.observer = nothing
        self.refusal = self.failure = None
        self.alive = self.ready = True
        self.asked = []

    def refuse_if_full(self, model, *, client):
        if self.refusal is not None:
            raise self.refusal

    async def answer(self, model, prepare, *, characters, client, timeout_s, received_at):
        about = {"characters": characters, "client": client, "timeout_s": timeout_s, "received_at": received_at}
        self.asked.append({"model": model} | about)
        if self.failure is not None:
            raise self.failure
        try:
            prepared = prepare()
        except RequestError:
            raise
        except UsageError as error:  # as the engine does
            raise invalid(str(error)) from None
        encoder = self.models[model]
        outputs = []
        for index, row in enumerate(prepared.rows):
            given = encoder.session.run(encoder.tokenizer.pad([row]))
            outputs.append(prepared.keep(index, encoder.unpad(given, [row])[0]))
        tokens = sum(len(row["input_ids"]) for row in prepared.rows)
        self.observer.batch(model, rows=len(outputs), tokens=tokens, padded_tokens=tokens + 2, seconds=0.002)
        self.observer.stage(model, "infer", 0.002)
        timings = Timings(tokenise_s=0.001, queue_s=0.0005, infer_s=0.002, tokens=tokens)
        return Answered(answers=prepared.decode(outputs), timings=timings)

    def stats(self, model):
        return Gauges(queued_rows=3, queued_tokens=40, running_rows=1, wait_s=0.25)

    def is_alive(self):
        return self.alive

    def is_ready(self):
        return self.ready
