"""Blocks of large matrices: the rule on each block by itself, whatever is left over."""

import pytest
import torch
from loops import randn

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter

SHAPES = {"even": (4, 6), "odd": (5, 7), "tall": (6, 1), "kernel": (4, 1, 3, 1), "vector": (5,), "small": (2, 2), "scalar": ()}


def blocks_of(name, x):
    """The blocks, by where they lie, cut one by one."""
    x = x.reshape(4, 3) if name == "kernel" else x
    if x.ndim == 0:
        return {(): x}
    if x.ndim == 1:
        return {(i,): x[i : i + 2] for i in range(0, len(x), 2)}
    return {(i, j): x[i : i + 2, j : j + 2] for i in range(0, x.shape[0], 2) for j in range(0, x.shape[1], 2)}


@pytest.mark.parametrize(
    "rule",
    [fo.scale_by_shampoo((0.9, 1.0), 1e-3, precondition_frequency=2), fo.rotate(fo.trace())],
    ids=["shampoo", "rotate"],
)
def test_it_is_the_rule_on_each_block(rule):
    """Zeros that fill up the last ones make no difference; in a null space momentum is what it is in any basis."""
    params = {name: randn(*shape, seed=1) for name, shape in SHAPES.items()}
    tx = fo.blocked(rule, size=2)
    leaves = {name: p.clone().requires_grad_() for name, p in params.items()}
    optimizer = OptimizerAdapter(leaves.items(), fo.chain(tx, fo.scale_by_learning_rate(0.1)))
    state, expected = tx.init_state(params), dict(params)
    apart = {name: {place: rule.init_state(block) for place, block in blocks_of(name, p).items()} for name, p in params.items()}
    for step in range(6):
        grads = {name: randn(*p.shape, seed=10 + step) for name, p in params.items()}
        updates, state = tx.update(grads, state, params)
        for name, g in grads.items():
            found = blocks_of(name, updates[name])
            for place, block in blocks_of(name, g).items():
                u, apart[name][place] = rule.update(block, apart[name][place])
                torch.testing.assert_close(found[place], u, rtol=1e-9, atol=1e-9)
            leaves[name].grad = g
            expected[name] = expected[name] - 0.1 * updates[name]
        optimizer.step()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.detach(), expected[name], rtol=1e-9, atol=1e-9)


def test_state_is_that_of_blocks():
    state = fo.blocked(fo.scale_by_shampoo(), size=4).init_state({"w": torch.zeros(10, 4), "small": torch.zeros(3, 2)})
    shapes = {name: {key: tuple(x.shape) for key, x in slot.items()} for name, slot in state.items() if name != "step"}
    assert shapes["factors.0"] == {"w": (3, 1, 4, 4), "small": (3, 3)}
    assert shapes["exp_avg"] == {"w": (3, 1, 4, 4), "small": (3, 2)}


def test_what_is_unfit_is_refused():
    with pytest.raises(TypeError, match="blocked takes a rule that sees matrices of equal shapes together"):
        fo.blocked(fo.scale_by_adam())
    with pytest.raises(ValueError, match="size = 0"):
        fo.blocked(fo.scale_by_shampoo(), size=0)


def test_slots_of_blocks_are_not_coded():
    """Codecs take slots to have the parameter's shape, as those of blocks have not."""
    rule = fo.rotate(fo.scale_by_adam())
    with pytest.raises(ValueError, match=r"chain has no slot that may be coded.*blocked.*state_dtype=torch.bfloat16"):
        fo.quantized(fo.chain(fo.blocked(rule, 4), fo.scale_by_learning_rate(0.1)))
    with pytest.raises(ValueError, match=r"state_dtype=torch.bfloat16\.$"):  # And no advice that leads there.
        fo.blocked(fo.quantized(rule))
    params, grads = {"w": randn(6, 5, seed=1)}, {"w": randn(6, 5, seed=2)}
    beside = fo.quantized(fo.chain(fo.blocked(rule, 4), fo.ema()), min_size=1)
    advised = fo.blocked(fo.rotate(fo.scale_by_adam(state_dtype=torch.bfloat16)), 4)
    states = [tx.update(grads, tx.init_state(params), params)[1] for tx in (beside, advised)]
    assert states[0]["blocked"]["exp_avg"]["w"].is_floating_point() and states[0]["ema"]["exp_avg"]["w"].dtype == torch.int8
    assert states[1]["exp_avg"]["w"].dtype == torch.bfloat16
