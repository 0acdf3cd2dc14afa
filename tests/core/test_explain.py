"""What happens to each parameter, told: the right links, numbers and bytes of everything, and without making any of it."""

import dataclasses

import pytest
import torch
from cases import TABLE, params_for
from torch import nn

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter
from functional_optim.explain import Curve, Explanation
from functional_optim.trials import default_params

PARAMS = {"w": torch.zeros(20, 3), "v": torch.zeros(4, 5), "b": torch.zeros(20)}
BRANCHES = fo.partition({"decay": fo.adamw(weight_decay=0.5), "plain": fo.sgd(momentum=0.9)}, fo.by_ndim({2: "decay"}, "plain"))


def links(explanation, param):
    return [row.link for row in explanation.rows if param in row.params]


def row(explanation, link, param="w"):
    return next(row for row in explanation.rows if row.link == link and param in row.params)


def test_each_parameter_has_its_links_in_order():
    explanation = fo.explain(fo.chain(fo.clip_by_global_norm(), BRANCHES), PARAMS)
    decayed = ["scale_by_adam", "add_decayed_weights", "scale_by_learning_rate"]
    assert links(explanation, "w") == ["clip_by_global_norm", *(f"partition.decay.{name}" for name in decayed)]
    assert links(explanation, "b") == ["clip_by_global_norm", "partition.plain.trace", "partition.plain.scale_by_learning_rate"]
    adam = row(explanation, "partition.decay.scale_by_adam")
    assert set(adam.params) == {"w", "v"} and adam.elements == 80
    assert adam.formula[0] == "m ← β₁ m + (1 − β₁) g" and "average gradient" in adam.what
    assert adam.state == {"step": 8, "exp_avg": 320, "exp_avg_sq": 320}
    assert row(explanation, "partition.decay.add_decayed_weights").hparams == {"weight_decay": 0.5}
    assert row(explanation, "partition.plain.trace", "b").state["momentum_buffer"] == 80


def test_links_inside_wrappers_stand_below_them_also_where_a_gate_is_closed():
    tx = fo.accumulate(fo.chain(fo.cautious(fo.scale_by_lion()), fo.scale_by_learning_rate()), every=4)
    explanation = fo.explain(tx, PARAMS)
    assert [(each.link, each.depth) for each in explanation.rows] == [
        ("accumulate", 0),
        ("inner.cautious", 1),
        ("inner.cautious (scale_by_lion)", 2),
        ("inner.scale_by_learning_rate", 1),
    ]
    gate = explanation.rows[0]
    assert gate.options == {"every": "4"} and gate.state == {"micro_step": 8, "gradient_step": 8, "mean_grad": 400}
    assert "    every=4; keeps" in str(explanation) and "│ │ inner.cautious (scale_by_lion)" in str(explanation)


def test_numbers_are_those_in_force():
    schedule = fo.linear(1.0, 0.0, 4)
    tx = fo.scheduled(fo.rename_hparams(fo.adamw(), eps="adam_eps"), lr=schedule)
    state = tx.init_state(PARAMS)
    for _ in range(3):
        _, state = tx.update(PARAMS, state, PARAMS)
    explanation = fo.explain(tx, PARAMS, state, {"weight_decay": 0.25, "adam_eps": 1e-3})
    assert float(row(explanation, "inner.scale_by_learning_rate").hparams["lr"]) == 0.25
    assert row(explanation, "inner.add_decayed_weights").hparams == {"weight_decay": 0.25}
    assert row(explanation, "inner.scale_by_adam").hparams["eps"] == 1e-3
    (curve,) = explanation.curves
    assert (curve.name, curve.step, curve.now, curve.steps) == ("lr", 3, 0.25, 4)
    assert curve.values[0] == 1.0 and curve.values[-1] == 0.0 and curve.sparkline == "".join(sorted(curve.sparkline)[::-1])
    assert "lr = linear(start=1.0, end=0.0, steps=4)" in str(explanation) and "0.25 at step 3" in str(explanation)


def test_a_sparkline_rises_and_falls_with_its_values():
    def drawn(*values):
        return Curve("lr", "f", values, 9.0, 0.0, 0.0).sparkline

    assert drawn(0.0, 0.5, 1.0, 0.5, 0.0) == "▁▅█▅▁" and drawn(2.0, 2.0) == "▅▅" and drawn(float("inf"), 0.0, 1.0) == "▁█"


def test_a_schedule_without_an_end_or_of_pairs_is_told_as_far_as_it_goes():
    def halving(step):
        return 0.5 ** (step + 1)

    (curve,) = fo.explain(fo.scheduled(fo.sgd(), lr=halving), PARAMS).curves
    assert curve.schedule.endswith("halving") and curve.steps == 100
    assert not fo.explain(fo.scheduled(fo.adam(), betas=lambda step: (0.9, 0.99)), PARAMS).curves
    assert [c.name for c in fo.explain(fo.chain(fo.scale_by_schedule(fo.linear(1.0, 0.5, 9)), fo.negate()), PARAMS).curves] == [
        "scale_by_schedule.schedule"
    ]


