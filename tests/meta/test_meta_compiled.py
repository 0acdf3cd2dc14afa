"""Compiled loops and functions: the same numbers as without the compiler, however they are differentiated and batched."""

import copy
import dataclasses
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from meta_helpers import close
from torch.autograd import forward_ad

import functional_optim as fo
from functional_optim import inductor, torch_internals, trees
from functional_optim.meta.routines import RUN

DOUBLE = {"dtype": torch.float64}
# float64; the compiler contracts multiplications and additions and sums in another order
SAME = {"rtol": 1e-10, "atol": 1e-12}


def loss(params, x, y):
    return ((torch.relu(x @ params["w"] + params["b"]) @ params["v"] - y) ** 2).mean()


def network():
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, **DOUBLE}
    return {"w": torch.randn(3, 4, **draw), "b": torch.randn(4, **draw), "v": torch.randn(4, 1, **draw)}


def tasks(n=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, 3, generator=generator, **DOUBLE), torch.randn(n, 5, 1, generator=generator, **DOUBLE)


PARAMS, TASKS = network(), tasks()
ONE = tuple(data[0] for data in TASKS)
LR = torch.tensor(0.1, **DOUBLE)


@pytest.fixture(scope="module")
def both():
    """A compiled loop and the same without the compiler, as functions of parameters, learning rate and data."""

    def after(inner):
        def run(params, lr, data=ONE):
            result = inner(params, {"lr": lr}, data)
            return loss(result.params, *data) + result.logs["loss"].sum()

        return run

    options = {"truncate": 2}
    return [after(fo.meta.unroll(loss, fo.adam(), 3, compile=compile, **options)) for compile in (True, False)]


