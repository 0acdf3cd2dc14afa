"""Rules with numbers, of a leaf or of all, and rules after a transform: each engine runs them as itself."""

import functools

import pytest
import torch
from cases import divide_by_average_norm
from engines import Plain, assert_same_progress, parameters, params_of, run, set_gradients, ways

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter
from functional_optim.adapters.engine.backends import foreach, rows
from functional_optim.adapters.engine.buckets import Way
from functional_optim.adapters.engine.route import links_of

SHAPES = [(3, 4), (150, 100), (), (7,), (0,)]
Fused = functools.partial(OptimizerAdapter, fused=True)
ENGINES = {OptimizerAdapter: "LISTED", Fused: "COMPILED"}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 4000)
    monkeypatch.setattr(rows, "SMALL", 500)


def ended(*links):
    return fo.chain(*links, fo.scale_by_learning_rate(0.1))


WRAPPED = {
    "cautious": lambda: ended(fo.clip_by_global_norm(), fo.cautious(fo.scale_by_adam(eps=0.1)), fo.add_decayed_weights(0.1)),
    "signs": lambda: ended(fo.with_gradient_signs(fo.scale_by_adam(eps=0.1))),
    "one in another": lambda: ended(fo.with_gradient_signs(fo.cautious(fo.chain(fo.clip_by_global_norm(), fo.trace())))),
    "nothing inside": lambda: ended(fo.cautious(fo.chain())),
    "in a gate": lambda: fo.accumulate(ended(fo.cautious(fo.trace(0.5))), every=2),
    "around a rule with shapes": lambda: ended(
        fo.trace(0.5), fo.cautious(fo.chain(fo.trace(0.5), divide_by_average_norm(), fo.scale(0.5)))
    ),
    "inside, behind a rule with shapes": lambda: ended(
        fo.cautious(fo.chain(divide_by_average_norm(), fo.with_gradient_signs(fo.scale(0.5))))
    ),
    "norms on the way": lambda: fo.chain(fo.monitor("grad"), fo.clip_by_global_norm(), fo.adamw(eps=0.1), fo.monitor("update")),
    "norms around": lambda: fo.log_norms(fo.chain(fo.clip_by_global_norm(), fo.adamw(eps=0.1))),
    "around branches": lambda: ended(
        fo.cautious(fo.partition({"matrix": fo.trace(0.5), "rest": fo.scale_by_adam(eps=0.1)}, fo.by_ndim({2: "matrix"}, "rest")))
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize(("make", "dtype"), [(OptimizerAdapter, torch.float64), (Fused, torch.float32)], ids=["lists", "kernels"])
def test_engines_run_rules_after_a_transform_as_themselves(name, make, dtype):
    plain, other = (m(parameters(SHAPES, dtype), WRAPPED[name]()) for m in (Plain, make))
    run(plain, other, steps=6)
    assert ways(other) == {ENGINES[make]}
    assert_same_progress(plain, other, dtype)


def test_the_gradient_that_is_compared_needs_no_memory_of_its_own():
    """In one run of elementwise rules it is read once: of Adam gradient, parameter and two slots; parameter and slots written."""
    optimizer = Fused(parameters([(3, 4), (150, 100)]), WRAPPED["cautious"]())
    run(optimizer, steps=1)
    (row,) = optimizer.explain().stages
    assert (row.reads, row.writes, row.state) == (16, 12, 8) and not row.reason
    assert row.links == ("clip_by_global_norm", "cautious", "cautious", "add_decayed_weights", "scale_by_learning_rate")


@pytest.mark.parametrize("make", ENGINES)
def test_a_number_of_each_leaf_is_written_down_once(make):
    """The shares of the leaves differ, and at each step; no program is arranged for them after the second."""
    arranged = []
    optimizer = make(parameters(SHAPES), WRAPPED["cautious"]())
    run(optimizer, steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreach, "trace", lambda *args, **kwargs: arranged.append(args))
        run(optimizer, steps=4)
    assert not arranged


@fo.transform.numbered(own={"met": lambda p, hp: torch.zeros((), dtype=torch.float64)}, shared={"all": 0.0}, hparams={"by": 1.0})
def count_up(hp, t, numbers):
    """A sum for each leaf and one for all, over the steps; the update is what they were before, and are now."""

    def terms(g, p):
        return hp["by"] * g

    def finish(sums):
        return {"met": numbers["met"] + sums.own[0], "all": numbers["all"] + sums.all[0], "time": t * torch.ones(())}

    def rule(new, g, p):
        return (new["time"] * numbers["met"] + new["all"]) * torch.ones_like(g)

    return terms, finish, rule


@pytest.mark.parametrize("make", [None, Plain, *ENGINES])
def test_numbers_are_kept_of_each_leaf_and_of_all(make):
    """By hand: the gradients of step k are k times the number of the leaf, which has one more element than that."""
    sizes, met, everything = [1, 2, 3], [0.0] * 3, 0.0
    start = [torch.zeros(n + 1, dtype=torch.float64) for n in sizes]
    params = [torch.nn.Parameter(p) for p in start]
    optimizer, state = make and make(params, count_up()), count_up().init_state(start)
    for k in (1, 2, 3):
        grads = [torch.full_like(p, k * n) for p, n in zip(start, sizes, strict=True)]
        before, met = met, [m + k * n * (n + 1) for m, n in zip(met, sizes, strict=True)]
        everything += sum(k * n * (n + 1) for n in sizes)
        if make:
            old = [p.detach().clone() for p in params]
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            optimizer.step()
            updates = [p.detach() - q for p, q in zip(params, old, strict=True)]
            kept = [(s["met"], s["all"], s["step"]) for s in map(optimizer.state.get, params)]
        else:
            updates, state = count_up().update(grads, state, start)
            kept = [(m, state["all"], state["step"]) for m in state["met"]]
        assert [u.tolist() for u in updates] == [[k * m + everything] * (n + 1) for m, n in zip(before, sizes, strict=True)]
        assert [tuple(map(float, row)) for row in kept] == [(m, everything, k) for m in met]
    if make in ENGINES:
        assert ways(optimizer) == {ENGINES[make]}


@pytest.mark.parametrize("make", ENGINES)
def test_numbers_are_read_from_the_state_at_each_step(make):
    plain, other = (m(parameters(SHAPES, torch.float64), count_up()) for m in (Plain, make))
    run(plain, other, steps=2)
    for optimizer in (plain, other):
        optimizer.state[params_of(optimizer)[1]]["met"].fill_(0.25)
        for p in params_of(optimizer):
            optimizer.state[p]["all"].mul_(0.5)
    run(plain, other, steps=2, first=2)
    assert_same_progress(plain, other, torch.float64)


@pytest.mark.parametrize("make", ENGINES)
def test_what_is_asked_for_each_group_and_summed_over_all(make):
    def groups():
        first, *rest = parameters(SHAPES, torch.float64)
        return [{"params": rest}, {"params": [first], "by": 2.0}]

    plain, other = (m(groups(), count_up()) for m in (Plain, make))
    run(plain, other, steps=3)
    assert ways(other) == {ENGINES[make]}
    assert_same_progress(plain, other, torch.float64)


def test_of_no_gradient_at_all_what_all_share_is_kept():
    state = {**count_up().init_state([torch.zeros(2)]), "all": torch.tensor(3.0, dtype=torch.float64)}
    updates, after = count_up().update([None], state, [torch.zeros(2)])
    assert updates == [None] and float(after["all"]) == 3.0 and int(after["step"]) == 1


OPENED = {
    "schedule_free": lambda: fo.schedule_free(fo.adamw(betas=(0.0, 0.999), eps=0.1, lr=0.1)),
    "nadam": lambda: fo.nadam(eps=0.1),
    "asgd": lambda: fo.asgd(t0=0.5, weight_decay=0.1),
    "lamb": lambda: fo.lamb(eps=0.1, weight_decay=0.1),
    "lars": lambda: fo.lars(weight_decay=0.1),
    "novograd": lambda: fo.novograd(weight_decay=0.1),
    "adagc": lambda: fo.adagc(eps=0.1, warmup_steps=2),
    "mars": lambda: fo.mars(eps=0.1, weight_decay=0.1),
    "stable_adamw": lambda: fo.stable_adamw(eps=0.1),
    "prodigy": lambda: fo.prodigy(d0=0.1),
    "dadapt": lambda: fo.dadapt_adam(d0=0.1),
    "dog": lambda: fo.dog(reps_rel=0.1, eps=0.1, weight_decay=0.1),
    "dowg": lambda: fo.dowg(eps=0.1, weight_decay=0.1),
    "momo": lambda: fo.momo(),
    "momo_adam": lambda: fo.momo_adam(lr=0.1),
    "plateau": lambda: fo.chain(fo.sgd(momentum=0.9), fo.reduce_on_plateau(patience=1)),
    "polyak": lambda: fo.polyak_sgd(),
}


# Numbers of each leaf and of all, one such rule behind another, numbers that ask for the loss; `test_fused.py` has others.
COMPILED = ("schedule_free", "lamb", "adagc", "prodigy", "momo", "plateau")
EACH = [pytest.param(OptimizerAdapter, name, id=f"lists-{name}") for name in OPENED]
EACH += [pytest.param(Fused, x, marks=[] if x in COMPILED else [pytest.mark.full], id=f"kernels-{x}") for x in OPENED]


@pytest.mark.parametrize("make, name", EACH)
def test_engines_run_rules_with_numbers_as_themselves(name, make):
    """Of two groups, and where a parameter sits out for some steps: nothing is called, and all comes out as from the rules."""
    optimizers = []
    for each in (Plain, make):
        first, second = parameters(SHAPES, torch.float64), parameters(SHAPES, torch.float64, seed=1)
        own = {"weight_decay": 0.01} if "weight_decay" in OPENED[name]().declared and "momo" not in name else {}
        optimizers.append(each([{"params": first}, {"params": second, **own}], OPENED[name]()))
    for step in range(7):
        set_gradients(step, *map(params_of, optimizers))
        for optimizer in optimizers:
            if step in (2, 3):
                params_of(optimizer)[step].grad = None
                params_of(optimizer)[8].grad = None
            optimizer.step(value=1 + 1 / (step + 1))
    assert ways(optimizers[1]) == {ENGINES[make]} and all(link.packs for link in links_of(OPENED[name]()))
    assert_same_progress(*optimizers, torch.float64)


@pytest.mark.parametrize("name", ["prodigy", "momo_adam", "stable_adamw"])
def test_what_is_summed_is_never_stored(name):
    """Each kernel is one function over the columns, without memory of its own."""
    optimizer = Fused(parameters(SHAPES, torch.float64), OPENED[name]())
    set_gradients(0, params_of(optimizer))
    optimizer.step(value=1.0)
    (step,) = optimizer._steps.values()
    (kernels,) = step.plan.backends[Way.COMPILED].kernels.values()
    assert kernels.step.direct and all(kernel.direct for kernel in kernels.quantities.values() if kernel)


def test_a_slot_that_stays_as_it_is_is_not_touched():
    """The first parameters of Prodigy, behind numbers, gradient, parameter and three other slots: only its sums read them."""
    optimizer = Fused(parameters(SHAPES, torch.float64), OPENED["prodigy"]())
    run(optimizer, steps=1)
    (step,) = optimizer._steps.values()
    (kernels,) = step.plan.backends[Way.COMPILED].kernels.values()
    assert 6 not in kernels.step.direct.places and 6 in kernels.quantities[0].direct.places
