"""The programs of the guides and of the cookbook run as they stand, and do what is said of them."""

import functools
import re

import pytest
import torch
from guides import PAGES, RECIPES, name_of, program

import functional_optim as fo


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_program_of_a_page(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(program(path, checked=True), str(path), "exec"), {"__name__": "a_page"})


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_is_checked_and_listed(path):
    assert "<!-- check" in path.read_text()
    assert f"]({path.name})" in (path.parent / "index.md").read_text()


@pytest.mark.parametrize("library", ["optax", "torchopt"])
def test_the_names_of_other_libraries_are_theirs(library):
    package = pytest.importorskip(library)
    names = set(re.findall(rf"`{library}\.([\w.]+)", "".join(path.read_text() for path in PAGES)))
    assert names
    for name in names:
        functools.reduce(getattr, name.split("."), package)


def test_what_other_programs_call_of_ours_is_there():
    """In the blocks that don't run, since they need other libraries."""
    blocks = re.findall(
        r"^```\{code-block\} python\n(.*?)^```", "".join(page.read_text() for page in PAGES), re.DOTALL | re.MULTILINE
    )
    names = set(re.findall(r"\bfo\.([\w.]+)", "".join(blocks)))
    assert len(names) > 8
    for name in names:
        functools.reduce(getattr, name.split("."), fo)
