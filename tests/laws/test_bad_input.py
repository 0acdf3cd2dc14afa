"""Bad input: an error that says what, where and what to do; and nothing is changed by the failed call."""

import collections
import copy
import functools
import inspect
import math
import re

import numpy as np
import pytest
import torch

import functional_optim as fo
from functional_optim import trees
from functional_optim.adapters import OptimizerAdapter
from functional_optim.hints import MEANT

PARAMS = {"net": [torch.tensor([1.0, 2.0]), {"w": torch.eye(2)}], "b": torch.tensor(3.0)}
GRADS = {"net": [torch.tensor([0.5, -1.0]), {"w": torch.ones(2, 2)}], "b": torch.tensor(-2.0)}


def same(a, b):
    """Whether two trees have the same structure and bits."""
    x, y = trees.flatten(a), trees.flatten(b)
    return x[1] == y[1] and all(
        torch.equal(m, n) if isinstance(m, torch.Tensor) and isinstance(n, torch.Tensor) else m == n
        for m, n in zip(x[0], y[0], strict=True)
    )


@pytest.fixture
def refused():
    """Calls `update` with one thing replaced, expects the error, and checks that no input has changed and a good call works."""

    def check(error, message, *, tx=None, **replaced):
        tx = fo.adamw() if tx is None else tx
        arguments = {"grads": GRADS, "params": PARAMS, "hparams": None, **replaced}
        if "state" not in arguments:
            _, arguments["state"] = tx.update(GRADS, tx.init_state(PARAMS), PARAMS)
        before = copy.deepcopy(arguments)
        with pytest.raises(error, match=message) as caught:
            tx.update(**arguments)
        for name in ("grads", "state", "params"):
            leaves = trees.leaves(arguments[name])
            if all(isinstance(x, torch.Tensor) and x.layout == torch.strided and x.device.type != "meta" for x in leaves):
                assert same(arguments[name], before[name])
        if isinstance(arguments["hparams"], dict):
            assert str(arguments["hparams"]) == str(before["hparams"])
        tx.update(GRADS, tx.init_state(PARAMS), PARAMS)
        return caught

    return check


# Hyper-parameters.


@pytest.mark.parametrize("where", ["update", "init_state", "adapter"])
@pytest.mark.parametrize(
    "hparams, error, message",
    [
        (
            {"beta": (0.9, 0.99)},
            ValueError,
            r"adamw has no hyper-parameter 'beta'; it accepts: 'betas', 'eps', 'weight_decay', 'lr'. Did you mean 'betas'\?",
        ),
        ({"wieght_decay": 0.1}, ValueError, r"no hyper-parameter 'wieght_decay'.* Did you mean 'weight_decay'\?"),
        ({"zzz": 0.1}, ValueError, r"no hyper-parameter 'zzz'; it accepts: 'betas', 'eps', 'weight_decay', 'lr'\.$"),
        ({"lr": -0.1}, ValueError, r"lr = -0.1 is outside \[0, inf\)"),
        ({"lr": math.nan}, ValueError, r"lr = nan is outside \[0, inf\)"),
        ({"lr": math.inf}, ValueError, r"lr = inf is outside \[0, inf\)"),
        ({"eps": -1}, ValueError, r"eps = -1 is outside \[0, inf\)"),
        ({"weight_decay": -1e-9}, ValueError, r"weight_decay = -1e-09 is outside \[0, inf\)"),
        ({"betas": (1.0, 0.9)}, ValueError, r"betas\[0\] = 1.0 is outside \[0, 1\)"),
        ({"betas": (0.9, 1)}, ValueError, r"betas\[1\] = 1 is outside \[0, 1\)"),
        ({"betas": [0.9, math.nan]}, ValueError, r"betas\[1\] = nan is outside \[0, 1\)"),
        ({"betas": (torch.tensor(0.9), -0.1)}, ValueError, r"betas\[1\] = -0.1 is outside \[0, 1\)"),
        ({"betas": 0.9}, TypeError, r"betas = 0.9: expected 2 values, as in \(0.9, 0.999\)"),
        ({"betas": (0.9,)}, TypeError, r"betas = \(0.9,\): expected 2 values"),
        ({"betas": (0.9, 0.99, 0.999)}, TypeError, r"betas = \(0.9, 0.99, 0.999\): expected 2 values"),
        ({"betas": "ab"}, TypeError, r"betas = 'ab': expected 2 values"),
        ({"betas": (0.9, "0.99")}, TypeError, r"betas.*'0.99'"),
        ({"betas": (True, 0.99)}, TypeError, r"betas\[0\] = True is a bool: expected a number"),
        ({"betas": torch.ones(3)}, TypeError, r"betas = .*: expected 2 values"),
        ({"lr": True}, TypeError, r"lr = True is a bool: expected a number or a \(\) tensor"),
        ({"lr": "fast"}, TypeError, r"lr = 'fast' is a str: expected a number or a \(\) tensor"),
        ({"lr": None}, TypeError, r"lr = None is a NoneType: expected a number or a \(\) tensor"),
        ({"lr": 1j}, TypeError, r"lr = 1j is a complex: expected a number"),
        ({"lr": (0.1, 0.2)}, TypeError, r"lr = \(0.1, 0.2\) is a tuple: expected a number"),
        (
            {"lr": torch.ones(3)},
            TypeError,
            r"lr is a tensor of shape \(3,\): a hyper-parameter is a number .* torch.vmap.* PerLeaf",
        ),
        ({"lr": torch.ones(1)}, TypeError, r"lr is a tensor of shape \(1,\)"),
    ],
)
def test_hyper_parameters(refused, where, hparams, error, message):
    if where == "update":
        refused(error, message, hparams=hparams)
    elif where == "init_state":
        with pytest.raises(error, match=message):
            fo.adamw().init_state(PARAMS, hparams)
    else:
        p = torch.nn.Parameter(torch.ones(2))
        if isinstance(hparams.get("lr"), torch.Tensor):  # Of one element it is a number there, as to torch's optimizers.
            error, message = ValueError, r"lr is a tensor of shape \(3,\): expected one element"
            hparams = {"lr": torch.ones(3)}
        with pytest.raises(error, match=message):
            OptimizerAdapter([p], fo.adamw(), **hparams)
        assert p.grad is None and torch.equal(p, torch.ones(2))


@pytest.mark.parametrize("lr", [None, "0.1", torch.ones(3)], ids=repr)
def test_a_learning_rate_written_into_a_group_before_the_first_step_is_called_by_its_name(lr):
    w = torch.nn.Parameter(torch.ones(2))
    w.grad = torch.ones(2)
    optimizer = fo.adapters.AdamW([w])
    optimizer.param_groups[0]["lr"] = lr
    with pytest.raises((TypeError, ValueError), match=r"param_groups\[0\]: lr "):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize(
    "make, hparams, message",
    [
        (fo.clip_by_global_norm, {"max_norm": 0}, r"max_norm = 0 is outside \(0, inf\]"),
        (fo.clip_by_global_norm, {"max_norm": -1.0}, r"max_norm = -1.0 is outside \(0, inf\]"),
        (fo.clip_by_value, {"clip_value": 0.0}, r"clip_value = 0.0 is outside \(0, inf\]"),
        (fo.clip_by_value, {"clip_value": math.nan}, r"clip_value = nan is outside \(0, inf\]"),
        (fo.trace, {"momentum": -0.5}, r"momentum = -0.5 is outside \[0, inf\)"),
        (fo.trace, {"dampening": math.inf}, r"dampening = inf is outside \(-inf, inf\)"),
        (fo.scale, {"factor": math.nan}, r"factor = nan is outside \(-inf, inf\)"),
        (fo.add_decayed_weights, {"weight_decay": -1}, r"weight_decay = -1 is outside \[0, inf\)"),
        (fo.scale_by_learning_rate, {"lr": -1}, r"lr = -1 is outside \[0, inf\)"),
        (fo.scale_by_adam, {"eps": -1}, r"eps = -1 is outside \[0, inf\)"),
        (fo.adamw, {"weight_decay": -1}, r"weight_decay = -1 is outside \[0, inf\)"),
        (fo.sgd, {"lr": math.nan}, r"lr = nan is outside \[0, inf\)"),
    ],
)
def test_ranges_hold_at_the_call_and_at_construction(refused, make, hparams, message):
    refused(ValueError, message, tx=make(), hparams=hparams)
    with pytest.raises(ValueError, match=message):
        make(**hparams)


def first_step(tx):
    tx.step(GRADS, tx.init_state(PARAMS), PARAMS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fo.project(fo.scale_by_adam(), max_growth=-1.0), r"max_growth = -1.0 is outside \(0, inf\]"),
        (lambda: fo.apollo(seed=0.5, proj="svd"), "seed = 0.5 is no whole number"),
        (lambda: fo.rotate(fo.scale_by_adam(), kl_eps=-1e-8), r"kl_eps = -1e-08 is outside \[0, inf\)"),
        (lambda: first_step(fo.simplified_ademamix(min_beta1=-0.9)), r"min_beta1 = -0.9 is outside \(0, 1\)"),
        (lambda: first_step(fo.scale_by_mean_side(max_dim=-1)), "max_dim = -1: expected a whole number of at least 0"),
    ],
)
def test_what_another_mode_reads_is_checked_too(make, message):
    with pytest.raises(ValueError, match=message):
        make()


