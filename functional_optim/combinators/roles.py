"""Labels by what a parameter is for: which layers matrix methods are meant for, and which are not, though they are matrices."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from functional_optim.recipe import answering

ROLES = ("matrix", "convolution", "stack", "embedding", "head", "vector")

# What the last layer of a model is called, at the end of its path or as the whole of it.
HEADS = ("lm_head", "output_projection", "unembed", "unembedding", "score", "classifier", "head", "heads")
TOP_HEADS = (*HEADS, "fc", "output", "out", "logits")

CONVOLUTIONS = (nn.modules.conv._ConvNd,)


@answering
def by_role(model: nn.Module, heads: Collection[str] = ()) -> dict[str, str]:
    """Label a module's parameters by what they are for, so that each goes to a rule that is meant for it.

    | label | parameters | Muon, SOAP, Shampoo, PSGD |
    |---|---|---|
    | `"matrix"` | weights of hidden linear layers, of attention, of recurrent ones, and what else has two dimensions | yes |
    | `"convolution"` | weights of convolutions | yes, as the matrix of output channels by all others |
    | `"stack"` | three dimensions or more that are no convolution, as of experts | yes, by `per_matrix` |
    | `"embedding"` | `nn.Embedding` and `nn.EmbeddingBag`; a weight that a head shares | no: AdamW |
    | `"head"` | the weight of the last linear layer | no: AdamW |
    | `"vector"` | biases, norms' scales, and whatever else has fewer than two dimensions | no: AdamW, without decay |

    A head is told by `model.get_output_embeddings()`, where a model has it, as those of Hugging Face; by the names in `heads`;
    and by what heads are usually called: a linear layer `lm_head`, `head`, `classifier` or `score` anywhere, `fc` or `output` at
    the top. Print the labels of a model of your own: a head by another name is a matrix here.

    Args:
        model: its parameters' names are those of `model.named_parameters()`: a weight that two submodules share is counted once.
        heads: names of further modules that are heads.

    Returns:
        Name to label, as `partition` takes it. Labels without a branch are an error there; for those that one rule takes, map
        them: `{name: "adamw" if role != "matrix" else "muon" for name, role in by_role(model).items()}`.

    Raises:
        TypeError: this is no module, or `heads` is a single name.
        ValueError: a name in `heads` is no module's.

    >>> model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    >>> by_role(model)
    {'0.weight': 'embedding', '1.weight': 'matrix', '1.bias': 'vector', '2.weight': 'vector', '2.bias': 'vector'}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"by_role(model) got a {type(model).__name__}: expected a module.")
    if isinstance(heads, str) or not isinstance(heads, Collection):
        raise TypeError(f"heads = {heads!r}: expected a list of names, [{heads if isinstance(heads, str) else 'lm_head'!r}].")
    modules = dict(model.named_modules())
    for name in heads:
        if name not in modules:
            raise ValueError(f"heads names {name!r}, which is no module of this model.")
    uses: dict[Tensor, list[tuple[str, nn.Module]]] = {}
    for path, module in modules.items():
        for parameter in module.parameters(recurse=False):
            uses.setdefault(parameter, []).append((path, module))
    outputs = _output_of(model)
    return {name: _role(p, uses[p], outputs, heads) for name, p in model.named_parameters()}


def _output_of(model: nn.Module) -> nn.Module | None:
    method: Any = getattr(model, "get_output_embeddings", None)
    return None if method is None else method()


def _role(p: Tensor, uses: list[tuple[str, nn.Module]], output: nn.Module | None, heads: Collection[str]) -> str:
    if p.ndim < 2 or any(_is_gain(p, module) for _, module in uses):
        return "vector"
    kinds = tuple(module for _, module in uses)
    if any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in kinds):
        return "embedding"
    if any(isinstance(module, CONVOLUTIONS) for module in kinds):
        return "convolution"
    if any(module is output or path in heads or _is_called_head(path, module) for path, module in uses):
        return "head"
    return "stack" if p.ndim > 2 else "matrix"


def _is_gain(p: Tensor, module: nn.Module) -> bool:
    """Whether it is the first of what `parametrizations.weight_norm` makes a weight of: sizes, one for each output."""
    is_normed = any(type(each).__name__ == "_WeightNorm" for each in module.children())
    return is_normed and p is getattr(module, "original0", None)


def _is_called_head(path: str, module: nn.Module) -> bool:
    last = path.rpartition(".")[2]
    return isinstance(module, nn.Linear) and (path in TOP_HEADS or last in HEADS)
