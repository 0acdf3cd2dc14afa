"""Parameters that sit out steps, come late or have no gradient at all: the numbers are the pure function's, at no cost of memory.

What a rule counts is a parameter's own; what a wrapper keeps for all (its clock, a share of a mean) is one for all parameters.
"""

import copy
import pickle

import pytest
import torch
from subjects import assert_same_bits, params_in, through_a_file
from torch.utils._python_dispatch import TorchDispatchMode
from trajectories import assert_params_close, drifting_gradient, set_gradients, start_params

import functional_optim as fo
from functional_optim.adapters import AdamW, OptimizerAdapter, functional_state, load_functional_state
from functional_optim.testing.adapter import _counted_apart

# Equal formulas in float64; the host counts in Python numbers, the pure form in tensors.
FLOAT64 = 1e-12


def falling(step):
    return 0.2 / (1 + step)


def is_even(step):
    return step % 2 == 0


def apart(**branches):
    return fo.partition(branches, fo.by_ndim({2: "matrix"}, otherwise="rest"))


TRANSFORMS = {
    "a schedule": lambda: fo.chain(fo.clip_by_global_norm(), fo.scheduled(fo.adamw(), lr=falling)),
    "a schedule in each branch": lambda: apart(
        matrix=fo.scheduled(fo.adamw(), lr=falling), rest=fo.scheduled(fo.sgd(momentum=0.9), lr=falling)
    ),
    "a schedule around branches": lambda: fo.scheduled(apart(matrix=fo.adamw(), rest=fo.sgd(0.1, 0.9)), **{"matrix.lr": falling}),
    "a schedule inside accumulation": lambda: fo.accumulate(fo.scheduled(fo.adam(), lr=falling), every=3),
    "a mean in a branch": lambda: apart(matrix=fo.accumulate(fo.sgd(0.1, 0.9), every=2), rest=fo.adam(0.1)),
    "a step now and then": lambda: fo.conditionally(fo.adam(0.1), is_even, otherwise=fo.sgd(0.1)),
    "slow weights": lambda: fo.lookahead(fo.scheduled(fo.adam(), lr=falling), sync_period=3),
    "what all share": lambda: fo.prodigy(d0=0.1),
}
IN_KERNELS = ("a schedule", "a schedule in each branch", "a schedule around branches")

# By the step, the numbers of the parameters that have a gradient: some come late, some sit out, a whole branch does.
PRESENT = [[1], [1, 2], [1], [0, 1, 2, 3], [2, 3], [0, 3], [1, 2], [0], [0, 1, 2, 3]]


def pure_run(tx, names, steps):
    """The parameters after each step of the pure function."""
    params = dict(zip(names, (p.detach() for p in start_params()), strict=True))
    state = _counted_apart(tx, tx.init_state(params), params)
    for t in range(steps):
        grads = {k: drifting_gradient(p, t, i) if i in PRESENT[t] else None for i, (k, p) in enumerate(params.items())}
        updates, state = tx.update(grads, state, params)
        params = fo.apply_updates(params, updates)
        yield list(params.values())


def step(optimizer, t):
    params = params_in(optimizer)
    set_gradients(params, t)
    for i, p in enumerate(params):
        p.grad = p.grad if i in PRESENT[t] else None
    optimizer.step()


def through_a_checkpoint(optimizer, make):
    again = make([torch.nn.Parameter(p.detach().clone()) for p in params_in(optimizer)])
    again.load_state_dict(through_a_file(optimizer.state_dict()))
    return again


def through_a_pickle(optimizer, make):
    return pickle.loads(pickle.dumps(optimizer))


def through_a_copy(optimizer, make):
    return copy.deepcopy(optimizer)


def through_the_pure_form(optimizer, make):
    params, state, hparams = functional_state(optimizer)
    load_functional_state(optimizer, params, state, hparams)
    return optimizer


