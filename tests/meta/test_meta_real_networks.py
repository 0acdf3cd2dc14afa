"""What a network draws and keeps while it is trained: dropout with a key, running statistics as state of the loop."""

import copy

import pytest
import torch
import torch.nn.functional as F
from meta_helpers import close
from torch import nn

import functional_optim as fo
from functional_optim.philox import words

DOUBLE = torch.float64
# float64, two orders of summation
SAME = {"rtol": 1e-9, "atol": 1e-10}
STEPS = 3


def masks(key, shapes, p):
    """Which elements the first dropouts of a function keep, from the words themselves."""
    return [words(shape, key, 0, i).to(DOUBLE) / 2**32 >= p for i, shape in enumerate(shapes)]


@pytest.fixture
def problem():
    """Two tasks, the network of a dropout within, and the same by hand, of a mask."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 2)).to(DOUBLE)
    xs, ys = torch.randn(2, 5, 4, dtype=DOUBLE), torch.randint(0, 2, (2, 5))

    def by_hand(params, x, y, mask):
        h = torch.tanh(x @ params["0.weight"].T + params["0.bias"]) * mask / 0.6
        return F.cross_entropy(h @ params["3.weight"].T + params["3.bias"], y)

    loss, params = fo.meta.from_module(net, F.cross_entropy)
    return fo.meta.keyed(loss), by_hand, params, xs, ys


def adapted(loss, compile=False, steps=STEPS, **options):
    inner = fo.meta.unroll(loss, fo.sgd(momentum=0.9), steps, compile=compile, **options)
    return lambda params, x, y, draws: inner(params, {"lr": 0.3}, (x, y), batches=(draws,)).logs["loss"].sum()


def test_dropout_draws_the_words_of_its_key(problem):
    loss, by_hand, params, xs, ys = problem
    keys = fo.meta.keys(7, STEPS)
    drawn = torch.stack([masks(key, [(5, 6)], 0.4)[0] for key in keys])
    assert 0.3 < drawn.double().mean() < 0.9 and not (drawn[0] == drawn[1]).all()
    found = torch.func.grad(adapted(loss))(params, xs[0], ys[0], keys)
    close(found, torch.func.grad(adapted(by_hand))(params, xs[0], ys[0], drawn), **SAME)
    _, pushed = torch.func.jvp(lambda p: adapted(loss)(p, xs[0], ys[0], keys), (params,), (params,))
    close(pushed, sum((found[name] * params[name]).sum() for name in params), **SAME)


@pytest.mark.parametrize("shared", [True, False])
def test_under_vmap_a_key_is_shared_or_each_has_its_own(problem, shared):
    loss, _, params, xs, ys = problem
    keys = fo.meta.keys(7, STEPS) if shared else torch.vmap(lambda key: fo.meta.keys(key, STEPS))(fo.meta.keys(7, 2))
    one = adapted(loss)
    axes = None, 0, 0, None if shared else 0
    found = torch.func.grad(lambda p: torch.vmap(one, axes)(p, xs, ys, keys).sum())(params)
    each = [torch.func.grad(one)(params, xs[i], ys[i], keys if shared else keys[i]) for i in range(2)]
    close(found, {name: each[0][name] + each[1][name] for name in params}, **SAME)


@pytest.mark.full
def test_compiled_it_draws_the_same(problem):
    loss, _, params, xs, ys = problem
    keys = torch.vmap(lambda key: fo.meta.keys(key, STEPS))(fo.meta.keys(7, 2))

    def gradient(compile):
        one = adapted(loss, compile)
        return torch.func.grad(lambda p, keys: torch.vmap(one, (None, 0, 0, 0))(p, xs, ys, keys).sum())

    program = fo.meta.compiled(gradient(True))
    for given in (keys, keys + 1):
        close(program(params, given), gradient(False)(params, given), **SAME)


def test_compiled_words_are_the_same():
    """Products of words once overflowed, which C++ takes for impossible: for some keys of a batch, others were drawn."""
    keys = fo.meta.keys(7, 2)

    def draw(keys):
        return torch.vmap(lambda key: words((12,), key, 0, 0))(keys)

    close(fo.meta.compiled(draw)(keys), draw(keys), rtol=0, atol=0)


def test_run_again_it_draws_the_same(problem):
    loss, _, params, xs, ys = problem
    given = params, xs[0], ys[0], fo.meta.keys(7, STEPS)
    close(torch.func.grad(adapted(loss, remat=True))(*given), torch.func.grad(adapted(loss))(*given), **SAME)


def test_dropouts_are_torchs_but_for_their_numbers():
    """What is kept is scaled as torch scales it, by whole features where it does, and in the share that it is to be."""
    x = torch.randn(64, 8, 6, 6, dtype=DOUBLE)
    for dropout in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout):
        given = {F.dropout1d: x[..., 0], F.dropout3d: x.unsqueeze(-1)}.get(dropout, x)
        run = fo.meta.keyed(lambda x, dropout=dropout: dropout(x, 0.25, True))
        ours, theirs = run(given, 3), dropout(given, 0.25, True)
        constant = theirs.flatten().mode()[0]  # what is put where something is dropped
        assert abs((ours != constant).double().mean() - 0.75) < 0.06
        kept = (ours != constant) & (theirs != constant)
        close(ours[kept], theirs[kept], rtol=1e-12, atol=1e-12)
        if dropout not in (F.dropout, F.alpha_dropout):
            whole = (ours != constant).flatten(2).double().mean(-1)
            assert ((whole == 0) | (whole == 1)).all()
        close(fo.meta.keyed(lambda x, dropout=dropout: dropout(x, 0.25, False))(given, 3), given, rtol=0, atol=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        fo.meta.keyed(lambda x: F.dropout(x, 1.5))(x, 3)


def test_dropout_within_attention_and_recurrent_layers():
    """Each key gives one result, another key another, and without dropout it is torch's."""
    x = torch.randn(2, 5, 6, dtype=DOUBLE)
    layers = {
        "heads": nn.MultiheadAttention(6, 2, dropout=0.5, batch_first=True),
        "encoder": nn.TransformerEncoderLayer(6, 2, 8, dropout=0.5, batch_first=True),
        "lstm": nn.LSTM(6, 4, 2, dropout=0.5, batch_first=True),
        "gru": nn.GRU(6, 4, 2, dropout=0.5, batch_first=True),
    }
    for name, layer in layers.items():
        layer.to(DOUBLE)

        def run(x, layer=layer, name=name):
            y = layer(x, x, x, need_weights=False) if name == "heads" else layer(x)
            return y[0] if isinstance(y, tuple) else y

        keyed = fo.meta.keyed(run)
        close(keyed(x, 1), keyed(x, 1), rtol=0, atol=0)
        batch = torch.vmap(keyed, (None, 0))(x, fo.meta.keys(0, 3))
        close(batch[1], keyed(x, fo.meta.keys(0, 3)[1]), **SAME)
        assert not torch.allclose(batch[0], batch[1])
        layer.eval()
        close(keyed(x, 1), run(x), **SAME)


