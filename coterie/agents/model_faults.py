"""What is wrong with a model that could not be run: looked for only after something failed, so that running costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coterie.models.base import Model
from coterie.models.batch import ModelBatch
from coterie.models.mixins import computed_tensors

__all__ = ["model_fault"]


def model_fault(
    batch: ModelBatch,
    names: Sequence[str],
    error: Exception,
    use: Callable[[Model, Sequence[Tensor]], Any] | None = None,
) -> ValueError | None:
    """Find the model for which one row of zeros is too much.

    :param batch: the models that could not be run together
    :param names: their agents
    :param error: what happened
    :param use: what is done with the tensors that a model returned

    :return: an error that names agent and model, None where each model runs by itself
    """
    if "CUDA" in str(error):  # the device's own trouble, which would befall the first model that is looked at
        return None
    for model in batch.unique:
        trouble = _trouble(model, batch.role, batch.team_size, use)
        if trouble is not None:
            uid = names[batch.models.index(model)]
            return ValueError(f"models[{uid!r}][{batch.role!r}]: {trouble}")
    return None


def _trouble(
    model: Model, role: str, team_size: int, use: Callable[[Model, Sequence[Tensor]], Any] | None
) -> str | None:
    entered: list[tuple[str, nn.Module, Any]] = []
    modes = [(module, module.training) for module in model.modules()]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args, name=name: entered.append((name, layer, args)))
        for name, layer in model.named_modules()
    ]
    model.eval()  # layers that learn from batches need more than a row
    inputs = {**model._zero_inputs(), "agent_id": torch.zeros(1, team_size, device=model.device)}
    try:
        with torch.no_grad():
            tensors = computed_tensors(model.compute(inputs, role), model)
            if use is not None:
                use(model, tensors)
    except (RuntimeError, ValueError) as error:
        return _words(model, inputs["states"].shape[-1], entered, error)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    return None


def _words(model: Model, width: int, entered: Sequence[tuple[str, nn.Module, Any]], error: Exception) -> str:
    name, layer, args = entered[-1] if entered else ("", model, ())
    if isinstance(layer, nn.Linear) and args and args[0].shape[-1] != layer.in_features:
        return (
            f"layer {name} of {type(model).__name__} is a {layer} and was given {args[0].shape[-1]} numbers; "
            f"inputs['states'] is [B, {width}] (self.num_observations is {model.num_observations}): expected a layer of that "
            "width, and of all that compute puts beside it"
        )
    if isinstance(error, ValueError):
        return str(error)
    return f"{type(model).__name__}.compute fails for inputs['states'] of shape [1, {width}]: {error}"
