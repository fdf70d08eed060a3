"""Acting: action masks are kept to, and recurrent states begin, rest and survive when they should."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agents import IPPO, MAPPO, MultiAgent
from coterie.memories import RandomMemory
from coterie.models import CategoricalMixin, Model, build_models
from coterie.preprocessors import RunningStandardScaler, ValueNorm
from coterie.trainers import SequentialTrainer
from tests.agents.toys import OFF, Toy, box

DISCRETE: gymnasium.Space = spaces.Discrete(4)
SEVERAL: gymnasium.Space = spaces.MultiDiscrete([3, 2])


def team(
    env: Toy, kind: type[MultiAgent] = IPPO, rollouts: int = 4, models: Any = None, rnn: str | None = None, **cfg: Any
) -> Any:
    settings = {"rollouts": rollouts, "learning_epochs": 2, "mini_batches": 2, "experiment": OFF, **cfg}
    if models is None:
        algorithm = "mappo" if kind is MAPPO else "ippo"
        models = build_models(env, algorithm, hidden=(8,), rnn=rnn, rnn_size=5, sequence_length=2)
    names = env.possible_agents
    return kind(
        names,
        models,
        {uid: RandomMemory(rollouts, env.num_envs) for uid in names},
        env.observation_spaces,
        env.action_spaces,
        cfg=settings,
        shared_observation_spaces=env.shared_observation_spaces,
    )


def quiet(timesteps: int, **cfg: Any) -> dict[str, Any]:
    base = {"timesteps": timesteps, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
    return {**base, **cfg}


def weights(agent: Any) -> Tensor:
    return torch.cat([learner.storage.data.flatten().clone() for learner in agent.learners])


# ---- action masks ----------------------------------------------------------------------------------------------------


def choices(space: gymnasium.Space) -> list[int]:
    return [4] if isinstance(space, spaces.Discrete) else [3, 2]


def some_allowed(space: gymnasium.Space, shift: int) -> Any:
    """One or two actions of each dimension, other ones at each age and for each agent."""

    def allowed(age: Tensor) -> Tensor:
        parts = []
        for n in choices(space):
            part = torch.zeros(len(age), n, dtype=torch.bool)
            rows = torch.arange(len(age))
            part[rows, (age + shift) % n] = True
            part[rows, (2 * age + shift) % n] = True
            parts.append(part)
        return torch.cat(parts, dim=1)

    return allowed


def masked_game(space: gymnasium.Space) -> tuple[Toy, list[dict[str, Tensor]]]:
    """A game of which every step's masks are noted, beside the actions that it was given."""
    seen: list[dict[str, Tensor]] = []
    rules = {"a": some_allowed(space, 0), "b": some_allowed(space, 1)}

    def masks(age: Tensor) -> dict[str, Any]:
        seen.append({uid: rule(age) for uid, rule in rules.items()})
        return {"action_masks": seen[-1]}

    return Toy(actions=space, masks=masks, lengths=(5, 7, 4, 6)), seen


def forbidden(env: Toy, seen: list[dict[str, Tensor]]) -> int:
    """Number of choices that were not allowed; the masks of step t are the t-th that were noted."""
    count = 0
    for taken, masks in zip(env.taken, seen, strict=False):
        for uid, action in taken.items():
            parts = masks[uid].split(choices(env.action_spaces[uid]), dim=1)
            count += sum(int((~part.gather(1, action[:, i : i + 1])).sum()) for i, part in enumerate(parts))
    return count


@pytest.mark.parametrize("space", [DISCRETE, SEVERAL], ids=["discrete", "multi"])
@pytest.mark.parametrize("cfg", [{}, {"random_timesteps": 100}], ids=["policy", "random"])
@pytest.mark.parametrize("rnn", [None, "gru"])
def test_training_keeps_to_action_masks(space: gymnasium.Space, cfg: dict[str, Any], rnn: str | None) -> None:
    env, seen = masked_game(space)
    agent = team(env, rnn=rnn, **cfg)
    before = weights(agent)
    SequentialTrainer(env, agent, cfg=quiet(16)).train()
    assert len(env.taken) == 16
    assert forbidden(env, seen) == 0
    unmasked, _ = masked_game(space)
    assert forbidden(unmasked, seen) == 0
    after = weights(agent)
    assert after.isfinite().all()
    assert not torch.equal(after, before)


@pytest.mark.parametrize("space", [DISCRETE, SEVERAL], ids=["discrete", "multi"])
@pytest.mark.parametrize("stochastic", [False, True])
def test_evaluation_keeps_to_action_masks(space: gymnasium.Space, stochastic: bool) -> None:
    env, seen = masked_game(space)
    SequentialTrainer(env, team(env), cfg=quiet(0, stochastic_evaluation=stochastic)).eval(episodes=8)
    assert len(env.taken) > 8
    assert forbidden(env, seen) == 0


