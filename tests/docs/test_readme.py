"""The README's programs run as they stand, one after another."""

import re
import textwrap
from pathlib import Path

import pytest
from builds import ROOT, SOURCES, relative

README = (ROOT / "README.md").read_text()


def test_every_program_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for program in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(program, "README.md", "exec"), names)
    printed = capsys.readouterr().out.strip()
    assert f"# {printed}" in README, "what the README says is printed is not what was"
    assert names["losses"].shape == (64,)
    assert all(slope.isfinite() for slope in names["slopes"].values())


MAP = README[README.index("\nfunctional_optim/\n") : README.index("\ntests/ ")]


@pytest.mark.parametrize("path", dict.fromkeys(re.findall(r"(?:\.\./)?[\w/]*(?:\w\.py|\w/(?= ))", MAP)))
def test_the_map_is_true(path):
    found = [source for source in SOURCES if f"/{relative(source)}".endswith(f"/{path.removeprefix('../')}")]
    assert found or (ROOT / path).is_dir() or list(ROOT.glob(f"[fa]*/{path}"))


def test_the_map_has_all_of_the_package():
    inside = [path for path in (ROOT / "functional_optim").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert not [path.name for path in inside if path.name != "__init__.py" and not re.search(rf"\b{path.name}\b", MAP)]


def test_every_public_name_is_in_a_table():
    import functional_optim as fo

    tables = README + (Path(fo.__file__).parent / "CATALOGUE.md").read_text()
    missing = [name for name in [*fo.__all__, *fo.adapters.__all__] if f"`{name}`" not in tables]
    assert not missing


def test_the_rule_that_contributing_writes_keeps_the_laws():
    import functional_optim as fo

    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    names = {}
    exec(compile(textwrap.dedent(program), "CONTRIBUTING.md", "exec"), names)
    fo.testing.check_transform(names["scale_by_magnitude"]())


def test_what_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"`((?:functional_optim|tests|adapters)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make ([\w-]+)", text)) <= set(targets)