def test_the_weights_of_attention_are_dropped():
    """softmax(q kᵀ/√d) with a mask of these words, over what is kept, times v."""
    q, k, v = torch.randn(3, 2, 5, 4, dtype=DOUBLE)
    (mask,) = masks(3, [(2, 5, 5)], 0.3)
    for causal in (False, True):
        found = fo.meta.keyed(lambda c=causal: F.scaled_dot_product_attention(q, k, v, dropout_p=0.3, is_causal=c))(3)
        logits = q @ k.transpose(-1, -2) / 2
        logits = logits.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf) if causal else logits
        close(found, (logits.softmax(-1) * mask / 0.7) @ v, **SAME)


def test_draws_have_torchs_shapes_dtypes_and_ranges():
    like = torch.zeros(2, 3, dtype=torch.bfloat16)

    def draw():
        return {
            "rand": torch.rand(1000),
            "rand, a size": torch.rand((2, 3), dtype=DOUBLE),
            "rand_like": torch.rand_like(like),
            "randn": torch.randn(size=(1000,)),
            "randn_like": torch.randn_like(like),
            "randint": torch.randint(3, 7, (1000,)),
            "randint, one bound": torch.randint(5, (2, 3), dtype=torch.int32),
            "randint, named": torch.randint(high=5, size=(4,)),
            "bernoulli": torch.bernoulli(torch.full((1000,), 0.2)),
            "normal": torch.normal(torch.full((1000,), 3.0), 2.0),
            "normal, a size": torch.normal(1.0, 2.0, (2, 3)),
            "normal, of a distribution": torch.distributions.Normal(torch.zeros(3, dtype=DOUBLE), 1.0).sample(),
            "multinomial": torch.multinomial(torch.tensor([1.0, 0.0, 3.0]), 1000, replacement=True),
            "multinomial, without replacement": torch.multinomial(torch.tensor([[1.0, 0.0, 3.0, 0.5]]).expand(1000, -1), 2),
            "randperm": torch.randperm(10),
        }

    found, expected = fo.meta.keyed(draw)(5), draw()
    for name, x in expected.items():
        assert (found[name].shape, found[name].dtype) == (x.shape, x.dtype), name
    # five standard errors of a thousand draws
    close(found["rand"].mean(), torch.tensor(0.5), rtol=0, atol=0.05)
    close(torch.stack([found["randn"].mean(), found["randn"].std()]), torch.tensor([0.0, 1.0]), rtol=0, atol=0.16)
    close(found["bernoulli"].mean(), torch.tensor(0.2), rtol=0, atol=0.065)
    normal, chosen, first = found["normal"], found["multinomial"], found["multinomial, without replacement"]
    close(torch.stack([normal.mean() - 3, normal.std() - 2]), torch.zeros(2), rtol=0, atol=0.32)
    close((chosen == 2).double().mean(), torch.tensor(0.75, dtype=DOUBLE), rtol=0, atol=0.07)
    assert not (chosen == 1).any() and not (first == 1).any() and not (first[:, 0] == first[:, 1]).any()
    close((first[:, 0] == 2).double().mean(), torch.tensor(3 / 4.5, dtype=DOUBLE), rtol=0, atol=0.075)
    assert found["randint"].unique().tolist() == [3, 4, 5, 6]
    assert sorted(found["randperm"].tolist()) == list(range(10))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = torch.get_rng_state()
        fo.meta.keyed(draw)(5)
        assert torch.equal(before, torch.get_rng_state())


