"""The list of deliberate defects fits the code; running them all takes a minute or two: `make mutants`."""

import pytest
from builds import ROOT
from mutants import MUTANTS, is_caught


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.defect)
def test_the_defect_can_still_be_made(mutant):
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    file, _, rest = mutant.test.replace(" -k ", "::").partition("::")
    laws = (ROOT / "functional_optim/testing").glob("*.py")
    words = "".join(source.read_text() for source in [*(ROOT / "tests").rglob(file), ROOT / "tests/two_processes.py", *laws])
    assert rest in words


def test_a_defect_is_caught_and_no_defect_is_not():
    mutant = next(mutant for mutant in MUTANTS if mutant.test == "test_decay.py")
    assert is_caught(mutant)
    assert not is_caught(mutant._replace(new=mutant.old))
