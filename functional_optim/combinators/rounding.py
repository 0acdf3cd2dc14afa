"""`with_rounding`: the ways in which parameters of low precision may keep what a step adds to them, by name."""

from collections.abc import Callable, Mapping

from functional_optim.combinators.chain import chain
from functional_optim.combinators.master_copy import MasterCopied, with_master_copy
from functional_optim.form import Form, nested
from functional_optim.lifting import Lifted
from functional_optim.recipe import recorded
from functional_optim.rules.error_bits import error_bits
from functional_optim.rules.kahan import kahan_sum
from functional_optim.rules.stochastic_rounding import stochastic_rounding
from functional_optim.transform import Transform, require_transform

WAYS: Mapping[str, Callable[[Transform], Transform]] = {
    "nearest": lambda transform: transform,
    "stochastic": lambda transform: chain(transform, stochastic_rounding()),
    "error_bits": lambda transform: chain(transform, error_bits()),
    "kahan": lambda transform: chain(transform, kahan_sum()),
    "master_copy": with_master_copy,
}


@recorded
def with_rounding(transform: Transform, rounding: str) -> Transform:
    """The same transform for parameters of bfloat16 or float16, which are rounded in one of these ways after each step.

    A bfloat16 parameter has 8 bits. Rounded to nearest it loses every update below 1/512 of itself, step after step.

    | rounding | what it is | bytes | off at lr 1e-3 | 1e-4 | 1e-5 |
    |---|---|--:|--:|--:|--:|
    | `"nearest"` | the transform as it is | 0 | 0.89 | 0.99 | 1.00 |
    | `"stochastic"` | `chain(transform, stochastic_rounding())` | 0 | 0.081 | 0.27 | 0.88 |
    | `"error_bits"` | `chain(transform, error_bits())` | 1 | 0.003 | 0.041 | 0.78 |
    | `"kahan"` | `chain(transform, kahan_sum())` | 2 | 0.003 | 0.028 | 0.48 |
    | `"master_copy"` | `with_master_copy(transform)` | 4 | 0.003 | 0.028 | 0.30 |

    Bytes are those more for each bfloat16 parameter. Off is how far bfloat16 parameters end from float64's, as a share of the way
    that those went: 1000 steps of AdamW from normal numbers, noisy gradients. The last row is no more than rounding the end once.

    `OptimizerAdapter` and torch's classes take the same words, `AdamW(params, rounding="error_bits")`. Parameters of float32 are
    rounded to nearest in any case; Kahan's sum gives them bits, too.

    Args:
        transform: a whole optimizer, whose updates are added to the parameters.
        rounding: one of these words.

    Raises:
        TypeError: this is no transform.
        ValueError: `rounding` is none of these; or something in the transform rounds parameters already.

    Sources are those of the parts; neither torch nor optax has a counterpart.

    >>> import torch
    >>> from functional_optim import adamw
    >>> with_rounding(adamw(), "error_bits").init_state(torch.ones(2, dtype=torch.bfloat16))["error_bits"]
    {'error_bits': tensor([0, 0], dtype=torch.int8)}
    """
    require_transform(transform, "with_rounding")
    require_rounding(rounding, "with_rounding")
    known = next(filter(None, (_way_of(form) for _, form in nested(transform))), "")
    if known and rounding != "nearest":
        raise ValueError(
            f"rounding = {rounding!r}, but the transform keeps what rounding loses by {known} already. Give one way: leave out "
            "rounding, or that part. Parts of a model that are to differ are branches of a partition, each with its own."
        )
    return WAYS[rounding](transform)


def require_rounding(rounding: object, where: str) -> None:
    """Raise ValueError unless this is one of the words."""
    if rounding not in [*WAYS]:
        raise ValueError(f"rounding = {rounding!r} of {where}: expected one of {', '.join(map(repr, WAYS))}.")


def _way_of(form: Form) -> str:
    """The constructor of what keeps parameters of low precision, where this form is such; or nothing."""
    if isinstance(form, MasterCopied):
        return with_master_copy.__name__
    rules = [rule.__name__ for rule in (stochastic_rounding, error_bits, kahan_sum)]
    return form.name if isinstance(form, Lifted) and form.name in rules else ""
