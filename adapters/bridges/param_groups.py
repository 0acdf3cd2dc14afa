"""`param_groups`: the groups that people give optimizers, by what parameters are and where they stand."""

import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from functional_optim.hparams import validate_number
from functional_optim.recipe import answering

Group = dict[str, Any]


@answering
def param_groups(
    model: nn.Module,
    lr: float = 1e-3,
    *,
    weight_decay: float | None = None,
    no_decay: Sequence[str] = (),
    layer_decay: float | None = None,
    layer_of: Callable[[str], int] | None = None,
    lora_ratio: float | None = None,
) -> list[Group]:
    r"""A model's parameters that require gradients, in groups: no decay on biases and norms, layer-wise rates, LoRA+.

        OptimizerAdapter(param_groups(model, 3e-4, weight_decay=0.1, layer_decay=0.75), fo.adamw())

    Args:
        model: its parameters keep their names, for `partition` and `load_by_name`.
        lr: the rate, with layers that of the last. 1 where the chain's own rates are multiplied: see `OptimizerAdapter` for when.
        weight_decay: of matrices. Biases and parameters of at most one dimension, such as those of norms, get 0, and so do those
            that the model names in `no_weight_decay()`, as timm's models do. None leaves the decay to the optimizer.
        no_decay: regular expressions; what they are found in the name of gets no decay either, `[r"embed"]`.
        layer_decay: γ, in (0, 1]: layer i of n has the rate `lr γⁿ⁻ⁱ`. What comes before the layers, embeddings, counts as one
            more, and so does what comes after them, a head.
        layer_of: name to the number of the layer; by default the members of the model's longest list of modules are the layers.
        lora_ratio: what the rate of LoRA's matrices B, and of vectors, is multiplied with: 16, say. LoRA+.

    Returns:
        Groups, each of the parameters with the same numbers, in the order of the model.

    Raises:
        TypeError: no module.
        ValueError: a number out of range, or nothing to train.

    Sources: layer-wise decay as in BEiT, https://arxiv.org/abs/2106.08254, and as `timm.optim.param_groups_layer_decay`, whose
    groups an `OptimizerAdapter` takes, too; Hayou et al. 2024, LoRA+, https://arxiv.org/abs/2402.12354, as `peft.optimizers`.

    >>> model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    >>> for group in param_groups(model, 0.1, weight_decay=0.01, layer_decay=0.5):
    ...     print([name for name, _ in group["params"]], group["lr"], group["weight_decay"])
    ['0.weight'] 0.05 0.01
    ['0.bias'] 0.05 0.0
    ['1.weight'] 0.1 0.01
    ['1.bias'] 0.1 0.0
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: expected a module, whose parameters have names.")
    for name, value, interval in (
        ("weight_decay", weight_decay, "[0, inf)"),
        ("layer_decay", layer_decay, "(0, 1]"),
        ("lora_ratio", lora_ratio, "(0, inf)"),
    ):
        if value is not None:
            validate_number(name, value, interval)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("no parameter of the model requires a gradient: there is nothing to train.")
    layers = {} if layer_decay is None else _layers(model, list(trained), layer_of)
    groups: dict[tuple[float, float | None], Group] = {}
    for name, p in trained.items():
        rate = lr if layer_decay is None else lr * layer_decay ** (max(layers.values()) - layers[name])
        if lora_ratio is not None and (p.ndim == 1 or _is_lora_b(name)):
            rate = rate * lora_ratio
        decay = 0.0 if weight_decay is not None and _is_spared(model, name, p, no_decay) else weight_decay
        numbers = {"lr": rate, **({} if decay is None else {"weight_decay": decay})}
        groups.setdefault((rate, decay), {"params": [], **numbers})["params"].append((name, p))
    return list(groups.values())


def _is_spared(model: nn.Module, name: str, p: Tensor, no_decay: Sequence[str]) -> bool:
    """Whether a parameter gets no decay."""
    listed: Any = getattr(model, "no_weight_decay", None)
    own: Any = listed() if callable(listed) else ()
    is_listed = any(fnmatch.fnmatch(name, pattern) for pattern in own)
    return p.ndim <= 1 or name.endswith(".bias") or is_listed or any(re.search(pattern, name) for pattern in no_decay)


def _is_lora_b(name: str) -> bool:
    return any(part.startswith(("lora_B", "lora_embedding_B")) for part in name.split("."))


def _layers(model: nn.Module, names: Sequence[str], layer_of: Callable[[str], int] | None) -> dict[str, int]:
    """The number of each parameter's layer."""
    if layer_of is not None:
        return {name: layer_of(name) for name in names}
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.Sequential)}
    if not lists:
        raise ValueError("the model has no list of modules whose members could be its layers: give layer_of=, name to number.")
    prefix = max(lists, key=lambda name: len(lists[name]))
    start = f"{prefix}." if prefix else ""
    inside = {name: int(name[len(start) :].partition(".")[0]) for name in names if name.startswith(start)}
    first, last = min(inside.values(), default=0), max(inside.values(), default=0)
    found, after = {}, False
    for name in names:
        after = after or name in inside
        found[name] = inside.get(name, last + 1 if after else first - 1)
    return found
