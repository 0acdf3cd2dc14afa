"""Leaves that a batched rule takes together: on the host in stacks that a cache holds, with the same result as all at once."""

import pytest
import torch
from loops import randn

import functional_optim as fo
from functional_optim.lifting import leafwise
from functional_optim.rules import psgd_kron

DOUBLES = 8


@pytest.fixture(name="for_two")
def _room_for_two(monkeypatch):
    """Gradient and parameter of two matrices of 4 × 3 fill a stack."""
    monkeypatch.setattr(leafwise, "LARGEST_STACK", 2 * 2 * 12 * DOUBLES)


def seeing(sizes):
    """A rule that notes how many leaves it gets, and sums each along its rows."""

    @fo.per_tensor(batched=True)
    def rule(hp):
        def summed(g, p):
            sizes.append(len(g))
            return g.cumsum(1)

        return summed

    return rule()


def matrices(count, lead=()):
    return [randn(*lead, 4, 3, seed=i) for i in range(count)]


@pytest.mark.usefixtures("for_two")
def test_a_stack_on_the_host_is_no_larger_than_a_cache():
    sizes, grads = [], matrices(5)
    u, _ = seeing(sizes).update(grads, {}, matrices(5))
    assert sizes == [2, 2, 1]
    for x, g in zip(u, grads, strict=True):
        torch.testing.assert_close(x, g.cumsum(0), rtol=0, atol=0)


@pytest.mark.usefixtures("for_two")
def test_what_is_larger_goes_alone():
    sizes, grads = [], [randn(40, 30, seed=i) for i in range(2)]
    seeing(sizes).update(grads, {}, grads)
    assert sizes == [1, 1]


@pytest.mark.usefixtures("for_two")
def test_a_batched_step_takes_all_at_once():
    """A program stays as long as it is, however many leaves there are."""
    sizes, grads = [], matrices(5, lead=(2,))
    u = torch.func.vmap(lambda g: seeing(sizes).update(g, {}, g)[0])(grads)
    assert sizes == [5]
    torch.testing.assert_close(u[3], grads[3].cumsum(1), rtol=0, atol=0)


@pytest.mark.parametrize("transform", [fo.soap(), fo.shampoo(), fo.psgd_kron(), fo.muon(ns_dtype=None)], ids=lambda tx: tx.name)
def test_cuts_change_nothing_but_the_order_of_sums(transform, monkeypatch):
    """In float64: a batched product may add in another order than that of one matrix, and three steps magnify that."""
    params = matrices(5)

    def trained(largest):
        monkeypatch.setattr(leafwise, "LARGEST_STACK", largest)
        p, state = params, transform.init_state(params)
        for step in range(3):
            u, state = transform.update([randn(4, 3, seed=10 * step + i) for i in range(5)], state, p)
            p = fo.apply_updates(p, u)
        return p

    torch.testing.assert_close(trained(1), trained(1 << 30), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("for_two")
def test_stacks_of_one_step_share_their_probe(monkeypatch):
    drawn = []

    def noting(shape, *arguments):
        drawn.append(tuple(shape))
        return normal(shape, *arguments)

    normal = psgd_kron.normal
    monkeypatch.setattr(psgd_kron, "normal", noting)
    params = {f"matrix {i}": x for i, x in enumerate(matrices(5))} | {"other": randn(2, 2)}
    fo.scale_by_psgd_kron().update(params, fo.scale_by_psgd_kron().init_state(params), params)
    assert sorted(drawn) == [(1, 2, 2), (1, 4, 3)]
