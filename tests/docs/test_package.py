"""The package: what it installs, what it imports, and which way its imports go."""

import ast
import inspect
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import stubs
from builds import ROOT, SOURCES, built, copied_sources, environment, relative, run
from torch.utils._device import _device_constructors

import functional_optim as fo

# Imports go one way: a module may import from its own layer and from those before it.
LAYERS = [
    {"torch_internals", "traced_trees"},
    {"trees", "sharded", "kernel_files", "inductor", "hints", "intervals", "closures"},
    {"recipe"},
    {"numerics"},
    {"philox"},
    {"hparams", "checks", "reductions", "evaluate", "searches"},
    {"form", "codecs"},
    {"lifting"},
    {"numbered", "dimensions", "decompositions", "symmetric"},
    {"coding"},
    {"transform", "apply"},
    {"in_turn"},
    {"rules"},
    {"combinators", "schedules"},
    {"optimizers"},
    {"trials"},
    {"direction", "explain"},
    {"adapters", "meta", "solvers", "testing"},
    {"config", "find"},
]


# The tables of contents import everything.
MODULES = [path for path in SOURCES if path.name != "__init__.py"]


def layer_of(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if module in names)


def imported_modules(tree: ast.Module):
    """The first part below `functional_optim` of everything that a module imports from it when it is loaded."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("functional_optim"):
            below = node.module.split(".")[1:]
            yield from [below[0]] if below else [alias.name for alias in node.names]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_go_one_way(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    own = parts[0] if parts[0] == "adapters" else parts[1]
    for module in imported_modules(ast.parse(path.read_text())):
        assert layer_of(module) <= layer_of(own), f"{own} imports {module}"


def test_the_readme_has_these_layers():
    (table,) = re.findall(r"from those before it\.\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [set(line.split(", ")) for line in table.splitlines()] == LAYERS


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_tensor_that_is_made_says_where(path):
    """Else it lies on torch's default device, wherever the parameters are."""
    makers = {function.__name__ for function in _device_constructors()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"torch.{name}" for name in makers}:
            assert {"device", None} & {keyword.arg for keyword in node.keywords}, f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_file_says_what_it_is_for(path):
    assert ast.get_docstring(ast.parse(path.read_text())), "no module docstring"


def test_optree_is_behind_one_door():
    assert [relative(path) for path in SOURCES if "import optree" in path.read_text()] == [
        "functional_optim/traced_trees.py",
        "functional_optim/trees.py",
    ]


def calls_and_attributes(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func.attr, [keyword.arg for keyword in node.keywords], node.lineno
        elif isinstance(node, ast.Attribute):
            yield node.attr, [], node.lineno


# All mutation is in the adapters; the laws read results, and what writes a chain down reads a tensor that stands for a number.
READING = {"adapters", "testing", "trials.py", "config"}
PURE = [path for path in MODULES if not READING & {*relative(path).split("/")}]


@pytest.mark.parametrize("path", PURE, ids=relative)
def test_the_core_neither_writes_to_nor_reads_from_a_tensor(path):
    for name, keywords, line in calls_and_attributes(path):
        where = f"{path.name}:{line}"
        assert not (name.endswith("_") and not name.endswith("__")), f"{where}: {name} writes in place"
        assert name not in ("data", "item", "tolist", "numpy"), f"{where}: .{name}"
        # `numerics.added_product` is called where nobody compiles or differentiates alone.
        allowed = {"alpha"} if (path.name, name) == ("numerics.py", "call") else set()
        assert not {"out", "alpha", "value", "inplace"} & set(keywords) - allowed, f"{where}: {keywords}"


RULES = [path for path in MODULES if path.parent.name == "rules"]


def lines_of_arithmetic(function: ast.FunctionDef) -> set[int]:
    """The lines of a function and of those inside it, but for signatures, docstrings, checks and returned functions."""
    lines = set()
    for node in ast.walk(function):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_check = isinstance(node, ast.Expr | ast.Assign) and "require_" in ast.unparse(node)
        if isinstance(node, ast.stmt) and not (isinstance(node, ast.FunctionDef) or is_text or is_check):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


@pytest.mark.parametrize("path", RULES, ids=relative)
def test_the_arithmetic_of_a_rule_is_at_most_20_lines(path):
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    counts = {function.name: len(lines_of_arithmetic(function)) for function in functions}
    assert all(count <= 20 for count in counts.values()), counts


def test_the_stub_is_what_the_code_makes():
    assert stubs.parsed(stubs.FILE.read_text()) == stubs.parsed(stubs.stub()), "out of date: run `make catalogue`"


@pytest.mark.parametrize("name", [name for name in fo.__all__ if inspect.isfunction(getattr(fo, name))])
def test_arguments_have_types(name):
    """A decorator gives types to numbers; options have those that are written."""
    for parameter in inspect.signature(getattr(fo, name)).parameters.values():
        assert parameter.annotation is not parameter.empty, f"{name}: annotate {parameter.name}"


WHERE = "import functional_optim as fo; print(fo.adapters.AdamW.__module__, fo.__file__)"
FIND = "from importlib.util import find_spec; print(*map(find_spec, ['adapters', 'tests', 'notebooks', 'setup']))"


def printed(python: Path, program: str, folder: Path) -> list[str]:
    """The words that a program prints, run in this folder."""
    return run(python, "-c", program, cwd=folder).stdout.split()


def test_the_wheel_is_the_package_and_nothing_else(tmp_path):
    wheel = built("wheel", copied_sources(tmp_path))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("/METADATA"))
    assert {"functional_optim/py.typed", "functional_optim/__init__.pyi", "functional_optim/CATALOGUE.md"} < names
    modules = {f"functional_optim/{relative(path).removeprefix('functional_optim/')}" for path in SOURCES}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {name.split("/")[0].split("-")[0] for name in names} == {"functional_optim"}
    assert "catalogue (`functional_optim/CATALOGUE.md`)" in metadata
    links = re.findall(r"\]\(([^)]*)\)", metadata)
    assert all(link.startswith("https://") for link in links), "an index has no files beside the description to link to"
    python = environment(tmp_path / "environment", wheel)
    module, file = printed(python, WHERE, tmp_path)
    assert module == "functional_optim.adapters.torch_classes.adam"
    assert Path(file).is_relative_to(tmp_path / "environment")


def test_an_editable_install_is_the_sources_and_nothing_else(tmp_path):
    source = copied_sources(tmp_path)
    python = environment(tmp_path / "environment", built("editable", source))
    module, file = printed(python, WHERE, tmp_path)
    assert module == "functional_optim.adapters.torch_classes.adam"
    assert Path(file).samefile(source / "functional_optim" / "__init__.py")
    assert printed(python, FIND, tmp_path) == ["None"] * 4


def test_an_sdist_tests_itself(tmp_path):
    """Every file of a clone is in it, and its tests run where it is installed as the Makefile does it."""
    source = copied_sources(tmp_path / "clone")
    kept = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    with tarfile.open(built("sdist", source)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert {path for path in kept if not (unpacked / path).exists()} == set()
    python = environment(tmp_path / "environment", built("editable", unpacked))
    tests = ["tests/rules/test_decay.py", "tests/docs/test_catalogue.py", "adapters/template/transform.py"]
    tested = run(python, "-m", "pytest", "-q", *tests, cwd=unpacked)
    assert tested.returncode == 0, tested.stdout
