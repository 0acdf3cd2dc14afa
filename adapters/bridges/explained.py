"""What an optimizer does to its parameters, and how its last step was run, for people."""

from typing import TYPE_CHECKING

from torch.nn.parameter import is_lazy

from functional_optim.explain import Curve, Explanation, Row, explained, sketched
from functional_optim.transform import Transform

from ..engine.explained import reasons_of, stages_of
from ..leaves import stepped_of
from ..state.names import keys_of

if TYPE_CHECKING:
    from ..leaves import Group, Numbered
    from ..stepping import Stepping


def explanation_of(optimizer: "Stepping") -> Explanation:
    """The links that each parameter goes through, with the numbers of its group; and the stages of the last step."""
    rows: list[Row] = []
    curves: dict[Curve, None] = {}
    for transform, groups in optimizer._parts().items():
        for index, group in groups:
            found = _of_group(optimizer, transform, groups, index, group)
            rows += found.rows
            curves |= dict.fromkeys(found.curves)
    steps = list(optimizer._steps.values())
    return Explanation(tuple(rows), tuple(curves), stages_of(steps), reasons_of(steps))


def _of_group(optimizer: "Stepping", transform: Transform, groups: "list[Numbered]", index: int, group: "Group") -> Explanation:
    params = {key: p for key, p in stepped_of(dict(keys_of(index, group))).items() if not is_lazy(p)}
    hparams = transform.select(optimizer._numbers.of_group(optimizer, transform, index, group))
    kept = sketched(transform, params, hparams)
    layout, states = optimizer.started(transform, groups, [], on_host=False)
    known = next((key for key in params if key in states and layout.is_complete(key, states[key])), None)
    state = kept if known is None else layout.read([known], states, counts_on_host=False)
    return explained(transform, params, kept, state, hparams)
