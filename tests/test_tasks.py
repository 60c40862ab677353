import pytest

from potstill import metrics
from potstill.errors import UsageError
from potstill.tasks import (
    FEATURE_EXTRACTION,
    FILL_MASK,
    METRICS,
    MULTI_LABEL,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE_LABEL,
    TASKS,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    get_task,
    kind_of,
    lower_is_better,
    primary_metric,
)

NAMES = ["text-classification", "token-classification", "question-answering", "fill-mask", "feature-extraction"]


def test_a_task_is_found_by_the_hubs_name():
    assert get_task("text-classification") is TEXT_CLASSIFICATION
    assert TEXT_CLASSIFICATION.model_class == "AutoModelForSequenceClassification"
    assert TEXT_CLASSIFICATION.output == "logits"
    assert list(TASKS) == NAMES


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=rf"^task 'translation' is not known; potstill knows {', '.join(NAMES)}$"):
        get_task("translation")


@pytest.mark.parametrize("name", NAMES)
def test_each_task_is_filed_under_its_name_and_judged_first_by_its_own_metric(name):
    assert TASKS[name].name == name
    assert primary_metric(TASKS[name]) == TASKS[name].metric


def test_perplexity_is_better_when_it_is_lower():
    assert [task.name for task in TASKS.values() if task.lower_is_better] == ["fill-mask"]
    assert [name for names in METRICS.values() for name in names if lower_is_better(name)] == [
        "mse",
        "perplexity",
        "loss",
    ]


def test_pairs_are_looked_for_before_single_columns():
    for task in (TEXT_CLASSIFICATION, FEATURE_EXTRACTION):
        lengths = [len(columns) for columns in task.text_columns]
        assert set(lengths) == {1, 2}
        assert lengths == sorted(lengths, reverse=True)


def test_a_text_classifier_is_judged_by_its_problem():
    assert kind_of(TEXT_CLASSIFICATION) == SINGLE_LABEL
    assert [primary_metric(TEXT_CLASSIFICATION, problem) for problem in PROBLEM_TYPES] == [
        "accuracy",
        "micro_f1",
        "pearson",
    ]


def test_only_text_classifiers_have_a_problem_type():
    assert kind_of(TOKEN_CLASSIFICATION, SINGLE_LABEL) == "token-classification"
    assert primary_metric(FILL_MASK, REGRESSION) == "perplexity"


@pytest.mark.parametrize(
    ("problem", "asked"),
    [
        (None, "matthews_correlation"),
        (SINGLE_LABEL, "accuracy_and_f1"),
        (REGRESSION, "pearson_and_spearman"),
        (MULTI_LABEL, "subset_accuracy"),
    ],
)
def test_a_recipe_may_ask_for_another_metric(problem, asked):
    assert primary_metric(TEXT_CLASSIFICATION, problem, asked=asked) == asked


@pytest.mark.parametrize(
    ("problem", "asked"), [(None, "mcc"), (None, "pearson"), (REGRESSION, "accuracy"), (MULTI_LABEL, "f1")]
)
def test_a_metric_of_another_kind_is_refused_with_those_there_are(problem, asked):
    kind = problem or SINGLE_LABEL
    with pytest.raises(UsageError, match=rf"^metric '{asked}' does not judge {kind}; expected {METRICS[kind][0]}, "):
        primary_metric(TEXT_CLASSIFICATION, problem, asked=asked)


def test_f1_of_the_positive_class_needs_two_classes():
    assert primary_metric(TEXT_CLASSIFICATION, asked="f1", num_labels=2) == "f1"
    assert primary_metric(TOKEN_CLASSIFICATION, asked="f1", num_labels=9) == "f1"
    with pytest.raises(UsageError, match=r"^metric 'f1' needs 2 labels and the model has 3; take macro_f1$"):
        primary_metric(TEXT_CLASSIFICATION, asked="f1", num_labels=3)


def test_an_unknown_problem_type_is_refused():
    with pytest.raises(UsageError, match=r"^problem type 'ranking' is not known; expected single_label_classif"):
        kind_of(TEXT_CLASSIFICATION, "ranking")


def test_glue_is_judged_by_metrics_that_exist():
    for task, metric in metrics.GLUE_METRICS.items():
        assert metric in METRICS[REGRESSION if task == "STS-B" else SINGLE_LABEL]
