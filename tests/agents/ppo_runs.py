"""The library's agents and the slow reference side by side, on made-up data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agents import IPPO, MAPPO
from coterie.agents.base import MultiAgent
from coterie.agents.ippo import IPPO_DEFAULT_CONFIG
from coterie.agents.mappo import MAPPO_DEFAULT_CONFIG
from coterie.memories import RandomMemory
from tests.agents.ppo_presence import Endings, choices, make_plan
from tests.agents.ppo_reference import ReferencePPO
from tests.agents.ppo_reference_time import ABSENT, ACTIVE, WAITING, Masks, Step
from tests.agents.ppo_teams import E, Models, Team, perturb

T = 8
RANDPERM = torch.randperm
TOLERANCE = 1e-5
DOUBTFUL = 5e-7  # from where a doubt about a parameter is allowed for

CLASSES = {"mappo": MAPPO, "ippo": IPPO}
DEFAULTS = {"mappo": MAPPO_DEFAULT_CONFIG, "ippo": IPPO_DEFAULT_CONFIG}

# (step, environment) of what ends in the first and in the second rollout: for all agents by "terminated", "truncated" or
# "both", or for every other agent by either ("mixed"). Each has episodes that go on after the last row, that end in it by
# termination and that end in it by truncation
ENDINGS = (
    {
        "terminated": [(2, 0), (4, 1), (7, 1)],
        "truncated": [(1, 1), (5, 0), (3, 2), (7, 2)],
        "both": [(1, 2)],
        "mixed": [(5, 2)],
    },
    {
        "terminated": [(0, 0), (7, 0), (5, 2)],
        "truncated": [(2, 2), (7, 1), (4, 0)],
        "both": [(3, 1)],
        "mixed": [(1, 0)],
    },
)

# the same with time limits that strike some while others go on, and while another dies in the same step
CUTS = (
    {"cut": [(2, 0), (7, 1)], "parted": [(1, 1), (4, 2)], "truncated": [(5, 0)], "mixed": [(3, 1)]},
    {"cut": [(0, 1), (4, 2)], "parted": [(3, 0), (7, 2)], "truncated": [(3, 1), (7, 0)], "mixed": [(6, 1)]},
)

BASE = {
    "rollouts": T,
    "learning_epochs": 3,
    "mini_batches": 2,
    "learning_rate": 4e-3,
    "entropy_loss_scale": 0.02,
    "value_loss_scale": 0.7,
    "grad_norm_clip": 0.5,
    "clip_predicted_values": True,
    "value_clip": 0.05,
    "ratio_clip": 0.05,
    "time_limit_bootstrap": True,
    "discount_factor": 0.95,
    "lambda": 0.9,
    "experiment": {"write_interval": 0, "checkpoint_interval": 0},
}


@dataclass
class Case:
    """A team, its models, and what of the configuration differs from the defaults below.

    :param style: of the agents' lives, see :func:`make_plan`; None for environments that say nothing of them
    :param masked: whether some actions are forbidden
    :param told: whether each :meth:`act` is given the infos; otherwise only the first is, and the agent must remember
    """

    name: str
    team: Callable[[], Team]
    models: Callable[[Team, str], Models]
    cfg: dict[str, Any] = field(default_factory=dict)
    algorithms: tuple[str, ...] = ("mappo", "ippo")
    style: str | None = None
    masked: bool = False
    told: bool = True
    endings: Sequence[Endings] = ENDINGS
    seed: int = 0  # the first to be tried


class Run:
    """Both learners, fed with the same data."""

    def __init__(self, case: Case, algorithm: str, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.case, self.seed = case, seed
        self.team = case.team()
        self.models = case.models(self.team, algorithm)
        perturb(self.models)
        self.cfg = {**BASE, **case.cfg}
        kinds = {uid: (self.team.observation_spaces[uid].shape, kind) for uid, kind in self.team.kinds.items()}
        complete = {**DEFAULTS[algorithm].copy(), **self.cfg}
        self.reference = ReferencePPO(self.models, kinds, complete, algorithm == "mappo")
        self.before = {id(p): p.detach().clone() for p in self._parameters()}
        names = self.team.possible_agents
        self.agent: MultiAgent = CLASSES[algorithm](
            names,
            self.models,
            {uid: RandomMemory(T, E) for uid in names},
            self.team.observation_spaces,
            self.team.action_spaces,
            "cpu",
            self.cfg,
            self.team.shared_observation_spaces,
        )
        self.agent.init({"timesteps": 2 * T})
        self.agent.set_running_mode("train")
        self.reference.one_memory = self._one_memory(algorithm, complete)
        self.data = torch.Generator().manual_seed(7 + seed)
        self.filler = 1e3  # of the final states of environments that didn't end, which are nobody's business
        self.garbage = 777.0  # what absent agents observe and earn
        #: changes what the library is told: ``(what, agent, step, tensor [E, n]) -> tensor``
        self.spoil: Callable[[str, str, int, Tensor], Tensor] = lambda what, uid, k, tensor: tensor
        self.plan = make_plan(names, E, T, case.endings, case.style or "present", 39 + seed)
        self.timestep = 0
        self.states = self._observe(0)
        self.shared = self._draw(5)
        self.masks = self._masks(0)
        self.log_prob_error = 0.0
        self.permutations: list[Tensor] = []
        order = torch.Generator().manual_seed(11)
        randperm = RANDPERM

        def recorded(n: int, **kwargs: Any) -> Tensor:
            kwargs.pop("generator", None)
            self.permutations.append(randperm(n, generator=order))
            return self.permutations[-1].to(kwargs.get("device", "cpu"))

        monkeypatch.setattr(torch, "randperm", recorded)

    def _one_memory(self, algorithm: str, cfg: Mapping[str, Any]) -> set[str]:
        """Agents whose critic sees what all see, by a model that is the same for all of their kind."""
        if algorithm == "ippo" or cfg["critic_input"] == "agent":
            return set()
        together: set[str] = set()
        for group in self.agent.groups:
            critics = [self.models[uid]["value"] for uid in group.names]
            if all(c is critics[0] for c in critics) and not critics[0].uses_agent_id:
                together |= set(group.names)
        return together

    def _parameters(self) -> list[nn.Parameter]:
        return [p for roles in self.models.values() for model in roles.values() for p in model.parameters()]

    def _draw(self, width: int) -> Tensor:
        return 1.5 * torch.randn(E, width, generator=self.data) + 0.5

    def _observe(self, k: int) -> dict[str, Tensor]:
        """Observations in step ``k``, in which absent agents see garbage, but for what they saw last."""
        return {
            uid: torch.where(self.plan.gone(uid, k), self.garbage, self._draw(space.shape[0]))
            for uid, space in self.team.observation_spaces.items()
        }

    def _masks(self, k: int) -> Masks:
        names = self.team.possible_agents
        masks = Masks()
        if self.case.style is not None:
            masks.active = {uid: self.plan.mask(ACTIVE, uid, k) for uid in names}
            masks.waiting = {uid: self.plan.mask(WAITING, uid, k) for uid in names}
        if self.case.masked:
            allowed = {
                uid: choices(self.team.action_spaces[uid], ~self.plan.mask(ABSENT, uid, k), self.data) for uid in names
            }
            masks.allowed = {uid: mask for uid, mask in allowed.items() if mask is not None}
        return masks

    def told(self, what: str, k: int, table: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the library is told of something in step ``k``."""
        return {uid: self.spoil(what, uid, k, tensor.clone()) for uid, tensor in table.items()}

    def infos(self, masks: Masks, k: int) -> dict[str, Any]:
        """Masks as an environment would tell them."""
        allowed = None if masks.allowed is None else self.told("action_masks", k, masks.allowed)
        tables = {"active_masks": masks.active, "waiting_masks": masks.waiting, "action_masks": allowed}
        return {name: dict(table) for name, table in tables.items() if table is not None}

    def step(self) -> Step:
        """Let the library take a step (and learn from the rollout, where it is complete)."""
        k, timesteps, names = self.timestep, 2 * T, self.team.possible_agents
        infos = [self.infos(self.masks, k)] if self.case.told or k == 0 else []
        actions, log_prob, _ = self.agent.act(self.told("states", k, self.states), k, timesteps, *infos)
        actions, log_prob = ({uid: x[uid].clone() for uid in names} for x in (actions, log_prob))
        terminated = {uid: torch.tensor(self.plan.terminated[uid][k]).unsqueeze(-1) for uid in names}
        truncated = {uid: torch.tensor(self.plan.truncated[uid][k]).unsqueeze(-1) for uid in names}
        absent = {uid: self.plan.mask(ABSENT, uid, k) for uid in names}
        rewards = {uid: 2 * torch.randn(E, 1, generator=self.data) + 1 for uid in names}
        rewards = {uid: torch.where(absent[uid], self.garbage, x) for uid, x in rewards.items()}
        next_states, next_shared, next_masks = self._observe(k + 1), self._draw(5), self._masks(k + 1)
        following = self.infos(next_masks, k + 1)
        following |= {"shared_states": self.shared, "shared_next_states": next_shared}
        final_states = final_shared = None
        ended = self.plan.over(k)
        if bool(ended.any()):
            final_states = {
                uid: torch.where(ended, torch.where(absent[uid], self.garbage, self._draw(x.shape[1])), self.filler)
                for uid, x in next_states.items()
            }
            final_shared = torch.where(ended, self._draw(5), self.filler)
            following |= {
                "final_states": self.told("final_states", k, final_states),
                "final_shared_states": final_shared,
            }
        step = Step(
            self.timestep,
            timesteps,
            *(self.states, actions, log_prob, rewards, next_states, terminated, truncated),
            *(self.shared, next_shared, final_states, final_shared, self.masks, next_masks),
        )
        given = self.told("rewards", k, rewards)
        kept = {uid: x.clone() for uid, x in given.items()}
        self.agent.record_transition(
            self.told("states", k, self.states),
            self.told("actions", k, actions),
            given,
            self.told("next_states", k, next_states),
            self.told("terminated", k, terminated),
            self.told("truncated", k, truncated),
            following,
            self.timestep,
            timesteps,
        )
        self.agent.post_interaction(self.timestep, timesteps)
        for uid, x in given.items():
            assert torch.equal(x.nan_to_num(), kept[uid].nan_to_num()), "the environment's rewards were changed"
        self.states, self.shared, self.masks = next_states, next_shared, next_masks
        self.timestep += 1
        return step

    def rollout(self) -> None:
        """Collect a rollout, after which the library updates; then let the reference do the same."""
        before = len(self.permutations)
        steps = []
        for _ in range(T):
            assert len(self.permutations) == before, "an update in the middle of a rollout"
            steps.append(self.step())
        draws = self.permutations[before:]
        orders: dict[str, list[Tensor]] = {}
        for learner in self.agent.learners:
            leader = learner.names[0]
            learns = self.reference.learns_at(leader, steps[-1].timestep)
            epochs = self.reference.setting("learning_epochs", leader) if learns else 0
            orders.update(dict.fromkeys(learner.names, draws[:epochs]))
            draws = draws[epochs:]
        assert not draws
        self.check_log_prob(steps)
        self.reference.update(steps, orders)

    @torch.no_grad()
    def check_log_prob(self, steps: Sequence[Step]) -> None:
        """What acting calls the log-probability is that of torch's distribution, with the reference's normalisers."""
        for uid in self.team.possible_agents:
            space = self.team.action_spaces[uid]
            for (t, e), expected in self.reference.log_prob(uid, steps):
                action, log_prob = steps[t].actions[uid][e], steps[t].log_prob[uid][e]
                assert log_prob.shape == (1,)
                if isinstance(space, spaces.Box):
                    low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
                    assert bool(((action >= low) & (action <= high)).all())
                    if not bool(((action > low) & (action < high)).all()):
                        continue
                self.log_prob_error = max(self.log_prob_error, float((log_prob - expected).abs().max()))

    def act(self) -> None:
        """Act once more without a step."""
        actions, log_prob, outputs = self.agent.act(
            self.states, self.timestep, 2 * T, self.infos(self.masks, self.timestep)
        )
        names = self.team.possible_agents
        nothing = {uid: torch.zeros(E, 1) for uid in names}
        never = {uid: torch.zeros(E, 1, dtype=torch.bool) for uid in names}
        step = Step(
            *(self.timestep, 2 * T, self.states, dict(actions), dict(log_prob), nothing, nothing, never, never),
            *(self.shared, self.shared, None, None, self.masks),
        )
        self.check_log_prob([step])
        for uid in names:
            assert outputs[uid]["mean_actions"].shape == actions[uid].shape

    def difference(self) -> float:
        """The largest difference of a parameter from the reference's, beyond what rounding may have made of it."""
        worst = 0.0
        for uid, roles in self.models.items():
            for role, model in roles.items():
                theirs = self.reference.models[uid][role]
                doubts = {name: self.reference.doubts.get(p) for name, p in theirs.named_parameters()}
                mine, state = model.state_dict(), theirs.state_dict()
                assert mine.keys() == state.keys()
                for name, tensor in mine.items():
                    doubt = doubts.get(name)
                    apart = (tensor - state[name]).abs()
                    if doubt is not None:
                        apart = apart - torch.where(doubt > DOUBTFUL, 10 * doubt, 0.0)
                    worst = max(worst, float(apart.max()))
        return worst

    def movement(self) -> float:
        """The smallest of all models' largest change of a parameter."""
        return min(
            max(float((p.detach() - self.before[id(p)]).abs().max()) for p in model.parameters())
            for roles in self.models.values()
            for model in roles.values()
        )


def run_by_both(case: Case, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Two updates by both, which must agree after each, on the first data for which they can.

    The reference has float64, the library float32: where a ratio is within rounding of its clipping bound, or a gradient
    almost nothing but rounding, which Adam then blows up to a whole step, they may differ though both are right. A little of
    the latter is allowed for, parameter by parameter.
    """
    for seed in range(case.seed, case.seed + 20):
        with monkeypatch.context() as patch:
            run = Run(case, algorithm, patch, seed)
            differences = []
            for _ in range(2):
                run.rollout()
                differences.append(run.difference())
            if run.reference.kink < 1e-6 or run.reference.doubt > 2e-5:
                continue
            assert max(differences) < TOLERANCE
            run.act()  # with normalisers that have learned twice
            assert run.log_prob_error < 5e-5 + 10 * run.reference.doubt
            return run
    raise AssertionError("no data on which float32 and float64 can be compared")
