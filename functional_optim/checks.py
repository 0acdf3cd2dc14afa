"""What every gradient tree must satisfy before a transform sees it: checked on structure, shape and dtype, never on values."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.trees import Tree


def check_params(params: Tree) -> None:
    """Raise TypeError unless every leaf is a tensor or `None`."""
    for i, leaf in enumerate(trees.leaves(params)):
        if leaf is not None and not isinstance(leaf, Tensor):
            if trees.adopt(params):
                return check_params(params)
            where = trees.paths(params, "params")[i]
            raise TypeError(f"{where} is a {type(leaf).__name__}: parameters are tensors. {_module_advice(leaf)}".rstrip())


def check_gradients(grads: Tree, params: Tree, name: str = "grads") -> None:
    """Raise unless `grads` are dense real or complex tensors (or `None`), shaped like `params` where those are given.

    Raises:
        TypeError: a leaf, or the parameter of one, is not a tensor, is of an integer dtype, or is sparse.
        ValueError: the trees have different structures, or two leaves different shapes or devices.
    """
    leaves, spec = trees.flatten(grads)
    for i, g in enumerate(leaves):
        problem = _problem(g)
        if problem and trees.adopt(grads):
            return check_gradients(grads, params, name)
        if problem:
            raise TypeError(f"{trees.paths(grads, name)[i]} {problem}")
    if params is None:
        return
    for i, (g, p) in enumerate(zip(leaves, trees.leaves_like(params, grads, spec, "params", name), strict=True)):
        if g is None:
            continue
        if not isinstance(p, Tensor):
            raise TypeError(f"{trees.paths(params, 'params')[i]} is {p!r}, but has a gradient: expected a tensor.")
        if g.shape != p.shape:
            raise ValueError(
                f"{trees.paths(grads, name)[i]} has shape {tuple(g.shape)}, its parameter {tuple(p.shape)}: they must agree."
            )
        if g.device != p.device:
            raise ValueError(
                f"{trees.paths(grads, name)[i]} is on {g.device}, its parameter on {p.device}: they must agree. "
                f"Move one of them, as in grad.to({str(p.device)!r})."
            )
        if not (p.is_floating_point() or p.is_complex()):
            raise TypeError(
                f"{trees.paths(params, 'params')[i]} is {p.dtype}, but {name} has a tensor for it: what is trained is "
                "floating point or complex. Convert it, as in p.float(), or give None for its gradient."
            )
        if g.is_complex() != p.is_complex():
            raise TypeError(
                f"{trees.paths(grads, name)[i]} is {g.dtype}, its parameter {p.dtype}: both must be real or both complex."
            )


def pair_advice(given: Any) -> str:
    """What to say of something refused that may be all that a function returned: a sentence after a space, or nothing."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping):
        return " If this is the pair that update returned, unpack it: updates, state = transform.update(grads, state, params)."
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Mapping):
        return " If this is the pair that grad_and_value returned, unpack it: grads, loss = ..."
    return ""


def require_state_per_part(state: Any, parts: Collection[str], whole: str, part: str) -> None:
    """Raise ValueError unless the state of a chain or a partition, the whole, has an entry for each part and no others."""
    if not isinstance(state, Mapping) or set(state) != set(parts):
        found = list(state) if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise ValueError(
            f"the state of this {whole} holds one entry per {part}, {list(parts)}, but got {found}: pass what init_state or the "
            f"last update of this very {whole} returned, as in update(grads, state, params).{pair_advice(state)}"
        )


def misfit(function: Callable[..., Any], *arguments: Any) -> str:
    """Why a function can't be called with so many arguments: what it takes, and the reason; nothing where it can."""
    if torch.compiler.is_compiling():
        return ""
    try:
        signature = inspect.signature(function)
    except ValueError:  # Of some that are written in C nothing is known.
        return ""
    try:
        signature.bind(*arguments)
    except TypeError as error:
        return f"{signature}: {error}"
    return ""


def _problem(g: Any) -> str:
    if g is None:
        return ""
    if not isinstance(g, Tensor):
        return f"is a {type(g).__name__}: a gradient is a tensor, or None for none."
    if g.layout != torch.strided:
        return f"is sparse ({g.layout}): gradients must be dense. Call .to_dense(), or embed with sparse=False."
    if not (g.is_floating_point() or g.is_complex()):
        return f"is {g.dtype}: gradients are floating point or complex. Give parameters that are not trained the gradient None."
    return ""


def _module_advice(leaf: Any) -> str:
    if hasattr(leaf, "named_parameters") or isinstance(leaf, Iterator):
        return "For a module, pass {name: p.detach() for name, p in module.named_parameters()}."
    if hasattr(leaf, "__array__"):
        return "Convert it: torch.as_tensor(...)."
    return "For a list of numbers, pass torch.tensor([...])." if isinstance(leaf, int | float) else ""
