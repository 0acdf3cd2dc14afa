"""What each of the two processes of `test_distributed.py` runs: `python two_processes.py RANK FOLDER CHECKS`, a JSON list.

A check is a function that both processes run together; what it raises goes into the report, and the next check runs. A model
trained by two processes is compared with the same model trained by one, on the same samples.
"""

import contextlib
import copy
import datetime
import functools
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from cases import CASES, PARAMS
from precompiled import use_header
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from trajectories import drifting_gradient

import functional_optim as fo
from functional_optim import trees
from functional_optim.adapters import SGD, AdamW, NAdam, OptimizerAdapter, load_by_name, step_in_backward
from functional_optim.in_turn import in_turn
from functional_optim.testing import Trial, default_params
from functional_optim.trials import half_square, require_close

# Two processes sum a gradient, a loss or a norm in another order than one does: a relative 1e-16 each, over a dozen steps.
REORDERED = 1e-12


# Transforms, by what a sharded tensor makes hard for them.


@fo.per_tensor(
    slots={"momentum_buffer": lambda p, hp: torch.zeros_like(p), "row_sq": lambda p, hp: p.new_zeros(p.shape[:1])},
    hparams={"lr": 1e-2, "momentum": 0.9},
)
def scale_by_shape(hp):
    """A rule that is wrong on every shard: norms, rows, a matrix product; one of its slots is not shaped like the parameter."""

    def rule(g, p, m, r):
        m = hp["momentum"] * m + g
        r = 0.5 * r + 0.5 * ((m * m).flatten(1).sum(1) if m.ndim > 1 else m * m)
        direction = m @ (m.mT @ m) if m.ndim == 2 else m
        trust = p.norm() / (1 + direction.norm())
        return -hp["lr"] * trust * direction / (1 + r.sum().sqrt()), m, r

    return rule


@fo.elementwise(reduce=lambda u, p: {"largest": torch.stack([x.norm() for x in u]).max()})
def scale_by_largest(hp, found):
    """A whole-tree quantity that is no sum over elements."""

    def rule(g, p):
        return g / (1 + found["largest"])

    return rule


@fo.whole_tree(slots=("exp_avg",), shared={"largest": 0.1})
def divide_by_largest(hp, t):
    """A rule for all tensors, ordinary and spread ones together, and a value that they share."""

    def rule(gs, ps, shared, ms):
        ms = [0.9 * m + 0.1 * g for m, g in zip(ms, gs, strict=True)]
        largest = torch.stack([shared["largest"], *(m.norm() for m in ms)]).max()
        return [-0.1 * m / largest / t for m in ms], {"largest": largest}, ms

    return rule


def decaying(step):
    return 0.9 ** (1.0 * step)


def composed():
    """A norm that clips, slots, two counts, a decay and a schedule."""
    return fo.chain(
        fo.clip_by_global_norm(0.1),
        fo.scale_by_adam(amsgrad=True),
        fo.trace(0.5, 0.3),
        fo.add_decayed_weights(0.1),
        fo.scale_by_schedule(decaying),
        fo.scale_by_learning_rate(0.05),
    )


TRANSFORMS = {
    "adamw": lambda: fo.adamw(lr=0.05),
    "composed": composed,
    "largest": lambda: fo.chain(scale_by_largest(), fo.sgd(lr=0.1, momentum=0.9)),
    "whole_tree": lambda: fo.chain(fo.clip_by_global_norm(0.1), divide_by_largest()),
    "per_tensor": scale_by_shape,
    "per_tensor in a chain": lambda: fo.chain(fo.clip_by_global_norm(0.1), scale_by_shape(), fo.scale_by_adam(), fo.sgd(0.01)),
}

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    **{name: lambda params, make=make: OptimizerAdapter(params, make()) for name, make in TRANSFORMS.items()},
    "SGD": lambda params: SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "SGD, no state": lambda params: SGD(params, lr=0.1),
    "NAdam": lambda params: NAdam(params, lr=0.05),
    "AdamW": lambda params: AdamW(params, lr=torch.tensor(0.05), betas=(0.8, 0.9)),
}


# A model, and training it.


def model(hidden: int = 5) -> nn.Sequential:
    """Odd sizes: two processes hold shards of unequal size, and of the last bias one holds nothing."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 1)).double()


def train(
    module: nn.Module, optimizer: torch.optim.Optimizer, steps: range, part: slice = slice(None), after=lambda: None
) -> None:
    """Steps on the mean loss of eight samples that change with the step, or of this process's part of them."""
    for step in steps:
        x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (module(x[part]) - x[part].prod(-1, keepdim=True)).square().mean().backward()
        after()
        optimizer.step()


def own_part() -> slice:
    """The samples of this process."""
    rank = dist.get_rank()
    return slice(4 * rank, 4 * rank + 4)


def whole(x: Any) -> Any:
    return x.full_tensor() if isinstance(x, DTensor) else x


