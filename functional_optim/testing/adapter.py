"""Laws of a transform behind an optimizer: the same numbers, missing gradients, checkpoints, devices."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.apply import apply_updates
from functional_optim.direction import UphillWarning
from functional_optim.form import nested, with_part
from functional_optim.hparams import PerLeaf
from functional_optim.transform import Transform
from functional_optim.trees import Tree
from functional_optim.trials import (
    Trial,
    half_square,
    require,
    require_close,
    saved_and_loaded,
    tensors,
)


def the_adapter_computes_the_same(trial: Trial) -> None:
    """Behind `OptimizerAdapter`, with one group or one per parameter, five steps retrace the pure transform."""
    for hparams, groups in _groupings(trial):
        params, state = trial.params, trial.transform.init_state(trial.params, hparams)
        optimizer, leaves = _adapter(trial, groups)
        for step in range(5):
            grads = trial.sample(step)
            updates, state = trial.update(grads, state, params, hparams)
            params = apply_updates(params, updates)
            _step(trial, optimizer, leaves, grads)
            values = {name: leaf.detach() for name, leaf in leaves.items()}
            require_close(values, params, f"{len(groups)} groups, step {step + 1}: parameters", root="")


def the_adapter_passes_over_missing_gradients(trial: Trial) -> None:
    """Behind the adapter, a parameter may have no gradient at its first step, or later: as in the pure transform, of whose state
    what a rule counts is a `PerLeaf`."""
    names, params = list(trial.params), trial.params
    state = _counted_apart(trial.transform, trial.transform.init_state(params), params)
    optimizer, leaves = _adapter(trial, [{"params": names}])
    for step in range(6):
        present = [i for i in range(len(names)) if (step + i) % 3 or step == 4] or [step % len(names)]
        grads = {name: g if i in present else None for i, (name, g) in enumerate(trial.sample(step).items())}
        updates, state = trial.update(grads, state, params)
        params = apply_updates(params, updates)
        _step(trial, optimizer, leaves, grads)
        values = {name: leaf.detach() for name, leaf in leaves.items()}
        require_close(
            values, params, f"{', '.join(names[i] for i in present)} having gradients in step {step + 1}: parameters", root=""
        )


def state_survives_a_checkpoint(trial: Trial) -> None:
    """Saved, loaded with `weights_only=True` and continued, pure and behind the adapter, nothing differs by a bit."""
    params, state = trial.run(2)
    grads = trial.sample(9)
    expected = trial.update(grads, state, params)
    require_close(trial.update(grads, saved_and_loaded(state), params), expected, "resumed update", tolerance=0)

    optimizer, leaves = _adapter(trial, [{"params": list(trial.params)}])
    for step in range(2):
        _step(trial, optimizer, leaves, trial.sample(step))
    other, copies = _adapter(trial, [{"params": list(trial.params)}])
    with torch.no_grad():
        for name, leaf in leaves.items():
            copies[name].copy_(leaf)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    for step in range(2, 4):
        _step(trial, optimizer, leaves, trial.sample(step))
        _step(trial, other, copies, trial.sample(step))
    require_close(copies, leaves, "parameters of the resumed adapter", tolerance=0)


def tensors_are_made_where_the_parameters_are(trial: Trial) -> None:
    """Under a default device that is not the parameters', pure and behind the adapter, nothing differs by a bit."""
    grads = [trial.sample(step) for step in range(3)]
    found = []
    for default in ("cpu", "meta"):
        optimizer, leaves = _adapter(trial, [{"params": list(trial.params)}])
        with torch.device(default):
            params, state = trial.params, trial.transform.init_state(trial.params)
            for g in grads:
                updates, state = trial.update(g, state, params)
                params = apply_updates(params, updates)
                _step(trial, optimizer, leaves, g)
        slots = {name: optimizer.state[leaf] for name, leaf in leaves.items()}
        found.append({"pure": {"params": params, "state": state}, "adapter": {"params": leaves, "state": slots}})
    for path, x in tensors(found[1], ""):
        require(x.device.type == "cpu", f"{path} is on the default device; give `device=`, or build on what is there")
    require_close(found[1], found[0], "under another default device, ", tolerance=0)


def _groupings(trial: Trial) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Hyper-parameters for the pure transform, and the same for the adapter: in one group, then in a group per parameter."""
    yield {}, [{"params": list(trial.params)}]
    forms = [form for _, form in nested(trial.transform)]
    single = {name for name in trial.transform.declared if not all(form.takes_each(name) for form in forms)}
    own = {name: trial.hparams(i % 3) for i, name in enumerate(trial.params)}
    common = {knob: value for knob, value in trial.hparams(1).items() if knob in single}
    own = {name: {**values, **common} for name, values in own.items()}
    per_leaf = {knob: PerLeaf({name: own[name][knob] for name in trial.params}) for knob in trial.transform.hparams}
    yield {**per_leaf, **common}, [{"params": [name], **own[name]} for name in trial.params]


def _adapter(trial: Trial, groups: Sequence[Mapping[str, Any]]) -> tuple[torch.optim.Optimizer, dict[str, Tensor]]:
    import functional_optim  # its adapters are loaded on first use: nothing else here needs them

    leaves = {name: p.clone().requires_grad_() for name, p in trial.params.items()}
    named = [{**group, "params": [(name, leaves[name]) for name in group["params"]]} for group in groups]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UphillWarning)  # What is tried may be a link.
        return functional_optim.adapters.OptimizerAdapter(named, trial.transform), leaves


def _counted_apart(transform: Transform, state: Tree, params: Tree) -> Tree:
    """The state with a count of its own for each leaf, where a rule counts."""
    found = state if not transform.form.own_counts else dict(state)
    for name in transform.form.own_counts:
        found[name] = PerLeaf(trees.map_leaves(lambda p, count=state[name]: count, params))
    for keys, share in transform.form.shares(params).items():
        found = with_part(
            found, keys, lambda part, keys=keys, share=share: _counted_apart(transform.form.parts[keys], part, share)
        )
    return found


def _step(trial: Trial, optimizer: Any, leaves: Mapping[str, Tensor], grads: Mapping[str, Tensor | None]) -> None:
    """Step with these gradients; a rule that asks for the loss elsewhere gets it from a closure."""
    extra = trial.extra(lambda tree: {leaves[name]: x for name, x in tree.items()})
    asks = extra.pop("evaluate", None)
    for name, leaf in leaves.items():
        g = grads[name]
        leaf.grad = None if g is None else g.clone()

    def closure() -> Tensor:
        loss = half_square(leaves)
        if all(leaf.grad is None for leaf in leaves.values()):
            loss.backward()
        return loss

    optimizer.step(closure if asks else None, **extra)
