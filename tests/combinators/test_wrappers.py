"""Wrappers against optax, and against what they say they do."""

import math

import pytest
import torch
from trajectories import (
    FLOAT64,
    START,
    assert_same_trajectory,
    awkward_gradients,
    columns,
    optax_params_of,
    params_of,
    torch_params_of,
    transposed,
)

import functional_optim as fo

ROWS = awkward_gradients(24)


def test_accumulate_is_optax():
    expected = optax_params_of(lambda o: o.MultiSteps(o.adam(0.1), every_k_schedule=3, accumulator_dtype="float64"), ROWS)
    assert_same_trajectory(params_of(fo.accumulate(fo.adam(lr=0.1), every=3), ROWS), expected, FLOAT64)


def test_a_growing_batch_is_optax():
    def every(step):
        return step + 1

    expected = optax_params_of(lambda o: o.MultiSteps(o.adam(0.1), every_k_schedule=every, accumulator_dtype="float64"), ROWS)
    assert_same_trajectory(params_of(fo.accumulate(fo.adam(lr=0.1), every=every), ROWS), expected, FLOAT64)


def test_the_mean_of_low_precision_gradients_is_kept_in_float32():
    tx = fo.accumulate(fo.sgd(lr=1.0), every=512)
    p = torch.zeros((), dtype=torch.bfloat16)
    state = tx.init_state(p)
    for i in range(512):
        update, state = tx.update(torch.tensor(1.0 if i % 2 else 0.0, dtype=torch.bfloat16), state, p)
    # In bfloat16 the running mean would stall: 1/512 of a change in 0.5 is below half its spacing.
    assert update == -0.5
    assert state["mean_grad"].dtype == torch.float32


def with_troubles(rows, at):
    """The rows, some of them not finite."""
    return [[math.nan if t in at and i == 2 else x for i, x in enumerate(row)] for t, row in enumerate(rows)]


def test_apply_if_finite_leaves_the_bad_steps_out():
    bad = {0, 5, 6}
    found = params_of(fo.apply_if_finite(fo.adam(lr=0.1)), with_troubles(ROWS, bad))
    good = params_of(fo.adam(lr=0.1), [row for t, row in enumerate(ROWS) if t not in bad])
    assert torch.equal(found[[t for t in range(len(ROWS)) if t not in bad]], good)


def test_apply_if_finite_counts_and_gives_up():
    tx = fo.apply_if_finite(fo.sgd(lr=1.0), max_consecutive_errors=2)
    p, state = torch.tensor(1.0), tx.init_state(torch.tensor(1.0))
    seen = []
    for g in (math.nan, 1.0, math.inf, math.nan, -math.inf):
        update, state = tx.update(torch.tensor(g), state, p)
        seen.append((float(update), int(state["skipped"]), int(state["total_skipped"])))
    assert seen == [(0.0, 1, 1), (-1.0, 0, 1), (0.0, 1, 2), (0.0, 2, 3), (math.inf, 0, 3)]


def test_the_derivative_of_a_skipped_step_is_zero_and_not_nan():
    tx = fo.apply_if_finite(fo.adam(lr=0.1))

    def stepped(p, lr):
        state = tx.init_state(p)
        for g in (math.nan, 1.0):
            update, state = tx.update(torch.tensor(g, dtype=torch.float64), state, p, {"lr": lr})
            p = p + update
        return p

    one = torch.tensor(1.0, dtype=torch.float64)
    slopes = torch.func.grad(stepped, (0, 1))(one, torch.tensor(0.1, dtype=torch.float64))
    assert slopes[0] == 1.0
    # The one step that was taken is Adam's first: −lr · sign(g).
    torch.testing.assert_close(slopes[1], -one, rtol=1e-7, atol=0)


def test_skip_large_updates_is_optax():
    def theirs(o):
        from functools import partial

        skip = partial(o.skip_large_updates, max_squared_norm=100.0**2)
        return o.MultiSteps(o.adam(0.1), every_k_schedule=1, should_skip_update_fn=skip)

    rows = [[x / 1e6 for x in row] for row in ROWS]
    found = params_of(fo.skip_large_updates(fo.adam(lr=0.1), largest_norm=100.0), rows)
    assert_same_trajectory(found, optax_params_of(theirs, rows), FLOAT64)
    assert (found.diff(dim=0).abs().sum(1) == 0).any(), "no step was skipped: the bound tests nothing"


