"""Distil a student from a teacher: data, methods, training, scoring and the published checkpoint.

`run` holds the way from a recipe to a checkpoint, `methods` the losses, `trainer` the training, `glue` the GLUE grid.
Needs the extra `distill` (torch, transformers, datasets).

from potstill.distill import create_student, distill, evaluate

report = distill("teacher/", "student/", data="nyu-mll/glue:sst2", settings={"student.layers": 3})
scores = evaluate("student/", data="nyu-mll/glue:sst2")
"""

from potstill.extras import needing

with needing("distill"):
    from potstill.distill.evaluation import evaluate, evaluate_model
    from potstill.distill.run import distill, finetune, init_student, read_report
    from potstill.distill.student import create_student
    from potstill.distill.trimming import trim

__all__ = ["create_student", "distill", "evaluate", "evaluate_model", "finetune", "init_student", "read_report", "trim"]