TRIPLES = r"expected the \(a, b, c\) of one step or more"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        *((lambda given=given: fo.scale_by_muon(ns_coefficients=given), ValueError, TRIPLES) for given in (3.0, None, [])),
        *(
            (lambda given=given: fo.orthogonalize(given), ValueError, TRIPLES)
            for given in (3, (1.0, 2.0, 3.0), [("a", "b", "c")])
        ),
        (lambda: fo.muon(adjust_lr_fn=["original"]), ValueError, r"adjust_lr_fn = \['original'\]: expected one of None"),
        (lambda: fo.scion(norm=["sign"]), ValueError, r"norm = \['sign'\]: expected one of 'auto'"),
        (lambda: fo.dion(rank_fraction="half"), TypeError, "rank_fraction = 'half' is a str: expected a number"),
        (lambda: fo.dion2(fraction=None), TypeError, "fraction = None is a NoneType: expected a number"),
        (lambda: fo.psgd_kron(update_probability="a"), TypeError, "update_probability = 'a' is a str: expected a number"),
        (lambda: fo.kl_shampoo(init_factor="x"), TypeError, "init_factor = 'x' is a str: expected a number"),
        (lambda: fo.by_role(MODEL, None), TypeError, r"heads = None: expected a list of names, \['lm_head'\]"),
        *(
            (lambda given=given: fo.rotate(fo.scale_by_adam(), directions=given), ValueError, "of exp_avg, exp_avg_sq")
            for given in ("exp_avg", ("exp_agv",))
        ),
    ],
)
def test_arguments_of_matrix_rules(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_hyper_parameters_where_there_are_none(refused):
    refused(ValueError, r"chain has no hyper-parameter 'lr'; it accepts: none", tx=fo.chain(), hparams={"lr": 0.1})


@pytest.mark.parametrize("hparams", [0.1, "lr", [("lr", 0.1)], torch.tensor(0.1)], ids=repr)
def test_hyper_parameters_that_are_no_mapping(refused, hparams):
    refused(TypeError, r"hparams.*mapping", hparams=hparams)


MODEL = torch.nn.Linear(2, 1)


def an_optimizer():
    return fo.adapters.OptimizerAdapter(MODEL.named_parameters(), fo.adamw())


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        (lambda: fo.elementwise(lambda hp: lambda g, p: g), TypeError, r"slots is a function, <lambda>: .*@elementwise\(\)"),
        (lambda: fo.whole_tree(lambda hp: None), TypeError, "slots is a function"),
        (lambda: fo.elementwise()(lambda: None), TypeError, r"takes nothing: expected \(hp\)"),
        (
            lambda: fo.elementwise(slots={"m": lambda p, hp: 0.0})(lambda hp: None)().init_state(torch.ones(1)),
            TypeError,
            r"a slot of <lambda> starts as 0.0: expected a tensor",
        ),
        (lambda: fo.piecewise_constant(1.0, [10]), TypeError, r"values = 1.0 is a float: expected a sequence"),
        (lambda: fo.piecewise_constant([1.0, 0.1], {10: 0.1}), TypeError, r"boundaries = {10: 0.1} is a dict"),
        (lambda: fo.hparams_at(fo.adamw(), {}), ValueError, r"the state is not one of adamw.*'scale_by_adam'"),
        (lambda: fo.hparams_at(fo.scheduled(fo.sgd(), lr=fo.noam(8, 9)), None), ValueError, "the state is not one of sgd"),
        (
            lambda: an_optimizer().load_state_dict(MODEL.state_dict()),
            TypeError,
            r"OrderedDict with 'weight', 'bias': expected what",
        ),
        (lambda: an_optimizer().load_state_dict({}), TypeError, r"state_dict is a dict: expected what optimizer.state_dict"),
        (lambda: fo.adapters.load_by_name(an_optimizer(), {}), TypeError, r"state_dict is a dict: expected"),
        (lambda: fo.adapters.load_by_name(MODEL, an_optimizer().state_dict()), TypeError, "optimizer is a Linear: expected"),
        (lambda: fo.adapters.functional_state(torch.optim.SGD(MODEL.parameters())), TypeError, "optimizer is a SGD: expected"),
        (lambda: fo.adapters.transform_of(MODEL), TypeError, "optimizer is a Linear: expected an OptimizerAdapter"),
        (lambda: fo.meta.unroll(lambda p: p, fo.sgd(), steps=True), TypeError, "steps = True: expected a whole number"),
        (lambda: fo.meta.unroll(lambda p: p, fo.sgd(), 3, truncate=True), TypeError, "truncate = True: expected a whole number"),
        (lambda: fo.meta.from_module(lambda x: x, MODEL), TypeError, "module is a function: expected a torch.nn.Module"),
        (lambda: fo.meta.custom_root(lambda x: x, solve="cg"), TypeError, "solve = 'cg': expected a function"),
        (
            lambda: fo.meta.zero_order_grad(lambda p: p, samples="2", sigma=0.1),
            TypeError,
            "samples = '2': expected a whole number",
        ),
    ],
)
def test_what_newcomers_get_wrong_is_said_in_their_words(mistake, error, message):
    with pytest.raises(error, match=message):
        mistake()


def test_a_hyper_parameter_passed_as_a_keyword_is_not_ignored():
    # update(..., lr=0.1) looks right; swallowed with the extra arguments, the default would be used in silence.
    tx = fo.adamw()
    with pytest.raises(TypeError, match=r"hparams"):
        tx.update(GRADS, tx.init_state(PARAMS), PARAMS, lr=0.5)


@pytest.mark.parametrize(
    "make, keywords, name",
    [
        (fo.clip_by_global_norm, {"maxnorm": 1.0}, "max_norm"),
        (fo.trace, {"momentun": 0.9}, "momentum"),
        (fo.trace, {"nestorov": True}, "nesterov"),
        (fo.scale_by_learning_rate, {"rl": 0.1}, "lr"),
    ],
)
def test_a_misspelt_keyword_of_a_constructor(make, keywords, name):
    with pytest.raises(TypeError, match=rf"{make.__name__} has no .*'{next(iter(keywords))}'; it accepts: .*'{name}'"):
        make(**keywords)


@pytest.mark.parametrize("make", [fo.adamw, fo.sgd, fo.adam, fo.scale_by_adam])
def test_a_misspelt_keyword_of_an_optimizer(make):
    with pytest.raises(TypeError, match=r"'wd'"):
        make(wd=0.1)


def test_a_hyper_parameter_called_step():
    with pytest.raises(ValueError, match="a hyper-parameter can't be called 'step': that is the count of updates"):
        fo.elementwise(hparams={"step": 0.1})(lambda hp: lambda g, p: g)
    with pytest.raises(ValueError, match="can't be called 'step'"):
        fo.rename_hparams(fo.sgd(), lr="step")
    with pytest.raises(ValueError, match="can't be called 'step'"):
        fo.Transform(lambda p, hp: {}, lambda g, s, p, hp: (g, s), {"step": 1.0})


# One value per leaf.


@pytest.mark.parametrize(
    "tree", [{"b": 0.1}, {"net": [0.1, {"w": 0.1}], "b": 0.1, "c": 0.1}, {"net": [0.1], "b": 0.1}, [0.1, 0.2, 0.3], 0.1], ids=str
)
def test_one_value_per_leaf_of_another_structure_names_the_knob(refused, tree):
    refused(ValueError, r"lr", hparams={"lr": fo.PerLeaf(tree)})


@pytest.mark.parametrize(
    "name, tree, error, message",
    [
        ("lr", {"net": [0.1, {"w": -0.2}], "b": 0.1}, ValueError, r"lr\['net'\]\[1\]\['w'\] = -0.2 is outside \[0, inf\)"),
        ("lr", {"net": [0.1, {"w": "x"}], "b": 0.1}, TypeError, r"lr\['net'\]\[1\]\['w'\] = 'x' is a str"),
        (
            "betas",
            {"net": [(0.9, 0.99), {"w": (0.9, 2.0)}], "b": (0.9, 0.99)},
            ValueError,
            r"betas\['net'\]\[1\]\['w'\]\[1\] = 2.0 is outside",
        ),
        (
            "betas",
            {"net": [(0.9, 0.99), {"w": (0.9, 0.99)}], "b": (0.9,)},
            TypeError,
            r"betas\['b'\] = \(0.9,\): expected 2 values",
        ),
        (
            "betas",
            {"net": [(0.9, 0.99), {"w": 0.9}], "b": (0.9, 0.99)},
            TypeError,
            r"betas\['net'\]\[1\]\['w'\] = 0.9: expected 2",
        ),
    ],
)
def test_bad_values_per_leaf_name_the_leaf(refused, name, tree, error, message):
    refused(error, message, hparams={name: fo.PerLeaf(tree)})


def test_one_value_per_leaf_for_a_transform_by_hand():
    tx = fo.Transform(lambda params, hp: {}, lambda u, s, params, hp: (u, s), {"gain": 1.0}, "by_hand")
    for whole in (tx, fo.chain(tx), fo.with_extra(tx), fo.chain(fo.scale(), fo.chain(fo.rename_hparams(tx, gain="volume")))):
        name = "volume" if "volume" in whole.hparams else "gain"
        state = whole.init_state(torch.ones(2))
        with pytest.raises(ValueError, match=r"by_hand takes one 'gain' for all parameters"):
            whole.update(torch.ones(2), state, torch.ones(2), {name: fo.PerLeaf(0.5)})


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, "bfloat16"], ids=str)
@pytest.mark.parametrize("make", [fo.scale_by_adam, fo.sgd, fo.muon, fo.prodigy], ids=lambda f: f.__name__)
def test_a_state_dtype_that_holds_no_real_numbers(make, dtype):
    options = {"momentum": 0.9} if make is fo.sgd else {}
    with pytest.raises(TypeError, match=r"state_dtype = .* expected a real floating dtype"):
        make(**options, state_dtype=dtype)


# Static choices.


