"""What training inside a function costs: MAML and a sweep, against TorchOpt, a `torch.optim` loop and JAX with optax.

    python tests/benchmarks/bench_meta.py                       # everything; needs the extras `test` and `bench`
    python tests/benchmarks/bench_meta.py --skip compile --rounds 21 --clock cpu

- MAML: sine regression (Finn et al. 2017, section 5.1), 32 tasks of 10 points, 1-40-40-1 network, five inner Adam steps, the
  gradient of the query loss in the initial parameters.
- Few-shot: three blocks of a convolution with 32 channels, GroupNorm, ReLU and max-pooling on 28 × 28, five tasks of 25 images,
  five inner SGD steps, the gradient of the loss after them in the initial parameters, on two threads, JAX's on one, so compare
  these two with `--clock cpu`; against a loop by hand with
  `torch.autograd.grad(create_graph=True)`. Eager is differentiated by `torch.autograd.grad`, too: `torch.func.grad` would also
  record what it does, for a second derivative.
- Sweep: 64 learning rates × 50 Adam steps of an 8-32-1 network on 64 points.

Else one thread. Contestants take turns within one process, so that whatever else the machine does hits all of them; a ratio is
one of medians, and the quartiles of the round-by-round ratios say how far to trust it. On a busy machine, `--clock cpu` counts
the process's own time.
"""

import argparse
import functools
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import numpy as np
import torch

import functional_optim as fo

sys.path.insert(0, str(Path(__file__).parent.parent))
TASKS, POINTS, INNER, RATES, STEPS = 32, 10, 5, 64, 50


def loss(params, x, y):
    """Mean squared error of a network with ReLUs."""
    *hidden, last = range(len(params) // 2)
    for i in hidden:
        x = torch.relu(x @ params[f"w{i}"] + params[f"b{i}"])
    return ((x @ params[f"w{last}"] + params[f"b{last}"] - y) ** 2).mean()


def network(*widths):
    generator = torch.Generator().manual_seed(0)
    params = {}
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        params[f"w{i}"] = torch.randn(inputs, outputs, generator=generator) / inputs**0.5
        params[f"b{i}"] = torch.zeros(outputs)
    return params


def sine_tasks():
    """Support and query sets: x and y, each of shape (tasks, points, 1)."""
    generator = torch.Generator().manual_seed(1)
    amplitude = 0.1 + 4.9 * torch.rand(TASKS, 1, 1, generator=generator)
    phase = 3.14 * torch.rand(TASKS, 1, 1, generator=generator)
    xs = [10 * torch.rand(TASKS, POINTS, 1, generator=generator) - 5 for _ in range(2)]
    return tuple((x, amplitude * torch.sin(x + phase)) for x in xs)


def maml(steps=INNER, compile=False):
    """Parameters to the gradient of the mean query loss."""
    inner = fo.meta.unroll(loss, fo.adam(), steps, compile=compile)
    support, query = sine_tasks()

    def task_loss(params, support, query):
        return loss(inner(params, {"lr": 0.01}, support).params, *query)

    gradient = torch.func.grad(lambda p: torch.vmap(task_loss, (None, 0, 0))(p, support, query).mean())
    return fo.meta.compiled(gradient) if compile else gradient


def maml_of_torchopt(params):
    import torchopt

    support, query = sine_tasks()
    optimizer = torchopt.adam(lr=0.01)

    def run():
        first = [p.clone().requires_grad_() for p in params.values()]
        total = 0.0
        for i in range(TASKS):
            current, state = tuple(first), optimizer.init(tuple(first))
            for _ in range(INNER):
                value = loss(dict(zip(params, current, strict=True)), support[0][i], support[1][i])
                grads = torch.autograd.grad(value, current, create_graph=True)
                updates, state = optimizer.update(grads, state, inplace=False)
                current = torchopt.apply_updates(current, updates, inplace=False)
            total = total + loss(dict(zip(params, current, strict=True)), query[0][i], query[1][i])
        return dict(zip(params, torch.autograd.grad(total / TASKS, first), strict=True))

    return run


def in_jax(tree):
    import jax.numpy as jnp

    return {k: jnp.array(v.numpy()) for k, v in tree.items()} if isinstance(tree, dict) else jnp.array(tree.numpy())


def loss_of_jax(params, x, y):
    import jax

    *hidden, last = range(len(params) // 2)
    for i in hidden:
        x = jax.nn.relu(x @ params[f"w{i}"] + params[f"b{i}"])
    return ((x @ params[f"w{last}"] + params[f"b{last}"] - y) ** 2).mean()


def maml_of_jax(params):
    import jax
    import optax

    support, query = (tuple(map(in_jax, data)) for data in sine_tasks())
    params = in_jax(params)
    # optax's root is NaN where a gradient is 0, as a ReLU's is; this much changes no digit
    optimizer = optax.adam(0.01, eps_root=1e-20)

    def task_loss(params, support, query):
        state = optimizer.init(params)
        for _ in range(INNER):
            updates, state = optimizer.update(jax.grad(loss_of_jax)(params, *support), state, params)
            params = optax.apply_updates(params, updates)
        return loss_of_jax(params, *query)

    gradient = jax.jit(jax.grad(lambda p: jax.vmap(task_loss, (None, 0, 0))(p, support, query).mean()))
    return lambda: jax.block_until_ready(gradient(params))


def sweep_data():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(64, 8, generator=generator), torch.randn(64, 1, generator=generator)


def sweep(params, compile=False):
    inner = fo.meta.unroll(loss, fo.adam(), STEPS, compile=compile)
    data, rates = sweep_data(), torch.logspace(-4, 0, RATES)
    train = torch.vmap(lambda lr: inner(params, {"lr": lr}, data).params)
    if compile:
        train = fo.meta.compiled(train)

    def run():
        with torch.no_grad():
            return train(rates)

    return run


def sweep_of_torch(params):
    (x, y), rates = sweep_data(), torch.logspace(-4, 0, RATES).tolist()

    def run():
        finals = []
        for lr in rates:
            leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
            optimizer = torch.optim.Adam(leaves.values(), lr=lr)
            for _ in range(STEPS):
                optimizer.zero_grad()
                loss(leaves, x, y).backward()
                optimizer.step()
            finals.append(leaves)
        return {name: torch.stack([final[name].detach() for final in finals]) for name in params}

    return run


def sweep_of_jax(params):
    import jax
    import optax

    data, rates, params = tuple(map(in_jax, sweep_data())), in_jax(torch.logspace(-4, 0, RATES)), in_jax(params)

    def train(lr):
        optimizer = optax.adam(lr)

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss_of_jax)(params, *data), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=STEPS)[0][0]

    run = jax.jit(jax.vmap(train))
    return lambda: jax.block_until_ready(run(rates))


