"""`quantized`: the same transform, whose rules keep their averages in a few bits."""

import inspect

import pytest
import torch
from cases import TABLE, params_for
from torch import nn

import functional_optim as fo
from functional_optim.form import nested
from functional_optim.lifting import Lifted
from functional_optim.testing import LAWS, Trial, check_law, default_params

CODED = {
    case: tx
    for case, tx in TABLE.items()
    if not case.startswith("quantized") and any(isinstance(form, Lifted) and form.coded for _, form in nested(tx))
}
SLOW = {"one_graph_serves_all_steps", "derivatives_are_right"}
# The table has a chain of elementwise rules, and here is one with numbers.
PLAIN = {"prodigy-0"}


def every_pair():
    for case in CODED:
        for law in LAWS:
            full = case not in PLAIN or law.__name__ in SLOW
            yield pytest.param(case, law, id=f"{case}-{law.__name__}", marks=[pytest.mark.full] if full else [])


@pytest.mark.parametrize("case, law", list(every_pair()))
def test_law(case, law):
    tx = fo.quantized(CODED[case], block=16, min_size=2)
    check_law(law, Trial(tx, params_for(case) or default_params()))


@pytest.mark.parametrize("case", CODED)
def test_it_is_the_same_transform_with_other_rules(case):
    """Paths, hyper-parameters and names, so that states and checkpoints have the names that they had."""
    tx = CODED[case]
    coded = fo.quantized(tx)
    forms, others = list(nested(tx)), list(nested(coded))
    assert [path for path, _ in forms] == [path for path, _ in others]
    assert coded.hparams == tx.hparams and coded.name == tx.name
    for (_, form), (_, other) in zip(forms, others, strict=True):
        if isinstance(form, Lifted):
            assert set(form.slots) <= set(other.slots) and (other.coding is not None) == bool(form.coded)


def test_rules_say_which_of_their_slots_are_coded():
    """Averages are; sums that place the parameters, copies, step sizes and gradients are not."""
    found = {form.name: dict(form.coded) for tx in TABLE.values() for _, form in nested(tx) if isinstance(form, Lifted)}
    assert found["scale_by_ademamix"] == {"exp_avg_fast": "signed", "exp_avg_slow": "signed", "exp_avg_sq": "positive"}
    assert found["scale_by_prodigy"] == {"exp_avg": "signed", "exp_avg_sq": "positive"}
    assert found["scale_by_adan"].keys() == {"exp_avg", "exp_avg_diff", "exp_avg_sq"}
    # The difference of its two slots is a variance, which codes might make negative.
    assert not any(found[name] for name in ("scale_by_stddev", "scale_by_rprop", "scale_by_madgrad", "mars_correction"))


