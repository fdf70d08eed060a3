"""One function that finds the wrapper for an environment."""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import gymnasium
import torch
from pettingzoo.utils.env import AECEnv, ParallelEnv

from coterie.envs.base import EnvError, MultiAgentEnv
from coterie.envs.wrappers.pettingzoo import PettingZooEnv
from coterie.envs.wrappers.tuple_team import as_team
from coterie.envs.wrappers.turn_based import TurnBasedTeam
from coterie.envs.wrappers.vmas import VmasEnv

__all__ = ["wrap_env"]

logger = logging.getLogger(__name__)

_WRAPPERS = ("auto", "pettingzoo", "gymnasium", "vmas")
_ALIASES = {"multi-agent": "auto", "parallel": "pettingzoo", "single-agent": "gymnasium"}


def wrap_env(
    env: Any,
    wrapper: str = "auto",
    verbose: bool = True,
    *,
    num_envs: int | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
) -> MultiAgentEnv:
    """Wrap an environment, several of them, or what makes them.

    :param env: a PettingZoo ``ParallelEnv`` (or what steps like one), a PettingZoo ``AECEnv`` (one step is one agent's
        turn), a ``gymnasium.Env`` (a team of one, ``agent_0``; with Tuple spaces, as lbforaging and rware have them, a
        team of n: :class:`TupleTeam`), a VMAS ``Environment``, a function that makes one of these, or a list of such
        functions or environments, one for each copy. A :class:`MultiAgentEnv` is returned as it is
    :param wrapper: "auto", "pettingzoo" (parallel or in turn), "gymnasium" or "vmas"
    :param verbose: say in the log what was wrapped
    :param num_envs: number of copies that a function is called for; None for 1, or for as many as there are
    :param device: where returned tensors live; None for the CPU, or for VMAS's own device
    :param seed: what decides every copy's episodes; None leaves that to the environments

    :raises TypeError: the environment is of no such kind, or not of the kind that ``wrapper`` asks for
    :raises ValueError: ``wrapper`` is unknown, or ``num_envs`` does not fit what was passed
    :raises EnvError: a function that makes an environment raised, or the copies differ
    """
    kind = _wrapper_name(wrapper)
    if isinstance(env, MultiAgentEnv):
        _check_count(env.num_envs, num_envs, env)
        return env
    copies = _make_copies(env, num_envs)
    try:
        wrapped = _wrap_copies(copies, kind, num_envs, device, seed)
    except BaseException:
        if all(map(_is_factory, env if isinstance(env, (list, tuple)) else [env])):  # nobody else holds the copies
            _close(copies)
        raise
    if verbose:
        logger.info("%s: %d copies of %s", type(wrapped).__name__, wrapped.num_envs, copies[0])
    return wrapped


def _wrap_copies(
    copies: list[Any], kind: str, num_envs: int | None, device: torch.device | str | None, seed: int | None
) -> MultiAgentEnv:
    found = [_kind_of(copy) for copy in copies]
    if kind == "auto" or (kind == "pettingzoo" and found[0] == "turn-based"):
        kind = found[0]
    for copy, name in zip(copies, found, strict=True):
        if name != kind:
            raise TypeError(f"expected an environment for the wrapper {kind!r}, got one for {name!r}: {copy}")
    if kind in {"vmas", "coterie"}:
        if len(copies) > 1:
            raise TypeError(f"expected one environment, got {len(copies)} of {copies[0]}: it steps copies itself")
        _check_count(copies[0].num_envs, num_envs, copies[0])
        return VmasEnv(copies[0], device=device, seed=seed) if kind == "vmas" else copies[0]
    if kind == "gymnasium":
        copies = [as_team(copy) for copy in copies]
    elif kind == "turn-based":
        if getattr(copies[0], "metadata", {}).get("is_parallelizable", False):
            logger.info(
                "%s is stepped one agent's turn at a time; its parallel_env() would let all act at once", copies[0]
            )
        copies = [TurnBasedTeam(copy) for copy in copies]
    return PettingZooEnv(copies, device="cpu" if device is None else device, seed=seed)


