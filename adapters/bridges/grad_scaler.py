"""Gradients of a scaled loss, as `torch.amp.GradScaler` hands them to an optimizer that unscales them itself.

Before it calls `step`, the scaler puts two () tensors on the optimizer: `grad_scale`, by which the loss was multiplied, and
`found_inf`, which is not 0 where a gradient is infinite or NaN. The gradients in the parameters stay as they are.
"""

from typing import Any

import torch
from torch import Tensor


def factor_of_gradients(optimizer: Any) -> float | None:
    """What the gradients have to be multiplied by; None where there must be no step.

    On another device than the host both are read at once, as the scaler itself reads one before a step that does not unscale.
    """
    scale, found = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    if scale is None and found is None:
        return 1.0
    tensors = {name: x.detach().float() for name, x in (("scale", scale), ("found", found)) if isinstance(x, Tensor)}
    device = next((x.device for x in tensors.values()), None)
    read = torch.stack([x.to(device) for x in tensors.values()]).tolist() if tensors else []
    known = {"scale": scale or 1.0, "found": found} | dict(zip(tensors, read, strict=True))
    return None if known["found"] else 1 / known["scale"]