def mlp():
    """85 thousand parameters."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))


@pytest.mark.parametrize("bits, bound", [(8, 2.07), (4, 1.10)])
def test_bytes_of_state_for_each_parameter(bits, bound):
    model = mlp()
    optimizer = fo.adapters.OptimizerAdapter(model.parameters(), fo.quantized(fo.adamw(), bits))
    model(torch.randn(4, 64)).square().mean().backward()
    optimizer.step()
    found = [x for state in optimizer.state.values() for x in state.values()]
    size, count = sum(x.numel() * x.element_size() for x in found), sum(p.numel() for p in model.parameters())
    assert 0.9 * bound < size / count < bound


def after(tx, steps, **how):
    """The parameters after some steps of a model, by an optimizer and by the function that it wraps."""
    model = mlp()
    optimizer = fo.adapters.OptimizerAdapter(model.named_parameters(), tx, **how)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    state, x = tx.init_state(params), torch.randn(16, 64)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        params, state = tx.step(grads, state, params)
        optimizer.step()
        # The same gradients: a code that goes up in one and down in the other is no matter of the engine's.
        for name, p in model.named_parameters():
            far = ~torch.isclose(p.detach(), params[name], rtol=1e-5, atol=2e-5)
            assert far.sum() <= 1e-4 * p.numel()  # Sums in another order may make another code.
            params[name] = p.detach().clone()
    return optimizer, state


@pytest.mark.parametrize("fused", [False, True])
def test_behind_an_optimizer_it_steps_as_the_function_does(fused):
    tx = fo.quantized(fo.chain(fo.clip_by_global_norm(), fo.adamw(lr=1e-2, weight_decay=0.1)))
    optimizer, state = after(tx, 4, fused=fused)
    own = optimizer.state[optimizer.param_groups[0]["params"][0]]
    codes = state["adamw"]["scale_by_adam"]["exp_avg"]["0.weight"]
    assert own["exp_avg"].dtype == torch.int8 and own["exp_avg.scale"].dtype == torch.float32
    # Rounding before the codes may differ: a code or two in a thousand.
    assert (own["exp_avg"] != codes).float().mean() < 2e-3


def test_only_chosen_parameters_are_coded():
    params = {"emb": torch.zeros(20, 20), "w": torch.zeros(20, 20), "b": torch.zeros(20)}
    wide = {"emb": torch.float32, "w": torch.int8, "b": torch.float32}
    for only in (r"^w$|^b$", lambda name, leaf: name != "emb", {"w": True, "b": True}):
        state = fo.quantized(fo.lion(), only=only).init_state(params)["scale_by_lion"]
        assert {name: x.dtype for name, x in state["exp_avg"].items()} == wide
        assert [x.numel() for x in state["exp_avg.scale"].values()] == [0, 4, 0]
    low = {name: p.bfloat16() for name, p in params.items()}
    tx = fo.quantized(fo.lion(), only="w", codec=fo.Stochastic())
    state = tx.init_state(low)
    for _ in range(2):
        dtypes = [x.dtype for x in state["scale_by_lion"]["exp_avg"].values()]
        assert dtypes == [torch.float32, torch.bfloat16, torch.float32]
        _, state = tx.update(low, state, low)


def test_what_sits_a_step_out_keeps_its_codes():
    tx, params = fo.quantized(fo.accumulate(fo.adam(), every=2), min_size=1), {"a": torch.ones(5, 20), "b": torch.ones(70)}
    state = tx.init_state(params)
    for i in range(5):
        grads = {name: torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) for name, p in params.items()}
        before = state["inner"]["scale_by_adam"]
        _, state = tx.update({**grads, "b": None if i == 3 else grads["b"]}, state, params)
        now = state["inner"]["scale_by_adam"]
        same = {name: torch.equal(before["exp_avg_sq"][name], now["exp_avg_sq"][name]) for name in params}
        assert same == {"a": i % 2 == 0, "b": i % 2 == 0 or i == 3}


def test_the_derivative_is_that_of_the_rule_at_the_decoded_state():
    plain, coded = fo.adamw(), fo.quantized(fo.adamw(), min_size=1)
    p, g = torch.randn(100, dtype=torch.float64), torch.randn(100, dtype=torch.float64)
    state = coded.init_state(p)
    for _ in range(3):
        _, state = coded.update(g, state, p)
    form = coded.form.parts[("scale_by_adam",)].form
    stored = state["scale_by_adam"]
    slots = form.coding.decoded([stored[name] for name in form.slots], p.shape, p.dtype)
    own = {"step": stored["step"], **dict(zip(("exp_avg", "exp_avg_sq"), slots, strict=True))}
    decoded = {**state, "scale_by_adam": own}

    def slopes(tx, state):
        def size(g, b1):
            return (tx.update(g, state, p, {"betas": (b1, 0.999)})[0] ** 2).sum()

        return torch.func.grad(size, (0, 1))(g, torch.tensor(0.9, dtype=torch.float64))

    torch.testing.assert_close(slopes(coded, state), slopes(plain, decoded), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "made, message",
    [
        (lambda: fo.quantized(fo.adamw), "Did you mean to call it"),
        (lambda: fo.quantized(fo.chain(fo.clip_by_global_norm(), fo.scale(-0.1))), "chain has no slot that may be coded"),
        (lambda: fo.quantized(fo.quantized(fo.adamw())), "are stored by Blockwise"),
        (lambda: fo.quantized(fo.adamw(), bits=6), "bits = 6"),
        (lambda: fo.quantized(fo.adamw(), only=3), "only of quantized is 3"),
        (lambda: fo.quantized(fo.adamw(), only="("), "is no regular expression"),
        (lambda: fo.quantized(fo.adamw(), only=lambda params: True), "only of quantized takes"),
        (lambda: fo.quantized(fo.adamw(), codec=torch.int8), "expected a codec"),
        (lambda: fo.adamw(state_dtype=torch.int8), "a codec, such as"),
        (lambda: fo.rprop(state_dtype=fo.Blockwise()), "scale_by_rprop has no slot that may be coded"),
        (lambda: fo.rotate(fo.scale_by_adam(state_dtype=fo.Blockwise())), "give that rule no codec, but a dtype"),
        (lambda: fo.elementwise(slots=("m",), coded={"n": "signed"})(lambda hp: None), "there is no slot 'n'"),
        (lambda: fo.elementwise(slots=("m",), coded={"m": "both"})(lambda hp: None), "expected 'signed' or 'positive'"),
    ],
)
def test_unfit_arguments_are_refused(made, message):
    with pytest.raises((TypeError, ValueError), match=message):
        made()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_at_random_a_square_never_becomes_0(dtype):
    codec, squares = fo.Stochastic(dtype), torch.tensor([0.0, 1e-12, 1e-9, 1e-7, 1e-3])
    for step in range(20):
        stored = codec.decode(codec.encode(squares, "positive", step, 0), "positive", squares.shape)
        assert (stored > 0).tolist() == [False, True, True, True, True]


# --- What a newcomer meets ----------------------------------------------------------------------------------------------


def test_names_that_fit_nothing_are_an_error():
    model = mlp()
    with pytest.raises(ValueError, match=r"only = 'weigth' of quantized fits none of the 6 parameters: '0.weight', '0.bias'"):
        fo.adapters.OptimizerAdapter(model.named_parameters(), fo.quantized(fo.adamw(), only="weigth"))
    with pytest.raises(ValueError, match="fits none of .* Parameters have no names here: pass model.named_parameters"):
        fo.adapters.OptimizerAdapter(model.parameters(), fo.quantized(fo.adamw(), only="weight"))
    with pytest.raises(ValueError, match="fits none of"):
        fo.quantized(fo.adamw(), only={"other": True}).init_state({"w": torch.zeros(300), "b": torch.zeros(3)})
    # Backward steps one parameter at a time, and most of them are not meant.
    fo.adapters.step_in_backward(
        model, lambda named: fo.adapters.OptimizerAdapter(named, fo.quantized(fo.adamw(), only="weight"))
    )


def takes_codec(constructor, parameters):
    given = {"transform": fo.sgd(momentum=0.9)} if "transform" in parameters else {}
    given |= {name: 0.1 for name, p in parameters.items() if p.default is p.empty and name not in given}
    try:
        constructor(**given, state_dtype=fo.Blockwise())
    except ValueError:
        return False
    return True


def test_a_constructor_offers_a_codec_where_it_takes_one():
    seen = 0
    for name in fo.__all__:
        constructor = getattr(fo, name)
        parameters = inspect.signature(constructor).parameters if callable(constructor) else {}
        if "state_dtype" not in parameters:
            continue
        seen += 1
        takes = takes_codec(constructor, parameters)
        assert ("Codec" in str(parameters["state_dtype"].annotation)) == takes, name
        assert takes or "codec" not in constructor.__doc__.partition("state_dtype:")[2].partition("\n\n")[0], name
    assert seen > 60


def test_what_can_be_coded_neither_way_says_what_can_be_done():
    with pytest.raises(ValueError, match="give that rule no codec, but a dtype"):
        fo.project(fo.scale_by_adam(state_dtype=fo.Blockwise()), rank=4)
    assert "lion" in fo.quantized(fo.lion()).name
