"""Score models on labelled texts, say how sure the scores are, compare them, and decide.

- `predictions`: `predict` asks a model as the server does; `collect_outputs` takes its raw numbers
- `scores`: the task's metrics of predictions, and of any resample of the texts
- `labels`: the recall of every label, or type of entity, and how far it falls
- `intervals`: Wilson's interval, McNemar's test, the paired bootstrap
- `trivial`: the best answer that ignores the text, which every model has to beat
- `comparison`: several models on one data set: retention, agreement, calibration, disagreements
- `decision`: PASS, FAIL or INCONCLUSIVE by an interval; what a sample of this size can show
- `summary`: the result for one model, `evaluate_bundle`
- `results`: the results as they stand in report.json

Export compares int8 with fp32 by it, `bench` every model with the baseline, `distill` a student with its labels, and
`evaluate` scores one model. Nothing here loads torch. Import the modules by name: this one stays empty, so that a
report can be read without onnxruntime.
"""

__all__ = ["comparison", "decision", "intervals", "labels", "predictions", "results", "scores", "summary", "trivial"]
