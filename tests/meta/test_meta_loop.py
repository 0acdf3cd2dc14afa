"""`loop` of any step: the numbers and derivatives of the same loop by hand, whatever is done with it, compiled too."""

import pytest
import torch
from meta_helpers import close, peak_bytes, peak_bytes_in_code
from torch import func

import functional_optim as fo
from functional_optim import torch_internals
from functional_optim.meta.tracing import forward_part
from functional_optim.philox import normal

DOUBLE = {"dtype": torch.float64}
# The same operations in the same order; compiled, multiplications and additions are contracted.
SAME = {"rtol": 1e-9, "atol": 1e-11}
STEPS = 7


def step(state, x, c, lr):
    """A state of two vectors and a count, with something to log."""
    a, b, n = state
    a = a + lr * torch.tanh(b.flip(0) + x) * c
    b = b - lr * a.sin() * x.sum()
    return (a, b, n + 1), {"product": (a * b).sum(), "n": n}


def tensors():
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 3, generator=generator, **DOUBLE)
    return a, b, c, torch.tensor(0.3, **DOUBLE), torch.randn(STEPS, 3, generator=generator, **DOUBLE)


A, B, C, LR, XS = tensors()


def by_hand(step, state, steps, xs, args, truncate=None):
    rows = []
    for k in range(steps):
        if truncate and k and k % truncate == 0:
            state = tuple(x.detach() for x in state)
        state, row = step(state, xs[k], *args)
        rows.append(row)
    return state, {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def total(run, **options):
    """A number of each result of the loop, as a function of all that goes into it."""

    def function(a, c, lr, xs):
        (a, b, _), logs = run(step, (a, B, torch.tensor(0)), STEPS, xs, args=(c, lr), **options)
        return (a * b).sum() + logs["product"].square().sum()

    return function


PAIR = torch.stack([A, C])
WAYS = {
    "value": lambda f: f(A, C, LR, XS),
    "gradient": lambda f: func.grad(f, (0, 1, 2, 3))(A, C, LR, XS),
    "forward": lambda f: func.jvp(lambda *some: f(*some, XS), (A, C, LR), (C, A, LR)),
    "forward, entries": lambda f: func.jvp(lambda xs: f(A, C, LR, xs), (XS,), (XS.flip(0),)),
    "gradient per learning rate": lambda f: torch.vmap(func.grad(f, (0, 2)), (None, None, 0, None))(
        A, C, torch.stack([LR, 2 * LR]), XS
    ),
    "gradient of a batch": lambda f: func.grad(lambda lr: torch.vmap(f, (0, None, None, None))(PAIR, C, lr, XS).sum())(LR),
    "batches within batches": lambda f: torch.vmap(torch.vmap(f, (None, 0, None, None)), (0, None, None, None))(
        PAIR, PAIR, LR, XS
    ),
    "Hessian": lambda f: func.hessian(f, 1)(A, C, LR, XS),
    "Hessians of a batch": lambda f: torch.vmap(func.hessian(f, 2), (0, None, None, None))(PAIR, C, LR, XS),
    "gradient of gradients": lambda f: func.grad(lambda c: sum(x.square().sum() for x in func.grad(f, (1, 2))(A, c, LR, XS)))(C),
    "forward twice": lambda f: func.jacfwd(func.jacfwd(f, 1), 2)(A, C, LR, XS),
    "reverse over forward": lambda f: func.jacrev(func.jacfwd(f, 2), 1)(A, C, LR, XS),
    "third": lambda f: func.grad(func.grad(func.grad(f, 2), 2), 2)(A, C, LR, XS),
    "gradient of Hessians of a batch": lambda f: func.grad(
        lambda lr: torch.vmap(lambda a: func.grad(func.grad(f, 2), 2)(a, C, lr, XS))(PAIR).sum()
    )(LR),
}
OPTIONS = [{}, {"truncate": 3}]
NAMES = ["", "truncated"]


@pytest.mark.parametrize("options", [*OPTIONS, {"remat": True}, {"remat": 3}], ids=[*NAMES, "remat", "remat 3"])
@pytest.mark.parametrize("way", WAYS)
def test_the_same_as_a_loop_by_hand(way, options):
    expected = {name: value for name, value in options.items() if name != "remat"}
    close(WAYS[way](total(fo.meta.loop, **options)), WAYS[way](total(by_hand, **expected)), **SAME)


# Each compiles for seconds.
USUAL = {("gradient", "truncated"), ("forward", ""), ("gradient of gradients", "truncated")}


@pytest.mark.parametrize(
    ("way", "named"),
    [pytest.param(way, n, marks=[] if (way, n) in USUAL else pytest.mark.full) for way in WAYS for n in NAMES],
)
def test_compiled_it_is_the_same(way, named):
    options = OPTIONS[NAMES.index(named)]
    found = fo.meta.compiled(lambda: WAYS[way](total(fo.meta.loop, **options)))()
    close(found, WAYS[way](total(by_hand, **options)), **SAME)


def test_the_trace_of_hessians_of_a_batch_computes_them():
    """The step and its derivatives are written out, and the graph runs without the compiler."""

    def function(pair):
        return (torch.vmap(lambda a: func.hessian(lambda lr: (lr * a.sin() - XS[0]).sin().sum())(LR))(pair),)

    part, _ = forward_part(function, [PAIR], "Hessians")
    close(part.views(PAIR, *part.graph(PAIR)), list(function(PAIR)), **SAME)


def operations(monkeypatch, function):
    """How many operations there are in what a function becomes: in the program, and in the steps that it runs."""
    graphs, original = [], torch_internals.compile_fx_inner

    def counting(graph, *args, **kwargs):
        graphs.append(sum(len(inner.graph.nodes) for inner in graph.modules() if isinstance(inner, torch.fx.GraphModule)))
        return original(graph, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setitem(vars(torch_internals), "compile_fx_inner", counting)
        fo.meta.compiled(function)(torch.tensor(0.1, **DOUBLE))
    return sorted(graphs)


def decay(state, i, rate):
    for _ in range(2):
        state = state - rate * torch.sin(state * state) * torch.cos(state)
    return state, None


DERIVATIVES = {
    "gradient": func.grad,
    "tangent": lambda f: lambda rate: func.jvp(f, (rate,), (rate,))[1],
    "second": lambda f: func.grad(func.grad(f)),
}


@pytest.mark.parametrize("which", [pytest.param(n, marks=[] if n == "second" else pytest.mark.full) for n in DERIVATIVES])
def test_a_step_and_its_derivatives_are_in_the_program_once(monkeypatch, which):
    """However many steps there are: a loop is one operation."""

    def size(steps):
        def last(rate):
            return fo.meta.loop(decay, torch.ones((), **DOUBLE), steps, args=(rate,))[0]

        return operations(monkeypatch, DERIVATIVES[which](last))

    assert size(2) == size(40)


def test_what_a_loop_got_and_returned_may_be_written_over():
    """The program does, and the transpose wants it: a carry that stays, that is an argument, an entry, or there twice."""

    def step(state, x, c):
        a, b, last, same, _, _ = state
        a = a * (b * c).sin() * same
        return (a, b, x, c, a, a), a * last

    def total(a, c, xs):
        a = 2 * a
        state, ys = fo.meta.loop(step, (a, a + 1, 2 * xs[0], 3 * c, a, 2 * a), STEPS, 2 * xs, args=(4 * c,))
        for _ in range(4):  # products lie in memory of their own, as large as that of the entries
            ys = ys.sin() @ torch.outer(c, c)
        return ((sum(state) + a).exp() * ys).sum()

    gradient = func.grad(total, (0, 1, 2))
    close(fo.meta.compiled(gradient)(A, C, XS), gradient(A, C, XS), **SAME)


def test_remat_keeps_the_states_between_segments_alone():
    def gradient(remat, steps=100):
        return func.grad(lambda rate: fo.meta.loop(decay, torch.ones(1000, **DOUBLE), steps, args=(rate,), remat=remat)[0].sum())

    rate = torch.tensor(0.1, **DOUBLE)
    close(gradient(True)(rate), gradient(False)(rate), **SAME)
    assert peak_bytes(lambda: gradient(True)(rate)) < peak_bytes(lambda: gradient(False)(rate)) / 3
    assert peak_bytes(lambda: gradient(True, 400)(rate)) < 2.5 * peak_bytes(lambda: gradient(True)(rate))


def test_until_each_ends_by_itself():
    """Newton's root of each number of a batch, to a precision; the index is what the step gets."""

    def newton(state, i, target):
        x, count = state
        return (x - (x * x - target) / (2 * x), i + 1), x

    def near(state):
        return (state[0] * state[0] - 9).abs() < 1e-2

    def root(x):
        return fo.meta.loop(newton, (x, torch.tensor(0)), 20, args=(9.0,), until=near)[0]

    def counted(x):
        for k in range(20):
            if abs(x * x - 9) < 1e-2:
                return x, k
            x = x - (x * x - 9) / (2 * x)
        raise AssertionError

    starts = [3.0, 4.0, 50.0, 0.1]
    found, steps = torch.vmap(root)(torch.tensor(starts, **DOUBLE))
    assert list(zip(found.tolist(), steps.tolist(), strict=True)) == [pytest.approx(counted(x), rel=1e-12) for x in starts]
    slope = func.grad(lambda x: root(x)[0])(torch.tensor(3.0, **DOUBLE))
    assert slope == 1, "which takes no step"


@pytest.mark.parametrize(
    ("differentiate", "compiles"), [(func.grad, False), (func.jacfwd, False), (func.hessian, False), (func.grad, True)]
)
def test_what_ended_may_be_where_a_step_is_not_finite(differentiate, compiles):
    """x − r √x falls below 0 in three steps or in two, where the next is NaN; derivatives are those of the steps before."""

    def fall(x, i, rate, scale):
        return x - rate * scale * x.sqrt(), x.sqrt()

    def end(given):
        x, rate = given
        args = rate, torch.ones_like(rate).detach()
        last, roots = fo.meta.loop(fall, x, 6, args=args, until=lambda x: x < 0)
        return last + torch.where(roots.isnan(), 0.0, roots).sum()

    def by_hand(given):
        x, rate = given
        total = 0.0
        while x > 0:
            total = total + x.sqrt()
            x = x - rate * x.sqrt()
        return x + total

    starts = torch.tensor([[4.0, 1.0], [4.0, 1.5]], **DOUBLE)
    found = torch.vmap(differentiate(end))
    expected = torch.stack([differentiate(by_hand)(start) for start in starts])
    close((fo.meta.compiled(found) if compiles else found)(starts), expected, **SAME)


def test_a_loop_within_a_loop():
    def outer(run):
        def row(state, x, rate):
            inner, seen = run(lambda s, y, rate: (s * rate + y, {"s": s}), state, 3, x, (rate,))
            return inner, {"mean": seen["s"].mean()}

        def function(rate):
            last, logs = run(row, A, 2, XS[:6].reshape(2, 3, 3), (rate,))
            return last.sum() + logs["mean"].sum()

        return function

    def ours(step, state, steps, xs, args):
        return fo.meta.loop(step, state, steps, xs, args=args)

    close(func.grad(outer(ours))(LR), func.grad(outer(by_hand))(LR), **SAME)
    close(fo.meta.compiled(func.grad(outer(ours)))(LR), func.grad(outer(by_hand))(LR), **SAME)


def test_inside_the_compiler_of_torch():
    """There it is Python's loop."""
    found = torch.compile(func.grad(total(fo.meta.loop, truncate=3), (0, 2)), fullgraph=True, backend="eager")(A, C, LR, XS)
    close(found, func.grad(total(by_hand, truncate=3), (0, 2))(A, C, LR, XS), **SAME)


def test_an_average_of_weights_while_training():
    """A step of Adam and an average of its parameters, beside the optimizer with a loop by hand."""
    tx, decay = fo.adam(), 0.9

    def objective(p, x):
        return ((p * x).sum() - 1) ** 2

    def train(state, x, lr):
        p, slots, average = state
        updates, slots = tx.update(func.grad(objective)(p, x), slots, p, {"lr": lr})
        p = fo.apply_updates(p, updates)
        return (p, slots, decay * average + (1 - decay) * p), None

    (_, _, found), _ = fo.meta.loop(train, (A, tx.init_state(A), A), STEPS, XS, args=(0.1,))
    p = A.clone().requires_grad_()
    optimizer, average = torch.optim.Adam([p], lr=0.1), A
    for x in XS:
        optimizer.zero_grad()
        objective(p, x).backward()
        optimizer.step()
        average = decay * average + (1 - decay) * p.detach()
    torch.testing.assert_close(found, average, rtol=1e-10, atol=1e-12)


def test_noise_by_the_index_of_the_step():
    """A walk with a key that is an argument: as many walks as keys, each the one that its key has alone."""

    def walk(state, i, key):
        return state + normal((2,), key, i, stream=0), None

    def end(key):
        return fo.meta.loop(walk, torch.zeros(2, **DOUBLE), 5, args=(key,))[0]

    keys = torch.tensor([3, 4])
    both = torch.vmap(end)(keys)
    assert torch.equal(both, torch.stack([end(key) for key in keys]))
    assert not torch.equal(both[0], both[1])


REFUSED = {
    "steps": (lambda: fo.meta.loop(decay, A, 0), ValueError, "steps = 0"),
    "no pair": (lambda: fo.meta.loop(lambda s, x: s, A, 2), TypeError, r"returned a Tensor: expected a pair \(state, y\)"),
    "shape": (lambda: fo.meta.loop(lambda s, x: ([s[0], A[:2]], 0), [A, A], 2), ValueError, r"state\[1\] has shape \(3,\)"),
    "dtype": (lambda: fo.meta.loop(lambda s, x: (s.float(), 0), A, 2), ValueError, "state has shape .*float64, but"),
    "structure": (lambda: fo.meta.loop(lambda s, x: ((s, s), 0), A, 2), ValueError, "does not have the structure"),
    "entries": (lambda: fo.meta.loop(decay, A, 3, xs=[A, A[:2]]), ValueError, r"xs holds a tensor of shape \(2,\)"),
    "closure": (
        lambda: func.grad(lambda lr: fo.meta.loop(lambda s, x: (s * lr, None), A, 2, remat=True)[0].sum())(LR),
        ValueError,
        "closes over 'lr', which is being differentiated",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    call, kind, message = REFUSED[what]
    with pytest.raises(kind, match=message):
        call()


def test_what_a_carry_hands_on_is_not_written_to():
    """A delay line, whose transpose wants what has since moved to another place; the program may write to what the loop gave."""

    def delay(state, x, w):
        a, b, c = state
        return (torch.sin(c) * w + 0.1 * x, a, b), (a * a * w).sum()

    def gradient(a, b, c, w):
        def objective(a, b, c, w):
            (p, q, r), y = fo.meta.loop(delay, (a, b, c), 5, args=(w,))
            value = (p * p + q * 3).sin() + (q.cumsum(0) * q).tanh() + r.softmax(0)
            return value.sum() + y.sum(), (p.flip(0) * 2 + 1).cos()

        return func.grad(objective, (0, 1, 2, 3), has_aux=True)(a, b, c, w)

    given = 0.5 * torch.randn(4, 33, generator=torch.Generator().manual_seed(1), **DOUBLE)
    close(fo.meta.compiled(gradient)(*given), gradient(*given), **SAME)


def test_a_number_in_the_state_that_changes_is_refused_where_it_would_be_a_constant():
    def counted(state, x):
        return {"k": state["k"] + 1, "a": state["a"] * state["k"]}, None

    def run(a):
        return fo.meta.loop(counted, {"k": 1, "a": a}, 3)[0]["a"]

    close(run(A), 6 * A, **SAME)
    with pytest.raises(ValueError, match=r"state\['k'\] is 1, of which the step made 2"):
        fo.meta.compiled(run)(A)


def test_a_step_that_closes_over_another_tensor_is_compiled_again():
    factor = torch.tensor(2.0, **DOUBLE)

    def scaled(a, i):
        return a * factor, None

    def program():
        return fo.meta.compiled(lambda a: fo.meta.loop(scaled, a, 3)[0])

    close(program()(A), 8 * A, **SAME)
    factor = torch.tensor(3.0, **DOUBLE)
    close(program()(A), 27 * A, **SAME)


def test_in_a_program_remat_has_the_insides_of_a_segment_in_memory_at_a_time(tmp_path):
    """Whose last is shorter than the others, whose derivatives end within them, batched and not."""

    def step(state, x, rate):
        state = torch.sin(rate * state) + x
        return state, state.sum()

    def trained(rate, state, xs, **options):
        last, sums = fo.meta.loop(step, state, steps=64, xs=xs, args=(rate,), truncate=25, **options)
        return last.square().sum() + sums.square().sum()

    def gradient(**options):
        def of_all(rates, state, xs):
            return torch.vmap(lambda rate: trained(rate, state, xs, **options))(rates).sum()

        return func.grad(of_all, (0, 1, 2))

    given = torch.tensor([0.9, 1.3], **DOUBLE), torch.linspace(-1, 1, 2048, **DOUBLE), torch.linspace(0, 0.1, 64, **DOUBLE)
    program = fo.meta.compiled(gradient(remat=10))
    close(program(*given), gradient()(*given), **SAME)
    # the states that 7 segments begin with, the insides of one, and what is under way; without `remat`, 64 and more
    states_of_a_step = 2 * 2048 * 8
    assert peak_bytes_in_code(lambda: program(*given), tmp_path / "trace.json") < 25 * states_of_a_step
