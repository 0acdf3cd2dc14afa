"""The laws that every transform promises, as functions: run them on one of your own with `check_transform`."""

import contextlib
import functools
import itertools
import operator
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.apply import apply_updates
from functional_optim.combinators.chain import Chained
from functional_optim.direction import UphillWarning, warn_if_uphill
from functional_optim.form import nested
from functional_optim.hparams import PerLeaf
from functional_optim.lifting import Lifted
from functional_optim.recipe import answering
from functional_optim.torch_internals import version_of
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree
from functional_optim.trials import (
    LawBrokenError,
    Trial,
    cast,
    default_params,
    dot,
    flattened,
    half_square,
    require,
    require_alike,
    require_close,
    saved_and_loaded,
    stacked,
    tensors,
    widened,
    zeros_like,
)

# Seconds that a law may take without a word.
PATIENCE = 5.0


@answering
def check_transform(transform: Transform, params: Mapping[str, Tensor] | None = None) -> None:
    """Run every law on a transform; it returns None if all hold.

    It tries small float64 tensors on the CPU, through torch's tracer but without its compiler, and resets that: what
    `torch.compile` compiled before is compiled again at its next use. Behind the adapter it steps eagerly. Where a law takes more
    than a few seconds, as of a long chain, a line on stderr says which. It warns of a chain whose updates point uphill.

    Args:
        transform: any transform.
        params: a dict of small tensors to try it on, for rules that need certain shapes. By default a matrix, a vector and
            a () tensor.

    Raises:
        LawBrokenError: in a sentence, which law broke first, and where.

    >>> import functional_optim as fo
    >>> check_transform(fo.adamw())
    """
    require_transform(transform, "check_transform")
    trial = Trial(transform, {k: p.detach().double() for k, p in (params or default_params()).items()})
    if isinstance(transform.form, Chained):
        warn_if_uphill(transform, trial.params, {}, stacklevel=3)  # Of who called what answers for it.
    for number, law in enumerate(LAWS, 1):
        with _said_if_slow(f"{transform.name}: at law {number} of {len(LAWS)}, “{_name(law)}”"):
            check_law(law, trial)


def check_law(law: "Law", trial: Trial) -> None:
    """Run one law; whatever goes wrong inside is reported as that law, broken."""
    try:
        law(trial)
    except Exception as error:
        what = str(error) if isinstance(error, LawBrokenError) else f"{type(error).__name__}: {error}"
        advice = ADVICE.get(law, "")
        raise LawBrokenError(f"{trial.transform.name} breaks the law “{_name(law)}”: {what}{advice}") from error


def _name(law: "Law") -> str:
    return law.__name__.replace("_", " ")


@contextlib.contextmanager
def _said_if_slow(where: str) -> Iterator[None]:
    """Tell on stderr where one is, if that takes longer than one waits without a word."""
    timer = threading.Timer(PATIENCE, lambda: print(f"check_transform of {where}", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# --- The laws -----------------------------------------------------------------------------------------------------------


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


Law = Callable[[Trial], None]
LAWS: list[Law] = [
    two_steps_run,
    inputs_are_not_written_to,
    structure_shape_and_dtype_are_kept,
    vmap_is_a_loop,
    low_precision_is_computed_in_float32,
    one_graph_serves_all_steps,
    derivatives_are_right,
    derivatives_at_zero_are_finite,
    forward_and_reverse_mode_agree,
    the_adapter_computes_the_same,
    state_survives_a_checkpoint,
    tensors_are_made_where_the_parameters_are,
    any_tree_will_do,
    the_adapter_passes_over_missing_gradients,
    elementwise_rules_see_no_shapes,
    bad_input_is_an_error,
]


READ_NO_VALUE = (
    " A rule reads no value of a tensor: no .item(), float(), math function or `if` on a hyper-parameter or the step. "
    "Write torch.where, or the functions of functional_optim.numerics, which take numbers and tensors."
)
ADVICE: dict[Law, str] = {
    vmap_is_a_loop: READ_NO_VALUE,
    one_graph_serves_all_steps: READ_NO_VALUE,
    derivatives_at_zero_are_finite: " A root of something that may be 0 wants functional_optim.numerics.sqrt.",
    elementwise_rules_see_no_shapes: " A rule that needs a tensor's true shape is a per_tensor one.",
}


# --- How they look ------------------------------------------------------------------------------------------------------


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
                    kept = functools.reduce(operator.getitem, (*path, name), held[step])
                    state = _with_part(state, (*path, name), lambda _, kept=kept: kept)
            params = apply_updates(params, updates)
            outputs += trees.leaves(params)
        return tuple(outputs) + tuple(x for x in trees.leaves(state) if isinstance(x, Tensor) and x.is_floating_point())

    is_known = False
    function(*leaves)
    is_known = True
    return function, list(leaves), trees.paths(given)


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
        found = _with_part(
            found, keys, lambda part, keys=keys, share=share: _counted_apart(transform.form.parts[keys], part, share)
        )
    return found


def _with_part(state: Tree, keys: Sequence[str], change: Callable[[Tree], Tree]) -> Tree:
    return {**state, keys[0]: _with_part(state[keys[0]], keys[1:], change)} if keys else change(state)


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


def _updates_in(trial: Trial, names: Sequence[str], build: Callable[[Sequence[Any]], Tree]) -> tuple[Tree, Tree]:
    """The second update, with everything held in the container that `build` makes."""
    params, grads = build([trial.params[name] for name in names]), [trial.sample(step) for step in range(2)]
    updates, state = None, trial.transform.init_state(params)
    extra = trial.extra(lambda tree: build([tree[name] for name in names]))
    for g in grads:
        updates, state = trial.transform.update(build([g[name] for name in names]), state, params, **extra)
    return updates, state
