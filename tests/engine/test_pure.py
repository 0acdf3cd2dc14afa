"""`fused(tx)`: the pure function, run as an optimizer's step is where it can be, and as its rules elsewhere."""

import copy
import gc
import pickle
import sys
import threading
import warnings
import weakref
from typing import NamedTuple

import pytest
import torch
from cases import TABLE, by_dimensions, divide_by_largest_norm, params_for
from covering import kinds_of, mostly_full

import functional_optim as fo
from functional_optim import testing, trees
from functional_optim.adapters import OptimizerAdapter
from functional_optim.adapters.engine import buckets, fresh, pure
from functional_optim.adapters.engine.backends import foreach, kernels, rows
from functional_optim.lifting import Leafwise
from functional_optim.testing import LAWS, Trial, check_law, default_params

CLIPPED = fo.chain(fo.clip_by_global_norm(0.5), fo.adamw(0.1))
SHAPES = {"w": (3, 4), "b": (4,), "s": (), "large": (300, 130)}

# Kernels multiply by reciprocals and sum in another order; both compute in float32.
ROUNDING = {"rtol": 2e-5, "atol": 2e-6}

# What is no rule is called, and one is told so.
pytestmark = pytest.mark.filterwarnings("ignore:.* is fused, but .* is no rule for one tensor")


@pytest.fixture
def no_compiler(monkeypatch):
    """Where kernels can't be made, the rules run over lists and blocks."""
    monkeypatch.setitem(sys.modules, "functional_optim.adapters.engine.backends.inductor", None)


@pytest.fixture
def rules_only(monkeypatch):
    """Make whoever runs something else than the rules fail."""

    def fail(*args, **kwargs):
        raise AssertionError("the engine was asked")

    monkeypatch.setattr(pure, "FreshRun", fail)


@pytest.fixture
def no_rules(monkeypatch):
    """From now on whoever runs a rule on tensors fails."""

    def forbid():
        def fail(*args, **kwargs):
            raise AssertionError("a rule was run")

        monkeypatch.setattr(Leafwise, "update", fail)
        monkeypatch.setattr(fo.Transform, "_by_rules", fail)

    return forbid