def _wrapper_name(wrapper: str) -> str:
    name = str(wrapper).lower()
    name = _ALIASES.get(name, name)
    if name not in _WRAPPERS:
        near = difflib.get_close_matches(name, _WRAPPERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"expected a wrapper of {list(_WRAPPERS)}, got {wrapper!r}{hint}")
    return name


def _make_copies(env: Any, num_envs: int | None) -> list[Any]:
    """Return the copies that ``env`` is, holds or makes."""
    if num_envs is not None and (not isinstance(num_envs, int) or num_envs < 1):
        raise ValueError(f"expected num_envs to be a number of copies of at least 1, got {num_envs!r}")
    copies: list[Any] = []
    if isinstance(env, (list, tuple)):
        if not env:
            raise ValueError("expected at least one environment or function that makes one, got an empty list")
        _check_count(len(env), num_envs, "the list")
        _add_copies(copies, env)
        if len({id(copy) for copy in copies}) < len(copies):
            raise ValueError("expected a separate environment for each copy, got one object several times")
    elif _is_factory(env):
        _add_copies(copies, [env])
        if _kind_of(copies[0]) not in {"vmas", "coterie"}:  # those hold their copies already
            _add_copies(copies, [env] * ((num_envs or 1) - 1))
    elif num_envs not in {None, 1} and not hasattr(env, "num_envs"):
        _kind_of(env)  # what is no environment is another error
        raise ValueError(f"expected a function that makes one environment for {num_envs=}, got an environment: {env}")
    else:
        copies.append(env)
    return copies


def _add_copies(copies: list[Any], sources: Sequence[Any]) -> None:
    try:
        for source in sources:
            copies.append(source() if _is_factory(source) else source)  # noqa: PERF401  what was made must be closed
    except Exception as error:
        _close(copies)
        raise EnvError(f"copy {len(copies)} could not be made: {type(error).__name__}: {error}") from error


def _is_factory(source: Any) -> bool:
    return callable(source) and not hasattr(type(source), "step")


def _close(copies: Sequence[Any]) -> None:
    for copy in copies:
        if callable(getattr(copy, "close", None)):
            copy.close()


def _check_count(have: int, asked: int | None, what: Any) -> None:
    if asked not in {None, have}:
        raise ValueError(f"expected num_envs={asked} copies, but {what} has {have}")


def _kind_of(env: Any) -> str:
    """Return the name of the wrapper for ``env``."""
    if isinstance(env, MultiAgentEnv):
        return "coterie"
    if isinstance(env, AECEnv):
        return "turn-based"
    if isinstance(env, gymnasium.vector.VectorEnv):
        raise TypeError(
            f"expected a single gymnasium.Env, got the vector environment {env}; pass the function that makes one copy "
            "and num_envs: wrap_env(lambda: gymnasium.make(...), num_envs=8)"
        )
    if isinstance(env, ParallelEnv):
        return "pettingzoo"
    if isinstance(env, gymnasium.Env):
        return "gymnasium"
    vmas = sys.modules.get("vmas.simulator.environment")  # who holds a VMAS environment has imported it
    if vmas is not None and isinstance(env, vmas.Environment):
        return "vmas"
    if isinstance(env, ModuleType):
        makers = [name for name in ("parallel_env", "env") if hasattr(env, name)]
        advice = (
            f"pass its function: wrap_env({env.__name__.rpartition('.')[2]}.{makers[0]}, ...)"
            if makers
            else "pass an environment"
        )
        raise TypeError(f"expected an environment, or functions that make one, got the module {env.__name__}; {advice}")
    if isinstance(env, str):
        raise TypeError(
            f"expected an environment, or functions that make one, got the string {env!r}; coterie.envs.make builds the "
            "embedded environments by name, gymnasium.make and pettingzoo.make their libraries'"
        )
    parallel = ("possible_agents", "reset", "step", "observation_space", "action_space")
    if all(hasattr(env, name) for name in parallel) and not hasattr(env, "agent_selection"):
        return "pettingzoo"
    raise TypeError(
        "expected a PettingZoo ParallelEnv or AECEnv, a gymnasium.Env, a VMAS Environment, a MultiAgentEnv, or functions that "
        f"make one, got {type(env).__module__}.{type(env).__qualname__}"
    )
