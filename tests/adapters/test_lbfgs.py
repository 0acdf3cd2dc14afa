"""`adapters.LBFGS` beside torch's own: iterates, evaluations, checkpoints."""

import io
import math

import pytest
import torch
from problems import rosenbrock

from functional_optim.adapters import LBFGS

OPTIONS = [
    {"lr": 0.01},
    {"lr": 0.01, "max_iter": 4, "history_size": 3},
    {"line_search_fn": "strong_wolfe", "max_iter": 4, "history_size": 3},
    {"line_search_fn": "strong_wolfe", "max_iter": 1},
    {"line_search_fn": "strong_wolfe", "max_iter": 5, "max_eval": 3, "lr": 0.3},
]


def start():
    return torch.nn.Parameter(torch.linspace(-1, 1.3, 10, dtype=torch.float64))


def trained(optimizer, w, steps, fn=rosenbrock):
    def closure():
        optimizer.zero_grad()
        loss = fn(w)
        loss.backward()
        return loss

    return torch.stack([(optimizer.step(closure), w.detach().clone())[1] for _ in range(steps)])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_retraces_torchs_iterates(options):
    """To 1e-8: on Rosenbrock's function, rounding grows tenfold in a few steps."""
    ours, theirs = start(), start()
    own, stock = LBFGS([ours], **options), torch.optim.LBFGS([theirs], **options)
    torch.testing.assert_close(trained(own, ours, 12), trained(stock, theirs, 12), rtol=0, atol=1e-8)
    for count in ("func_evals", "n_iter"):
        assert own.state[ours][count] == stock.state[theirs][count]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("into, out_of", [(LBFGS, torch.optim.LBFGS), (torch.optim.LBFGS, LBFGS), (LBFGS, LBFGS)])
def test_either_class_goes_on_from_the_others_checkpoint(into, out_of, options):
    w = start()
    saved = out_of([w], **options)
    trained(saved, w, 3)
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    other = torch.nn.Parameter(w.detach().clone())
    loaded = into([other])
    loaded.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(trained(loaded, other, 4), trained(saved, w, 4), rtol=0, atol=1e-8)


def test_groups_are_one_vector():
    whole, parts = start(), [torch.nn.Parameter(piece.clone()) for piece in start().detach().split([4, 6])]
    optimizer = LBFGS([{"params": [parts[0]]}, {"params": [parts[1]]}], line_search_fn="strong_wolfe", max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = rosenbrock(torch.cat(parts))
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    expected = trained(LBFGS([whole], line_search_fn="strong_wolfe", max_iter=4), whole, 5)[-1]
    torch.testing.assert_close(torch.cat(parts).detach(), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_climbing_is_descending_the_negative(options):
    up, down = start(), start()
    climbing = trained(LBFGS([up], maximize=True, **options), up, 5, lambda w: -rosenbrock(w))
    torch.testing.assert_close(climbing, trained(torch.optim.LBFGS([down], **options), down, 5), rtol=0, atol=1e-8)


def test_complex_parameters_are_pairs_of_reals():
    target = torch.tensor([1 + 2j, -1j], dtype=torch.complex128)
    w = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex128))
    trained(LBFGS([w], line_search_fn="strong_wolfe"), w, 2, lambda w: ((w - target).abs() ** 4).sum())
    torch.testing.assert_close(w.detach(), target, rtol=0, atol=1e-2)  # the fourth power is flat


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_a_loss_that_is_not_finite_makes_the_step_shorter(search):
    """x − log x is NaN below 0, where the first step leads; torch's parameters become NaN."""
    w = torch.nn.Parameter(torch.tensor([0.1, 50.0], dtype=torch.float64))
    for _ in range(3):
        trained(LBFGS([w], line_search_fn=search), w, 1, lambda w: (w - torch.log(w)).sum())
    assert w.isfinite().all()
    if search:
        torch.testing.assert_close(w.detach(), torch.ones_like(w), rtol=0, atol=1e-4)


