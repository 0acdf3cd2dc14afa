"""`by_role` on a language model, an encoder of torch's, a ResNet and a mixture of experts."""

from typing import Any

import pytest
import torch
from torch import nn

import functional_optim as fo
from functional_optim.adapters import OptimizerAdapter


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 8)
        self.head_mix = nn.Linear(8, 4, bias=False)


class LanguageModel(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(9, 4), nn.Embedding(5, 4)
        self.blocks = nn.ModuleList([Block()])
        self.lm_head = nn.Linear(4, 9, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight


BLOCK = {
    "attn.in_proj_weight": "matrix",
    "attn.in_proj_bias": "vector",
    "attn.out_proj.weight": "matrix",
    "attn.out_proj.bias": "vector",
    "norm.weight": "vector",
    "norm.bias": "vector",
    "fc.weight": "matrix",
    "fc.bias": "vector",
    "head_mix.weight": "matrix",
}


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model(tied):
    expected = {"wte.weight": "embedding", "wpe.weight": "embedding"}
    expected |= {f"blocks.0.{name}": role for name, role in BLOCK.items()}
    assert fo.by_role(LanguageModel(tied)) == expected | ({} if tied else {"lm_head.weight": "head"})


def test_a_resnet():
    model = nn.Module()
    model.conv1, model.bn1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    model.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 2, bias=False))
    model.fc = nn.Linear(4, 10)
    assert fo.by_role(model) == {
        "conv1.weight": "convolution",
        "bn1.weight": "vector",
        "bn1.bias": "vector",
        "layer1.0.weight": "convolution",
        "layer1.0.bias": "vector",
        "layer1.1.weight": "convolution",
        "fc.weight": "head",
        "fc.bias": "vector",
    }


def test_a_mixture_of_experts():
    model = nn.Module()
    model.router = nn.Linear(4, 3, bias=False)
    model.experts = nn.ParameterDict({"up": torch.zeros(3, 4, 8), "down": torch.zeros(3, 8, 4)})
    model.gain = nn.Parameter(torch.ones(()))
    assert fo.by_role(model) == {
        "gain": "vector",
        "router.weight": "matrix",
        "experts.up": "stack",
        "experts.down": "stack",
    }


def test_heads_by_other_names():
    class Model(nn.Sequential):
        def get_output_embeddings(self):
            return self[1]

    layers = [nn.Linear(2, 3, bias=False), nn.Linear(3, 4, bias=False), nn.Linear(3, 5, bias=False)]
    assert fo.by_role(Model(*layers), heads=["2"]) == {"0.weight": "matrix", "1.weight": "head", "2.weight": "head"}
    with pytest.raises(ValueError, match="heads names 'top', which is no module"):
        fo.by_role(Model(*layers), heads=["top"])
    no_module: Any = {}
    with pytest.raises(TypeError, match=r"by_role\(model\) got a dict"):
        fo.by_role(no_module)


def test_a_partition_takes_it():
    model = LanguageModel(tied=True)
    labels = {name: "soap" if role == "matrix" else "adamw" for name, role in fo.by_role(model).items()}
    optimizer = OptimizerAdapter(model.named_parameters(), fo.partition({"soap": fo.soap(), "adamw": fo.adamw()}, labels))
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    kept = {name for name, p in model.named_parameters() if "GG.0" in optimizer.state[p]}
    assert kept == {name for name, label in labels.items() if label == "soap"}


def test_the_gain_of_a_normed_weight_is_no_matrix():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    roles = fo.by_role(model)
    assert roles["0.parametrizations.weight.original0"] == "vector" and roles["0.parametrizations.weight.original1"] == "matrix"


def test_a_single_name_is_no_list_of_heads():
    with pytest.raises(TypeError, match=r"heads = 'last': expected a list of names, \['last'\]"):
        fo.by_role(nn.Sequential(nn.Linear(3, 4)), heads="last")
