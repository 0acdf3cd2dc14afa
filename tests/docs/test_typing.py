"""What a type checker tells users, of an editable install and of the wheel."""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typed_project
from builds import ROOT, built, copied_sources, environment, run
from guides import PAGES, name_of, program

import functional_optim as fo

MODULES = {"fo": fo, "fo.adapters": fo.adapters, "fo.meta": fo.meta, "fo.schedules": fo.schedules, "fo.solvers": fo.solvers}
HEAD = "import torch\nimport functional_optim as fo\n"


def public() -> Iterator[tuple[str, Any]]:
    """Every public function and class, by the name that users write."""
    for module, found in MODULES.items():
        named = ((f"{module}.{name}", getattr(found, name)) for name in found.__all__)
        yield from ((name, call) for name, call in named if inspect.isfunction(call) or inspect.isclass(call))
    yield "fo.testing.check_transform", fo.testing.check_transform


PUBLIC = {name: list(inspect.signature(call).parameters.values()) for name, call in public()}
# These take any keyword: names of hyper-parameters, most often.
TAKE_ALL = {name for name, takes in PUBLIC.items() if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes)}
WRONG = [f"{name}(misspelt=1)" for name in PUBLIC if name not in TAKE_ALL]
WRONG += ["fo.meta.compiled(fo.apply_updates)(misspelt=1)", "fo.meta.remat(fo.apply_updates)(misspelt=1)"]
WRONG += ["fo.adamww()", "fo.adapters.Adamw", "fo.meta.unrol", "fo.adamw(betas=0.9)", 'fo.scale_by_adam(amsgrad="yes")']


def with_their_defaults() -> Iterator[str]:
    """A call of everything that needs no argument, with each of its own defaults by keyword."""
    for name, takes in PUBLIC.items():
        if name not in TAKE_ALL and all(p.default is not p.empty for p in takes if p.kind is not p.VAR_POSITIONAL):
            given = [f"{p.name}={p.default!r}" for p in takes if p.kind is not p.VAR_POSITIONAL]
            yield f"{name}({', '.join(given)})"


def programs() -> str:
    """The README's, one after another."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))


FILES = {
    **{f"{name_of(page).replace('/', '_')}.py": program(page, checked=False) for page in PAGES},
    "strict.py": f"# pyright: strict\n{Path(typed_project.__file__).read_text()}",
    "programs.py": programs(),
    "right.py": HEAD + "\n".join(with_their_defaults()),
    "wrong.py": HEAD + "\n".join(WRONG),
    "shown.py": HEAD + "\n".join(f"reveal_type({name})" for name in PUBLIC),
}


def told(python: Path, folder: Path) -> dict[tuple[str, str], list[str]]:
    """What pyright says of each line of a user's files, in the environment of this Python."""
    for name, text in FILES.items():
        (folder / name).write_text(text)
    # The README and the guides name values to be looked at, which do nothing.
    (folder / "pyrightconfig.json").write_text('{"reportUnusedExpression": false}')
    report = run(sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", str(python), cwd=folder)
    assert report.stdout, report.stderr
    found: dict[tuple[str, str], list[str]] = {}
    for entry in json.loads(report.stdout)["generalDiagnostics"]:
        name = Path(entry["file"]).name
        line = FILES[name].splitlines()[entry["range"]["start"]["line"]]
        found.setdefault((name, line), []).append(entry["message"])
    return found


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_right_calls_pass_misspelt_ones_do_not_and_every_signature_is_shown(kind, tmp_path):
    source = copied_sources(tmp_path)
    if kind == "editable" and not (source / "functional_optim" / "adapters").exists():
        pytest.skip("this checkout has no symbolic links, and without them an editable install is an import hook")
    (tmp_path / "user").mkdir()
    found = told(environment(tmp_path / "environment", built(kind, source)), tmp_path / "user")
    assert [said for (name, _), said in found.items() if name not in ("wrong.py", "shown.py")] == []
    for line in WRONG:
        said = found.get(("wrong.py", line), [])
        refusals = ('No parameter named "misspelt"', "No overloads for")
        assert any(refusal in message for refusal in refusals for message in said) or (said and "misspelt" not in line), line
    for name in PUBLIC:
        (shown,) = found["shown.py", f"reveal_type({name})"]
        assert "Unknown" not in shown and '"(...)' not in shown and '"Any"' not in shown


def test_the_strict_program_runs():
    assert typed_project.main() == ["sgd"]


def test_the_table_of_contents_is_whole():
    shown = [name for name in dir(fo) if not name.startswith("_")]
    assert shown == sorted([*fo.__all__, "adapters", "meta", "numerics", "schedules", "solvers", "testing"])
    assert all(getattr(fo, name) is not None for name in shown)


def test_what_the_core_does_not_need_is_imported_on_first_use():
    program = """
import sys
import functional_optim as fo
for name in ("adapters", "meta", "testing"):
    assert f"functional_optim.{name}" not in sys.modules
    assert getattr(fo, name) is sys.modules[f"functional_optim.{name}"]
"""
    imported = run(sys.executable, "-c", program, cwd=ROOT)
    assert imported.returncode == 0, imported.stderr