def test_a_search_that_runs_out_of_evaluations_keeps_the_best_point():
    """A descent of slope 1 to a wall: the first trial is lower, the second far up the wall. torch's looks at the latter only."""

    def found(make):
        w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = make([w], line_search_fn="strong_wolfe", max_iter=1, max_eval=2)
        trained(optimizer, w, 1, lambda w: (100 * torch.relu(w - 1.5) ** 2 - w).sum())
        return float(w.detach())

    assert (found(LBFGS), found(torch.optim.LBFGS)) == (1, 0)


def test_what_is_refused():
    w = start()
    with pytest.raises(ValueError, match="lr = -1"):
        LBFGS([w], lr=-1)
    with pytest.raises(ValueError, match="line_search_fn = 'wolfe'"):
        LBFGS([w], line_search_fn="wolfe")
    with pytest.raises(ValueError, match=r"param_groups\[1\] has another lr"):
        LBFGS([{"params": [w]}, {"params": [start()], "lr": 0.1}])
    with pytest.raises(TypeError, match=r"step\(closure\)"):
        LBFGS([w]).step()
    with pytest.raises(TypeError, match="lr = None"):
        LBFGS([w], lr=None)
    for count in ("max_iter", "max_eval", "history_size"):
        with pytest.raises(ValueError, match=f"{count} = 0: expected a whole number of at least 1"):
            LBFGS([w], **{count: 0})
    assert math.isclose(float(w.detach()[0]), -1)


@pytest.mark.parametrize("other", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("is_stepped", [True, False])
def test_another_classs_checkpoint_is_refused_and_changes_nothing(other, is_stepped):
    w, theirs = start(), start()
    optimizer, saved = LBFGS([w]), other([theirs], lr=0.1)
    if is_stepped:
        trained(saved, theirs, 1)
    with pytest.raises(ValueError, match=r"param_groups\[0\] lacks .*'tolerance_grad'.* no checkpoint of LBFGS"):
        optimizer.load_state_dict(saved.state_dict())
    assert not optimizer.state and optimizer.param_groups[0]["lr"] == 1
    trained(optimizer, w, 1)


@pytest.mark.parametrize(
    ("index", "name", "value", "message"),
    [(0, "lr", -1.0, r"param_groups\[0\]: lr = -1.0 is outside"), (1, "lr", 0.0, r"param_groups\[1\] has another lr")],
)
def test_what_is_written_into_a_group_is_looked_at(index, name, value, message):
    x, y = start(), start()
    optimizer = LBFGS([{"params": [x]}, {"params": [y]}])
    optimizer.param_groups[index][name] = value
    with pytest.raises(ValueError, match=message):
        trained(optimizer, x, 1)
    assert torch.equal(x, start())


def test_a_misspelt_option_in_a_group_is_told_of():
    w = start()
    optimizer = LBFGS([w])
    optimizer.param_groups[0]["histroy_size"] = 3
    with pytest.warns(UserWarning, match="Did you mean 'history_size'") as told:
        trained(optimizer, w, 3)
    assert len(told) == 1


def test_a_checkpoint_of_other_parameters_is_refused():
    w, other = start(), torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
    saved, optimizer = LBFGS([w], max_iter=2), LBFGS([other])
    trained(saved, w, 1)
    with pytest.raises(ValueError, match="direction has 10 numbers, these parameters 5"):
        optimizer.load_state_dict(saved.state_dict())
    assert not optimizer.state


def test_a_group_that_is_added_later_begins_a_new_history():
    """From there the iterates are those of an optimizer that was made with both groups."""
    x, y = start(), start()
    optimizer = LBFGS([x], lr=0.01, max_iter=3)
    trained(optimizer, x, 1)
    z = [torch.nn.Parameter(p.detach().clone()) for p in (x, y)]
    optimizer.add_param_group({"params": [y]})
    together = LBFGS(z, lr=0.01, max_iter=3)
    found = trained(optimizer, x, 2, lambda w: rosenbrock(w) + rosenbrock(y))
    assert torch.equal(found, trained(together, z[0], 2, lambda w: rosenbrock(w) + rosenbrock(z[1])))
