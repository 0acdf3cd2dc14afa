"""The catalogue says what the code says, and leaves nothing out."""

import pytest
from catalogue import FILE, TITLES, _names, _tests, catalogue

NAMES = [name for section in TITLES for name in _names(section)]


def test_it_is_what_the_code_makes():
    assert FILE.read_text() == catalogue(), "out of date: run `make catalogue`"


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_has_a_test_of_its_own(name):
    assert _tests(name)