WAYS = [through_a_checkpoint, through_a_pickle, through_a_copy, through_the_pure_form]
EACH = [*((name, False) for name in TRANSFORMS), *((name, True) for name in IN_KERNELS)]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name, fused", EACH)
def test_who_sits_out_or_comes_late_is_treated_as_by_the_pure_function(name, fused, way):
    """In two groups, and handed on after every third step."""
    tx = TRANSFORMS[name]()

    def make(params):
        return OptimizerAdapter([{"params": params[:1]}, {"params": params[1:]}], tx, fused=fused)

    optimizer = make(start_params())
    for t, expected in enumerate(pure_run(tx, ["a", "b", "c", "d"], len(PRESENT))):
        step(optimizer, t)
        assert_params_close(params_in(optimizer), expected, FLOAT64)
        if t % 3 == 1:
            optimizer = way(optimizer, make)


@pytest.mark.parametrize("fused", [False, True])
def test_where_nobody_has_a_gradient_clocks_stand_still_other_than_the_pure_functions(fused):
    """A step that finds no gradient does nothing, as in torch, whose optimizers have no clocks."""
    p, tx = torch.nn.Parameter(torch.ones(2)), fo.scheduled(fo.sgd(), lr=falling)
    optimizer = OptimizerAdapter([p], tx, fused=fused)
    state = tx.init_state(p.detach())
    for grad in (torch.ones(2), None, None):
        p.grad = grad
        optimizer.step()
        _, state = tx.update(grad, state, p.detach())
    assert (int(optimizer.state[p]["schedule_step"]), int(state["schedule_step"])) == (1, 3)


@pytest.mark.parametrize("name", ["a schedule", "a schedule in each branch", "a mean in a branch"])
def test_the_state_taken_out_is_the_pure_functions(name):
    tx = TRANSFORMS[name]()
    optimizer = OptimizerAdapter(start_params(), tx)
    params = {str(i): p.detach() for i, p in enumerate(start_params())}
    state = _counted_apart(tx, tx.init_state(params), params)
    for t in range(4):
        step(optimizer, t)
        grads = {k: drifting_gradient(p, t, int(k)) if int(k) in PRESENT[t] else None for k, p in params.items()}
        updates, state = tx.update(grads, state, params)
        params = fo.apply_updates(params, updates)
    found = functional_state(optimizer).state
    for keys in [keys for keys in paths(found) if keys[-1] in ("schedule_step", "micro_step", "exp_avg", "momentum_buffer")]:
        assert_same_value(at(found, keys), at(state, keys))


def paths(state, keys=()):
    for key, value in state.items():
        yield (*keys, key)
        if isinstance(value, dict) and key not in ("exp_avg", "momentum_buffer"):
            yield from paths(value, (*keys, key))


def at(state, keys):
    for key in keys:
        state = state[key]
    return state


