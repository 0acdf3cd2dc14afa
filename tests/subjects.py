"""The optimizers that the contract is tested on: every drop-in class, found by introspection, and three chains; some fused."""

import functools
import inspect
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import divide_by_average_norm
from torch import Tensor
from trajectories import set_gradients, start_params

import functional_optim as fo
from functional_optim import adapters
from functional_optim.adapters import OptimizerAdapter
from functional_optim.adapters.torch_optimizer import TransformOptimizer


def drop_in_classes() -> list[type[TransformOptimizer]]:
    """The exported classes that choose their own transform."""
    exported = [getattr(adapters, name) for name in adapters.__all__]
    classes = [each for each in exported if inspect.isclass(each) and issubclass(each, TransformOptimizer)]
    return [cls for cls in classes if cls is not OptimizerAdapter]


@dataclass(frozen=True)
class Subject:
    """An optimizer under test.

    Attributes:
        name: of the test.
        construct: `(params, **hyper-parameters)` to the optimizer.
        theirs: the class of torch.optim that it stands for, with the same options; or None.
        couples: whether the update of one parameter depends on the others.
        complex: whether it takes complex parameters.
        fused: whether it steps with compiled kernels.
    """

    name: str
    construct: Callable[..., TransformOptimizer]
    theirs: Callable[..., torch.optim.Optimizer] | None = None
    couples: bool = False
    complex: bool = True
    fused: bool = False

    def make(self, params: Any, **hparams: Any) -> TransformOptimizer:
        """A fresh optimizer."""
        return self.construct(params, **hparams)

    def pair(self, dtype: torch.dtype = torch.float32, **hparams: Any) -> tuple[TransformOptimizer, TransformOptimizer]:
        """Two optimizers over equal parameters."""
        return self.make(start_params(dtype), **hparams), self.make(start_params(dtype), **hparams)


# What makes a class keep all the state that it can, so that there is something to lose.
OPTIONS: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}, "Adam": {"amsgrad": True}}

CHAINS = {
    "clip and AdamW": fo.chain(fo.clip_by_global_norm(0.5), fo.adamw(0.05)),
    "Lion": fo.chain(fo.scale_by_lion(), fo.add_decayed_weights(), fo.scale_by_learning_rate(0.01)),
    "two traces and a whole-tensor rule": fo.chain(
        fo.trace(0.5), divide_by_average_norm(), fo.trace(0.5), fo.scale_by_learning_rate(0.05)
    ),
}


def _drop_in(cls: type[TransformOptimizer]) -> Subject:
    options, theirs = OPTIONS.get(cls.__name__, {}), getattr(torch.optim, cls.__name__, None)
    return Subject(cls.__name__, functools.partial(cls, **options), theirs and functools.partial(theirs, **options))


def _chain(name: str, fused: bool) -> Subject:
    def construct(params: Any, **hparams: Any) -> OptimizerAdapter:
        return OptimizerAdapter(params, CHAINS[name], fused=fused, **hparams)

    own = {"couples": name.startswith("clip"), "complex": "whole-tensor" not in name}
    return Subject(f"{name}, fused" if fused else name, construct, fused=fused, **own)


DROP_IN = [_drop_in(cls) for cls in drop_in_classes()]
EAGER = [*DROP_IN, *(_chain(name, fused=False) for name in CHAINS)]
# Every kernel takes seconds to compile; one class stands for all, whose kernels are made in the same way.
FUSED = [
    Subject("AdamW, fused", functools.partial(adapters.AdamW, fused=True), torch.optim.AdamW, fused=True),
    *(_chain(name, fused=True) for name in CHAINS),
]


def each(subjects: Sequence[Subject]) -> Any:
    """Run the test on each of these, as its argument `subject`."""
    return pytest.mark.parametrize("subject", subjects, ids=lambda subject: subject.name)


every_eager = each(EAGER)
every_one = each([*EAGER, *FUSED])
every_uncoupled = each([subject for subject in [*EAGER, *FUSED] if not subject.couples])
every_counterpart = each([subject for subject in DROP_IN if subject.theirs])


def params_in(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters, group after group."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def advance(optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    """Some steps with the gradients that `walk_together` gives."""
    for t in range(first, first + steps):
        set_gradients(params_in(optimizer), t)
        optimizer.step()


def through_a_file(state_dict: dict[str, Any]) -> Any:
    """Saved and loaded, as a checkpoint is."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def bits(x: Tensor) -> Tensor:
    """The memory of a tensor, so that -0 differs from 0 and NaN equals NaN."""
    return x.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_same_bits(found: Any, expected: Any) -> None:
    """Equal tensors, numbers, dicts or sequences, bit for bit."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same_bits(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same_bits(a, b)
    elif isinstance(expected, Tensor):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert torch.equal(bits(found), bits(expected))
    else:
        assert found == expected


def assert_same_run(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """Parameters and states bit for bit."""
    assert_same_bits(params_in(ours), params_in(theirs))
    for p, q in zip(params_in(ours), params_in(theirs), strict=True):
        assert_same_bits(dict(ours.state.get(p, {})), dict(theirs.state.get(q, {})))


def numbers_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The hyper-parameters among the defaults: floats and pairs of floats."""
    return {
        name: value
        for name, value in optimizer.defaults.items()
        if isinstance(value, int | float | tuple) and not isinstance(value, bool)
    }


def another(value: Any) -> Any:
    """A different hyper-parameter that every range admits."""
    if isinstance(value, tuple):
        return tuple(each and another(each) for each in value)
    return 0.9 * value if value else 0.125
