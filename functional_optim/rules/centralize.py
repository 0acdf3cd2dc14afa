"""Gradient centralization: of every output's weights, the gradients have mean 0.

    g ← g − mean of g over all axes but the first          vectors and () tensors stay

Yong, Huang, Hua & Zhang 2020, Gradient Centralization: A New Optimization Technique for Deep Neural Networks,
https://arxiv.org/abs/2004.01461
"""

from functional_optim.transform import per_tensor


@per_tensor()
def centralize(hp):
    """Subtract the mean over the inputs from the gradient of each output's weights.

    torch keeps weights as (outputs, inputs, …): the mean runs over all axes but the first. Vectors and () tensors stay.

    Source: Yong et al. 2020, https://arxiv.org/abs/2004.01461. As `optax.centralize`, which means the same axes.

    >>> import torch
    >>> centralize().update(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), {})[0]
    tensor([[-1.,  1.],
            [ 0.,  0.]])
    """
    del hp

    def rule(g, p):
        return g - g.mean(tuple(range(1, g.ndim)), keepdim=True) if g.ndim > 1 else g

    return rule