@pytest.mark.parametrize(
    "tx, message",
    [
        (lambda: fo.reduce_on_plateau(patience=-1), "patience = -1: expected a whole number of at least 0"),
        (lambda: fo.reduce_on_plateau(cooldown=1.5), "cooldown = 1.5: expected a whole number"),
        (lambda: fo.reduce_on_plateau(accumulation_size=0), "accumulation_size = 0: expected a whole number of at least 1"),
        (lambda: fo.ademamix(alpha_warmup=-1), "warm-up = -1: expected a whole number of at least 0"),
        (lambda: fo.ademamix(beta3_warmup="10"), "warm-up = '10': expected a whole number"),
        (lambda: fo.adagc(warmup_steps=-1), "warmup_steps = -1: expected a whole number of at least 0"),
        (lambda: fo.muon(ns_steps=1.5), "ns_steps = 1.5: expected a whole number"),
        (lambda: fo.muon(ns_steps=100), r"ns_steps = 100 is outside \[0, 100\)"),
    ],
)
def test_counts_out_of_range(tx, message):
    with pytest.raises((TypeError, ValueError), match=message):
        made = tx()
        made.update(GRADS, made.init_state(PARAMS), PARAMS, value=1.0)


# What a rule asks for beside the gradients.


@pytest.mark.parametrize(
    "value, found",
    [
        (None, "None"),
        ("1.0", "'1.0'"),
        (True, "True"),
        (torch.ones(2), r"a tensor of shape \(2,\)"),  # of a parameter's shape it would scale element by element
    ],
)
@pytest.mark.parametrize("make", [fo.polyak_sgd, fo.momo, fo.reduce_on_plateau], ids=lambda f: f.__name__)
def test_a_loss_that_is_no_number(make, value, found):
    tx = make()
    state = tx.init_state(PARAMS)
    with pytest.raises(TypeError, match=rf"needs one number 'value', or a \(\) tensor, but got {found}"):
        tx.update(GRADS, state, PARAMS, value=value)


# Trees.


@pytest.mark.parametrize(
    "grads, message",
    [
        ({"net": GRADS["net"]}, r"params\['b'\] has no counterpart in grads"),
        (
            {**GRADS, "c": torch.ones(1)},
            r"params does not have the structure of grads: grads\['c'\] has no counterpart in params",
        ),
        ({**GRADS, "net": [GRADS["net"][0]]}, r"params\['net'\]\[1\]\['w'\] has no counterpart in grads"),
        ({**GRADS, "net": [*GRADS["net"], torch.ones(1)]}, r"grads\['net'\]\[2\] has no counterpart in params"),
        ({**GRADS, "net": [GRADS["net"][0], {"v": torch.eye(2)}]}, r"grads\['net'\]\[1\]\['v'\] has no counterpart in params"),
        (
            {**GRADS, "net": [GRADS["net"][0], {"w": [torch.eye(2)]}]},
            r"grads\['net'\]\[1\]\['w'\]\[0\] has no counterpart in params",
        ),
        ({**GRADS, "net": tuple(GRADS["net"])}, r"the same leaves are held by other containers: .*\(\*, \{'w': \*\}\)"),
        ([GRADS["b"]], r"grads\[0\] has no counterpart in params"),
        (GRADS["b"], r"params does not have the structure of grads"),
        ({}, r"params\['b'\] has no counterpart in grads"),
    ],
)
def test_gradients_of_another_structure(refused, grads, message):
    refused(ValueError, message, grads=grads)


