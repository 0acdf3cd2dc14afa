"""What tests of the engines share: rules and chains of many kinds, parameters of many shapes, and how two runs are compared."""

import copy
import functools

import pytest
import torch
from cases import TABLE
from covering import mostly_full, written_in

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter
from functional_optim.adapters.engine.route import links_of
from functional_optim.adapters.transform_optimizer import TransformOptimizer
from functional_optim.adapters.whole_step import whole_step
from functional_optim.form import nested
from functional_optim.reductions import SumOver

# Both steps round the same formula, in another order (reciprocals, sums) and with other fused multiply-adds: a few units in the
# last place a step. In bfloat16 the parameter itself is rounded each step, and a value near a tie falls to either side.
TOLERANCE = {torch.float64: (1e-12, 1e-13), torch.float32: (1e-5, 1e-6), torch.bfloat16: (0.05, 0.05)}
SHAPES = [(3, 4), (150, 100), (), (7,), (0,), (1,), (2, 3, 5)]

# Numbers that are small differences of large ones have lost so many roundings: the way since the start of parameters that move
# by a thousandth of their size; the bound of a loss, of inner products with the parameters.
SLACK = {TABLE["dowg-0"]: 10.0, TABLE["momo-1"]: 1000.0}


@fo.elementwise(slots=("sign",), hparams={"beta": 0.9, "power": 0.5})
def user_rule(hp, t, *, flip=False):
    decay = (1 - hp["beta"]) / t**0.25 if not flip else hp["beta"]

    def rule(g, p, m):
        m = hp["beta"] * m + decay * torch.sign(g)
        return torch.where(m * g > 0, m, torch.zeros_like(m)) * g.abs() ** hp["power"], m

    return rule


def _largest(updates, params):
    return torch.stack([u.abs().max() for u in updates if u.numel()]).max()


@fo.elementwise(hparams={"limit": 0.5}, reduce=_largest)
def clip_by_largest(hp, largest):
    """A whole-tree quantity that is no sum: an engine has to hand over the leaves."""

    def rule(g, p):
        return g * (hp["limit"] / largest).clamp(max=1.0)

    return rule


@fo.elementwise(slots=("m",), reduce=SumOver(lambda u, p, m: (u * m, m * m), finish=lambda um, mm: um / (mm + 1)))
def project(hp, along):
    """A reduction that reads a slot, and two sums at once."""

    def rule(g, p, m):
        return g - along * m, 0.5 * m + g

    return rule


@fo.per_tensor(slots={"rows": lambda p, hp: torch.zeros(p.shape[:1])}, hparams={"mix": 0.9})
def scale_rows(hp, t):
    """Needs the shape, and keeps a slot of another one."""

    def rule(g, p, rows):
        other = tuple(range(1, g.ndim))
        rows = hp["mix"] * rows + (1 - hp["mix"]) * ((g * g).mean(other) if other else g * g)
        return g / (rows.view(*rows.shape, *[1] * len(other)) / (1 - hp["mix"] ** t) + 1e-3).sqrt(), rows

    return rule


@fo.elementwise(hparams={"on": 1.0})
def branching(hp):
    """What rules must not do: a Python branch on a number, which no tracer can follow."""
    sign = 1.0 if hp["on"] > 0 else -1.0

    def rule(g, p):
        return sign * g

    return rule


@fo.elementwise()
def sized(hp):
    """What rules must not do either: take the length of what they happen to be traced for."""

    def rule(g, p):
        return g + torch.ones(g.shape)

    return rule


def by_hand():
    return fo.Transform(lambda params, hp: {}, lambda u, state, params, hp, **extra: (u, state), name="by_hand")


def halving(step):
    return 0.5**step


