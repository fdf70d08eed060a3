"""A team whose agents die, wait, arrive late and run out of time, step by step, for those that learn action values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from coterie.models import QMIXMixer, build_models
from tests.agents.ppo_presence import Plan, make_plan
from tests.agents.ppo_reference_time import ACTIVE, WAITING
from tests.agents.ppo_runs import CUTS, ENDINGS, T
from tests.agents.ppo_teams import Team
from tests.agents.toys import box

ENDS = (*ENDINGS, *CUTS)
STEPS = T * len(ENDS)

#: (what, agent, step, tensor) -> what the library is told in its place
Spoil = Callable[[str, str, int, Tensor], Tensor]


def as_it_is(what: str, uid: str, k: int, tensor: Tensor) -> Tensor:
    return tensor


def team_of_four(scripted: bool = True) -> Team:
    """Two of one kind and one of another that learn, and a fourth with continuous actions that may be scripted."""
    kinds = {"a": "discrete", "b": "discrete", "c": "discrete", "d": "gaussian" if scripted else "discrete"}
    team = Team(kinds)
    team.observation_spaces["c"] = box(2)
    return team


def wander(states: Tensor, action_masks: Tensor | None) -> Tensor:
    """The scripted one's: what it does depends on what it sees."""
    return states[:, :2] * 0.5


class Lives:
    """Data that owe nothing to what agents do, told to an agent; what absent agents see and earn may be spoiled."""

    def __init__(self, team: Team, style: str = "leaves", seed: int = 1, final_masks: bool = True) -> None:
        self.team, self.names = team, team.possible_agents
        self.plan: Plan = make_plan(self.names, team.num_envs, T, ENDS, style, seed)
        self.data = torch.Generator().manual_seed(7)
        self.final_masks = final_masks

    def draw(self, width: int) -> Tensor:
        return torch.randn(self.team.num_envs, width, generator=self.data)

    def observe(self, k: int) -> dict[str, Tensor]:
        return {
            uid: torch.where(self.plan.gone(uid, k), 0.0, self.draw(space.shape[0]))
            for uid, space in self.team.observation_spaces.items()
        }

    def allowed(self, forced: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bool ``[E, 3]`` of the agents that choose; everything where ``forced`` is True."""
        masks = {}
        for uid, space in self.team.action_spaces.items():
            if isinstance(space, spaces.Discrete):
                mask = self.draw(int(space.n)) > 0
                one = torch.randint(int(space.n), (self.team.num_envs, 1), generator=self.data)
                masks[uid] = mask.scatter(1, one, True) | forced[uid]
        return masks

    def infos(self, k: int, spoil: Spoil) -> dict[str, Any]:
        """The masks of step ``k``."""
        masks = {status: {uid: self.plan.mask(status, uid, k) for uid in self.names} for status in (ACTIVE, WAITING)}
        allowed = self.allowed({uid: ~masks[ACTIVE][uid] for uid in self.names})
        told = {uid: spoil("action_masks", uid, k, mask) for uid, mask in allowed.items()}
        return {"active_masks": masks[ACTIVE], "waiting_masks": masks[WAITING], "action_masks": told}

    def final_infos(self, k: int, ended: Tensor, spoil: Spoil) -> dict[str, Any]:
        """What there is to be told of last states."""
        names, plan = self.names, self.plan
        states = {uid: self.draw(space.shape[0]) for uid, space in self.team.observation_spaces.items()}
        struck = {
            uid: torch.tensor(plan.truncated[uid][k]).view(-1, 1) & ~torch.tensor(plan.terminated[uid][k]).view(-1, 1)
            for uid in names
        }
        active = {uid: struck[uid] & (self.draw(1) > -1) & ended for uid in names}
        allowed = self.allowed({uid: ~active[uid] for uid in names})
        infos: dict[str, Any] = {
            "final_states": {uid: spoil("final_states", uid, k, state) for uid, state in states.items()},
            "final_shared_states": self.draw(5),
        }
        if self.final_masks:
            infos["final_active_masks"] = {uid: spoil("final_active", uid, k, mask) for uid, mask in active.items()}
            infos["final_action_masks"] = {uid: spoil("final_allowed", uid, k, mask) for uid, mask in allowed.items()}
        return infos

    def play(
        self, agent: Any, spoil: Spoil = as_it_is, steps: int = STEPS, each: Callable[[int], None] | None = None
    ) -> None:
        """Train. Random numbers that are drawn do not depend on ``spoil``."""
        names, plan = self.names, self.plan
        states, shared, infos = self.observe(0), self.draw(5), self.infos(0, spoil)
        for k in range(steps):
            told = {uid: spoil("states", uid, k, state.clone()) for uid, state in states.items()}
            actions = agent.act(told, k, STEPS, infos)[0]
            rewards = {uid: self.draw(1) for uid in names}
            following, next_shared, next_infos = self.observe(k + 1), self.draw(5), self.infos(k + 1, spoil)
            next_infos |= {"shared_states": shared, "shared_next_states": next_shared}
            ended = plan.over(k)
            if bool(ended.any()):
                next_infos |= self.final_infos(k, ended, spoil)
            ends = {uid: torch.tensor(plan.terminated[uid][k]).unsqueeze(-1) for uid in names}
            cuts = {uid: torch.tensor(plan.truncated[uid][k]).unsqueeze(-1) for uid in names}
            tables = {
                "states": states, "actions": actions, "rewards": rewards, "next_states": following, "terminated": ends,
                "truncated": cuts,
            }  # fmt: skip
            step = [{uid: spoil(what, uid, k, table[uid].clone()) for uid in names} for what, table in tables.items()]
            agent.record_transition(*step, next_infos, k, STEPS)
            agent.post_interaction(k, STEPS)
            if each is not None:
                each(k)
            states, shared, infos = following, next_shared, next_infos


def models_of(
    team: Team, kind: str, rnn: str | None, scripted: bool = True, **options: Any
) -> dict[str, dict[str, Any]]:
    """Networks of the agents that choose, and the script of the one that is scripted."""
    learners = [uid for uid in team.possible_agents if not (scripted and uid == "d")]
    some = Team({uid: team.kinds[uid] for uid in learners})
    some.observation_spaces = {uid: team.observation_spaces[uid] for uid in learners}
    options = {"hidden": (8,), "rnn": rnn, "rnn_size": 5, "sequence_length": 4, **options}
    models = build_models(some, "vdn", **options)
    if kind == "qmix":
        models = _with_mixer(team, models)
    if scripted:
        models["d"] = {"policy": wander}
    return {uid: models[uid] for uid in team.possible_agents}


def _with_mixer(team: Team, models: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    size = 5 + sum(space.shape[0] for space in team.observation_spaces.values())
    mixer = QMIXMixer(size, len(team.possible_agents), embed=6, hypernet_hidden=7)
    return {uid: {**roles, "mixer": mixer} for uid, roles in models.items()}
