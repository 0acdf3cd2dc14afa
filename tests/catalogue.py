"""The catalogue of rules and optimizers, `functional_optim/CATALOGUE.md`, made from the code: `make catalogue`, with the stub.

Everything in it is read off: kinds, hyper-parameters and state from a transform that is built, papers and peers from its
docstring, tests from the files that name it.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import stubs
import torch
from cases import CASES

import functional_optim as fo
from functional_optim import trees
from functional_optim.form import Form, nested
from functional_optim.lifting import Lifted

ROOT = Path(__file__).parent.parent
FILE = ROOT / "functional_optim" / "CATALOGUE.md"
# A matrix, so that factored states show what they save.
SIDE = 64

HEAD = """# Catalogue

Every rule and every optimizer, generated from the code by `make catalogue`; a test keeps it true.

- **kind**: *elementwise* rules fuse into one kernel; *per tensor* ones need a tensor's shape; *whole tree* ones need all tensors.
- **state**: the slots of each parameter, and the bytes they take per element of a float32 matrix of 64 × 64; in
  `quantized(tx, bits=8)` those marked with ° are stored in codes, and the state takes what stands behind the arrow.
- **same as**: what it computes the same numbers as, and with which options; **tested in** says against what and how closely: in
  float64 to 1e-12 where nothing else is said there.
"""

TITLES = {"rules": "Rules", "optimizers": "Optimizers"}


def catalogue() -> str:
    """The text of the file."""
    tables = [f"\n## {title}\n\n{_table(section)}" for section, title in TITLES.items()]
    return HEAD + "".join(tables) + f"\n## Solvers\n\n{_solvers()}"


def _solvers() -> str:
    """What `minimize` and its kin are made of: by the first sentence of each, and its papers."""
    rows = ["| name | what it is | paper |", "|---|---|---|"]
    for name in sorted(fo.solvers.__all__):
        doc = inspect.getdoc(getattr(fo.solvers, name)) or ""
        where = f"`{name}`" if name in fo.__all__ else f"`solvers.{name}`"
        rows.append(f"| {where} | {doc.splitlines()[0]} | {_papers(doc)} |")
    return "\n".join(rows) + "\n"


def _table(section: str) -> str:
    rows = [
        "| name | kind | hyper-parameters | state | bytes | paper | same as | tested in |",
        "|---|---|---|---|--:|---|---|---|",
        *(_row(name) for name in _names(section)),
    ]
    return "\n".join(rows) + "\n"


def _names(section: str) -> Iterator[str]:
    for name in sorted(fo.__all__):
        constructor = getattr(fo, name)
        if f"functional_optim.{section}" in getattr(constructor, "__module__", "") and name in CASES:
            yield name


def _row(name: str) -> str:
    transform, doc = _built(name), inspect.getdoc(getattr(fo, name)) or ""
    cells = [
        f"`{name}`",
        _kind(transform),
        ", ".join(f"`{key}={value}`" for key, value in transform.hparams.items()) or "–",
        ", ".join(f"`{slot}`{'°' if slot in _coded(transform) else ''}" for slot in _slots(transform)) or "–",
        f"{_bytes(transform)} → {_bytes(fo.quantized(transform))}" if _coded(transform) else _bytes(transform),
        _papers(doc),
        _peers(doc),
        ", ".join(f"`{path.name}`" for path in _tests(name)),
    ]
    return f"| {' | '.join(cells)} |"


def _built(name: str) -> fo.Transform:
    """With its defaults, or as the table of cases has it where there are none."""
    try:
        return getattr(fo, name)()
    except TypeError:
        return CASES[name][0]


def _forms(transform: fo.Transform) -> list[Form]:
    return [form for _, form in nested(transform)]


def _kind(transform: fo.Transform) -> str:
    forms = _forms(transform)
    rules = [form for form in forms if isinstance(form, Lifted)]
    if any(form.mixes_leaves for form in rules):
        return "whole tree"
    return "elementwise" if all(form.elementwise for form in rules) else "per tensor"


def _slots(transform: fo.Transform) -> list[str]:
    names: dict[str, None] = {}
    for form in _forms(transform):
        if isinstance(form, Lifted):
            names |= dict.fromkeys((*form.slots, *form.own, *form.shared, *(["step"] if form.counts else [])))
    return list(names)


def _coded(transform: fo.Transform) -> set[str]:
    return {name for form in _forms(transform) if isinstance(form, Lifted) for name in form.coded}


def _bytes(transform: fo.Transform) -> str:
    matrix = {"w": torch.ones(SIDE, SIDE)}
    state = transform.init_state(matrix)
    size = sum(x.numel() * x.element_size() for x in trees.leaves(state) if isinstance(x, torch.Tensor) and x.ndim)
    return f"{size / SIDE**2:.3g}"


def _papers(doc: str) -> str:
    urls = dict.fromkeys(url.rstrip(".,;)") for url in re.findall(r"https?://\S+", doc))
    return ", ".join(f"[{url.rstrip('/').split('/')[-1]}]({url})" for url in urls) or "–"


def _peers(doc: str) -> str:
    """The sentences that say what it is the same as."""
    text = " ".join(doc.split(">>>")[0].split())
    sentences = re.split(r"(?<=[.;])\s+(?=[A-Z`])", text)
    found = [s for s in sentences if re.match(r"(As|Retraces|With [^.]*|`[^`]+` is this)\b", s) and re.search(r"optax|torch", s)]
    return " ".join(found).removesuffix(";").replace("|", "\\|") or "–"


def _tests(name: str) -> list[Path]:
    """The files that call it, other than the tables that every transform is in."""
    every = sorted((ROOT / "tests").rglob("test_*.py"), key=lambda path: path.name)
    general = {"laws", "fused", "bad_input", "adapter", "testing", "recipe", "direction"}
    return [
        path for path in every if path.stem.removeprefix("test_") not in general and re.search(rf"fo\.{name}\b", path.read_text())
    ][:3]


if __name__ == "__main__":
    FILE.write_text(catalogue())
    stubs.FILE.write_text(stubs.stub())