def test_parameters_of_another_structure_in_apply_updates():
    with pytest.raises(
        ValueError, match=r"params does not have the structure of updates: updates\['b'\] has no counterpart in params"
    ):
        fo.apply_updates({"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)})
    with pytest.raises(ValueError, match=r"updates\['a'\] has shape \(3,\), its parameter \(2,\): they must agree"):
        fo.apply_updates({"a": torch.ones(2)}, {"a": torch.ones(3)})
    with pytest.raises(TypeError, match=r"updates\['a'\] is torch.int64"):
        fo.apply_updates({"a": torch.ones(2)}, {"a": torch.ones(2, dtype=torch.int64)})


def test_a_state_of_another_tree(refused):
    tx = fo.scale_by_adam()
    state = tx.init_state({"a": torch.ones(2)})
    refused(ValueError, r"state\['exp_avg'\] does not have the structure of grads", tx=tx, state=state)


@pytest.mark.parametrize(
    "leaf, error, message",
    [
        (torch.ones(2, 3), ValueError, r"grads\['net'\]\[1\]\['w'\] has shape \(2, 3\), its parameter \(2, 2\): they must agree"),
        (torch.ones(2), ValueError, r"grads\['net'\]\[1\]\['w'\] has shape \(2,\), its parameter \(2, 2\)"),  # would broadcast
        (torch.ones(()), ValueError, r"grads\['net'\]\[1\]\['w'\] has shape \(\), its parameter \(2, 2\)"),
        (
            torch.ones(2, 2, dtype=torch.int64),
            TypeError,
            r"grads\['net'\]\[1\]\['w'\] is torch.int64: gradients are floating point or complex",
        ),
        (torch.ones(2, 2, dtype=torch.bool), TypeError, r"grads\['net'\]\[1\]\['w'\] is torch.bool"),
        (
            torch.eye(2).to_sparse(),
            TypeError,
            r"\['w'\] is sparse \(torch.sparse_coo\): gradients must be dense. Call .to_dense\(\)",
        ),
        (0.5, TypeError, r"grads\['net'\]\[1\]\['w'\] is a float: a gradient is a tensor, or None for none"),
        ("x", TypeError, r"grads\['net'\]\[1\]\['w'\] is a str: a gradient is a tensor"),
        (
            torch.ones(2, 2, dtype=torch.complex64),
            TypeError,
            r"\['w'\] is torch.complex64, its parameter torch.float32: both must be real",
        ),
    ],
)
def test_unfit_gradients_name_the_leaf(refused, leaf, error, message):
    grads = {**GRADS, "net": [GRADS["net"][0], {"w": leaf}]}
    refused(error, message, grads=grads)
    # Without parameters to compare with, what can be seen still is.
    if error is TypeError and "parameter" not in message:
        with pytest.raises(TypeError, match=message):
            fo.scale().update(grads, {})


def test_a_real_gradient_for_a_complex_parameter(refused):
    with pytest.raises(
        TypeError, match=r"grads is torch.float32, its parameter torch.complex64: both must be real or both complex"
    ):
        fo.scale().update(torch.ones(2), {}, torch.ones(2, dtype=torch.complex64))


def test_a_gradient_where_the_parameter_is_missing():
    with pytest.raises(TypeError, match=r"params\['a'\] is None, but has a gradient: expected a tensor"):
        fo.scale().update({"a": torch.ones(2)}, {}, {"a": None})


def test_parameters_that_are_no_tensors():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(
        TypeError,
        match=r"params is a Linear: parameters are tensors. For a module, pass \{name: p.detach",
    ):
        fo.adamw().init_state(model)
    with pytest.raises(TypeError, match=r"params\['a'\] is a float: parameters are tensors"):
        fo.adamw().init_state({"a": 1.0})
    with pytest.raises(TypeError, match=r"params is a generator: parameters are tensors"):
        fo.adamw().init_state(model.parameters())
    with pytest.raises(TypeError, match=r"params is None: init_state\(params, hparams\) takes the tensors that are trained"):
        fo.adamw().init_state(None)
    # What is not trained has no slots, and a tree may hold nothing else.
    for params, slots in (({}, {}), ({"a": None}, {"a": None})):
        assert fo.adamw().init_state(params)["scale_by_adam"]["exp_avg"] == slots


# States and parameters that a rule needs.


@pytest.mark.parametrize("decay", [0.1, torch.tensor(0.1)])
@pytest.mark.parametrize("make", [fo.add_decayed_weights, fo.adamw, lambda: fo.chain(fo.chain(fo.add_decayed_weights()))])
def test_parameters_missing_where_a_rule_reads_them(refused, make, decay):
    message = r"add_decayed_weights failed without the parameters. .*pass them: update\(grads, state, params\)"
    refused(ValueError, message, tx=make(), params=None, hparams={"weight_decay": decay})


@pytest.mark.parametrize("make", [fo.momo, fo.prodigy, fo.scale_by_dog, fo.scale_by_d_adaptation], ids=lambda f: f.__name__)
def test_parameters_missing_where_a_rule_for_all_reads_them(make):
    tx = make()
    with pytest.raises(ValueError, match=r"failed without the parameters. .*pass them: update\(grads, state, params\)"):
        tx.update(GRADS, tx.init_state(PARAMS), value=1.0)


@pytest.mark.parametrize(
    "tx, state, message",
    [
        (
            fo.adamw(),
            fo.sgd().init_state(PARAMS),
            r"one entry per link, \['scale_by_adam', .*but got \['scale_by_learning_rate'\]",
        ),
        (fo.adamw(), {}, r"one entry per link, .*but got \[\]: pass what init_state"),
        (fo.adamw(), None, r"one entry per link, .*but got a NoneType"),
        (fo.adamw(), (), r"one entry per link, .*but got a tuple"),
        (
            fo.scale_by_adam(),
            fo.trace().init_state(PARAMS),
            r"the state of scale_by_adam holds .*but got \['momentum_buffer', 'step'\]",
        ),
        (fo.scale_by_adam(amsgrad=True), fo.scale_by_adam().init_state(PARAMS), r"holds .*'max_exp_avg_sq'.*but got"),
        (fo.scale_by_adam(), fo.scale_by_adam(amsgrad=True).init_state(PARAMS), r"the state of scale_by_adam holds"),
        (fo.scale(), None, r"the state of scale holds \[\], but got a NoneType: pass what init_state"),
        (
            fo.chain(fo.trace()),
            fo.trace().init_state(PARAMS),
            r"one entry per link, \['trace'\], but got \['step', 'momentum_buffer'\]",
        ),
    ],
)
def test_the_state_of_another_transform(refused, tx, state, message):
    refused(ValueError, message, tx=tx, state=state)


@pytest.mark.parametrize("shape", [(5, 2), (1,), ()])
def test_a_slot_of_another_shape_names_the_leaf(refused, shape):
    # Of a model that has changed since: broadcast, it would give an update of the wrong shape, or of the wrong numbers.
    tx = fo.scale_by_adam()
    state = tx.init_state(PARAMS)
    state = {**state, "exp_avg": {**state["exp_avg"], "net": [torch.zeros(shape), state["exp_avg"]["net"][1]]}}
    refused(ValueError, r"state\['exp_avg'\]\['net'\]\[0\] has shape", tx=tx, state=state)


# Rules of one's own.


def test_a_rule_that_returns_the_wrong_number_of_values():
    @fo.elementwise(slots=("m",))
    def forgets_its_slot(hp):
        return lambda g, p, m: g

    @fo.elementwise()
    def has_no_slot(hp):
        return lambda g, p: (g, g)

    with pytest.raises(ValueError, match=r"rule of forgets_its_slot returned 1 values: expected tensors for update, m"):
        forgets_its_slot().update(torch.ones(2), forgets_its_slot().init_state(torch.ones(2)))
    with pytest.raises(ValueError, match=r"the rule of has_no_slot returned 2 values"):
        has_no_slot().update(torch.ones(2), {})


def test_a_rule_that_returns_none():
    @fo.elementwise()
    def silent(hp):
        return lambda g, p: None

    with pytest.raises((TypeError, ValueError), match=r"the rule of silent returned"):
        silent().update(torch.ones(2), {}, torch.ones(2))


def test_a_rule_that_changes_the_shape():
    @fo.elementwise()
    def summed(hp):
        return lambda g, p: g.sum()

    with pytest.raises(ValueError, match=r"summed.*shape"):
        summed().update(torch.ones(2), {}, torch.ones(2))


def test_a_rule_for_whole_tensors_takes_no_complex_ones():
    @fo.per_tensor()
    def normalized(hp):
        return lambda g, p: g / g.norm()

    z = torch.ones(2, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"normalized works on whole tensors and takes no complex ones, but got torch.complex64"):
        normalized().update(z, {})
    assert torch.equal(normalized().update(torch.tensor([3.0, 4.0]), {})[0], torch.tensor([0.6, 0.8]))


def test_an_error_inside_a_rule_is_the_rules_own():
    @fo.elementwise()
    def broken(hp):
        def rule(g, p):
            raise TypeError("mine")

        return rule

    with pytest.raises(TypeError, match="mine"):
        broken().update(torch.ones(2), {}, torch.ones(2))


# Chains and the adapter.


def test_links_with_clashing_defaults():
    with pytest.raises(
        ValueError,
        match=r"trace and trace_1 both have a hyper-parameter 'momentum', with different defaults \(0.9 and 0.5\)."
        r' .*tell them apart with rename_hparams\(trace_1, momentum="trace_1_momentum"\)',
    ):
        fo.chain(fo.trace(0.9), fo.trace(0.5))
    with pytest.raises(ValueError, match=r"adamw and scale_by_adam both have a hyper-parameter 'eps'.*rename_hparams"):
        fo.chain(fo.adamw(), fo.scale_by_adam(eps=1e-3))


def test_a_link_that_is_not_a_transform():
    with pytest.raises(
        TypeError, match=r"link 1 of chain: .*scale_by_adam.* is not a Transform. Did you mean to call it, scale_by_adam\(\)"
    ):
        fo.chain(fo.scale(), fo.scale_by_adam)
    with pytest.raises(TypeError, match=r"link 0 of mine: 0.1 is not a Transform"):
        fo.chain(0.1, name="mine")
    with pytest.raises(TypeError, match=r"link 0 of chain is a list: give the links one by one, chain\(\*links\)"):
        fo.chain([fo.scale(), fo.sgd()])


@pytest.mark.parametrize(
    "empty", [fo.chain(), fo.chain(fo.chain(), fo.chain(fo.chain())), fo.rename_hparams(fo.chain())], ids=repr
)
def test_an_empty_chain_behind_the_adapter(empty):
    with pytest.raises(ValueError, match=r"empty chain.*Give it links, the last of them scale_by_learning_rate\(\)"):
        OptimizerAdapter([torch.nn.Parameter(torch.ones(1))], empty)


def test_a_constructor_or_something_else_behind_the_adapter():
    p = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(TypeError, match=r".*adamw.* is not a Transform. Did you mean to call it, adamw\(\)"):
        OptimizerAdapter([p], fo.adamw)
    with pytest.raises(TypeError, match=r"OptimizerAdapter\(params, transform\): 0.1 is not a Transform"):
        OptimizerAdapter([p], 0.1)
    with pytest.raises(TypeError, match=r"a list is not a Transform. One after another they are fo.chain\(\*links\)"):
        OptimizerAdapter([p], [fo.clip_by_global_norm(), fo.adamw()])
    with pytest.raises(ValueError, match="empty parameter list"):
        OptimizerAdapter([], fo.adamw())
    with pytest.raises(TypeError, match=r"OptimizerAdapter\(params, transform, \*, .*by their names, such as lr=0.1.$"):
        OptimizerAdapter([p], fo.adamw(), 0.1)
    with pytest.raises(TypeError, match=r"params is None: pass model.named_parameters\(\)"):
        OptimizerAdapter(None, fo.adamw())


@pytest.mark.parametrize("make", [lambda p: OptimizerAdapter(p, fo.adamw()), fo.adapters.Adam, fo.adapters.LBFGS])
def test_parameters_that_have_been_looped_over(make):
    params = torch.nn.Linear(2, 2).parameters()
    assert len(list(params)) == 2
    with pytest.raises(ValueError, match=r"empty parameter list. What model.parameters\(\) returns gives its tensors once"):
        make(params)


def test_a_word_that_a_class_of_torchs_does_not_take():
    p = torch.nn.Parameter(torch.ones(1))
    for optimizer in (fo.adapters.Adam, fo.adapters.LBFGS):
        with pytest.raises(TypeError, match=r"has no argument 'learning_rate'; it accepts: 'params', 'lr', .*mean 'lr'\?"):
            optimizer([p], learning_rate=0.1)


def test_options_of_the_constructor_are_no_hyper_parameters_of_the_adapter():
    with pytest.raises(ValueError, match=r"sgd has no hyper-parameter 'nesterov'; it accepts: 'momentum', 'dampening', 'lr'"):
        OptimizerAdapter([torch.nn.Parameter(torch.ones(1))], fo.sgd(momentum=0.9), nesterov=True)


# Words of other libraries, and slips.


def test_the_table_of_words_leads_to_names_that_are_here():
    transforms = [getattr(fo, name) for name in fo.__all__ if name not in ("Hparam", "PerLeaf", "Transform")]
    made_by = [*transforms, fo.solvers.lbfgs, fo.solvers.zoom]
    known = {name for made in made_by for name in inspect.signature(made).parameters}
    known |= {*fo.solvers.Minimum._fields, "converged", "why"}
    known |= {*fo.__all__, *fo.solvers.__all__, *dir(fo.Transform), "adapters.OptimizerAdapter", "adapters.as_lr_scheduler"}
    assert fo.adapters.OptimizerAdapter is OptimizerAdapter
    for word, meant in MEANT.items():
        assert set(meant) <= known and word not in meant, word
        assert word not in fo.__all__, f"{word} is a name of this library"


@pytest.mark.parametrize(
    "make, word, advice",
    [
        (fo.clip_by_value, "max_delta", "Did you mean 'clip_value'"),
        (fo.clip_by_global_norm, "clipnorm", "Did you mean 'max_norm'"),
        (fo.scale_by_learning_rate, "learning_rate", "Did you mean 'lr'"),
        (fo.trace, "decay", "Did you mean 'momentum'"),
        (fo.scale_by_adadelta, "decay", "Did you mean 'rho'"),
        (fo.scale, "step_size", "Did you mean 'factor'"),
        (fo.adamw, "learning_rate", "Did you mean 'lr'"),
        (fo.adamw, "b1", "Did you mean 'betas'"),
        (fo.rmsprop, "decay", "Did you mean 'alpha'"),
        (fo.adam, "foreach", "the optimizer's choice"),
        (fo.accumulate, "every_k_schedule", "Did you mean 'every'"),
        (fo.partition, "param_labels", "Did you mean 'labels'"),
        (fo.add_decayed_weights, "mask", r"masked\(add_decayed_weights\(\), mask\)"),
    ],
)
def test_the_word_of_another_library_in_a_constructor(make, word, advice):
    with pytest.raises(TypeError, match=rf"{make.__name__} has no argument '{word}'; it accepts: .*{advice}"):
        make(**{word: 0.5})


@pytest.mark.parametrize(
    "word, advice",
    [
        ("learning_rate", "Did you mean 'lr'"),
        ("b1", "Did you mean 'betas'"),
        ("beta_2", "Did you mean 'betas'"),
        ("epsilon", "Did you mean 'eps'"),
        ("wd", "Did you mean 'weight_decay'"),
        ("eps_root", "slope 0 at 0"),
        ("mask", "masked"),
    ],
)
def test_the_word_of_another_library_among_hyper_parameters(refused, word, advice):
    refused(ValueError, rf"adamw has no hyper-parameter '{word}'; .*{advice}", hparams={word: 0.5})
    with pytest.raises(ValueError, match=advice):
        OptimizerAdapter([torch.nn.Parameter(torch.ones(1))], fo.adamw(), **{word: 0.5})
    with pytest.raises(ValueError, match=advice):
        fo.set_defaults(fo.adamw(), **{word: 0.5})


@pytest.mark.parametrize("word", ["lr", "learning_rate", "b1"])
def test_a_hyper_parameter_as_a_keyword_of_update(word):
    tx = fo.adamw()
    for made in (tx, fo.scheduled(tx, lr=fo.constant(0.1))):
        with pytest.raises(TypeError, match=rf"unexpected keyword '{word}'. Hyper-parameters go into the mapping hparams"):
            made.update(GRADS, made.init_state(PARAMS), PARAMS, **{word: 0.5})


@pytest.mark.parametrize(
    "name, advice",
    [
        ("init", "Did you mean 'init_state'"),
        ("updaet", "Did you mean 'update'"),
        ("zero_grad", r"an optimizer holds parameters and state: fo.adapters.OptimizerAdapter"),
    ],
)
def test_an_attribute_that_a_transform_lacks(name, advice):
    with pytest.raises(AttributeError, match=rf"a Transform has no attribute '{name}'.*{advice}"):
        getattr(fo.adamw(), name)
    assert not hasattr(fo.adamw(), "_private") and copy.copy(fo.adamw()).name == "adamw"


@pytest.mark.parametrize(
    "name, advice",
    [
        ("clip", "Did you mean 'clip_by_value'"),
        ("multi_transform", "Did you mean 'partition'"),
        ("set_to_zero", "Did you mean 'freeze'"),
        ("adamm", "Did you mean 'adam'"),
        ("AdamW", "Did you mean 'adapters.AdamW'"),
        ("unroll", "Did you mean 'meta.unroll'"),
        ("check_transform", "Did you mean 'testing.check_transform'"),
        ("global_norm", "Did you mean 'numerics.global_norm'"),
        ("qqq", r"'qqq'\.$"),
    ],
)
def test_an_attribute_that_the_library_lacks(name, advice):
    with pytest.raises(AttributeError, match=rf"module 'functional_optim' has no attribute '{name}'.*{advice}|{advice}"):
        getattr(fo, name)


# What people take for a number.


@pytest.mark.parametrize("make", [fo.adamw, fo.scale_by_adam, functools.partial(fo.set_defaults, fo.adamw())])
def test_a_pair_that_is_one_number_is_refused_at_once(make):
    with pytest.raises(TypeError, match=r"betas = 0.9: expected 2 values, as in \(0.9, 0.999\)"):
        make(betas=0.9)


class OtherSequence(collections.UserList):
    """Such as the lists of configuration libraries, which are no lists."""


@pytest.mark.parametrize("kind", [list, tuple, OtherSequence, collections.deque], ids=lambda kind: kind.__name__)
def test_any_sequence_of_two_numbers_is_a_pair(kind):
    betas = kind([0.5, 0.25])
    expected = fo.adamw().update(GRADS, fo.adamw().init_state(PARAMS), PARAMS, {"betas": (0.5, 0.25)})
    for tx, hparams in ((fo.adamw(betas=betas), None), (fo.adamw(), {"betas": betas})):
        assert same(tx.update(GRADS, tx.init_state(PARAMS), PARAMS, hparams), expected)
    per_leaf = {"betas": fo.PerLeaf({"net": [betas, {"w": betas}], "b": betas})}
    assert same(fo.adamw().update(GRADS, fo.adamw().init_state(PARAMS), PARAMS, per_leaf), expected)


def test_a_sequence_in_a_group_may_be_changed_in_place():
    p, betas = torch.nn.Parameter(torch.ones(2)), OtherSequence([0.5, 0.25])
    optimizer = OptimizerAdapter([{"params": [p], "betas": betas}], fo.adamw())
    p.grad = torch.ones(2)
    optimizer.step()
    betas[0] = 1.5
    with pytest.raises(ValueError, match=r"param_groups\[0\]: betas\[0\] = 1.5 is outside"):
        optimizer.step()


@pytest.mark.parametrize("schedule", [fo.constant(0.1), lambda step: 0.1], ids=["schedule", "function"])
def test_a_schedule_in_the_place_of_a_number(refused, schedule):
    message = r"lr = .*: expected a number or a \(\) tensor. A function of the step .*fo.scheduled\(transform, lr=...\)"
    refused(TypeError, message, hparams={"lr": schedule})
    with pytest.raises(TypeError, match=message):
        fo.adamw(lr=schedule)


def test_a_number_that_a_schedule_gives(refused):
    tx = fo.chain(fo.clip_by_global_norm(), fo.scheduled(fo.adamw(), lr=fo.constant(0.1)))
    message = r"'lr' of (chain|adamw) is given by a schedule, so it can't be given here. .*scheduled\(transform, lr=...\)"
    refused(ValueError, message, tx=tx, hparams={"lr": 0.1})
    for give in (
        lambda: OptimizerAdapter([torch.nn.Parameter(torch.ones(1))], tx, lr=0.1),
        lambda: fo.scheduled(tx, lr=fo.constant(0.2)),
        lambda: fo.set_defaults(tx, lr=0.2),
    ):
        with pytest.raises(ValueError, match=message):
            give()


def test_text_where_a_number_belongs(refused):
    refused(TypeError, r"lr = '1e-3' is a str: .* Write float\('1e-3'\); YAML takes 1e-3 for text", hparams={"lr": "1e-3"})


@pytest.mark.parametrize("params", [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).parameters()], ids=["module", "parameters"])
def test_parameters_where_a_number_belongs(params):
    advice = r"If these are parameters: .*fo.adapters.OptimizerAdapter\(params, transform\)"
    with pytest.raises(TypeError, match=rf"lr = .*{advice}"):
        fo.adam(params)
    with pytest.raises(TypeError, match=rf"adam: multiple values for argument 'lr'; it is adam\(lr=0.001, .*{advice}"):
        fo.adam(params, lr=0.1)


def test_values_per_element_have_a_way_of_their_own(refused):
    rates = {"net": [torch.ones(2), {"w": torch.ones(2, 2)}], "b": torch.tensor(0.1)}
    message = (
        r"lr\['net'\]\[0\] is a tensor of shape \(2,\).*Values per element want a rule .*leaf_extra=\('rates',\).*rates=tree"
    )
    refused(TypeError, message, hparams={"lr": fo.PerLeaf(rates)})

    @fo.elementwise(leaf_extra=("rates",))
    def by_rates(hp):
        return lambda u, p, rates: -rates * u

    updates, _ = by_rates().update(GRADS, {}, PARAMS, rates=rates)
    assert same(updates["net"][0], -GRADS["net"][0])


# What people take for gradients, updates and states.


@pytest.mark.parametrize(
    "make", [fo.adamw, fo.sgd, fo.scale_by_adam, lambda: fo.sam(fo.sgd()), lambda: fo.accumulate(fo.sgd(), 2)]
)
def test_gradients_and_state_in_the_wrong_order(make):
    tx = make()
    with pytest.raises(TypeError, match=r"grads is a state: the order is update\(grads, state, params, hparams\)"):
        tx.update(tx.init_state(PARAMS), GRADS, PARAMS)


def test_the_pair_that_update_returns():
    tx = fo.adamw()
    pair = tx.update(GRADS, tx.init_state(PARAMS), PARAMS)
    unpack = r"If this is the pair that update returned, unpack it: updates, state = "
    with pytest.raises((TypeError, ValueError), match=unpack):
        fo.apply_updates(PARAMS, pair)
    with pytest.raises(ValueError, match=rf"but got a tuple: .*{unpack}"):
        tx.update(GRADS, pair, PARAMS)
    with pytest.raises((TypeError, ValueError), match=unpack):
        tx.update(pair, tx.init_state(PARAMS), PARAMS)


def test_parameters_of_whole_numbers_that_are_trained(refused):
    params = {"w": torch.ones(2), "n": torch.tensor([1, 2])}
    tx = fo.adamw()
    state = tx.init_state(params)
    message = r"params\['n'\] is torch.int64, but grads has a tensor for it: what is trained is floating point or complex"
    with pytest.raises(TypeError, match=message):
        tx.update({"w": torch.ones(2), "n": torch.ones(2)}, state, params)
    with pytest.raises(TypeError, match=r"params\['n'\] is torch.int64, but updates has a tensor for it"):
        fo.apply_updates(params, {"w": torch.ones(2), "n": torch.ones(2)})
    assert params["n"].tolist() == [1, 2]
    updates, _ = tx.update({"w": torch.ones(2), "n": None}, state, params)
    assert fo.apply_updates(params, updates)["n"] is params["n"]


def test_another_device_names_the_leaf(refused):
    there = {**GRADS, "b": GRADS["b"].to("meta")}
    refused(ValueError, r"grads\['b'\] is on meta, its parameter on cpu: they must agree. .*\.to\('cpu'\)", grads=there)
    tx = fo.adamw()
    state = tx.init_state({**PARAMS, "b": PARAMS["b"].to("meta")})
    refused(ValueError, r"state\['exp_avg'\]\['b'\] is on meta, its gradient on cpu: they must agree", tx=tx, state=state)


def test_the_loss_that_a_rule_asks_for_behind_an_optimizer():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = OptimizerAdapter([p], fo.chain(fo.adam(), fo.reduce_on_plateau()))
    p.grad = torch.ones(2)
    message = r"reduce_on_plateau needs 'value': .*behind an optimizer, step\(value=...\), or step\(closure\)"
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    with pytest.raises(TypeError, match=r"closure is a Tensor, no function. To give the loss itself, step\(value=loss\)"):
        optimizer.step(torch.tensor(1.0))
    assert torch.equal(p, torch.ones(2)) and not optimizer.state[p]


# A graph that nobody asked for.


def test_a_loop_over_a_modules_own_parameters_is_warned_of():
    model, tx = torch.nn.Linear(2, 1), fo.sgd()

    def step(params):
        grads = torch.func.grad(lambda p: torch.func.functional_call(model, p, torch.ones(1, 2)).sum())(params)
        return fo.apply_updates(params, tx.update(grads, tx.init_state(params), params)[0])

    with pytest.warns(UserWarning, match=r"params\['\w+'\] is an nn.Parameter, so autograd records .*p.detach\(\)") as caught:
        step(dict(model.named_parameters()))
    assert [warning.filename for warning in caught] == [__file__]
    for meant in (
        {name: p.detach() for name, p in model.named_parameters()},
        {name: p.clone() for name, p in model.named_parameters()},
        {name: p.requires_grad_(False) for name, p in copy.deepcopy(model).named_parameters()},
    ):
        step(meant)
    with torch.no_grad():
        step(dict(model.named_parameters()))
    unrolled = fo.meta.unroll(lambda p: sum((x**2).sum() for x in p.values()), tx, steps=2)(dict(model.named_parameters()))
    assert all(p.requires_grad for p in unrolled.params.values())


# Loops.


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0.1,), r"hparams is a float: expected a mapping of names to numbers, .* \(params, hparams, batch\)"),
        (((torch.ones(2),),), r"hparams is a tuple: expected a mapping .* Data come after them"),
        (({"lr": 0.1}, torch.ones(2)), r"batch is a Tensor: expected a tuple .* such as \(x, y\)"),
    ],
)
def test_the_arguments_of_an_unrolled_loop(arguments, message):
    inner = fo.meta.unroll(lambda p, x: ((p - x) ** 2).sum(), fo.sgd(), steps=2)
    with pytest.raises(TypeError, match=message):
        inner(torch.zeros(2), *arguments)


