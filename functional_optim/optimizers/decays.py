"""Weight decay as a link that may be left out."""

from functional_optim.rules.decay import add_decayed_weights
from functional_optim.transform import Transform


def decay(weight_decay: float | None) -> list[Transform]:
    """The link, or none where the number is None."""
    return [] if weight_decay is None else [add_decayed_weights(weight_decay)]


def decayed(rule: Transform, weight_decay: float | None, decoupled: bool) -> list[Transform]:
    """The rule with its decay, if any: after it if decoupled, else before."""
    return [rule, *decay(weight_decay)] if decoupled else [*decay(weight_decay), rule]
