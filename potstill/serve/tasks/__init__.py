"""The tasks: how a request becomes features for a model, and how the model's outputs become an answer.

One module per task, named as the task on the Hugging Face hub and in `potstill.tasks`, with `_` for `-`; each has its
`ServedTask` under the name `TASK`. There are no other decoders: the server, `Encoder.predict`, the evaluation and the
benchmarks all use these, because two decoders once gave two scores (docs/log.md). Pure: no threads and no HTTP. What
the tasks share is in `inputs` (the schemas of requests) and `features`.

To serve another task, add its module here and its entry to `potstill.tasks.TASKS`; `Encoder`, the engine, `/predict`,
the OpenAPI document and `/v2` then know it (tests/serve/tasks/test_new_task.py). To train, export and evaluate it takes
more: its metrics in `potstill.tasks`, its columns in `potstill.data`, its head in `potstill.checkpoint`, its numbers in
`potstill.evaluation.predictions`.
"""

from importlib import import_module

from potstill.serve.tasks.features import Features, Outputs, ServedTask, TaskModel

__all__ = ["Features", "Outputs", "ServedTask", "TaskModel", "served_task"]


def served_task(name: str) -> ServedTask:
    """Return the task of this name, one of `potstill.tasks.TASKS`; it is in the module of the same name."""
    task: ServedTask = import_module(f"{__name__}.{name.replace('-', '_')}").TASK
    return task
