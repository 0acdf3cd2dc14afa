"""The optimizers that the contract is tested on: every drop-in class, found by introspection, and three chains; some fused."""

import functools
import inspect
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import divide_by_average_norm
from torch import Tensor
from trajectories import FLOAT64, set_gradients, start_params

import functional_optim as fo
from functional_optim import adapters
from functional_optim.adapters import SGD, OptimizerAdapter
from functional_optim.adapters.transform_optimizer import TransformOptimizer

SHAPES = ((3, 4), (5,), (), (2, 2))


def drop_in_classes() -> list[type[TransformOptimizer]]:
    """The exported classes that choose their own transform, and take dense gradients."""
    exported = [getattr(adapters, name) for name in adapters.__all__]
    classes = [each for each in exported if inspect.isclass(each) and issubclass(each, TransformOptimizer)]
    return [cls for cls in classes if cls is not OptimizerAdapter and getattr(cls, "takes_dense", True)]


@dataclass(frozen=True)
class Subject:
    """An optimizer under test.

    Attributes:
        name: of the test.
        construct: `(params, **hyper-parameters)` to the optimizer.
        theirs: the class of torch.optim that it stands for, with the same options; or None.
        couples: whether the update of one parameter depends on the others.
        complex: whether it takes complex parameters.
        matrices: whether it takes matrices only.
        tolerance: how far torch's own float64 run may be from ours.
        fused: whether it steps with compiled kernels.
    """

    name: str
    construct: Callable[..., TransformOptimizer]
    theirs: Callable[..., torch.optim.Optimizer] | None = None
    couples: bool = False
    complex: bool = True
    fused: bool = False
    matrices: bool = False
    tolerance: float = FLOAT64

    def make(self, params: Any, **hparams: Any) -> TransformOptimizer:
        """A fresh optimizer."""
        return self.construct(params, **hparams)

    def pair(self, dtype: torch.dtype = torch.float32, **hparams: Any) -> tuple[TransformOptimizer, TransformOptimizer]:
        """Two optimizers over equal parameters."""
        return self.make(self.params(dtype), **hparams), self.make(self.params(dtype), **hparams)

    def params(self, dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[torch.nn.Parameter]:
        """Fresh parameters, always the same numbers, in these shapes or as columns."""
        return start_params(dtype, [self.shape(shape) for shape in shapes])

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """This shape, or that of a column."""
        return (math.prod(shape), 1) if self.matrices and len(shape) != 2 else shape

    def of(self, module: torch.nn.Module) -> list[torch.nn.Parameter]:
        """The parameters of a module that it takes."""
        return [p for p in module.parameters() if p.ndim == 2 or not self.matrices]


# What makes a class keep all the state that it can, so that there is something to lose.
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "Adam": {"amsgrad": True},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "ASGD": {"t0": 3.0, "lambd": 0.1},
}

# torch keeps a number of these in float32, which is 6e-8 off; test_drop_in.py compares with torch in float64.
TOLERANCES = {"NAdam": 1e-6, "ASGD": 1e-6}

CHAINS = {
    "clip and AdamW": fo.chain(fo.clip_by_global_norm(0.5), fo.adamw(0.05)),
    "Lion": fo.chain(fo.scale_by_lion(), fo.add_decayed_weights(), fo.scale_by_learning_rate(0.01)),
    "two traces and a whole-tensor rule": fo.chain(
        fo.trace(0.5), divide_by_average_norm(), fo.trace(0.5), fo.scale_by_learning_rate(0.05)
    ),
}


def _steps(cls: Callable[..., TransformOptimizer], value: Tensor, **options: Any) -> bool:
    """Whether it takes a parameter like this."""
    p = torch.nn.Parameter(value)
    p.grad = torch.ones_like(p)
    try:
        cls([p], **options).step()
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def _drop_in(cls: type[TransformOptimizer]) -> Subject:
    options, theirs = OPTIONS.get(cls.__name__, {}), getattr(torch.optim, cls.__name__, None)
    matrices = not _steps(cls, torch.ones(2), **options)
    return Subject(
        cls.__name__,
        functools.partial(cls, **options),
        theirs and functools.partial(theirs, **options),
        complex=_steps(cls, torch.ones(2, 3, dtype=torch.complex64), **options),
        matrices=matrices,
        tolerance=TOLERANCES.get(cls.__name__, FLOAT64),
    )


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
        assert_same_bits(kept_state(ours, p), kept_state(theirs, q))


def kept_state(optimizer: torch.optim.Optimizer, p: Tensor) -> dict[str, Any]:
    """The state that a resumed run has in common: torch's SGD saves no count, and ours asks no more of it than to be positive."""
    return {name: x > 0 if isinstance(optimizer, SGD) and name == "step" else x for name, x in optimizer.state.get(p, {}).items()}


def numbers_of(optimizer: TransformOptimizer) -> dict[str, Any]:
    """The hyper-parameters that a step reads, and their defaults."""
    declared = optimizer.transform_for(optimizer.param_groups[0]).declared
    return {name: value for name, value in optimizer.defaults.items() if name in declared}


def another(optimizer: TransformOptimizer, name: str) -> Any:
    """A different value of a hyper-parameter, such that the optimizer takes it: smaller by a tenth, or else larger."""
    for factor in (0.9, 1.1):
        value = _scaled(optimizer.defaults[name], factor)
        try:
            optimizer._checked_transform(0, {**optimizer.defaults, name: value})
        except ValueError:
            continue
        return value
    raise AssertionError(f"no other value of {name} found")


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, tuple):
        return tuple(each and _scaled(each, factor) for each in value)
    return factor * value if value else 0.125
