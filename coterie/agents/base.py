"""The base of all agents: one object that stands for a whole team of learners.

A trainer calls the hooks in this order, and a newcomer should read them so::

    agent.init(trainer_cfg), agent.set_running_mode("train")        # once
    agent.pre_interaction(timestep, timesteps)
    actions, log_prob, outputs = agent.act(states, timestep, timesteps, infos)
    next_states, rewards, terminated, truncated, infos = env.step(actions)
    agent.record_transition(states, actions, rewards, next_states, terminated, truncated, infos, timestep, timesteps)
    agent.post_interaction(timestep, timesteps)      # calls _update when it is due

Names of agents live at this border. Inside, agents of equal spaces are groups (see ``groups.py``) whose data are
tensors with an agent dimension: T time, E environment, A agent, F feature, B batch.
"""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import torch
from torch import Tensor, nn

from coterie.agent_tensors import AgentTensors
from coterie.agents.acting_state import ActingState
from coterie.agents.checkpoints import load_team, load_teammates, save_team, write_checkpoint
from coterie.agents.checks import acting_role, check_finite, check_models, check_policies, team_device, with_scripts
from coterie.agents.config import Config, Key, resolve, scheduled_value
from coterie.agents.groups import Group, Learner, TeamMember, build_learners
from coterie.agents.intake import Form, Kind, take_in
from coterie.agents.masks import Masks, blank
from coterie.agents.records import RunRecords
from coterie.agents.tracking import experiment_directory
from coterie.memories.base import Memory
from coterie.models.base import Model
from coterie.models.scripted import ScriptedPolicy

__all__ = ["MultiAgent"]


def _algorithms_with(key: str) -> list[str]:
    """Names of the library's algorithms whose configuration has a key."""
    found, ahead = set(), [MultiAgent]
    while ahead:
        kind = ahead.pop()
        ahead += kind.__subclasses__()
        own = kind.__module__.startswith("coterie.") and not inspect.isabstract(kind)
        if own and key in kind.DEFAULT_CONFIG:
            found.add(kind.__name__)
    return sorted(found)