WAYS = {
    "gradient per task": lambda f: torch.vmap(torch.func.grad(f, (0, 1)), (None, None, 0))(PARAMS, LR, TASKS),
    "gradient of the sum over tasks": lambda f: torch.func.grad(
        lambda p, lr: torch.vmap(f, (None, None, 0))(p, lr, TASKS).sum(), (0, 1)
    )(PARAMS, LR),
    "gradient": lambda f: torch.func.grad(f, (0, 1))(PARAMS, LR),
    "backward": lambda f: torch.autograd.grad(f(PARAMS, lr := LR.clone().requires_grad_()), lr),
    "jvp": lambda f: torch.func.jvp(lambda lr: f(PARAMS, lr), (LR,), (torch.ones_like(LR),)),
    "jacrev": lambda f: torch.func.jacrev(lambda lr: torch.stack([f(PARAMS, lr), f(PARAMS, 2 * lr)]))(LR),
    "forward over reverse": lambda f: torch.func.jacfwd(torch.func.grad(lambda lr: f(PARAMS, lr)))(LR),
    "reverse over reverse": lambda f: torch.func.grad(torch.func.grad(lambda lr: f(PARAMS, lr)))(LR),
    # as many results as tasks: neither batch may pass for the other
    "jacrev per task": lambda f: torch.vmap(
        torch.func.jacrev(lambda lr, task: torch.stack([f(PARAMS, lr, task), f(PARAMS, 2 * lr, task)])), (None, 0)
    )(LR, TASKS),
    "jacrev of tasks": lambda f: torch.func.jacrev(lambda lr: torch.vmap(f, (None, None, 0))(PARAMS, lr, TASKS))(LR),
    "forward over reverse of tasks": lambda f: torch.func.jacfwd(
        lambda lr: torch.vmap(torch.func.grad(f, 1), (None, None, 0))(PARAMS, lr, TASKS)
    )(LR),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_loop_is_the_loop(both, way):
    compiled, plain = map(WAYS[way], both)
    close(compiled, plain, **SAME)


@pytest.fixture
def made(monkeypatch):
    """The graphs that reach the compiler, counted at its door."""
    graphs, original = [], torch_internals.compile_fx_inner

    def counting(graph, *args, **kwargs):
        graphs.append(graph)
        return original(graph, *args, **kwargs)

    monkeypatch.setitem(vars(torch_internals), "compile_fx_inner", counting)
    return graphs


def test_one_compiled_step_serves_any_value_and_any_count_of_steps(made):
    """One program for two learning rates, and for segments of four and of three steps."""
    options = {"steps": 7, "remat": 4}
    tx = fo.sgd(momentum=0.9)
    inner, plain = (fo.meta.unroll(lambda p, x: (p * x).sum() ** 2, tx, compile=c, **options) for c in (True, False))
    p, x = torch.tensor([1.0, 2.0], **DOUBLE), torch.tensor([0.3, 0.1], **DOUBLE)
    for lr in (0.1, 0.02):
        found, expected = (train(p, {"lr": lr}, (x,)) for train in (inner, plain))
        close((found.params, found.state, found.logs), (expected.params, expected.state, expected.logs), **SAME)
    assert len(made) == 1


def task_gradient(steps, *, compile):
    """The gradient of a loss after some steps, summed over tasks; the loop is one of its own, which nobody else keeps."""

    def total(params, lr, x):
        inner = fo.meta.unroll(lambda p, x: (p["w"] @ x).square().sum(), fo.sgd(momentum=0.9), steps, compile=compile)

        def after(x):
            trained = inner(params, {"lr": lr}, (x,))
            return trained.params["w"].sum() + trained.logs["loss"].sum()

        return torch.vmap(after)(x).sum()

    return torch.func.grad(total, (0, 1))


def test_a_compiled_function_is_one_program_with_its_loops_in_it(made):
    """One step is compiled, and its transpose, however many the loop takes. Outside, all is differentiated and batched."""
    w, x = {"w": torch.tensor([[0.5, -1.0], [2.0, 0.3]], **DOUBLE)}, torch.randn(3, 2, **DOUBLE)
    lr, lrs = torch.tensor(0.01, **DOUBLE), torch.tensor([0.01, 0.02], **DOUBLE)
    for steps in (3, 6):
        plain, program = task_gradient(steps, compile=False), fo.meta.compiled(task_gradient(steps, compile=True))
        del made[:]
        close(program(w, lr, x), plain(w, lr, x), **SAME)
        *parts, program_graph = made
        assert len(parts) == 2
        assert len(program_graph.graph.find_nodes(op="call_function", target=RUN)) == 2
    close(torch.vmap(program, (None, 0, None))(w, lrs, x), torch.vmap(plain, (None, 0, None))(w, lrs, x), **SAME)
    twice, expected = (torch.func.grad(lambda lr, f=f: f(w, lr, x)[1])(lr) for f in (program, plain))
    close(twice, expected, **SAME)


@pytest.mark.parametrize("within", [lambda f: f, fo.meta.compiled, fo.meta.remat], ids=["", "compiled", "remat"])
def test_derivatives_of_any_order_and_mode(within):
    """Of x³, in every order of forward and reverse, also where it is compiled, or run again, within."""

    def forward(f):
        return lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]

    inner = within(lambda x: x * x * x)
    cube, x = fo.meta.compiled(lambda x: inner(x) * 1.0), torch.tensor(2.0, **DOUBLE)
    for modes in itertools.product((forward, torch.func.grad), repeat=3):
        second = modes[1](modes[0](cube))
        close((second(x), modes[2](second)(x)), (12.0 * torch.ones_like(x), 6.0 * torch.ones_like(x)), rtol=1e-12, atol=0)


def test_two_batches_around_a_loop_with_torchs_loss():
    net = torch.nn.Linear(2, 1).double()
    loss, params = fo.meta.from_module(net, torch.nn.functional.mse_loss)
    x, y = torch.randn(4, 2, **DOUBLE), torch.randn(4, 1, **DOUBLE)
    lrs, scales = torch.tensor([0.1, 0.2, 0.3], **DOUBLE), torch.tensor([1.0, 2.0], **DOUBLE)

    def swept(compile):
        inner = fo.meta.unroll(loss, fo.sgd(), 2, compile=compile)
        final = torch.vmap(lambda lr, scale: inner(params, {"lr": lr * scale}, (x, y)).logs["loss"][-1], (0, None))
        return torch.vmap(final, (None, 0))(lrs, scales)

    close(swept(True), swept(False), **SAME)


def test_keyword_arguments_are_arguments():
    @fo.meta.compiled
    def function(x, *, k, power=2):
        return k["a"] * x**power

    x, k = torch.tensor(3.0), {"a": torch.tensor(2.0)}
    assert function(x, k=k) == 18 and function(x, k={"a": torch.tensor(4.0)}) == 36 and function(x, power=3, k=k) == 54
    assert torch.func.grad(lambda a: function(x, k={"a": a}))(torch.tensor(1.0)) == 9
    assert torch.func.grad(lambda a: fo.meta.remat(lambda x, *, k: k["a"] * x)(x, k={"a": a}))(torch.tensor(1.0)) == 3