# Optimizers.


@pytest.mark.parametrize(
    "make", [lambda params: OptimizerAdapter(params, fo.adam()), fo.adapters.AdamW], ids=["adapter", "drop-in"]
)
@pytest.mark.parametrize(
    "params, message",
    [
        (torch.nn.Linear(2, 1), r"params is a module, a Linear: pass model.named_parameters\(\)"),
        (dict(torch.nn.Linear(2, 1).named_parameters()), r"params is a mapping, a dict: pass its items\(\)"),
        (torch.nn.Linear(2, 1).state_dict(), r"no tensor in it requires a gradient, .* pass model.named_parameters\(\)"),
        ({"params": [torch.nn.Parameter(torch.ones(1))]}, r"pass a list of groups, \[\{'params': ..., 'lr': ...\}, ...\]"),
        (torch.nn.Linear(2, 1).parameters, r"params is a function, 'parameters': call it"),
        (fo.adam(), r"params is a Transform: parameters come first"),
    ],
    ids=["module", "dict", "state dict", "group", "method", "transform"],
)
def test_what_people_give_for_parameters(make, params, message):
    with pytest.raises(TypeError, match=message):
        make(params)


def test_a_transform_before_the_parameters():
    with pytest.raises(TypeError, match=r"params is a Transform: parameters come first"):
        OptimizerAdapter(fo.adam(), torch.nn.Linear(2, 1).parameters())


