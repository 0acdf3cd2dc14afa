"""What compiled code holds of what its functions close over: where that is another, it is compiled again."""

import functools
from typing import Any

import pytest
import torch

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter
from functional_optim.closures import constants_of

FACTOR = 2.0


class Scaled:
    """A rule that is an object."""

    __name__ = "scaled"

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, hp):
        return lambda g, p: -self.factor * g


def by_global(hp):
    def rule(g, p):
        return -FACTOR * g

    return rule


def transform_of(kind, monkeypatch):
    """A transform, and a way to change the number that its rule closes over."""
    if kind == "object":
        rule = Scaled(2.0)
        return fo.elementwise()(rule)(), lambda factor: setattr(rule, "factor", factor)
    if kind == "global":
        return fo.elementwise()(by_global)(), lambda factor: monkeypatch.setitem(globals(), "FACTOR", factor)
    factor = 2.0

    def change(new):
        nonlocal factor
        factor = new

    def by_closure(hp):
        return lambda g, p: -factor * g

    return fo.elementwise()(by_closure)(), change


@pytest.mark.parametrize("kind", ["object", "global", "closure"])
def test_a_rule_that_closes_over_another_number_is_written_down_again(kind, monkeypatch):
    tx, change = transform_of(kind, monkeypatch)
    params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    optimizers = [OptimizerAdapter([params[0]], tx), OptimizerAdapter([params[1]], tx, fused=True)]
    pure, p = fo.fused(tx), {"w": torch.zeros(3)}
    state, total = pure.init_state(p), 0.0
    for factor in (2.0, 2.0, 3.0, 5.0, 2.0):
        change(factor)
        total -= factor
        for param, optimizer in zip(params, optimizers, strict=True):
            param.grad = torch.ones(3)
            optimizer.step()
        p, state = pure.step({"w": torch.ones(3)}, state, p)
        assert [x.tolist() for x in (*params, p["w"])] == [[total] * 3] * 3


@pytest.mark.parametrize("kind", ["object", "method", "partial"])
def test_a_step_of_a_compiled_loop(kind):
    class Step:
        def __init__(self):
            self.factor = 2.0

        def __call__(self, a, i):
            return a * self.factor, None

        def run(self, a, i):
            return a * self.factor, None

    own = Step()
    step = {"object": own, "method": own.run, "partial": functools.partial(Step.__call__, own)}[kind]

    def program():
        return fo.meta.compiled(lambda a: fo.meta.loop(step, a, 3)[0])

    one = torch.ones((), dtype=torch.float64)
    assert program()(one).item() == 8
    own.factor = 3.0
    assert program()(one).item() == 27


def test_what_ends_a_compiled_loop():
    class Reached:
        size = 0.0

        def __call__(self, a):
            return a >= self.size

    def doubled(a, i):
        return 2 * a, None

    reached = Reached()
    for reached.size, end in ((2.0, 2), (3.0, 4)):
        program = fo.meta.compiled(lambda a: fo.meta.loop(doubled, a, 3, until=reached)[0])
        assert program(torch.ones((), dtype=torch.float64)).item() == end


def test_what_no_code_names_is_no_constant(monkeypatch):
    rule: Any = Scaled(2.0)
    before = constants_of(rule)
    rule.other = 7
    assert constants_of(rule) == before and before
    monkeypatch.setitem(globals(), "factor", 7.0)  # A variable of the module that is called as an attribute is.
    assert constants_of(rule) == before
    rule.factor = torch.tensor(2.0)
    with_tensor = constants_of(rule)
    assert with_tensor != before and with_tensor == constants_of(rule)
    rule.factor = torch.tensor(2.0)
    assert constants_of(rule) != with_tensor
    assert constants_of(fo.adamw) == constants_of(max) == constants_of(None) == ()
