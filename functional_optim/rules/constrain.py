"""Guards at the two ends of a chain: gradients without NaN, parameters without a sign.

u ← 0 where u is NaN        u ← −p where p + u < 0
"""

import torch

from functional_optim.transform import elementwise


@elementwise()
def zero_nans(hp):
    """Replace every NaN by 0; infinities stay.

    As `optax.zero_nans`, which also records in its state which tensors had one.

    >>> import torch
    >>> zero_nans().update(torch.tensor([1.0, float("nan"), float("inf")]), {})[0]
    tensor([1., 0., inf])
    """
    del hp

    def rule(u, p):
        return torch.where(u.isnan(), 0.0, u)

    return rule


@elementwise()
def keep_params_nonnegative(hp):
    """Cut the update short where it would make a parameter negative: the parameter becomes 0 there.

    It is the last link, after the learning rate: what it sees must be what is added to the parameters. Of complex parameters it
    keeps both parts.

    Raises:
        ValueError: `update` was called without params.

    As `optax.keep_params_nonnegative`.

    >>> import torch
    >>> p = torch.tensor([1.0, 1.0])
    >>> p + keep_params_nonnegative().update(torch.tensor([-0.5, -2.0]), {}, p)[0]
    tensor([0.5000, 0.0000])
    """
    del hp

    def rule(u, p):
        return torch.where(p + u < 0, -p, u)

    return rule
