"""The site: a page for every public name, formulas, and what a built site is held to. `make docs` builds it."""

import doctest
import inspect
from pathlib import Path

import formulas
import pages
import pytest
import verify
from builds import ROOT

import functional_optim as fo

BUILT = ROOT / "docs" / "_build"
SYMBOLS = pages.symbols()


@pytest.mark.parametrize("module", [formulas, pages], ids=lambda module: module.__name__)
def test_examples(module):
    assert doctest.testmod(module).failed == 0


def test_every_public_name_has_one_page():
    found = [symbol.short for symbol in SYMBOLS]
    assert len({name.page for name in SYMBOLS}) == len(found)
    assert set(fo.__all__) <= set(found)
    assert {f"adapters.{name}" for name in fo.adapters.__all__} <= set(found)
    assert {f"meta.{name}" for name in fo.meta.__all__} <= set(found)
    # Those that are exported twice, `fo.minimize` and `fo.solvers.minimize`, have one page.
    missing = set(fo.find()) - set(found)
    assert not missing


def test_every_public_name_says_what_it_is():
    assert not [symbol.short for symbol in SYMBOLS if not pages.summary(symbol.value)]


def test_a_new_export_has_a_page_without_further_work(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_groups", lambda: iter([("Rules", ["scale_by_adam", "scale"])]))
    pages.write(tmp_path)
    page = (tmp_path / "api" / "scale_by_adam.rst").read_text()
    assert "autofunction:: functional_optim::scale_by_adam" in page and ".. formulas::" in page
    assert "scale </api/scale>" in (tmp_path / "api" / "all-rules.rst").read_text()
    assert (tmp_path / "api" / "adapters.AdamW.rst").exists(), "modules have their names by their own tables"


def test_the_source_of_a_name_is_its_code_without_docstrings():
    by_name = {symbol.short: symbol for symbol in SYMBOLS}
    adam = "\n".join(pages.source(by_name["scale_by_adam"]))
    assert "m = b1 * m + (1 - b1) * g" in adam and '"""' not in adam, "the rule, which another function of the file has"
    assert "chain(" in "\n".join(pages.source(by_name["adamw"])) and not pages.source(by_name["Transform"])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("λ p", '<math><mi>λ</mi><mspace width="0.17em"/><mi>p</mi></math>'),
        ("β₂ᵗ", "<math><msubsup><mi>β</mi><mrow><mn>2</mn></mrow><mrow><mi>t</mi></mrow></msubsup></math>"),
        ("(1 − a) / 2", "<math><mfrac><mrow><mn>1</mn><mo>−</mo><mi>a</mi></mrow><mn>2</mn></mfrac></math>"),
        ("t^−1/2", "<math><msup><mi>t</mi><mrow><mo>−</mo><mn>1</mn><mo>/</mo><mn>2</mn></mrow></msup></math>"),
        ("ĝ", '<math><mover accent="true"><mi>g</mi><mo>^</mo></mover></math>'),
    ],
)
def test_formulas(text, expected):
    assert formulas.mathml(text) == expected


def test_what_is_no_formula_stays_code():
    for text in (
        "(params, *args, generator=…) -> gradients",
        "chain(laprop(), subtract_decayed_weights(λ))",
        "fo.adamw(lr=1e-3)",
    ):
        assert not formulas.is_formula(text)
    with pytest.raises(formulas.NoFormula):
        formulas.mathml("√(v + ε")


def test_every_formula_of_a_docstring_can_be_set():
    docs = [inspect.getdoc(symbol.value) or "" for symbol in SYMBOLS]
    found = {piece for doc in docs for piece in doc.split("`")[1::2] if formulas.is_formula(piece)}
    assert len(found) > 80
    for piece in found:
        formulas.mathml(piece)


def test_docstrings_become_restructured_text():
    lines = ["The `a` of |g|, `code over", "two lines`s.", "", "    m ← β m", "", "State: `m`_1.", "", ">>> f(|x|)", "`y`"]
    found = pages.restructured(lines)
    assert found[:2] == ["The ``a`` of \\|g\\|, ``code over", "two lines``\\ s."]
    assert found[3:6] == [".. formulas::", "", "    m ← β m"]
    assert "**State:** ``m``_1." in found
    assert found[-3:-1] == [">>> f(|x|)", "`y`"], "an example stays as it is"


def test_dead_links_and_what_is_fetched_are_found(tmp_path):
    page = (
        '<a href="b.html#there">x</a><a href="b.html#gone">y</a><a href="c.html">z</a><a href="https://arxiv.org/abs/1">paper</a>'
    )
    texts = {tmp_path / "a.html": page, tmp_path / "b.html": '<p id="there">'}
    assert [found.split("'")[1] for found in sorted(verify.dead_links(texts))] == ["b.html#gone", "c.html"]
    loads = {
        Path("a.html"): '<script src="https://cdn.example/x.js"></script><link rel="stylesheet" href="//cdn.example/y.css">',
        Path("b.css"): "@font-face { src: url(https://cdn.example/z.woff) } a { background: url(data:image/png;base64,) }",
        Path("c.html"): '<img src="here.png"><a href="https://arxiv.org">paper</a>',
    }
    assert len(verify.fetches(loads)) == 3


@pytest.mark.skipif(not (BUILT / "index.html").exists(), reason="the site is not built: `make docs` builds it")
def test_the_site_that_is_built_is_whole():
    if any(not (BUILT / f"{symbol.page}.html").exists() for symbol in SYMBOLS):
        pytest.skip("the site was built before the newest names were exported")
    assert not verify.faults(BUILT, [symbol.page for symbol in SYMBOLS])