def test_the_norm_of_complex_gradients_counts_both_parts():
    tx = fo.skip_large_updates(fo.sgd(lr=1.0), largest_norm=5.5)
    z = torch.tensor([3.0 + 4.0j, 0.0])
    state = tx.init_state(z)
    assert torch.equal(tx.update(z, state)[0], -z)
    assert torch.equal(tx.update(1.2 * z, state)[0], torch.zeros_like(z))


def paper_lookahead(gs, p, lr, k, alpha):
    """Zhang et al., Algorithm 1, for one element, around plain descent."""
    slow, found = p, []
    for t, g in enumerate(gs, 1):
        p = p - lr * g
        if t % k == 0:
            slow = slow + alpha * (p - slow)
            p = slow
        found.append(p)
    return found


def test_lookahead_is_the_papers_loop():
    expected = transposed(paper_lookahead(gs, p, 0.1, 4, 0.3) for gs, p in zip(columns(ROWS), START, strict=True))
    assert_same_trajectory(params_of(fo.lookahead(fo.sgd(lr=0.1), 4, 0.3), ROWS), expected, FLOAT64)


def test_lookahead_is_optax():
    import jax
    import optax

    with jax.enable_x64(True):
        tx = optax.lookahead(optax.adam(0.1), sync_period=3, slow_step_size=0.5)
        params = optax.LookaheadParams.init_synced(jax.numpy.array(START))
        state, expected = tx.init(params), []
        for row in ROWS:
            updates, state = tx.update(jax.numpy.array(row), state, params)
            params = optax.apply_updates(params, updates)
            expected.append(params.fast.tolist())
    assert_same_trajectory(params_of(fo.lookahead(fo.adam(lr=0.1), 3, 0.5), ROWS), expected, FLOAT64)


def test_ema_params_is_torchs_averaged_model():
    model = torch.nn.Linear(3, 1).double()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    average.update_parameters(model)  # The first call copies, as our average starts at the parameters.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tx = fo.ema_params(fo.sgd(lr=0.1), ema_decay=0.9)
    state, params = tx.init_state(start), start
    for t in range(10):
        grads = {name: torch.sin(p.detach() + t) for name, p in model.named_parameters()}
        for name, p in model.named_parameters():
            p.grad = grads[name]
        updates, state = tx.update(grads, state, params)
        params = fo.apply_updates(params, updates)
        optimizer.step()
        average.update_parameters(model)
    for name, p in average.module.named_parameters():
        torch.testing.assert_close(fo.state_get(state, "ema_params")[name], p.detach(), rtol=1e-12, atol=1e-12)


def test_sam_steps_with_the_gradient_uphill():
    """In closed form on ½ Σ h w²: g = h w, then g' = h (w + ρ g/‖g‖), over both tensors together."""
    h = {"a": torch.tensor([1.0, 10.0], dtype=torch.float64), "b": torch.tensor(3.0, dtype=torch.float64)}
    w = {"a": torch.tensor([2.0, -1.0], dtype=torch.float64), "b": torch.tensor(0.5, dtype=torch.float64)}

    def loss(p):
        return sum((h[name] * p[name] ** 2).sum() / 2 for name in h)

    g = {name: h[name] * w[name] for name in h}
    for wrap, weight in ((fo.sam, lambda x: torch.ones_like(x)), (fo.asam, torch.abs)):
        norm = torch.sqrt(sum(((weight(w[name]) * g[name]) ** 2).sum() for name in h))
        tx = wrap(fo.sgd(lr=1.0), rho=0.2)
        updates, _ = tx.update(g, tx.init_state(w), w, evaluate=fo.meta.evaluate_of(loss))
        for name in h:
            uphill = w[name] + 0.2 * weight(w[name]) ** 2 * g[name] / norm
            torch.testing.assert_close(updates[name], -h[name] * uphill, rtol=1e-12, atol=1e-12)


