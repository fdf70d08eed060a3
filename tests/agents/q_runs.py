"""The library's learners of action values and the slow reference side by side, on made-up data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from coterie.agents import IQL, QMIX, VDN
from coterie.agents.iql import IQL_DEFAULT_CONFIG
from coterie.agents.qmix import QMIX_DEFAULT_CONFIG
from coterie.agents.vdn import VDN_DEFAULT_CONFIG
from coterie.memories import EpisodeMemory, PrioritizedMemory, ReplayMemory, Window
from tests.agents.ppo_presence import Endings, choices, make_plan
from tests.agents.ppo_reference_time import ABSENT, ACTIVE, WAITING, Masks
from tests.agents.ppo_runs import DOUBTFUL, ENDINGS, TOLERANCE, T
from tests.agents.ppo_teams import E, perturb
from tests.agents.q_history import QStep
from tests.agents.q_reference import ReferenceQ, Stretch
from tests.agents.q_teams import STATE, Maker, QTeam, alike, distinct, qmix, rule, with_mixer

CLASSES: dict[str, Any] = {"qmix": QMIX, "vdn": VDN, "iql": IQL}
DEFAULTS = {"qmix": QMIX_DEFAULT_CONFIG, "vdn": VDN_DEFAULT_CONFIG, "iql": IQL_DEFAULT_CONFIG}
MEMORIES: dict[str, Any] = {"replay": ReplayMemory, "prioritized": PrioritizedMemory, "episodes": EpisodeMemory}
ROWS = 12  # of a memory, which is written over several times

BASE: dict[str, Any] = {
    "batch_size": 4,
    "update_interval": 3,
    "learning_starts": 6,
    "learning_rate": 4e-3,
    "discount_factor": 0.9,
    "target_update_interval": 3,
    "grad_norm_clip": 1.0,
    "exploration_epsilon": 0.5,
    "experiment": {"write_interval": 0, "checkpoint_interval": 0},
}


@dataclass
class Case:
    """A team, its networks, and what of the configuration differs from the defaults above.

    :param style: of the agents' lives, see :func:`make_plan`; None for environments that say nothing of them
    :param masked: whether some actions are forbidden
    :param told: whether infos say of last states who acts in them and what is allowed
    :param interrupted: steps before which training begins anew
    :param burn_in: as configured, for the bookkeeping of what was drawn
    """

    name: str
    algorithm: str
    team: Callable[[], QTeam] = alike
    models: Maker = distinct
    cfg: dict[str, Any] = field(default_factory=dict)
    memory: str = "replay"
    mixer: Callable[[int, int], Any] = field(default_factory=qmix)
    style: str | None = None
    masked: bool = False
    told: bool = False
    endings: Sequence[Endings] = (*ENDINGS, ENDINGS[0])
    interrupted: tuple[int, ...] = ()
    updates: int = 3  # at least


class Run:
    """Both learners, fed with the same data."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.case, self.team = case, case.team()
        names = self.names = self.team.possible_agents
        models = case.models(self.team)
        if case.algorithm == "qmix":
            models = with_mixer(self.team, models, case.cfg.get("mixer_input", "state"), case.mixer)
        perturb({uid: roles for uid, roles in models.items() if uid not in self.team.scripted})
        models |= {uid: {"policy": rule} for uid in self.team.scripted}
        fewer = {"batch_size": 3} if case.memory == "episodes" else {}
        self.cfg = {**BASE, **fewer, "trainable": {uid: uid not in self.team.frozen for uid in names}, **case.cfg}
        complete = {**DEFAULTS[case.algorithm].copy(), **self.cfg}
        self.models = {uid: models[uid] for uid in self.team.learners}
        self.before = {id(p): p.detach().clone() for p in self._parameters()}
        recurrent = [m for r in self.models.values() for m in r.values() if m.get_specification().get("rnn")]
        whole = bool(recurrent) or case.memory == "episodes"
        self.reference = ReferenceQ(
            self.models, names, self.team.kinds, complete, case.algorithm != "iql", E, whole
        )  # fmt: skip
        self.lengths = {uid: self._length(uid, complete) for uid in self.team.learners}
        self.burn_in = complete["burn_in"]
        self.agent = CLASSES[case.algorithm](
            names,
            models,
            {uid: MEMORIES[case.memory](ROWS, E, seed=seed) for uid in self.team.learners},
            self.team.observation_spaces,
            self.team.action_spaces,
            "cpu",
            self.cfg,
            self.team.shared_observation_spaces,
        )
        self._begin()
        self._part_targets()
        self.data = torch.Generator().manual_seed(7 + seed)
        self.filler, self.garbage = 1e3, 777.0  # of final states where nothing ended; of those who are not there
        self.plan = make_plan(names, E, T, case.endings, case.style or "present", 39 + seed)
        self.timesteps = T * len(case.endings)
        self.timestep = self.updates = 0
        self.masks, self.shared = self._masks(0), self._draw(STATE)
        self.states = self._observe(0)
        self.priorities: dict[tuple[int, int], float] = {}
        self.largest = 1.0

    @torch.no_grad()
    def _part_targets(self) -> None:
        """Move both's target networks away from the online ones: else which of them chooses would make no difference."""
        perturb(self.reference.targets)
        for uid, roles in self.reference.targets.items():
            for role, model in roles.items():
                for p, q in zip(self._copies(uid)[role].parameters(), model.parameters(), strict=True):
                    p.copy_(q)
                    q.copy_(p)  # as rounded

    def _copies(self, uid: str) -> Any:
        """An agent's target networks, by role."""
        learner = next(learner for learner in self.agent.learners if uid in learner.names)
        return self.agent._targets[learner.names[0]].models[uid]

    def _begin(self) -> None:
        self.agent.init({"timesteps": 1000})
        self.agent.set_running_mode("train")
        self.drawn: list[Window] = []
        self.memory = self.agent._storage.memory
        windows = type(self.memory).windows

        def recorded(*args: Any) -> Window:
            self.drawn.append(windows(self.memory, *args))
            return self.drawn[-1]

        self.memory.windows = recorded

    def _length(self, uid: str, cfg: Mapping[str, Any]) -> int:
        """The number of rows that one of an agent's updates draws at a time, but for episodes."""
        together = self.team.learners if self.case.algorithm != "iql" else [uid]
        for other in together:
            declared = self.models[other]["q"].get_specification().get("rnn")
            if declared and declared["sequence_length"] > 1:
                return int(declared["sequence_length"])
        return int(self._setting("n_step", uid, cfg))

    def _setting(self, key: str, uid: str, cfg: Mapping[str, Any]) -> Any:
        value = cfg[key]
        return value[uid] if isinstance(value, Mapping) and set(value) == set(self.names) else value

    def _parameters(self) -> list[nn.Parameter]:
        return [p for roles in self.models.values() for model in roles.values() for p in model.parameters()]

    # ---- data ----------------------------------------------------------------------------------------------------------

    def _draw(self, width: int) -> Tensor:
        return 1.5 * torch.randn(E, width, generator=self.data) + 0.5

    def _observe(self, k: int) -> dict[str, Tensor]:
        return {
            uid: torch.where(self.plan.gone(uid, k), self.garbage, self._draw(space.shape[0]))
            for uid, space in self.team.observation_spaces.items()
        }

    def _masks(self, k: int) -> Masks:
        masks = Masks()
        if self.case.style is not None:
            masks.active = {uid: self.plan.mask(ACTIVE, uid, k) for uid in self.names}
            masks.waiting = {uid: self.plan.mask(WAITING, uid, k) for uid in self.names}
        if self.case.masked:
            masks.allowed = self._choices(lambda uid: ~self.plan.mask(ABSENT, uid, k))
        return masks

    def _choices(self, present: Callable[[str], Tensor]) -> dict[str, Tensor]:
        drawn = {uid: choices(self.team.action_spaces[uid], present(uid), self.data) for uid in self.names}
        return {uid: mask for uid, mask in drawn.items() if mask is not None}

    def _last_masks(self) -> Masks:
        """What infos say of last states."""
        if not self.case.told:
            return Masks()
        acting = {uid: torch.rand(E, 1, generator=self.data) < 0.7 for uid in self.names}
        return Masks(acting, None, self._choices(lambda uid: torch.ones(E, 1, dtype=torch.bool)))

    @staticmethod
    def _told(masks: Masks, prefix: str = "") -> dict[str, Any]:
        tables = {"active_masks": masks.active, "waiting_masks": masks.waiting, "action_masks": masks.allowed}
        return {f"{prefix}{name}": dict(table) for name, table in tables.items() if table is not None}

    # ---- a step --------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Let both take a step, and learn where that is due."""
        k, names = self.timestep, self.names
        if k in self.case.interrupted:
            self._begin()
            if not self.updates:
                self._part_targets()  # they begin where the online ones are
            self.reference.history.interrupt()
        actions, _, _ = self.agent.act(self.states, k, self.timesteps, self._told(self.masks))
        actions = {uid: actions[uid].clone() for uid in names}
        terminated = {uid: torch.tensor(self.plan.terminated[uid][k]).unsqueeze(-1) for uid in names}
        truncated = {uid: torch.tensor(self.plan.truncated[uid][k]).unsqueeze(-1) for uid in names}
        absent = {uid: self.plan.mask(ABSENT, uid, k) for uid in names}
        rewards = {uid: 2 * torch.randn(E, 1, generator=self.data) + 1 for uid in names}
        rewards = {uid: torch.where(absent[uid], self.garbage, x) for uid, x in rewards.items()}
        next_states, next_shared, next_masks = self._observe(k + 1), self._draw(STATE), self._masks(k + 1)
        infos = {**self._told(next_masks), "shared_states": self.shared, "shared_next_states": next_shared}
        final_states = final_shared = None
        last = Masks()
        ended = self.plan.over(k)
        if bool(ended.any()):
            final_states = {
                uid: torch.where(ended, torch.where(absent[uid], self.garbage, self._draw(x.shape[1])), self.filler)
                for uid, x in next_states.items()
            }
            final_shared, last = torch.where(ended, self._draw(STATE), self.filler), self._last_masks()
            infos |= {"final_states": final_states, "final_shared_states": final_shared, **self._told(last, "final_")}
        step = QStep(
            *(k, self.timesteps, self.states, actions, {}, rewards, next_states, terminated, truncated),
            *(self.shared, next_shared, final_states, final_shared, self.masks, next_masks, last),
        )
        own = (self.states, actions, rewards, next_states, terminated, truncated)
        self.agent.record_transition(*(dict(table) for table in own), infos, k, self.timesteps)
        sizes = [len(rows) for rows in self.reference.history.rows]
        self.reference.record(step)
        for e, (size, rows) in enumerate(zip(sizes, self.reference.history.rows, strict=True)):
            self.priorities |= {(e, n): self.largest for n in range(size, len(rows)) if rows[n].step}
        self.agent.post_interaction(k, self.timesteps)
        self._follow()
        self.states, self.shared, self.masks = next_states, next_shared, next_masks
        self.timestep += 1

    def finish(self) -> None:
        """All steps that are left."""
        while self.timestep < self.timesteps:
            self.step()

    def _follow(self) -> None:
        """Let the reference learn from what the library drew."""
        drawn, self.drawn[:] = list(self.drawn), []
        for learner in self.agent.learners:
            if learner.names[0] not in self.team.learners:
                continue
            leader = min(learner.names, key=self.names.index)
            for _ in range(self._due(leader)):
                stretches = self._stretches(drawn.pop(0), self.lengths[leader])
                errors = self.reference.update(learner.names, stretches, (self.timestep, self.timesteps))
                self.updates += errors is not None
                if errors is not None and isinstance(self.memory, PrioritizedMemory):
                    self._set_priorities(stretches, errors)
        assert not drawn, "an update that is not due"

    def _due(self, uid: str) -> int:
        """The number of gradient steps that an agent takes after this step."""
        cfg = {key: self._setting(key, uid, self.reference.cfg) for key in self.reference.cfg}
        if self.timestep < cfg["learning_starts"] or (self.timestep + 1) % cfg["update_interval"]:
            return 0
        history = self.reference.history
        if self.case.memory == "episodes":
            held = history.episodes(ROWS)
        else:
            held = history.stretches(ROWS, self.burn_in, self.lengths[uid])
        return int(cfg["gradient_steps"]) if len(held) >= cfg["batch_size"] else 0

    def _stretches(self, window: Window, length: int) -> list[Stretch]:
        """The rows of the history that a window shows."""
        history, stretches = self.reference.history, []
        episodes = self.case.memory == "episodes"
        held = history.episodes(ROWS) if episodes else history.stretches(ROWS, self.burn_in, length)
        for b, e in enumerate(window.envs.tolist()):
            rows = history.rows[e]
            first = history.number(e, int(window.rows[self.burn_in, b]), ROWS)
            assert (e, first) in held
            steps = history.episode(e, first) if episodes else length
            stretch = Stretch(e, first, steps, self.burn_in)
            stretch.rows, stretch.warm = rows[first : first + steps + 1], rows[first - self.burn_in : first]
            stretches.append(stretch)
        if isinstance(self.memory, PrioritizedMemory):
            self._weigh(stretches, held, window)
        else:
            assert window.weights is None
        return stretches

    def _weigh(self, stretches: Sequence[Stretch], held: Sequence[tuple[int, int]], window: Window) -> None:
        """Importance-sampling weights ``(N P)^-beta``, over the largest of the batch."""
        total = sum(self.priorities[place] ** 0.6 for place in held)
        weights = [
            (len(held) * self.priorities[stretch.env, stretch.first] ** 0.6 / total) ** -0.4 for stretch in stretches
        ]
        for stretch, weight in zip(stretches, weights, strict=True):
            stretch.weight = weight / max(weights)
        assert window.weights is not None
        torch.testing.assert_close(
            window.weights.double(), torch.tensor([s.weight for s in stretches]).double(), atol=1e-5, rtol=1e-5
        )

    def _set_priorities(self, stretches: Sequence[Stretch], errors: Sequence[float]) -> None:
        for stretch, error in zip(stretches, errors, strict=True):
            self.priorities[stretch.env, stretch.first] = error + 1e-6
            self.largest = max(self.largest, error + 1e-6)

    # ---- what came of it -----------------------------------------------------------------------------------------------

    def difference(self) -> float:
        """The largest difference of a parameter from the reference's, beyond what rounding may have made of it."""
        worst = 0.0
        for uid, roles in self.models.items():
            copies = self._copies(uid)
            for role, model in roles.items():
                for mine, theirs in ((model, self.reference.models), (copies[role], self.reference.targets)):
                    doubts = dict(self.reference.models[uid][role].named_parameters())
                    expected = dict(theirs[uid][role].named_parameters())
                    for name, p in mine.named_parameters():
                        apart = (p.detach() - expected[name].detach()).abs()
                        doubt = self.reference.doubts.get(doubts[name])
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


def run_by_both(case: Case) -> Run:
    """All of a case's updates by both, which must agree after each, on the first data for which they can.

    The library has float32: where two choices of a target are within rounding of each other, or a gradient is almost nothing
    but rounding, which Adam blows up to a whole step, they may differ though both are right.
    """
    for seed in range(20):
        run = Run(case, seed)
        differences = [0.0]
        while run.timestep < run.timesteps:
            before = run.updates
            run.step()
            if run.updates > before:
                differences.append(run.difference())
        doubt = max((float(x.max()) for x in run.reference.doubts.values()), default=0.0)
        if run.reference.kink < 1e-5 or doubt > 2e-5:
            continue
        assert max(differences) < TOLERANCE, [f"{x:.1e}" for x in differences]
        assert run.updates >= case.updates
        assert run.movement() > 1e-3
        return run
    raise AssertionError("no data on which float32 and float64 can be compared")