TRANSFORMS = {
    "sgd": lambda: fo.sgd(),
    "momentum": lambda: fo.sgd(momentum=0.9, weight_decay=0.1),
    "nesterov": lambda: fo.sgd(momentum=0.9, nesterov=True),
    "dampening": lambda: fo.sgd(momentum=0.9, dampening=0.3),
    "adam": lambda: fo.adam(),
    "amsgrad": lambda: fo.adam(amsgrad=True, weight_decay=0.1),
    "adamw": lambda: fo.adamw(),
    "clip first": lambda: fo.chain(fo.clip_by_global_norm(), fo.adamw()),
    "clip later": lambda: fo.chain(fo.scale_by_adam(), fo.clip_by_global_norm(), fo.scale_by_learning_rate()),
    "clip twice": lambda: fo.chain(fo.clip_by_global_norm(), fo.trace(), fo.clip_by_global_norm(), fo.scale_by_learning_rate()),
    "clip by value": lambda: fo.chain(fo.clip_by_value(0.3), fo.sgd(momentum=0.5)),
    "renamed": lambda: fo.chain(fo.rename_hparams(fo.adam(), lr="inner_lr", eps="inner_eps"), fo.scale_by_learning_rate()),
    "schedule": lambda: fo.chain(fo.scale_by_adam(), fo.scale_by_schedule(fo.warmup_cosine(1.0, 4, 20)), fo.scale(-0.1)),
    "two counts": lambda: fo.chain(fo.scale_by_adam(), fo.scale_by_schedule(halving), fo.trace(), fo.scale_by_learning_rate()),
    "user rule": lambda: fo.chain(user_rule(flip=True), user_rule(), fo.scale_by_learning_rate()),
    "no sum": lambda: fo.chain(fo.trace(), clip_by_largest(), fo.scale_by_learning_rate()),
    "no sum first": lambda: fo.chain(clip_by_largest(), fo.scale_by_learning_rate()),
    "two sums": lambda: fo.chain(fo.scale(2.0), project(), fo.scale_by_learning_rate()),
}
PER_TENSOR = {
    "per tensor": lambda: fo.chain(fo.trace(), scale_rows(), fo.add_decayed_weights(), fo.scale_by_learning_rate()),
    "per tensor first": lambda: fo.chain(scale_rows(), fo.clip_by_global_norm(), fo.trace(), fo.scale_by_learning_rate()),
    "per tensor last": lambda: fo.chain(fo.clip_by_global_norm(), fo.scale_by_learning_rate(), scale_rows()),
}
WITH_ROWS = [(3, 4), (150, 100), (7,), (1,), (2, 3, 5)]


def parameters(shapes=SHAPES, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_gradients(step, *sets):
    """The same gradients for each set, in each parameter's own layout."""
    generator = torch.Generator().manual_seed(1000 + step)
    for same in zip(*sets, strict=True):
        grad = torch.randn(same[0].shape, generator=generator, dtype=torch.float64)
        for p in same:
            p.grad = torch.empty_like(p).copy_(grad)


def assert_close(ours, theirs, dtype=torch.float32, slack=1.0):
    rtol, atol = (slack * x for x in TOLERANCE[dtype])
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol)


def assert_same_progress(ours, theirs, dtype=torch.float32, slack=1.0):
    """Parameters, names and values of the state."""
    slack *= SLACK.get(ours.transform, 1.0) if isinstance(ours, OptimizerAdapter) else 1.0
    assert_close(params_of(ours), params_of(theirs), dtype, slack)
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        assert ours.state[p].keys() == theirs.state[q].keys()
        assert_close(ours.state[p].values(), [theirs.state[q][name] for name in ours.state[p]], dtype, slack)


def assert_same_steps(ours, theirs, steps=20):
    """Everything after each step, to `TOLERANCE` of the largest value that an element has had.

    The largest, not the present one: where large terms cancel, their rounding stays. (Without learning rate or clip, the second
    step of ADOPT is a quotient of two random numbers; 1 in 15,000 throws an element out by 1,000, and later ones bring it back.)
    """
    slack = SLACK.get(ours.transform, 1.0) if isinstance(ours, OptimizerAdapter) else 1.0
    rtol, atol = (slack * x for x in TOLERANCE[torch.float32])
    largest = {}
    for step in range(steps):
        run(ours, theirs, steps=1, first=step)
        for p, q in zip(params_of(ours), params_of(theirs), strict=True):
            assert ours.state[p].keys() == theirs.state[q].keys()
            for name, x, y in [("", p, q), *((name, x, theirs.state[q][name]) for name, x in ours.state[p].items())]:
                assert x.dtype == y.dtype
                largest[p, name] = torch.maximum(x.detach().abs(), largest.get((p, name), torch.zeros_like(x)))
                assert ((x - y).abs() <= rtol * largest[p, name] + atol).all(), (step, tuple(p.shape), name)


