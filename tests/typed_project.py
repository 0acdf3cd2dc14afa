"""What a user may write who asks their type checker to be strict: test_typing.py has it checked, and runs `main`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import functional_optim as fo

Params = dict[str, Tensor]
Rule = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def loss_of(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return ((x @ params["w"] + params["b"] - y) ** 2).mean()


@fo.elementwise(slots=("exp_avg",), hparams={"lr": fo.Hparam(1e-3, "[0, inf)"), "beta": fo.Hparam(0.9, "[0, 1)")})
def sign_momentum(hp: Mapping[str, Any], t: fo.numerics.Scalar) -> Rule:
    def rule(g: Tensor, p: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        m = hp["beta"] * m + (1 - hp["beta"]) * g
        return -hp["lr"] * m.sign(), m / fo.numerics.bias_correction(hp["beta"], t)

    return rule


def composed() -> fo.Transform:
    branches = {"decay": fo.adamw(weight_decay=0.1, betas=(0.9, 0.95)), "plain": fo.chain(sign_momentum(beta=0.95))}
    routed = fo.partition(branches, fo.by_name({r"w$": "decay", r".*": "plain"}))
    links = fo.chain(fo.monitor("grad"), fo.clip_by_global_norm(max_norm=1.0), fo.apply_if_finite(routed))
    own = fo.masked(fo.add_decayed_weights(0.1), lambda name, leaf: name != "b" and leaf.ndim > 1)
    schedule = fo.warmup_cosine(peak=3e-4, warmup_steps=5, total_steps=100)
    tx = fo.scheduled(fo.accumulate(fo.chain(own, links), every=2), lr=schedule)
    return fo.chain(tx, fo.scale_by_schedule(lambda step: 1 / (1 + step)))


def trained(tx: fo.Transform, params: Params, x: Tensor, y: Tensor) -> tuple[Params, float]:
    state = tx.init_state(params)
    for _ in range(3):
        grads = fo.meta.forward_grad(loss_of)(params, x, y)
        updates, state = tx.update(grads, state, params, {"weight_decay": torch.tensor(0.2), "plain.beta": 0.8})
        params = fo.apply_updates(params, updates)
    return params, float(fo.state_get(state, "grad_norm") + fo.hparams_at(tx, state)["lr"])


def meta_gradient(x: Tensor, y: Tensor) -> Callable[[Params, float], Params]:
    inner = fo.meta.unroll(loss_of, fo.adam(), steps=3, remat=True)

    def after(params: Params, lr: float) -> Tensor:
        result = inner(params, {"lr": lr}, (x, y))
        return fo.meta.remat(loss_of)(result.params, x, y) + result.logs["loss"].sum()

    return fo.meta.compiled(fo.meta.forward_grad(after))


@fo.meta.custom_root(loss_of, solve=fo.meta.cg)
def minimum(params: Params, x: Tensor, y: Tensor) -> Params:
    return params


def stepped(model: torch.nn.Linear, x: Tensor, y: Tensor) -> list[str]:
    optimizer = fo.adapters.OptimizerAdapter(model.named_parameters(), fo.sgd(momentum=0.9), lr=0.1, fused=False)
    adamw = fo.adapters.AdamW(model.named_parameters(), lr=1e-3, betas=(0.9, 0.95), amsgrad=True)
    schedulers = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
        fo.adapters.as_lr_scheduler(adamw, fo.cosine(0.1, 0, 10)),
    )
    slopes = torch.autograd.grad(loss_of({"w": model.weight.T, "b": model.bias}, x, y), list(model.parameters()))
    for p, slope in zip(model.parameters(), slopes, strict=True):
        p.grad = slope
    for each, scheduler in zip((optimizer, adamw), schedulers, strict=True):
        each.step()
        scheduler.step()
    pure = fo.adapters.functional_state(optimizer, model)
    fo.adapters.load_functional_state(optimizer, pure.params, pure.state, pure.hparams, model)
    report = fo.adapters.load_by_name(adamw, adamw.state_dict(), strict=False, model=model)
    return [*report.missing, fo.adapters.transform_of(optimizer).name]


def checked() -> None:
    fo.testing.check_transform(sign_momentum(lr=0.1))


def main() -> list[str]:
    x, y = torch.randn(8, 3), torch.randn(8, 1)
    params, norm = trained(composed(), {"w": torch.zeros(3, 1), "b": torch.zeros(1)}, x, y)
    assert norm > 0 and callable(meta_gradient(x, y)) and minimum(params, x, y).keys() == params.keys()
    return stepped(torch.nn.Linear(3, 1), x, y)
