"""Reading and writing checkpoint files, which hold tensors and plain values but never code."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from coterie._version import __version__
from coterie.agents.checks import acting_role

if TYPE_CHECKING:
    from coterie.agents.base import MultiAgent

__all__ = ["CheckpointError", "load_team", "load_teammates", "save_team", "write_checkpoint"]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or does not fit the agent that loads it."""


def write_checkpoint(path: str | os.PathLike[str], contents: Mapping[str, Any]) -> None:
    """Write ``contents`` so that ``path`` holds the old file or the whole new one, whatever happens in between."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            torch.save(dict(contents), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 (as the rest of the os calls here)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_checkpoint(path: str | os.PathLike[str], device: torch.device) -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``: nothing in it is executed.

    :raises CheckpointError: the file is missing, damaged, or holds anything but tensors and plain values
    """
    try:
        contents = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {os.fspath(path)!r}") from None
    except Exception as error:  # torch raises many kinds for damaged files, and UnpicklingError for code
        raise CheckpointError(f"cannot read {os.fspath(path)!r} as a checkpoint: {error}") from error
    if not isinstance(contents, dict) or "format" not in contents:
        raise CheckpointError(f"{os.fspath(path)!r} is not a checkpoint of this library")
    return contents


def check_states(kind: str, modules: Mapping[str, nn.Module], states: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """List every way in which ``states`` do not fit ``modules``, so that nothing is loaded by halves."""
    problems = [f"{kind} {name!r} is missing" for name in modules if name not in states]
    problems += [f"{kind} {name!r} is unknown here" for name in states if name not in modules]
    for name, module in modules.items():
        state, mine = states.get(name), module.state_dict()
        if state is None:
            continue
        for key in sorted({*state, *mine}):
            expected = list(mine[key].shape) if key in mine else "nothing"
            got = list(state[key].shape) if key in state else "nothing"
            if expected != got:
                problems.append(f"{kind} {name!r}, {key!r}: expected {expected}, the file has {got}")
    return problems


def save_team(team: MultiAgent, path: str | os.PathLike[str]) -> None:
    """Write everything that a team has learned."""
    contents = {
        "format": 1,
        "version": __version__,
        "agents": team.possible_agents,
        "owners": team.checkpoint_owners(),
        "modules": {name: module.state_dict() for name, module in team.checkpoint_modules().items()},
        "optimizers": {
            learner.names[0]: learner.optimizers.state_dict() for learner in team.learners if learner.optimizers
        },
        "state": team.checkpoint_state(),
    }
    write_checkpoint(path, contents)


def _read_team(path: str | os.PathLike[str], device: torch.device) -> dict[str, Any]:
    contents = read_checkpoint(path, device)
    if not {"agents", "owners", "modules", "optimizers", "state"} <= set(contents):
        raise CheckpointError(f"{os.fspath(path)!r} is not a checkpoint of a team of agents")
    return contents


def load_team(team: MultiAgent, path: str | os.PathLike[str]) -> None:
    """Load all of a checkpoint into the team that wrote it, or one like it.

    :raises CheckpointError: it does not fit; nothing is loaded then
    """
    contents = _read_team(path, team.device)
    if contents["agents"] != team.possible_agents:
        raise CheckpointError(
            f"{os.fspath(path)!r} holds the agents {contents['agents']}, this is {team.possible_agents}"
        )
    modules = team.checkpoint_modules()
    problems = check_states("module", modules, contents["modules"])
    learners = {learner.names[0]: learner for learner in team.learners if learner.optimizers}
    for name, learner in learners.items():
        states = contents["optimizers"].get(name)
        if states is not None and learner.optimizers is not None:
            problems += [f"optimizers of {name!r}, {problem}" for problem in learner.optimizers.misfits(states)]
    if problems:
        raise CheckpointError(f"{os.fspath(path)!r} does not fit this agent: " + "; ".join(problems))
    for name, module in modules.items():
        module.load_state_dict(contents["modules"][name])
    for name, learner in learners.items():
        if name in contents["optimizers"] and learner.optimizers is not None:
            learner.optimizers.load_state_dict(contents["optimizers"][name])
    team.load_checkpoint_state(contents["state"])


def load_teammates(team: MultiAgent, path: str | os.PathLike[str], sources: Mapping[str, str]) -> None:
    """Load some agents' policies and normalisers of observations from a checkpoint of any team.

    :param sources: names in the file, by this team's names

    :raises CheckpointError: one of them does not fit; nothing is loaded then
    """
    contents = _read_team(path, team.device)
    modules, owners = team.checkpoint_modules(), team.checkpoint_owners()
    problems: list[str] = []
    found: dict[str, str] = {}  # names of modules in the file, by those here
    for uid, source in sources.items():
        if uid not in owners or source not in contents["owners"]:
            problems.append(
                f"{uid!r} from {source!r}: expected one of {team.possible_agents} from one of {contents['agents']}"
            )
            continue
        here, there = owners[uid], contents["owners"][source]
        for role, its_role in ((acting_role(here), acting_role(there)), ("state_preprocessor",) * 2):
            mine, theirs = here.get(role), there.get(its_role)
            if mine is None and theirs is None:
                continue
            if mine is None or theirs is None:
                who = "this agent" if theirs is None else "the file"
                problems.append(f"{uid!r} from {source!r}: only {who} has a {role}")
                continue
            sharing = [other for other in owners if owners[other].get(role) == mine and other not in sources]
            if sharing:
                problems.append(
                    f"{uid!r} shares its {role} with {sharing}: expected one of its own, or sources for them too"
                )
            if found.setdefault(mine, theirs) != theirs:
                problems.append(
                    f"{uid!r} from {source!r}: it shares its {role} with one that is to have {found[mine]!r}"
                )
            problems += check_states(role, {uid: modules[mine]}, {uid: contents["modules"][theirs]})
    if problems:
        raise CheckpointError(f"{os.fspath(path)!r} does not fit these agents: " + "; ".join(problems))
    for mine, theirs in found.items():
        modules[mine].load_state_dict(contents["modules"][theirs])
