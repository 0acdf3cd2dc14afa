"""`explain`: what happens to each parameter, for people."""

from typing import Any

import torch
from torch import Tensor

from functional_optim import trees
from functional_optim.checks import check_params
from functional_optim.explain.explanation import Curve, Explanation, Row
from functional_optim.explain.links import Place, places_in
from functional_optim.hparams import HParams
from functional_optim.recipe import answering
from functional_optim.transform import Transform, require_transform
from functional_optim.trees import Tree

__all__ = ["Curve", "Explanation", "Row", "explain", "explained", "sketched"]


@answering
def explain(transform: Transform, params: Tree, state: Tree = None, hparams: HParams | None = None) -> Explanation:
    """What a transform does to each parameter: links in order with their formulas, numbers in force, state, schedules.

    Args:
        transform: any transform.
        params: what it is for. Nothing of their size is made unless the transform looks at their values.
            Of a `DTensor`, what counts is this process's part; of slots that stay float32 for how it is cut, see `quantized`,
            the bytes of codes are told.
        state: the present one; None for the first. From it come the numbers that schedules give.
        hparams: what is given to `update`.

    Returns:
        A frozen value with `rows`, a `Row` for each link and kind of parameters, and `curves`; `print` it, or leave it at the end
        of a cell. Links inside a wrapper, also those that a gate lets through now and then, stand behind a line below it.

    Raises:
        TypeError, ValueError: as `init_state`.

    `optimizer.explain()` is the same of an optimizer, and tells how its steps are run, too. optax has nothing like it.

    >>> import torch
    >>> from functional_optim import chain, clip_by_value, linear, scale_by_sign, scale_by_learning_rate, scheduled
    >>> tx = chain(clip_by_value(), scale_by_sign(), scheduled(scale_by_learning_rate(), lr=linear(1.0, 0.0, 8)))
    >>> print(explain(tx, {"w": torch.zeros(2, 3), "b": torch.zeros(2)}))
    b, w: 8 numbers
      clip_by_value: Clip every element to [−clip_value, clip_value]; complex ones in both parts.
          clip_value=1.0
      scale_by_sign: Every element of the update becomes −1, 0 or 1.
          u ← sign(g)
      scale_by_learning_rate.inner (scale_by_learning_rate): Multiply updates by `−lr`, which turns their sign.
          lr=1
    <BLANKLINE>
    schedules
      scale_by_learning_rate.lr = linear(start=1.0, end=0.0, steps=8)
          ███▇▇▇▇▆▆▆▆▆▅▅▅▅▄▄▄▄▃▃▃▃▃▂▂▂▂▁▁▁  from 1 to 0 in 8 steps; 1 at step 0
    """
    require_transform(transform, "explain(transform, params)")
    complete = transform.complete(hparams)
    check_params(params)
    transform.form.check(params)
    transform.form.check_each(params)
    sketch = sketched(transform, params, complete) if state is None else state
    return explained(transform, params, sketch, sketch, complete)


def explained(transform: Transform, params: Tree, kept: Tree, state: Tree, hparams: HParams) -> Explanation:
    """The explanation of a transform of which it is known what it keeps of these parameters, and in what state it is.

    Args:
        kept: a state of all parameters, whose tensors need no memory.
        state: that of which the counts are, perhaps of some parameters only.
        hparams: complete.
    """
    links = list(places_in(Place(transform, (), 0, params, kept, state, transform.select(hparams))))
    names = [name for name, p in zip(trees.names(params), trees.leaves(params), strict=True) if p is not None]
    sizes = dict(zip(trees.names(params), (0 if p is None else p.numel() for p in trees.leaves(params)), strict=True))
    kinds: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        kinds.setdefault(tuple(i for i, link in enumerate(links) if name in link.by_name), []).append(name)
    rows: list[Row] = []
    for route, members in kinds.items():
        elements = sum(sizes[name] for name in members)
        rows += [links[i].row(tuple(members), elements) for i in route] or [_untouched(tuple(members), elements)]
    return Explanation(tuple(rows), tuple(curve for link in links for curve in link.curves))


def _untouched(params: tuple[str, ...], elements: int) -> Row:
    """What is to be said of parameters that no link sees."""
    return Row(params, elements, "nothing", 0, "No link sees them: their updates are the gradients.", (), {}, {}, {})


def sketched(transform: Transform, params: Tree, hparams: HParams) -> Tree:
    """The first state, of tensors without memory where that is possible; but its numbers can be read."""
    like = trees.map_leaves(lambda p: torch.empty(p.shape, dtype=p.dtype, device="meta"), params)
    try:
        state = transform.first_state(like, hparams)
    except Exception:  # Whatever a transform by hand makes of tensors without values.
        return transform.first_state(params, hparams)
    return trees.map_leaves(lambda x: torch.zeros((), dtype=x.dtype, device="cpu") if _is_bare(x) else x, state)


def _is_bare(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim == 0 and x.device.type == "meta"
