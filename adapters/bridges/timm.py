"""`register_with_timm`: this library's optimizers by name in timm's factory."""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from functional_optim.recipe import answering
from functional_optim.transform import Transform

from ..optimizer import OptimizerAdapter


@answering
def register_with_timm(**constructors: Callable[..., Transform]) -> list[str]:
    """Let `timm.optim.create_optimizer_v2`, and with it timm's `train.py --opt`, make this library's optimizers.

        fo.adapters.register_with_timm()
        optimizer = timm.optim.create_optimizer_v2(model, "fo-adamw", lr=3e-4, weight_decay=0.05, layer_decay=0.75)

    The names are those of the optimizers with `fo-` in front and with hyphens: timm takes what stands before an underscore for
    something else, so that "fo_adamw" would be timm's own AdamW. What else is given goes to the constructor of the transform, if
    it takes it, or is a hyper-parameter; `fused=True` is for the optimizer. Timm's groups have no names of parameters.

    Args:
        constructors: optimizers of your own, by name: `register_with_timm(mine=make_mine)` is "fo-mine".

    Returns:
        The names.

    Raises:
        ImportError: timm is not installed.
    """
    import functional_optim as fo

    timm: Any = importlib.import_module("timm.optim")
    factory: Any = importlib.import_module("timm.optim._optim_factory")
    public = {name: getattr(fo, name) for name in fo.__all__}
    own = {name: f for name, f in public.items() if getattr(f, "__module__", "").startswith("functional_optim.optimizers")}
    names = []
    for name, constructor in {**own, **constructors}.items():
        takes = inspect.signature(constructor).parameters
        names.append(f"fo-{name.replace('_', '-')}")
        if names[-1] in timm.list_optimizers():
            continue
        factory.default_registry.register(
            timm.OptimInfo(
                name=names[-1],
                opt_class=functools.partial(_made, constructor),
                description=(inspect.getdoc(constructor) or "").partition("\n")[0],
                has_eps="eps" in takes,
                has_momentum="momentum" in takes,
                has_betas="betas" in takes,
            )
        )
    return names


def _made(constructor: Callable[..., Transform], params: Iterable[Any], *, fused: bool | None = None, **given: Any) -> Any:
    """The optimizer. timm always gives a decay, which may be 0 where there is none to give."""
    takes = inspect.signature(constructor).parameters
    if "weight_decay" not in takes and not given.get("weight_decay"):
        given.pop("weight_decay", None)
    own = {name: value for name, value in given.items() if name in takes}
    rest = {name: value for name, value in given.items() if name not in takes}
    return OptimizerAdapter(params, constructor(**own), fused=fused, **rest)
