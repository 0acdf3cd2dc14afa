"""SparseAdam: Adam of the elements that sparse gradients name."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from functional_optim.combinators.chain import chain
from functional_optim.rules.adam import scale_by_adam
from functional_optim.rules.scale import negate, scale_by_learning_rate
from functional_optim.transform import Transform

from ..leaves import Numbered, leaves_of
from .base import TorchClass, Write, gradient_of


class SparseAdam(TorchClass):
    """Adam with the signature, the parameter groups and the state of `torch.optim.SparseAdam`: gradients are sparse, as those of
    `torch.nn.Embedding(sparse=True)`, and only what they name is moved, and has its averages moved.

    With dense gradients, in functions: `functional_optim.sparse_adam`. `transform_of(optimizer)` is not that, but the Adam that
    is run on what a gradient names: of a dense gradient it moves all.

    Raises:
        ValueError: a number out of range.
        RuntimeError: by `step`, for a dense gradient; nothing has been changed then.
    """

    takes_complex = False
    takes_sparse = True
    takes_dense = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize})
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.is_sparse or p.is_complex():
                raise ValueError(f"SparseAdam takes dense real parameters, but one is {p.dtype}, {p.layout}.")

    def transform_for(self, group: Mapping[str, Any]) -> Transform:
        """Adam in the order of operations that torch's class has, with the sign turned as the group says."""
        return _sparse_adam(bool(group["maximize"]))

    def computed(
        self, transform: Transform, groups: list[Numbered], closure: Callable[[], Any] | None, extra: Mapping[str, Any]
    ) -> Write:
        """The step of one transform, computed; what is returned writes it down."""
        for leaf in leaves_of(groups):
            if not gradient_of(leaf).is_sparse:
                raise RuntimeError(
                    f"SparseAdam takes sparse gradients, but that of {leaf.key} is dense: give it to Adam, or embed with "
                    "sparse=True."
                )
        return super().computed(transform, groups, closure, extra)


@functools.cache
def _sparse_adam(maximize: bool) -> Transform:
    links = scale_by_adam(optimized_update=True), scale_by_learning_rate()
    return chain(negate(), *links) if maximize else chain(*links)