def test_sam_is_optax():
    import jax
    import optax

    h, start = [1.0, 10.0, 0.1], [2.0, -1.0, 0.5]
    with jax.enable_x64(True):
        hj, p = jax.numpy.array(h), jax.numpy.array(start)

        def grad(p, _):
            return hj * p

        adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
        tx = optax.contrib.sam(optax.sgd(0.1), adversary, sync_period=2, opaque_mode=True)
        state, expected = tx.init(p), []
        for _ in range(10):
            updates, state = tx.update(grad(p, 0), state, p, grad_fn=grad)
            p = optax.apply_updates(p, updates)
            expected.append(p.tolist())
    tx, p = fo.sam(fo.sgd(lr=0.1), rho=0.05), torch.tensor(start, dtype=torch.float64)
    state, found, ht = tx.init_state(p), [], torch.tensor(h, dtype=torch.float64)
    for _ in range(10):
        updates, state = tx.update(ht * p, state, p, value_fn=lambda p: (ht * p * p).sum() / 2)
        p = fo.apply_updates(p, updates)
        found.append(p)
    # The bound 1e-12 that keeps a zero gradient from dividing by zero.
    assert_same_trajectory(torch.stack(found), expected, 1e-10)


def test_sam_behind_the_adapter_takes_a_closure():
    start = torch.tensor([2.0, -1.0], dtype=torch.float64)
    h = torch.tensor([1.0, 10.0], dtype=torch.float64)
    w = torch.nn.Parameter(start.clone())
    optimizer = fo.adapters.OptimizerAdapter([w], fo.sam(fo.adamw(lr=0.1), rho=0.2))
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = (h * w * w).sum() / 2
        loss.backward()
        losses.append(loss.item())
        return loss

    tx, p = fo.sam(fo.adamw(lr=0.1), rho=0.2), start
    state = tx.init_state(p)
    for _ in range(3):
        returned = optimizer.step(closure)
        updates, state = tx.update(h * p, state, p, value_fn=lambda p: (h * p * p).sum() / 2)
        p = fo.apply_updates(p, updates)
        torch.testing.assert_close(w.detach(), p, rtol=1e-14, atol=1e-14)
    assert returned.item() == losses[-2], "the closure runs twice a step, and the first value is returned"


def test_sam_in_a_branch_leaves_the_parameters_of_others_where_they_are():
    tx = fo.partition({"a": fo.sam(fo.sgd(lr=0.1), rho=0.2), "b": fo.sgd(lr=0.1)}, fo.by_name({"v": "a", "w": "b"}))
    start = {"v": torch.tensor(2.0, dtype=torch.float64), "w": torch.tensor(3.0, dtype=torch.float64)}
    own = {name: torch.nn.Parameter(p.clone()) for name, p in start.items()}
    optimizer = fo.adapters.OptimizerAdapter(own.items(), tx)

    def closure():
        optimizer.zero_grad()
        loss = own["v"] ** 2 * own["w"]
        loss.backward()
        return loss

    optimizer.step(closure)
    # v is moved by ρ along its gradient, 12, which is 2 v w there; the gradient at w is that at the start, v².
    expected = {"v": 2 - 0.1 * 2 * 2.2 * 3, "w": 3 - 0.1 * 4}
    assert {name: p.item() for name, p in own.items()} == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    "made",
    [
        lambda tx: fo.partition({"a": tx, "b": fo.sgd(lr=0.1)}, fo.by_name({"v": "a", ".*": "b"})),
        lambda tx: fo.chain(fo.masked(tx, {"blocks.0.v": True}), fo.masked(fo.sgd(lr=0.1), {"w": True})),
    ],
)
def test_sam_in_a_branch_asks_for_the_loss_of_all_parameters(made):
    """Purely; `value_fn` takes the tree that it always takes, whatever is an integer in it, or None, or another branch's."""
    tx = made(fo.sam(fo.sgd(lr=0.1), rho=0.2))
    v, w = torch.tensor([2.0, 3.0], dtype=torch.float64)
    params = {"blocks": [{"v": v}], "w": w, "times": torch.tensor(1), "absent": None}
    found = fo.meta.unroll(lambda p: p["blocks"][0]["v"] ** 2 * p["w"] * p["times"], tx, 1)(params).params
    assert found["blocks"][0]["v"].item() == pytest.approx(2 - 0.1 * 2 * 2.2 * 3, rel=1e-14)
    assert found["w"].item() == pytest.approx(3 - 0.1 * 4, rel=1e-14)
    assert found["times"] == 1 and found["absent"] is None


