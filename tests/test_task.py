import pytest

from potstill.errors import UsageError
from potstill.metrics import CLASSIFICATION
from potstill.task import TASKS, TEXT_CLASSIFICATION, get_task


def test_a_task_is_found_by_the_hubs_name():
    assert get_task("text-classification") is TEXT_CLASSIFICATION
    assert TEXT_CLASSIFICATION.model_class == "AutoModelForSequenceClassification"
    assert TEXT_CLASSIFICATION.output == "logits"


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"^task 'translation' is not known; potstill knows text-classification$"):
        get_task("translation")


@pytest.mark.parametrize("name", TASKS)
def test_each_task_is_filed_under_its_name_and_judged_by_a_metric_that_exists(name):
    assert TASKS[name].name == name
    assert TASKS[name].metric in CLASSIFICATION


def test_pairs_are_looked_for_before_single_columns():
    lengths = [len(columns) for columns in TEXT_CLASSIFICATION.text_columns]
    assert set(lengths) == {1, 2}
    assert lengths == sorted(lengths, reverse=True)