def test_the_modes_of_masked_policies_are_the_best_that_is_allowed() -> None:
    env = Toy(("a",), lengths=(9, 9))
    agent = team(env)
    head = agent.models["a"]["policy"].net[-1]
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([1.0, 4.0, 2.0, 3.0]))
    states, _ = env.reset()
    masks = torch.tensor([[True, False, True, True], [True, False, True, False]])
    _, _, outputs = agent.act(states, 0, 1, {"action_masks": {"a": masks}})
    assert outputs["a"]["mean_actions"].tolist() == [[3], [2]]


@pytest.mark.parametrize("space", [DISCRETE, SEVERAL], ids=["discrete", "multi"])
def test_a_mask_that_allows_an_acting_agent_nothing_is_refused_by_agent_and_environment(space: gymnasium.Space) -> None:
    env = Toy(actions=space)
    agent = team(env)
    states, _ = env.reset()
    masks = {uid: torch.ones(3, sum(choices(space)), dtype=torch.bool) for uid in "ab"}
    masks["b"][2, -2:] = False  # one of two dimensions
    if space is DISCRETE:
        masks["b"][2] = False
    with pytest.raises(ValueError, match=r"nothing is allowed in environment 2 of agent 'b'"):
        agent.act(states, 0, 1, {"action_masks": masks})
    absent = {"b": torch.tensor([[True], [True], [False]])}
    _, log_prob, _ = agent.act(states, 0, 1, {"action_masks": masks, "active_masks": absent})
    assert log_prob["b"].isfinite().all()
    waiting = {"b": ~absent["b"]}
    agent.act(states, 0, 1, {"action_masks": masks, "active_masks": absent, "waiting_masks": waiting})


def test_masks_for_a_box_are_refused() -> None:
    env = Toy(actions=spaces.Box(-1.0, 1.0, (2,)))
    states, _ = env.reset()
    with pytest.raises(ValueError, match="expected a Discrete or MultiDiscrete action space"):
        team(env).act(states, 0, 1, {"action_masks": {"a": torch.ones(3, 2, dtype=torch.bool)}})


# ---- a loop of one's own ----------------------------------------------------------------------------------------------


def step(env: Toy, agent: Any, t: int, states: Any, **act: Any) -> Any:
    """One step of training without a trainer; returns the states that follow."""
    actions, _, _ = agent.act(states, t, 100, **act)
    following, *rest = env.step(actions)
    agent.record_transition(states, actions, rest[0], following, *rest[1:], t, 100)
    agent.post_interaction(t, 100)
    return following


def trained(agent: Any) -> Any:
    agent.init()
    agent.set_running_mode("train")
    return agent


@pytest.mark.parametrize("rnn", [None, "gru"])
def test_acting_without_infos_takes_the_masks_of_the_last_step(rnn: str | None) -> None:
    def train(passed: bool) -> tuple[Tensor, int]:
        torch.manual_seed(0)
        env, seen = masked_game(DISCRETE)
        agent = trained(team(env, rnn=rnn))
        states, infos = env.reset()
        for t in range(12):
            noted = {"infos": infos} if passed or t == 0 else {}
            actions, _, _ = agent.act(states, t, 100, **noted)
            following, rewards, terminated, truncated, infos = env.step(actions)
            agent.record_transition(states, actions, rewards, following, terminated, truncated, infos, t, 100)
            agent.post_interaction(t, 100)
            states = following
        return weights(agent), forbidden(env, seen)

    with_infos, without = train(True), train(False)
    assert with_infos[1] == without[1] == 0
    assert torch.equal(with_infos[0], without[0])


def test_an_evaluation_has_masks_of_its_own_and_training_gets_its_back() -> None:
    env, seen = masked_game(DISCRETE)
    agent = trained(team(env))
    states, infos = env.reset()
    states = step(env, agent, 0, states, infos=infos)
    agent.set_running_mode("eval")
    other = {uid: torch.randn(2, 3) for uid in "ab"}  # of another number of environments, without masks
    agent.act(other, 0, 1)
    agent.act(other, 0, 1, {"action_masks": {"a": torch.tensor([[True, False, False, False]] * 2)}})
    agent.set_running_mode("eval")
    agent.act(other, 0, 1)
    agent.set_running_mode("train")
    for t in range(1, 8):
        states = step(env, agent, t, states)
    assert forbidden(env, seen) == 0