def sample(seed, shapes=SHAPES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {name: _values_of(shape, dtype, generator) for name, shape in shapes.items()}


def _values_of(shape, dtype, generator):
    return torch.randn(shape, dtype=dtype, generator=generator) + 0.01


def assert_like(found, expected, **tolerance):
    """Trees of one structure, of tensors of the same dtypes and shapes, and of about the same numbers."""
    (xs, spec), (ys, other) = trees.flatten(found), trees.flatten(expected)
    assert spec == other
    for x, y in zip(xs, ys, strict=True):
        if y is None:
            assert x is None
            continue
        own = tolerance or ROUNDING if y.dtype not in (torch.bfloat16, torch.float16) else {"rtol": 1e-2, "atol": 1e-2}
        torch.testing.assert_close(x.detach(), y.detach(), **own)


def assert_same_steps(tx, params, gradients, hparams=None, steps=3, fast=True, **extra):
    """`update` and `step` of the fused transform against the rules, each of them going on with its own state."""
    fused = fo.fused(tx)
    states = [tx.init_state(params, hparams)] * 3
    where = [params] * 3
    for i in range(steps):
        grads = gradients(i)
        before = trees.map_leaves(torch.clone, (grads, states, where))
        updates, expected = tx.update(grads, states[0], where[0], hparams, **extra)
        found, state = fused.update(grads, states[1], where[1], hparams, **extra)
        stepped, other = fused.step(grads, states[2], where[2], hparams, **extra)
        assert all(torch.equal(x, y) for x, y in zip(*map(_tensors, ((grads, states, where), before)), strict=True))
        assert_like(found, updates)
        assert_like([state, other], [expected, expected])
        where = [fo.apply_updates(where[0], updates), fo.apply_updates(where[1], found), stepped]
        assert_like(where[1:], [where[0]] * 2)
        states = [expected, state, other]
    assert (plans_of(fused) != []) == fast
    return fused


def _tensors(tree):
    return [x.nan_to_num() for x in trees.leaves(tree) if x is not None]


def plans_of(fused):
    """The plans by which something was run."""
    return [plan for each in fused.form.engine._structures for plan in each.plans.values() if isinstance(plan, fresh.FreshPlan)]


def ways(fused):
    return {part.way.name for plan in plans_of(fused) for part in plan.parts if part.passage.stages[0].fuses}


# --- The same numbers -----------------------------------------------------------------------------------------------------


FUSED = {case: Trial(fo.fused(tx), params_for(case) or default_params()) for case, tx in TABLE.items()}
# What the engine makes of the operations of each rule is to be seen in these,
OF_EACH_RULE = {testing.inputs_are_not_written_to, testing.low_precision_is_computed_in_float32}
# and in these how it takes each kind of rule.
OF_EACH_KIND = {
    testing.two_steps_run,
    testing.structure_shape_and_dtype_are_kept,
    testing.any_tree_will_do,
    testing.bad_input_is_an_error,
}
# Of other laws the engine sees little: they differentiate, or go on behind an optimizer. A few transforms stand for all.
FEW = ["adamw-0", "accumulate-0", "partition-0"]


def every_pair():
    marks = {law: mostly_full(TABLE) for law in OF_EACH_RULE} | {law: mostly_full(TABLE, kinds_of) for law in OF_EACH_KIND}
    few = {case: [] if case in FEW else [pytest.mark.full] for case in TABLE}
    for case in FUSED:
        for law in LAWS:
            yield pytest.param(case, law, id=f"{case}-{law.__name__}", marks=marks.get(law, few)[case])


@pytest.mark.parametrize("case, law", list(every_pair()))
@pytest.mark.filterwarnings("ignore:.* is fused, but")
def test_the_laws_hold_over_lists(case, law, no_compiler):
    check_law(law, FUSED[case])


@pytest.mark.parametrize("make", [lambda: fo.per_matrix(fo.scale_by_muon()), fo.scale_by_sm3, fo.scale_by_shampoo])
@pytest.mark.filterwarnings("ignore:.* is fused, but")
def test_slots_of_rules_that_take_equal_shapes_together(make, no_compiler):
    tx, params = fo.chain(make(), fo.scale_by_learning_rate(0.1)), [torch.ones(4, 4), torch.ones(4, 4)]
    assert_same_steps(tx, params, lambda i: [torch.randn(4, 4, generator=torch.Generator().manual_seed(i)) for _ in params])


# The optimizers' kernels are tested on many more; these differ in where they write.
COMPILED = [*FEW, "cautious-0", "monitor-0", "prodigy-0", "with_master_copy-0"]


@pytest.mark.parametrize("case", [pytest.param(case, marks=[] if case in COMPILED else [pytest.mark.full]) for case in TABLE])
def test_kernels_compute_what_the_rules_do(case):
    tx, params = TABLE[case], {name: p.float() for name, p in (params_for(case) or default_params()).items()}
    trial = Trial(tx, params)
    fused, state, where = fo.fused(tx), tx.init_state(params), params
    for i in range(3):
        grads = trial.sample(i, torch.float32)
        updates, expected = tx.update(grads, state, where, **trial.extra())
        stepped, found = fused.step(grads, state, where, **trial.extra())
        assert_like(stepped, fo.apply_updates(where, updates))
        assert_like(found, expected)
        where, state = stepped, found
    assert ways(fused) <= {"COMPILED", "CODED"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64], ids=str)
@pytest.mark.parametrize("compiler", [True, False], ids=["kernels", "lists"])
def test_dtypes(dtype, compiler, request):
    if not compiler:
        request.getfixturevalue("no_compiler")
    with warnings.catch_warnings(action="ignore" if not compiler else "error"):
        fused = assert_same_steps(CLIPPED, sample(9, dtype=dtype), lambda i: sample(i, dtype=dtype))
    assert ways(fused) == {"COMPILED" if compiler else "LISTED"}


def test_mixed_dtypes_and_states_in_another():
    def mixed(seed):
        tensors = sample(seed)
        return {**tensors, "b": tensors["b"].bfloat16(), "s": tensors["s"].double()}

    tx = fo.chain(fo.clip_by_global_norm(0.5), fo.scale_by_adam(state_dtype=torch.float32), fo.scale_by_learning_rate(0.1))
    fused = assert_same_steps(tx, mixed(9), mixed)
    assert ways(fused) == {"COMPILED"}


