"""L-BFGS to a training loss beside `torch.optim.LBFGS`, and batches of problems beside a loop of SciPy.

    python tests/benchmarks/bench_solvers.py                        # all of it, ten minutes, most of them for the compiler
    python tests/benchmarks/bench_solvers.py --tasks network --sizes

Learnt are scikit-learn's digits, in float64, by logistic regression and by a network with a hidden layer. All have 10 pairs,
start at the same parameters, and end at the first evaluation that is low enough. They take turns; printed are the processor's
seconds of the fastest turn, of one thread, and evaluations.

The batch is 256 starts of Rosenbrock's function, compiled; SciPy's L-BFGS-B has the function and its gradient in NumPy.
"""

import argparse
import random
import time

import numpy as np
import scipy.optimize
import torch
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

import functional_optim as fo

PROBLEMS = 256


class Reached(Exception):
    """The loss is low enough."""


def digits():
    """Images, their classes."""
    found = load_digits()
    return torch.tensor(found.data / 16), torch.tensor(found.target)


def logistic(params, x, y):
    w, b = params
    return torch.nn.functional.cross_entropy(x @ w + b, y) + 5e-4 * (w * w).sum()


def network(params, x, y):
    v, a, w, b = params
    hidden = torch.tanh(x @ v + a)
    return torch.nn.functional.cross_entropy(hidden @ w + b, y) + 5e-5 * ((v * v).sum() + (w * w).sum())


def parameters(*sizes):
    generator = torch.Generator().manual_seed(0)
    for rows, columns in zip(sizes[:-1], sizes[1:], strict=True):
        yield torch.randn(rows, columns, dtype=torch.float64, generator=generator) / rows**0.5
        yield torch.zeros(columns, dtype=torch.float64)


# The loss, where to start, and how low it is to be: logistic regression to 1e-6 above its minimum.
TASKS = {
    "logistic": (logistic, [torch.zeros(64, 10, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)], None),
    "network": (network, [*parameters(64, 32, 10)], 0.022),
}


def by_class(optimizer_class):
    def run(fn, start):
        params = [p.clone().requires_grad_() for p in start]
        optimizer = optimizer_class(params, history_size=10, line_search_fn="strong_wolfe", max_iter=20)

        def closure():
            optimizer.zero_grad()
            loss = fn(params)
            loss.backward()
            return loss

        while True:
            optimizer.step(closure)

    return run


def by_minimize(fn, start):
    fo.minimize(fn, start, tol=0.0, max_steps=10_000)


CONTESTANTS = {
    "torch.optim.LBFGS": by_class(torch.optim.LBFGS),
    "fo.adapters.LBFGS": by_class(fo.adapters.LBFGS),
    "fo.minimize": by_minimize,
}


def train(run, loss, start, target, data):
    """Seconds, and evaluations, until the loss is low enough."""
    count = 0

    def fn(params):
        nonlocal count
        count += 1
        f = loss(params, *data)
        if float(f.detach()) <= target:
            raise Reached
        return f

    begin = time.process_time()
    try:
        run(fn, start)
    except Reached:
        return time.process_time() - begin, count
    raise RuntimeError(f"ended above {target}")


def training(names, rounds):
    data = digits()
    print("| task | contestant | evaluations | ms | ratio | µs an evaluation |\n|---|---|--:|--:|--:|--:|")
    for name in names:
        loss, start, target = TASKS[name]
        if target is None:
            target = float(fo.minimize(loss, start, data, tol=1e-10, max_steps=10_000).value) + 1e-6
        seconds, counts, order = {key: [] for key in CONTESTANTS}, {}, list(CONTESTANTS)
        for _ in range(rounds):
            random.shuffle(order)
            for key in order:
                taken, counts[key] = train(CONTESTANTS[key], loss, start, target, data)
                seconds[key].append(taken)
        best = {key: min(each) for key, each in seconds.items()}
        for key, taken in best.items():
            ratio, each = taken / best["torch.optim.LBFGS"], taken / counts[key]
            print(f"| {name} | {key} | {counts[key]} | {1e3 * taken:.1f} | {ratio:.2f} | {1e6 * each:.0f} |", flush=True)


def rosenbrock(x):
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def rosenbrock_in_numpy(x):
    """The value and the gradient."""
    a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    g = np.zeros_like(x)
    g[:-1] = -400 * x[:-1] * a - 2 * b
    g[1:] += 200 * a
    return float((100 * a * a + b * b).sum()), g


def batch(sizes, rounds):
    print("\n| variables | SciPy's evaluations | ours, of the longest | SciPy, s | ours, s | times faster | first call, s |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for size in sizes:
        starts = torch.randn(PROBLEMS, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        options = {"maxcor": 10, "ftol": 0, "gtol": 1e-6, "maxiter": 15_000, "maxfun": 15_000}
        begin, counts = time.process_time(), []
        for start in starts[:: PROBLEMS // 16].numpy():
            found = scipy.optimize.minimize(rosenbrock_in_numpy, start, jac=True, method="L-BFGS-B", options=options)
            counts.append(found.nfev)
        theirs = (time.process_time() - begin) * PROBLEMS / len(counts)

        def solve(starts, budget=8 * size + 200 if size < 50 else 660):
            return torch.vmap(lambda x: fo.minimize(rosenbrock, x, tol=1e-6, max_steps=budget, max_evals=budget))(starts)

        compiled, begin = fo.meta.compiled(solve), time.perf_counter()
        longest = int(compiled(starts).evaluations.max())
        first, seconds = time.perf_counter() - begin, []
        for _ in range(rounds):
            begin = time.process_time()
            compiled(starts)
            seconds.append(time.process_time() - begin)
        ours = min(seconds)
        cells = [size, round(np.mean(counts)), longest, f"{theirs:.2f}", f"{ours:.3f}", f"{theirs / ours:.1f}", f"{first:.0f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=[*TASKS])
    parser.add_argument("--sizes", nargs="*", type=int, default=[2, 10, 33, 100])
    parser.add_argument("--rounds", type=int, default=7, help="default %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    training(arguments.tasks, arguments.rounds)
    with threadpool_limits(1):  # NumPy's other threads would wait for work in SciPy's time.
        batch(arguments.sizes, arguments.rounds)


if __name__ == "__main__":
    main()
