"""The table of planted faults fits the library as it is, so that ``make faults`` plants what it says."""

import ast
import re

import pytest

from tests.faults.__main__ import ROOT
from tests.faults.fault import Fault, place_of
from tests.faults.table import FAULTS

CASES = (ROOT / "tests" / "cases.py").read_text()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_has_one_place(fault):
    text = place_of(fault, ROOT).read_text()
    planted = text.replace(fault.old, fault.new)
    assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(text))  # Python reads it, as something else
    file, *selected = fault.tests
    text = (ROOT / file).read_text() + CASES
    for word in re.findall(r"[\w.]+", selected[1]) if selected else ():
        assert word in ("and", "or", "not") or word in text, (
            f"{file} has no test that {word!r} of {fault.name!r} selects"
        )


def test_names_tell_faults_apart():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_a_text_that_left_the_library_is_told():
    gone = Fault("a fault", "no such text", "", ())
    with pytest.raises(ValueError, match="'a fault' stands 0 times in jaxrnn/, not once; write its text in"):
        place_of(gone, ROOT)
