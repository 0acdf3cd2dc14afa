"""Forward-mode gradients: of a few numbers through a loop of any length, with the memory of one step.

    ṗₖ₊₁ = ∂stepₖ/∂p ṗₖ + ∂stepₖ/∂λ λ̇         carried along with pₖ; nothing is kept for later

Franceschi et al. 2017, Forward and Reverse Gradient-Based Hyperparameter Optimization, https://arxiv.org/abs/1703.01785
"""

from collections.abc import Callable

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.meta.packing import is_smooth, ravel
from functional_optim.meta.remat import require_function
from functional_optim.recipe import answering
from functional_optim.trees import Tree


@answering
def forward_grad(function: Callable[..., Tensor], *, chunk_size: int | None = None) -> Callable[..., Tree]:
    """The gradient in the first argument by forward mode: `(hparams, *args) -> gradients`, what `torch.func.grad` gives.

    Memory grows with the number of elements of `hparams`, one tangent each, all in one pass; and not with what the function
    does in between. So: a handful of hyper-parameters through many steps. For many parameters, `torch.func.grad`.

    Args:
        function: `(hparams, *args) -> value`, a () tensor.
        chunk_size: tangents at a time; None for all.

    Raises:
        TypeError: `function` is none; or, when called, there is no tensor in the first argument, or one of integers.
        ValueError: the function's value is not a () tensor.

    Parameters that require a gradient would still keep everything for it: detach them first.

    Source: Franceschi et al. 2017, https://arxiv.org/abs/1703.01785. As `torch.func.jacfwd`, which takes no `PerLeaf`.

    >>> gradient = forward_grad(lambda h: h["a"] ** 2 * h["b"])
    >>> gradient({"a": torch.tensor(3.0), "b": torch.tensor(2.0)})
    {'a': tensor(12.), 'b': tensor(9.)}
    """
    require_function(function, "forward_grad")

    def gradient(hparams: Tree, *args: Tree) -> Tree:
        if not any(isinstance(x, Tensor) for x in trees.leaves(hparams)):
            raise TypeError(
                f"the first argument holds no tensor to differentiate in: {hparams!r}. Numbers go in as torch.tensor(...)."
            )
        for path, x in zip(trees.paths(hparams, "the first argument"), trees.leaves(hparams), strict=True):
            if isinstance(x, Tensor) and not is_smooth(x):
                raise TypeError(f"{path} is {x.dtype}, which has no derivative: pass it among the other arguments.")
        vector, unravel = ravel(hparams)

        def pushed(direction: Tensor) -> Tensor:
            value, slope, *_ = torch.func.jvp(lambda v: function(unravel(v), *args), (vector,), (direction,))
            if value.ndim != 0:
                raise ValueError(f"the function returned a tensor of shape {tuple(value.shape)}: expected a () tensor.")
            return slope

        basis = torch.eye(vector.numel(), dtype=vector.dtype, device=vector.device)
        return unravel(torch.vmap(pushed, chunk_size=chunk_size)(basis))

    return gradient