def test_training_that_begins_again_knows_no_masks_of_before() -> None:
    env, _ = masked_game(DISCRETE)
    agent = trained(team(env))
    states, infos = env.reset()
    step(env, agent, 0, states, infos=infos)
    trained(agent)
    states, _ = env.reset()
    moves = {int(move) for _ in range(40) for move in agent.act(states, 0, 1)[0]["a"][0]}
    assert moves == {0, 1, 2, 3}


def test_transitions_may_be_recorded_without_acting_and_have_the_masks_of_the_step_before() -> None:
    env = Toy(("a",), lengths=(9, 9))
    agent = trained(team(env, rollouts=3))
    states, _ = env.reset()
    active = [torch.tensor([[True], [False]]), torch.tensor([[False], [True]])]
    actions = {"a": torch.tensor([[1], [2]])}
    for t in range(3):
        following, *rest = env.step(actions)
        infos = {"active_masks": {"a": active[t % 2]}}
        agent.record_transition(states, actions, *rest[:1], following, *rest[1:3], infos, t, 100)
        states = following
    stored = agent.memories["a"].get_tensor_by_name("active").squeeze(-1)
    # row 0: nothing was known; rows 1 and 2: what came with the step before
    assert stored.tolist() == [[True, True], [True, False], [False, True]]
    assert agent._storage["a",].active_next.flatten().tolist() == [True, False]


# ---- recurrent states --------------------------------------------------------------------------------------------------


class Count(CategoricalMixin, Model):
    """Chooses the number of steps that it remembers: h' = h + 1, and action h."""

    def __init__(self, length: int = 2) -> None:
        Model.__init__(self, box(3), spaces.Discrete(20))
        CategoricalMixin.__init__(self)
        self.sharpness = nn.Parameter(torch.tensor(1000.0))
        self.length = length

    def get_specification(self) -> dict[str, Any]:
        return {"rnn": {"sizes": [(1, 1)], "sequence_length": self.length}}

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        (state,) = inputs["rnn"]
        return -((state[0] - torch.arange(20.0)) ** 2) * self.sharpness, {"rnn": [state + 1.0]}


def counting(env: Toy, shared: bool = False, **cfg: Any) -> Any:
    """A team that counts and does not learn, though it goes through the motions."""
    values = build_models(env, "ippo", shared=False, hidden=(4,))
    common = {"policy": Count(), "value": values["a"]["value"]}
    models = {
        uid: common if shared else {"policy": Count(), "value": values[uid]["value"]} for uid in env.possible_agents
    }
    schedule = {"learning_rate": lambda timestep, timesteps: 0.0}
    return team(env, models=models, **{**schedule, **cfg})


def game_of_turns(lengths: tuple[int, ...] = (5, 7, 4)) -> Toy:
    """a acts at even ages and waits at odd ones; b is absent at ages 1 and 2."""

    def masks(age: Tensor) -> dict[str, Any]:
        even = (age % 2 == 0).unsqueeze(1)
        return {
            "active_masks": {"a": even, "b": ((age < 1) | (age > 2)).unsqueeze(1)},
            "waiting_masks": {"a": ~even},
        }

    return Toy(lengths=lengths, actions=spaces.Discrete(20), masks=masks)


