"""Gradient noise: how large, that it is a function of its state, and that no two elements share it."""

import math

import pytest
import torch
from trajectories import START, awkward_gradients, params_of

import functional_optim as fo
from functional_optim.philox import normal


def noise_of(tx, params, steps=1, hparams=None):
    """What is added to gradients of 0 over some steps."""
    state, found = tx.init_state(params, hparams), []
    zeros = fo.trees.map_leaves(torch.zeros_like, params)
    for _ in range(steps):
        updates, state = tx.update(zeros, state, params, hparams)
        found.append(updates)
    return found


@pytest.mark.parametrize("gamma", [0.0, 0.55, 1.0])
def test_the_variance_falls_as_the_paper_says(gamma):
    n = 40_000
    for t, noise in enumerate(noise_of(fo.add_noise(eta=0.3, gamma=gamma), torch.zeros(n, dtype=torch.float64), 5), 1):
        # The square of a standard normal number has variance 2: four standard errors.
        assert noise.square().mean().item() == pytest.approx(0.3 / t**gamma, rel=4 * math.sqrt(2 / n))
        assert abs(noise.mean().item()) < 4 * math.sqrt(0.3 / t**gamma / n)


def test_it_is_the_generators_numbers_at_this_seed_and_step():
    g = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    tx = fo.add_noise(eta=4.0, gamma=0.5, seed=11)
    state = tx.init_state(g)
    assert state["seed"] == 11 and state["step"] == 0
    for t in (1, 2):
        update, state = tx.update(g, state)
        z = normal((2, 3), torch.tensor(11), torch.tensor(t), 0)
        torch.testing.assert_close(update, g + 2 / t**0.25 * z, rtol=1e-14, atol=1e-14)  # a product and a sum


def test_seeds_steps_leaves_and_elements_have_noise_of_their_own():
    params = [torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64), torch.zeros(12).double()]
    drawn = [
        leaf.flatten()
        for seed in (0, 1, 2**32, 2**52 + 1)
        for updates in noise_of(fo.add_noise(seed=seed, gamma=0.0), params, 3)
        for leaf in updates
    ]
    numbers = torch.cat(drawn)
    assert len(numbers.unique()) == len(numbers) == 4 * 3 * 36


UNIT = {"eta": 1.0, "gamma": 0.0}


def several():
    """Five rules with one seed: two links, two branches, and one that is asked now and then."""
    branches = fo.partition({"x": fo.add_noise(**UNIT), "y": fo.add_noise(**UNIT)}, fo.by_name({"a": "x", "b": "y"}))
    return fo.chain(fo.add_noise(**UNIT), branches, fo.accumulate(fo.add_noise(**UNIT), every=1), fo.noisy_sgd(**UNIT, lr=1.0))


def test_branches_and_links_draw_noise_of_their_own():
    n = 40_000
    zeros = {name: torch.zeros(n, dtype=torch.float64) for name in ("a", "b")}
    (noise,) = noise_of(several(), zeros)
    # Four independent ones in each leaf, of which none in the other. A correlation has a standard error of n^−½.
    assert noise["a"].var().item() == pytest.approx(4.0, rel=4 * math.sqrt(2 / n))
    assert abs(torch.corrcoef(torch.stack([noise["a"], noise["b"]]))[0, 1].item()) < 4 / math.sqrt(n)
    one = fo.partition({"x": fo.add_noise(**UNIT), "y": fo.add_noise(**UNIT)}, fo.by_name({"a": "x", "b": "y"}))
    seeds = [state["seed"].item() for state in one.init_state(zeros, {"seed": 2**53}).values()]
    assert seeds[0] == 2**53 and 0 <= seeds[1] < 2**53 and seeds[1] % 1 == 0


def test_what_parts_are_called_does_not_matter_to_their_noise():
    g = torch.zeros(5, dtype=torch.float64)
    two = [fo.add_noise(**UNIT), fo.add_noise(**UNIT)]
    plain, *others = fo.chain(*two), fo.chain(fo.chain(two[0]), two[1]), fo.masked(fo.chain(*two), lambda name, leaf: True)
    for other in others:
        assert torch.equal(noise_of(other, g)[0], noise_of(plain, g)[0])
    assert torch.equal(noise_of(fo.masked(two[0], lambda name, leaf: True), g)[0], noise_of(two[0], g)[0])


