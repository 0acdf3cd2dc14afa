"""Compiled loops and functions: the same numbers as without the compiler, however they are differentiated and batched."""

import pytest
import torch
from meta_helpers import close

import functional_optim as fo

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
}


@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_loop_is_the_loop(both, way):
    compiled, plain = map(WAYS[way], both)
    close(compiled, plain, **SAME)


def test_one_compiled_step_serves_any_value_and_any_count_of_steps(monkeypatch):
    """Counted at the compiler's door: one program for two learning rates, and for segments of four and of three steps."""
    import torch._inductor.compile_fx as compiler

    made, original = [], compiler.compile_fx_inner

    def counting(*args, **kwargs):
        made.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(compiler, "compile_fx_inner", counting)
    options = {"steps": 7, "remat": 4}
    tx = fo.sgd(momentum=0.9)
    inner, plain = (fo.meta.unroll(lambda p, x: (p * x).sum() ** 2, tx, compile=c, **options) for c in (True, False))
    p, x = torch.tensor([1.0, 2.0], **DOUBLE), torch.tensor([0.3, 0.1], **DOUBLE)
    for lr in (0.1, 0.02):
        found, expected = (train(p, {"lr": lr}, (x,)) for train in (inner, plain))
        close((found.params, found.state, found.logs), (expected.params, expected.state, expected.logs), **SAME)
    assert len(made) == 1


def test_random_numbers_are_refused():
    with pytest.raises(ValueError, match="draws random numbers"):
        fo.meta.compiled(lambda x: x * torch.rand(2))(torch.ones(2))


def test_closing_over_what_is_differentiated_is_refused():
    x = torch.ones(2)
    with pytest.raises(ValueError, match="closes over 'w', which is being differentiated"):
        torch.func.grad(lambda w: fo.meta.compiled(lambda x: (w * x).sum())(x))(x)
