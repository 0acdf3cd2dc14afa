"""`find`: what there is, by name or by what it says of itself."""

import fnmatch
import inspect
from collections.abc import Iterator
from typing import Any

# The modules that a user opens, beside the package itself.
MODULES = ("adapters", "meta", "solvers")


class Found(dict[str, str]):
    """Name to what it is in one line; at a prompt, and by `print`, one a line."""

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {line}" for name, line in self.items()) or "There is nothing of this kind."


def find(what: str = "*") -> Found:
    """What this library has: optimizers, rules, wrappers, schedules, solvers, adapters, with a line each.

    Args:
        what: a name, in which `*` stands for anything, `"adam*"`; or words, `"weight decay"`, looked for in names and their
            lines, and, if they are in none of these, in whole docstrings.

    Raises:
        TypeError: `what` is no text.

    >>> find("*momentum*")
    There is nothing of this kind.
    >>> find("sign*")
    sign_sgd  signSGD: `p ← p − η sign(g)`.
    signum    Signum: `p ← p − η sign(m)`, with `m ← β m + (1 − β) g`.
    """
    if not isinstance(what, str):
        raise TypeError(f"what = {what!r}: expected a name or words, as in find('adam*').")
    everything = {name: inspect.getdoc(value) or "" for name, value in _public()}
    lines = {name: " ".join(doc.partition("\n\n")[0].split()) for name, doc in everything.items()}
    if any(mark in what for mark in "*?["):
        named = {name for name in lines if fnmatch.fnmatch(name, what) or fnmatch.fnmatch(name.rpartition(".")[2], what)}
        return Found({name: line for name, line in lines.items() if name in named})
    words = what.lower().split()
    for texts in (lines, everything):
        found = {name for name, text in texts.items() if all(word in f"{name} {text}".lower() for word in words)}
        if found:
            return Found({name: line for name, line in lines.items() if name in found})
    return Found()


def _public() -> Iterator[tuple[str, Any]]:
    """Everything public, by the name that one writes after `fo.`."""
    import functional_optim as fo

    for name in sorted(fo.__all__):
        yield name, getattr(fo, name)
    yield "testing.check_transform", fo.testing.check_transform
    for module in MODULES:
        opened = getattr(fo, module)
        for name in sorted(getattr(opened, "__all__", ())):
            if name not in fo.__all__ or getattr(opened, name) is not getattr(fo, name):
                yield f"{module}.{name}", getattr(opened, name)
