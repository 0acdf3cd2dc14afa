"""The pure form: a step of clipping and AdamW from a dict of tensors to a new one, by those who don't write to what they get.

An optimizer takes part, which does write. Steps take turns in one process; first calls come from processes of their own, with a
compiler cache that was empty before.
"""

import random
import statistics
import sys
import time

import torch
from contestants import ADAMW
from first_step import measured
from shapes import MODELS

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter

ROUNDS = 200
REFERENCE = "optax, jit"


def given(shapes):
    """Parameters and gradients, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    trees = [{str(i): torch.randn(shape, generator=generator) * 0.02 for i, shape in enumerate(shapes)} for _ in range(2)]
    return trees[0], trees[1]


def by_update(transform, shapes):
    params, grads = given(shapes)
    state = transform.init_state(params)

    def step():
        nonlocal params, state
        updates, state = transform.update(grads, state, params)
        params = fo.apply_updates(params, updates)
        return params

    return step


def by_step(transform, shapes):
    params, grads = given(shapes)
    state = transform.init_state(params)

    def step():
        nonlocal params, state
        params, state = transform.step(grads, state, params)
        return params

    return step


def by_optimizer(transform, shapes):
    params, grads = given(shapes)
    parameters = {name: torch.nn.Parameter(p) for name, p in params.items()}
    for name, p in parameters.items():
        p.grad = grads[name]
    optimizer = OptimizerAdapter(parameters.values(), transform, fused=True)

    def step():
        optimizer.step()
        return parameters

    return step


def by_optax(transform, shapes):
    del transform
    import jax
    import optax

    b1, b2 = ADAMW["betas"]
    chain = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(ADAMW["lr"], b1, b2, ADAMW["eps"], weight_decay=ADAMW["weight_decay"])
    )
    params, grads = ({name: jax.numpy.asarray(x.numpy()) for name, x in tree.items()} for tree in given(shapes))
    state = chain.init(params)

    @jax.jit
    def stepped(grads, state, params):
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step():
        nonlocal params, state
        params, state = jax.block_until_ready(stepped(grads, state, params))
        return {name: torch.tensor(x.__array__()) for name, x in params.items()} if step.shows else params

    step.shows = False
    return step


CONTESTANTS = {
    "update + apply_updates": lambda tx, shapes: by_update(tx, shapes),
    "fused: update + apply_updates": lambda tx, shapes: by_update(fo.fused(tx), shapes),
    "fused: step": lambda tx, shapes: by_step(fo.fused(tx), shapes),
    "OptimizerAdapter, fused": by_optimizer,
    REFERENCE: by_optax,
}


def clipped_adamw():
    return fo.chain(fo.clip_by_global_norm(), fo.adamw(**ADAMW))


def steps(shapes):
    """The step of each of these that can be imported."""
    found = {}
    for name, build in CONTESTANTS.items():
        try:
            found[name] = build(clipped_adamw(), shapes)
        except ImportError:
            continue
    return found


def take_turns(contestants, rounds=ROUNDS):
    """The time of each step in each round."""
    times, order, rng = {name: [] for name in contestants}, list(contestants), random.Random(0)
    for step in contestants.values():
        step(), step()
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            start = time.perf_counter()
            contestants[name]()
            times[name].append(time.perf_counter() - start)
    return times


def table(model="tiny"):
    print(f"\n### The pure form, clip + AdamW, {model}: {len(MODELS[model])} tensors\n")
    times = take_turns(steps(MODELS[model]))
    print(f"| | a step | over {REFERENCE} | the first call |\n|---|--:|--:|--:|")
    for name in times:
        first = measured("import sys; import pure; pure.first_call(sys.argv[1], sys.argv[2])", name, model)
        ratio = "–"
        if REFERENCE in times:
            ratio = f"{statistics.median(a / b for a, b in zip(times[name], times[REFERENCE], strict=True)):.2f}"
        print(f"| {name} | {1e3 * statistics.median(times[name]):.2f} ms | {ratio} | {first:.1f} s |", flush=True)


def first_call(name, model):
    step = CONTESTANTS[name](clipped_adamw(), MODELS[model])
    start = time.perf_counter()
    step()
    print(time.perf_counter() - start)


if __name__ == "__main__":
    table(*sys.argv[1:])
