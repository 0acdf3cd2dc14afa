"""A small regression as Hugging Face and Lightning train it: a model, and its samples."""

from typing import Any

import torch
from torch import Tensor, nn


class Regression(nn.Module):
    """A model as Hugging Face's Trainer calls it: it gets a sample's fields and returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        y = self.layers(x).squeeze(-1)
        return {"loss": (y - labels).square().mean(), "logits": y}


def samples() -> list[dict[str, Any]]:
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(1))
    return [{"x": row, "labels": row.prod()} for row in x]
