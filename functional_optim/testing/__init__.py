"""The laws that every transform promises, as functions: run them on one of your own with `check_transform`."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from functional_optim.combinators.chain import Chained
from functional_optim.direction import warn_if_uphill
from functional_optim.recipe import answering
from functional_optim.testing.adapter import (
    state_survives_a_checkpoint,
    tensors_are_made_where_the_parameters_are,
    the_adapter_computes_the_same,
    the_adapter_passes_over_missing_gradients,
)
from functional_optim.testing.pure import (
    any_tree_will_do,
    bad_input_is_an_error,
    elementwise_rules_see_no_shapes,
    inputs_are_not_written_to,
    low_precision_is_computed_in_float32,
    structure_shape_and_dtype_are_kept,
    two_steps_run,
)
from functional_optim.testing.transformed import (
    derivatives_are_right,
    derivatives_at_zero_are_finite,
    forward_and_reverse_mode_agree,
    one_graph_serves_all_steps,
    vmap_is_a_loop,
)
from functional_optim.transform import Transform, require_transform
from functional_optim.trials import LawBrokenError, Trial, default_params

Law = Callable[[Trial], None]

LAWS: list[Law] = [
    two_steps_run,
    inputs_are_not_written_to,
    structure_shape_and_dtype_are_kept,
    vmap_is_a_loop,
    low_precision_is_computed_in_float32,
    one_graph_serves_all_steps,
    derivatives_are_right,
    derivatives_at_zero_are_finite,
    forward_and_reverse_mode_agree,
    the_adapter_computes_the_same,
    state_survives_a_checkpoint,
    tensors_are_made_where_the_parameters_are,
    any_tree_will_do,
    the_adapter_passes_over_missing_gradients,
    elementwise_rules_see_no_shapes,
    bad_input_is_an_error,
]

READ_NO_VALUE = (
    " A rule reads no value of a tensor: no .item(), float(), math function or `if` on a hyper-parameter or the step. "
    "Write torch.where, or the functions of functional_optim.numerics, which take numbers and tensors."
)
ADVICE: dict[Law, str] = {
    vmap_is_a_loop: READ_NO_VALUE,
    one_graph_serves_all_steps: READ_NO_VALUE,
    derivatives_at_zero_are_finite: " A root of something that may be 0 wants functional_optim.numerics.sqrt.",
    elementwise_rules_see_no_shapes: " A rule that needs a tensor's true shape is a per_tensor one.",
}

__all__ = [
    "any_tree_will_do",
    "bad_input_is_an_error",
    "check_law",
    "check_transform",
    "derivatives_are_right",
    "derivatives_at_zero_are_finite",
    "elementwise_rules_see_no_shapes",
    "forward_and_reverse_mode_agree",
    "inputs_are_not_written_to",
    "low_precision_is_computed_in_float32",
    "one_graph_serves_all_steps",
    "state_survives_a_checkpoint",
    "structure_shape_and_dtype_are_kept",
    "tensors_are_made_where_the_parameters_are",
    "the_adapter_computes_the_same",
    "the_adapter_passes_over_missing_gradients",
    "two_steps_run",
    "vmap_is_a_loop",
]

# Seconds that a law may take without a word.
PATIENCE = 5.0


@answering
def check_transform(transform: Transform, params: Mapping[str, Tensor] | None = None) -> None:
    """Run every law on a transform; it returns None if all hold.

    It tries small float64 tensors on the CPU, through torch's tracer but without its compiler, and resets that: what
    `torch.compile` compiled before is compiled again at its next use. Behind the adapter it steps eagerly. Where a law takes more
    than a few seconds, as of a long chain, a line on stderr says which. It warns of a chain whose updates point uphill.

    Args:
        transform: any transform.
        params: a dict of small tensors to try it on, for rules that need certain shapes. By default a matrix, a vector and
            a () tensor.

    Raises:
        LawBrokenError: in a sentence, which law broke first, and where.

    >>> import functional_optim as fo
    >>> check_transform(fo.adamw())
    """
    require_transform(transform, "check_transform")
    trial = Trial(transform, {k: p.detach().double() for k, p in (params or default_params()).items()})
    if isinstance(transform.form, Chained):
        warn_if_uphill(transform, trial.params, {}, stacklevel=3)  # Of who called what answers for it.
    for number, law in enumerate(LAWS, 1):
        with _said_if_slow(f"{transform.name}: at law {number} of {len(LAWS)}, “{_name(law)}”"):
            check_law(law, trial)


def check_law(law: Law, trial: Trial) -> None:
    """Run one law; whatever goes wrong inside is reported as that law, broken."""
    try:
        law(trial)
    except Exception as error:
        what = str(error) if isinstance(error, LawBrokenError) else f"{type(error).__name__}: {error}"
        advice = ADVICE.get(law, "")
        raise LawBrokenError(f"{trial.transform.name} breaks the law “{_name(law)}”: {what}{advice}") from error


def _name(law: Law) -> str:
    return law.__name__.replace("_", " ")


@contextlib.contextmanager
def _said_if_slow(where: str) -> Iterator[None]:
    """Tell on stderr where one is, if that takes longer than one waits without a word."""
    timer = threading.Timer(PATIENCE, lambda: print(f"check_transform of {where}", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
