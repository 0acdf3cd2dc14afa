"""Helpers that the identity tests share: awkward gradients, trajectories of ours, torch and optax, and ways to compare them."""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import functional_optim as fo

# One start per column of `awkward_gradients`.
START = [1.0, -2.0, 0.5, 3.0, -1.0, 0.0, 2.0, -0.25]


# Equal formulas in float64, each operation rounding at 1.1e-16 over some 30 to 50 steps.
FLOAT64 = 1e-12
# Equal formulas in float32: 50 roundings of 6e-8 in the parameter, which grow like a random walk.
FLOAT32 = 1e-6


def awkward_gradients(steps: int = 30) -> list[list[float]]:
    """Gradients of eight elements over some steps, one kind of trouble per column."""
    draw = random.Random(0)
    rows = []
    for t in range(steps):
        n = [draw.gauss(0, 1) for _ in range(5)]
        rows.append(
            [
                n[0],  # ordinary
                0.0,  # never a gradient
                0.0 if t < 5 else n[1],  # none at first
                n[2] if t % 3 else 0.0,  # none now and then
                1e8 * n[3],  # huge
                1e-12 * n[4],  # tiny, below the usual eps
                1.0 if t % 2 else -1.0,  # the moments cancel
                1e6 if t == 7 else 1e-3,  # one spike
            ]
        )
    return rows


def in_float32(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """The same numbers, rounded to float32: what a float32 run sees, for a float64 run to be its truth."""
    return torch.tensor(rows, dtype=torch.float32).tolist()


def columns(rows: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """The same numbers, one sequence over the steps per element."""
    return list(zip(*rows, strict=True))


def updates_of(
    tx: fo.Transform, rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.float64, hparams: Any = None
) -> Tensor:
    """What a transform without need of parameters returns over the steps, (steps, elements)."""
    state = tx.init_state(torch.tensor(rows[0], dtype=dtype), hparams)
    found = []
    for row in rows:
        update, state = tx.update(torch.tensor(row, dtype=dtype), state, None, hparams)
        found.append(update)
    return torch.stack(found)


def params_of(
    tx: fo.Transform,
    rows: Sequence[Sequence[float]],
    dtype: torch.dtype = torch.float64,
    hparams: Callable[[int], Mapping[str, Any]] | Mapping[str, Any] | None = None,
) -> Tensor:
    """The parameters after each step of a transform, (steps, elements); hyper-parameters may depend on the step, from 0."""
    at = hparams if callable(hparams) else lambda _: hparams
    p = torch.tensor(START, dtype=dtype)
    state = tx.init_state(p, at(0))
    found = []
    for step, row in enumerate(rows):
        update, state = tx.update(torch.tensor(row, dtype=dtype), state, p, at(step))
        p = fo.apply_updates(p, update)
        found.append(p)
    return torch.stack(found)


def torch_params_of(
    cls: Callable[..., Any], rows: Sequence[Sequence[float]], dtype: torch.dtype = torch.float64, **options: Any
) -> Tensor:
    """The parameters after each step of an optimizer class, (steps, elements)."""
    p = torch.nn.Parameter(torch.tensor(START, dtype=dtype))
    optimizer = cls([p], **options)
    found = []
    for row in rows:
        p.grad = torch.tensor(row, dtype=dtype)
        optimizer.step()
        found.append(p.detach().clone())
    return torch.stack(found)


def optax_params_of(transform: Callable[[Any], Any], rows: Sequence[Sequence[float]]) -> Tensor:
    """The parameters after each step of what `transform(optax)` returns, in float64."""
    return torch.tensor(_optax(transform, rows)[1], dtype=torch.float64)


def optax_updates_of(transform: Callable[[Any], Any], rows: Sequence[Sequence[float]]) -> Tensor:
    """The updates of what `transform(optax)` returns, in float64."""
    return torch.tensor(_optax(transform, rows)[0], dtype=torch.float64)


def _optax(transform: Callable[[Any], Any], rows: Sequence[Sequence[float]]) -> tuple[list[Any], list[Any]]:
    import jax
    import optax

    with jax.enable_x64(True):
        tx = transform(optax)
        p = jax.numpy.array(START)
        assert p.dtype == "float64"
        state = tx.init(p)
        update = jax.jit(tx.update)
        updates, params = [], []
        for row in rows:
            u, state = update(jax.numpy.array(row), state, p)
            p = optax.apply_updates(p, u)
            updates.append(u.tolist())
            params.append(p.tolist())
        return updates, params


def random_tree(seed: int, names: Sequence[str] = ("matrix", "vector", "scalar")) -> dict[str, Tensor]:
    """A matrix, a vector and a () tensor of normal numbers, or those of them that are named."""
    shapes = {"matrix": (3, 4), "vector": (5,), "scalar": (), "filter": (2, 3, 2, 2)}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shapes[name], generator=generator, dtype=torch.float64) for name in names}


