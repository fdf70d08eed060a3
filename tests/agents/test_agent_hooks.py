"""What agents check, count and refuse, hook by hook; the numbers of an update are tested elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agent_tensors import AgentTensors
from coterie.agents import IPPO, MAPPO, MultiAgent
from coterie.memories import RandomMemory
from coterie.models import CategoricalPolicy, DeterministicMixin, GaussianPolicy, Model, TanhGaussianPolicy, Value

ALGORITHMS: list[type[MultiAgent]] = [MAPPO, IPPO]
NAMES = ["a", "b"]
ENVS, ROLLOUTS = 3, 4
OBSERVATIONS, STATE = 4, 6
OFF: Any = {"write_interval": 0, "checkpoint_interval": 0}
CHOICE: gymnasium.Space = spaces.Discrete(3)
BOX: gymnasium.Space = spaces.Box(-1.0, 2.0, (2,))
FREE: gymnasium.Space = spaces.Box(-np.inf, np.inf, (2,))


def space(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,))


def policy(action: gymnasium.Space = CHOICE, observations: int = OBSERVATIONS) -> Model:
    kinds: dict[type, type[Model]] = {spaces.Discrete: CategoricalPolicy, spaces.Box: GaussianPolicy}
    return kinds[type(action)](space(observations), action, hidden=(8,))


def build_models(
    algorithm: type[MultiAgent], action: gymnasium.Space = CHOICE, shared: bool = False, value: bool = True
) -> dict[str, dict[str, Model]]:
    def roles() -> dict[str, Model]:
        own = {"policy": policy(action)}
        size = STATE if algorithm is MAPPO else OBSERVATIONS
        return {**own, "value": Value(space(size), action, hidden=(8,))} if value else own

    common = roles()
    return {uid: common if shared else roles() for uid in NAMES}


def build_memories(rows: int = ROLLOUTS, envs: int = ENVS) -> dict[str, RandomMemory]:
    return {uid: RandomMemory(rows, envs) for uid in NAMES}


def build(
    algorithm: type[MultiAgent] = MAPPO, action: gymnasium.Space = CHOICE, shared: bool = False, **cfg: Any
) -> MultiAgent:
    settings = {"rollouts": ROLLOUTS, "learning_epochs": 2, "experiment": OFF, **cfg}
    agent = algorithm(NAMES, build_models(algorithm, action, shared), build_memories(), cfg=settings)
    agent.init({"timesteps": 100})
    agent.set_running_mode("train")
    return agent


def by_agent(width: int, envs: int = ENVS) -> dict[str, Tensor]:
    return {uid: torch.randn(envs, width) for uid in NAMES}


def flags(*values: int) -> dict[str, Tensor]:
    return dict.fromkeys(NAMES, torch.tensor(values or (0,) * ENVS, dtype=torch.bool).view(-1, 1))


def infos() -> dict[str, Any]:
    return {"shared_states": torch.randn(ENVS, STATE), "shared_next_states": torch.randn(ENVS, STATE)}


def record(agent: MultiAgent, t: int = 0, **changes: Any) -> dict[str, Tensor]:
    """Act once and record it, with some of the arguments changed; returns the actions."""
    states = by_agent(OBSERVATIONS)
    actions, _, _ = agent.act(states, t, 100)
    arguments: dict[str, Any] = {
        "states": states,
        "actions": actions,
        "rewards": by_agent(1),
        "next_states": by_agent(OBSERVATIONS),
        "terminated": flags(),
        "truncated": flags(),
        "infos": infos(),
        **changes,
    }
    agent.record_transition(*arguments.values(), t, 100)
    return dict(actions)


def play(agent: MultiAgent, steps: int, start: int = 0) -> None:
    for t in range(start, start + steps):
        record(agent, t)
        agent.post_interaction(t, 100)


def weights(agent: MultiAgent) -> Tensor:
    return torch.cat([learner.storage.data.flatten().clone() for learner in agent.learners])


# ---- construction ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_names_must_be_distinct(names: list[str]) -> None:
    with pytest.raises(ValueError, match="possible_agents: expected distinct names"):
        MAPPO(names, {})


@pytest.mark.parametrize(
    "argument", ["models", "memories", "observation_spaces", "action_spaces", "shared_observation_spaces"]
)
@pytest.mark.parametrize(
    ("agents", "message"),
    [
        (["a"], r"missing \['b'\], unknown \[\]"),
        (["a", "b", "c"], r"missing \[\], unknown \['c'\]"),
        (["a", "B"], "'B'"),
    ],
)
def test_dicts_must_have_exactly_the_agents(argument: str, agents: list[str], message: str) -> None:
    values: dict[str, Any] = {
        "models": build_models(MAPPO)["a"],
        "memories": RandomMemory(16, ENVS),
        "observation_spaces": space(OBSERVATIONS),
        "action_spaces": CHOICE,
        "shared_observation_spaces": space(STATE),
    }
    arguments: dict[str, Any] = {"models": build_models(MAPPO), argument: dict.fromkeys(agents, values[argument])}
    with pytest.raises(ValueError, match=f"{argument}: expected exactly the agents .*{message}"):
        MAPPO(NAMES, **arguments)
    arguments[argument] = [values[argument]] * 2
    with pytest.raises(TypeError, match=f"{argument}: expected a dict by agent, got list"):
        MAPPO(NAMES, **arguments)


def test_models_must_be_models_with_a_policy() -> None:
    models: Any = build_models(MAPPO)
    with pytest.raises(ValueError, match=r"models\['b'\]: expected a 'policy', got \['value'\]"):
        MAPPO(NAMES, {**models, "b": {"value": models["b"]["value"]}})
    with pytest.raises(TypeError, match=r"models\['b'\]\['policy'\]: expected a coterie Model, got Linear"):
        MAPPO(NAMES, {**models, "b": {"policy": nn.Linear(4, 3)}})
    with pytest.raises(TypeError, match=r"models\['b'\]\['policy'\]: expected a model with a distribution.*got Value"):
        MAPPO(NAMES, {**models, "b": {"policy": Value(space(4), CHOICE)}})
    with pytest.raises(ValueError, match=r"value model for every agent that learns or for none, only \['a'\]"):
        MAPPO(NAMES, {**models, "b": {"policy": models["b"]["policy"]}})


@pytest.mark.parametrize(
    ("argument", "wrong", "message"),
    [
        ("observation_spaces", space(5), "policy of 'b' was built for 4 observations, .*has 5"),
        ("action_spaces", spaces.Discrete(4), "policy of 'b' was built for 3 actions, .*has 4"),
    ],
)
def test_policies_must_fit_the_spaces(argument: str, wrong: gymnasium.Space, message: str) -> None:
    models = build_models(MAPPO)
    right = {"observation_spaces": space(4), "action_spaces": CHOICE}[argument]
    with pytest.raises(ValueError, match=message):
        MAPPO(NAMES, models, **{argument: {"a": right, "b": wrong}})  # type: ignore[arg-type]


def test_a_critic_of_the_wrong_size_is_told_what_it_should_see() -> None:
    with pytest.raises(ValueError, match=r"value model of 'a' .* size 6, IPPO feeds it 4: .*own observation"):
        IPPO(NAMES, build_models(MAPPO))
    shared = dict.fromkeys(NAMES, space(STATE))
    with pytest.raises(ValueError, match=r"value model of 'a' .* size 4, MAPPO feeds it 6: .*shared state"):
        MAPPO(NAMES, build_models(IPPO), shared_observation_spaces=shared)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_memories_must_hold_one_rollout(algorithm: type[MultiAgent]) -> None:
    models = build_models(algorithm)
    with pytest.raises(ValueError, match=r"memories\['a'\]: expected memory_size 8 as cfg\['rollouts'\], got 4"):
        algorithm(NAMES, models, build_memories(), cfg={"rollouts": 8})
    memories = {"a": RandomMemory(4, 3), "b": RandomMemory(4, 5)}
    with pytest.raises(ValueError, match=r"expected one num_envs for all agents, got \{'a': 3, 'b': 5\}"):
        algorithm(NAMES, models, memories, cfg={"rollouts": 4})
    with pytest.raises(ValueError, match=r"mini_batches: 13 for 'b', but a rollout has 12 samples"):
        algorithm(NAMES, models, build_memories(), cfg={"rollouts": 4, "mini_batches": {"a": 12, "b": 13}})
    with pytest.raises(TypeError, match=r"memories\['a'\]: expected a coterie Memory, got dict"):
        algorithm(NAMES, models, {"a": {}, "b": {}}, cfg={"rollouts": 4})  # type: ignore[dict-item]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("cfg", [None, {}])
@pytest.mark.parametrize("shared", [False, True])
def test_the_defaults_construct_and_learn(algorithm: type[MultiAgent], cfg: Any, shared: bool) -> None:
    agent = algorithm(NAMES, build_models(algorithm, shared=shared), build_memories(rows=16), cfg=cfg)
    agent.init()
    before = weights(agent)
    play(agent, 15)
    assert torch.equal(weights(agent), before)
    play(agent, 1, start=15)
    after = weights(agent)
    assert not torch.equal(after, before)
    assert bool(torch.isfinite(after).all())


# ---- act ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("action", [CHOICE, BOX, FREE])
def test_acting(algorithm: type[MultiAgent], action: gymnasium.Space) -> None:
    agent = algorithm(NAMES, build_models(algorithm, action, value=False))
    states = by_agent(OBSERVATIONS)
    actions, log_prob, outputs = agent.act(states, 0, 1)
    width = 1 if action is CHOICE else 2
    assert list(actions) == list(log_prob) == list(outputs) == NAMES
    for uid in NAMES:
        assert actions[uid].shape == outputs[uid]["mean_actions"].shape == (ENVS, width)
        assert log_prob[uid].shape == (ENVS, 1)
        assert not actions[uid].requires_grad
        own = agent.models[uid]["policy"]
        _, _, own_outputs = own.act({"states": states[uid]}, "policy")
        torch.testing.assert_close(outputs[uid]["mean_actions"], own_outputs["mean_actions"].detach())
        if action is not BOX:  # clipped actions are not what was drawn
            taken = {"states": states[uid], "taken_actions": actions[uid]}
            torch.testing.assert_close(log_prob[uid], own.act(taken, "policy")[1].detach())  # type: ignore[union-attr]


@pytest.mark.parametrize("wrap", [dict, lambda d: AgentTensors.single(NAMES, torch.stack(list(d.values()), dim=1))])
def test_states_may_be_a_dict_or_stacked(wrap: Any) -> None:
    agent = IPPO(NAMES, build_models(IPPO))
    states = {uid: torch.full((ENVS, OBSERVATIONS), float(i)) for i, uid in enumerate(NAMES)}
    torch.manual_seed(1)
    expected = dict(agent.act(states, 0, 1)[0])
    torch.manual_seed(1)
    torch.testing.assert_close(dict(agent.act(wrap(states), 0, 1)[0]), expected)


def test_the_order_of_a_dict_does_not_matter() -> None:
    agent = IPPO(NAMES, build_models(IPPO))
    states = by_agent(OBSERVATIONS)
    torch.manual_seed(1)
    expected = dict(agent.act(states, 0, 1)[1])
    torch.manual_seed(1)
    torch.testing.assert_close(dict(agent.act(dict(reversed(states.items())), 0, 1)[1]), expected)


def test_a_missing_agent_is_named() -> None:
    agent = build()
    with pytest.raises(KeyError, match=r"states: no entry for agent 'b'; .*got \['a'\]"):
        agent.act({"a": torch.zeros(ENVS, OBSERVATIONS)}, 0, 1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(ENVS, 5), (ENVS, 5)], r"states\['a'\]: expected a tensor of shape \[E, 4\], got \[3, 5\]"),
        ([(4,), (4,)], r"states\['a'\]: expected a tensor of shape \[E, 4\], got \[4\]"),
        ([(ENVS, 2, 2), (ENVS, 2, 2)], r"expected a tensor of shape \[E, 4\], got \[3, 2, 2\]"),
        ([(ENVS, 4), (ENVS, 5)], r"states\['b'\]: expected a tensor of shape \[E, 4\], got \[3, 5\]"),
        ([(ENVS, 4), (ENVS + 1, 4)], r"states: expected tensors \[E, 4\], of the same environments .*'b': '\[4, 4\]"),
    ],
)
def test_a_wrong_shape_is_shown(shapes: Sequence[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build().act({uid: torch.zeros(shape) for uid, shape in zip(NAMES, shapes, strict=True)}, 0, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shared", [False, True])
def test_an_observation_that_is_no_number_is_found(value: float, shared: bool) -> None:
    states = by_agent(OBSERVATIONS)
    states["b"][2, 3] = value
    with pytest.raises(ValueError, match=rf"states\['b'\]: .*got {value} in element 3 of environment 2"):
        build(shared=shared).act(states, 0, 1)


def test_large_observations_are_numbers() -> None:
    states = {uid: torch.full((ENVS, OBSERVATIONS), 3e38) for uid in NAMES}  # whose sum is infinite
    build().act(states, 0, 1)


@pytest.mark.parametrize("kind", [CategoricalPolicy, GaussianPolicy, TanhGaussianPolicy])
def test_random_timesteps(kind: type[Model]) -> None:
    action = CHOICE if kind is CategoricalPolicy else BOX
    policies = {uid: kind(space(OBSERVATIONS), action, hidden=(8,)) for uid in NAMES}
    for own in policies.values():  # policies that all but always do the same
        own.init_parameters("zeros_")
        with torch.no_grad():
            if kind is CategoricalPolicy:
                own.get_parameter("net.2.bias")[0] = 50.0
            else:
                own.get_parameter("log_std_parameter").fill_(-5.0)
    agent = IPPO(NAMES, {uid: {"policy": own} for uid, own in policies.items()}, cfg={"random_timesteps": 3})
    agent.set_running_mode("train")
    states = by_agent(OBSERVATIONS, envs=3000)
    drawn, log_prob, _ = agent.act(states, 2, 10)
    chosen, _, _ = agent.act(states, 3, 10)
    for uid in NAMES:
        assert bool(torch.isfinite(log_prob[uid]).all())
        if kind is CategoricalPolicy:
            frequencies = torch.bincount(drawn[uid].flatten()) / 3000
            torch.testing.assert_close(frequencies, torch.full((3,), 1 / 3), atol=0.05, rtol=0)
            assert int(chosen[uid].sum()) == 0
        else:
            # uniform over [-1, 2]: mean 0.5, deviation 3 / sqrt 12
            assert float(drawn[uid].mean()) == pytest.approx(0.5, abs=0.06)
            assert float(drawn[uid].std()) == pytest.approx(3 / 12**0.5, abs=0.05)
            assert float(chosen[uid].std()) < 0.1


def test_random_actions_of_an_unbounded_space_are_refused() -> None:
    agent = IPPO(NAMES, build_models(IPPO, FREE), cfg={"random_timesteps": 3})
    agent.act(by_agent(OBSERVATIONS), 0, 10)  # an evaluation is not random
    agent.set_running_mode("train")
    with pytest.raises(ValueError, match="set random_timesteps to 0"):
        agent.act(by_agent(OBSERVATIONS), 0, 10)


# ---- record_transition ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["states", "actions", "rewards", "terminated", "truncated"])
def test_what_is_recorded_needs_every_agent(what: str) -> None:
    agent = build()
    whole: dict[str, Any] = {
        "states": by_agent(OBSERVATIONS),
        "actions": dict.fromkeys(NAMES, torch.zeros(ENVS, 1, dtype=torch.int64)),
        "rewards": by_agent(1),
        "terminated": flags(),
        "truncated": flags(),
    }
    with pytest.raises(KeyError, match=rf"{what}: no entry for agent 'b'"):
        record(agent, **{what: {"a": whole[what]["a"]}})


@pytest.mark.parametrize("what", ["states", "actions", "rewards", "terminated", "truncated"])
def test_what_is_recorded_needs_its_width(what: str) -> None:
    wrong = dict.fromkeys(NAMES, torch.zeros(ENVS, 7, dtype=torch.bool if "ted" in what else torch.float32))
    with pytest.raises(ValueError, match=rf"{what}\['a'\]: expected a tensor of shape \[3, \d\], got \[3, 7\]"):
        record(build(), **{what: wrong})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_found(value: float) -> None:
    rewards = by_agent(1)
    rewards["b"][1] = value
    with pytest.raises(ValueError, match=rf"rewards\['b'\]: .*got {value} in element 0 of environment 1"):
        record(build(), rewards=rewards)


def test_another_number_of_environments_is_shown() -> None:
    agent = build(IPPO)
    arguments = [by_agent(OBSERVATIONS, 5), dict.fromkeys(NAMES, torch.zeros(5, 1, dtype=torch.int64)), by_agent(1, 5)]
    ends = dict.fromkeys(NAMES, torch.zeros(5, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"of 3 environments, .* \(num_envs\), got steps of 5: .*num_envs=5"):
        agent.record_transition(*arguments, by_agent(OBSERVATIONS, 5), ends, ends, {}, 0, 1)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, KeyError, r"infos\['shared_states'\]: expected the shared state, a tensor \[E, F\]; got NoneType"),
        ({"shared_states": torch.zeros(ENVS, 5)}, ValueError, r"shape \[3, 6\], got \[3, 5\]"),
        ({"shared_states": {"a": torch.zeros(ENVS, 6)}}, KeyError, "got dict"),
    ],
)
def test_a_centralised_critic_needs_the_shared_state(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        record(build(), infos=given)


def test_a_critic_of_observations_needs_no_shared_state() -> None:
    agent = build(IPPO)
    for t in range(ROLLOUTS):
        record(agent, t, infos={})
        agent.post_interaction(t, 100)


@pytest.mark.parametrize("action", [CHOICE, BOX])
def test_memories_show_what_was_recorded(action: gymnasium.Space) -> None:
    agent = build(action=action)
    assert agent.memories is not None
    states, rewards, ends, given = by_agent(OBSERVATIONS), by_agent(1), flags(0, 1, 0), infos()
    actions, log_prob, _ = agent.act(states, 0, 100)
    agent.record_transition(states, actions, rewards, by_agent(OBSERVATIONS), ends, flags(1, 0, 0), given, 0, 100)
    for uid in NAMES:
        memory = agent.memories[uid]
        assert len(memory) == ENVS
        assert torch.equal(memory.get_tensor_by_name("states")[0], states[uid])
        assert torch.equal(memory.get_tensor_by_name("rewards")[0], rewards[uid])
        assert torch.equal(memory.get_tensor_by_name("log_prob")[0], log_prob[uid])
        assert torch.equal(memory.get_tensor_by_name("terminated")[0], ends[uid])
        assert torch.equal(memory.get_tensor_by_name("truncated")[0].flatten(), torch.tensor([True, False, False]))
        assert torch.equal(memory.get_tensor_by_name("shared_states")[0], given["shared_states"])
        stored = memory.get_tensor_by_name("actions")[0]
        assert torch.equal(stored.clamp(-1, 2), actions[uid]), "the drawn actions, before any clipping"
    both = [agent.memories[uid].get_tensor_by_name("shared_states").data_ptr() for uid in NAMES]
    assert both[0] == both[1], "the shared state is stored once"


def test_actions_of_another_origin_are_evaluated() -> None:
    agent = build(IPPO, action=FREE)
    assert agent.memories is not None
    states, mine = by_agent(OBSERVATIONS), by_agent(2)
    agent.act(states, 0, 100)
    record(agent, states=states, actions=mine)
    for uid in NAMES:
        taken = {"states": states[uid], "taken_actions": mine[uid]}
        expected = agent.models[uid]["policy"].act(taken, "policy")[1]
        assert expected is not None
        torch.testing.assert_close(agent.memories[uid].get_tensor_by_name("log_prob")[0], expected.detach())
        assert torch.equal(agent.memories[uid].get_tensor_by_name("actions")[0], mine[uid])


@pytest.mark.parametrize("stacked", [False, True])
def test_the_environments_tensors_are_left_alone(stacked: bool) -> None:
    def shaper(rewards: Tensor, timestep: int, timesteps: int) -> Tensor:
        return rewards.mul_(100.0)

    agent = build(rewards_shaper=shaper, time_limit_bootstrap=True)
    assert agent.memories is not None
    common = torch.ones(ENVS, 1)  # one tensor for all agents, as in cooperative tasks
    rewards: Any = dict.fromkeys(NAMES, common)
    if stacked:  # the very tensor that the environment holds
        common = torch.ones(ENVS, 2, 1)
        rewards = AgentTensors.single(NAMES, common)
    ends = flags(1, 0, 1)
    for t in range(ROLLOUTS):
        given = {**infos(), "final_states": by_agent(OBSERVATIONS), "final_shared_states": torch.randn(ENVS, STATE)}
        record(agent, t, rewards=rewards, truncated=ends, infos=given)
        agent.post_interaction(t, 100)
    assert torch.equal(common, torch.ones_like(common))
    assert ends["a"].flatten().tolist() == [True, False, True]
    for uid in NAMES:
        assert torch.equal(agent.memories[uid].get_tensor_by_name("rewards"), torch.full((ROLLOUTS, ENVS, 1), 100.0))


def test_rewards_are_shaped_for_each_agent() -> None:
    calls = []

    def shaper(rewards: Tensor, timestep: int, timesteps: int) -> Tensor:
        calls.append((timestep, timesteps))
        return rewards * 2

    agent = build(rewards_shaper={"a": shaper, "b": None})
    assert agent.memories is not None
    rewards = by_agent(1)
    record(agent, 3, rewards=rewards)
    assert calls == [(3, 100)]
    assert torch.equal(agent.memories["a"].get_tensor_by_name("rewards")[0], rewards["a"] * 2)
    assert torch.equal(agent.memories["b"].get_tensor_by_name("rewards")[0], rewards["b"])


# ---- episodes -------------------------------------------------------------------------------------------------------


def tracked(agent: MultiAgent, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    monkeypatch.setattr(type(agent.records.tracker), "enabled", True)
    monkeypatch.setattr(
        agent.records.tracker, "track", lambda tag, value: found.setdefault(tag, []).append(float(value))
    )
    return found


def step(agent: MultiAgent, a: list[float], b: list[float], ended: list[int], how: str = "terminated") -> None:
    rewards = {"a": torch.tensor(a).view(-1, 1), "b": torch.tensor(b).view(-1, 1)}
    record(agent, rewards=rewards, **{how: flags(*ended)})
    agent.records.track_episodes()


@pytest.mark.parametrize("how", ["terminated", "truncated"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_episodes_are_counted_by_agent_and_team(
    algorithm: type[MultiAgent], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = build(algorithm)
    found = tracked(agent, monkeypatch)
    step(agent, [1, 2, 3], [10, 20, 30], [0, 0, 0], how)
    assert found == {}
    assert agent.recent_return is None
    step(agent, [1, 2, 3], [10, 20, 30], [1, 0, 1], how)
    # copy 0: a 2, b 20, together 22; copy 2: a 6, b 60, together 66
    assert found["Reward / Total reward (a)"] == [4.0]
    assert found["Reward / Total reward (b)"] == [40.0]
    assert found["Reward / Total reward (mean)"] == [44.0]
    assert found["Reward / Total reward (min)"] == [22.0]
    assert found["Reward / Total reward (max)"] == [66.0]
    assert found["Episode / Total timesteps (mean)"] == [2.0]
    assert agent.recent_return == 44.0
    found.clear()
    step(agent, [5, 2, 3], [50, 20, 30], [1, 1, 0], how)
    # copy 0 began anew: 5 and 50; copy 1 has three steps: 6 and 60
    assert found["Reward / Total reward (a)"] == [5.5]
    assert found["Reward / Total reward (b)"] == [55.0]
    assert found["Episode / Total timesteps (min)"] == [1.0]
    assert found["Episode / Total timesteps (max)"] == [3.0]


def test_an_episode_is_over_when_it_is_for_every_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build(IPPO)
    found = tracked(agent, monkeypatch)
    ends = {"a": torch.tensor([[True], [False], [False]]), "b": torch.zeros(ENVS, 1, dtype=torch.bool)}
    record(agent, rewards=dict.fromkeys(NAMES, torch.ones(ENVS, 1)), terminated=ends)
    agent.records.track_episodes()
    assert found == {}, "b goes on after a died"
    cut = {"a": torch.zeros(ENVS, 1, dtype=torch.bool), "b": torch.tensor([[True], [False], [False]])}
    rewards = {"a": torch.zeros(ENVS, 1), "b": torch.ones(ENVS, 1)}
    record(agent, rewards=rewards, terminated=ends, truncated=cut)
    agent.records.track_episodes()
    assert found["Reward / Total reward (a)"] == [1.0]
    assert found["Reward / Total reward (b)"] == [2.0]


def test_shaping_does_not_reach_the_reported_return(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = build(rewards_shaper=lambda rewards, timestep, timesteps: rewards * 0.01)
    found = tracked(agent, monkeypatch)
    step(agent, [1, 1, 1], [2, 2, 2], [1, 1, 1])
    assert found["Reward / Total reward (mean)"] == [3.0]


# ---- updates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_updates_take_place_after_each_rollout(algorithm: type[MultiAgent]) -> None:
    agent = build(algorithm)
    for t in range(3 * ROLLOUTS):
        before = weights(agent)
        play(agent, 1, start=t)
        assert torch.equal(weights(agent), before) != ((t + 1) % ROLLOUTS == 0), t


def test_learning_starts_when_told() -> None:
    agent = build(learning_starts=6)
    before = weights(agent)
    play(agent, 4)  # due at step 3
    assert torch.equal(weights(agent), before)
    play(agent, 4, start=4)  # due at step 7
    assert not torch.equal(weights(agent), before)


def test_agents_may_start_to_learn_at_different_times() -> None:
    agent = build(learning_starts={"a": 6, "b": 0})
    a, b = (agent.models[uid]["policy"].get_parameter("net.0.weight").clone() for uid in NAMES)
    play(agent, 4)
    assert torch.equal(agent.models["a"]["policy"].get_parameter("net.0.weight"), a)
    assert not torch.equal(agent.models["b"]["policy"].get_parameter("net.0.weight"), b)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", ["states", "rewards"])
def test_what_is_no_number_never_reaches_the_weights(algorithm: type[MultiAgent], name: str) -> None:
    agent = build(algorithm)
    assert agent.memories is not None
    for t in range(ROLLOUTS):
        record(agent, t)
    agent.memories["b"].get_tensor_by_name(name)[1, 2, 0] = float("nan")
    before = weights(agent)
    with pytest.raises(
        ValueError,
        match=rf"the rollout's {name}\['b'\]: expected finite numbers, got nan in element 0 of environment 2, step 1",
    ):
        agent.post_interaction(ROLLOUTS - 1, 100)
    assert torch.equal(weights(agent), before)


def test_models_are_in_train_mode_during_updates_only() -> None:
    class Watched(Value):
        modes: list[tuple[bool, bool]]

        def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
            if hasattr(self, "modes"):
                self.modes.append((self.training, torch.is_grad_enabled()))
            return super().compute(inputs, role)

    models = build_models(IPPO, shared=True)
    critic = models["a"]["value"] = models["b"]["value"] = Watched(space(OBSERVATIONS), CHOICE, hidden=(8,))
    agent = IPPO(NAMES, models, build_memories(), cfg={"rollouts": ROLLOUTS, "experiment": OFF})
    agent.init()
    agent.set_running_mode("train")
    critic.modes = []
    play(agent, ROLLOUTS)
    # targets are taken in eval mode and without gradients, losses in train mode and with them
    assert set(critic.modes) == {(False, False), (True, True)}
    assert not critic.training


def test_running_modes() -> None:
    agent = build()
    agent.set_running_mode("eval")
    assert not agent.training
    agent.set_running_mode("train")
    assert agent.training
    with pytest.raises(ValueError, match="'test'"):
        agent.set_running_mode("test")
    agent.set_mode("train")
    assert agent.models["b"]["value"].training


# ---- agents that only act -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("frozen", [False, True])
def test_without_memories_an_agent_acts_and_counts_but_does_not_learn(
    algorithm: type[MultiAgent], frozen: bool
) -> None:
    models = build_models(algorithm, value=False)
    for roles in models.values():
        roles["policy"].freeze_parameters(frozen)
    agent = algorithm(NAMES, models, None, cfg={"rollouts": 2, "experiment": OFF})
    agent.init({"timesteps": 10})
    before = weights(agent)
    play(agent, 5)
    record(agent, terminated=flags(1, 1, 1))
    assert agent.recent_return is not None
    assert torch.equal(weights(agent), before)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_needs_critics(algorithm: type[MultiAgent]) -> None:
    models = build_models(algorithm, value=False)
    with pytest.raises(ValueError, match=r"models\['a'\] has no 'value': .*memories=None to act only"):
        algorithm(NAMES, models, build_memories(), cfg={"rollouts": ROLLOUTS})


def test_training_needs_something_to_train() -> None:
    models = build_models(IPPO)
    for model in models["b"].values():
        model.freeze_parameters()
    with pytest.raises(ValueError, match="every parameter is frozen"):
        IPPO(NAMES, models, build_memories(), cfg={"rollouts": ROLLOUTS})


class FlatValue(DeterministicMixin, Model):
    """A critic that drops its last dimension, a common slip."""

    def __init__(self) -> None:
        Model.__init__(self, space(OBSERVATIONS), CHOICE)
        DeterministicMixin.__init__(self)
        self.net = nn.Linear(OBSERVATIONS, 1)

    def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
        return self.net(inputs["states"]).squeeze(-1), {}


@pytest.mark.parametrize("shared", [False, True])
def test_a_value_without_its_last_dimension_is_refused(shared: bool) -> None:
    """It would broadcast against the returns into a loss over all pairs of samples."""
    common = FlatValue()
    models = {uid: {"policy": policy(), "value": common if shared else FlatValue()} for uid in NAMES}
    agent = IPPO(NAMES, models, build_memories(), cfg={"rollouts": ROLLOUTS, "experiment": OFF})
    agent.init({"timesteps": 10})
    before = weights(agent)
    with pytest.raises(ValueError, match=r"FlatValue.compute returned a tensor of shape"):
        play(agent, ROLLOUTS)
    assert torch.equal(weights(agent), before)


def test_an_environment_that_hides_its_last_observations_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    agent = build(IPPO, time_limit_bootstrap=True)
    for t in range(2):
        record(agent, t, truncated=flags(1, 0, 0))
    (warning,) = [record.message for record in caplog.records if "final_states" in record.message]
    assert "right only for an environment that does not reset itself" in warning


def test_a_critic_of_several_values_is_refused() -> None:
    class Wide(Value):
        def compute(self, inputs: Any, role: str = "") -> tuple[Any, ...]:
            value, _ = super().compute(inputs, role)
            return torch.cat([value, value], dim=-1), {}

    models = build_models(IPPO)
    for roles in models.values():
        roles["value"] = Wide(space(OBSERVATIONS), CHOICE, hidden=(8,))
    agent = IPPO(NAMES, models, build_memories(), cfg={"rollouts": ROLLOUTS, "experiment": OFF})
    agent.init()
    with pytest.raises(ValueError, match="expected one value"):
        play(agent, ROLLOUTS)
