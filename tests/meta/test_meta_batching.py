"""Batching: tasks, seeds and hyper-parameters under one `vmap`, against a loop; modules as losses."""

import itertools

import pytest
import torch
from meta_helpers import close, peak_bytes
from torch import nn

import functional_optim as fo
from functional_optim.meta import compiled_loop

DOUBLE = {"dtype": torch.float64}
# The same float64 arithmetic, in another order where a matrix product is batched.
SAME = {"rtol": 1e-9, "atol": 1e-12}


def mse_loss(output, target):
    """torch's own fails under two vmaps when the target is in neither: "size of tensor a must match", torch 2.13."""
    return ((output - target) ** 2).mean()


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def tasks(n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, 3, generator=generator, **DOUBLE), torch.randn(n, 6, 1, generator=generator, **DOUBLE)


LOSS, PARAMS = fo.meta.from_module(mlp(), mse_loss)


@pytest.mark.parametrize("remat", [False, True])
def test_maml_over_tasks_is_a_loop_over_tasks(remat):
    inner = fo.meta.unroll(LOSS, fo.adam(), 3, remat=remat)
    supports, queries = tasks(), tasks(seed=1)

    def task_loss(params, support, query):
        return LOSS(inner(params, {"lr": 0.05}, support).params, *query)

    def meta_loss(params, chunk_size=None):
        return torch.vmap(task_loss, (None, 0, 0), chunk_size=chunk_size)(params, supports, queries).mean()

    def by_loop(params):
        one = [task_loss(params, *(tuple(x[i] for x in data) for data in (supports, queries))) for i in range(4)]
        return torch.stack(one).mean()

    expected = torch.func.grad(by_loop)(PARAMS)
    close(torch.func.grad(meta_loss)(PARAMS), expected, **SAME)
    close(torch.func.grad(lambda p: meta_loss(p, chunk_size=3))(PARAMS), expected, **SAME)
    per_task = torch.vmap(torch.func.grad(task_loss), (None, 0, 0))(PARAMS, supports, queries)
    close({name: g.mean(0) for name, g in per_task.items()}, expected, **SAME)


def test_a_sweep_over_several_hyper_parameters_at_once():
    x, y = (data[0] for data in tasks())
    inner = fo.meta.unroll(LOSS, fo.adamw(), 3)
    grid = torch.cartesian_prod(torch.tensor([0.01, 0.1], **DOUBLE), torch.tensor([0.8, 0.9], **DOUBLE))

    def final(lr, b1, decay=0.1):
        hparams = {"lr": lr, "betas": (b1, torch.tensor(0.95, **DOUBLE)), "weight_decay": decay}
        return inner(PARAMS, hparams, (x, y)).logs["loss"][-1]

    together = torch.vmap(lambda point: final(*point))(grid)
    close(together, torch.stack([final(*point) for point in grid]), **SAME)
    slopes = torch.vmap(torch.func.grad(lambda point: final(*point)), chunk_size=1)(grid)
    close(slopes, torch.stack([torch.func.grad(lambda point: final(*point))(point) for point in grid]), **SAME)


def test_an_ensemble_of_stacked_modules_and_a_sweep_over_it():
    """Seeds × learning rates: `stack_module_state` and a nest of two vmaps."""
    modules = [mlp(seed) for seed in range(3)]
    stacked = {name: p.detach() for name, p in torch.func.stack_module_state(modules)[0].items()}
    support, lrs = tuple(data[0] for data in tasks()), torch.tensor([0.01, 0.1], **DOUBLE)
    inner = fo.meta.unroll(LOSS, fo.adam(), 3)

    def train(params, lr):
        return inner(params, {"lr": lr}, support).params

    found = torch.vmap(torch.vmap(train, (None, 0)), (0, None))(stacked, lrs)
    for (i, module), (j, lr) in itertools.product(enumerate(modules), enumerate(lrs)):
        optimizer = torch.optim.Adam(module.parameters(), lr=float(lr))
        started = {name: p.detach().clone() for name, p in module.named_parameters()}
        for _ in range(3):
            optimizer.zero_grad()
            mse_loss(module(support[0]), support[1]).backward()
            optimizer.step()
        close({name: p[i, j] for name, p in found.items()}, {n: p.detach() for n, p in module.named_parameters()}, **SAME)
        module.load_state_dict(started)


def test_chunks_bound_the_memory():
    inner, lrs = fo.meta.unroll(LOSS, fo.adam(), 3), torch.linspace(0.01, 0.1, 32, **DOUBLE)
    support = tuple(data[0] for data in tasks())

    def peak(chunk_size):
        def sweep():
            slope = torch.func.grad(lambda lr: inner(PARAMS, {"lr": lr}, support).logs["loss"][-1])
            return torch.vmap(slope, chunk_size=chunk_size)(lrs)

        return peak_bytes(sweep)

    assert peak(4) < 0.25 * peak(None)