def odd_parameters():
    """Dense in another order, not dense at all, complex, large and small, and of several dtypes."""
    make = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    tensors = [
        make(200, 150).t(),
        make(200, 300)[:, ::2],
        make(40, 300)[:, 5:9],
        make(4, 3, 60, 60).to(memory_format=torch.channels_last),
        make(90, 90, dtype=torch.complex64),
        make(5, dtype=torch.complex128),
        make(3, dtype=torch.complex64).conj(),
        make(130, 130, dtype=torch.float64),
        make(3, 3, dtype=torch.float64).t(),
        make(140, 140).bfloat16(),
        make(6).bfloat16(),
        make(1, 1, 1),
    ]
    return [torch.nn.Parameter(tensor) for tensor in tensors]


def real_dtype(x):
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(x.dtype, x.dtype)


class Plain(OptimizerAdapter):
    """Steps by calling the transform itself, which is what every engine is compared with."""

    def computed(self, transform, groups, closure, extra):
        return whole_step(self, transform, groups, closure, extra, self._factor)


def ways(optimizer):
    """How elementwise stages of parameters that have elements were run; or that the transform itself was called."""
    found = set()
    for step in optimizer._steps.values():
        if step.plan is None:
            return {"WHOLE"}
        assert not step.plan.is_new
        for part in step.plan.parts:
            stages = [stage for stage in part.passage.stages if stage.fuses and part.leaves[0].param.numel()]
            found |= {"CALLED" if (stage, part.way) in step.plan.refusals else part.way.name for stage in stages}
    return found


def pair(transform, shapes=SHAPES, dtype=torch.float32, **hparams):
    """The same parameters behind a plain and a fused optimizer."""
    eager = parameters(shapes, dtype)
    fused = copy.deepcopy(eager)
    return Plain(eager, transform, **hparams), OptimizerAdapter(fused, transform, fused=True, **hparams)


def run(*optimizers, steps=20, first=0):
    for step in range(first, first + steps):
        set_gradients(step, *map(params_of, optimizers))
        for optimizer in optimizers:
            optimizer.step(**{name: 1 + 1 / (1 + step) for name in numbers_of(optimizer)})


def numbers_of(optimizer):
    """The names of what has to be given to each step."""
    if not isinstance(optimizer, TransformOptimizer):
        return set()
    transforms = {optimizer.transform_for(group) for group in optimizer.param_groups}
    return {name for tx in transforms for _, form in nested(tx) for name in form.needs.numbers}


def _move(tensor):
    tensor.data = torch.full_like(tensor, 0.3)


def _transpose(tensor):
    """The same numbers, stored in another order."""
    tensor.data = tensor.data.t().contiguous().t()


EDITS = {
    "slot replaced": lambda o, p: o.state[p].update(exp_avg=torch.ones_like(p)),
    "slot scaled": lambda o, p: o.state[p]["exp_avg"].mul_(3.0),
    "slot moved": lambda o, p: _move(o.state[p]["exp_avg"]),
    "slots dropped": lambda o, p: [o.state[p].pop(name) for name in ("exp_avg", "exp_avg_sq", "step")],
    "count replaced": lambda o, p: o.state[p].update(step=torch.tensor(50.0)),
    "count set": lambda o, p: o.state[p]["step"].fill_(50.0),
    "state replaced": lambda o, p: o.state.update({p: {name: value.clone() + 1 for name, value in o.state[p].items()}}),
    "state dropped": lambda o, p: o.state.pop(p),
    "state cleared": lambda o, p: o.state.clear(),
    "parameter moved": lambda o, p: _move(p),
    "parameter transposed": lambda o, p: _transpose(p),
    "group added": lambda o, p: o.add_param_group({"params": parameters([(5, 5)], seed=7), "lr": 0.5}),
    "parameter moved between groups": lambda o, p: o.add_param_group({"params": [o.param_groups[0]["params"].pop()], "lr": 0.5}),
}


FUSIBLE = {case: tx for case, tx in TABLE.items() if all(link.rule for link in links_of(tx))}
# Slots in codes are stepped in a way of their own.
PACKED = {case: tx for case, tx in FUSIBLE.items() if all(link.packs and not any(link.form.unopened) for link in links_of(tx))}
ELEMENTWISE = [pytest.param(PACKED[case], id=case, marks=marks) for case, marks in mostly_full(PACKED, written_in).items()]
