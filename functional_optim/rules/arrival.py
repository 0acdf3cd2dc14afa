"""Where a parameter of few bits arrives, and the update that leads there, for rules that keep what rounding leaves behind."""

import torch
from torch import Tensor


def step_to(p: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The update that leads from p to the number of this dtype that is nearest to a target, and where it leads.

    The update is a number of that dtype, too, so whatever it passes through on its way leaves it as it is. The target's neighbour
    is reached unless the update is larger than the parameter becomes; then it has as many bits as the dtype.
    """
    update = rounded(rounded(target, dtype) - p, dtype)
    return update, rounded(p + update, dtype)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest number of a dtype, in the dtype of x."""
    return x.to(dtype).to(x.dtype)
