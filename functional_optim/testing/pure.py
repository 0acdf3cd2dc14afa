"""Laws of `init_state` and `update` as they are called: what they take, what they return, in which precision."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from functional_optim import trees
from functional_optim.form import nested
from functional_optim.lifting import Lifted
from functional_optim.torch_internals import version_of
from functional_optim.transform import Transform
from functional_optim.trees import Tree
from functional_optim.trials import (
    LawBrokenError,
    Trial,
    cast,
    flattened,
    require,
    require_alike,
    require_close,
    tensors,
    widened,
    zeros_like,
)


def two_steps_run(trial: Trial) -> None:
    """`init_state` and two updates return at all."""
    trial.run(2)


def inputs_are_not_written_to(trial: Trial) -> None:
    """`init_state` and `update` leave gradients, state, parameters and hyper-parameters as they are."""
    params, state = trial.run(2)
    inputs = {"grads": trial.sample(9), "state": state, "params": params, "hparams": trial.hparams(1)}
    before = [(path, x, version_of(x), x.clone()) for name in inputs for path, x in tensors(inputs[name], name)]
    trial.transform.init_state(inputs["params"], inputs["hparams"])
    trial.update(inputs["grads"], inputs["state"], inputs["params"], inputs["hparams"])
    for path, x, version, old in before:
        require(not version_of(x) > version and torch.equal(x, old), f"{path} was written to; build a new tensor instead")


def structure_shape_and_dtype_are_kept(trial: Trial) -> None:
    """Updates are like the gradients and the next state like the last, for four dtypes and with a () leaf; all finite."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        params = cast(trial.params, dtype)
        first = state = trial.transform.init_state(params)
        for grads in (trial.sample(0, dtype), cast(zeros_like(trial.params), dtype)):
            updates, state = trial.update(grads, state, params)
            require_alike(updates, grads, f"updates of {dtype} gradients")
            require_alike(state, first, f"state of {dtype} parameters")
            for path, x in itertools.chain(tensors(updates, "updates"), tensors(state, "state")):
                require(bool(x.isfinite().all()), f"{path} of {dtype} parameters is not finite: {x}")


def low_precision_is_computed_in_float32(trial: Trial) -> None:
    """In float16 and bfloat16, an update is the float32 one of the same values, rounded once.

    A rule that asks in which dtype a slot is stored rounds by itself.
    """
    if any(isinstance(form, Lifted) and form.as_stored for _, form in nested(trial.transform)):
        return
    for dtype in (torch.float16, torch.bfloat16):
        params, grads = cast(trial.params, dtype), trial.sample(0, dtype)
        state = trial.transform.init_state(params)
        low, _ = trial.update(grads, state, params)
        wide, _ = trial.update(*(widened(tree, dtype) for tree in (grads, state, params)))
        require_close(low, cast(wide, dtype), f"in {dtype}: updates", root="", tolerance=0)


def any_tree_will_do(trial: Trial) -> None:
    """Dict, list, tuple, NamedTuple, OrderedDict and nests of them give the same numbers; None is as good as absent."""
    names = list(trial.params)
    expected, _ = _updates_in(trial, names, lambda values: dict(zip(names, values, strict=True)))
    for kind, build in _CONTAINERS.items():
        updates, _ = _updates_in(trial, names, build)
        require_close(dict(zip(names, trees.leaves(updates), strict=True)), expected, f"in {kind}: updates", root="")

    grads: dict[str, Any] = {**trial.sample(1), names[0]: None}
    params, state = trial.run(1)
    updates, new_state = trial.update(grads, state, params)
    require(updates[names[0]] is None, "the update of a None gradient is not None")
    require(trees.flatten(new_state)[1] == trees.flatten(state)[1], "a None gradient changed the structure of the state")
    rest = Trial(trial.transform, {name: p for name, p in trial.params.items() if name != names[0]})
    absent, _ = rest.update(
        {name: grads[name] for name in names[1:]},
        rest.transform.init_state(rest.params),
        {name: params[name] for name in names[1:]},
    )
    present, _ = trial.update(grads, trial.transform.init_state(trial.params), params)
    require_close({name: present[name] for name in names[1:]}, absent, "beside a None gradient: updates", root="")


def elementwise_rules_see_no_shapes(trial: Trial) -> None:
    """Of one flat tensor that holds all leaves, the update is that of the leaves: engines flatten and pack them.

    It holds for transforms made of elementwise rules alone; of others it says nothing.
    """
    if not _is_elementwise(trial.transform):
        return
    whole = Trial(trial.transform, {"flat": flattened(trial.params)})
    extra = trial.extra(lambda tree: {"flat": flattened(tree)})
    state, flat_state = trial.transform.init_state(trial.params), trial.transform.init_state(whole.params)
    for step in range(2):
        grads = trial.sample(step)
        updates, state = trial.update(grads, state, trial.params)
        flat, flat_state = trial.transform.update({"flat": flattened(grads)}, flat_state, whole.params, **extra)
        require_close(flat["flat"], flattened(updates), "the update of all leaves as one flat tensor")


def bad_input_is_an_error(trial: Trial) -> None:
    """An unknown hyper-parameter, another tree, another shape and an integer gradient raise, and name what is wrong."""
    transform, params, grads = trial.transform, trial.params, trial.sample(0)
    state, name = transform.init_state(params), next(iter(trial.params))
    wrong_shape = {**grads, name: torch.zeros((*grads[name].shape, 2), dtype=torch.float64, device="cpu")}
    attempts: dict[str, tuple[str, Callable[[], Any]]] = {
        "an unknown hyper-parameter": ("no_such_knob", lambda: trial.update(grads, state, params, {"no_such_knob": 1.0})),
        "a missing gradient": (name, lambda: trial.update({k: g for k, g in grads.items() if k != name}, state, params)),
        "a gradient of another shape": (name, lambda: trial.update(wrong_shape, state, params)),
        "an integer gradient": (name, lambda: trial.update({**grads, name: grads[name].long()}, state, params)),
    }
    for what, (mention, attempt) in attempts.items():
        try:
            attempt()
        except (TypeError, ValueError) as error:
            require(mention in str(error), f"the error for {what} does not mention {mention!r}: {error}")
        else:
            raise LawBrokenError(f"{what} raises no TypeError or ValueError")


class _Record(NamedTuple):
    z: Any
    y: Any


_CONTAINERS: dict[str, Callable[[Sequence[Any]], Tree]] = {
    "a list": list,
    "a tuple": tuple,
    "a NamedTuple with a list": lambda values: _Record(values[0], list(values[1:])),
    "an OrderedDict": lambda values: OrderedDict((f"{i:03}", value) for i, value in enumerate(values)),
    "a nest": lambda values: {"a": {"b": (values[0],)}, "c": [list(values[1:])]},
}


def _is_elementwise(transform: Transform) -> bool:
    return not any(form.sees_shapes for _, form in nested(transform))


def _updates_in(trial: Trial, names: Sequence[str], build: Callable[[Sequence[Any]], Tree]) -> tuple[Tree, Tree]:
    """The second update, with everything held in the container that `build` makes."""
    params, grads = build([trial.params[name] for name in names]), [trial.sample(step) for step in range(2)]
    updates, state = None, trial.transform.init_state(params)
    extra = trial.extra(lambda tree: build([tree[name] for name in names]))
    for g in grads:
        updates, state = trial.transform.update(build([g[name] for name in names]), state, params, **extra)
    return updates, state