def test_gradients_in_another_precision_than_their_parameters():
    fused, params, grads = fo.fused(CLIPPED), sample(9), sample(0, dtype=torch.bfloat16)
    state = CLIPPED.init_state(params)
    for found, expected in zip(fused.step(grads, state, params), CLIPPED.step(grads, state, params), strict=True):
        assert_like(found, expected)
    updates, _ = fused.update(grads, state, params)
    assert_like(updates, CLIPPED.update(grads, state, params)[0])
    assert ways(fused) == {"COMPILED"}
    # A rule computes in the gradient's precision here, which no kernel does.
    assert_same_steps(CLIPPED, sample(9, dtype=torch.float64), sample, fast=False)


def test_step_rounds_once():
    params, grads = {"w": torch.ones(8, dtype=torch.bfloat16)}, {"w": torch.full((8,), 0.3, dtype=torch.bfloat16)}
    tx = fo.sgd(lr=0.0131)
    wide = 1 - 0.0131 * float(grads["w"][0])
    for each in (tx, fo.fused(tx)):
        new, _ = each.step(grads, each.init_state(params), params)
        assert torch.equal(new["w"], torch.full((8,), wide).bfloat16())


# --- Whatever is given ----------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    first: torch.Tensor
    second: list


@pytest.mark.parametrize("kind", ["bare", "list", "named tuple", "nested"])
def test_any_tree(kind):
    def tree(seed):
        a, b, c, _ = sample(seed).values()
        return {"bare": a, "list": [a, b], "named tuple": Pair(a, [b, c]), "nested": {"x": (a, {"y": b}), "z": [Pair(c, [])]}}[
            kind
        ]

    tx = fo.partition({"matrix": CLIPPED, "rest": fo.lion(0.1)}, fo.by_ndim({2: "matrix"}, otherwise="rest"))
    if kind == "bare":
        tx = CLIPPED
    assert_same_steps(tx, tree(9), tree)


def test_an_empty_tree_and_empty_tensors():
    assert fo.fused(CLIPPED).update({}, CLIPPED.init_state({}), {})[0] == {}
    shapes = {"none": (0, 3), "w": (2,)}
    assert_same_steps(CLIPPED, sample(9, shapes), lambda i: sample(i, shapes))
    assert_same_steps(CLIPPED, sample(9, {"none": (0,)}), lambda i: sample(i, {"none": (0,)}))


def test_missing_gradients_and_frozen_parameters():
    frozen = {"never": None}

    def gradients(step):
        grads = sample(step)
        return {**grads, **frozen, "b": None, "w": grads["w"] if step % 2 else None}

    assert_same_steps(CLIPPED, {**sample(9), **frozen}, gradients, steps=4)
    assert_same_steps(fo.chain(divide_by_largest_norm(), CLIPPED), {**sample(9), **frozen}, gradients, steps=4)
    # What is left out by a gate, others may have to make up for.
    assert_same_steps(fo.accumulate(CLIPPED, 2), {**sample(9), **frozen}, gradients, steps=4, fast=False)
    given, params = sample(0), sample(9)
    new, _ = fo.fused(CLIPPED).step({**given, "b": None}, CLIPPED.init_state(params), params)
    assert new["b"] is params["b"]


def test_any_layout():
    def odd(seed):
        x = sample(seed, {"a": (6, 8), "b": (5, 1), "c": (4, 4, 2), "d": (7,)})
        return {"a": x["a"].t(), "b": x["b"].expand(5, 3), "c": x["c"].permute(2, 0, 1)[:, ::2], "d": x["d"]}

    def otherwise(seed):
        return {name: x.contiguous() if seed % 2 else x for name, x in odd(seed).items()}

    assert_same_steps(CLIPPED, odd(9), otherwise, steps=4)
    state = CLIPPED.init_state(odd(9))
    slots = {"exp_avg": odd(1), "exp_avg_sq": {name: x.abs() for name, x in odd(2).items()}}
    for name, value in slots.items():
        state = fo.state_set(state, name, value)
    expected = CLIPPED.update(odd(3), state, odd(9))
    assert_like(fo.fused(CLIPPED).update(odd(3), state, odd(9)), expected)


