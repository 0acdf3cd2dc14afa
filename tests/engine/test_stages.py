"""A step in stages: what is no rule, or is not run in every step, costs itself and not the chain it is in."""

import copy
import functools

import pytest
import torch
from cases import divide_by_average_norm
from engines import Plain, assert_same_progress, by_hand, parameters, params_of, run, set_gradients, ways

import functional_optim as fo
from functional_optim import trees
from functional_optim.adapters import OptimizerAdapter
from functional_optim.adapters.engine.backends import rows

SHAPES = [(3, 4), (150, 100), (), (7,), (0,)]
Fused = functools.partial(OptimizerAdapter, fused=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 4000)
    monkeypatch.setattr(rows, "SMALL", 500)


def every_other(step):
    return step % 2 == 0


def other_adam():
    return fo.rename_hparams(fo.adam(eps=0.1), lr="other_lr", eps="other_eps", betas="other_betas")


GATES = {
    "accumulate": lambda: fo.accumulate(fo.adamw(eps=0.1), every=3),
    "a growing batch": lambda: fo.accumulate(fo.adamw(eps=0.1), every=lambda step: 1 + step),
    "finite": lambda: fo.apply_if_finite(fo.adamw(eps=0.1), max_consecutive_errors=2),
    "not too large": lambda: fo.skip_large_updates(fo.chain(fo.trace(), fo.scale_by_learning_rate()), largest_norm=123.0),
    "conditionally": lambda: fo.conditionally(fo.sgd(momentum=0.9), every_other, otherwise=other_adam()),
    "behind a rule, before another": lambda: fo.chain(fo.trace(0.5), fo.accumulate(fo.adam(eps=0.1), 2), fo.scale(0.5)),
    "one in another": lambda: fo.accumulate(fo.apply_if_finite(fo.adamw(eps=0.1)), every=2),
    "clocks outside and inside": lambda: fo.scheduled(
        fo.accumulate(fo.scheduled(fo.adamw(eps=0.1), lr=fo.linear(0.1, 0.01, 8)), 3), weight_decay=fo.linear(0.1, 0.0, 9)
    ),
}


def stepped(name, make, dtype=torch.float64):
    """An optimizer after steps of which the fifth and sixth have an infinite gradient."""
    optimizer = make(parameters(SHAPES, dtype), GATES[name]())
    for step in range(9):
        set_gradients(step, params_of(optimizer))
        if step in (4, 5) and ("finite" in name or "one in" in name):
            params_of(optimizer)[1].grad[2, 3] = torch.inf
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("make", [OptimizerAdapter, Fused])
def test_engines_look_through_gates(name, make):
    plain, other = stepped(name, Plain), stepped(name, make)
    assert ways(other) == {"LISTED" if make is OptimizerAdapter else "COMPILED"}
    assert_same_progress(plain, other, torch.float64)


@pytest.mark.parametrize("make", [OptimizerAdapter, Fused])
def test_slots_in_another_order_behind_a_gate(make):
    """They are laid out for kernels when the gate is first open; that is seen in the state of the optimizer."""
    plain, other = (m(parameters(SHAPES, torch.float64), fo.accumulate(fo.adamw(eps=0.1), every=2)) for m in (Plain, make))
    run(plain, other, steps=2)
    other._forget()
    slots = other.state[params_of(other)[1]]
    slots["exp_avg"] = slots["exp_avg"].t().contiguous().t()
    run(plain, other, steps=4, first=2)
    assert_same_progress(plain, other, torch.float64)


@pytest.mark.parametrize("make", [Plain, OptimizerAdapter])
def test_an_inner_step_is_really_left_out(make):
    """What counts is run on the host once for each step that is taken, and once for the plan."""
    taken = []

    def schedule(step):
        taken.append(step)
        return 1.0

    inner = fo.chain(fo.scale_by_adam(), fo.scale_by_schedule(schedule), fo.scale_by_learning_rate())
    optimizer = make(parameters(SHAPES), fo.accumulate(inner, every=4))
    run(optimizer, steps=4)
    taken.clear()
    run(optimizer, steps=3)
    assert not taken
    run(optimizer, steps=1)
    assert taken and set(taken) == {1}


class RaisingOnce:
    """A link by hand that raises at the third step."""

    def __init__(self):
        self.calls = 0

    def __call__(self, updates, state, params, hparams, **extra):
        self.calls += 1
        if self.calls == 3:
            raise ArithmeticError("the third call")
        return updates, state


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("make", [OptimizerAdapter, Fused])
@pytest.mark.filterwarnings("ignore:fused=True, but")
def test_a_link_that_raises_anywhere_changes_nothing(place, make):
    links = [fo.trace(0.5), divide_by_average_norm(), fo.scale_by_adam(), fo.scale_by_learning_rate()]
    links.insert(place, fo.Transform(lambda params, hparams: {}, RaisingOnce(), name="by_hand"))
    optimizer = make(parameters([(3, 4), (150, 100), (7,)]), fo.chain(*links))
    run(optimizer, steps=2)
    before = copy.deepcopy([[p, *optimizer.state[p].values()] for p in params_of(optimizer)])
    with pytest.raises(ArithmeticError, match="the third call"):
        run(optimizer, steps=1)
    after = [[p, *optimizer.state[p].values()] for p in params_of(optimizer)]
    assert all(torch.equal(x, y) for xs, ys in zip(before, after, strict=True) for x, y in zip(xs, ys, strict=True))
    run(optimizer, steps=1)
    assert {int(optimizer.state[p]["step"]) for p in params_of(optimizer)} == {3}


