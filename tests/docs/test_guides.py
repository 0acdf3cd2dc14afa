"""The programs of the guides and of the cookbook run as they stand, and do what is said of them.

A page is one program: its blocks marked `python`, one after another. What is checked stands in comments that readers don't see,
`<!-- check … -->`. Blocks of other kinds show programs of other libraries.
"""

import functools
import re
from pathlib import Path

import pytest
import torch
from builds import ROOT

DOCS = ROOT / "docs"
RECIPES = sorted(path for path in DOCS.glob("cookbook/*.md") if path.stem != "index")
PAGES = [DOCS / "index.md", *sorted(DOCS.glob("guides/*.md")), *RECIPES]
BLOCK = re.compile(r"^```python\n(.*?)^```|^<!-- check\n(.*?)^-->", re.DOTALL | re.MULTILINE)
# Minutes, where a compiler starts.
SLOW: set[str] = set()


def program(path: Path, *, checked: bool) -> str:
    """The blocks of a page, each where it stands, so that an error tells its line; checks too, or not."""
    text = path.read_text(encoding="utf-8")
    kept = [""] * (text.count("\n") + 1)
    for found in BLOCK.finditer(text):
        code = found[1] or (found[2] if checked else None)
        if code is not None:
            first = text[: found.start()].count("\n") + 1
            kept[first : first + code.count("\n")] = code.splitlines()
    return "\n".join(kept)


def name_of(path: Path) -> str:
    return path.relative_to(DOCS).with_suffix("").as_posix()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=pytest.mark.full if name_of(path) in SLOW else [], id=name_of(path)) for path in PAGES]
)
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
