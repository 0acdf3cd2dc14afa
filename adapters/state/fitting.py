"""What each parameter will keep, and whether the slots of a checkpoint can be those."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from functional_optim.transform import Transform

from .adopting import Adopted, adopted
from .layout import Key, Layout
from .names import keys_of
from .recoding import Encoders, at_least, decoded, encoded, encoders, scales_of

if TYPE_CHECKING:
    from ..transform_optimizer import TransformOptimizer

StateDict: TypeAlias = Mapping[str, Any]
Group: TypeAlias = dict[str, Any]
Slots: TypeAlias = Mapping[str, tuple[int, ...]]

BY_NAME = "Parameters are matched by position; load_by_name(optimizer, state_dict, strict=False) matches them by their names."


@dataclass(frozen=True)
class Expected:
    """What a parameter will keep.

    Attributes:
        layout, key: by which the names are known.
        shapes: of the slots that are of use to it, counts left out; without codes.
        dtypes: of these.
        encoders: of those that it may keep in codes.
    """

    layout: Layout
    key: Key
    shapes: Slots
    dtypes: Mapping[str, torch.dtype]
    encoders: Encoders

    @property
    def names(self) -> set[str]:
        """Everything that it will keep."""
        return set(self.layout.names(self.key).values())

    def adopted(self, slots: StateDict) -> Adopted:
        """What it takes over of these."""
        unused = {name for name in self.names if name not in self.shapes and not is_count(name)}
        return adopted(self.layout, self.key, list(slots), unused)

    def stored(self, slots: StateDict, saved: Mapping[str, Sequence[Any]]) -> StateDict:
        """What it keeps of slots without codes; `saved` is what the checkpoint has of each."""
        widened = {name: at_least(x, self.dtypes.get(name)) for name, x in slots.items()}
        return encoded(widened, saved, self.encoders)


def expected_slots(optimizer: "TransformOptimizer", groups: Sequence[Group]) -> dict[Key, Expected]:
    """What each parameter will keep under these groups.

    Parameters of which that can't be told without their values are not in it.
    """
    layouts: dict[Transform, Layout] = {}
    found: dict[Key, Expected] = {}
    for index, (group, saved) in enumerate(zip(optimizer.param_groups, groups, strict=False)):
        transform = optimizer.transform_for({**optimizer.defaults, **saved})
        layout = layouts.setdefault(transform, Layout(transform))
        own = {key: p for key, p in keys_of(index, group) if not is_lazy(p)}
        params = {key: torch.empty(p.shape, dtype=p.dtype, device="meta") for key, p in own.items()}
        states: dict[Key, dict[str, Any]] = {key: {} for key in params}
        try:
            layout.admit(params, transform.hparams)
            layout.start(params, transform.hparams, states, counts_on_host=False)
        except Exception:  # Whatever a transform by hand makes of tensors without values.
            continue
        for key, state in states.items():
            coded = encoders(transform, layout.names(key), state, own[key])
            shapes = {
                name: tuple((params[key] if name in coded else state[name]).shape) for name in present(state) - scales_of(state)
            }
            found[key] = Expected(layout, key, shapes, {name: state[name].dtype for name in shapes}, coded)
    return found


def misfit(expected: Expected | None, slots: StateDict) -> str:
    """Why these slots can't be those of the parameter; or nothing."""
    found = present(slots)
    if not expected or not expected.shapes or not found:
        return ""
    if not {name.split(".")[-1] for name in found} & {name.split(".")[-1] for name in expected.shapes}:
        return (
            f"the checkpoint holds {listed(found)}, this optimizer keeps {listed(expected.shapes)}: another kind saved "
            "it. Make the optimizer of the chain that saved it, or begin without this checkpoint."
        )
    for name, old in sorted(expected.adopted(slots).names.items()):
        shape = tuple(slots[old].shape) if isinstance(slots[old], Tensor) else ()
        if old in found and shape != expected.shapes.get(name, shape):
            return f"{old!r} has shape {shape}, expected {expected.shapes[name]}: it belongs to another parameter. {BY_NAME}"
    return ""


def misfit_of(expected: Expected | None, stored: StateDict, p: Tensor) -> str:
    """Why this can't be what is stored of a parameter; or nothing."""
    try:
        return misfit(expected, decoded(stored, p))
    except ValueError as error:
        return str(error)


def present(slots: StateDict) -> set[str]:
    """The slots that hold something; empty ones stand for those that a parameter of this shape has no use for."""
    return {
        name
        for name, value in slots.items()
        if value is not None and not is_count(name) and not (isinstance(value, Tensor) and not value.numel())
    }


def is_count(name: str) -> bool:
    return name.split(".")[-1] == "step"


def listed(names: Any) -> str:
    return ", ".join(map(repr, sorted(names)))
