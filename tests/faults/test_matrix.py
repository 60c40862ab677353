"""The quick share of the fault matrix; `python -m tests.faults` runs all of it in full numbers."""

import pytest

from tests.faults.bed import Bed, tiny_bundle
from tests.faults.matrix import FAULTS


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    with tiny_bundle() as bundle:
        bed = Bed(bundle=bundle, scratch=tmp_path_factory.mktemp("faults"))
        yield bed
        bed.close()


def test_the_matrix_has_at_least_30_names_and_each_once():
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names)) >= 30


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.name) for fault in FAULTS if fault.quick])
def test_it_survives(fault, bed):
    fault.do(bed)