def check_counts(env: Toy, steps: int) -> None:
    """Every acting agent has counted its own actions since its copy's episode began."""
    age = torch.zeros(env.num_envs, dtype=torch.int64)
    assert len(env.taken) >= steps
    for taken in env.taken:
        acts = torch.stack([age % 2 == 0, (age < 1) | (age > 2)])
        expected = torch.stack([age // 2, torch.where(age == 0, 0, age - 2)])
        got = torch.stack([taken["a"][:, 0], taken["b"][:, 0]])
        assert torch.equal(got[acts], expected[acts]), age
        age = (age + 1) % env.lengths


@pytest.mark.parametrize("shared", [False, True])
def test_training_clears_states_where_episodes_end_and_leaves_them_where_an_agent_does_not_act(shared: bool) -> None:
    env = game_of_turns()
    agent = counting(env, shared, random_timesteps=0)
    SequentialTrainer(env, agent, cfg=quiet(30)).train()
    check_counts(env, 30)


@pytest.mark.parametrize("shared", [False, True])
def test_evaluation_clears_states_where_episodes_end(shared: bool) -> None:
    env = game_of_turns()
    trainer = SequentialTrainer(env, counting(env, shared), cfg=quiet(0))
    trainer.eval(episodes=9)
    check_counts(env, 14)
    trainer.eval(episodes=9)  # nor does one evaluation go on with what the other remembers
    check_counts(env, 14)


@pytest.mark.parametrize("training", [True, False])
def test_what_is_said_to_be_done_for_an_absent_agent_clears_no_state(training: bool) -> None:
    """The contract has absent agents terminated, unless they arrive in that step."""

    class Reporting(Toy):
        def step(self, actions: Any) -> Any:
            absent = ((self.age == 1) | (self.age == 2)).unsqueeze(1)
            states, rewards, terminated, truncated, infos = super().step(actions)
            return states, rewards, {**terminated, "b": terminated["b"] | absent}, truncated, infos

    game = game_of_turns()
    env = Reporting(lengths=(5, 7, 4), actions=spaces.Discrete(20), masks=game.masks)
    agent = counting(env)
    trainer = SequentialTrainer(env, agent, cfg=quiet(30))
    trainer.train() if training else trainer.eval(episodes=9)
    check_counts(env, 14)


def test_states_during_training_survive_an_evaluation() -> None:
    env, eval_env = game_of_turns(), game_of_turns((3, 6))
    agent = counting(env)
    cfg = quiet(30, evaluation_interval=7, evaluation_episodes=4)
    SequentialTrainer(env, agent, cfg=cfg, eval_env=eval_env).train()
    check_counts(env, 30)
    check_counts(eval_env, 6)


def test_training_that_begins_again_begins_with_cleared_states() -> None:
    env = game_of_turns()
    agent = counting(env)
    trainer = SequentialTrainer(env, agent, cfg=quiet(3))
    trainer.train()
    trainer.train()
    check_counts(env, 3)
    agent.set_running_mode("eval")
    trainer.train()
    check_counts(env, 3)


def test_states_do_not_move_where_recorded_actions_came_from_elsewhere() -> None:
    env = Toy(("a",), lengths=(9, 9), actions=spaces.Discrete(20))
    agent = trained(counting(env))
    states, infos = env.reset()
    chosen = []
    for t in range(4):
        actions, _, _ = agent.act(states, t, 100, infos)
        chosen.append(actions["a"].flatten().tolist())
        others = {"a": torch.tensor([[7], [t]])}  # of which the second is what was chosen
        following, *rest = env.step(others)
        agent.record_transition(states, others, rest[0], following, *rest[1:], t, 100)
        states = following
    assert chosen == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert agent.memories["a"].get_tensor_by_name("actions").squeeze(-1).tolist() == [[7, 0], [7, 1], [7, 2], [7, 3]]


def test_own_loops_tell_an_acting_agent_of_new_episodes_in_infos() -> None:
    env = Toy(("a",), lengths=(9, 9), actions=spaces.Discrete(20))
    agent = counting(env)
    states, _ = env.reset()
    starts = {"a": torch.tensor([[True], [False]])}
    chosen = [
        agent.act(states, 0, 1, infos)[0]["a"].flatten().tolist() for infos in (None, {}, {"episode_starts": starts})
    ]
    assert chosen == [[0, 0], [1, 1], [0, 2]]


@pytest.mark.parametrize("kind", [IPPO, MAPPO])
@pytest.mark.parametrize("rnn", [None, "gru", "lstm"])
@pytest.mark.parametrize("stochastic", [False, True])
def test_training_is_bitwise_the_same_with_and_without_evaluations(
    kind: type[MultiAgent], rnn: str | None, stochastic: bool
) -> None:
    def masks(age: Tensor) -> dict[str, Any]:
        even = (age % 2 == 0).unsqueeze(1)
        return {
            "active_masks": {"a": even, "b": (age != 2).unsqueeze(1)},
            "waiting_masks": {"a": ~even},
            "action_masks": {"b": some_allowed(DISCRETE, 1)(age)},
        }

    def train(interval: int) -> tuple[Tensor, dict[str, Any], Tensor]:
        torch.manual_seed(0)
        env, eval_env = Toy(masks=masks), Toy(masks=masks, lengths=(3, 5), seed=7)
        agent = team(
            env,
            kind,
            rnn=rnn,
            state_preprocessor=RunningStandardScaler,
            value_preprocessor=ValueNorm,
            learning_rate=1e-2,
        )
        cfg = quiet(19, evaluation_interval=interval, evaluation_episodes=3, stochastic_evaluation=stochastic)
        SequentialTrainer(env, agent, cfg=cfg, eval_env=eval_env).train()
        states = {name: module.state_dict() for name, module in agent.checkpoint_modules().items()}
        return weights(agent), states, torch.rand(3)

    without, often = train(0), train(3)
    torch.testing.assert_close(often, without, rtol=0, atol=0)
