"""`check_transform` finds what is broken, and says which law broke and where."""

import pytest
import torch
from torch.autograd.gradcheck import GradcheckError

import functional_optim as fo
from functional_optim import trees
from functional_optim.testing import LawBrokenError, check_transform, derivatives_are_right
from functional_optim.trials import Trial


def momentum(rule):
    """A transform with one slot from a rule `(hp, t, g, p, m) -> (u, m)`."""

    @fo.elementwise(slots=("exp_avg",), hparams={"beta": 0.9})
    def broken(hp, t):
        return lambda g, p, m: rule(hp, t, g, p, m)

    return broken()


def by_hand(update, init_state=lambda params, hp: {}, **hparams):
    return fo.Transform(init_state, update, hparams, name="broken")


def writes_in_place(hp, t, g, p, m):
    m.mul_(hp["beta"]).add_(g)
    return g.clone(), m


def writes_to_the_gradient(updates, state, params, hp, **extra):
    return trees.map_leaves(lambda g: g.mul_(2), updates), state


def reads_a_value(hp, t, g, p, m):
    return (g if t.item() < 2 else 2 * g), m


def changes_the_slot_dtype(updates, state, params, hp, **extra):
    return updates, trees.map_leaves(lambda m, g: m.double() + g, state, updates)


def has_infinite_slope_at_zero(hp, t, g, p, m):
    m = hp["beta"] * m + g * g
    return g / (m.sqrt() + 1e-8), m


def hides_a_parameter_from_autograd(hp, t, g, p, m):
    return g * hp["beta"].detach() if isinstance(hp["beta"], torch.Tensor) else g * hp["beta"], m


class Cube(torch.autograd.Function):
    """Its slope is right, and no function of what comes after it."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, weight):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * weight.detach()


def cuts_off_what_comes_after(hp, t, g, p, m):
    return Cube.apply(g), m


class CountsInPython:
    """A closure variable as state: wrong after a resume, and the same for every member of a batch."""

    def __init__(self):
        self.calls = 0

    def __call__(self, updates, state, params, hp, **extra):
        self.calls += 1
        return trees.map_leaves(lambda g: g / self.calls, updates), state


def ignores_the_tree(updates, state, params, hp, **extra):
    return {name: 2 * g for name, g in updates.items()}, state


def zeros_like_params(params, hp):
    return trees.map_leaves(torch.zeros_like, params)


@fo.elementwise(hparams={"lr": 0.1})
def normalised(hp):
    return lambda g, p: -hp["lr"] * g / (g * g + 1).sum()


@fo.elementwise(hparams={"lr": 0.1})
def forgets_to_return(hp):
    def rule(g, p):
        return g


@pytest.mark.parametrize(
    ("transform", "law", "where"),
    [
        (fo.rename_hparams(normalised(), lr="broken"), "elementwise rules see no shapes", "flat tensor is off.*per_tensor"),
        (forgets_to_return(), "two steps run", "TypeError: .* returns the rule, .* but it returned None"),
        (momentum(writes_in_place), "inputs are not written to", r"state\['exp_avg'\]\['matrix'\] was written to"),
        (by_hand(writes_to_the_gradient), "inputs are not written to", r"grads\['matrix'\] was written to"),
        (momentum(reads_a_value), "vmap is a loop", r"item\(\)"),
        (
            by_hand(changes_the_slot_dtype, zeros_like_params),
            "structure shape and dtype are kept",
            r"at \['matrix'\] are torch.float64",
        ),
        (momentum(has_infinite_slope_at_zero), "derivatives at zero are finite", r"grads'\]\[0\]\['matrix'\]"),
        (momentum(hides_a_parameter_from_autograd), "derivatives are right", "Jacobian mismatch"),
        (by_hand(CountsInPython()), "vmap is a loop", r"everything batched: result\[0\]\['matrix'\] is off by"),
        (by_hand(ignores_the_tree), "any tree will do", "'list' object has no attribute 'items'"),
    ],
)
def test_a_broken_transform_is_found(transform, law, where):
    with pytest.raises(LawBrokenError, match=f"(?s)breaks the law “{law}”: .*{where}"):
        check_transform(transform)


def test_a_slope_that_is_cut_off_from_what_comes_after_it_is_found():
    trial = Trial(momentum(cuts_off_what_comes_after), {"w": torch.tensor([0.5, -1.0], dtype=torch.float64)})
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        derivatives_are_right(trial)


def test_a_sound_transform_passes():
    check_transform(fo.adamw())


def test_parameters_can_be_given_for_rules_that_need_certain_shapes():
    @fo.per_tensor()
    def transposed_twice(hp):
        def rule(g, p):
            return g @ g.mT @ g

        return rule

    with pytest.raises(LawBrokenError):
        check_transform(transposed_twice())
    check_transform(transposed_twice(), {"a": torch.randn(2, 3), "b": torch.randn(3, 2)})
