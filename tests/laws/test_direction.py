"""A transform whose updates point uphill is warned of when an optimizer is made of it; no other is."""

import threading
import warnings

import pytest
import torch
from cases import CASES, sign_of_average

import functional_optim as fo
from functional_optim import optimizers, testing, trees
from functional_optim.adapters import OptimizerAdapter, as_optimizer_class
from functional_optim.direction import UphillWarning, ways
from functional_optim.testing import check_transform

PARAMS = {"net.weight": torch.ones(3, 3), "net.bias": torch.ones(3)}


def adapter(tx, **hparams):
    return OptimizerAdapter([(name, torch.nn.Parameter(p.clone())) for name, p in PARAMS.items()], tx, **hparams)


def by_hand(sign):
    """A whole optimizer written by hand."""
    return fo.Transform(lambda params, hp: {}, lambda u, s, params, hp: (trees.map_leaves(lambda g: sign * g, u), s))


def routed(**branches):
    return fo.partition(branches, fo.by_name({"weight": "matrix", ".*": "rest"}))


@fo.elementwise()
def fails(hp):
    def rule(g, p):
        raise ZeroDivisionError

    return rule


@fo.elementwise()
def random_sign(hp):
    return lambda g, p: -g * torch.randn_like(g)


WHOLE = [tx for name, made in CASES.items() if name in (*optimizers.__all__, "momo", "momo_adam") for tx in made]
WHOLE += [getattr(fo, name)() for name in optimizers.__all__]


@pytest.mark.parametrize("tx", WHOLE, ids=lambda tx: tx.name)
def test_no_optimizer_of_the_library_is_warned_of(tx):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter(tx)
        adapter(fo.chain(fo.monitor("grad"), fo.clip_by_global_norm(), tx, fo.kahan_sum()))


@pytest.mark.parametrize(
    "tx",
    [
        sign_of_average(),
        fo.chain(fo.clip_by_global_norm(), sign_of_average()),
        by_hand(-0.1),
        fo.chain(by_hand(0.1), fo.scale_by_adam()),
        fo.chain(fo.scale_by_adam(), fo.scale(-1e-3)),
        fo.chain(fo.scale_by_adam(), fo.scale_by_schedule(lambda step: -0.1 * step)),
        fo.scheduled(fo.chain(fo.scale_by_adam(), fo.scale()), factor=lambda step: -0.1 * step),
        fo.chain(fo.adam(), fo.subtract_decayed_weights(), fo.trace()),
        fo.chain(fo.adamw(), fo.soft_threshold()),
        fo.chain(fo.add_decayed_weights(), fo.scale_by_adam(), fo.scale_by_learning_rate()),
        fo.chain(fo.sgd(), fo.negate(), fo.sgd()),
        fo.chain(fo.negate(), fo.adamw()),
        fo.chain(fo.scale(-1.0), fo.sgd()),
        fo.chain(fo.adam(lr=0.0), fo.add_decayed_weights(0.0)),
        fo.freeze(),
        random_sign(),
        fo.chain(fails(), fo.scale_by_adam()),
        fo.chain(fo.add_noise(eta=1e6), fo.sgd()),
        routed(matrix=fo.muon(), rest=fo.chain(fo.clip_by_value(), fo.adamw())),
        routed(matrix=fo.adamw(), rest=fo.freeze()),
        fo.chain(fo.masked(fo.add_decayed_weights(), lambda name, leaf: leaf.ndim > 1), fo.sgd()),
        fo.masked(fo.sgd(), lambda name, leaf: True),
        fo.chain(fo.masked(fo.sgd(), lambda name, leaf: leaf.ndim > 1), fo.masked(fo.adam(), lambda name, leaf: leaf.ndim < 2)),
        fo.chain(routed(matrix=fo.scale(-1.0), rest=fo.freeze()), routed(matrix=fo.scale_by_adam(), rest=fo.sgd())),
        fo.scheduled(fo.adamw(), lr=fo.warmup_cosine(0.1, 2, 4), weight_decay=fo.constant(0.1)),
        fo.conditionally(fo.adam(), lambda step: step < 3, fo.sgd()),
        fo.with_extra(fo.sam(fo.adamw()), value_fn=lambda params: 0.0),
        *(
            wrap(fo.adamw())
            for wrap in (
                fo.ema_params,
                fo.lookahead,
                fo.log_norms,
                fo.mechanize,
                fo.with_master_copy,
                fo.apply_if_finite,
                fo.asam,
            )
        ),
        fo.accumulate(fo.adamw(), 2),
        fo.skip_large_updates(fo.adamw(), 1.0),
        fo.chain(fo.cautious(fo.scale_by_lion()), fo.scale_by_learning_rate()),
        fo.rename_hparams(fo.adamw(), lr="rate"),
        fo.set_defaults(fo.adamw(), lr=0.0),
    ],
    ids=lambda tx: repr(tx)[:60],
)
def test_what_descends_or_may_is_not_warned_of(tx):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter(tx)