def test_a_compiled_function_within_another_is_one_function_of_its_program(made):
    """Called thrice, it and its transpose are compiled once."""
    x = torch.tensor([0.5, -1.0], **DOUBLE)

    def total(wrapped):
        inner = wrapped(lambda x, c: (x * c).tanh().sum())
        return lambda x: sum(inner(x, c * x) for c in x.new_tensor([1.0, 2.0, 3.0]).unbind())

    program = fo.meta.compiled(torch.func.grad_and_value(total(fo.meta.compiled)))
    close(program(x), torch.func.grad_and_value(total(lambda f: f))(x), **SAME)
    (graph,) = made
    assert len(list(graph.children())) == 2
    assert len(graph.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph)) == 6


def test_what_a_part_returns_is_its_own():
    """The program around it may reuse that memory. An input, a view of it, one result twice, a part of it, a constant."""
    ones = torch.ones(2, **DOUBLE)

    def step(p, x):
        doubled = 2 * x
        return (p * x[0]).sum(), {"in": x, "row": x[0], "twice": (doubled, doubled), "part": doubled[1:], "ones": ones}

    def run(p, x, compile):
        inner = fo.meta.unroll(step, fo.sgd(), 2, has_aux=True, compile=compile)
        logs = inner(p, {"lr": 0.1}, (x,)).logs["aux"]
        return {name: trees.map_leaves(lambda y: (y * 3 + 1).exp(), value) for name, value in logs.items()}, logs

    p, x = torch.ones(2, **DOUBLE), torch.tensor([[0.1, 0.2], [0.3, 0.4]], **DOUBLE)
    whole = fo.meta.compiled(lambda p, x: run(p, x, compile=True))
    close(whole(p, x), run(p, x, compile=False), **SAME)


def test_quotients_and_transposed_products():
    """Computed with reciprocals and with the factors swapped, where that is the same: for a divisor of 0 or ∞ too."""

    def function(a, b, x, d):
        return (a @ b).mT, (a @ b).mT @ a, (b.mT @ b) + (b.mT @ b).mT, x / d, 1 / d, x.sum() / d, d / d.sum()

    a, b = torch.randn(2, 3, 4, **DOUBLE), torch.randn(2, 4, 3, **DOUBLE)
    x, d = torch.tensor([1.0, -2.0, 3.0], **DOUBLE), torch.tensor([0.0, math.inf, 3.0], **DOUBLE)
    close(fo.meta.compiled(function)(a, b, x, d), function(a, b, x, d), **SAME, equal_nan=True)
    close(fo.meta.compiled(function)(a[0], b[0], x, x), function(a[0], b[0], x, x), **SAME)


def test_what_is_no_tensor_among_the_results_belongs_to_the_shapes():
    function = fo.meta.compiled(lambda x: [x.shape[0], *x.unbind()])
    for n in (2, 3, 1, 2):
        x = torch.arange(float(n))
        assert function(x) == [n, *x.unbind()]


def test_numbers_that_are_equal_are_not_the_same():
    function = fo.meta.compiled(lambda x, n: x / n if isinstance(n, float) else x * n)
    for n in (1, 1.0, True, 0.0, -0.0):
        torch.testing.assert_close(function(torch.tensor(3), n), torch.tensor(3) / n if isinstance(n, float) else torch.tensor(3))


def test_what_may_change_unseen_is_refused():
    with pytest.raises(TypeError, match="holds a ndarray"):
        fo.meta.compiled(lambda x, weights: x * torch.as_tensor(weights))(torch.ones(2), np.ones(2))


def test_the_precision_is_that_of_the_call():
    function, x = fo.meta.compiled(lambda x: (x @ x, torch.ones(2))), torch.eye(2)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            assert function(x)[0].dtype == dtype
        assert function(x)[0].dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert function(x)[1].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_lazily_negated_argument_is_negated():
    x = torch.tensor([1 + 2j]).conj().imag
    assert x.is_neg() and x.is_contiguous()
    assert fo.meta.compiled(lambda x: x * 2)(x).tolist() == [-4.0]


def test_what_is_returned_may_be_written_to_before_the_derivative_is_taken():
    """The new moments are both returned and what Adam's transpose wants."""
    slopes = []
    for compile in (True, False):
        lr = LR.clone().requires_grad_()
        trained = fo.meta.unroll(loss, fo.adam(), 2, compile=compile)(PARAMS, {"lr": lr}, ONE)
        total = sum(x.sum() for x in trained.params.values()) * 1.0
        with torch.no_grad():
            for x in filter(torch.is_floating_point, trees.leaves(tuple(trained))):
                x.zero_()
        slopes.append(torch.autograd.grad(total, lr))
    close(*slopes, **SAME)


