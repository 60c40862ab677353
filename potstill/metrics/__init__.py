"""The metrics, on numpy arrays alone: those of scikit-learn, seqeval, SQuAD and GLUE.

Unless said otherwise `labels` and `predictions` are integer arrays of shape (examples,) and `logits` is an array of
shape (examples, classes). Every metric is a share or a correlation of at most 1, except `mse`, `loss` and `perplexity`.
"""

from potstill.metrics.classification import (
    CALIBRATION_BINS,
    ClassRow,
    classification_report,
    classification_scores,
    confidence_bins,
    confusion_matrix,
    expected_calibration_error,
    matthews_correlation,
    multi_label_report,
    multi_label_scores,
    occurring_classes,
    softmax,
)
from potstill.metrics.glue import GLUE_METRICS, WNLI, glue_summary, glue_task, retention_by_definition
from potstill.metrics.regression import (
    correlations,
    masked_lm_scores,
    pearson,
    perplexity,
    regression_scores,
    row_cosines,
    spearman,
)
from potstill.metrics.squad import normalize_answer, squad_exact_match, squad_f1, squad_scores
from potstill.metrics.token_labels import entity_report, entity_scores, get_entities, tag_names

__all__ = [
    "CALIBRATION_BINS",
    "GLUE_METRICS",
    "WNLI",
    "ClassRow",
    "classification_report",
    "classification_scores",
    "confidence_bins",
    "confusion_matrix",
    "correlations",
    "entity_report",
    "entity_scores",
    "expected_calibration_error",
    "get_entities",
    "glue_summary",
    "glue_task",
    "masked_lm_scores",
    "matthews_correlation",
    "multi_label_report",
    "multi_label_scores",
    "normalize_answer",
    "occurring_classes",
    "pearson",
    "perplexity",
    "regression_scores",
    "retention_by_definition",
    "row_cosines",
    "softmax",
    "spearman",
    "squad_exact_match",
    "squad_f1",
    "squad_scores",
    "tag_names",
]
