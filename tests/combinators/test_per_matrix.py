"""`per_matrix`: a tensor of matrices fares as the matrices do by themselves."""

import pytest
import torch
from loops import randn

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter
from functional_optim.testing import check_transform

RULES = {
    "muon": fo.scale_by_muon(),
    "soap": fo.rotate(fo.scale_by_adam(), precondition_frequency=2),
    "shampoo": fo.scale_by_shampoo((0.9, 0.95), 1e-3),
    "psgd": fo.scale_by_psgd_kron(),
    "rows": fo.scale_by_row_rms(),
    "shape": fo.scale_by_shape("match_rms_adamw"),
}


@pytest.mark.parametrize("name", RULES)
def test_each_matrix_of_a_tensor_is_one_of_its_own(name):
    start = {"experts": randn(3, 4, 4, seed=1), "deep": randn(2, 2, 4, 4, seed=2), "plain": randn(4, 4, seed=3)}
    apart = {f"{key}.{i}": m for key, p in start.items() for i, m in enumerate(p.reshape(-1, 4, 4))}
    tx = RULES[name]
    whole, one = fo.per_matrix(tx), tx
    leaves = {key: p.clone().requires_grad_() for key, p in start.items()}
    optimizer = OptimizerAdapter(leaves.items(), fo.chain(whole, fo.scale_by_learning_rate(1.0)))
    state, other, total = whole.init_state(start), one.init_state(apart), {}
    for step in range(5):
        grads = {key: randn(*p.shape, seed=10 + step) for key, p in start.items()}
        pieces = {f"{key}.{i}": m for key, g in grads.items() for i, m in enumerate(g.reshape(-1, 4, 4))}
        updates, state = whole.update(grads, state, start)
        expected, other = one.update(pieces, other, apart)
        for key, u in updates.items():
            together = torch.stack([expected[f"{key}.{i}"] for i in range(u[..., 0, 0].numel())]).reshape(u.shape)
            # A batched product may sum in another order.
            torch.testing.assert_close(u, together, rtol=1e-9, atol=1e-9)
            leaves[key].grad = grads[key]
        optimizer.step()
        total = {key: u + total.get(key, 0) for key, u in updates.items()}
    for key, leaf in leaves.items():
        torch.testing.assert_close(leaf.detach(), start[key] - total[key], rtol=1e-9, atol=1e-9)


@pytest.mark.full
def test_the_laws_hold_of_a_cube():
    check_transform(
        fo.per_matrix(fo.scale_by_shampoo((0.9, 0.95), precondition_frequency=3)), {"cube": randn(2, 2, 2), "b": randn(2)}
    )


def test_slots_have_the_leading_dimensions():
    state = fo.per_matrix(fo.rotate(fo.scale_by_adam())).init_state({"experts": randn(3, 4, 5)})
    assert {key: tuple(x["experts"].shape) for key, x in state.items() if key != "step"} == {
        "GG.0": (3, 4, 4),
        "GG.1": (3, 5, 5),
        "Q.0": (3, 4, 4),
        "Q.1": (3, 5, 5),
        "exp_avg": (3, 4, 5),
        "exp_avg_sq": (3, 4, 5),
    }


def test_what_is_no_rule_for_matrices_is_refused():
    for tx in (fo.scale_by_adam(), fo.soap(), fo.clip_by_global_norm()):
        with pytest.raises(TypeError, match="per_matrix takes a rule that sees matrices of equal shapes together"):
            fo.per_matrix(tx)
