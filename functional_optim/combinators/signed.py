"""Wrappers that compare what a transform returns with the gradient that it got, element by element.

    cautious:             u ← u · [u g > 0] / max(mean([u g > 0]), 10⁻³)         the mean over one tensor
    with_gradient_signs:  u ← |u| · sign(g)

Liang et al. 2024, Cautious Optimizers: Improving Training with One Line of Code, https://arxiv.org/abs/2411.16085
Cao, Li & Song 2024, Grams: Gradient Descent with Adaptive Momentum Scaling, https://arxiv.org/abs/2412.17107
"""

from functional_optim.combinators.compared import ARRIVED, Compared
from functional_optim.recipe import recorded
from functional_optim.transform import Transform, elementwise, numbered, require_transform


@numbered(leaf_extra=(ARRIVED,), name="cautious")
def _masked(hp, numbers):
    def passes(u, g):
        return (u * g > 0).to(u.dtype)

    def terms(u, p, g):
        return passes(u, g)

    def finish(sums):
        return {"share": (sums.own[0] / sums.size).clamp(min=1e-3)}

    def rule(new, u, p, g):
        return u * passes(u, g) / new["share"]

    return terms, finish, rule


@elementwise(leaf_extra=(ARRIVED,), name="with_gradient_signs")
def _signed(hp):
    def rule(u, p, g):
        return u.abs() * g.sign()

    return rule


@recorded
def cautious(transform: Transform) -> Transform:
    """Let only those elements move whose update agrees in sign with the gradient, and enlarge these to make up for the others.

    Each tensor's update is multiplied by its mask `u g > 0` and divided by the share of elements that pass, at least 10⁻³.
    `chain(cautious(scale_by_adam()), add_decayed_weights(), scale_by_learning_rate())` is C-AdamW, and with `scale_by_lion` it
    is C-Lion. The state is the transform's own; the slots see every gradient.

    Args:
        transform: what gives a direction, before the learning rate turns its sign: `scale_by_adam()`, `chain(...)`.

    Raises:
        TypeError: this is no transform.
        ValueError: the transform has a learning rate inside, so that its updates point against the gradient.

    Source: Liang et al. 2024, https://arxiv.org/abs/2411.16085, and the authors' program for the 10⁻³. Neither torch nor optax
    has a counterpart.

    >>> import torch
    >>> from functional_optim import trace
    >>> tx = cautious(trace(momentum=1.0))
    >>> _, state = tx.update(torch.tensor([1.0, 1.0]), tx.init_state(torch.zeros(2)))
    >>> tx.update(torch.tensor([1.0, -0.5]), state)[0]
    tensor([4., 0.])
    """
    return _compared(transform, _masked(), "cautious")


@recorded
def with_gradient_signs(transform: Transform) -> Transform:
    """The size of the transform's update with the sign of the present gradient: `|u| sign(g)`.

    Args:
        transform: what gives a direction, before the learning rate turns its sign.

    Raises:
        TypeError: this is no transform.
        ValueError: the transform has a learning rate inside, so that its updates point against the gradient.

    Source: Cao et al. 2024, https://arxiv.org/abs/2412.17107, whose Grams is this around `scale_by_adam`. Neither torch nor optax
    has a counterpart.
    """
    return _compared(transform, _signed(), "with_gradient_signs")


def _compared(transform: Transform, rule: Transform, name: str) -> Transform:
    require_transform(transform, name)
    inside = _with_learning_rate(transform)
    if inside is not None:
        raise ValueError(
            f"{name} compares a direction with the gradient, but {inside} in {transform.name} applies a learning rate and turns "
            f"the sign. Put that after it: chain({name}(scale_by_adam()), scale_by_learning_rate())."
        )
    return Transform.of(Compared(transform, rule), transform.declared, name)


def _with_learning_rate(transform: Transform) -> str | None:
    """The name of a rule inside that has a learning rate, under whatever name the outside knows it."""
    parts = transform.form.parts.values()
    if not parts:
        return transform.name if "lr" in transform.declared else None
    found = map(_with_learning_rate, parts)
    return next((name for name in found if name is not None), None)