@pytest.mark.parametrize("option", ["fused", "owners"])
def test_options_that_are_yes_or_no(option):
    for other in ("no", 3, object(), [], torch.ones(2, dtype=torch.bool)):
        with pytest.raises(TypeError, match=re.escape(f"{option} = {other!r} of OptimizerAdapter: expected True or False")):
            OptimizerAdapter([WEIGHT], fo.adam(), **{option: other})
    for one in (None, 1, np.bool_(True), torch.tensor(True)):
        assert getattr(OptimizerAdapter([WEIGHT], fo.adam(), **{option: one}), option) is one


def test_labels_are_checked_when_the_optimizer_is_made():
    model, branches = torch.nn.Linear(2, 1), {"decay": fo.adamw(), "plain": fo.adam()}
    with pytest.raises(ValueError, match=r"no parameter is labelled 'decay'; there are: 'weight', 'bias'\.$"):
        OptimizerAdapter(model.named_parameters(), fo.partition(branches, fo.by_name({"wieght": "decay", ".*": "plain"})))
    tx = fo.partition(branches, fo.by_name({"weight": "decay", "bias": "plain"}))
    with pytest.raises(
        ValueError, match=r"'group 0, parameter 0' got no label.*have no names here: pass model.named_parameters\(\)"
    ):
        OptimizerAdapter(model.parameters(), tx)
    optimizer = OptimizerAdapter(model.named_parameters(), tx)
    with pytest.raises(ValueError, match=r"the parameter 'scale' got no label"):
        optimizer.add_param_group({"params": [("scale", torch.nn.Parameter(torch.ones(1)))]})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [("other.bias", torch.nn.Parameter(torch.ones(1)))]})


# Labels.


@pytest.mark.parametrize(
    "patterns, message",
    [
        (
            {r".*": "a", r"w": "b"},
            r"the pattern 'w' of by_name, for 'b', is left nothing .*'\.\*', for 'a', comes before it, as for 'net.1.w'",
        ),
        (
            {r"net": "a", r"w": "b", r".*": "a"},
            r"the pattern 'w' of by_name, for 'b', is left nothing .*'net', for 'a', comes before",
        ),
        ({r".": "a", r".*": "b"}, r"the pattern '\.\*' of by_name, for 'b', is left nothing .*'\.', for 'a', comes before"),
        ({r"net\.0": "a", r"net": "a", r"w": "b", r".*": "b"}, r"the pattern 'w' of by_name, for 'b', is left nothing"),
    ],
)
def test_a_pattern_that_is_left_nothing(patterns, message):
    with pytest.raises(ValueError, match=message):
        fo.partition({"a": fo.sgd(), "b": fo.adam()}, fo.by_name(patterns)).init_state(PARAMS)


@pytest.mark.parametrize(
    "patterns",
    [
        {r"net": "a", r"w": "a", r".*": "b"},  # Nothing would change if it came first.
        {r"net|b": "a", r".*": "b"},
        {r"net": "a", r"no such": "b", r".*": "b"},
        {r"net\.1": "a", r"net": "b", r"b": "b"},
    ],
)
def test_patterns_that_may_be_left_nothing(patterns):
    state = fo.partition({"a": fo.sgd(), "b": fo.adam()}, fo.by_name(patterns)).init_state(PARAMS)
    assert set(state) == {"a", "b"}


def test_a_pattern_that_is_none():
    with pytest.raises(
        ValueError, match=r"'\*\.weight' is no regular expression: nothing to repeat .* r'\\\.weight\$' for '\*\.weight'"
    ):
        fo.by_name({"*.weight": "a"})
    with pytest.raises(TypeError, match=r"patterns is a list: expected a mapping"):
        fo.by_name(["weight", "bias"])


@pytest.mark.parametrize(
    "make", [lambda f: fo.partition({"a": fo.sgd()}, f), lambda f: fo.masked(fo.sgd(), f)], ids=["labels", "mask"]
)
def test_a_function_of_the_whole_tree_is_no_label(make):
    with pytest.raises(
        TypeError, match=r"lambda name, leaf: .*this one takes \(params\): too many positional arguments. .*optax's"
    ):
        make(lambda params: dict.fromkeys(params, "a"))


def test_a_label_that_is_no_label():
    with pytest.raises(ValueError, match=r"'b' got the label \{'b': 'a'\}: expected one of 'a'"):
        fo.partition({"a": fo.sgd()}, lambda name, leaf: {name: "a"}).init_state(PARAMS)


# What is given to the wrong function, in the wrong place, or in the wrong form.


@fo.elementwise(hparams={"lr": 0.1})
def no_rule(hp):
    return -hp["lr"]


@fo.elementwise(slots=("m",))
def rule_without_parameter(hp):
    return lambda g, m: (g, m)


@fo.whole_tree()
def rule_without_shared(hp):
    return lambda gs, ps: (gs, {})


def first_value_of(start):
    return fo.elementwise(slots={"m": start})(lambda hp: lambda g, p, m: (g, m))