def test_conjugate_and_negative_views():
    z = torch.randn(3, 2, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    params, grads = {"z": z, "im": z.conj().imag}, {"z": z.conj(), "im": z.conj().imag}
    assert grads["z"].is_conj() and grads["im"].is_neg()
    assert_same_steps(CLIPPED, params, lambda i: grads)


def test_tensors_may_share_their_memory():
    x = torch.randn(40, generator=torch.Generator().manual_seed(0))
    params = {"all": x, "again": x, "part": x[4:], "turned": x.view(8, 5)}
    fused = fo.fused(CLIPPED)
    state = CLIPPED.init_state(params)
    expected = CLIPPED.update(params, state, params)
    assert_like(fused.update(params, state, params), expected)
    new, _ = fused.step(params, state, params)
    assert len({x.data_ptr() for x in new.values()}) == 4


@pytest.mark.parametrize("value", [0.05, torch.tensor(0.05), torch.tensor(0.05, dtype=torch.float64)], ids=str)
def test_hyper_parameters_are_numbers_or_tensors(value):
    betas = torch.tensor([0.8, 0.95]) if isinstance(value, torch.Tensor) else (0.8, 0.95)
    assert_same_steps(CLIPPED, sample(9), sample, {"lr": value, "betas": betas, "max_norm": value})


def test_one_value_per_leaf():
    rates = {"w": 0.1, "b": torch.tensor(0.2), "s": 0.1, "large": 0.3}
    betas = {"w": (0.9, 0.99), "b": (0.9, 0.99), "s": (0.5, 0.9), "large": (0.9, 0.99)}
    hparams = {"lr": fo.PerLeaf(rates), "betas": fo.PerLeaf(betas)}
    assert_same_steps(CLIPPED, sample(9), sample, hparams)
    assert_same_steps(fo.chain(fo.monitor(), fo.lookahead(fo.adam()), fo.adamw()), sample(9), sample, hparams)


def test_counts_of_leaves_and_of_all():
    params = sample(9)
    state = CLIPPED.init_state(params)
    counts = fo.PerLeaf({"w": torch.tensor(3), "b": torch.tensor(1), "s": torch.tensor(3), "large": torch.tensor(0)})
    own = fo.state_set(state, "step", counts)
    grads = {**sample(0), "b": None}
    expected = CLIPPED.update(grads, own, params)
    found = fo.fused(CLIPPED).update(grads, own, params)
    assert_like(found, expected)
    assert int(fo.state_get(found[1], "step").tree["b"]) == 1


def test_what_is_no_rule_sees_the_users_trees():
    seen = []

    def update(updates, state, params, hparams, **extra):
        seen.append((type(updates), type(params), extra))
        return Pair(updates.first * 2, updates.second), {"count": state["count"] + 1}

    by_hand = fo.Transform(lambda params, hparams: {"count": torch.zeros(())}, update)
    tree = {i: Pair(torch.randn(3), [torch.randn(2), torch.randn(4)]) for i in range(4)}
    assert_same_steps(fo.chain(fo.scale_by_adam(), by_hand, fo.adamw()), tree[3], tree.__getitem__, loss=2.0)
    assert set(map(str, seen)) == {str((Pair, Pair, {"loss": 2.0}))}


def test_what_is_given_beside_gradients_reaches_whom_it_concerns():
    tx = fo.chain(fo.scale_by_adam(), fo.scale_by_polyak(eps=1e-8), fo.add_decayed_weights(0.1))
    assert_same_steps(tx, sample(9), sample, value=1.5)
    assert_same_steps(by_dimensions(scalars=tx, rest=fo.sgd(0.1)), sample(9), sample, value=1.5)
    # What is no rule may ask for anything, of which a branch sees its own part.
    in_a_branch = by_dimensions(scalars=fo.chain(divide_by_largest_norm(), fo.adam()), rest=fo.adam())
    assert_same_steps(in_a_branch, sample(9), sample, value=1.5, fast=False)


def test_a_state_is_handed_over_and_back():
    params, plain, fused = sample(9), CLIPPED, fo.fused(CLIPPED)
    one = two = params, plain.init_state(params)
    for i in range(6):
        one = plain.step(sample(i), one[1], one[0])
        two = (fused if i % 2 else plain).step(sample(i), two[1], two[0])
    assert_like(two, one)
    assert fo.state_get(two[1], "step").dtype == torch.int64


# --- The way that is taken ------------------------------------------------------------------------------------------------


WARM = {
    "clip and AdamW": CLIPPED,
    "accumulate": fo.accumulate(CLIPPED, 2),
    "cautious": fo.chain(fo.cautious(fo.scale_by_lion()), fo.scale_by_learning_rate(0.1)),
    "monitor": fo.chain(fo.monitor(), fo.adamw()),
    "scheduled": fo.scheduled(fo.adamw(), lr=fo.cosine(0.1, 0.0, steps=10)),
    "finite": fo.apply_if_finite(fo.adamw()),
    "masked": fo.chain(fo.scale_by_adam(), fo.masked(fo.add_decayed_weights(0.1), lambda name, leaf: leaf.ndim > 1), fo.sgd()),
    "inside": fo.chain(fo.fused(fo.scale_by_adam()), fo.fused(fo.scale_by_learning_rate(0.1))),
}


# To a step, plans are the same: its kernels add the update.
ASKED = [("clip and AdamW", "update"), ("inside", "update"), *((name, "step") for name in WARM)]
ASKED += [pytest.param(name, "update", marks=pytest.mark.full) for name in WARM if (name, "update") not in ASKED]


@pytest.mark.parametrize(("name", "asked"), ASKED)
def test_a_warm_step_runs_no_rule(name, asked, no_rules):
    fused, params = fo.fused(WARM[name]), sample(9)
    run, state = getattr(fused, asked), fused.init_state(params)
    for i in range(3):
        _, state = run(sample(i), state, params)
    no_rules()
    for i in range(3):
        _, state = run(sample(i), state, params)


def test_numbers_and_sizes_compile_nothing_anew(monkeypatch):
    fused = fo.fused(fo.chain(fo.clip_by_global_norm(), fo.scale_by_lion(), fo.scale_by_learning_rate()))
    params = sample(9)
    state = fused.init_state(params)
    _, state = fused.step(sample(0), state, params)

    def fail(*args):
        raise AssertionError("something is compiled")

    monkeypatch.setattr(kernels, "compile_body", fail)
    for i in range(4):
        _, state = fused.step(
            sample(i), state, params, {"lr": 0.1 * i, "max_norm": torch.tensor(0.1 + i), "betas": (0.1, 0.1 * i)}
        )
    shapes = {"another": (7, 3), "model": (2, 2, 2)}
    others = sample(0, shapes)
    fused.step(others, fused.init_state(others), others)
    fo.fused(fo.chain(fo.clip_by_global_norm(2.0), fo.scale_by_lion(), fo.scale_by_learning_rate(0.3))).step(
        others, fused.init_state(others), others
    )


def test_programs_are_written_once(monkeypatch, no_compiler):
    written = []
    program_of = foreach.program_of
    monkeypatch.setattr(foreach, "program_of", lambda *args: written.append(args) or program_of(*args))
    params = sample(9)
    with pytest.warns(UserWarning, match="is fused, but"):
        fused = fo.fused(CLIPPED)
        state = fused.init_state(params)
        for i in range(10):
            params, state = fused.step(sample(i), state, params, {"lr": 0.1 / (1 + i)})
    assert len(written) == 2  # of the norm, and of the step


def requires_grad(tree):
    return trees.map_leaves(lambda x: x.clone().requires_grad_(), tree)


def test_derivatives_are_the_rules_business(rules_only):
    params, grads = sample(9), sample(0)
    fused, state = fo.fused(CLIPPED), CLIPPED.init_state(params)

    def moved(lr):
        return sum(x.sum() for x in trees.leaves(fused.step(grads, state, params, {"lr": lr})[0]))

    lr = torch.tensor(0.1)
    slope = torch.func.grad(moved)(lr)
    assert torch.allclose(torch.func.jvp(moved, (lr,), (torch.ones(()),))[1], slope)
    with torch.autograd.forward_ad.dual_level():
        dual = moved(torch.autograd.forward_ad.make_dual(lr, torch.ones(())))
        assert torch.allclose(torch.autograd.forward_ad.unpack_dual(dual).tangent, slope)
    own = lr.clone().requires_grad_()
    assert torch.allclose(torch.autograd.grad(moved(own), own)[0], slope)
    rates = torch.tensor([0.1, 0.2])
    assert torch.allclose(torch.vmap(moved)(rates), torch.stack([moved(x.requires_grad_()) for x in rates.unbind()]))
    new, _ = fused.update(requires_grad(grads), state, params)
    assert all(x.requires_grad for x in new.values())
    new, _ = fused.update(grads, state, requires_grad(params))
    assert all(x.requires_grad for x in new.values())


def test_a_loop_differentiated_and_batched_through_a_fused_transform(rules_only):
    plain, batch = fo.sgd(0.1, momentum=0.9), torch.randn(5, generator=torch.Generator().manual_seed(0))

    def loss(params, batch):
        return ((params["w"] * batch - 1) ** 2).sum()

    def end(tx, lr):
        trained = fo.meta.unroll(loss, tx, 3)({"w": torch.ones(5)}, {"lr": lr}, (batch,))
        return loss(trained.params, batch)

    rates = torch.tensor([0.05, 0.1])
    found, expected = (torch.vmap(torch.func.grad(lambda lr, tx=tx: end(tx, lr)))(rates) for tx in (fo.fused(plain), plain))
    assert torch.equal(found, expected)


def test_under_torch_compile(rules_only):
    fused, params = fo.fused(fo.adamw(0.1)), {"w": torch.ones(3)}
    step = torch.compile(fused.step, fullgraph=True, backend="aot_eager")
    assert_like(
        step({"w": torch.ones(3)}, fused.init_state(params), params), fo.adamw(0.1).step(params, fused.init_state(params), params)
    )


def test_what_is_no_rule_may_take_derivatives_of_its_own():
    def update(updates, state, params, hparams, **extra):
        def turned(x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad((x * x).sum(), x)[0]

        return trees.map_leaves(turned, updates), state

    by_hand = fo.Transform(lambda params, hparams: {}, update)
    assert_same_steps(fo.chain(by_hand, fo.adamw()), sample(9), sample)


def test_whoever_has_a_gradient_is_stepped_by_one_plan(no_rules):
    fused, params = fo.fused(CLIPPED), sample(9)
    state = fused.init_state(params)
    for step in range(6):
        grads = {name: g if (i + step) % 3 else None for i, (name, g) in enumerate(sample(step).items())}
        _, state = fused.step(grads, state, params)
        if step == 1:
            no_rules()
    assert len(plans_of(fused)) == 1


def test_no_grad_takes_parameters_that_require_gradients(no_rules):
    params = requires_grad(sample(9))
    fused = fo.fused(CLIPPED)
    state = fused.init_state(params)
    with torch.no_grad():
        fused.step(sample(0), state, params)
        no_rules()
        new, _ = fused.step(sample(1), state, params)
    assert not any(x.requires_grad for x in new.values())


class Marked(torch.Tensor):
    """A tensor of another class."""


def test_other_tensors_are_the_rules_business(rules_only):
    params, fused = {"w": torch.ones(3).as_subclass(Marked)}, fo.fused(fo.adam())
    fused.step(params, fused.init_state(params), params)
    with pytest.raises(TypeError, match="sparse"):
        sparse = {"w": torch.ones(3).to_sparse()}
        fused.step(sparse, fused.init_state(params), {"w": torch.ones(3)})
    with pytest.raises(ValueError, match="shape"):
        fused.step({"w": torch.ones(2)}, fused.init_state(params), {"w": torch.ones(3)})
    updates, _ = fo.fused(fo.sgd()).update({"w": torch.ones(3)}, fo.sgd().init_state(params))
    assert updates["w"].shape == (3,)


def test_a_fake_tensor_mode_sees_the_rules(rules_only):
    with torch._subclasses.FakeTensorMode():
        params = {"w": torch.ones(3)}
        fused = fo.fused(fo.adam())
        new, _ = fused.step(params, fused.init_state(params), params)
    assert new["w"].shape == (3,)


# --- Failures and leftovers -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:chain is fused, but compiling the step failed")
def test_a_failed_call_changes_nothing():
    @fo.elementwise(slots=("m",), hparams={"size": 1.0}, name="touchy")
    def touchy(hp):
        if hp["size"] > 2:
            raise ValueError("too large")
        return lambda g, p, m: (hp["size"] * g + m, g)

    tx, params = fo.chain(fo.clip_by_global_norm(), touchy(), fo.scale_by_learning_rate(0.1)), sample(9)
    fused, state = fo.fused(tx), tx.init_state(params)
    for _ in range(2):
        with pytest.raises(ValueError, match="too large"):
            fused.step(sample(0), state, params, {"size": 3.0})
        assert_like(fused.step(sample(0), state, params), tx.step(sample(0), state, params))


@pytest.mark.parametrize("wrong", ["state", "hparams", "order"])
def test_errors_are_those_of_the_transform(wrong):
    params = sample(9)
    given = {
        "state": (sample(0), {"step": torch.zeros(())}, params),
        "hparams": (sample(0), CLIPPED.init_state(params), params, {"lrr": 0.1}),
        "order": (CLIPPED.init_state(params), sample(0), params),
    }[wrong]
    messages = []
    for tx in (CLIPPED, fo.fused(CLIPPED)):
        with pytest.raises((TypeError, ValueError)) as caught:
            tx.update(*given)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_step_says_what_is_wrong():
    with pytest.raises(TypeError, match="OptimizerAdapter"):
        CLIPPED.step(lambda: torch.ones(()), {}, {})
    with pytest.raises(TypeError, match="needs the parameters"):
        CLIPPED.step(sample(0), CLIPPED.init_state(sample(9)), None)


def test_nothing_is_kept_of_what_was_given():
    fused, params, grads = fo.fused(CLIPPED), sample(9), sample(0)
    state = fused.init_state(params)
    new = fused.step(grads, state, params)
    kept = [weakref.ref(x) for x in trees.leaves((params, grads, state, new))]
    del params, grads, state, new
    gc.collect()
    assert not any(x() is not None for x in kept)


def test_a_structure_is_remembered_and_so_are_a_few_others(no_rules, monkeypatch):
    monkeypatch.setattr(pure, "STRUCTURES", 3)
    fused = fo.fused(CLIPPED)
    for size in (2, 3, 4, 5):
        params = sample(0, {"w": (size,)})
        fused.step(params, fused.init_state(params), params)
    assert len(fused.form.engine._structures) == 3
    no_rules()
    fused.step(params, fused.init_state(params), params)


def test_threads_may_share_it():
    fused, params = fo.fused(CLIPPED), sample(9)
    state = fused.init_state(params)
    expected = [fused.step(sample(i), state, params)[0] for i in range(4)]
    found = {}

    def work(i):
        for _ in range(20):
            found[i] = fused.step(sample(i), state, params)[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert all(torch.equal(found[i][name], expected[i][name]) for name in params)


# --- What it is otherwise -------------------------------------------------------------------------------------------------


def test_it_is_the_transform():
    fused, params = fo.fused(CLIPPED), sample(9)
    assert repr(fused) == f"fused({CLIPPED!r})"
    assert fused.hparams == CLIPPED.hparams and fused.name == CLIPPED.name
    state = fused.init_state(params)
    assert_like(state, CLIPPED.init_state(params))
    assert fo.hparams_at(fused, state) == fo.hparams_at(CLIPPED, state)
    expected = CLIPPED.step(sample(0), state, params)
    for same in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), fo.fused(fused), fo.set_defaults(fused, lr=0.1)):
        assert_like(same.step(sample(0), state, params), expected)
    assert [*fo.chain(fo.fused(fo.adam())).init_state(params)] == ["adam"]
    with pytest.raises(TypeError, match="is not a Transform"):
        fo.fused(fo.adam)
    factored = fo.with_lr_factor(fo.fused(fo.scheduled(fo.sgd(), lr=fo.constant(0.5))))
    assert_like(
        factored.update(torch.ones(2), factored.init_state(torch.ones(2)), torch.ones(2), {"lr_factor": 0.1})[0],
        torch.full((2,), -0.05),
    )


def test_behind_an_optimizer_it_is_what_is_inside():
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    for p, tx in zip(params, (CLIPPED, fo.fused(CLIPPED)), strict=True):
        p.grad = torch.full((3,), 0.3)
        optimizer = OptimizerAdapter([p], tx)
        optimizer.step()
        assert "torch's in-place operations" in str(optimizer.explain())
    assert torch.equal(*params)


def test_a_step_of_any_transform_is_update_and_apply_updates():
    params, grads = sample(9), sample(0)
    state = CLIPPED.init_state(params)
    updates, expected = CLIPPED.update(grads, state, params)
    assert_like(CLIPPED.step(grads, state, params), (fo.apply_updates(params, updates), expected))
    with pytest.warns(UserWarning, match=r"params\['w'\] is an nn.Parameter"):
        fo.fused(fo.sgd()).step(
            {"w": torch.ones(2)}, fo.sgd().init_state({"w": torch.ones(2)}), {"w": torch.nn.Parameter(torch.ones(2))}
        )


def test_it_warns_once_of_what_is_no_rule():
    fused, params = fo.fused(fo.chain(divide_by_largest_norm(), fo.adamw())), sample(9)
    state = fused.init_state(params)
    with pytest.warns(UserWarning, match="largest_norm is no rule for one tensor") as caught:
        for _ in range(3):
            fused.step(sample(0), state, params)
            fused.update(sample(0), state, params)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_on_another_device_lists_go_through_all_tensors():
    params = trees.map_leaves(lambda x: x.to("meta"), sample(9))
    fused, state = fo.fused(fo.sgd(momentum=0.9)), fo.sgd(momentum=0.9).init_state(params)
    new, state = fused.step(params, state, params)
    assert new["w"].device.type == "meta" and new["w"].shape == (3, 4)


def test_large_tensors_go_block_by_block(monkeypatch, no_compiler):
    monkeypatch.setattr(rows, "BLOCK", 4000)
    monkeypatch.setattr(rows, "SMALL", 500)
    monkeypatch.setattr(buckets, "SMALL", 500)
    with warnings.catch_warnings(action="ignore"):
        assert_same_steps(CLIPPED, sample(9), sample)


@pytest.mark.parametrize("make", [fo.prodigy, lambda: fo.chain(fo.monitor("grad"), fo.adamw()), fo.adamw])
def test_what_all_share_changes_without_any_gradient(make):
    tx, params = make(), {"w": torch.ones(3), "b": torch.ones(2)}
    states = [way.init_state(params) for way in (tx, fo.fused(tx))]
    for grads in ({"w": torch.ones(3), "b": torch.ones(2)}, {"w": None, "b": None}, {"w": torch.ones(3), "b": None}):
        states = [way.update(grads, state, params)[1] for way, state in zip((tx, fo.fused(tx)), states, strict=True)]
    for a, b in zip(*map(trees.leaves, states), strict=True):
        torch.testing.assert_close(a, b)


def test_numbers_are_those_of_this_call_however_alike_the_last_ones_are():
    p, g = {"w": torch.zeros(3, dtype=torch.float64)}, {"w": torch.ones(3, dtype=torch.float64)}
    fused = fo.fused(fo.sgd())
    state = fused.init_state(p)
    # The first of them, in bfloat16, is what torch takes for equal to the two that follow.
    for lr in (torch.tensor(0.1, dtype=torch.bfloat16), 0.1, 0.1002, torch.tensor(0.1, dtype=torch.float64)):
        updates, state = fused.update(g, state, p, {"lr": lr})
        torch.testing.assert_close(updates["w"], torch.full_like(p["w"], -float(lr)), rtol=1e-15, atol=0.0)


def test_pairs_may_be_tensors_of_two_and_change():
    tx = fo.adam()
    fused, p, g = fo.fused(tx), {"w": torch.ones(2)}, {"w": torch.ones(2)}
    state = fused.init_state(p)
    for betas in ([0.9, 0.99], [0.8, 0.99]):
        hparams = {"betas": torch.tensor(betas)}
        torch.testing.assert_close(fused.update(g, state, p, hparams), tx.update(g, state, p, hparams))