def tree_run(
    tx: fo.Transform, trees: Sequence[dict[str, Tensor]], extras: Sequence[Mapping[str, Any]] = (), hparams: Any = None
) -> dict[str, Tensor]:
    """The updates of each leaf over the steps, (steps, elements), from the first tree on; the others are gradients.

    Parameters follow the updates. `extras` are keywords of `update`, step by step.
    """
    params, *gradients = trees
    state = tx.init_state(params, hparams)
    found: dict[str, list[Tensor]] = {name: [] for name in params}
    for step, grads in enumerate(gradients):
        updates, state = tx.update(grads, state, params, hparams, **(extras[step] if extras else {}))
        params = fo.apply_updates(params, updates)
        for name, update in updates.items():
            found[name].append(update.flatten())
    return {name: torch.stack(updates) for name, updates in found.items()}


def optax_tree_run(
    transform: Callable[[Any], Any], trees: Sequence[dict[str, Tensor]], extras: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Tensor]:
    """What `tree_run` returns, of what `transform(optax)` returns."""
    import jax
    import optax

    with jax.enable_x64(True):
        tx = transform(optax)
        params, *gradients = [{name: jax.numpy.array(x.numpy()) for name, x in tree.items()} for tree in trees]
        assert all(p.dtype == "float64" for p in params.values())
        state = tx.init(params)
        update = jax.jit(tx.update)
        found: dict[str, list[Any]] = {name: [] for name in params}
        for step, grads in enumerate(gradients):
            updates, state = update(grads, state, params, **(extras[step] if extras else {}))
            params = optax.apply_updates(params, updates)
            for name, u in updates.items():
                found[name].append(u.flatten().tolist())
    return {name: torch.tensor(updates, dtype=torch.float64) for name, updates in found.items()}


def assert_same_trajectory(found: Tensor, expected: Tensor | Iterable[Sequence[float]], tolerance: float) -> None:
    """Every element at every step, to `tolerance · (1 + the element's largest value so far)`.

    The largest value, not the present one: where large terms cancel, their rounding stays.
    """
    expected = expected if isinstance(expected, Tensor) else torch.tensor(list(expected), dtype=torch.float64)
    found, expected = found.double(), expected.double()
    assert found.shape == expected.shape
    assert found.isfinite().all() and expected.isfinite().all()
    allowed = tolerance * (1 + expected.abs().cummax(0).values)
    wrong = ((found - expected).abs() > allowed).nonzero()
    if len(wrong):
        step, element = wrong[0].tolist()
        raise AssertionError(
            f"step {step}, element {element}: {found[step, element]:.17g}, expected {expected[step, element]:.17g}; "
            f"worst ratio to the tolerance: {((found - expected).abs() / allowed).max():.3g}"
        )


def transposed(per_element: Iterable[Iterable[float]]) -> list[tuple[float, ...]]:
    """One sequence per element made into one row per step."""
    return list(zip(*per_element, strict=True))


# The papers' loops, in Python floats, for one element: gradients to updates.