def test_an_interrupted_compilation_is_made_up_for(monkeypatch):
    function = fo.meta.compiled(lambda x: {"double": x * 2})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(inductor, "lowered", interrupted)
        function(torch.ones(2))
    assert function(torch.ones(2))["double"].tolist() == [2.0, 2.0]


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


def square(p, x):
    return (p * x).sum() ** 2


COPIES = {"deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": lambda inner: pickle.loads(pickle.dumps(inner))}


@pytest.mark.parametrize("way", COPIES)
def test_a_compiled_loop_can_be_copied(way):
    inner, args = fo.meta.unroll(square, fo.sgd(), 2, compile=True), (torch.ones(2), {"lr": 0.1}, (torch.ones(2),))
    close(inner(*args).params, COPIES[way](inner)(*args).params, **SAME)


def test_a_compiled_loop_with_another_loss_is_another_loop():
    inner, args = fo.meta.unroll(square, fo.sgd(), 2, compile=True), (torch.ones(2), {"lr": 0.1}, (torch.ones(2),))
    inner(*args)
    other = dataclasses.replace(inner, loss_fn=lambda p, x: (p * x).sum())
    close(other(*args).params, torch.full((2,), 0.8), rtol=1e-6, atol=0)


def test_random_numbers_are_refused():
    with pytest.raises(ValueError, match="draws random numbers"):
        fo.meta.compiled(lambda x: x * torch.rand(2))(torch.ones(2))


NORM = torch.nn.BatchNorm1d(3, affine=False)


@pytest.mark.parametrize("function", [NORM.forward, lambda x: NORM.running_mean.add_(x.sum(0))], ids=["module", "buffer"])
def test_writing_to_what_is_no_argument_is_refused(function):
    with pytest.raises(ValueError, match="writes to a tensor that it closes over"):
        fo.meta.compiled(lambda x: function(x))(torch.ones(4, 3))


def test_what_is_no_argument_may_be_read_by_what_writes():
    ones = torch.ones(3)
    found = fo.meta.compiled(lambda x: torch.zeros(3).copy_(ones).add_(x).add_(ones))(ones)
    assert found.tolist() == [3.0] * 3


@pytest.mark.parametrize("function", [lambda x: x if x.sum() > 0 else -x, lambda x: x[x > 0], lambda x: x * x[0].item()])
def test_asking_for_values_is_refused(function):
    with pytest.raises(ValueError, match=r"asks for a value in a tensor \(aten.*torch.where"):
        fo.meta.compiled(function)(torch.ones(2))


def squares(w):
    """A compiled loop whose loss closes over `w`."""
    return fo.meta.unroll(lambda p: (w * p).sum() ** 2, fo.sgd(), 2, compile=True)(torch.ones(2), {"lr": 0.1}).params.sum()


@pytest.mark.parametrize(
    ("around", "is_being"),
    [
        (torch.func.grad, "closes over 'w', which is being differentiated"),
        (torch.vmap, "closes over 'w', which is being batched"),
        (fo.meta.compiled, "closes over a tensor that the function around it computes"),
    ],
)
def test_closing_over_what_is_no_constant_is_refused(around, is_being):
    with pytest.raises(ValueError, match=is_being):
        around(squares)(torch.ones(2))


@pytest.mark.parametrize("made", [fo.meta.compiled, fo.meta.remat])
def test_what_is_no_function_is_refused(made):
    with pytest.raises(TypeError, match=rf"{made.__name__} got a Tensor: expected a function, as in {made.__name__}\(function\)"):
        made(torch.ones(2))


@pytest.mark.parametrize("kind", ["function", "module"])
def test_what_torch_compiles_is_refused_and_what_it_leaves_alone_is_not(kind):
    given = squares if kind == "function" else torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"what torch\.compile returned.*give the function itself"):
        fo.meta.compiled(torch.compile(given))
    fo.meta.compiled(torch.compiler.disable(squares))


@pytest.mark.parametrize("made", [fo.meta.compiled, fo.meta.remat])
def test_forward_mode_by_hand_says_to_take_torchs_function(made):
    double = made(lambda x: x * 2)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="Take torch.func.jvp"):
        double(forward_ad.make_dual(torch.ones(2), torch.ones(2)))
