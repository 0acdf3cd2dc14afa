"""Laws of what torch makes of a transform: batches, derivatives of both modes, compiled graphs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.apply import apply_updates
from functional_optim.form import nested, part_at, with_part
from functional_optim.trees import Tree
from functional_optim.trials import (
    Trial,
    dot,
    require,
    require_close,
    stacked,
    zeros_like,
)


def vmap_is_a_loop(trial: Trial) -> None:
    """A batch of gradients, parameters, states of different age and hyper-parameters gives what a loop over it gives."""
    transform, batch = trial.transform, range(3)
    params, states = zip(*(trial.run(age) for age in batch), strict=True)
    grads = [trial.sample(20 + i) for i in batch]
    hparams = [trial.hparams(i) for i in batch]
    loop = [trial.update(grads[i], states[i], params[i], hparams[i]) for i in batch]
    together = torch.vmap(trial.update)(stacked(grads), stacked(states), stacked(params), stacked(hparams))
    require_close(together, stacked(loop), "everything batched: result")

    for name in transform.hparams:
        values = trial.values(name)
        loop = [trial.update(grads[0], states[1], params[1], {name: value}) for value in values]
        together = torch.vmap(lambda value, name=name: trial.update(grads[0], states[1], params[1], {name: value}))(
            stacked(values)
        )
        require_close(together, stacked(loop), f"only hyper-parameter {name!r} batched: result")

    loop = [trial.update(g, states[0], params[0]) for g in grads]
    together = torch.vmap(lambda g: trial.update(g, states[0], params[0]))(stacked(grads))
    require_close(together, stacked(loop), "only the gradients batched, from one state: result")


def one_graph_serves_all_steps(trial: Trial) -> None:
    """`torch.compile(fullgraph=True)` traces `update` once, whatever the step and the hyper-parameters' values."""
    graphs = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(len(inputs))
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(trial.update, backend=backend, fullgraph=True)
    params, state = trial.params, trial.transform.init_state(trial.params)
    for step in range(4):
        arguments = trial.sample(step), state, params, trial.hparams(step % 3)
        updates, state = compiled(*arguments)
        require_close((updates, state), trial.update(*arguments), f"compiled step {step + 1}: result")
        params = apply_updates(params, updates)
    torch.compiler.reset()
    require(len(graphs) == 1, f"4 steps with different hyper-parameters took {len(graphs)} graphs; read no value of a tensor")


def derivatives_are_right(trial: Trial) -> None:
    """First and second derivatives of two steps in gradients, parameters and every hyper-parameter match finite differences.

    What a rule declares to be a constant to derivatives is held, between the steps, at what it is without a difference.
    """
    function, inputs, _ = _two_steps(trial, zero=False)
    inputs = [x.clone().requires_grad_() for x in inputs]
    generator = torch.Generator("cpu").manual_seed(6)
    weights = [torch.randn(y.shape, generator=generator, dtype=y.dtype, device="cpu") for y in function(*inputs)]

    def slopes(scale: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Of a weighted sum of the results. They are linear in the weights: one factor of all tells whether these count."""
        total = scale * torch.stack([(w * y).sum() for w, y in zip(weights, function(*inputs), strict=True)]).sum()
        return torch.autograd.grad(total, inputs, create_graph=True, materialize_grads=True)

    torch.autograd.gradcheck(function, inputs, check_undefined_grad=False)
    scale = torch.ones((), dtype=torch.float64, device="cpu", requires_grad=True)
    torch.autograd.gradcheck(slopes, (scale, *inputs), atol=1e-4, check_undefined_grad=False)


def derivatives_at_zero_are_finite(trial: Trial) -> None:
    """Where a gradient is exactly 0, first and second derivatives are finite."""
    function, inputs, names = _two_steps(trial, zero=True)

    def total(*inputs: Tensor) -> Tensor:
        return torch.stack([output.sum() for output in function(*inputs)]).sum()

    everything = tuple(range(len(inputs)))
    first = torch.func.grad(total, everything)(*inputs)
    second = torch.func.hessian(total, everything)(*inputs)
    for i, name in enumerate(names):
        require(bool(first[i].isfinite().all()), f"the derivative in {name} is not finite at a gradient of 0: {first[i]}")
        for j, other in enumerate(names):
            require(bool(second[i][j].isfinite().all()), f"the second derivative in {name} and {other} is not finite at 0")


def forward_and_reverse_mode_agree(trial: Trial) -> None:
    """`jvp` and `vjp` are transposes of each other: w·(J v) = (Jᵀ w)·v."""
    function, inputs, _ = _two_steps(trial, zero=False)
    generator = torch.Generator("cpu").manual_seed(5)
    v = tuple(torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu") for x in inputs)
    outputs, pushed = torch.func.jvp(function, tuple(inputs), v)[:2]
    w = tuple(torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu") for x in outputs)
    pulled = torch.func.vjp(function, *inputs)[1](w)
    require_close(dot(w, pushed), dot(pulled, v), "w·(J v)")


def _two_steps(trial: Trial, *, zero: bool) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor], list[str]]:
    """Two steps as a function of flat float64 tensors, the inputs, and their names."""
    gradients = [zeros_like(trial.params) if zero else trial.sample(step) for step in range(2)]
    given = {"grads": gradients, "params": trial.params, "hparams": trial.hparams()}
    leaves, spec = trees.flatten(given)
    held: list[Tree] = []

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        tree = trees.unflatten(spec, inputs)
        params, hparams, outputs = tree["params"], tree["hparams"], []
        state = trial.transform.init_state(params, hparams)
        for step, grads in enumerate(tree["grads"]):
            updates, state = trial.update(grads, state, params, hparams)
            if not is_known:
                held.append(state)
            for path, form in nested(trial.transform):
                for name in form.constants:
                    kept = part_at(held[step], (*path, name))
                    state = with_part(state, (*path, name), lambda _, kept=kept: kept)
            params = apply_updates(params, updates)
            outputs += trees.leaves(params)
        return tuple(outputs) + tuple(x for x in trees.leaves(state) if isinstance(x, Tensor) and x.is_floating_point())

    is_known = False
    function(*leaves)
    is_known = True
    return function, list(leaves), trees.paths(given)