WEIGHT = torch.nn.Parameter(torch.ones(2))
SLIPS = {
    "a first value of too few arguments": (
        lambda: first_value_of(lambda p: p),
        TypeError,
        r"slots\['m'\] of <lambda> is called with a parameter and the hyper-parameters, \(p, hp\): it is \(p\): too many",
    ),
    "a first value that is a number": (lambda: first_value_of(0.0), TypeError, r"slots\['m'\] .*: it is 0.0, no function"),
    "hyper-parameters in the place of parameters": (
        lambda: fo.adam().update(GRADS, fo.adam().init_state(PARAMS), {"lr": 0.1}),
        TypeError,
        r"params has hyper-parameters: the order is update\(grads, state, params, hparams\)",
    ),
    "a gradient and the loss": (
        lambda: fo.adam().update((GRADS, torch.tensor(1.0)), fo.adam().init_state(PARAMS), PARAMS),
        ValueError,
        r"If this is the pair that grad_and_value returned, unpack it",
    ),
    "a hyper-parameter as an attribute": (
        lambda: fo.adam().lr,
        AttributeError,
        r"Its default is transform.hparams\['lr'\]; set_defaults",
    ),
    "a number that a constructor leaves out": (
        lambda: fo.sgd().init_state(PARAMS, {"momentum": 0.9}),
        ValueError,
        r"sgd has no hyper-parameter 'momentum'; .* It is an argument of the constructor, sgd\(momentum=...\)",
    ),
    "values per leaf for groups": (
        lambda: OptimizerAdapter([torch.nn.Parameter(torch.ones(1))], fo.adam(), lr=fo.PerLeaf([0.1])),
        TypeError,
        r"lr is a PerLeaf, but an optimizer has groups: .*\{'params': \[...\], 'lr': ...\}",
    ),
    "a name": (lambda: fo.chain("adamw"), TypeError, r"'adamw' is not a Transform. .* are functions: fo.adamw\(\)"),
    "torch's class": (
        lambda: fo.chain(torch.optim.AdamW),
        TypeError,
        r"AdamW'> is not a Transform. .* are functions: fo.adamw\(\)",
    ),
    "torch's optimizer": (
        lambda: fo.chain(torch.optim.SGD([torch.ones(1)])),
        TypeError,
        r"link 0 of chain: an optimizer, SGD, is not a Transform. fo.adapters.transform_of",
    ),
    "a number for a switch": (lambda: fo.sgd(momentum=0.9, nesterov=1.0), TypeError, r"nesterov = 1.0 of sgd: expected True or"),
    "a number for a switch of a class": (
        lambda: fo.adapters.SGD([WEIGHT], momentum=0.9, nesterov=1.0),
        TypeError,
        r"nesterov = 1.0 of SGD: expected True or False",
    ),
    "a function of torch's for a link": (
        lambda: fo.chain(torch.nn.utils.clip_grad_norm_, fo.adam()),
        TypeError,
        r"torch's clip_grad_norm_ is not a Transform. Did you mean fo.clip_by_global_norm\(\)",
    ),
    "a number for a name": (lambda: fo.chain(fo.adam(), name=3), TypeError, r"name = 3 of chain: expected a text"),
    "one bool for a mask": (
        lambda: fo.masked(fo.adam(), True).init_state(PARAMS),
        ValueError,
        r"the mask names no parameter: it has a single bool, and no name; there are: ",
    ),
    "an optimizer that does not step in backward": (
        lambda: fo.adapters.step_in_backward(torch.nn.Linear(1, 1), fo.adapters.AdamW([WEIGHT])),
        TypeError,
        r"make_optimizer is a AdamW: expected a function that makes an optimizer",
    ),
    "a word that a function does not take": (
        lambda: fo.adapters.param_groups(torch.nn.Linear(1, 1), wd=0.1),
        TypeError,
        r"param_groups has no argument 'wd'; it accepts: .*Did you mean 'weight_decay'",
    ),
    "a loop without a length": (
        lambda: fo.meta.unroll(lambda p: p.sum(), fo.adam()),
        TypeError,
        r"unroll: missing a required argument: 'steps'; it is unroll\(loss_fn, transform, steps, ",
    ),
    "a loss without data": (
        lambda: fo.meta.unroll(lambda p: p.sum(), fo.adam(), 1)(torch.ones(2), {}, (torch.ones(2),)),
        TypeError,
        r"the loss is called with \(params, batch\), but takes \(p\): too many positional arguments",
    ),
    "what a function returned": (
        lambda: fo.meta.keyed(torch.ones(())),
        TypeError,
        r"keyed got a Tensor: expected a function",
    ),
    "a loss for a transform": (
        lambda: fo.meta.unroll(fo.adam(), lambda p: p.sum(), 5),
        TypeError,
        r"unroll\(loss_fn, transform, steps\): the loss, a function, comes first, but loss_fn is a Transform",
    ),
    "a state for a transform": (
        lambda: fo.hparams_at({}, fo.adam()),
        TypeError,
        r"hparams_at\(transform, state\): a dict is not",
    ),
    "an optimizer for a state": (
        lambda: fo.state_get(OptimizerAdapter([torch.ones(1)], fo.adam()), "exp_avg"),
        TypeError,
        r"state is a OptimizerAdapter: .*optimizer.state\[parameter\] has the slots, 'exp_avg'",
    ),
    "a number for a schedule": (
        lambda: fo.scheduled(fo.adam(), lr=0.1),
        TypeError,
        r"For a value that stays, set_defaults\(transform, lr=",
    ),
    "torch's scheduler for a schedule": (
        lambda: fo.scheduled(fo.adam(), lr=torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)]), 1)),
        TypeError,
        r"torch's schedulers drive an optimizer: give one to OptimizerAdapter",
    ),
    "a schedule without a step": (
        lambda: fo.scheduled(fo.adam(), lr=lambda: 0.1),
        TypeError,
        r"the schedule of 'lr' is called with the step, but takes \(\): too many",
    ),
    "a schedule that was not called": (
        lambda: fo.scheduled(fo.adam(), lr=fo.warmup_cosine),
        TypeError,
        r"the schedule of 'lr' is a class: call it, lr=warmup_cosine\(...\)",
    ),
    "a schedule that returns nothing": (
        lambda: fo.scheduled(fo.adam(), lr=lambda step: None).init_state(PARAMS),
        TypeError,
        r"the first value of the schedule of 'lr' = None is a NoneType: expected a number",
    ),
    "a schedule of one number for a pair": (
        lambda: fo.scheduled(fo.adam(), betas=lambda step: 0.9).init_state(PARAMS),
        TypeError,
        r"the first value of the schedule of 'betas' = 0.9: expected 2 values",
    ),
    "a schedule below its range": (
        lambda: fo.scheduled(fo.adam(), lr=lambda step: -0.1).init_state(PARAMS),
        ValueError,
        r"the first value of the schedule of 'lr' = -0.1 is outside \[0, inf\)",
    ),
    "a number for a factor's schedule": (
        lambda: fo.scale_by_schedule(0.1).update(GRADS, {"step": torch.tensor(0)}, PARAMS),
        TypeError,
        r"schedule = 0.1 of scale_by_schedule: expected a function of the step; for a number, scale\(0.1\)",
    ),
    "a condition without a step": (
        lambda: fo.conditionally(fo.adam(), lambda: True),
        TypeError,
        r"the condition is called with the step, .*takes \(\): too many",
    ),
    "a number of steps without steps": (
        lambda: fo.accumulate(fo.adam(), lambda: 3),
        TypeError,
        r"every, a function, is called with the number of steps taken, but takes \(\): too many",
    ),
    "a number to differentiate in": (
        lambda: fo.meta.forward_grad(lambda lr: lr**2)(2.0),
        TypeError,
        r"holds no tensor to differentiate in: 2.0. Numbers go in as torch.tensor",
    ),
    "a number for per-step numbers": (
        lambda: fo.meta.unroll(lambda p: p.sum(), fo.adam(), 2)(torch.ones(2), schedule=0.1),
        TypeError,
        r"schedule is a float: expected a mapping",
    ),
    "a schedule in its place": (
        lambda: fo.scheduled(fo.adam(), fo.constant(0.1)),
        TypeError,
        r"scheduled: too many positional arguments; it is scheduled\(transform, \*\*schedules\)",
    ),
    "an argument left out": (
        lambda: fo.accumulate(fo.adam()),
        TypeError,
        r"missing a required argument: 'every'; it is accumulate\(transform, every\)",
    ),
    "optax's word for a schedule": (
        lambda: fo.cosine(init_value=1.0, decay_steps=10),
        TypeError,
        r"cosine has no argument 'init_value'; it accepts: 'start', 'end', 'steps', 'exponent'. Did you mean 'start'",
    ),
    "a misspelt word of a schedule": (lambda: fo.warmup_cosine(0.1, warmup=1), TypeError, r"Did you mean 'warmup_steps'"),
    "names for a mask": (lambda: fo.masked(fo.adam(), ["w"]), TypeError, r"the mask has the text 'w' .*\{'w': True\}"),
    "a label for a table": (lambda: fo.by_ndim("a"), TypeError, r"labels is a str: expected a mapping of numbers of dimensions"),
    "labels before the model": (
        lambda: fo.by_module({torch.nn.Linear: "a"}, torch.nn.Linear(1, 1)),
        TypeError,
        r"by_module\(model, labels\) got a dict and a Linear",
    ),
    "labels that leave some out": (
        lambda: fo.partition({"a": fo.sgd()}, {"b": "a"}).init_state(PARAMS),
        ValueError,
        r"'net.0' got no label: expected one of 'a'. The tree of labels has to give",
    ),
    "dimensions that leave some out": (
        lambda: fo.partition({"a": fo.sgd()}, fo.by_ndim({0: "a"})).init_state(PARAMS),
        ValueError,
        r"'net.0' got no label: .* Give otherwise=",
    ),
    "a function that leaves some out": (
        lambda: fo.partition({"a": fo.sgd()}, lambda name, leaf: None).init_state(PARAMS),
        ValueError,
        r"got no label: .* The function of labels returns the name of a branch",
    ),
    "several numbers": (lambda: fo.adam(lr=[0.1, 0.2]), TypeError, r"lr = \[0.1, 0.2\] is a list: .* torch.vmap"),
    "a number for each": (lambda: fo.adam(lr={"w": 0.1}), TypeError, r"lr = .* is a dict: .* wrap the tree of them, fo.PerLeaf"),
    "names reversed": (
        lambda: fo.rename_hparams(fo.adam(), mine="eps"),
        ValueError,
        r"has no .*'mine'; .* comes first: eps='mine'",
    ),
    "hyper-parameters as a list": (
        lambda: fo.elementwise(hparams=["lr"])(lambda hp: None),
        TypeError,
        r"hparams is a list: expected a mapping",
    ),
    "no rule": (
        lambda: no_rule().update(GRADS, {}, PARAMS),
        TypeError,
        r"the function of no_rule takes scalars and returns the rule, .* -0.1",
    ),
    "a rule with too few arguments": (
        lambda: rule_without_parameter().update(GRADS, rule_without_parameter().init_state(PARAMS), PARAMS),
        TypeError,
        r"the rule of rule_without_parameter is called with g, p, m, but takes \(g, m\): too many",
    ),
    "a rule for all with too few arguments": (
        lambda: rule_without_shared().update(GRADS, {}, PARAMS),
        TypeError,
        r"the rule of rule_without_shared is called with gs, ps, shared, but takes \(gs, ps\): too many",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_slips(slip):
    make, error, message = SLIPS[slip]
    with pytest.raises(error, match=message):
        make()


# What the optimizer's own methods are given.
METHOD_SLIPS = {
    "a group without parameters": (
        lambda optimizer: optimizer.add_param_group({"lr": 0.1}),
        r"param_groups\[1\] has no 'params', but 'lr': a group is a dict such as \{'params': ",
    ),
    "a transform in a group": (
        lambda optimizer: optimizer.add_param_group({"params": [torch.ones(1)], "transform": fo.sgd()}),
        r"param_groups\[1\] has a transform, 'transform', but .* fo.partition",
    ),
    "a parameter in two groups": (
        lambda optimizer: optimizer.add_param_group({"params": [torch.ones(1), WEIGHT]}),
        r"more than one parameter group: parameter 1 of param_groups\[1\] is in param_groups\[0\], too",
    ),
    "what is computed of a parameter": (
        lambda optimizer: optimizer.add_param_group({"params": [WEIGHT * 2]}),
        r"non-leaf Tensor: parameter 0 of param_groups\[1\], shape \(2,\), is computed .* or p.detach\(\).requires_grad_\(\)",
    ),
    "a learning rate for a step": (
        lambda optimizer: optimizer.step(learning_rate=0.1),
        r"step got 'learning_rate', a hyper-parameter: those are in the groups",
    ),
    "a file for a checkpoint": (
        lambda optimizer: optimizer.load_state_dict("optimizer.pt"),
        r"state_dict is a str: expected .*torch.load\(path\) reads one",
    ),
    "nothing for a checkpoint": (lambda optimizer: optimizer.load_state_dict(None), r"state_dict is a NoneType: expected what"),
}


@pytest.mark.parametrize("slip", METHOD_SLIPS)
@pytest.mark.parametrize(
    "make", [lambda params: OptimizerAdapter(params, fo.adamw()), fo.adapters.AdamW], ids=["adapter", "class"]
)
def test_slips_with_an_optimizer(slip, make):
    call, message = METHOD_SLIPS[slip]
    optimizer = make([WEIGHT])
    with pytest.raises((TypeError, ValueError), match=message):
        call(optimizer)
    assert len(optimizer.param_groups) == 1 and not optimizer.state


def test_a_misspelt_tensor_in_a_group():
    params = torch.nn.Linear(2, 1).parameters
    with pytest.warns(UserWarning, match=r"has a key 'learning_rate', .*Did you mean 'lr'"):
        OptimizerAdapter([{"params": params(), "learning_rate": torch.tensor(0.1)}], fo.adam())
    OptimizerAdapter([{"params": params(), "weight_decay": 0.1, "name": "head"}], fo.adam())


@pytest.mark.parametrize(
    "make", [lambda params: OptimizerAdapter(params, fo.adamw()), fo.adapters.AdamW], ids=["adapter", "class"]
)
def test_a_misspelt_number_that_is_written_into_a_group(make):
    model = torch.nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer = make(model.parameters())
    group = optimizer.param_groups[0]
    # What schedulers, timm and people keep there. The loss, a tensor, is like no hyper-parameter.
    group |= dict.fromkeys(["initial_lr", "base_lr", "max_lr", "min_lr", "swa_lr", "lr_scale"], 0.1)
    group |= {"name": "head", "loss": torch.ones(())}
    optimizer.step()
    group["learning_rate"] = 0.1
    with pytest.warns(UserWarning, match=r"param_groups\[0\] has a key 'learning_rate', .*Did you mean 'lr'") as told:
        optimizer.step()
    assert [warning.filename for warning in told] == [__file__]
    optimizer.step()  # It has been told.
    # As many keys as before.
    group["weight_decai"] = group.pop("name")
    with pytest.warns(UserWarning, match=r"has a key 'weight_decai', .*Did you mean 'weight_decay'"):
        optimizer.step()


def test_a_closure_without_a_backward():
    model = torch.nn.Linear(2, 1)
    for optimizer in (OptimizerAdapter(model.parameters(), fo.sam(fo.sgd())), fo.adapters.LBFGS(model.parameters())):
        with pytest.warns(UserWarning, match=r"the closure left no parameter a gradient, .*let it call loss.backward\(\)"):
            optimizer.step(lambda: model(torch.ones(2)).sum())


def test_a_checkpoint_in_another_order():
    """torch matches by position, and so do we: but a swap of two parameters alike is told."""
    a, b = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    saved = OptimizerAdapter([("a", a), ("b", b)], fo.adam()).state_dict()
    with pytest.warns(UserWarning, match=r"another order: what it holds of 'a' goes to 'b'\. .*load_by_name"):
        OptimizerAdapter([("b", b), ("a", a)], fo.adam()).load_state_dict(saved)
    OptimizerAdapter([("a", a), ("c", b)], fo.adam()).load_state_dict(saved)
    saved["param_groups"][0]["param_names"] = None
    OptimizerAdapter([("b", b), ("a", a)], fo.adam()).load_state_dict(saved)


@pytest.mark.parametrize(
    "module, name, advice",
    [
        (fo.adapters, "Adamw", "Did you mean 'AdamW'"),
        (fo.adapters, "Lion", r"fo.lion is a transform: fo.adapters.OptimizerAdapter\(params, fo.lion\(\)\)"),
        (fo.adapters, "StepLR", "torch's own, of torch.optim.lr_scheduler, drives any optimizer"),
        (fo.meta, "maml", r"a loop, unroll\(loss, transform, steps\)"),
        (fo.schedules, "cosine_decay", "Did you mean 'cosine'"),
    ],
)
def test_a_name_that_a_module_has_not(module, name, advice):
    with pytest.raises(AttributeError, match=rf"module '{module.__name__}' has no attribute '{name}'\..*{advice}"):
        getattr(module, name)


@pytest.mark.parametrize("key, meant", [("learning_rate", "lr"), ("wd", "weight_decay"), ("b1", "betas")])
def test_the_word_of_another_library_in_a_group(key, meant):
    with pytest.warns(UserWarning, match=rf"param_groups\[0\] has a key '{key}', which .*Did you mean '{meant}'"):
        OptimizerAdapter([{"params": [torch.nn.Parameter(torch.ones(1))], key: 0.1}], fo.adamw())


def test_the_misspelt_label_of_a_groups_key():
    tx = fo.partition({"matrix": fo.adamw(), "rest": fo.adam()}, fo.by_name({"w": "matrix", ".*": "rest"}))
    with pytest.warns(UserWarning, match=r"has a key 'matrx.lr', .* Did you mean 'matrix.lr'"):
        OptimizerAdapter([{"params": [("w", torch.nn.Parameter(torch.ones(1)))], "matrx.lr": 0.1}], tx)


def test_what_a_rule_asks_for_by_name_behind_an_optimizer():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = OptimizerAdapter([("w", p)], fo.sophia())
    p.grad = torch.ones(2)
    with pytest.raises(
        TypeError, match=r"hessian_diag has the key 'w': expected a mapping from parameters, the tensors themselves"
    ):
        optimizer.step(hessian_diag={"w": torch.ones(2)})
    assert torch.equal(p, torch.ones(2)) and not optimizer.state[p]


def test_the_checks_of_constructors_are_no_hindrance_to_tracing():
    @torch.compile(backend="eager", fullgraph=True)
    def step(p):
        branches = {"a": fo.scheduled(fo.sgd(), lr=fo.linear(1.0, 0.0, 2)), "b": fo.scheduled(fo.sgd(), lr=lambda step: 0.5)}
        tx = fo.accumulate(fo.partition(branches, fo.by_name({"w": "a", ".*": "b"})), every=1)
        return tx.update({"w": p, "b": p}, tx.init_state({"w": p, "b": p}))[0]

    updates = step(torch.ones(2))
    assert updates["w"].tolist() == [-1.0, -1.0] and updates["b"].tolist() == [-0.5, -0.5]


def test_an_argument_that_is_a_hyper_parameter_says_where_it_goes():
    with pytest.raises(TypeError, match=r"soap has no argument 'precondition_offset', but it is a hyper-parameter .*hparams"):
        fo.soap(precondition_offset=5)
    assert fo.set_defaults(fo.soap(), precondition_offset=5).hparams["precondition_offset"] == 5


@pytest.mark.parametrize("value", ["x", None, 1.0, [True]])
def test_a_switch_is_on_or_off(value):
    with pytest.raises(TypeError, match=re.escape(f"nesterov = {value!r} of scale_by_muon: expected True or False.")):
        fo.scale_by_muon(nesterov=value)


@pytest.mark.parametrize("make", [fo.psgd_kron, fo.dion, fo.add_noise, fo.stochastic_rounding])
def test_a_seed_is_a_whole_number(make):
    with pytest.raises(ValueError, match=r"seed = 2\.5 is no whole number\."):
        make(seed=2.5)
    with pytest.raises(ValueError, match=r"seed = -1 is outside \[0, 9007199254740992\]"):
        make(seed=-1)
    for seed in (2**63 - 1, 2**53 + 2):  # torch.initial_seed() may be as large.
        with pytest.raises(ValueError, match=rf"seed = {seed} is outside .*\. Give value % 2\*\*53"):
            make(seed=seed)
        assert make(seed=seed % 2**53).hparams["seed"] == seed % 2**53
    assert make(seed=2.0).hparams["seed"] == 2


def test_the_radius_of_a_group_is_in_its_range():
    group = {"params": [torch.nn.Parameter(torch.zeros(2, 2))], "radius": -1.0}
    with pytest.raises(ValueError, match=r"param_groups\[0\]: radius = -1.0 is outside \[0, inf\)"):
        OptimizerAdapter([group], fo.scion())