def paper_adam(gs: Iterable[float], b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, amsgrad: bool = False) -> list[float]:
    """Kingma & Ba, Algorithm 1; Reddi et al., Algorithm 2, with the bias correction that torch adds. To be subtracted."""
    m = v = w = 0.0
    found = []
    for t, g in enumerate(gs, 1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        w = max(w, v)
        m_hat = m / (1 - b1**t)
        v_hat = (w if amsgrad else v) / (1 - b2**t)
        found.append(m_hat / (math.sqrt(v_hat) + eps))
    return found


def paper_momentum(gs: Iterable[float], mu: float, dampening: float = 0.0, nesterov: bool = False) -> list[float]:
    """The buffer of torch.optim.SGD's documentation: b₁ = g₁, bₜ = μ bₜ₋₁ + (1 − τ) gₜ. To be subtracted."""
    b = None
    found = []
    for g in gs:
        b = g if b is None else mu * b + (1 - dampening) * g
        found.append(g + mu * b if nesterov else b)
    return found


def drifting_gradient(p: Tensor, t: int, i: int) -> Tensor:
    """A gradient that depends on the parameter as well as on the step: slope in [0.5, 1.5], so that differences do not grow.

    Elementwise: the numbers are those of the parameter's dtype, with no matrix product that could round differently.
    """
    generator = torch.Generator().manual_seed(1000 * t + i)
    slope = 0.5 + torch.rand(p.shape, generator=generator, dtype=torch.float64)
    offset = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return (slope.to(p.dtype) * p.detach() - offset.to(p.dtype)).to(p.dtype)


def start_params(
    dtype: torch.dtype = torch.float64, shapes: Sequence[tuple[int, ...]] = ((3, 4), (5,), (), (2, 2))
) -> list[torch.nn.Parameter]:
    """Fresh parameters of several shapes, always the same numbers."""
    generator = torch.Generator().manual_seed(7)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def set_gradients(params: Sequence[Tensor], t: int, maximized: Sequence[bool] = ()) -> None:
    """Give each parameter its gradient of this step, negated where it is to be maximized, so that ascent contracts."""
    for i, p in enumerate(params):
        g = drifting_gradient(p, t, i)
        p.grad = -g if maximized and maximized[i] else g


def assert_params_close(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    """Parameter by parameter, to `tolerance · (1 + |p|)`."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=tolerance, atol=tolerance)


def walk_together(ours: Any, theirs: Any, steps: int, tolerance: float, schedulers: Sequence[Any] = (), first: int = 0) -> None:
    """Step two optimizers over equal parameters and compare after every step."""
    mine, other = ([p for group in o.param_groups for p in group["params"]] for o in (ours, theirs))
    for t in range(first, first + steps):
        maximized = [group.get("maximize", False) for group in theirs.param_groups for _ in group["params"]]
        set_gradients(mine, t, maximized)
        set_gradients(other, t, maximized)
        ours.step()
        theirs.step()
        for scheduler in schedulers:
            scheduler.step()
        assert_params_close(mine, other, tolerance)


def snapshot(optimizer: torch.optim.Optimizer) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Copies of all parameters and of their states, to find out whether anything has changed."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [
        {k: v.clone() if isinstance(v, Tensor) else v for k, v in optimizer.state[p].items()} if p in optimizer.state else {}
        for p in params
    ]
    return [p.detach().clone() for p in params], states


def assert_unchanged(optimizer: torch.optim.Optimizer, before: tuple[list[Tensor], list[dict[str, Any]]]) -> None:
    """Bit for bit what `snapshot` saw, with the same state keys."""
    params, states = snapshot(optimizer)
    for a, b in zip(params, before[0], strict=True):
        assert torch.equal(a, b)
    for now, then in zip(states, before[1], strict=True):
        assert now.keys() == then.keys()
        for name in now:
            same = torch.equal(now[name], then[name]) if isinstance(now[name], Tensor) else now[name] == then[name]
            assert same, name