def test_seeds_of_several_rules_go_where_one_does():
    """Under vmap, into a resumed run, and behind an optimizer."""
    tx, params = several(), {"a": torch.zeros(3, dtype=torch.float64), "b": torch.zeros(3, dtype=torch.float64)}

    def second(seed):
        return noise_of(tx, params, 2, {"seed": seed})[1]

    together = torch.vmap(second)(torch.arange(3))
    for i in range(3):
        for name in params:
            assert torch.equal(together[name][i], second(i)[name])

    leaves = {name: torch.nn.Parameter(p.clone()) for name, p in params.items()}
    optimizer = fo.adapters.OptimizerAdapter(leaves.items(), tx)
    for _ in range(2):
        for leaf in leaves.values():
            leaf.grad = torch.zeros_like(leaf)
        optimizer.step()
        resumed = fo.adapters.OptimizerAdapter(leaves.items(), tx)
        resumed.load_state_dict(optimizer.state_dict())
        optimizer = resumed
    expected = [sum(updates[name] for updates in noise_of(tx, params, 2)) for name in params]
    for leaf, noise in zip(leaves.values(), expected, strict=True):
        torch.testing.assert_close(leaf.detach(), noise, rtol=1e-13, atol=1e-13)


def test_the_order_of_leaves_of_different_shapes_does_not_matter():
    a, b, c = torch.zeros(3), torch.zeros(2, 2), torch.zeros(())
    (one,), (other,) = noise_of(fo.add_noise(), [a, b, c]), noise_of(fo.add_noise(), {"x": c, "y": a, "z": [None, b]})
    assert torch.equal(one[0], other["y"]) and torch.equal(one[1], other["z"][1]) and torch.equal(one[2], other["x"])
    assert other["z"][0] is None


def test_the_same_call_returns_the_same_and_a_resumed_run_goes_on():
    rows = awkward_gradients(10)
    whole = params_of(fo.noisy_sgd(lr=0.1, seed=3), rows)
    tx = fo.noisy_sgd(lr=0.1)  # The seed of the state counts from now on.
    p = torch.tensor(START, dtype=torch.float64)
    state = fo.noisy_sgd(lr=0.1, seed=3).init_state(p)
    for row, expected in zip(rows, whole, strict=True):
        arguments = torch.tensor(row, dtype=torch.float64), state, p
        updates, state = tx.update(*arguments)
        assert torch.equal(tx.update(*arguments)[0], updates)
        p = fo.apply_updates(p, updates)
        assert torch.equal(p, expected)


def test_vmap_over_seeds_is_a_loop_over_runs():
    p = torch.zeros(5, dtype=torch.float64)
    tx = fo.add_noise()

    def second(seed):
        return noise_of(tx, p, 2, {"seed": seed})[1]

    seeds = torch.arange(4)
    together = torch.vmap(second)(seeds)
    for i in range(4):
        assert torch.equal(together[i], noise_of(fo.add_noise(seed=i), p, 2)[1])


def test_without_variance_it_is_the_identity():
    g = torch.randn(5, generator=torch.Generator().manual_seed(0))
    tx = fo.add_noise(eta=0.0)
    assert torch.equal(tx.update(g, tx.init_state(g))[0], g)


def test_both_parts_of_complex_numbers_get_it():
    n = 40_000
    (noise,) = noise_of(fo.add_noise(eta=0.5), torch.zeros(n, dtype=torch.complex128))
    for part in (noise.real, noise.imag):
        assert part.square().mean().item() == pytest.approx(0.5, rel=4 * math.sqrt(2 / n))
    assert abs((noise.real * noise.imag).mean().item()) < 4 * 0.5 / math.sqrt(n)


def test_noisy_sgd_descends_by_the_noisy_gradient():
    g = torch.ones(4, dtype=torch.float64)
    tx = fo.noisy_sgd(lr=0.5, seed=2)
    update, _ = tx.update(g, tx.init_state(g))
    noisy = fo.add_noise(seed=2)
    assert torch.equal(update, -0.5 * noisy.update(g, noisy.init_state(g))[0])


@pytest.mark.parametrize("seed", [-1, 2.0**60, math.nan])
def test_a_seed_out_of_range_is_an_error(seed):
    with pytest.raises(ValueError, match="seed"):
        fo.add_noise(seed=seed)
