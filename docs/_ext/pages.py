"""A page for every public name, made from the tables of the package: a new export has its page by being exported."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import functional_optim as fo

# Modules that a user opens, in the order of the index, with what is in them.
MODULES = {
    "adapters": "Behind torch.optim",
    "meta": "Meta-learning",
    "solvers": "Solvers, part by part",
    "schedules": "Schedules, typed",
    "numerics": "Numbers, for rules of your own",
    "testing": "For your tests",
}

# Longer sources are read in the repository.
LONG = 120
# Of an optimizer's methods, those that a training loop calls, and those that a subclass writes.
USED = ["step", "init_state", "step_param", "explain", "eval", "train", "add_param_group", "state_dict", "load_state_dict"]


@dataclass(frozen=True)
class Symbol:
    """A public name: `module` is empty for those that are written right after `fo.`."""

    module: str
    name: str
    group: str

    @property
    def short(self) -> str:
        return f"{self.module}.{self.name}" if self.module else self.name

    @property
    def full(self) -> str:
        return f"functional_optim.{self.short}"

    @property
    def page(self) -> str:
        """The document, without its ending. torch's `Adam` and our `adam` are different files on any file system."""
        return f"api/{self.short}"

    @property
    def value(self) -> Any:
        return getattr(getattr(fo, self.module) if self.module else fo, self.name)


def symbols() -> list[Symbol]:
    """Every public name, in the order of the tables."""
    found = [Symbol("", name, group) for group, names in _groups() for name in names]
    modules = [name for name in dir(fo) if inspect.ismodule(getattr(fo, name)) and not name.startswith("_")]
    for module in sorted(modules, key=lambda name: [*MODULES, name].index(name)):
        opened = getattr(fo, module)
        for name in _names(opened):
            if getattr(fo, name, None) is not getattr(opened, name):
                found.append(Symbol(module, name, MODULES.get(module, f"fo.{module}")))
    return found


def _groups() -> Iterator[tuple[str, list[str]]]:
    """The names of `__all__`, under the comments that divide them."""
    source = Path(inspect.getfile(fo)).read_text(encoding="utf-8")
    table = re.search(r"^__all__ = \[\n(.*?)^\]", source, re.DOTALL | re.MULTILINE)
    assert table, "functional_optim/__init__.py has no __all__"
    for part in re.split(r"^    # ", table[1], flags=re.MULTILINE)[1:]:
        title, _, names = part.partition("\n")
        yield title, re.findall(r'"(\w+)"', names)


def _names(module: Any) -> list[str]:
    """What a module exports; what it defines, where it has no table."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return list(getattr(module, "__all__", sorted(name for name in own if not name.startswith("_"))))


def write(folder: Path) -> list[Symbol]:
    """Write `api/` into the folder with the sources; files that would stay the same are left alone."""
    every = symbols()
    groups = {group: [symbol for symbol in every if symbol.group == group] for group in dict.fromkeys(s.group for s in every)}
    texts = {f"{symbol.page}.rst": _page(symbol) for symbol in every}
    texts |= {f"{group_page(group)}.rst": _group(group, own) for group, own in groups.items()}
    texts["api/index.rst"] = _index(groups)
    for path in (folder / "api").glob("*.rst"):
        if str(path.relative_to(folder)) not in texts:
            path.unlink()
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return every


def group_page(group: str) -> str:
    """The document that lists a group. No name of Python's has a hyphen, so that it is no symbol's."""
    return f"api/all-{re.sub(r'[^a-z]+', '-', group.lower()).strip('-')}"


def _index(groups: dict[str, list[Symbol]]) -> str:
    lines = _title("Reference", "=")
    lines += ["Everything public, each name with a page of its own. In a program: ``import functional_optim as fo``.", ""]
    for group, own in groups.items():
        lines += [f":doc:`{group} </{group_page(group)}>`", f"   {', '.join(_link(symbol) for symbol in own)}", ""]
    lines += [".. toctree::", "   :hidden:", ""]
    lines += [f"   {group} <{Path(group_page(group)).name}>" for group in groups]
    return "\n".join(lines) + "\n"


def _group(group: str, own: list[Symbol]) -> str:
    lines = [*_title(group, "="), ".. list-table::", "   :widths: 28 72", "   :class: names", ""]
    for symbol in own:
        lines += [f"   * - {_link(symbol)}", f"     - {marked(summary(symbol.value))}"]
    return "\n".join(lines) + "\n"


def _link(symbol: Symbol) -> str:
    return f":doc:`{symbol.short} </{symbol.page}>`"


def _page(symbol: Symbol) -> str:
    crumbs = f":doc:`Reference </api/index>` › :doc:`{symbol.group} </{group_page(symbol.group)}>`"
    lines = [":orphan:", "", ".. rst-class:: crumbs", "", crumbs, "", *_title(symbol.short, "=")]
    value, target = symbol.value, f"{symbol.full.removesuffix(f'.{symbol.name}')}::{symbol.name}"
    if inspect.isclass(value):
        lines += [f".. autoclass:: {target}", f"   :members: {members(value)}", "   :exclude-members: __init__, __new__", ""]
    elif callable(value) and hasattr(value, "__name__"):
        lines += [f".. autofunction:: {target}", ""]
    else:
        lines += [f".. autodata:: {target}", ""]
    story = algorithm(symbol)
    if story:
        lines += [*_title("Algorithm", "-"), *story, ""]
    code = source(symbol)
    if code:
        lines += [".. source::", "", *(f"   {line}".rstrip() for line in code), ""]
    return "\n".join(lines) + "\n"


def source(symbol: Symbol) -> list[str]:
    """The code without its docstrings: of a rule its whole file, else the function; of a class, and of what is long, none."""
    value, module = symbol.value, inspect.getmodule(symbol.value)
    if not inspect.isfunction(value) or module is None:
        return []
    try:
        is_rule = module.__name__.startswith("functional_optim.rules.") and not symbol.module
        text = inspect.getsource(module if is_rule else inspect.unwrap(value))
    except OSError:  # Made at run time.
        return []
    code: list[str | None] = list(textwrap.dedent(text).splitlines())
    for node in ast.walk(ast.parse(textwrap.dedent(text))):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            first, last = body[0].lineno - 1, body[0].end_lineno or 0
            code[first:last] = [None] * (last - first)
    kept = [line for line in code if line is not None]
    return kept if len(kept) <= LONG else []


def members(value: type) -> str:
    """What users call of a class: all that is public, or, of an optimizer, what it does not leave to torch's base class."""
    if not issubclass(value, torch.optim.Optimizer):
        return ""
    own = (name for name in USED if getattr(getattr(value, name, None), "__module__", "").startswith("functional_optim"))
    return ", ".join(own)


