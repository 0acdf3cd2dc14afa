"""`evaluate_of`: a loss as what rules ask for that look elsewhere than where they stand."""

from collections.abc import Callable
from typing import Any

from functional_optim.evaluate import LossAt
from functional_optim.meta.unroll import gradients
from functional_optim.trees import Tree


def evaluate_of(loss_fn: Callable[..., Any], *batch: Any, has_aux: bool = False) -> Callable[[Tree], LossAt]:
    """The function `evaluate(params) -> (value, grads, aux)` of a loss, for `update(..., evaluate=...)`.

        evaluate = fo.meta.evaluate_of(loss, x, y)
        value, grads, _ = evaluate(params)
        updates, state = tx.update(grads, state, params, value=value, evaluate=evaluate)

    Args:
        loss_fn: `(params, *batch) -> loss`, a () tensor; with `has_aux`, `-> (loss, aux)`. For a module, see `from_module`.
        batch: what it takes after the parameters.

    Returns:
        A function of a tree of tensors, which may be batched and differentiated. The gradient of what is no floating-point tensor
        is None, and so is `aux` without `has_aux`.

    `sam`, `asam` and `with_line_search` ask for it; `unroll` gives it, and behind an optimizer a closure does. As
    `torch.func.grad_and_value` with the value first, and as `jax.value_and_grad`.

    >>> import torch
    >>> evaluate_of(lambda w, x: (w * x).sum() ** 2, torch.ones(2))(torch.tensor([1.0, 2.0]))
    LossAt(value=tensor(9.), grads=tensor([6., 6.]), aux=None)
    """

    def evaluate(params: Tree) -> LossAt:
        grads, value, aux = gradients(loss_fn, params, batch, has_aux=has_aux)
        return LossAt(value, grads, aux)

    return evaluate