class MultiAgent(ABC):
    """A team of agents. An algorithm writes :meth:`act`, :meth:`record_transition` and :meth:`_update`.

    :param possible_agents: the agents' names
    :param models: ``{uid: {role: model}}`` with the roles that the algorithm learns, such as ``"policy"`` and ``"value"``; the
        same object for several agents means shared parameters. An agent that does not learn has a ``"q"``, or a ``"policy"`` of
        any kind, which may be a plain function ``(states, action_masks) -> actions``, see :class:`ScriptedPolicy`
    :param memories: one memory per agent that learns, whose tensors become views of the group's storage; None to act and
        evaluate only
    :param observation_spaces: space of each agent's observation; taken from the policies by default
    :param action_spaces: space of each agent's actions; taken from the policies by default
    :param device: where everything is computed; that of the first network by default
    :param cfg: what differs from the default configuration; any value may be a dict by agent
    :param shared_observation_spaces: space of the state that centralised critics see, by agent

    :raises ConfigError: a bad configuration
    :raises ValueError: models, memories or spaces that do not fit the agents or each other
    :raises TypeError: a model or a memory of the wrong kind
    """

    #: roles of the models that learn, first that of those which act
    learned_roles: ClassVar[tuple[str, ...]] = ("policy", "value")
    DEFAULT_CONFIG: ClassVar[Config]
    KEYS: ClassVar[Mapping[str, Key]]
    #: keys that belong to parameters: agents that share a model must agree on their values
    OWN_KEYS: ClassVar[tuple[str, ...]] = ()
    #: keys that belong to the loop of an update: agents that disagree are trained in loops of their own
    COMMON_KEYS: ClassVar[tuple[str, ...]] = ()
    #: whether the shared states are of use, so that a trainer need not ask the environment for them otherwise
    uses_shared_states: ClassVar[bool] = True
    #: whether all critics see the same, one row for each environment
    common_critic_input: ClassVar[bool] = False

    def __init__(
        self,
        possible_agents: Sequence[str],
        models: Mapping[str, Mapping[str, Model]],
        memories: Mapping[str, Memory] | None = None,
        observation_spaces: Mapping[str, gymnasium.Space] | None = None,
        action_spaces: Mapping[str, gymnasium.Space] | None = None,
        device: str | torch.device | None = None,
        cfg: Mapping[str, Any] | None = None,
        shared_observation_spaces: Mapping[str, gymnasium.Space] | None = None,
    ) -> None:
        self.possible_agents = list(possible_agents)
        if not self.possible_agents or len(set(self.possible_agents)) != len(self.possible_agents):
            raise ValueError(f"possible_agents: expected distinct names, got {self.possible_agents}")
        given = self._by_agent("models", models)
        self.device = team_device(given, device)
        self.models = with_scripts(given, observation_spaces, action_spaces, self.device)
        self.cfg, self.agent_cfg = resolve(self.DEFAULT_CONFIG, cfg, self.KEYS, self.possible_agents, _algorithms_with)
        #: agents that learn; the others act and are seen by critics
        self.learning_agents = [uid for uid in self.possible_agents if self._learns(uid)]
        check_models(self.models, self.learning_agents, self.learned_roles)
        policies = {uid: roles[acting_role(roles)] for uid, roles in self.models.items()}
        if observation_spaces is None:
            observation_spaces = {uid: policy.observation_space for uid, policy in policies.items()}
        if action_spaces is None:
            action_spaces = {uid: policy.action_space for uid, policy in policies.items()}
        self.observation_spaces = self._by_agent("observation_spaces", observation_spaces)
        self.action_spaces = self._by_agent("action_spaces", action_spaces)
        shared = shared_observation_spaces
        self.shared_observation_spaces = None if shared is None else self._by_agent("shared_observation_spaces", shared)
        self.memories = None if memories is None else self._memories(memories)
        check_policies(policies, self.observation_spaces, self.action_spaces)
        self.learners = self._partition(self.models)
        self.groups: list[Group] = [group for learner in self.learners for group in learner.groups]
        self.training = False
        self._acting = ActingState()
        self._evaluating, self._set_aside = False, self._acting  # that of training, during an evaluation
        self.experiment_dir = experiment_directory(self.cfg["experiment"], type(self).__name__)
        self.records = RunRecords(self.possible_agents)
        self._best_return = float("-inf")
        self._build()

    # ---- construction ------------------------------------------------------------------------------------------------

    def _build(self) -> None:  # noqa: B027 (the base has nothing to add)
        """What an algorithm adds to the construction, once models, spaces, configuration and groups are known."""

    def _by_agent(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Check that a dict covers exactly the agents, and put it into their order."""
        if not isinstance(values, Mapping):
            raise TypeError(f"{name}: expected a dict by agent, got {type(values).__name__}")
        missing = [uid for uid in self.possible_agents if uid not in values]
        unknown = [uid for uid in values if uid not in self.possible_agents]
        if missing or unknown:
            raise ValueError(
                f"{name}: expected exactly the agents {self.possible_agents}; missing {missing}, unknown {unknown}"
            )
        return {uid: values[uid] for uid in self.possible_agents}

    def _learns(self, uid: str) -> bool:
        scripted = isinstance(self.models[uid].get("policy"), ScriptedPolicy)
        return bool(self.agent_cfg["trainable"][uid]) and not scripted

    def _memories(self, memories: Mapping[str, Memory]) -> dict[str, Memory]:
        """The memories of those that learn; others need none."""
        given: Mapping[str, Memory | None] = memories
        if isinstance(memories, Mapping):
            given = {**{uid: None for uid in self.possible_agents if uid not in self.learning_agents}, **memories}
        by_agent = self._by_agent("memories", given)
        return {uid: memory for uid, memory in by_agent.items() if memory is not None or uid in self.learning_agents}

    def _partition(self, models: Mapping[str, Mapping[str, Model]]) -> list[Learner]:
        """Groups and learners of the agents with these models, which are those of the whole team or copies of some."""
        members = [
            TeamMember(
                name=uid,
                index=i,
                models={role: models[uid][role] for role in self._trained(uid)},
                role=acting_role(models[uid]),
                observation_space=self.observation_spaces[uid],
                action_space=self.action_spaces[uid],
                state_space=None if self.shared_observation_spaces is None else self.shared_observation_spaces[uid],
                own=self._settings(self.OWN_KEYS, uid),
                common={
                    **self._settings(self.COMMON_KEYS, uid),
                    "get_specification()": repr([models[uid][role].get_specification() for role in self._trained(uid)]),
                },
                tie=self._tie(uid),
            )
            for i, uid in enumerate(self.possible_agents)
            if uid in models
        ]
        return build_learners(members, self.device, self.common_critic_input, len(self.possible_agents))

    def _trained(self, uid: str) -> list[str]:
        """The roles of an agent's models that take part: nobody asks the critic of one that does not learn."""
        roles = self.learned_roles if uid in self.learning_agents else (acting_role(self.models[uid]),)
        return [role for role in roles if role in self.models[uid]]

    def _tie(self, uid: str) -> Hashable:
        """What agents that learn from one loss have in common, whatever their models; None for a loss of one's own."""
        return None

    def _settings(self, keys: Sequence[str], uid: str) -> dict[str, str]:
        """The values that ``uid`` has of some keys, as something that compares."""
        return {key: repr(self.agent_cfg[key][uid]) for key in keys}

    def config_values(
        self, group: Group, key: str, part: int = 0, timestep: int = 0, timesteps: int = 1
    ) -> float | Tensor:
        """A number of the configuration as it enters a group's formulas: itself, or ``[A, 1]`` where agents differ.

        :param part: which of a pair, where the value is one
        :param timestep: for schedules, with ``timesteps``
        """

        def number(uid: str) -> float:
            value = self.agent_cfg[key][uid]
            if isinstance(value, (tuple, list)):
                value = value[part]
            return scheduled_value(key, value, timestep, timesteps) if callable(value) else float(value)

        values = [number(uid) for uid in group.names]
        if len(set(values)) == 1:
            return values[0]
        return torch.tensor(values, dtype=torch.float32, device=self.device).unsqueeze(1)

    # ---- hooks, in the order of their calling ----------------------------------------------------------------------------

    def init(self, trainer_cfg: Mapping[str, Any] | None = None) -> None:
        """Prepare for training: open the experiment's directory and its files. A trainer calls it before the first step.

        :param trainer_cfg: the trainer's configuration, whose ``"timesteps"`` decide the intervals that are ``"auto"``;
            without them, nothing is written at these

        :raises OSError: the experiment's directory cannot be written
        """
        self.records.begin(self.experiment_dir, self.cfg, int((trainer_cfg or {}).get("timesteps", 0)))
        self._acting = self._set_aside = ActingState()

    def pre_interaction(self, timestep: int, timesteps: int) -> None:  # noqa: B027 (few algorithms need it)
        """Called before each step's actions are chosen."""

    @abstractmethod
    def act(
        self, states: Mapping[str, Tensor], timestep: int, timesteps: int, infos: Mapping[str, Any] | None = None
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, Mapping[str, Tensor]]]:
        """Choose actions.

        :param states: observations ``[E, F]`` by agent
        :param infos: what came with them: masks, if there are any (without infos those of the last step hold). Where nothing is
            recorded, ``infos["episode_starts"]``, bool ``[E, 1]`` by agent, says where recurrent policies start anew

        :return: actions ``[E, n]``, log-probabilities ``[E, 1]`` and outputs (``outputs[uid]["mean_actions"]`` ``[E, n]``)

        :raises KeyError, TypeError, ValueError: what was passed does not fit the agents; nothing has changed then
        :raises RuntimeError: recurrent policies in training were to go on from a step that was not recorded
        """

    def record_transition(
        self,
        states: Mapping[str, Tensor],
        actions: Mapping[str, Tensor],
        rewards: Mapping[str, Tensor],
        next_states: Mapping[str, Tensor],
        terminated: Mapping[str, Tensor],
        truncated: Mapping[str, Tensor],
        infos: Mapping[str, Any],
        timestep: int,
        timesteps: int,
    ) -> None:
        """Take in one step of all environments, in the terms of the environment contract; the base counts episodes.

        ``infos["shared_states"]`` and ``infos["shared_next_states"]`` (a trainer adds them) are the shared states ``[E, F]``
        that go with ``states`` and ``next_states``.

        :raises KeyError, TypeError, ValueError: what was passed does not fit the agents; nothing is taken in then
        :raises RuntimeError: during an evaluation, or after a full rollout that was not learned from
        """
        earned = blank(self._stack("rewards", rewards, self.possible_agents), self._masks.present(self.possible_agents))
        self._check_finite("rewards", earned, self.possible_agents)  # before anything of the step is taken in
        ended = (
            self._stack("terminated", terminated, self.possible_agents)
            | self._stack("truncated", truncated, self.possible_agents)
        ).all(dim=1)
        self._acting.masks = self._masks_of(infos, earned.shape[0], states)
        self.records.count_step(earned.squeeze(-1), ended.squeeze(-1))

    @property
    def memory_bytes(self) -> int:
        """Bytes that the steps kept to learn from take, or will take once :meth:`init` has made room for them.

        Masks count once an environment has given some.
        """
        return 0

    @property
    def recent_return(self) -> float | None:
        """Mean return of the team over the episodes that ended last, None before the first."""
        return self.records.recent_return

    def post_interaction(self, timestep: int, timesteps: int) -> None:
        """Called after each step was recorded: updates, then writes metrics and checkpoints when they are due."""
        step = timestep + 1
        records = self.records
        if records.due(records.write_interval, step, timesteps):
            self.write_tracking_data(step, timesteps)
        if records.due(records.checkpoint_interval, step, timesteps):
            self.write_checkpoint(step, timesteps)

    @abstractmethod
    def _update(self, timestep: int, timesteps: int) -> None:
        """Learn from what was recorded."""

    def set_mode(self, mode: str) -> None:
        """Switch every model to ``"train"`` or ``"eval"``."""
        # those that agents have in common once: each has all of its layers told
        for model in {model: None for roles in self.models.values() for model in roles.values()}:
            model.set_mode(mode)

    def set_running_mode(self, mode: str) -> None:
        """Tell whether the agent is in training (``"train"``) or merely acts (``"eval"``)."""
        if mode not in ("train", "eval"):
            raise ValueError(f"expected mode 'train' or 'eval', got {mode!r}")
        if mode == "eval":  # an evaluation begins with new episodes, and training goes on where it was
            self._set_aside = self._set_aside if self._evaluating else self._acting
            self._acting = ActingState()
        elif self._evaluating:
            self._acting = self._set_aside
        self.training, self._evaluating = mode == "train", mode == "eval"
        self.set_mode("eval")  # an update switches the models to "train" for its duration

    # ---- the border between names and groups ---------------------------------------------------------------------------

    def _stack(
        self,
        what: str,
        values: Mapping[str, Tensor],
        names: Sequence[str],
        width: int = 1,
        kind: Kind | None = None,
        rows: int | None = None,
    ) -> Tensor:
        """Stack the named agents' tensors into ``[E, A, width]``: see :func:`take_in`."""
        if kind is None and isinstance(values, AgentTensors):  # taken in before
            stack = values.stacks.get(tuple(names))
            if stack is not None and stack.dim() == 3 and stack.shape[2] == width:
                return stack
        return take_in(what, values, names, Form(width, kind, rows, self.device))

    @property
    def _num_envs(self) -> int | None:
        """Number of environments whose steps are recorded, None before it is known."""
        if self.memories:
            return next(iter(self.memories.values())).num_envs
        return self.records.num_envs

    @property
    def _masks(self) -> Masks:
        """Those of the present states."""
        return self._acting.masks

    def _masks_of(self, infos: Mapping[str, Any], rows: int, states: Mapping[str, Tensor]) -> Masks:
        """The masks that came with ``states`` of ``rows`` environments."""
        masks = Masks(infos, rows, self.device)
        masks.check_names(self.possible_agents, states)
        return masks

    def _check_finite(self, what: str, tensor: Tensor, names: Sequence[str]) -> None:
        """Refuse NaN and infinity in ``[E, A, F]`` (one sum; the culprit is looked for only when there is one).

        On an accelerator the check would wait for the device at each step; the update checks the whole rollout instead.

        :raises ValueError: naming environment, agent, element and value
        """
        if tensor.device.type == "cpu":
            check_finite(what, tensor, names)

    # ---- records ------------------------------------------------------------------------------------------------------------

    def track_data(self, tag: str, value: Any) -> None:
        """Remember a scalar (a number or a tensor of one element) for the next writing of metrics."""
        self.records.tracker.track(tag, value)

    def write_tracking_data(self, timestep: int, timesteps: int) -> None:
        """Write what was tracked since the last time to TensorBoard and ``metrics.csv``."""
        self.records.write(timestep)

    def write_checkpoint(self, timestep: int, timesteps: int) -> None:
        """Write ``checkpoints/agent_<timestep>.pt`` (with ``store_separately`` a file per model, for ``model.load``)."""
        directory = self.experiment_dir / "checkpoints"
        if not self.cfg["experiment"]["store_separately"]:
            self.save(directory / f"agent_{timestep}.pt")
            return
        for uid, roles in self.models.items():
            for role, model in roles.items():
                # copied, since a view would bring along all of the storage that the team's models share
                state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                write_checkpoint(directory / f"{uid}_{role}_{timestep}.pt", state)

    def record_evaluation(self, results: Mapping[str, Any], timestep: int, timesteps: int) -> None:
        """Track an evaluation's results and keep the best agent so far as ``checkpoints/best_agent.pt``.

        :param results: with ``"mean"`` and ``"std"`` of the team's return, and ``"agents"``, each agent's mean return
        """
        self.records.write_evaluation(results, timestep)
        if results["mean"] > self._best_return:
            self._best_return = float(results["mean"])
            if self.records.checkpoint_interval > 0:
                self.save(self.best_checkpoint)

    @property
    def best_checkpoint(self) -> Path:
        """Where the agent of the best evaluation is kept."""
        return self.experiment_dir / "checkpoints" / "best_agent.pt"

    # ---- checkpoints -----------------------------------------------------------------------------------------------------

    def checkpoint_modules(self) -> dict[str, nn.Module]:
        """Everything with weights or statistics, by a name of its own; shared objects come once."""
        modules: dict[str, nn.Module] = {}
        for uid, roles in self.models.items():
            for role, model in roles.items():
                if not any(model is other for other in modules.values()):
                    modules[f"models/{uid}/{role}"] = model
        for learner in self.learners:
            for kind, stage in learner.preprocessors():
                for names, member in zip(learner.set_names(), stage.members, strict=True):
                    modules[f"{kind}/{names[0]}"] = member
        return modules

    def checkpoint_owners(self) -> dict[str, dict[str, str]]:
        """For each agent the names, among :meth:`checkpoint_modules`, of its models and normalisers."""
        modules = self.checkpoint_modules()
        owners: dict[str, dict[str, str]] = {
            uid: {
                role: next(name for name, module in modules.items() if module is model) for role, model in roles.items()
            }
            for uid, roles in self.models.items()
        }
        for learner in self.learners:
            leaders = [names[0] for names in learner.set_names()]
            for group in learner.groups:
                for uid, s in zip(group.names, group.sets, strict=True):
                    name = f"state_preprocessor/{group.names[0]}/{leaders[s]}"
                    if name in modules:
                        owners[uid]["state_preprocessor"] = name
        return owners

    def checkpoint_state(self) -> dict[str, Any]:
        """Counters of the algorithm that a resumed run needs: numbers only."""
        return {"best_return": self._best_return}

    def load_checkpoint_state(self, state: Mapping[str, Any]) -> None:
        """Take what :meth:`checkpoint_state` returned."""
        self._best_return = float(state["best_return"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write models, normalisers, optimizers, schedulers and counters to ``path``, whole or not at all."""
        save_team(self, path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read what :meth:`save` wrote. Nothing is loaded unless all of it fits.

        An agent without memories takes the models and normalisers alone. A fixed learning rate stays the configured one;
        where both the file and this agent have a learning-rate scheduler, the rate and the scheduler's state are the file's.

        :raises CheckpointError: the file is damaged or holds another team's agents; the message lists every difference
        """
        load_team(self, path)

    def load_teammates(self, path: str | os.PathLike[str], sources: Mapping[str, str]) -> None:
        """Take some agents' policies, with what normalises their observations, from a checkpoint of any team.

        Meant for teammates that don't learn (``cfg["trainable"]``): partners to get along with, opponents, a past self.

        :param sources: for each of this team's agents that is to be loaded, the name of the one in the file

        :raises CheckpointError: the file is damaged, or a policy does not fit; nothing is loaded then
        """
        load_teammates(self, path, sources)