@pytest.mark.parametrize("wrap", [fo.sam, fo.asam])
def test_sam_has_no_slope_where_the_gradient_is_0(wrap):
    """That of g/‖g‖ has no bound there; ε is 0, and stays 0 to first order."""
    tx, w = wrap(fo.sgd(lr=0.5), rho=0.1), torch.tensor([1.0, 2.0])

    def stepped(g):
        return tx.update(g, tx.init_state(w), w, value_fn=lambda w: (w**3).sum() / 3)[0]

    assert torch.equal(stepped(torch.zeros(2)), -0.5 * w**2)
    for slope in (torch.func.jacrev(stepped), torch.func.jacfwd(stepped), torch.func.jacrev(torch.func.jacrev(stepped))):
        assert not slope(torch.zeros(2)).any()


def test_sam_says_what_it_needs():
    tx, w = fo.sam(fo.sgd()), torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"sam needs 'evaluate'.*evaluate_of\(loss\).*step\(closure\)"):
        tx.update(w, tx.init_state(w), w)
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(w, tx.init_state(w), evaluate=fo.meta.evaluate_of(torch.square))
    with pytest.raises(TypeError, match=r"evaluate\(params\) returned a Tensor: expected \(value, grads, aux\)"):
        tx.update(w, tx.init_state(w), w, evaluate=torch.square)


@pytest.mark.parametrize("kind", ["evaluate", "grad_fn", "value_fn"])
def test_the_loss_elsewhere_has_older_names(kind):
    def loss(w):
        return (w**3).sum() / 3

    given = {"evaluate": fo.meta.evaluate_of(loss), "grad_fn": torch.square, "value_fn": loss}
    tx, w = fo.sam(fo.sgd(lr=1.0), rho=0.5), torch.tensor([3.0, 4.0], dtype=torch.float64)
    updates, _ = tx.update(w, tx.init_state(w), w, **{kind: given[kind]})
    torch.testing.assert_close(updates, -((1.1 * w) ** 2), rtol=1e-12, atol=0)


def test_a_transform_says_what_it_needs():
    tx = fo.sam(fo.chain(fo.scale_by_polyak(), fo.rename_hparams(fo.scale_by_sophia(), rho="bound", eps="floor")))
    assert (tx.needs.numbers, tx.needs.trees, tx.needs.functions) == (("value",), ("hessian_diag",), ("evaluate",))
    assert fo.with_extra(tx, evaluate=None, value=1.0).needs.functions == () == fo.adamw().needs.numbers


def test_conditionally_is_optax():
    def condition(step):
        return step % 3 != 1

    def theirs(o):
        return o.chain(o.conditionally_transform(o.trace(0.9), condition), o.scale(-0.1))

    ours = fo.chain(fo.conditionally(fo.trace(0.9), condition), fo.scale(-0.1))
    assert_same_trajectory(params_of(ours, ROWS), optax_params_of(theirs, ROWS), FLOAT64)
    masked = fo.chain(fo.conditionally(fo.trace(0.9), condition, otherwise=fo.freeze()), fo.scale(-0.1))
    expected = optax_params_of(lambda o: o.chain(o.conditionally_mask(o.trace(0.9), condition), o.scale(-0.1)), ROWS)
    assert_same_trajectory(params_of(masked, ROWS), expected, FLOAT64)


def test_a_monitor_is_no_wrapper():
    with pytest.raises(TypeError, match=r"what = sgd\(lr=0.001\) of monitor: expected a word for its names, as in chain\("):
        fo.monitor(fo.sgd())  # pyright: ignore[reportArgumentType]


def test_a_monitor_remembers_norms():
    grads = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor(12.0), "c": None}
    params = {"a": torch.zeros(2), "b": torch.zeros(()), "c": torch.zeros(2)}
    tx = fo.chain(fo.monitor("grad"), fo.clip_by_global_norm(6.5), fo.monitor("clipped"))
    _, state = tx.update(grads, tx.init_state(params), params)
    assert fo.state_get(state, "grad_norm") == 13.0
    assert fo.state_get(state, "grad_norms") == {"a": 5.0, "b": 12.0, "c": 0.0}
    torch.testing.assert_close(fo.state_get(state, "clipped_norm").float(), torch.tensor(6.5))


