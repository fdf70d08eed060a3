"""The contract of coterie/envs/base.py as a program: any environment is played with random legal actions and looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from coterie.envs import MultiAgentEnv
from coterie.spaces import action_width, flat_size

MASKS = ("action_masks", "active_masks", "waiting_masks", "final_action_masks", "final_active_masks")


def sizes_of(space: Any) -> list[int]:
    """Choices in each dimension of a Discrete or MultiDiscrete space."""
    return [int(space.n)] if isinstance(space, spaces.Discrete) else [int(n) for n in space.nvec.reshape(-1)]


def draw(env: MultiAgentEnv, infos: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Draw actions that the masks allow, for every agent, whether it is to act or not."""
    actions = {}
    for uid, space in env.action_spaces.items():
        if isinstance(space, spaces.Box):
            low, high = (torch.from_numpy(bound).float().flatten() for bound in (space.low, space.high))
            actions[uid] = low + (high - low) * torch.rand(env.num_envs, len(low), generator=generator)
        elif isinstance(space, spaces.MultiBinary):
            actions[uid] = torch.randint(2, (env.num_envs, action_width(space)), generator=generator)
        else:
            sizes = sizes_of(space)
            mask = infos.get("action_masks", {}).get(uid, torch.ones(env.num_envs, sum(sizes)))
            parts = [torch.multinomial(part.float(), 1, generator=generator) for part in mask.split(sizes, dim=1)]
            actions[uid] = torch.cat(parts, dim=1)
    return actions


def stacked(env: MultiAgentEnv, values: Mapping[str, Tensor]) -> Tensor:
    """``[E, A]``."""
    return torch.cat([values[uid] for uid in env.possible_agents], dim=1)


