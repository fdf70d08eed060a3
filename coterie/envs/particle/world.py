"""The physics of the particle tasks: pure functions of tensors, without data-dependent shapes.

Shape letters: E copies, M movable bodies, L landmarks, S speaking agents, C channels of a message, G goals. Inside, the
copies are the *last* dimension and the coordinates the first, so that every operation runs over contiguous memory;
:func:`turn` changes between this layout and the public one, which has E first.

Where a body stands and moves (units of the arena, time step ``DT``)::

    p' = p + DT v                                          # the velocity of the previous step
    v' = (1 - DAMPING) v + DT (drive + sum of contacts)    # unit mass

The model and its constants are those of the multi-agent particle environments (Lowe et al. 2017, Mordatch & Abbeel 2018).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "MOVES",
    "SENSITIVITY",
    "World",
    "colour_table",
    "contact_force",
    "continuous_drive",
    "discrete_drive",
    "distances",
    "goal_colours",
    "goal_positions",
    "integrate",
    "limit_speed",
    "restart",
    "turn",
]

DT = 0.1
DAMPING = 0.25
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 0.001
SENSITIVITY = 5.0
#: force of the discrete actions nothing, left, right, down, up
MOVES = SENSITIVITY * torch.tensor([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]], dtype=torch.float64)
#: stands in for the distance of two bodies in one spot, where a direction does not exist
TINY = 1e-30


class World(NamedTuple):
    """Everything physical in E copies; no function writes to these tensors."""

    #: where the movable bodies are, [2, M, E]
    positions: Tensor
    #: how fast they move, [2, M, E]
    velocities: Tensor
    #: where the landmarks are, [2, L, E]
    landmarks: Tensor
    #: what each speaking agent said in the last step, [C, S, E]
    words: Tensor
    #: index of the landmark that each goal points to, int64 [G, E]
    goals: Tensor


def turn(tensor: Tensor) -> Tensor:
    """Reverse the dimensions: [E, M, 2] to [2, M, E] and back, as a new contiguous tensor."""
    return tensor.permute(*reversed(range(tensor.dim()))).clone(memory_format=torch.contiguous_format)


def distances(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the offsets ``a_i - b_j`` [2, I, J, E] and their lengths [I, J, E] for points [2, I, E] and [2, J, E].

    Written out, not by a norm, so that the rounding is that of numpy: a collision is a threshold on this length.
    """
    offsets = a[:, :, None] - b[:, None]
    return offsets, (offsets * offsets).sum(0).sqrt()


def contact_force(positions: Tensor, reach: float | Tensor, obstacles: Tensor | None = None) -> Tensor:
    """Force [2, M, E] on every body from all others, which repel below the distance ``reach``.

    The penetration is a softplus of ``reach - distance``; two bodies in exactly one spot exert no force on each other.

    :param positions: of the bodies, [2, M, E]
    :param reach: the sum of two radii: one for all pairs, or [M, M + L, 1]
    :param obstacles: positions [2, L, E] of what pushes the bodies and cannot be moved; None for nothing
    """
    others = positions if obstacles is None else torch.cat([positions, obstacles], dim=1)
    offsets, length = distances(positions, others)
    depth = torch.logaddexp((reach - length) / CONTACT_MARGIN, length.new_zeros(()))
    pressure = depth / length.clamp_min(TINY)  # finite, so a body's zero offset to itself gives a zero force
    return (offsets * pressure).sum(2) * (CONTACT_FORCE * CONTACT_MARGIN)


def integrate(positions: Tensor, velocities: Tensor, force: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions and velocities [2, M, E] one time step later; the position moves with the old velocity."""
    moved = positions + velocities * DT
    return moved, torch.add(velocities * (1.0 - DAMPING), force, alpha=DT)


def limit_speed(velocities: Tensor, limits: Tensor) -> Tensor:
    """Return velocities [2, M, E], shortened where a body is faster than its limit [M, 1]."""
    speed = (velocities * velocities).sum(0).sqrt()
    return torch.where(speed > limits, velocities / speed.clamp_min(TINY) * limits, velocities)


def discrete_drive(choices: Tensor, table: Tensor) -> Tensor:
    """Look up ``choices`` int [E, M] in ``table`` [choices, K]; returns [K, M, E]."""
    return functional.embedding(choices, table).permute(2, 1, 0)


def continuous_drive(thrust: Tensor, dtype: torch.dtype, strength: float | Tensor = SENSITIVITY) -> Tensor:
    """Force [2, M, E] of ``thrust`` [E, M, 5], ordered nothing, left, right, down, up; ``strength``: one, or [M, 1]."""
    push = thrust[..., 2::2] - thrust[..., 1::2]
    return push.permute(2, 1, 0).to(dtype) * strength


def goal_positions(world: World) -> Tensor:
    """Where the landmark of each goal is, [2, G, E]."""
    return world.landmarks.gather(1, world.goals.expand(2, -1, -1))


def colour_table(dim: float, bright: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Colours [3, 3] of three landmarks: ``bright`` in the component of the landmark's index, ``dim`` in the others."""
    return torch.full((3, 3), dim, dtype=dtype, device=device).fill_diagonal_(bright)


def goal_colours(world: World, table: Tensor) -> Tensor:
    """Colour [3, G, E] of the landmark of each goal, from its row in ``table`` [3, 3]."""
    return functional.embedding(world.goals, table).permute(2, 0, 1)


def restart(ended: Tensor, fresh: World, world: World) -> World:
    """Take the copies of ``fresh`` where ``ended`` [E] is True, and of ``world`` elsewhere."""
    return World(*[torch.where(ended, new, old) for new, old in zip(fresh, world, strict=True)])
