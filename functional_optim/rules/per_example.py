"""Clipping each example's gradient before they are summed, as differentially private training does.

    g ← Σᵢ gᵢ · min(1, C / ‖gᵢ‖)          ‖gᵢ‖ over all parameters, for each example i

Abadi et al. 2016, Deep Learning with Differential Privacy, https://arxiv.org/abs/1607.00133

This is a function and no transform: what goes in has an axis more than what comes out.
"""

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.checks import check_gradients
from functional_optim.hparams import Hparam, complete, declare
from functional_optim.lifting import widened
from functional_optim.numerics import Scalar, sqrt
from functional_optim.trees import Tree

DECLARED = declare({"max_norm": Hparam(1.0, "[0, inf]")})


def per_example_global_norm_clip(grads: Tree, max_norm: Scalar) -> tuple[Tree, Tensor]:
    """Clip the gradient of each example to a norm of `max_norm`, and sum over the examples.

    `torch.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, y)` returns such gradients. For DP-SGD divide the sum by the
    number of examples n, and add noise of deviation `σ C / n`: `chain(scale(1 / n), add_noise(eta=(σ C / n)², gamma=0), sgd())`.
    That noise is a function of its seed: whoever knows the seed can take it away again.

    Args:
        grads: a tree of tensors whose first axis numbers the examples; None for "no gradient".
        max_norm: C, a number or a () tensor, at least 0, in units of the gradient; infinity clips nothing.

    Returns:
        The sum of the clipped gradients, each tensor without its first axis and in the dtype that it came in, computed in at
        least float32; and how many examples were clipped, () int64. An example with an infinite element has no direction, and is
        left out: it counts as clipped. One with a NaN makes the sum NaN.

    Raises:
        TypeError: a leaf is no dense tensor of real numbers.
        ValueError: there is no gradient, leaves disagree about the number of examples, or `max_norm` is negative.

    Source: Abadi et al. 2016, https://arxiv.org/abs/1607.00133. As `optax.per_example_global_norm_clip`.

    >>> per_example_global_norm_clip([torch.tensor([[0.0, 0.5], [3.0, 4.0]])], max_norm=1.0)
    ([tensor([0.6000, 1.3000])], tensor(1))
    """
    c = complete(DECLARED, {"max_norm": max_norm}, str)["max_norm"]
    _require_examples(grads)
    wide = trees.map_leaves(widened, grads)
    present = [g[:, None].flatten(1) for g in trees.leaves(wide) if g is not None]
    unit = _largest(present)
    squares = [torch.einsum("ij,ij->i", g / unit[:, None], g / unit[:, None]) for g in present]
    norm = unit * sqrt(torch.stack(squares).sum(0))
    above = norm > c
    factor = torch.where(above, c / torch.where(above, norm, 1.0), 1.0)

    def clipped(w: Tensor, g: Tensor) -> Tensor:
        kept = torch.where((above & norm.isinf()).reshape(-1, *[1] * (w.ndim - 1)), 0.0, w)
        return torch.einsum("i,i...->...", factor.to(w.dtype), kept).to(g.dtype)

    return trees.map_leaves(clipped, wide, grads), above.sum()


def _largest(present: list[Tensor]) -> Tensor:
    """The largest element of each example, a unit in which no square overflows; 1 where that is 0 or not finite."""
    none = present[0].new_zeros(len(present[0]))
    largest = torch.stack([none, *(g.detach().abs().amax(1) for g in present if g.shape[1])]).amax(0)
    return torch.where((largest > 0) & largest.isfinite(), largest, 1.0)


def _require_examples(grads: Tree) -> None:
    check_gradients(grads, None)
    first = None
    for path, g in zip(trees.paths(grads, "grads"), trees.leaves(grads), strict=True):
        if g is None:
            continue
        if g.is_complex():
            raise TypeError(f"{path} is {g.dtype}: per-example clipping takes real gradients.")
        if g.ndim == 0:
            raise ValueError(f"{path} has shape (): its first axis must number the examples.")
        first = first or (path, len(g))
        if len(g) != first[1]:
            raise ValueError(f"{path} has {len(g)} examples along its first axis, {first[0]} has {first[1]}: they must agree.")
    if first is None:
        raise ValueError("grads holds no gradient: there is nothing to clip.")