def presence(env: MultiAgentEnv, infos: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Who is active and who waits, ``[E, A]``."""
    shape = (env.num_envs, len(env.possible_agents))
    active = stacked(env, infos["active_masks"]) if "active_masks" in infos else torch.ones(shape, dtype=torch.bool)
    waits = stacked(env, infos["waiting_masks"]) if "waiting_masks" in infos else torch.zeros(shape, dtype=torch.bool)
    assert not (active & waits).any()
    return active, waits


def joined(env: MultiAgentEnv, states: Mapping[str, Tensor], absent: Tensor) -> Tensor:
    """All agents' observations side by side, zeros for the absent ones (``[E, A]``)."""
    return torch.cat([states[uid].masked_fill(absent[:, i, None], 0) for i, uid in enumerate(env.possible_agents)], 1)


def check_mapping(
    env: MultiAgentEnv, values: Mapping[str, Tensor], widths: Mapping[str, int], dtype: torch.dtype
) -> None:
    for uid, value in values.items():
        assert uid in env.possible_agents
        assert (value.shape, value.dtype, value.device) == ((env.num_envs, widths[uid]), dtype, env.device)


def check_masks(env: MultiAgentEnv, infos: Mapping[str, Any], key: str, acting: Tensor, rows: Tensor) -> int:
    """Whoever is to act has a choice in each dimension, and the others have all; returns how much is forbidden."""
    forbidden = 0
    for uid, mask in infos.get(key, {}).items():
        acts = acting[:, env.possible_agents.index(uid)]
        assert mask[rows & ~acts].all(), (key, uid)
        for part in mask.split(sizes_of(env.action_spaces[uid]), dim=1):
            assert part[rows & acts].any(dim=1).all(), (key, uid)
        forbidden += int((~mask[rows]).sum())
    return forbidden


def check_contract(env: MultiAgentEnv, steps: int, seed: int = 0) -> Counter[str]:
    """Play, check everything that every environment promises, and return what was met on the way."""
    names, E = env.possible_agents, env.num_envs
    widths = {uid: flat_size(env.observation_space(uid)) for uid in names}
    ones = dict.fromkeys(names, 1)
    choices = {
        uid: flat_size(space) if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) else 0
        for uid, space in env.action_spaces.items()
    }
    generator = torch.Generator().manual_seed(seed)
    kept: list[tuple[Tensor, Tensor]] = []
    met: Counter[str] = Counter()
    everyone = torch.ones(E, dtype=torch.bool)
    states, infos = env.reset()
    before = None
    for step in range(steps + 1):
        # ---- the present
        assert list(states) == names
        check_mapping(env, states, widths, torch.float32)
        active, waits = presence(env, infos)
        assert active.any(dim=1).all()
        for key in MASKS:
            check_mapping(env, infos.get(key, {}), choices if "action" in key else ones, torch.bool)
        met["forbidden"] += check_masks(env, infos, "action_masks", active, everyone)
        absent = ~(active | waits)
        met["absent"] += int(absent.sum())
        met["waiting"] += int(waits.sum())
        shared = env.state()
        assert shared.shape == (E, flat_size(env.shared_observation_space(names[0])))
        assert shared.dtype == torch.float32
        assert shared.device == env.device
        assert env.has_own_state or torch.equal(shared, joined(env, states, absent))
        assert torch.equal(env.state(), shared)
        if (
            before is not None
        ):  # an absent agent is terminated, unless it comes back as a copy begins again or as it arrives
            was_absent, terminated, over = before
            assert terminated[absent & was_absent & ~over[:, None]].all()
        every = [states, *(infos.get(key, {}) for key in MASKS), {"": shared}]
        kept += [(value, value.clone()) for mapping in every for value in mapping.values()]
        if step == steps:
            break
        # ---- one step
        states, rewards, terminated, truncated, infos = env.step(draw(env, infos, generator))
        for mapping, dtype in ((rewards, torch.float32), (terminated, torch.bool), (truncated, torch.bool)):
            assert list(mapping) == names
            check_mapping(env, mapping, ones, dtype)
        ends, cuts = stacked(env, terminated), stacked(env, truncated)
        over = (ends | cuts).all(dim=1)
        before = absent, ends, over
        met["over"] += int(over.sum())
        for key in ("final_states", "final_shared_states"):
            assert (key in infos) == bool(over.any()), key
        if not over.any():
            assert not {"final_action_masks", "final_active_masks"} & set(infos)
            continue
        # ---- the last states
        final = infos["final_states"]
        assert list(final) == names
        check_mapping(env, final, widths, torch.float32)
        dead = absent | (ends & ~ends.all(dim=1, keepdim=True))
        last = infos["final_shared_states"]
        assert (last.shape, last.dtype, last.device) == (shared.shape, shared.dtype, shared.device)
        assert env.has_own_state or torch.equal(last[over], joined(env, final, dead)[over])
        struck = cuts & ~ends
        acting = struck
        if "final_active_masks" in infos:
            assert list(infos["final_active_masks"]) == names
            acting = stacked(env, infos["final_active_masks"])
            assert not (acting & ~struck)[over].any()
            met["final waiting"] += int((struck & ~acting)[over].sum())
            met["final dead"] += int((ends & struck.any(dim=1, keepdim=True))[over].sum())
        met["truncated"] += int(struck[over].any(dim=1).sum())
        met["final forbidden"] += check_masks(env, infos, "final_action_masks", acting, over)
        kept += [(value, value.clone()) for value in [*final.values(), last]]
    assert all(torch.equal(tensor, then) for tensor, then in kept), "a returned tensor was written to"
    return met


def trace(env: MultiAgentEnv, infos: Mapping[str, Any], steps: int, seed: int) -> list[Tensor]:
    """Everything that random play gives."""
    generator = torch.Generator().manual_seed(seed)
    shown = []
    for _ in range(steps):
        *mappings, infos = env.step(draw(env, infos, generator))
        tensors = [infos.get("final_states", {}), *(infos.get(key, {}) for key in MASKS)]
        shown += [value for mapping in [*mappings, *tensors] for value in mapping.values()]
        shown.append(env.state())
    return shown


def check_snapshots(env: MultiAgentEnv, other: MultiAgentEnv, steps: int) -> None:
    """What :meth:`get_state` returns decides the future, here and in ``other``, which is built alike."""
    env.reset()
    generator = torch.Generator().manual_seed(1)
    infos: Mapping[str, Any] = {}
    for _ in range(steps):
        *_, infos = env.step(draw(env, infos, generator))
    snapshot, present = env.get_state(), env.state()
    expected = trace(env, infos, steps, seed=2)
    for twin in (env, other):
        twin.set_state(snapshot)
        assert torch.equal(twin.state(), present)
        found = trace(twin, infos, steps, seed=2)
        assert len(found) == len(expected)
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
