"""What the tests of training share."""

from contextlib import contextmanager

import pytest

from potstill.distill import trainer


class PullThePlug(Exception):
    """Stands for the power cut."""


@pytest.fixture(scope="session")
def pulled_plug():
    """Return a context in which each training is cut off after so many steps, and must be."""

    @contextmanager
    def cut_off(after_steps):
        def pull(self, args, state, control, **kwargs):
            if state.global_step == after_steps:
                raise PullThePlug

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer.ProgressCallback, "on_step_end", pull)
            with pytest.raises(PullThePlug):
                yield

    return cut_off
