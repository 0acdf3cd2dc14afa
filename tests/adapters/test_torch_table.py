"""Our classes on the inputs of torch's own tests of its optimizers: the table that comes with the installed torch."""

import copy
import functools

import pytest
import torch
from trajectories import assert_params_close

from functional_optim import adapters

pytest.importorskip("expecttest", reason="torch's table needs it (pip install expecttest)")

NAMES = [name for name in torch.optim.__all__ if hasattr(adapters, name)]


@functools.cache
def table():
    """Torch's module, which takes seconds to import."""
    return pytest.importorskip("torch.testing._internal.common_optimizers", reason="private to torch, and may move")


@functools.cache
def infos():
    return {info.optim_cls.__name__: info for info in table().optim_db if hasattr(adapters, info.optim_cls.__name__)}


# Ways to run the same arithmetic, and `differentiable`, in which torch corrects Adam's bias in float32.
WAYS = ({}, {"foreach": True}, {"differentiable": True})

# What torch refuses for the sake of its foreach path, or of its compiler; here these are numbers like others.
TAKEN = ("lr as a Tensor is not supported", "betas must be either both floats", r"betas\[0\] as a Tensor is not supported")

pytestmark = [
    pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters:UserWarning"),
]


def test_the_table_has_all_our_classes():
    assert sorted(infos()) == sorted(NAMES) and len(NAMES) == 15


def start(differentiable):
    values = (torch.linspace(-1, 1, 6, dtype=torch.float64).view(3, 2), torch.linspace(1, 2, 4, dtype=torch.float64).view(2, 2))
    return [value.clone() if differentiable else torch.nn.Parameter(value.clone()) for value in values]


def target(p, shift):
    return torch.sin(torch.arange(p.numel(), dtype=p.dtype) + shift).view(p.shape)


def walked(cls, kwargs, schedules=(), steps=5):
    params = start(kwargs.get("differentiable"))
    optimizer = cls(params, **copy.deepcopy(kwargs))
    schedulers = [schedule(optimizer) for schedule in schedules]
    for t in range(steps):

        def closure(t=t):
            """A loss whose minimum moves on at each step."""
            with torch.enable_grad():
                optimizer.zero_grad()
                loss = sum(((p - target(p, t + i)) ** 2 * (1 + i)).sum() for i, p in enumerate(params))
                loss.backward()
            return loss

        for i, p in enumerate(params):
            p.grad = target(p, t + i)
            if cls.__name__ == "SparseAdam":
                p.grad = p.grad.to_sparse()
        optimizer.step(closure) if isinstance(optimizer, adapters.LBFGS | torch.optim.LBFGS) else optimizer.step()
        for scheduler in schedulers:
            scheduler.step(1.0) if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else scheduler.step()
    return params


def inputs_of(name):
    info = infos()[name]
    for given in info.optim_inputs_func(device="cpu"):
        for way in WAYS:
            # Counts on the device are another matter; LBFGS maximizes from torch 2.14 on, and ours not yet.
            if (name, "maximize") in {("LBFGS", option) for option in given.kwargs}:
                continue
            if (not way or set(way) <= set(info.supported_impls)) and not given.kwargs.get("capturable"):
                yield {**given.kwargs, **way}


# float64 but for NAdam's and ASGD's numbers, Adam's differentiable bias correction and tensors of float32 among the options,
# which are 6e-8 off at each of five steps; Muon iterates in bfloat16, to which both round the same numbers.
TOLERANCE = 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_torchs_inputs_retrace_torch(name):
    inputs = list(inputs_of(name))
    assert len(inputs) >= 4
    for kwargs in inputs:
        ours, theirs = walked(getattr(adapters, name), kwargs), walked(infos()[name].optim_cls, kwargs)
        try:
            assert_params_close(ours, theirs, TOLERANCE)
        except AssertionError as error:
            raise AssertionError(f"{kwargs}: {error}") from None


@pytest.mark.parametrize("name", NAMES)
def test_torchs_schedules_retrace_torch(name):
    for schedules in infos()[name].scheduler_inputs:
        ours, theirs = (walked(cls, {"lr": 0.01}, schedules) for cls in (getattr(adapters, name), infos()[name].optim_cls))
        assert_params_close(ours, theirs, TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_what_torch_refuses_is_refused(name):
    for case in infos()[name].optim_error_inputs_func(device="cpu", dtype=torch.float32):
        given, at_step = case.optimizer_error_input, case.error_on == table().OptimizerErrorEnum.STEP_ERROR
        if case.error_type is UserWarning:  # duplicates: torch's own warning
            continue
        params = [torch.nn.Parameter(torch.zeros(2, 2))] if given.params is None else given.params
        if case.error_regex.startswith(TAKEN):
            getattr(adapters, name)(params, **given.kwargs)
            continue
        with pytest.raises(case.error_type):
            optimizer = getattr(adapters, name)(params, **given.kwargs)
            assert at_step, given.desc
            for p in params:
                p.grad = torch.zeros_like(p)
            optimizer.step()
