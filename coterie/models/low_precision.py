"""Perceptrons in bfloat16 on the CPU as one operation of autograd, with float32 parameters, inputs and outputs.

Autocast gives the same numbers. It spends as long on the bookkeeping of its casts, layer by layer and in both directions, as
the products of networks of this field's sizes take in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from coterie.models.layers import WORTHWHILE, Tanh, sigmoid_tanh, vmapped

__all__ = ["Perceptron"]


@lru_cache(maxsize=1)
def _fused_layer() -> Callable[..., Tensor] | None:
    """OneDNN's linear layer with an activation behind it, which PyTorch's compiler uses; None where there is none."""
    layer: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    try:
        if layer is not None and torch.backends.mkldnn.is_available():
            zeros = torch.zeros(1, 1, dtype=torch.bfloat16)
            layer(zeros, zeros, zeros[0], "tanh", [], "")
            return layer
    except RuntimeError:  # built without it, or with another form of it
        pass
    return None


def _hidden(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``tanh(x W^T + b)``."""
    layer = _fused_layer()
    if layer is not None:  # in less than half of the time that the activation takes by itself
        return layer(x, weight, bias, "tanh", [], "")
    return sigmoid_tanh(torch.addmm(bias, x, weight.t()), inplace=True)


def _outer(grad: Tensor, x: Tensor) -> Tensor:
    """``grad^T x``; the other way round it takes oneDNN two thirds of the time for few inputs."""
    return torch.mm(x.t(), grad).t() if x.shape[1] < grad.shape[1] else torch.mm(grad.t(), x)


class _LowPerceptron(torch.autograd.Function):
    """``x -> W_n tanh(... tanh(W_1 x + b_1) ...) + b_n``; products in bfloat16, all else as autocast has it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        low = [p.to(torch.bfloat16) for p in parameters]
        weights, biases = low[0::2], low[1::2]
        inputs = [x.to(torch.bfloat16)]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            inputs.append(_hidden(inputs[-1], weight, bias))
        ctx.save_for_backward(*inputs, *weights)
        return torch.addmm(biases[-1], inputs[-1], weights[-1].t()).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        inputs, weights = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        grad = grads[0].to(torch.bfloat16)
        gradients: list[Tensor | None] = []
        for i in reversed(range(len(weights))):
            gradients += [grad.sum(dim=0).float(), _outer(grad, inputs[i]).float()]
            if i > 0:
                grad = torch.mm(grad, weights[i])
                grad = torch.ops.aten.tanh_backward.grad_input(grad, inputs[i], grad_input=grad)
            elif ctx.needs_input_grad[0]:
                gradients.append(torch.mm(grad, weights[0]).float())
            else:
                gradients.append(None)
        return tuple(reversed(gradients))


class Perceptron(nn.Sequential):
    """Linear layers with activations between them, which under autocast on the CPU run as one operation where they can."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers to ``[B, inputs]``."""
        if torch.is_autocast_enabled("cpu") and self._worthwhile(x):
            linear: list[Any] = list(self)[::2]
            y: Tensor = _LowPerceptron.apply(x, *(p for layer in linear for p in (layer.weight, layer.bias)))
            return y
        output: Tensor = super().forward(x)
        return output

    def _worthwhile(self, x: Tensor) -> bool:
        modules: list[Any] = list(self)
        return (
            isinstance(x, Tensor)
            and x.device.type == "cpu"
            and x.dim() == 2
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and x.shape[0] * max(layer.out_features for layer in modules[::2]) >= WORTHWHILE
            and all(type(linear) is nn.Linear and linear.bias is not None for linear in modules[::2])
            and all(type(activation) is Tanh for activation in modules[1::2])
            and not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
            and not vmapped()
        )