@pytest.mark.parametrize("case", TABLE)
def test_everything_can_be_explained(case):
    tx, params = TABLE[case], params_for(case) or default_params()
    explanation = fo.explain(tx, params)
    assert str(explanation) == str(fo.explain(tx, params, tx.init_state(params)))
    assert {name for each in explanation.rows for name in each.params} == set(fo.trees.names(params))
    for each in explanation.rows:
        assert each.what or tx.name == "divide_by_largest_norm", each  # That one is made by hand.
    assert str(explanation) and "<table" in explanation._repr_html_() and repr(explanation) == str(explanation)


def test_nothing_of_the_size_of_the_parameters_is_made():
    huge = {"w": torch.empty(10**6, 10**6, device="meta")}
    explanation = fo.explain(fo.chain(fo.clip_by_global_norm(), fo.with_master_copy(fo.adamw())), huge)
    assert row(explanation, "with_master_copy").state == {"fp32_copy": 4 * 10**12}
    assert "keeps fp32_copy (4e+03 GB)" in str(explanation)


def test_any_tree_and_errors_as_elsewhere():
    assert "a bare tensor: 3 numbers" in str(fo.explain(fo.sgd(), torch.zeros(3)))
    nested = fo.explain(BRANCHES, {"layers": [torch.zeros(2, 2)], "none": None, "bias": torch.zeros(2)})
    assert {each.params for each in nested.rows} == {("layers.0",), ("bias",)}
    with pytest.raises(ValueError, match="no parameter is labelled 'b'"):
        fo.explain(fo.partition({"a": fo.sgd(), "b": fo.sgd()}, {"w": "a"}), {"w": torch.zeros(2)})
    with pytest.raises(TypeError, match=r"explain\(transform, params\)"):
        fo.explain(fo.sgd, PARAMS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        nested.rows = ()


# Behind an optimizer.


def stepped(optimizer, net, times):
    for _ in range(times):
        optimizer.zero_grad()
        net(torch.ones(2, 3)).square().mean().backward()
        optimizer.step()


def test_an_optimizer_tells_links_behind_a_closed_gate_and_how_the_step_was_run():
    net = nn.Linear(3, 2)
    tx = fo.accumulate(fo.scheduled(fo.adamw(), lr=fo.linear(1.0, 0.0, 4)), every=2)
    optimizer = OptimizerAdapter(net.named_parameters(), tx)
    before = optimizer.explain()
    assert not before.stages and "the last step" not in str(before) and not optimizer.state
    stepped(optimizer, net, 3)
    explanation = optimizer.explain()
    assert isinstance(explanation, Explanation) and explanation.stages
    assert "inner.inner.scale_by_adam" in links(explanation, "weight") and explanation.rows[0].options == {"every": "2"}
    assert "adam" not in str(explanation.stages[0].links)  # The gate is closed in this step.
    rate = row(explanation, "inner.inner.scale_by_learning_rate", "weight").hparams["lr"]
    assert float(rate) == 0.75 and explanation.curves[0].step == 1
    assert row(explanation, "inner.inner.scale_by_adam", "weight").state["exp_avg"] == 4 * (6 + 2)


def test_groups_are_told_with_their_own_numbers():
    net = nn.Linear(3, 2)
    groups = [{"params": [net.weight]}, {"params": [net.bias], "weight_decay": 0.0}]
    optimizer = OptimizerAdapter(groups, fo.adamw(weight_decay=0.5), lr=0.1)
    optimizer.param_groups[0]["lr"] = 0.2
    explanation = optimizer.explain()
    first, second = "group 0, parameter 0", "group 1, parameter 0"
    assert row(explanation, "add_decayed_weights", first).hparams == {"weight_decay": 0.5}
    assert row(explanation, "add_decayed_weights", second).hparams == {"weight_decay": 0.0}
    assert row(explanation, "scale_by_learning_rate", first).hparams == {"lr": 0.2}


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_frozen_is_left_out_though_a_rule_takes_no_vectors(fused):
    net = nn.Linear(3, 2)
    net.bias.requires_grad_(False)
    tx = fo.chain(fo.scale_by_muon(), fo.scale_by_learning_rate())
    optimizer = OptimizerAdapter(net.named_parameters(), tx, fused=fused)
    for _ in range(2):
        assert {row.params for row in optimizer.explain().rows} == {("weight",)}
        stepped(optimizer, net, 1)


def test_where_all_is_frozen_that_is_said():
    net = nn.Linear(3, 2).requires_grad_(False)
    explanation = OptimizerAdapter(net.named_parameters(), fo.adamw()).explain()
    assert str(explanation) == "There is nothing to step: no parameters, or all of them are frozen."
    assert explanation._repr_html_() == f"<p>{explanation}</p>"


def test_html_marks_code_and_keeps_formulas_in_lines():
    shown = fo.explain(fo.scale_by_adam(), {"w": torch.ones(2)})._repr_html_()
    assert "`" not in shown and "<code>m ← β₁ m + (1 − β₁) g</code></div>" in shown
    assert shown.count("<tr>") == 2 and shown.count("<td") == 3


def test_text_in_html_is_text():
    explanation = fo.explain(fo.masked(fo.sgd(), lambda name, leaf: True), {"<script>": torch.zeros(2)})
    assert "<script>" not in explanation._repr_html_() and "&lt;script&gt;" in explanation._repr_html_()