def few_shot_problem():
    """The loss, first parameters, images and classes of the tasks, and the network."""
    from torch import nn

    torch.manual_seed(0)
    blocks = [[nn.Conv2d(c, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.ReLU(), nn.MaxPool2d(2)] for c in (1, 32, 32)]
    net = nn.Sequential(*itertools.chain(*blocks), nn.Flatten(), nn.Linear(288, 5))
    loss, params = fo.meta.from_module(net, nn.functional.cross_entropy)
    tasks = list(zip(torch.randn(5, 25, 1, 28, 28), torch.randint(0, 5, (5, 25)), strict=True))
    return loss, params, tasks, net


def few_shot_total(train, loss, tasks):
    """The mean over tasks of the loss after training on them, as a function of the first parameters."""
    return lambda params: sum(loss(train(params, task), *task) for task in tasks) / len(tasks)


def few_shot(compile=False):
    """Parameters to the gradient."""
    loss, _, tasks, _ = few_shot_problem()
    inner = fo.meta.unroll(loss, fo.sgd(), INNER, compile=compile)
    query_loss = fo.meta.compiled(loss) if compile else loss
    total = few_shot_total(lambda params, task: inner(params, {"lr": 0.01}, task).params, query_loss, tasks)
    return fo.meta.compiled(torch.func.grad(total)) if compile else lambda params: by_backward(total, params)


def few_shot_by_hand():
    _, _, tasks, net = few_shot_problem()

    def loss(params, images, classes):
        return torch.nn.functional.cross_entropy(torch.func.functional_call(net, params, images), classes)

    def train(params, task):
        for _ in range(INNER):
            grads = torch.autograd.grad(loss(params, *task), list(params.values()), create_graph=True)
            params = {name: p - 0.01 * g for (name, p), g in zip(params.items(), grads, strict=True)}
        return params

    total = few_shot_total(train, loss, tasks)
    return lambda params: by_backward(total, params)


def loss_of_jax_few_shot(params, images, classes):
    """The same network as `few_shot_problem`'s, by the names of its parameters."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    x = images
    for i in (0, 4, 8):
        x = lax.conv_general_dilated(x, params[f"{i}.weight"], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
        x = x + params[f"{i}.bias"][:, None, None]
        groups = x.reshape(x.shape[0], 8, -1)
        mean, variance = groups.mean(-1, keepdims=True), groups.var(-1, keepdims=True)
        x = ((groups - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape)
        x = jax.nn.relu(x * params[f"{i + 1}.weight"][:, None, None] + params[f"{i + 1}.bias"][:, None, None])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    logits = x.reshape(x.shape[0], -1) @ params["13.weight"].T + params["13.bias"]
    return -jax.nn.log_softmax(logits)[jnp.arange(len(classes)), classes].mean()


def few_shot_of_jax():
    """Tasks and steps written out, as `maml_of_jax`'s: within a scan XLA's convolutions on a CPU take half as long again."""
    import jax
    import optax

    _, params, tasks, _ = few_shot_problem()
    optimizer = optax.sgd(0.01)

    def train(params, task):
        state = optimizer.init(params)
        for _ in range(INNER):
            updates, state = optimizer.update(jax.grad(loss_of_jax_few_shot)(params, *task), state, params)
            params = optax.apply_updates(params, updates)
        return params

    total = few_shot_total(train, loss_of_jax_few_shot, [tuple(map(in_jax, task)) for task in tasks])
    gradient, first = jax.jit(jax.grad(total)), in_jax(params)
    return lambda params: jax.block_until_ready(gradient(first))


def by_backward(function, params):
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    return dict(zip(leaves, torch.autograd.grad(function(leaves), list(leaves.values())), strict=True))


# Contestants, and (over, under, bound, whether the ratio should be above it).
def maml_contestants():
    params = network(1, 40, 40, 1)
    eager, compiled = maml(), maml(compile=True)
    return {
        "TorchOpt": maml_of_torchopt(params),
        "eager": lambda: eager(params),
        "compiled": lambda: compiled(params),
        "JAX": maml_of_jax(params),
    }


def sweep_contestants():
    params = network(8, 32, 1)
    return {
        "torch.optim": sweep_of_torch(params),
        "eager": sweep(params),
        "compiled": sweep(params, compile=True),
        "JAX": sweep_of_jax(params),
    }


def few_shot_contestants():
    params = few_shot_problem()[1]
    ways = {"by hand": few_shot_by_hand(), "eager": few_shot(), "compiled": few_shot(compile=True), "JAX": few_shot_of_jax()}
    return {who: functools.partial(way, params) for who, way in ways.items()}


PROGRAMS = {
    "MAML": (
        maml_contestants,
        [("TorchOpt", "eager", "≥ 10"), ("TorchOpt", "compiled", "≥ 90"), ("compiled", "JAX", "≤ 1.0")],
    ),
    "few-shot": (
        few_shot_contestants,
        [("eager", "by hand", "≤ 1.1"), ("compiled", "by hand", "≤ 0.6"), ("compiled", "JAX", "≤ 1.0")],
    ),
    "sweep": (
        sweep_contestants,
        [("torch.optim", "eager", "≥ 14"), ("torch.optim", "compiled", "≥ 35"), ("compiled", "JAX", "≤ 1.2")],
    ),
}
# What does not run on one.
THREADS = {"few-shot": 2}
# The slow contestants run in every n-th round.
EVERY = {"TorchOpt": 8, "torch.optim": 8, "eager": 2}


def compare(name, rounds, clock):
    make, ratios = PROGRAMS[name]
    torch.set_num_threads(THREADS.get(name, 1))
    contestants = make()
    results = {who: contestant() for who, contestant in contestants.items()}
    times = {who: {} for who in contestants}
    for i in range(rounds):
        for who, contestant in contestants.items():
            if i % EVERY.get(who, 1) == 0:
                start = clock()
                contestant()
                times[who][i] = clock() - start
    medians = {who: statistics.median(seconds.values()) for who, seconds in times.items()}
    print(f"\n### {name}: " + ", ".join(f"{who} {seconds * 1e3:.3g} ms" for who, seconds in medians.items()) + "\n")
    print("| time of / time of | ratio of medians | quartiles | goal |\n|---|--:|--:|--:|")
    for over, under, goal in ratios:
        each = [times[over][i] / times[under][i] for i in times[over].keys() & times[under].keys()]
        low, _, high = statistics.quantiles(each)
        print(f"| {over} / {under} | {medians[over] / medians[under]:.2f} | {low:.2f} … {high:.2f} | {goal} |")
    reference = results["eager"]
    for who in ("torch.optim", "by hand", "compiled", "JAX"):
        if who in results:
            found = {k: x if isinstance(x, torch.Tensor) else torch.tensor(np.array(x)) for k, x in results[who].items()}
            worst = max(float((found[k] - reference[k]).abs().max() / reference[k].abs().max()) for k in reference)
            print(f"\n{who} differs from eager by {worst:.1e} of the largest element.")


FIRST_CALL = """
import sys, time; sys.path.insert(0, {folder!r})
from bench_meta import few_shot, few_shot_problem, maml, network
gradient, params = {program}
start = time.perf_counter()
gradient(params)
print(time.perf_counter() - start)
"""


PROGRAM_OF = {
    **{f"MAML, {n} inner steps": f"maml(steps={n}, compile=True), network(1, 40, 40, 1)" for n in (10, 1000)},
    f"few-shot, {INNER} inner steps": "few_shot(compile=True), few_shot_problem()[1]",
}


def first_calls():
    print("\n### First call of what is compiled, with an empty compiler cache and from the cache\n")
    print("| program | cold | from the cache |\n|--|--:|--:|")
    cold = []
    for name, program in PROGRAM_OF.items():
        with tempfile.TemporaryDirectory() as cache:
            code = FIRST_CALL.format(folder=str(Path(__file__).parent), program=program)
            first, warm = (_measured(code, cache) for _ in range(2))
        cold.append(first)
        print(f"| {name} | {first:.1f} s | {warm:.1f} s |")
    print(f"\nMAML, 1000 steps over 10: {cold[1] / cold[0]:.2f} (at most 1.25); cold at most 12 s; few-shot at most 30 s.")


def _measured(code, cache):
    # the precompiled header is kept in the folder for temporary files
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TMPDIR": cache}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


def peak_memory():
    from meta_helpers import peak_bytes, peak_bytes_in_code

    params, data, lr = network(8, 128, 1), sweep_data(), torch.tensor(0.001)

    def peak(steps, remat, compile):
        inner = fo.meta.unroll(loss, fo.adam(), steps, remat=remat, compile=compile)
        gradient = torch.func.grad(lambda lr: loss(inner(params, {"lr": lr}, data).params, *data))
        if not compile:
            return peak_bytes(lambda: gradient(lr))
        program = fo.meta.compiled(gradient)
        program(lr)
        with tempfile.TemporaryDirectory() as folder:
            return peak_bytes_in_code(lambda: program(lr), Path(folder) / "trace.json")

    print("\n### Peak of the bytes in tensors, derivative of so many steps in the learning rate\n")
    print("| steps | remat | MiB | compiled, MiB |\n|--:|---|--:|--:|")
    cases = (10, False), (100, False), (100, True), (1000, True)
    eager, compiled = ({case: peak(*case, compile) for case in cases} for compile in (False, True))
    for steps, remat in cases:
        print(f"| {steps} | {remat} | {eager[steps, remat] / 2**20:.1f} | {compiled[steps, remat] / 2**20:.2f} |")
    for name, peaks in (("Eager", eager), ("Compiled", compiled)):
        print(f"\n{name}, 100 with remat over 100 without: {peaks[100, True] / peaks[100, False]:.3f} (at most 0.25); ", end="")
        print(f"1000 with remat over 10 without: {peaks[1000, True] / peaks[10, False]:.2f} (at most 4).")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="*", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--skip", nargs="*", choices=["compile", "memory"], default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {arguments.clock} time")
    for name in arguments.programs:
        compare(name, arguments.rounds, time.perf_counter if arguments.clock == "wall" else time.process_time)
    if "memory" not in arguments.skip:
        peak_memory()
    if "compile" not in arguments.skip:
        first_calls()


if __name__ == "__main__":
    main()
