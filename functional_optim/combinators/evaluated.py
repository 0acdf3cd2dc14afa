"""`evaluated`: the parameters to evaluate and to ship, where they are not those that are trained."""

from functional_optim.form import latter
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree


def evaluated(transform: Transform, state: Tree, params: Tree) -> Tree:
    """The parameters to evaluate at: the average of a `schedule_free` optimizer, of `ema_params` and of `asgd`, the slow weights
    of `lookahead`; whatever else is trained where it is evaluated.

    Args:
        transform: whatever is inside it, in chains, in branches of a `partition`, around a `with_master_copy`. Of several that
            tell, as of an average of a lookahead's, the outermost does.
        state: what its last `update` returned.
        params: the present parameters.

    Returns:
        A tree like the parameters, in their dtypes. A parameter that nothing averages is in it as it is.

    Raises:
        ValueError: the state is not one of this transform.

    A rule of your own says it by `elementwise(evaluated_at=...)`. Behind an optimizer use `fo.adapters.eval_params(optimizer)`.
    optax has `optax.contrib.schedule_free_eval_params`, for that optimizer alone.

    >>> import torch
    >>> from functional_optim import apply_updates, ema_params, sgd
    >>> tx, params = ema_params(sgd(lr=1.0), ema_decay=0.75), torch.tensor(1.0)
    >>> updates, state = tx.update(params, tx.init_state(params), params)
    >>> params = apply_updates(params, updates)
    >>> params, evaluated(tx, state, params)
    (tensor(0.), tensor(0.7500))
    """
    require_transform(transform, "evaluated(transform, state, params)")
    try:
        return latter(params, transform.form.evaluated(state, params))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the state is not one of {transform.name}, which has an entry {error}: pass what init_state or the last update "
            "of this very transform returned."
        ) from error