def test_what_is_no_key_is_told():
    for key in (1.5, torch.zeros(2, dtype=torch.int64), torch.tensor(0.5), True):
        with pytest.raises(TypeError, match="the last argument is the key"):
            fo.meta.keyed(torch.rand)(3, key)


# --- Running statistics ------------------------------------------------------------------------------------------------------


class Normed(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv1d(1, 3, 3), kind(3), nn.Linear(12, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.norm(self.conv(x))).flatten(1))


KINDS = {
    "batch": nn.BatchNorm1d,
    "instance": lambda n: nn.InstanceNorm1d(n, affine=True, track_running_stats=True),
}


def trained_by_torch(net, x, y):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


def normed(kind):
    torch.manual_seed(0)
    net = Normed(KINDS[kind]).to(DOUBLE)
    return net, torch.randn(2, 5, 1, 6, dtype=DOUBLE), torch.randint(0, 2, (2, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_running_statistics_are_torchs_after_training(kind):
    net, xs, ys = normed(kind)
    loss, params, buffers = fo.meta.from_module(net, F.cross_entropy, carry=True)
    inner = fo.meta.unroll(loss, fo.sgd(momentum=0.9), STEPS, has_carry=True)
    before = {name: x.clone() for name, x in buffers.items()}

    def train(x, y):
        trained = inner(params, {"lr": 0.3}, (x, y), carry=buffers)
        return trained.params, trained.carry

    batched = torch.vmap(train)(xs, ys)
    for i in range(2):
        theirs = trained_by_torch(copy.deepcopy(net), xs[i], ys[i])
        expected = [dict(theirs.named_parameters()), dict(theirs.named_buffers())]
        for found in (train(xs[i], ys[i]), torch.utils._pytree.tree_map(lambda x, i=i: x[i], batched)):
            close(found[0], {name: p.detach() for name, p in expected[0].items()}, **SAME)
            # an instance norm counts no batches
            close(found[1], expected[1], **SAME)
    close(buffers, before, rtol=0, atol=0)
    close(dict(net.named_buffers()), before, rtol=0, atol=0)


def evaluated(net, kind, compile=False):
    """The loss after training, at the running statistics, as a function of the first parameters."""
    loss, params, buffers = fo.meta.from_module(net, F.cross_entropy, carry=True)
    evaluate, _ = fo.meta.from_module(copy.deepcopy(net).eval(), F.cross_entropy)
    inner = fo.meta.unroll(loss, fo.sgd(momentum=0.9), STEPS, has_carry=True, compile=compile)

    def after(params, x, y):
        trained = inner(params, {"lr": 0.3}, (x, y), carry=buffers)
        return evaluate(trained.params, x, y, buffers=trained.carry)

    return after, params


def test_derivatives_go_through_running_statistics():
    net, xs, ys = normed("batch")
    after, params = evaluated(net, "batch")

    def over_tasks(params):
        return torch.vmap(after, (None, 0, 0))(params, xs, ys).sum()

    gradient = torch.func.grad(over_tasks)(params)
    direction = {name: torch.randn_like(p) for name, p in params.items()}
    slope = sum((gradient[name] * direction[name]).sum() for name in params)
    near, far = (
        sum(after({n: p + s * direction[n] for n, p in params.items()}, *t) for t in zip(xs, ys, strict=True))
        for s in (-1e-6, 1e-6)
    )
    # rounding of 1e-16 over a step of 1e-6, some hundred operations
    close(slope, (far - near) / 2e-6, rtol=1e-6, atol=1e-7)
    close(torch.func.jvp(over_tasks, (params,), (direction,))[1], slope, **SAME)


@pytest.mark.full
def test_compiled_with_running_statistics():
    net, xs, ys = normed("batch")

    def gradient(compile):
        after, _ = evaluated(net, "batch", compile)
        return torch.func.grad(lambda params: torch.vmap(after, (None, 0, 0))(params, xs, ys).sum())

    params = evaluated(net, "batch")[1]
    close(fo.meta.compiled(gradient(True))(params), gradient(False)(params), **SAME)


def test_a_carry_with_logs_and_first_order():
    """An average of the weights, carried by the loss, beside what it logs."""

    def loss(p, average, x):
        value = ((p - x) ** 2).sum()
        return value, 0.5 * average + 0.5 * p, value.sqrt()

    p, x = torch.zeros(2, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE)
    for first_order in (False, True):
        inner = fo.meta.unroll(loss, fo.sgd(), 2, has_carry=True, has_aux=True, first_order=first_order)
        found = inner(p, {"lr": 0.25}, (x,), carry=p)
        close(found.carry, torch.full_like(p, 0.25), **SAME)  # the average of 0 and 0.5, after that of 0 and 0
        close(found.logs["aux"], found.logs["loss"].sqrt(), **SAME)


def test_what_a_loss_with_a_carry_must_return():
    p = torch.zeros(2)
    with pytest.raises(ValueError, match=r"the loss returned a Tensor: expected a tuple \(loss, carry\)"):
        fo.meta.unroll(lambda p, c: p.sum(), fo.sgd(), 1, has_carry=True)(p, carry=p)
    for made, found in (
        (torch.ones(2), r"made of it shape \(2,\)"),
        ({"a": p}, "does not have the structure"),
        (None, "a NoneType"),
    ):
        with pytest.raises(ValueError, match=found):
            fo.meta.unroll(lambda p, c, made=made: (p.sum(), made), fo.sgd(), 1, has_carry=True)(p, carry=torch.ones(3))
    with pytest.raises(TypeError, match="pass has_carry=True"):
        fo.meta.unroll(lambda p: p.sum(), fo.sgd(), 1)(p, carry=p)