NONE = "no link turns the sign, .* End with scale_by_learning_rate()"
DECAY = "add_decayed_weights makes weights grow, .* Put it before the learning rate"
UPHILL = {
    "no rate": (fo.chain(fo.clip_by_global_norm(), fo.scale_by_adam()), NONE),
    "no rate, warmed up": (fo.chain(fo.scale_by_adam(), fo.scale_by_schedule(fo.linear(0.0, 1.0, 100))), NONE),
    "no minus in a schedule": (fo.chain(fo.scale_by_adam(), fo.scale_by_schedule(fo.constant(0.1))), NONE),
    "a rule alone": (fo.scale_by_adam(), NONE),
    "two rates": (
        fo.chain(fo.adamw(), fo.set_defaults(fo.scale_by_learning_rate(), lr=1e-3)),
        r"adamw.scale_by_learning_rate and scale_by_learning_rate turn the sign one after another, .* Keep one of them",
    ),
    "two optimizers": (fo.chain(fo.sgd(), fo.adam()), "sgd.scale_by_learning_rate and adam.scale_by_learning_rate turn"),
    "a minus too many": (fo.chain(fo.adam(), fo.scale(-1.0)), "adam.scale_by_learning_rate and scale turn"),
    "one's own": (fo.chain(sign_of_average(), fo.negate()), "sign_of_average and negate turn"),
    "decay behind": (fo.chain(fo.adam(), fo.add_decayed_weights()), DECAY),
    "l1 behind": (fo.chain(fo.adam(), fo.add_l1_decay()), "add_l1_decay makes weights grow"),
    "subtracted before": (
        fo.chain(fo.subtract_decayed_weights(), fo.sgd()),
        "subtract_decayed_weights makes weights grow, .* Put it behind the learning rate",
    ),
    "inside wrappers": (
        fo.scheduled(fo.accumulate(fo.chain(fo.adam(), fo.add_decayed_weights()), 2), lr=fo.constant(0.1)),
        DECAY,
    ),
    "a branch": (
        routed(matrix=fo.adamw(), rest=fo.scale_by_adam()),
        rf"\(for 'net.bias' and whatever is routed like it\): {NONE}",
    ),
    "masked": (
        fo.masked(fo.adamw(), lambda name, leaf: leaf.ndim > 1),
        r"for 'net.bias' .* gradients pass .* partition, with freeze",
    ),
    "masked twice": (
        fo.chain(*(fo.masked(fo.sgd(), lambda name, leaf: leaf.ndim > 1) for _ in range(2))),
        r"for 'net.weight' .* turn the sign one after another",
    ),
    "a renamed rate": (
        fo.chain(fo.rename_hparams(fo.adamw(), lr="first"), fo.scale_by_learning_rate()),
        "turn the sign one after",
    ),
}


@pytest.mark.parametrize("name", UPHILL)
def test_what_climbs_is_warned_of_once_at_the_line_that_made_the_optimizer(name):
    tx, message = UPHILL[name]
    with pytest.warns(UphillWarning, match=message) as caught:
        adapter(tx)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            adapter(tx)
    assert len(caught) == 1


@pytest.mark.parametrize("name", [name for name in UPHILL if name != "one's own"])
def test_what_is_warned_of_climbs(name):
    """On |p|²/2 some parameter grows, as the warning says; where it is of the decay, under gradients of 0."""
    tx, _ = UPHILL[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = adapter(tx)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    decays = "decay" in name or "l1" in name or "subtracted" in name or "wrappers" in name
    for _ in range(8):
        for p in params:
            p.grad = torch.zeros_like(p) if decays else p.detach().clone()
        optimizer.step()
    assert max(p.abs().max() for p in params) > 1


def test_an_optimizer_that_steps_one_parameter_at_a_time_is_looked_at_too():
    made = as_optimizer_class(fo.chain(fo.scale_by_adam(), fo.scale()))
    with pytest.warns(UphillWarning, match=NONE) as caught:
        made([torch.nn.Parameter(torch.ones(2))])
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made([torch.nn.Parameter(torch.ones(2))], factor=-0.1)


def test_a_number_given_to_the_optimizer_counts():
    tx = fo.chain(fo.scale_by_adam(), fo.scale())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter(tx, factor=-0.1)
        adapter(tx, factor=torch.tensor(-0.1))  # Tensors are not read.
        adapter(fo.sgd(), lr=torch.tensor(0.1))
        adapter(fo.adam(), betas=(torch.tensor(0.9), torch.tensor(0.99)))
        with pytest.raises(UphillWarning):
            adapter(tx, factor=0.1)


def test_looking_leaves_no_trace():
    seen = []

    def schedule(step):
        seen.append(step)
        return 0.1

    state = torch.get_rng_state()
    adapter(fo.chain(random_sign(), fo.scheduled(fo.adamw(), lr=schedule)))
    assert torch.equal(torch.get_rng_state(), state) and not seen
    with torch.device("meta"):
        assert [link.turn for way in ways(fo.adamw(), {"w": torch.ones(2, device="cpu")}, {}) for link in way.links] == [1, 1, -1]


def test_check_transform_warns_of_chains_but_not_of_links(monkeypatch):
    monkeypatch.setattr(testing, "LAWS", [])
    with pytest.warns(UphillWarning, match=NONE) as caught:
        check_transform(fo.chain(fo.clip_by_global_norm(), fo.scale_by_adam()))
    assert [warning.filename for warning in caught] == [__file__]
    check_transform(fo.scale_by_adam())
    monkeypatch.undo()
    monkeypatch.setattr(testing, "LAWS", [testing.the_adapter_computes_the_same])
    check_transform(fo.scale_by_adam())


def test_check_transform_says_where_it_is_if_that_takes_long(monkeypatch, capsys):
    def a_quick_law(trial):
        monkeypatch.setattr(testing, "PATIENCE", 0.0)  # With the law after this one.

    def a_slow_law(trial):
        for timer in {each for each in threading.enumerate() if isinstance(each, threading.Timer)}:
            timer.join()

    monkeypatch.setattr(testing, "LAWS", [a_quick_law, a_slow_law])
    monkeypatch.setattr(testing, "PATIENCE", 600.0)
    check_transform(fo.adamw())
    assert capsys.readouterr().err == "check_transform of adamw: at law 2 of 2, “a slow law”\n"
    monkeypatch.setattr(testing, "LAWS", [a_quick_law])
    monkeypatch.setattr(testing, "PATIENCE", 600.0)
    check_transform(fo.adamw())
    assert capsys.readouterr().err == ""
