"""The numbers that judge answers, on numpy arrays alone.

Everywhere: `labels` and `predictions` are integer arrays of shape (examples,) and `logits` is (examples, classes),
where nothing else is said. Every number is a share or a correlation of at most 1 but `mse`, `loss` and `perplexity`.
"""

from potstill.metrics.amounts import correlations, masked_words, pearson, perplexity, regression, row_cosines, spearman
from potstill.metrics.answers import answer_exact, answer_f1, normalise_answer, question_answering
from potstill.metrics.baselines import Constant, baseline, best_constant, constant_answers
from potstill.metrics.calibration import CALIBRATION_BINS, confidence_bins, expected_calibration_error
from potstill.metrics.classes import (
    CLASSIFICATION,
    accuracy,
    agreement,
    classification,
    confusion_matrix,
    f1_per_class,
    majority_share,
    matthews_correlation,
    multi_label,
    occurring,
    per_class,
    per_label,
    precision_per_class,
    recall_per_class,
    softmax,
)
from potstill.metrics.entities import find_entities, per_entity, tag_names, tagging
from potstill.metrics.glue import GLUE_METRICS, WNLI, glue_summary, glue_task, retention_by_definition

__all__ = [
    "CALIBRATION_BINS",
    "CLASSIFICATION",
    "GLUE_METRICS",
    "WNLI",
    "Constant",
    "accuracy",
    "agreement",
    "answer_exact",
    "answer_f1",
    "baseline",
    "best_constant",
    "classification",
    "confidence_bins",
    "confusion_matrix",
    "constant_answers",
    "correlations",
    "expected_calibration_error",
    "f1_per_class",
    "find_entities",
    "glue_summary",
    "glue_task",
    "majority_share",
    "masked_words",
    "matthews_correlation",
    "multi_label",
    "normalise_answer",
    "occurring",
    "pearson",
    "per_class",
    "per_entity",
    "per_label",
    "perplexity",
    "precision_per_class",
    "question_answering",
    "recall_per_class",
    "regression",
    "retention_by_definition",
    "row_cosines",
    "softmax",
    "spearman",
    "tag_names",
    "tagging",
]