def assert_same_value(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same_value(found[key], expected[key])
    else:
        torch.testing.assert_close(found.double(), expected.double(), rtol=FLOAT64, atol=FLOAT64)


# Groups and branches that come late.


@pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
@pytest.mark.parametrize("first", ["head", "stem"])
def test_a_group_may_bring_the_first_parameter_of_a_branch(first, fused):
    """Which branch was empty, the first or the last; torch's own two optimizers are the truth."""
    branches = {"head": fo.adam(0.1), "stem": fo.sgd(0.1, 0.9)}
    params = dict(zip(("head", "stem"), start_params()[:2], strict=True))
    theirs = {k: torch.nn.Parameter(p.detach().clone()) for k, p in params.items()}
    made = {"head": lambda p: torch.optim.Adam([p], 0.1), "stem": lambda p: torch.optim.SGD([p], 0.1, 0.9)}
    late = "stem" if first == "head" else "head"
    tx = fo.partition(branches, fo.by_name({f"^{first}": first, ".*": late}))
    ours = OptimizerAdapter([(first, params[first])], tx, fused=fused)
    others = {first: made[first](theirs[first])}
    for t in range(6):
        if t == 3:
            ours.add_param_group({"params": [(late, params[late])]})
            others[late] = made[late](theirs[late])
        for i, k in enumerate(params):
            for p in (params[k], theirs[k]):
                p.grad = drifting_gradient(p, t, i)
        for optimizer in (ours, *others.values()):
            optimizer.step()
        assert_params_close(list(params.values()), list(theirs.values()), FLOAT64)


@pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
def test_parameters_are_unfrozen_layer_by_layer(fused):
    """From the last to the first, by `requires_grad`; each has Adam's first step when its time has come."""
    ours, theirs = start_params(), start_params()
    optimizer, other = AdamW(ours, 0.1, fused=fused), torch.optim.AdamW(theirs, 0.1)
    for t in range(8):
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            for x in (p, q):
                x.requires_grad_(i >= 3 - t // 2)
                x.grad = drifting_gradient(x.detach(), t, i) if x.requires_grad else None
        optimizer.step()
        other.step()
        assert_params_close(ours, theirs, FLOAT64)


# What has no gradient costs nothing.


class Made(TorchDispatchMode):
    """Counts the elements of large tensors that are made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, list | tuple) else [result]:
            if isinstance(x, torch.Tensor) and x.numel() >= 10_000 and x.device.type != "meta" and not x._is_view():
                self.elements += x.numel()
        return result


@pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
@pytest.mark.parametrize(
    "tx",
    [
        fo.adamw(),
        fo.chain(fo.clip_by_global_norm(), fo.adamw()),
        fo.accumulate(fo.adamw(), 2),
        fo.partition({"frozen": fo.adam(), "live": fo.sgd()}, fo.by_ndim({2: "frozen"}, otherwise="live")),
        fo.prodigy(),
    ],
    ids=["adamw", "clipped", "accumulate", "partition", "prodigy"],
)
def test_a_frozen_parameter_allocates_nothing(tx, fused):
    def run(params):
        optimizer = OptimizerAdapter(params, tx, fused=fused and tx.name in ("adamw", "partition"))
        for _ in range(3):
            params[-1].grad = torch.ones(3)
            optimizer.step()
        optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        optimizer.step()
        return optimizer

    frozen, live = torch.nn.Parameter(torch.ones(100, 100), requires_grad=False), torch.nn.Parameter(torch.ones(3))
    run(
        [torch.nn.Parameter(torch.ones(1, 1), requires_grad=False), torch.nn.Parameter(torch.ones(3))]
    )  # The compiler needs memory.
    with Made() as made:
        optimizer = run([frozen, live])
    assert made.elements == 0 and not optimizer.state.get(frozen)


@pytest.mark.parametrize("fused", [False, True], ids=["eager", "fused"])
def test_what_has_no_gradient_may_be_lazy_or_of_eight_bits(fused):
    lazy, live = torch.nn.LazyLinear(2), torch.nn.Linear(3, 2)
    eight = torch.nn.Parameter(torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
    params = [("lazy", lazy.weight), ("eight", eight), *live.named_parameters()]
    tx = fo.partition({"matrix": fo.adamw(), "rest": fo.sgd(0.1)}, fo.by_ndim({2: "matrix"}, otherwise="rest"))
    optimizer = OptimizerAdapter(params, fo.chain(fo.clip_by_global_norm(), tx), fused=fused)
    for _ in range(2):
        live(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    before = lazy(torch.ones(1, 5)).sum()
    before.backward()  # It is a parameter now.
    optimizer.step()
    assert lazy(torch.ones(1, 5)).sum() < before
    assert int(optimizer.state[lazy.weight]["step"]) == 1 and eight not in optimizer.state


def test_a_failed_step_starts_no_state():
    optimizer = OptimizerAdapter(start_params(), fo.scheduled(fo.adamw(), lr=falling))
    step(optimizer, 0)
    before = copy.deepcopy(optimizer.state_dict())
    set_gradients(params_in(optimizer), 1)
    params_in(optimizer)[3].grad = torch.ones((2, 2), dtype=torch.float64).to_sparse()
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step()
    assert_same_bits(optimizer.state_dict(), before)
