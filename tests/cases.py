"""The table of transforms: every law is tested on each of them. A new transform adds a line."""

import torch

import functional_optim as fo
from functional_optim import Transform, trees
from functional_optim.numerics import global_norm, sqrt


@fo.per_tensor(slots={"norm": lambda p, hp: torch.zeros((), dtype=p.dtype)}, hparams={"decay": 0.9})
def divide_by_average_norm(hp, t):
    """A per-tensor rule whose slot has a shape of its own: what the table has until the first such rule ships."""

    def rule(g, p, n):
        n = hp["decay"] * n + (1 - hp["decay"]) * sqrt((g * g).sum())
        return g / (n + 0.1), n

    return rule


@fo.elementwise(slots=("exp_avg",), hparams={"lr": 1e-3, "beta": 0.9})
def sign_of_average(hp, t):
    """The README's example of a transform of one's own."""

    def rule(g, p, m):
        m = hp["beta"] * m + (1 - hp["beta"]) * g
        return -hp["lr"] * m.sign(), m

    return rule


@fo.whole_tree(slots=("exp_avg",), shared={"largest": lambda hp: hp["floor"]}, hparams={"beta": 0.9, "floor": 0.1})
def divide_average_by_largest_norm(hp, t):
    """A rule for all tensors, with slots and a value that they share."""

    def rule(gs, ps, shared, ms):
        ms = [hp["beta"] * m + (1 - hp["beta"]) * g for m, g in zip(ms, gs, strict=True)]
        largest = torch.maximum(shared["largest"], global_norm(ms).double())
        return [m / largest / t for m in ms], {"largest": largest}, ms

    return rule


@fo.elementwise(slots=("hessian",), hparams={"rho": 0.5}, extra=("value",), leaf_extra=("hessian_diag",))
def divide_by_curvature(hp):
    """A rule that asks for the loss and for a tree beside the gradients."""

    def rule(g, p, h, diagonal):
        h = (h + diagonal) / 2
        return hp["rho"] * hp["value"] * g / (h + 0.1), h

    return rule


def divide_by_largest_norm():
    """A transform written by hand, whose state is one value shared by all parameters."""

    def init_state(params, hparams):
        return {"largest_norm": torch.full((), 0.1, dtype=torch.float64)}

    def update(updates, state, params, hparams, **extra):
        largest = torch.maximum(state["largest_norm"], global_norm(trees.leaves(updates)).double())
        return trees.map_leaves(lambda u: hparams["factor"] * u / largest, updates), {"largest_norm": largest}

    return fo.Transform(init_state, update, {"factor": 0.5}, name="divide_by_largest_norm")


CASES: dict[str, list[Transform]] = {
    "Transform": [divide_by_largest_norm()],
    "adam": [fo.adam(), fo.adam(weight_decay=0.1, amsgrad=True)],
    "adamw": [fo.adamw(), fo.adamw(amsgrad=True, state_dtype=torch.float64)],
    "add_decayed_weights": [fo.add_decayed_weights()],
    "chain": [
        fo.chain(fo.clip_by_global_norm(), fo.adamw(), fo.clip_by_value(clip_value=1e-3)),
        fo.chain(fo.scale_by_adam(), fo.clip_by_global_norm(), fo.trace(), fo.trace(), fo.scale_by_learning_rate()),
    ],
    "clip_by_global_norm": [fo.clip_by_global_norm(), fo.clip_by_global_norm(max_norm=100.0)],
    "clip_by_value": [fo.clip_by_value()],
    "elementwise": [sign_of_average(), divide_by_curvature()],
    "per_tensor": [divide_by_average_norm()],
    "rename_hparams": [fo.rename_hparams(fo.adamw(), eps="adam_eps", lr="step_size")],
    "scale": [fo.scale(-2.0)],
    "scale_by_adam": [fo.scale_by_adam(), fo.scale_by_adam(amsgrad=True)],
    "scale_by_learning_rate": [fo.scale_by_learning_rate()],
    "scale_by_lion": [fo.scale_by_lion(), fo.chain(fo.scale_by_lion(), fo.add_decayed_weights(), fo.scale_by_learning_rate())],
    "scale_by_schedule": [fo.scale_by_schedule(fo.warmup_cosine(2.0, warmup_steps=2, total_steps=4, end=0.1))],
    "sgd": [fo.sgd(), fo.sgd(momentum=0.9, dampening=0.1, weight_decay=0.1), fo.sgd(momentum=0.9, nesterov=True)],
    "whole_tree": [divide_average_by_largest_norm()],
    "trace": [fo.trace(), fo.trace(dampening=0.5), fo.trace(nesterov=True)],
}
