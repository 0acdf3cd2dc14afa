"""Groups by what parameters are and where they stand."""

import pytest
import torch
from torch import nn

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter, param_groups


class Encoder(nn.Module):
    """Embeddings, layers, a norm and a head, as language models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(3))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2, bias=False)


def numbers(groups, key):
    return {name: group[key] for group in groups for name, _ in group["params"]}


def test_biases_and_norms_and_what_is_named_do_not_decay():
    decays = numbers(param_groups(Encoder(), 0.1, weight_decay=0.5, no_decay=[r"^embed"]), "weight_decay")
    assert {name for name, decay in decays.items() if decay} == {"head.weight", *(f"layers.{i}.0.weight" for i in range(3))}
    assert set(decays.values()) == {0.0, 0.5} and list(decays)[0] == "embed.weight"


def test_layers_nearer_the_input_are_slower():
    rates = numbers(param_groups(Encoder(), 1.0, layer_decay=0.5), "lr")
    assert rates["head.weight"] == rates["norm.bias"] == 1.0
    assert [rates[f"layers.{i}.0.weight"] for i in range(3)] == [0.125, 0.25, 0.5] and rates["embed.weight"] == 0.0625


def test_the_layers_can_be_told():
    rates = numbers(param_groups(Encoder(), 1.0, layer_decay=0.5, layer_of=lambda name: int("layers" not in name)), "lr")
    assert set(rates[name] for name in rates if "layers" in name) == {0.5} and rates["embed.weight"] == 1.0


def test_an_optimizer_takes_them_with_their_names_and_frozen_parameters_are_left_out():
    model = Encoder()
    model.embed.weight.requires_grad_(False)
    groups = param_groups(model, 0.1, weight_decay=0.5, layer_decay=0.5, lora_ratio=2.0)
    rate_of, rates = numbers(groups, "lr"), [group["lr"] for group in groups]
    tx = fo.partition({"head": fo.sgd(), "rest": fo.adamw()}, fo.by_name({"head": "head", "": "rest"}))
    optimizer = OptimizerAdapter(groups, tx, lr=0.1)
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert rate_of["layers.2.0.bias"] == 0.1 * 0.5 * 2.0
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5 * rate for rate in rates]


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (Encoder().parameters(), {}, "model is a generator: expected a module"),
        (Encoder(), {"layer_decay": 1.5}, r"layer_decay = 1.5 is outside \(0, 1\]"),
        (Encoder(), {"lora_ratio": 0.0}, r"lora_ratio = 0.0 is outside \(0, inf\)"),
        (nn.Linear(2, 2), {"layer_decay": 0.5}, "no list of modules whose members could be its layers: give layer_of="),
        (nn.Linear(2, 2).requires_grad_(False), {}, "nothing to train"),
    ],
)
def test_what_does_not_fit_is_an_error(model, given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        param_groups(model, **given)


def test_a_decay_is_no_growth():
    with pytest.raises(ValueError, match="weight_decay"):
        param_groups(nn.Linear(2, 1), 0.1, weight_decay=-1.0)