def summary(value: Any) -> str:
    """The first sentence or paragraph of a docstring, on one line."""
    if not inspect.isroutine(value) and not inspect.isclass(value):
        return f"A type: `{value}`."
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())


def algorithm(symbol: Symbol) -> list[str]:
    """The docstring of a rule's module, which has the paper's pseudocode, as reStructuredText."""
    module = inspect.getmodule(symbol.value)
    if symbol.module or not module or not module.__name__.startswith("functional_optim.rules."):
        return []
    # Papers, line under line, are paragraphs of their own.
    text = re.sub(r"(\n.*https?://.*)(?=\n[A-Z])", r"\1\n", inspect.cleandoc(module.__doc__ or ""))
    return restructured(text.splitlines()) if "←" in text else []


def _title(text: str, line: str) -> list[str]:
    return [text, line * max(3, len(text)), ""]


def arguments(value: Any) -> list[str]:
    """The names of what a function or a class takes; of something else, none.

    >>> arguments(marked)
    ['text']
    """
    try:
        return list(inspect.signature(value).parameters)
    except (TypeError, ValueError):
        return []


# ---- Docstrings -----------------------------------------------------------------------------------------------------------


def restructured(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText: single backticks mark code, bars and stars mean themselves, indented blocks are formulas.

    >>> restructured(["The `g` of |g|."])
    ['The ``g`` of \\\\|g\\\\|.', '']
    """
    found: list[str] = []
    block: list[str] = []
    example = False
    text: list[str] = []  # The paragraph that is being read: code in it may go over the end of a line.

    def flush() -> None:
        found.extend(marked("\n".join(text)).split("\n") if text else [])
        text.clear()

    for line, before in zip([*lines, ""], ["", *lines], strict=True):
        example = line.lstrip().startswith(">>>") or (example and bool(line.strip()))
        starts = line.startswith("    ") and not before.strip() and not example and ("←" in line or "=" in line)
        if block or (starts and _at_margin(found + text)):
            if line.startswith("    ") or (not line.strip() and block and block[-1]):
                if not block:
                    flush()
                    found += [".. formulas::", ""]
                block.append(line)
                found.append(line)
                continue
            block = []
            found.append("")
        if example or not line.strip():
            flush()
            found.append(line)
        else:
            text.append(re.sub(r"^(Source|State|Shapes): ", r"**\1:** ", line))
    flush()
    return found


def _at_margin(before: list[str]) -> bool:
    """Whether the last text stood at the margin, so that an indented block is no part of a list of arguments."""
    text = [line for line in before if line.strip()]
    return bool(text) and not text[-1].startswith(" ")


def marked(text: str) -> str:
    """A paragraph with its code marked and the rest meaning what it says."""
    pieces = re.split(r"`([^`]+)`", text)
    for i, piece in enumerate(pieces):
        if i % 2:
            follows = pieces[i + 1][:1]
            pieces[i] = f"``{piece.strip()}``" + ("\\ " if follows.isalnum() else "")
        else:
            pieces[i] = re.sub(r"(?<!\*)\*(?!\*)|\||(?<=\w)_(?!\w)", lambda found: "\\" + found[0], piece)
    return "".join(pieces)
