"""A suite's file: what is read from it, and every fault at once."""

import pytest

from potstill.bench.config import read_suite
from potstill.errors import UsageError

GOOD = """
tasks:
  sst2:
    data: nyu-mll/glue:sst2
    models: {teacher: a-onnx, student: b-onnx}
  Own reviews:
    data: folder
    split: test
    text_columns: [first, second]
    label_column: stars
    limit: 50
    models:
      teacher: c-onnx
"""
BAD = """
tasks:
  SST-2:
    data: folder
    modles: {teacher: a}
    models: {teacher: a, studnet: b, big: c}
  sst2:
    data: folder
    models: {teacher: ""}
"""


@pytest.fixture
def write(tmp_path):
    def put(text):
        file = tmp_path / "suite.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return put


def test_data_sets_are_read_with_glues_names(write):
    suite = read_suite(write(GOOD), models=["teacher", "student"])
    assert list(suite.tasks) == ["SST-2", "Own reviews"]
    first, own = suite.tasks.values()
    assert (first.data, first.split, first.text_columns, first.label_column, first.limit) == (
        "nyu-mll/glue:sst2",
        "validation",
        None,
        None,
        None,
    )
    assert first.models == {"teacher": "a-onnx", "student": "b-onnx"}
    assert (own.split, own.text_columns, own.label_column, own.limit) == ("test", ["first", "second"], "stars", 50)
    assert read_suite(write(GOOD)) == suite


def test_all_faults_of_the_shape_are_told_at_once_with_the_nearest_key(write):
    text = GOOD.replace("split: test", "splitt: test").replace("limit: 50", "limit: 0") + "task: x\n"
    with pytest.raises(UsageError) as caught:
        read_suite(write(text.replace("    data: nyu-mll/glue:sst2\n", "")))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("suite.yaml is not valid:")
    assert sorted(lines[1:]) == [
        "  task: unknown key; did you mean 'tasks'?",
        "  tasks.Own reviews.limit: input should be greater than or equal to 1 (it is 0)",
        "  tasks.Own reviews.splitt: unknown key; did you mean 'split'?",
        "  tasks.sst2.data: is missing",
    ]


def test_all_faults_of_the_names_are_told_at_once(write):
    with pytest.raises(UsageError) as caught:
        read_suite(write(BAD), models=["teacher", "student"])
    assert str(caught.value).splitlines()[1:] == [
        "  tasks.SST-2.modles: unknown key; did you mean 'models'?",
        "  tasks.SST-2: is SST-2, which is there twice",
        "  tasks.sst2: is SST-2, which is there twice",
        "  tasks.SST-2.models.studnet: is no model of this bench; did you mean 'student'?",
        "  tasks.SST-2.models.big: is no model of this bench; known are teacher, student",
        "  tasks.sst2.models.teacher: is empty",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "is not YAML"), ("- a", "holds no suite"), ("", "holds no suite"), ("tasks: {}", "at least 1 item")],
)
def test_what_is_no_suite_is_refused(write, text, said):
    with pytest.raises(UsageError, match=said):
        read_suite(write(text))


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        read_suite(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        read_suite(tmp_path / "bytes.yaml")