def assert_same(found: nn.Module, expected: nn.Module, tolerance: float = REORDERED) -> None:
    """Equal parameters; a tolerance of 0 asks for equal bits."""
    for (name, p), q in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(
            whole(p.detach()), whole(q.detach()), rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@functools.cache
def trained_alone(name: str, steps: int, hidden: int = 5) -> nn.Module:
    """What one process makes of the model."""
    alone = model(hidden)
    train(alone, OPTIMIZERS[name](alone.named_parameters()), range(steps))
    return alone


CHECKS: dict[str, Callable[..., None]] = {}


def check(*cases: str):
    """Register a function as one check for each case."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        for case in cases or ("",):
            CHECKS[f"{function.__name__}[{case}]" if case else function.__name__] = functools.partial(
                function, *([case] if case else [])
            )
        return function

    return register


# Engines.


@check(*OPTIMIZERS)
def ddp_retraces_one_process(name):
    module = DistributedDataParallel(model())
    train(module, OPTIMIZERS[name](module.parameters()), range(4), own_part())
    assert_same(module, trained_alone(name, 4))
    for p in module.parameters():
        of_first = p.detach().clone()
        dist.broadcast(of_first, 0)
        assert torch.equal(p, of_first), "the processes drift apart"


@check(*OPTIMIZERS)
def fsdp_retraces_one_process(name):
    module = fully_shard(model())
    optimizer = OPTIMIZERS[name](module.named_parameters())
    train(module, optimizer, range(4), own_part())
    assert_same(module, trained_alone(name, 4))

    for p in module.parameters():
        assert isinstance(p, DTensor) and p.placements == (Shard(0),)
        for slot, value in optimizer.state[p].items():
            if value.shape != p.shape or value.ndim == 0:
                assert not isinstance(value, DTensor), slot
            else:
                assert isinstance(value, DTensor) and value.placements == p.placements, slot
                assert value.to_local().shape == p.to_local().shape, slot


@check(*OPTIMIZERS)
def a_model_sharded_in_part_retraces_one_process(name):
    module = model()
    fully_shard(module[0])
    plain = list(module[2].parameters())

    def average_plain():
        for p in plain:
            dist.all_reduce(p.grad)
            p.grad /= 2

    train(module, OPTIMIZERS[name](module.parameters()), range(4), own_part(), average_plain)
    assert {type(p) for p in module.parameters()} == {DTensor, nn.Parameter}
    assert_same(module, trained_alone(name, 4))


PLANS = {
    "tensor parallel": (None, (2,)),
    "copies of shards": ((2, 1), None),
    "shards on one of two": ((1, 2), None),
    "both, two of one": ((2, 1), (2, 1)),
    "both, one of two": ((1, 2), (1, 2)),
}


@check(*(f"{plan}: {name}" for plan in PLANS for name in ("composed", "per_tensor in a chain")))
def a_parallel_model_retraces_one_process(case):
    """Columns and rows of the matrices spread over a mesh, the whole spread over another, and both at once."""
    plan, name = case.split(": ")
    sharding, tensors = PLANS[plan]
    module = model(hidden=6)
    mesh = init_device_mesh("cpu", sharding or tensors, mesh_dim_names=("data", "tensor")[: len(sharding or tensors)])
    if tensors:
        plans = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(module, mesh["tensor"] if sharding else mesh, plans)
    if sharding:
        fully_shard(module, mesh=mesh["data"] if tensors else mesh)
    own = own_part() if sharding and (not tensors or sharding[0] == 2) else slice(None)
    train(module, OPTIMIZERS[name](module.parameters()), range(4), own)
    assert_same(module, trained_alone(name, 4, hidden=6))


@check(*OPTIMIZERS)
def every_placement_retraces_one_process(name):
    """Shards of rows and of columns, an empty one, copies, an ordinary tensor, complex numbers, and gradients that are yet to be
    summed; on two meshes."""
    mesh, grid = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2, 1))
    placed = [
        ((4, 3), mesh, [Shard(0)], [Shard(0)]),
        ((3, 5), mesh, [Shard(1)], [Shard(1)]),
        ((1, 3), mesh, [Shard(0)], [Shard(0)]),
        ((5,), grid, [Shard(0), Replicate()], [Shard(0), Replicate()]),
        ((2, 4), grid, [Shard(0), Shard(1)], [Shard(0), Shard(1)]),
        ((3, 2), mesh, [Replicate()], [Partial()]),
        ((), mesh, [Replicate()], [Replicate()]),
        ((2,), None, [], []),
    ]
    if name in ("largest", "whole_tree"):  # These rules combine DTensors of all leaves, and two meshes don't mix.
        placed = [each for each in placed if each[1] is not grid]
    torch.manual_seed(1)
    starts = [torch.randn(shape, dtype=torch.float64) for shape, *_ in placed]
    if name not in ("largest", "whole_tree") and not name.startswith("per_tensor"):
        placed.append(((3,), mesh, [Shard(0)], [Shard(0)]))
        starts.append(torch.randn(3, dtype=torch.complex128))

    def place(x, mesh, placements):
        return x if mesh is None else distribute_tensor(x, mesh, placements)

    alone = [nn.Parameter(x.clone()) for x in starts]
    spread = [nn.Parameter(place(x, mesh, at)) for x, (_, mesh, at, _) in zip(starts, placed, strict=True)]
    optimizers = [OPTIMIZERS[name](alone), OPTIMIZERS[name](spread)]
    for t in range(5):
        for i, (p, q, (_, mesh, _, at)) in enumerate(zip(alone, spread, placed, strict=True)):
            p.grad = drifting_gradient(p, t, i) if t + i > 1 else None
            q.grad = None if p.grad is None else place(p.grad, mesh, at)
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(alone, spread, strict=True):
        torch.testing.assert_close(whole(q.detach()), p.detach(), rtol=REORDERED, atol=REORDERED)


# The first case of each: options change the arithmetic, not what a sharded tensor meets.
# What is `quantized` keeps the very averages of tensors that are cut within blocks, as those of the table are.
TRIALS = {name: Trial(cases[0], PARAMS.get(name) or default_params()) for name, cases in CASES.items() if name != "quantized"}


@check(*TRIALS)
def every_transform_takes_dtensors(name):
    """All that the table holds, in the pure form and behind the adapter. All tensors but the () ones are spread."""
    trial, mesh = TRIALS[name], init_device_mesh("cpu", (2,))
    needs_loss = "evaluate" in trial.extra()

    def spread(tree):
        # A loss of both kinds of tensors is a DTensor, and so are all its gradients.
        return {
            key: distribute_tensor(x, mesh, [Shard(0) if x.ndim else Replicate()]) if x.ndim or needs_loss else x.clone()
            for key, x in tree.items()
        }

    params, grads = trial.params, trial.sample(0)
    others = spread(params)
    state, other_state = trial.transform.init_state(params), trial.transform.init_state(others)
    updates, state = trial.transform.update(grads, state, params, **trial.extra())
    other_updates, other_state = trial.transform.update(spread(grads), other_state, others, **trial.extra(spread))
    for key, p in others.items():
        u = other_updates[key]
        assert type(u) is type(p) and getattr(u, "placements", ()) == getattr(p, "placements", ()), f"update of {key}: {u}"
    require_close(trees.map_leaves(whole, other_updates), updates, "the update", tolerance=REORDERED)
    require_close(trees.map_leaves(whole, other_state), state, "the state", tolerance=REORDERED)

    params = fo.apply_updates(params, updates)
    updates, _ = trial.transform.update(trial.sample(1), state, params, **trial.extra())
    params = fo.apply_updates(params, updates)
    require_close(stepped_twice(trial, others, spread), params, "the adapter", tolerance=REORDERED)


@check(*TRIALS)
def every_transform_runs_kernels_on_shards_and_shares_out_copies(name):
    """Behind the adapter: fused, of DTensors and of ordinary tensors that both processes have."""
    trial, mesh = TRIALS[name], init_device_mesh("cpu", (2,))

    def spread(tree):
        # A copy, for of what is not cut the DTensor has the very memory.
        return {key: distribute_tensor(x.clone(), mesh, [Shard(0) if x.ndim else Replicate()]) for key, x in tree.items()}

    def copied(tree):
        return {key: x.clone() for key, x in tree.items()}

    alone = stepped_twice(trial, copied(trial.params), copied)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Not all of them are rules.
        shards = stepped_twice(trial, spread(trial.params), spread, fused=True)
        copies = stepped_twice(trial, copied(trial.params), copied, fused=True, owners=True)
    require_close(shards, alone, "of shards", tolerance=REORDERED)
    require_close(copies, alone, "of copies", tolerance=REORDERED)


def stepped_twice(trial: Trial, params: Any, spread: Callable[[Any], Any], **options: bool) -> dict[str, Any]:
    """The parameters after two steps of an adapter, whole; `spread` places a tree as they are placed."""
    leaves = {key: nn.Parameter(p) for key, p in params.items()}
    optimizer = OptimizerAdapter(leaves.values(), trial.transform, **options)
    for step in range(2):
        for key, g in spread(trial.sample(step)).items():
            leaves[key].grad = g
        extra = trial.extra(lambda tree: {leaves[key]: x for key, x in spread(tree).items()})
        asks = extra.pop("evaluate", None)

        def closure():
            loss = half_square(leaves)
            if any(leaf.grad is None for leaf in leaves.values()):
                loss.backward()
            return loss

        optimizer.step(closure if asks else None, **extra)
    return {key: whole(leaf.detach()) for key, leaf in leaves.items()}


@fo.per_tensor(slots=("momentum_buffer",), coded={"momentum_buffer": "signed"})
def scale_by_coded_shape(hp):
    """A rule that is wrong on every shard, and takes its slot in codes."""

    def rule(g, p, m):
        m = 0.9 * m + g
        return m / (1 + m.norm()), m

    return rule


def in_codes(transform: fo.Transform, bits: int = 8) -> fo.Transform:
    return fo.quantized(transform, bits, block=16, min_size=16)


CODED = {
    "of elements": lambda: fo.chain(fo.clip_by_global_norm(), in_codes(fo.scale_by_adam()), in_codes(fo.trace(0.5), 4), fo.sgd()),
    "of matrices": lambda: in_codes(fo.chain(scale_by_coded_shape(), fo.sgd(0.1))),
}


@check(*CODED, "of elements, pure", "of elements, fused")
def codes_of_shards_are_those_of_whole_tensors(case):
    """Uneven shards and an empty one, copies, complex numbers, an ordinary tensor; one late, and one frozen. Where a cut falls
    within a block, the slots are in float32; where a process has no elements in a row, they are rounded otherwise."""
    name, _, how = case.partition(", ")
    mesh, grid = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2, 1))
    placed: list[tuple[Any, ...]] = [
        ((5, 3, 32), mesh, [Shard(0)], "the same"),
        ((1, 16), mesh, [Shard(0)], "the same"),
        ((4, 48), grid, [Shard(0), Shard(0)], "the same"),
        ((4, 20), mesh, [Replicate()], "the same"),
        ((6, 16), None, [], "the same"),
        ((7, 20), mesh, [Shard(0)], "none"),
        ((96,), mesh, [Shard(0)], "none"),
        ((3, 40), mesh, [Shard(1)], "none"),
        ((3, 64), mesh, [Shard(1)], "others"),
        ((2, 6, 16), mesh, [Shard(1)], "others"),
        ((2, 16), mesh, [Shard(0)], "the same"),
    ]
    torch.manual_seed(1)
    starts = {f"p{i}": torch.randn(shape) for i, (shape, *_) in enumerate(placed)}
    if name != "of matrices":
        placed.append(((3, 8), mesh, [Shard(0)], "the same"))
        starts[f"p{len(starts)}"] = torch.randn(3, 8, dtype=torch.complex64)

    def place(tree):
        rows = zip(tree.items(), placed, strict=True)
        return {key: x if m is None or x is None else distribute_tensor(x, m, at) for (key, x), (_, m, at, _) in rows}

    def grads_at(t):
        found = {key: drifting_gradient(x, t, i) for i, (key, x) in enumerate(starts.items())}
        return {**found, "p10": None, "p0": found["p0"] if t else None}

    tx = CODED[name]()
    if how == "pure":
        trees_of = [starts, place(starts)]
        states = [tx.init_state(tree) for tree in trees_of]
        for t in range(1, 4):  # One count for all.
            for i, tree in enumerate((grads_at(t), place(grads_at(t)))):
                trees_of[i], states[i] = tx.step(tree, states[i], trees_of[i])
        alone, spread = trees_of
        stored = {key: fo.state_get(states[1], "exp_avg")[key] for key in spread}
    else:
        alone = {key: nn.Parameter(x.clone()) for key, x in starts.items()}
        spread = {key: nn.Parameter(x) for key, x in place({key: x.clone() for key, x in starts.items()}).items()}
        optimizers = [OptimizerAdapter(list(tree.items()), tx, fused=how == "fused") for tree in (alone, spread)]
        for t in range(4):
            for tree, grads in ((alone, grads_at(t)), (spread, place(grads_at(t)))):
                for key, p in tree.items():
                    p.grad = grads[key]
            for optimizer in optimizers:
                optimizer.step()
        slot = "momentum_buffer" if name == "of matrices" else "exp_avg"
        stored = {key: optimizers[1].state[p][slot] for key, p in spread.items() if key != "p10"}
        for key, codes in stored.items():
            if placed[int(key[1:])][-1] == "the same":
                whole_codes = optimizers[0].state[alone[key]]
                others = {part: whole(x) for part, x in optimizers[1].state[spread[key]].items()}
                assert all(x.shape == others[part].shape for part, x in whole_codes.items()), key
                assert codes.dtype == torch.int8 and (whole(codes) != whole_codes[slot]).sum() <= 1, key
    for i, (key, p) in enumerate(spread.items()):
        codes, q = placed[i][-1], alone[key]
        if key in stored:
            assert (stored[key].dtype == torch.int8) == (codes != "none"), (key, stored[key].dtype)
        # What is rounded otherwise, or not at all, is another average, by a share of a step.
        near = 2e-5 if codes == "the same" else 0.1
        torch.testing.assert_close(
            whole(p.detach()), q.detach(), rtol=near, atol=near, msg=lambda text, key=key: f"{key}: {text}"
        )


# Special to sharded tensors.


@check("elementwise", "per_tensor")
def a_slot_that_starts_as_the_parameter_is_a_copy_of_its_memory(kind):
    @getattr(fo, kind)(slots={"anchor": lambda p, hp: p})
    def towards_start(hp):
        return lambda g, p, a: (a - p - g, a)

    start = torch.arange(6.0, dtype=torch.float64)
    mesh = init_device_mesh("cpu", (2,))
    params = [nn.Parameter(distribute_tensor(start.clone(), mesh, [placement])) for placement in (Shard(0), Replicate())]
    optimizer = OptimizerAdapter(params, towards_start())
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    for p in params:
        assert torch.equal(whole(optimizer.state[p]["anchor"]), start)
        assert torch.equal(whole(p.detach()), start - 1)


@check(*OPTIMIZERS)
def init_state_gives_all_processes_the_same_keys(name):
    """Though each of them has gradients for other parameters; and the first steps are those without it."""
    optimizer = OPTIMIZERS[name](model().named_parameters())
    optimizer.init_state()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    params[dist.get_rank()].grad = torch.ones_like(params[dist.get_rank()])
    keys: list[Any] = [None, None]
    dist.all_gather_object(keys, [list(optimizer.state[p]) for p in params])
    assert keys[0] == keys[1]

    module = fully_shard(model())
    optimizer = OPTIMIZERS[name](module.named_parameters())
    optimizer.init_state()
    for p in module.parameters():
        for slot, value in optimizer.state[p].items():
            assert not isinstance(value, DTensor) or value.shape != p.shape or value.placements == p.placements, slot
    train(module, optimizer, range(4), own_part())
    assert_same(module, trained_alone(name, 4))


@check("composed", "per_tensor in a chain")
def kernels_run_on_shards(name):
    module = fully_shard(model())
    optimizer = OptimizerAdapter(module.named_parameters(), TRANSFORMS[name](), fused=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(module, optimizer, range(4), own_part())
    assert_same(module, trained_alone(name, 4))
    # Of the last bias one process has nothing.
    ways = {stage.way for stage in optimizer.explain().stages if "trace" in stage.links or "scale_by_adam" in stage.links}
    assert ways == ({"a kernel"} if dist.get_rank() == 0 else {"a kernel", "the rules themselves"}), optimizer.explain()
    assert not optimizer.explain().reasons
    held = sum(row.state.get("exp_avg", 0) for row in optimizer.explain().rows)
    having = [p for p in module.parameters() if any(name.split(".")[-1] == "exp_avg" for name in optimizer.state[p])]
    assert held == sum(p.to_local().numel() * p.element_size() for p in having), optimizer.explain()


@check("eager", "fused")
def frozen_and_late_parameters_retrace_one_process(engine):
    """One never has a gradient, one is late, and one misses a step; all groups have numbers of their own."""
    modules, optimizers = [model(), fully_shard(model())], []
    for module in modules:
        module[0].bias.requires_grad_(False)
        groups = [{"params": [each], "lr": 0.01 * i} for i, each in enumerate(module.named_parameters(), 1)]
        optimizers.append(OptimizerAdapter(groups, TRANSFORMS["composed"](), fused=engine == "fused"))
    for step in range(6):
        for module, optimizer, part in zip(modules, optimizers, (slice(None), own_part()), strict=True):

            def drop(module=module, step=step):
                if step < 2:
                    module[2].bias.grad = None
                if step == 3:
                    module[2].weight.grad = None

            train(module, optimizer, range(step, step + 1), part, drop)
    assert_same(modules[1], modules[0])


@check()
def what_is_placed_otherwise_is_stepped_by_the_rules_and_says_why():
    mesh = init_device_mesh("cpu", (2,))
    halves = torch.full((3,), 0.5, dtype=torch.float64)
    p = nn.Parameter(DTensor.from_local(halves, mesh, [Partial()], run_check=False))
    optimizer = OptimizerAdapter([p], fo.sgd(lr=0.1), fused=True)
    p.grad = distribute_tensor(torch.ones(3, dtype=torch.float64), mesh, [Replicate()])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    assert any("yet to be summed (Partial)" in str(each.message) for each in caught), [str(each.message) for each in caught]
    torch.testing.assert_close(whole(p.detach()), torch.full((3,), 0.9, dtype=torch.float64))


@check("adamw", "per_tensor in a chain, without a norm")
def shards_are_stepped_in_backward(name):
    """As after backward; gradients are gone."""
    make = {"adamw": TRANSFORMS["adamw"]}.get(name, lambda: fo.chain(scale_by_shape(), fo.scale_by_adam(), fo.sgd(0.01)))
    alone, module = model(), fully_shard(model())
    optimizer = OptimizerAdapter(alone.parameters(), make())
    step_in_backward(module, lambda named: OptimizerAdapter(named, make()))
    train(alone, optimizer, range(4))
    for step in range(4):
        x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))[own_part()]
        (module(x) - x.prod(-1, keepdim=True)).square().mean().backward()
        assert all(p.grad is None for p in module.parameters())
    assert_same(module, alone)


@check("eager", "fused")
def accumulating_without_synchronising_retraces_one_process(engine):
    """DDP's `no_sync`: two batches of each process in a step; both compile the same kernels at the same time, into one cache."""
    alone, module = model(), DistributedDataParallel(model())
    make = lambda params: OptimizerAdapter(params, TRANSFORMS["composed"](), fused=engine == "fused")  # noqa: E731
    optimizers = [make(each.parameters()) for each in (alone, module)]
    for step in range(4):
        x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        own = x[own_part()]
        for half, context in ((own[:2], module.no_sync()), (own[2:], contextlib.nullcontext())):
            with context:
                ((module(half) - half.prod(-1, keepdim=True)).square().mean() / 2).backward()
        (alone(x) - x.prod(-1, keepdim=True)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert_same(module, alone)
    try:
        step_in_backward(module, make)
    except ValueError as error:
        assert "averages gradients" in str(error)
    else:
        raise AssertionError("DDP averages after the hooks")


COMPUTED: list[tuple[int, ...]] = []


@fo.per_tensor(slots=("momentum_buffer",))
def counted(hp):
    """A rule that remembers of which tensors it was run: as orthogonalising is, wrong on every shard."""

    def rule(g, p, m):
        if not g.is_meta:
            COMPUTED.append(tuple(g.shape))
        m = 0.9 * m + g
        return m @ (m.mT @ m) if m.ndim == 2 else m * m.norm(), m

    return rule


@fo.per_tensor()
def counted_without_slots(hp):
    """The same without a slot: a matrix has to go to its owner and back, and nothing else."""

    def rule(g, p):
        if not g.is_meta:
            COMPUTED.append(tuple(g.shape))
        return g / (1 + g.norm())

    return rule


@fo.per_tensor(batched=True)
def counted_in_batches(hp):
    """The same for tensors of one shape, together."""

    def rule(g, p):
        if not g.is_meta:
            COMPUTED.extend(tuple(x.shape) for x in g)
        return torch.stack([x / (1 + x.norm()) for x in g])

    return rule


# The rules that need shapes, numbers sent for each element, and how many rules that are.
ROWS = {
    "fully sharded": (lambda: [counted()], 4, 1),
    "fully sharded, rules in a row": (lambda: [counted_without_slots(), counted_without_slots()], 2, 2),
    "fully sharded, elements first": (lambda: [in_turn(fo.trace(0.9), counted_in_batches(), name="in_turn")], 2, 1),
    "replicated": (lambda: [counted()], 4, 1),
}


def matrices() -> nn.Module:
    """Five, of two sizes, whose shards are uneven; and a vector for each."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(7, 7) for _ in range(4)), nn.Linear(7, 3)).double()


@check(*ROWS)
def each_matrix_has_one_owner(case):
    """No process computes more than its share, and what is sent is twice what is computed."""
    rules, times, number = ROWS[case]
    alone, several = matrices(), matrices()
    several = several if case == "replicated" else fully_shard(several)
    sent: list[int] = []
    send = dist.all_to_all_single

    def watched(output, given, *args, **kwargs):
        sent.append(given.numel())
        return send(output, given, *args, **kwargs)

    tx = fo.chain(fo.trace(0.9), *rules(), fo.scale_by_learning_rate(1e-3))
    optimizers = [OptimizerAdapter(alone.parameters(), tx), OptimizerAdapter(several.parameters(), tx, owners=True)]
    dist.all_to_all_single = watched
    try:
        for t in range(3):
            for i, (p, q) in enumerate(zip(alone.parameters(), several.parameters(), strict=True)):
                p.grad = drifting_gradient(p, t, i)
                q.grad = distribute_tensor(p.grad, q.device_mesh, q.placements) if isinstance(q, DTensor) else p.grad.clone()
            optimizers[0].step()
            COMPUTED.clear()
            sent.clear()
            optimizers[1].step()
            assert COMPUTED.count((7, 7)) == 2 * number, COMPUTED
            totals = torch.tensor([sum(sent), len(COMPUTED)])
            dist.all_reduce(totals)
            if t:  # In the first step, in which all that may fail has to, rules are run one by one.
                # There and back, of the update and of the slot; of copies only the results, to both.
                assert totals.tolist() == [times * sum(p.numel() for p in alone.parameters()), 10 * number], totals
                assert len(sent) == (1 if case == "replicated" else 2)
    finally:
        dist.all_to_all_single = send
    assert_same(several, alone)


@check()
def what_is_wrong_with_a_rule_all_processes_say_and_none_has_changed_anything():
    module = fully_shard(model())
    vectors = [p for p in module.parameters() if p.ndim < 2]
    for p in vectors:  # Frozen, they are no matter of the rule; it learns of them at the step.
        p.requires_grad_(False)
    optimizer = OptimizerAdapter(module.parameters(), fo.chain(fo.trace(0.9), fo.orthogonalize(), fo.sgd(lr=0.1)))
    for p in vectors:
        p.requires_grad_(True)
    before = [whole(p.detach()).clone() for p in module.parameters()]
    try:
        train(module, optimizer, range(1), own_part())
    except ValueError as error:
        assert "orthogonalize" in str(error)
    else:
        raise AssertionError("vectors are no matrices")
    for p, old in zip(module.parameters(), before, strict=True):
        assert torch.equal(whole(p.detach()), old)
        assert not optimizer.state.get(p)


@check()
def a_process_without_elements_goes_along():
    """The only parameter has one element."""
    found = []
    for spread in (False, True):
        p = nn.Parameter(torch.full((1,), 2.0, dtype=torch.float64))
        if spread:
            p = nn.Parameter(distribute_tensor(p.detach(), init_device_mesh("cpu", (2,)), [Shard(0)]))
        optimizer = OptimizerAdapter([p], TRANSFORMS["composed"]())
        for _ in range(3):
            p.grad = 3 * p.detach()
            optimizer.step()
        found.append(whole(p.detach()))
    torch.testing.assert_close(found[1], found[0], rtol=REORDERED, atol=REORDERED)


MESSAGES: dict[str, tuple[Callable[[], fo.Transform], int]] = {
    "AdamW": (fo.adamw, 0),
    "cautious Lion with decay": (lambda: fo.chain(fo.cautious(fo.scale_by_lion()), fo.add_decayed_weights(), fo.sgd(0.1)), 1),
    "accumulated, scheduled": (lambda: fo.scheduled(fo.accumulate(fo.adamw(), every=2), lr=fo.warmup_cosine(0.1, 2, 9)), 0),
    "clipped": (lambda: fo.chain(fo.clip_by_global_norm(0.1), fo.adamw()), 1),
    "clipped twice, and a norm of each": (
        lambda: fo.chain(
            fo.clip_by_global_norm(0.1), fo.scale_by_adam(), fo.clip_by_global_norm(0.1), fo.scale_by_trust_ratio(eps=1e-8)
        ),
        3,
    ),
    "prodigy": (fo.prodigy, 1),
    "with a master copy": (lambda: fo.with_master_copy(fo.adamw()), 0),
}


@check(*(f"{name}{fused}" for name in MESSAGES for fused in ("", ", fused")))
def elementwise_rules_send_nothing_but_one_message_for_all_sums(case):
    name, fused = case.removesuffix(", fused"), case.endswith(", fused")
    make, expected = MESSAGES[name]
    module = fully_shard(model())
    optimizer = OptimizerAdapter(module.named_parameters(), make(), fused=fused)
    train(module, optimizer, range(2), own_part())
    with CommDebugMode() as messages:
        optimizer.step()
    counts = {str(operation): count for operation, count in messages.get_comm_counts().items() if count}
    assert sum(counts.values()) == expected, counts


@check()
def bfloat16_shards_keep_the_dtype_of_their_slots():
    tx = fo.chain(fo.clip_by_global_norm(0.1), fo.scale_by_adam(state_dtype=torch.float32), fo.scale_by_learning_rate(0.05))
    alone, sharded = model().bfloat16(), fully_shard(model().bfloat16())
    optimizers = [OptimizerAdapter(alone.parameters(), tx), OptimizerAdapter(sharded.parameters(), tx)]
    for t in range(3):
        for i, (p, q) in enumerate(zip(alone.parameters(), sharded.parameters(), strict=True)):
            p.grad = drifting_gradient(p, t, i)
            q.grad = distribute_tensor(p.grad, q.device_mesh, q.placements)
        for optimizer in optimizers:
            optimizer.step()
    # The norm is summed in another order, in float32; a step that is then rounded to bfloat16 may land on the next number.
    assert_same(sharded, alone, tolerance=2**-7)
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    for p in sharded.parameters():
        assert {slot: value.dtype for slot, value in optimizers[1].state[p].items() if slot != "step"} == {
            "exp_avg": torch.float32,
            "exp_avg_sq": torch.float32,
        }


# Checkpoints.


def resumed(name: str, save: Callable[[nn.Module, Any], Any], load: Callable[[nn.Module, Any, Any], None]) -> None:
    """Two steps, a checkpoint, and two more in fresh objects: bit for bit what four steps in a row give."""
    straight = fully_shard(model())
    train(straight, OPTIMIZERS[name](straight.named_parameters()), range(4), own_part())

    first = fully_shard(model())
    optimizer = OPTIMIZERS[name](first.named_parameters())
    train(first, optimizer, range(2), own_part())
    saved = save(first, optimizer)

    second = fully_shard(model())
    for p in second.parameters():
        nn.init.zeros_(p)
    optimizer = OPTIMIZERS[name](second.named_parameters())
    load(second, optimizer, saved)
    train(second, optimizer, range(2, 4), own_part())
    assert_same(second, straight, tolerance=0)


@check(*OPTIMIZERS)
def its_own_state_dict_resumes(name):
    def save(module, optimizer):
        return copy.deepcopy((module.state_dict(), optimizer.state_dict()))

    def load(module, optimizer, saved):
        module.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])

    resumed(name, save, load)


# Full and flattened at once, and full with broadcast_from_rank0, fail in torch 2.13 with its own optimizers too.
FORMS = {
    "sharded": StateDictOptions(),
    "flattened": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True),
}


@check(*(f"{form}: {name}" for form in FORMS for name in ("composed", "per_tensor", "whole_tree")))
def a_distributed_state_dict_resumes(case):
    form, name = case.split(": ")
    options = FORMS[form]

    def save(module, optimizer):
        return copy.deepcopy(get_state_dict(module, optimizer, options=options))

    def load(module, optimizer, saved):
        set_state_dict(module, optimizer, model_state_dict=saved[0], optim_state_dict=saved[1], options=options)

    resumed(name, save, load)


@check(*(f"{form}: {name}" for form in ("sharded", "flattened") for name in ("composed", "per_tensor", "AdamW")))
def a_distributed_checkpoint_resumes(case):
    form, name = case.split(": ")

    def save(module, optimizer):
        folder = FOLDER / f"{form} {name}"
        dcp.save(checkpoint_of(module, optimizer, FORMS[form]), checkpoint_id=folder)
        return folder

    def load(module, optimizer, saved):
        load_checkpoint(module, optimizer, FORMS[form], saved)

    resumed(name, save, load)


def checkpoint_of(module: nn.Module, optimizer: torch.optim.Optimizer, options: StateDictOptions) -> dict[str, Any]:
    parameters, state = get_state_dict(module, optimizer, options=options)
    return {"model": parameters, "optimizer": state}


def load_checkpoint(module: nn.Module, optimizer: torch.optim.Optimizer, options: StateDictOptions, folder: Path) -> None:
    state = checkpoint_of(module, optimizer, options)
    dcp.load(state, checkpoint_id=folder, no_dist=not dist.is_initialized())
    set_state_dict(module, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=options)


@check()
def torchs_checkpoint_of_shards_loads_into_codes_and_these_into_float32():
    """By position and by name, spread and whole: a code is within an eighth of the number, and what it stands for stays."""
    module = fully_shard(nn.Sequential(nn.Linear(32, 5), nn.Linear(5, 1)))
    named = list(module.named_parameters())
    theirs = torch.optim.AdamW(named)
    for i, (_, p) in enumerate(named):
        g = drifting_gradient(torch.zeros(p.shape), 1, i)
        p.grad = distribute_tensor(g, p.device_mesh, p.placements)
    theirs.step()
    saved, weight = theirs.state_dict(), named[0][1]
    expected = whole(theirs.state[weight]["exp_avg"])
    for state in (saved, trees.map_leaves(whole, saved)):
        for load in (load_by_name, lambda optimizer, state: optimizer.load_state_dict(state)):
            optimizer = OptimizerAdapter(named, in_codes(fo.adamw()))
            load(optimizer, copy.deepcopy(state))
            slots = optimizer.state[weight]
            assert {name: x.dtype for name, x in slots.items() if x.ndim} == {
                "exp_avg": torch.int8,
                "exp_avg.scale": torch.float32,
                "exp_avg_sq": torch.uint8,
                "exp_avg_sq.scale": torch.float32,
            }
            assert all(x.placements == weight.placements for x in slots.values() if x.ndim)
            back = AdamW(named)
            back.load_state_dict(optimizer.state_dict())
            found = whole(back.state[weight]["exp_avg"])
            near = expected.abs() > expected.abs().max() / 16
            torch.testing.assert_close(found[near], expected[near], rtol=0.13, atol=0)
            # From one float32 optimizer to another, and into the same codes again.
            torch.optim.AdamW(named).load_state_dict(back.state_dict())
            load(optimizer, back.state_dict())
            assert torch.equal(whole(optimizer.state[weight]["exp_avg"]), whole(slots["exp_avg"]))


# ZeRO: whole parameters, each stepped by one process.

ZERO: dict[str, tuple[Any, dict[str, Any]]] = {
    "AdamW": (AdamW, {"lr": 0.05, "betas": (0.8, 0.9)}),
    "SGD": (SGD, {"lr": 0.1, "momentum": 0.9}),
    "a chain": (functools.partial(OptimizerAdapter, transform=fo.chain(fo.scale_by_adam(), scale_by_shape())), {"lr": 0.05}),
}


@check(*ZERO)
def zero_redundancy_retraces_one_process(name):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # Its modules warn as they are loaded.

    cls, options = ZERO[name]

    def made(module):
        return ZeroRedundancyOptimizer(module.parameters(), optimizer_class=cls, **options)

    def scheduled(module, optimizer, steps, part):
        for step in steps:
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            train(module, optimizer, range(step, step + 1), part)

    alone = model()
    scheduled(alone, cls(alone.parameters(), **options), range(4), slice(None))
    modules = [DistributedDataParallel(model()) for _ in range(2)]
    optimizer = made(modules[0])
    scheduled(modules[0], optimizer, range(2), own_part())

    optimizer.consolidate_state_dict(to=0)
    box = [optimizer.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, 0)
    state = box[0]
    assert state is not None
    assert set(state["state"]) == set(range(4))
    modules[1].load_state_dict(modules[0].state_dict())
    optimizer = made(modules[1])
    optimizer.load_state_dict(state)
    scheduled(modules[1], optimizer, range(2, 4), own_part())
    assert_same(modules[1], alone)


# Checkpoints that cross over between one process and two; what follows runs in the process of the tests.

CROSSING = ("composed", "per_tensor", "AdamW")


@check(*CROSSING)
def a_checkpoint_of_one_process_resumes_on_two(name):
    module = fully_shard(model())
    optimizer = OPTIMIZERS[name](module.named_parameters())
    load_checkpoint(module, optimizer, StateDictOptions(), FOLDER / f"of one process {name}")
    train(module, optimizer, range(2, 4), own_part())
    assert_same(module, trained_alone(name, 4))


def save_checkpoints_of_one_process(folder: Path) -> None:
    """What the check above loads."""
    for name in CROSSING:
        module = model()
        optimizer = OPTIMIZERS[name](module.named_parameters())
        train(module, optimizer, range(2))
        dcp.save(
            checkpoint_of(module, optimizer, StateDictOptions()), checkpoint_id=folder / f"of one process {name}", no_dist=True
        )


def resume_on_one_process(name: str, folder: Path) -> None:
    """Go on alone from a checkpoint of two processes."""
    module = model()
    for p in module.parameters():
        nn.init.zeros_(p)
    optimizer = OPTIMIZERS[name](module.named_parameters())
    load_checkpoint(module, optimizer, StateDictOptions(), folder / f"sharded {name}")
    train(module, optimizer, range(2, 4))
    assert_same(module, trained_alone(name, 4))


# Running them.

FOLDER = Path()


@contextlib.contextmanager
def process_group(rank: int, store: Path) -> Iterator[None]:
    # Should one process fail where the other waits for it, this ends the wait; where cores are scarce, one is late by seconds.
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=store.absolute().as_uri(), rank=rank, world_size=2, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def problem_of(run: Callable[[], None]) -> str:
    """The traceback of a check, or nothing."""
    try:
        run()
    except (Exception, CheckpointException):
        return traceback.format_exc()
    return ""


def main(rank: int, folder: Path, waiting: list[str]) -> None:
    """Run these checks, until a few have failed; write what went wrong in each into `folder/report-RANK.json`."""
    global FOLDER
    FOLDER = folder
    use_header()
    report = {}
    results = dist.FileStore(str(folder / "results"), 2)
    failures = 0
    while waiting and failures < 5:
        # A process group in which one process has failed is of no more use.
        with process_group(rank, folder / f"store {len(waiting)}"):
            failed = False
            while waiting and not failed:
                name = waiting.pop(0)
                report[name] = problem_of(CHECKS[name])
                results.set(f"{name} {rank}", "failed" if report[name] else "passed")
                failed = b"failed" in (results.get(f"{name} {each}") for each in range(2))
            if not failed:
                dist.barrier()  # Neither closes its connections while the other may still use them.
        failures += failed
    report.update(dict.fromkeys(waiting, "not run: others had failed before"))
    (folder / f"report-{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
