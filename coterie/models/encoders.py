"""Observations by their space: vectors as they are, images through convolutions, parts of a Dict or Tuple each by its own.

A flat observation ``[B, F]`` goes in and features ``[B, n]`` come out, for a perceptron to go on with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.models.perceptrons import HIDDEN_GAIN, activation_named, orthogonal
from coterie.spaces import flat_size, unflatten

__all__ = ["CNN", "Encoder", "ImageEncoder", "image_layout", "make_encoder"]

#: default output channels of the convolutions
CNN = (16, 32, 32)


def make_encoder(
    space: gymnasium.Space | int | tuple[int, ...] | None, cnn: Sequence[int] = CNN, activation: str = "tanh"
) -> Encoder | None:
    """What turns flat observations of ``space`` into features; None where they are features as they are.

    :param cnn: output channels of the convolutions that images go through; empty to leave images flat too
    :param activation: a key of :data:`coterie.models.perceptrons.ACTIVATIONS`
    """
    if not cnn or not isinstance(space, gymnasium.Space) or not any(_is_image(leaf) for leaf in _leaves(space)):
        return None
    return Encoder(space, cnn, activation)


def _is_image(space: gymnasium.Space) -> TypeGuard[spaces.Box]:
    return isinstance(space, spaces.Box) and len(space.shape) in (2, 3)


def _leaves(space: gymnasium.Space) -> Iterator[gymnasium.Space]:
    """The spaces inside of a Dict or Tuple, in the order in which they are laid out."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        for part in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            yield from _leaves(part)
    else:
        yield space


def _values(structure: Any) -> Iterator[Tensor]:
    """The tensors inside of what :func:`unflatten` returns, in that order."""
    if isinstance(structure, (Mapping, tuple)):
        for part in structure.values() if isinstance(structure, Mapping) else structure:
            yield from _values(part)
    else:
        yield structure


class Encoder(nn.Module):
    """Features of flat observations: images encoded, everything else as it is, in the order of the space.

    :param space: the observation space
    :param cnn: output channels of the convolutions of each image
    :param activation: a key of :data:`coterie.models.perceptrons.ACTIVATIONS`
    """

    def __init__(self, space: gymnasium.Space, cnn: Sequence[int] = CNN, activation: str = "tanh") -> None:
        super().__init__()
        self.space = space
        leaves = list(_leaves(space))
        images = {i: ImageEncoder(leaf, cnn, activation) for i, leaf in enumerate(leaves) if _is_image(leaf)}
        self.images = nn.ModuleDict({str(i): image for i, image in images.items()})
        #: number of features
        self.size = sum(images[i].size if i in images else flat_size(leaf) for i, leaf in enumerate(leaves))

    def forward(self, x: Tensor) -> Tensor:
        """Turn ``[B, F]`` into ``[B, size]``."""
        parts = []
        for i, value in enumerate(_values(unflatten(self.space, x))):
            image = str(i) in self.images
            parts.append(self.images[str(i)](value) if image else value.reshape(x.shape[0], -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def image_layout(shape: Sequence[int]) -> tuple[int, int, int, bool]:
    """Channels, height and width of images of ``shape``, and whether channels come last.

    Two dimensions are those of one channel. Of three, the channels are the last one (Gymnasium's convention) or the first
    one: the one beside two equal sides; where that does not tell, the smaller one; where they are equal, the last.
    """
    if len(shape) == 2:
        return 1, int(shape[0]), int(shape[1]), False
    first, middle, last = (int(n) for n in shape)
    square = (first == middle) != (middle == last)
    channels_last = first == middle if square else last <= first
    return (last, first, middle, True) if channels_last else (first, middle, last, False)


class ImageEncoder(nn.Module):
    """Convolutions over images ``[B, H, W, C]``, ``[B, C, H, W]`` or ``[B, H, W]``, whose result is flat: ``[B, size]``.

    A layer shrinks a side of 48 and more to a quarter, one of 12 and more to a half, and leaves shorter ones as they are:
    images of any size from one pixel on will do.

    :param space: a Box of rank 2 or 3; bytes (``uint8``) are scaled to [0, 1]
    :param cnn: output channels of each layer
    :param activation: a key of :data:`coterie.models.perceptrons.ACTIVATIONS`

    :raises ValueError: a layer without channels, or an unknown activation
    """

    def __init__(self, space: spaces.Box, cnn: Sequence[int] = CNN, activation: str = "tanh") -> None:
        super().__init__()
        if any(channels < 1 for channels in cnn):
            raise ValueError(f"cnn: expected layers of at least one channel, got {tuple(cnn)}")
        make = activation_named(activation)
        before, *sides = image_layout(space.shape)[:3]
        self.channels_last = image_layout(space.shape)[3]
        self.scale = 1.0 / 255.0 if space.dtype == np.uint8 else 1.0
        layers: list[nn.Module] = []
        for after in cnn:
            form = [_window(side) for side in sides]
            kernel, stride, padding = ((form[0][i], form[1][i]) for i in range(3))
            layers += [orthogonal(nn.Conv2d(before, after, kernel, stride, padding), HIDDEN_GAIN), make()]
            sides = [(side + 2 * p - k) // s + 1 for side, (k, s, p) in zip(sides, form, strict=True)]
            before = after
        self.net = nn.Sequential(*layers)
        #: number of features
        self.size = before * sides[0] * sides[1]

    def forward(self, x: Tensor) -> Tensor:
        """Turn images into features ``[B, size]``."""
        if x.dim() == 3:
            x = x.unsqueeze(1)
        elif self.channels_last:
            x = x.movedim(-1, 1)
        return self.net(x * self.scale if self.scale != 1.0 else x).flatten(1)


def _window(side: int) -> tuple[int, int, int]:
    """Kernel, stride and padding of a convolution along a side."""
    if side >= 48:
        return 8, 4, 2
    return (4, 2, 1) if side >= 12 else (3, 1, 1)
