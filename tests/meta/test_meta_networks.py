"""Derivatives of training real networks: layers of `torch.nn` × transforms × the ways to differentiate and to batch them."""

import pytest
import torch
import torch.nn.functional as F
from meta_helpers import close
from torch import nn
from torch.profiler import ProfilerActivity, profile

import functional_optim as fo
from functional_optim.meta.layers import composing

# float64: what two orders of summation differ by, after two steps
SAME = {"rtol": 1e-8, "atol": 1e-10}


class Reads(nn.Module):
    """A layer over (batch, time, 6), of whose result (…, 4 or 6) the mean over time goes into three classes."""

    def __init__(self, layer, features=6):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(features, 3)

    def forward(self, x):
        y = self.layer(x)
        return self.out((y[0] if isinstance(y, tuple) else y).mean(1))


class Attention(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.qkv, self.causal = nn.Linear(6, 18, bias=False), causal

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2)


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


class Cells(nn.Module):
    """The last states of a cell of each kind."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(6, 2), nn.GRUCell(6, 2), nn.RNNCell(6, 2)

    def forward(self, x):
        (h, c), g, r = [x.new_zeros(len(x), 2)] * 2, None, None
        for column in x.unbind(1):
            (h, c), g, r = self.lstm(column, (h, c)), self.gru(column, g), self.rnn(column, r)
        return torch.cat([h, g, r], -1).unsqueeze(1)


def bow(x):
    return (3 * x[..., 0].abs()).long().clamp(max=9)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 6)

    def forward(self, x):
        return self.table(bow(x))


def mlp(*middle):
    return lambda: nn.Sequential(nn.Linear(6, 8), *(make() for make in middle), nn.Linear(8, 3))


def image(*layers, features):
    return lambda: nn.Sequential(*(make() for make in layers), nn.Flatten(), nn.Linear(features, 3))


def conv(outputs=4, **options):
    return lambda: nn.Conv2d(1, outputs, 3, padding=1, **options)


def sequence(layer, features=6):
    return lambda: Reads(layer(), features)


def batch_norm(kind, n):
    return lambda: kind(n, track_running_stats=False)


VECTORS, SEQUENCES, IMAGES = (2, 5, 6), (2, 5, 2, 6), (2, 5, 1, 8, 8)
NETWORKS = {
    "relu": (mlp(nn.ReLU), VECTORS),
    "gelu": (mlp(nn.GELU), VECTORS),
    "silu, softplus": (mlp(nn.SiLU, nn.Softplus), VECTORS),
    "layer norm": (mlp(lambda: nn.LayerNorm(8), nn.Tanh), VECTORS),
    "layer norm without bias": (mlp(lambda: nn.LayerNorm(8, bias=False), nn.Tanh), VECTORS),
    "rms norm": (mlp(lambda: nn.RMSNorm(8), nn.Tanh), VECTORS),
    "batch norm": (mlp(batch_norm(nn.BatchNorm1d, 8), nn.Tanh), VECTORS),
    "batch norm of images": (image(conv(), batch_norm(nn.BatchNorm2d, 4), nn.Tanh, features=256), IMAGES),
    "instance norm": (image(conv(), lambda: nn.InstanceNorm2d(4, affine=True), nn.Tanh, features=256), IMAGES),
    "group norm": (image(conv(), lambda: nn.GroupNorm(2, 4), nn.Tanh, features=256), IMAGES),
    "stride, average pooling": (image(conv(stride=2), nn.ReLU, lambda: nn.AvgPool2d(2), features=16), IMAGES),
    "max-pooling": (image(conv(), nn.ReLU, lambda: nn.MaxPool2d(2), features=64), IMAGES),
    "adaptive pooling": (image(conv(), nn.ReLU, lambda: nn.AdaptiveAvgPool2d(1), features=4), IMAGES),
    "transposed convolution": (image(lambda: nn.ConvTranspose2d(1, 2, 3), nn.Tanh, features=200), IMAGES),
    "embedding": (sequence(Words), SEQUENCES),
    "attention": (sequence(lambda: Attention(causal=True)), SEQUENCES),
    "multi-head attention": (sequence(lambda: SelfAttention(6, 2, batch_first=True)), SEQUENCES),
    "encoder layer": (sequence(lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)), SEQUENCES),
    "lstm": (sequence(lambda: nn.LSTM(6, 4, batch_first=True), 4), SEQUENCES),
    "deep lstm": (sequence(lambda: nn.LSTM(6, 4, 2, proj_size=2, bidirectional=True, batch_first=True), 4), SEQUENCES),
    "gru": (sequence(lambda: nn.GRU(6, 4, batch_first=True), 4), SEQUENCES),
    "rnn": (sequence(lambda: nn.RNN(6, 4, 2, bias=False, batch_first=True), 4), SEQUENCES),
    "cells": (sequence(Cells), SEQUENCES),
    # Together, since a compilation takes long.
    "batch norm, max-pooling": (
        image(conv(), batch_norm(nn.BatchNorm2d, 4), nn.ReLU, lambda: nn.MaxPool2d(2), features=64),
        IMAGES,
    ),
    "layer norm, attention": (sequence(lambda: nn.Sequential(nn.LayerNorm(6), Attention(causal=True))), SEQUENCES),
}
TRANSFORMS = {
    "sgd": (fo.sgd(momentum=0.9), 0.3),
    "adam": (fo.adam(eps=1e-3), 0.05),
    "adamw with clipping": (fo.chain(fo.clip_by_global_norm(0.5), fo.adamw(eps=1e-3)), 0.05),
    "adafactor": (fo.adafactor(), 0.05),
    "muon": (fo.muon(ns_dtype=None), 0.05),
}


def problem(network, transform):
    """The query loss after two steps on a task, as a function of parameters and task; first parameters, and two tasks."""
    make, shape = NETWORKS[network]
    tx, lr = TRANSFORMS[transform]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make().double()
        tasks = torch.randn(shape, dtype=torch.float64), torch.randint(0, 3, shape[:2])
        params = {name: p.detach() for name, p in net.named_parameters()}
        direction = {name: torch.randn_like(p) for name, p in params.items()}
    loss, _ = fo.meta.from_module(net, F.cross_entropy)

    def after(compile):
        inner = fo.meta.unroll(loss, tx, steps=2, compile=compile)
        return lambda params, *task: loss(inner(params, {"lr": lr}, task).params, *task)

    return after, params, direction, tasks


def over_tasks(after, tasks):
    return lambda params: torch.vmap(after, (None, 0, 0))(params, *tasks).mean()


def in_turn(after, tasks):
    return lambda params: sum(after(params, *(data[i] for data in tasks)) for i in range(2)) / 2


def slope(gradient, direction):
    return sum((gradient[name] * direction[name]).sum() for name in direction)


def quotient(function, params, direction, step=1e-6):
    near, far = ({name: p + s * direction[name] for name, p in params.items()} for s in (-step, step))
    return (function(far) - function(near)) / (2 * step)


PLAIN = {
    *((network, "adam") for network in NETWORKS),
    *(("layer norm", transform) for transform in TRANSFORMS),
}
EVERY = [(network, transform) for network in NETWORKS for transform in TRANSFORMS]


def mostly_full(few):
    """All pairs of a network and a transform; `make test` has time for a few."""
    return [pytest.param(*pair, marks=[] if pair in few else pytest.mark.full, id="-".join(pair)) for pair in EVERY]


@pytest.mark.parametrize(("network", "transform"), mostly_full(PLAIN))
def test_derivatives(network, transform):
    """Reverse mode over tasks in turn is the difference quotient; over a batch of tasks, and in forward mode, it is the same."""
    after, params, direction, tasks = problem(network, transform)
    looped, batched = in_turn(after(compile=False), tasks), over_tasks(after(compile=False), tasks)
    gradient = torch.func.grad(looped)(params)
    # the quotient: 1e-16 of rounding over a step of 1e-6, some thousand operations; error of order step² times third derivatives
    close(slope(gradient, direction), quotient(looped, params, direction), rtol=1e-5, atol=1e-7)
    close(torch.func.grad(batched)(params), gradient, **SAME)
    for function in (looped, batched):
        _, pushed = torch.func.jvp(function, (params,), (direction,))
        close(pushed, slope(gradient, direction), **SAME)


# One of each cause, since a compilation takes ten seconds, of an encoder layer or under Muon half a minute.
COMPILED = {("batch norm, max-pooling", "adam"), ("layer norm, attention", "sgd"), ("lstm", "sgd")}


@pytest.mark.parametrize(("network", "transform"), mostly_full(COMPILED))
def test_compiled(network, transform):
    """One program of the gradient over a batch of tasks, and of that over one task."""
    after, params, _, tasks = problem(network, transform)
    program = fo.meta.compiled(torch.func.grad(over_tasks(after(compile=True), tasks)))
    close(program(params), torch.func.grad(in_turn(after(compile=False), tasks))(params), **SAME)


@pytest.mark.parametrize(("network", "transform"), mostly_full({("relu", "sgd")}))
def test_compiled_without_a_batch(network, transform):
    after, params, _, tasks = problem(network, transform)
    first = [data[0] for data in tasks]
    program = fo.meta.compiled(torch.func.grad(lambda params: after(compile=True)(params, *first)))
    close(program(params), torch.func.grad(after(compile=False))(params, *first), **SAME)


def test_compiled_where_a_cotangent_of_a_loop_is_a_turned_product():
    """A product, which lies in memory otherwise once it is turned, goes into the first transpose of a loop, not into the next."""
    tx = fo.chain(fo.sgd(), fo.kahan_sum())
    net = mlp(nn.Tanh)().double()
    loss, params = fo.meta.from_module(net, F.cross_entropy)
    x, y = torch.randn(2, 5, 6, dtype=torch.float64), torch.randint(0, 3, (2, 5))

    def slopes(compile):
        inner = fo.meta.unroll(loss, tx, steps=3, compile=compile)

        def after(params, x, y):
            return loss(inner(params, {"lr": 0.3}, (x, y)).params, x, y)

        return lambda params: torch.vmap(torch.func.grad(after), (None, 0, 0))(params, x, y)

    close(fo.meta.compiled(slopes(True))(params), slopes(False)(params), **SAME)


RECURRENT = {
    "lstm": lambda: nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2),
    "gru": lambda: nn.GRU(3, 4, 2, bias=False, batch_first=True, bidirectional=True),
    "rnn": lambda: nn.RNN(3, 4, nonlinearity="relu"),
    "lstm cell": lambda: nn.LSTMCell(3, 4),
    "gru cell": lambda: nn.GRUCell(3, 4, bias=False),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_layer_by_steps_is_torchs_own(kind):
    """Of all that it returns, with states to start from; a batch of one runs by steps."""
    layer = RECURRENT[kind]().double()
    x = torch.randn(*([5] if "cell" in kind else [2, 5]), 3, dtype=torch.float64)
    first = layer(x)
    start = first if "cell" in kind else first[1]
    expected = layer(x, start)
    found = torch.vmap(composing(lambda x: layer(x, start)))(x.unsqueeze(0))
    close(found, torch.utils._pytree.tree_map(lambda y: y.unsqueeze(0), expected), **SAME)


def test_a_packed_sequence_is_refused_where_it_has_no_rule():
    layer = nn.GRU(3, 4)

    def run(x):
        return layer(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 1])))[1]

    x = torch.randn(2, 2, 3)
    close(composing(run)(x), run(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match="pass the padded tensor to the recurrent layer, and weigh the loss"):
        torch.func.jvp(composing(run), (x,), (x,))
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([2, 1]))
    with pytest.raises(ValueError, match="pass the padded tensor"):
        torch.vmap(composing(lambda h: layer(packed, h)[1]))(torch.zeros(3, 1, 2, 4))


def functions():
    """What torch differentiates wrongly, or not at all, in some order or mode: functions of (batch, channels, features)."""
    w, b, mean = torch.randn(3, 4, dtype=torch.float64)
    var, shift = mean.exp(), torch.randn(3, dtype=torch.float64)
    target = torch.randn(5, 4, 3, dtype=torch.float64)

    def square(x):
        return x[:, :3] + torch.diag_embed(torch.tensor([4.0, -5.0, 6.0], dtype=torch.float64))

    return {
        "layer norm": lambda x: F.layer_norm(x, (3,), shift.exp(), shift),
        "layer norm, of the dispatcher": lambda x: torch.layer_norm(x, (4, 3)),
        "batch norm": lambda x: F.batch_norm(x, None, None, w, b, training=True),
        "batch norm, of the dispatcher": lambda x: torch.batch_norm(x, w, b, None, None, True, 0.1, 1e-5, False),
        "batch norm, as trained": lambda x: F.batch_norm(x, mean, var, w, b, eps=0.1),
        "instance norm": lambda x: F.instance_norm(x, weight=w, bias=b),
        "instance norm, as trained": lambda x: F.instance_norm(x, mean, var, w, b, use_input_stats=False),
        "instance norm, of the dispatcher": lambda x: torch.instance_norm(x, w, None, None, None, True, 0.1, 1e-5, False),
        "group norm": lambda x: F.group_norm(x, 2, w, b),
        "root mean square norm": lambda x: F.rms_norm(x, (3,), shift),
        "squared error": lambda x: F.mse_loss(x**2, target),
        "squared error, weighted": lambda x: F.mse_loss(x**2, target, reduction="sum", weight=target.abs()),
        "huber": lambda x: F.huber_loss(x**2, target, "none", 0.7),
        "soft margin": lambda x: F.soft_margin_loss(x, target.sign(), reduction="sum"),
        "gaussian": lambda x: F.gaussian_nll_loss(x, target, x.mean(-1) ** 2 + 1, full=True),
        "gated linear unit": lambda x: F.glu(x, 1),
        "solve": lambda x: torch.linalg.solve(square(x), target[:, 0]),
        "solve from the right": lambda x: torch.linalg.solve(square(x), target[:, :3], left=False),
        "determinant": lambda x: square(x).det() / 100,
        "its logarithm": lambda x: torch.logdet(-square(x)),
        "its logarithm and sign": lambda x: torch.linalg.slogdet(square(x)).logabsdet * square(x).slogdet()[0],
    }


# From the outermost: "g" for grad, "j" for jvp, "v" for a vmap around what is inside.
ORDERS = ["g", "j", "gv", "gg", "gj", "jg", "jj", "gvj", "gvg", "ggg", "ggj", "gjg", "jgg", "jjg", "jjj", "gvgg", "ggvg"]


@pytest.mark.parametrize("kind", functions())
def test_derivatives_of_every_order_and_mode(kind):
    """Those along a line, against difference quotients of the first derivative."""
    torch.manual_seed(0)
    function, x, direction = functions()[kind], *torch.randn(2, 5, 4, 3, dtype=torch.float64)
    weights = torch.randn(5, 4, 3, dtype=torch.float64)

    def value(s):
        y = function(x + s * direction)
        w = weights.reshape(-1)[: y.numel()].reshape(y.shape)
        return (w * y + y.square() / 2).sum()

    ways = {
        "g": torch.func.grad,
        "j": lambda f: lambda s: torch.func.jvp(f, (s,), (torch.ones_like(s),))[1],
        "v": lambda f: lambda s: torch.vmap(f)(torch.stack([s, s])).mean(),
    }
    s, step = torch.tensor(0.1, dtype=torch.float64), 1e-3
    near, here, far = (torch.func.grad(value)(s + k * step) for k in (-1, 0, 1))
    expected = {1: here, 2: (far - near) / (2 * step), 3: (far - 2 * here + near) / step**2}
    close(composing(function)(x), function(x), **SAME)
    for order in ORDERS:
        if kind == "determinant" and order.replace("v", "") == "ggg":
            continue  # Torch's is NaN, which nobody takes for a number.
        found = composing(value)
        for way in reversed(order):
            found = ways[way](found)
        # the quotients' error, of order step² times derivatives that are some hundred times larger here
        close(found(s), expected[len(order.replace("v", ""))], rtol=1e-3, atol=1e-3)


def test_running_statistics_are_written_as_torch_writes_them():
    x = torch.randn(5, 4, 3)
    for normalise in (F.batch_norm, F.instance_norm):
        found, expected = [torch.zeros(4), torch.ones(4)], [torch.zeros(4), torch.ones(4)]
        normalise(x, *expected, None, None, True, 0.3)
        torch.func.jvp(composing(lambda x, to=found, f=normalise: f(x, *to, None, None, True, 0.3)), (x,), (x,))
        close(found, expected, **SAME)
        with pytest.raises(ValueError, match="more than 1"):
            single = x[:1, :, :1]
            torch.func.jvp(composing(lambda x, f=normalise: f(x, None, None, None, None, True)), (single,), (single,))


def test_attention_by_a_kernel_where_that_has_all_derivatives():
    """No second derivative, no formula: nothing of the size of the matrix of weights is made."""
    q = torch.randn(1, 1, 64, 4)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.func.grad(composing(lambda q: F.scaled_dot_product_attention(q, q, q).sum()))(q)
    assert any("flash" in event.name for event in seen.events())