# --- Modules ---------------------------------------------------------------------------------------------------------------


def test_the_params_of_a_module_are_constants_that_fit_back():
    module = mlp()
    loss, params = fo.meta.from_module(module, mse_loss)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    support = tuple(data[0] for data in tasks())
    trained = fo.meta.unroll(loss, fo.sgd(), 2)(params, {"lr": 0.1}, support).params
    assert not any(p.requires_grad for p in (*params.values(), *trained.values()))
    close(dict(module.named_parameters()), before, rtol=0, atol=0)
    close(loss(params, *support), mse_loss(module(support[0]), support[1]), rtol=0, atol=0)
    module.load_state_dict(trained)
    close(loss(trained, *support), mse_loss(module(support[0]), support[1]), rtol=0, atol=0)


def test_batch_norm_is_refused_in_training_and_works_otherwise():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    module(tasks()[0][0])  # statistics of its own
    loss, params = fo.meta.from_module(module, mse_loss)
    inner, support = fo.meta.unroll(loss, fo.sgd(), 2), tuple(data[0] for data in tasks())
    with pytest.raises(ValueError, match=r"1 \(BatchNorm1d\) is in training mode and would write its running statistics"):
        inner(params, {}, support)

    module.eval()
    before = {name: b.clone() for name, b in module.named_buffers()}
    trained = inner(params, {"lr": 0.1}, support).params
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        mse_loss(module(support[0]), support[1]).backward()
        optimizer.step()
    close(trained, {name: p.detach() for name, p in module.named_parameters()}, **SAME)
    close(dict(module.named_buffers()), before, rtol=0, atol=0)

    module.train()
    torch.func.replace_all_batch_norm_modules_(module)
    loss, params = fo.meta.from_module(module, mse_loss)
    final = fo.meta.unroll(loss, fo.sgd(), 2)
    xs, ys = tasks()
    together = torch.vmap(lambda x, y: final(params, {"lr": 0.1}, (x, y)).logs["loss"][-1])(xs, ys)
    loop = torch.stack([final(params, {"lr": 0.1}, (x, y)).logs["loss"][-1] for x, y in zip(xs, ys, strict=True)])
    close(together, loop, **SAME)


def test_buffers_can_be_given_and_what_is_written_to_them_is_forgotten():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor(2.0))
            self.register_buffer("scale", torch.tensor(3.0))

        def forward(self, x):
            self.scale.add_(1.0)
            return self.w * self.scale * x

    module = Counting()
    loss, params = fo.meta.from_module(module, lambda output, target: (output - target).sum())
    one, zero = torch.ones(1), torch.zeros(1)
    assert loss(params, one, zero) == loss(params, one, zero) == 8.0
    assert loss(params, one, zero, buffers={"scale": torch.tensor(0.0)}) == 2.0
    assert module.scale == 3.0


def test_dropout_is_random_per_batch_entry_and_not_rematerialised():
    module = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    loss, params = fo.meta.from_module(module, mse_loss)
    support = tuple(data[0] for data in tasks())

    def train(lr, **options):
        return fo.meta.unroll(loss, fo.sgd(), 2, **options)(params, {"lr": lr}, support).logs["loss"][0]

    lrs = torch.full((5,), 0.1, **DOUBLE)
    assert len(torch.vmap(train, randomness="different")(lrs).unique()) == 5
    with pytest.raises(ValueError, match="draws random numbers"):
        train(lrs[0], remat=True)


def test_whole_numbers_are_carried_once_for_a_batch_until_they_differ(monkeypatch):
    seen, original = [], compiled_loop.batch_axes
    monkeypatch.setattr(compiled_loop, "batch_axes", lambda *args: seen.append(original(*args)) or seen[-1])

    def step(state, i, rate):
        x, steps, hits, after = state  # of the last, only the second step makes it differ
        return (x * (1 + rate / (steps + 1)), steps + 1, hits + (x > 1), after + hits), steps

    def train(rate, x):
        zero = torch.tensor(0)
        return fo.meta.loop(step, (x, zero, zero, zero), 4, args=(rate,))

    rates, xs = torch.tensor([0.1, 0.5, 2.0], **DOUBLE), torch.tensor([0.5, 0.9], **DOUBLE)
    found = fo.meta.compiled(torch.vmap(torch.vmap(train, (None, 0)), (0, None)))(rates, xs)
    runs = [flat(train(rate, x)) for rate in rates for x in xs]
    close(flat(found), [torch.stack(each).unflatten(0, (3, 2)) for each in zip(*runs, strict=True)], **SAME)
    assert {axes[:4] for axes in seen} == {(0, None, 0, 0)}


def flat(run):
    """What a loop returned, as a list."""
    state, logs = run
    return [*state, logs]
