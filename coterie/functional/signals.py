"""The forms in which what describes agents, or a whole team, is handed to a formula."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_mask", "check_shape", "per_agent"]


def check_shape(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return ``tensor``, which has this shape.

    :raises ValueError: it has another one
    """
    if tensor.shape != shape:
        raise ValueError(f"expected {name} of shape {list(shape)} as the values, got {list(tensor.shape)}")
    return tensor


def check_mask(name: str, mask: Tensor, shape: torch.Size) -> Tensor:
    """Return ``mask``, which is bool and has this shape.

    :raises ValueError: it is not
    """
    if mask.shape != shape or mask.dtype != torch.bool:
        raise ValueError(f"expected {name} as bool of shape {list(shape)}, got {mask.dtype} {list(mask.shape)}")
    return mask


def per_agent(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Give a team's signal the agent dimension -2 of ``shape``, repeating it.

    :raises ValueError: the tensor has neither this shape nor a team's
    """
    if tensor.shape == shape:
        return tensor
    forms = [list(shape)]
    if len(shape) >= 3 and shape[-1] == 1:  # time, agent, 1: without an agent dimension there is nothing to repeat over
        forms += [[*shape[:-2], 1, 1], [*shape[:-2], 1]]
        if list(tensor.shape) in forms:
            return (tensor.unsqueeze(-2) if tensor.dim() < len(shape) else tensor).expand(shape)
    raise ValueError(
        f"expected {name} of shape {list(shape)} as the values"
        + (f", or {forms[1]} or {forms[2]} for the whole team" if len(forms) > 1 else "")
        + f"; got {list(tensor.shape)}"
    )