@pytest.mark.parametrize("make", [OptimizerAdapter, Fused])
@pytest.mark.filterwarnings("ignore:fused=True, but")
def test_what_keeps_a_state_of_its_own_between_rules(make):
    """Counts, slots and shared values of what is called as it is; in a branch, too."""
    odd = fo.chain(fo.trace(0.5), fo.mechanize(fo.adam(lr=0.1), s_init=0.1, mechanic_eps=0.1), fo.monitor())
    tx = fo.partition({"odd": odd, "rest": fo.adamw(eps=0.1)}, fo.by_ndim({2: "odd"}, otherwise="rest"))
    plain, other = (m(parameters([(3, 4), (150, 100), (7,)], torch.float64), tx) for m in (Plain, make))
    run(plain, other, steps=6)
    assert ways(other) == {"LISTED" if make is OptimizerAdapter else "COMPILED"}
    assert_same_progress(plain, other, torch.float64)


def test_the_warning_names_the_link_and_says_what_happens():
    fused = Fused(parameters(SHAPES), fo.chain(fo.trace(), by_hand(), fo.scale_by_learning_rate()))
    with pytest.warns(UserWarning, match="by_hand is no rule for one tensor.*called as it is, between kernels") as caught:
        run(fused, steps=3)
    assert len(caught) == 1 and caught[0].filename == run.__code__.co_filename


def test_a_refusal_is_remembered_with_its_reason():
    """While the tensors stay what they are, no plan is tried again."""
    optimizer = OptimizerAdapter(parameters(SHAPES), fo.mechanize(fo.sgd()))
    run(optimizer, steps=1)
    (step,) = optimizer._steps.values()
    assert "mechanize can only be called as a whole" in next(iter(step.reasons))
    run(optimizer, steps=3)
    assert step is next(iter(optimizer._steps.values()))
    params_of(optimizer)[0].data = params_of(optimizer)[0].data.double()
    params_of(optimizer)[0].grad = None
    run(optimizer, steps=1)
    assert step is not next(iter(optimizer._steps.values()))


def test_an_optimizer_explains_its_step():
    """Of AdamW: gradient, parameter and two slots are read; parameter and slots are written."""
    tx = fo.chain(fo.trace(0.5), divide_by_average_norm(), fo.adamw())
    optimizer = OptimizerAdapter(parameters([(3, 4), (150, 100)]), tx)
    assert not optimizer.explain().stages and "the last step" not in str(optimizer.explain())
    run(optimizer, steps=2)
    first, second, third = optimizer.explain().stages
    assert (first.links, first.reads, first.writes, first.state) == (("trace",), 12, 8, 4)
    assert second.links == ("divide_by_average_norm",) and second.reason == "it needs the shapes of tensors" and not second.reads
    assert len(third.links) == 3 and (third.reads, third.writes, third.state) == (16, 12, 8)
    assert {row.parameters for row in (first, second, third)} == {2}


def test_what_several_links_do_for_one_rule_is_told_once():
    tx = fo.chain(fo.scale_by_muon(), fo.scale_by_learning_rate())
    optimizer = OptimizerAdapter(parameters([(3, 4), (4, 3)]), tx)
    run(optimizer, steps=1)
    rows = optimizer.explain().stages  # Momentum, products, and the factor of the shape with the rate.
    assert [row.links for row in rows] == [("scale_by_muon",), ("scale_by_muon",), ("scale_by_muon", "scale_by_learning_rate")]
    assert {row.parameters for row in rows} == {2}
    empty = OptimizerAdapter(parameters([(0, 4)]), tx)
    run(empty, steps=1)
    assert "scale_by_muon, scale_by_learning_rate can only be called as a whole" in str(empty.explain())
    assert "scale_by_muon, scale_by_muon" not in str(empty.explain())


def test_what_is_called_as_a_whole_is_explained_too():
    optimizer = OptimizerAdapter(parameters([(3, 4)]), fo.mechanize(fo.sgd()))
    run(optimizer, steps=1)
    explanation = optimizer.explain()
    assert not explanation.stages and "mechanize can only be called as a whole" in str(explanation)


@pytest.mark.parametrize("make", [OptimizerAdapter, Fused])
@pytest.mark.filterwarnings("ignore:.*turned is no rule")
def test_what_is_called_may_return_tensors_of_another_layout_or_dtype(make):
    def update(updates, state, params, hparams, **extra):
        # A () tensor of float64 makes another one wider, but no larger tensor.
        half = torch.tensor(0.5, dtype=torch.float64)
        return trees.map_leaves(lambda u: half * (u.t().contiguous().t() if u.ndim == 2 else u), updates), state

    turned = fo.Transform(lambda params, hparams: {}, update, name="turned")
    tx = fo.chain(turned, fo.scale_by_adam(eps=0.1), fo.scale_by_learning_rate(0.1))
    plain, other = Plain(parameters(SHAPES, torch.float32), tx), make(parameters(SHAPES, torch.float32), tx)
    run(plain, other)
    assert_same_progress(plain, other)


def test_what_decides_for_all_has_one_value_at_every_step():
    a, b = (torch.nn.Parameter(torch.zeros(2)) for _ in "ab")
    optimizer = OptimizerAdapter([{"params": [a]}, {"params": [b]}], fo.skip_large_updates(fo.sgd(lr=1.0), largest_norm=100.0))
    for p in (a, b):
        p.grad = torch.full((2,), 3.0)
    optimizer.step()
    optimizer.param_groups[1]["largest_norm"] = 1.0
    with pytest.raises(ValueError, match="takes one 'largest_norm' for all parameters"):
        optimizer.step()
    assert a.tolist() == b.tolist() == [-3.0, -3.0]