def test_log_norms_remembers_what_went_in_and_came_out():
    grads = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor(0.0), "c": None}
    params = {"a": torch.tensor([6.0, 8.0]), "b": torch.tensor(2.0), "c": torch.ones(2)}
    tx = fo.log_norms(fo.chain(fo.clip_by_value(2.0), fo.sgd(lr=0.5)))
    updates, state = tx.update(grads, tx.init_state(params), params)
    assert updates["a"].tolist() == [-1.0, -1.0]
    assert fo.state_get(state, "grad_norms") == {"a": 5.0, "b": 0.0, "c": 0.0}
    assert fo.state_get(state, "param_norms") == {"a": 10.0, "b": 2.0, "c": 0.0}
    torch.testing.assert_close(fo.state_get(state, "update_norm"), torch.tensor(2.0, dtype=torch.float64).sqrt())
    torch.testing.assert_close(fo.state_get(state, "param_norm"), torch.tensor(104.0, dtype=torch.float64).sqrt())
    torch.testing.assert_close(fo.state_get(state, "effective_lr"), torch.tensor(0.08, dtype=torch.float64).sqrt())
    assert fo.state_get(state, "effective_lrs")["b"] == 0.0


def test_torchs_parameters_after_scheduled_steps():
    """Against torch's optimizer driven by torch's scheduler, with the same numbers."""

    class Scheduled(torch.optim.AdamW):
        def __init__(self, params):
            super().__init__(params, lr=1.0, weight_decay=0.1)
            self.scheduler = torch.optim.lr_scheduler.LambdaLR(self, lambda step: 0.1 / (1 + step))

        def step(self, closure=None):
            super().step(closure)
            self.scheduler.step()

    found = params_of(fo.scheduled(fo.adamw(weight_decay=0.1), lr=lambda step: 0.1 / (1 + step)), ROWS)
    assert_same_trajectory(found, torch_params_of(Scheduled, ROWS), 1e-10)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fo.accumulate(fo.adamw(), every=0), "every = 0"),
        (lambda: fo.accumulate(fo.adamw(), every=2.5), "every = 2.5: expected a whole number of at least 1"),
        (lambda: fo.accumulate(fo.adamw(), every="2"), "every = '2': expected a whole number"),
        (lambda: fo.accumulate(fo.adamw(), every=True), "every = True: expected a whole number"),
        (lambda: fo.lookahead(fo.adamw(), sync_period=0), "sync_period = 0"),
        (lambda: fo.lookahead(fo.adamw(), sync_period=1.5), "sync_period = 1.5: expected a whole number"),
        (lambda: fo.apply_if_finite(fo.adamw(), -1), "max_consecutive_errors = -1: expected a whole number of at least 0"),
        (lambda: fo.mechanize(fo.adamw(), num_betas=0), "num_betas = 0: expected a whole number of at least 1"),
        (lambda: fo.mechanize(fo.adamw()).init_state({"z": torch.ones(2) * 1j}), "no complex parameters, but 'z'"),
        (lambda: fo.conditionally(fo.adamw(), True), "condition = True: expected a function of the step"),
        (
            lambda: fo.conditionally(fo.trace(0.9), lambda step: step > 1, fo.trace(0.5)),
            r'with rename_hparams\(otherwise, momentum="otherwise_momentum"\)',
        ),
        (lambda: fo.partition([fo.adamw()], lambda name, leaf: "a"), "branches is a list: expected a mapping"),
        (lambda: fo.accumulate(fo.adamw, every=2), "Did you mean to call it"),
        (lambda: fo.scheduled(fo.adamw(), learning_rate=lambda step: 0.1), "'learning_rate'.*accepts"),
        (lambda: fo.scheduled(fo.adamw(), lr=0.1), "schedule of 'lr'.*function of the step"),
        (lambda: fo.set_defaults(fo.adamw(), lr=-1.0), r"lr = -1.0 is outside \[0, inf\)"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
