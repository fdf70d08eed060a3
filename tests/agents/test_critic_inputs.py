"""What MAPPO's critics are shown, as linear critics give it away, and what is refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from coterie.agents import IPPO, MAPPO
from coterie.agents.config import ConfigError
from coterie.memories import RandomMemory
from coterie.models import CategoricalPolicy, TeamValue, Value
from coterie.trainers import SequentialTrainer
from tests.agents.toys import OFF, Toy, box

CHOICE = spaces.Discrete(4)
SIZES = {"a": 3, "b": 2, "c": 3}  # a and c are one group
STATE = 4
ROLLOUTS = 4
KINDS = ["state", "observations", "agent", "both"]


def absences(age: Tensor) -> dict[str, Any]:
    return {"active_masks": {"b": (age % 2 == 0).unsqueeze(1), "c": (age != 1).unsqueeze(1)}}


def width(kind: str, uid: str) -> int:
    everyone = sum(SIZES.values())
    return {"state": STATE, "observations": everyone, "agent": SIZES[uid] + STATE, "both": STATE + everyone}[kind]


def linear(size: int) -> Value:
    """A critic that gives away all that it sees."""
    critic = Value(box(size), CHOICE, hidden=())
    with torch.no_grad():
        critic.net[0].weight.copy_(torch.randn(1, size))
    return critic


def models_for(kind: str, shared: bool = True, sizes: dict[str, int] | None = None) -> Any:
    sizes = sizes or {uid: width(kind, uid) for uid in SIZES}
    critics: dict[Any, Value] = {}
    return {
        uid: {
            "policy": CategoricalPolicy(box(SIZES[uid]), CHOICE, hidden=(4,)),
            "value": critics.setdefault(sizes[uid] if shared else uid, linear(sizes[uid])),
        }
        for uid in SIZES
    }


def team(env: Toy, kind: str, models: Any, spaces_given: bool = True, **cfg: Any) -> Any:
    settings = {"rollouts": ROLLOUTS, "learning_epochs": 1, "mini_batches": 1, "experiment": OFF, "critic_input": kind}
    memories = {uid: RandomMemory(ROLLOUTS, env.num_envs) for uid in SIZES}
    return MAPPO(
        list(SIZES), models, memories, env.observation_spaces, env.action_spaces, cfg={**settings, **cfg},
        shared_observation_spaces=env.shared_observation_spaces if spaces_given else None,
    )  # fmt: skip


def trained(env: Toy, agent: Any, timesteps: int = ROLLOUTS) -> list[Tensor]:
    """Train; returns the shared state of every step."""
    states: list[Tensor] = []
    record = agent.record_transition

    def spy(*args: Any) -> None:
        states.append(args[6].get("shared_states"))
        record(*args)

    agent.record_transition = spy
    cfg = {"timesteps": timesteps, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}
    SequentialTrainer(env, agent, cfg=cfg).train()
    return states


def seen_by(agent: Any, uid: str, kind: str, state: Tensor) -> Tensor:
    """What a critic should have been shown ``[T, E, F]``."""
    own = {name: agent.memories[name].get_tensor_by_name("states") for name in SIZES}
    joined = torch.cat([own[name] for name in SIZES], dim=-1)  # in the team's order, whatever the groups
    if kind == "agent":
        seen = torch.cat([own[uid], state], dim=-1)
        active = agent.memories[uid].get_tensor_by_name("active") if uid != "a" else torch.ones(1, dtype=torch.bool)
        return seen * active
    return {"state": state, "observations": joined, "both": torch.cat([state, joined], dim=-1)}[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [True, False])
def test_critics_see_what_they_are_to_see(kind: str, shared: bool) -> None:
    env = Toy(tuple(SIZES), observations=SIZES, lengths=(9, 5), masks=absences)
    models = models_for(kind, shared)
    critics = {uid: models[uid]["value"].net[0].weight.detach().clone() for uid in SIZES}
    agent = team(env, kind, models, learning_rate=lambda timestep, timesteps: 0.0)
    noted = trained(env, agent)
    states = torch.stack(noted) if kind != "observations" else torch.empty(0)
    for uid, weight in critics.items():
        expected = seen_by(agent, uid, kind, states) @ weight.t()
        torch.testing.assert_close(agent.memories[uid].get_tensor_by_name("values"), expected, rtol=1e-5, atol=1e-5)
    absent = ~agent.memories["b"].get_tensor_by_name("active")
    assert bool(absent.any())
    assert bool((agent.memories["b"].get_tensor_by_name("states") * absent == 0).all())


def test_critics_of_observations_need_no_state() -> None:
    env = Toy(tuple(SIZES), observations=SIZES, lengths=(9, 5))
    env.own_state = False
    agent = team(env, "observations", models_for("observations"), spaces_given=False)
    assert not agent.uses_shared_states
    assert trained(env, agent) == [None] * ROLLOUTS


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spaces_given", [True, False])
def test_a_critic_of_another_size_is_refused_when_the_team_is_built(kind: str, spaces_given: bool) -> None:
    env = Toy(tuple(SIZES), observations=SIZES)
    sizes = {uid: width(kind, uid) for uid in SIZES}
    team(env, kind, models_for(kind), spaces_given)
    wrong = models_for(kind, sizes={**sizes, "c": sizes["c"] + 1})
    with pytest.raises(ValueError, match="built for") as caught:
        team(env, kind, wrong, spaces_given)
    if spaces_given or kind == "observations":
        expected = f"the value model of 'c' was built for inputs of size {sizes['c'] + 1}, MAPPO feeds it {sizes['c']}"
        assert expected in str(caught.value)
    else:  # nobody knows which of them is right
        assert "states of sizes {'a': 4, 'b': 4, 'c': 5}" in str(caught.value)


def test_a_critic_too_small_for_any_state_is_refused() -> None:
    env = Toy(tuple(SIZES), observations=SIZES)
    with pytest.raises(ValueError, match=r"built for states of sizes \{'a': 0, 'b': 0, 'c': 0\}"):
        team(env, "both", models_for("both", sizes=dict.fromkeys(SIZES, 8)), spaces_given=False)


# ---- environments without a state ------------------------------------------------------------------------------------


def stand_in_sizes(kind: str) -> dict[str, int]:
    everyone = sum(SIZES.values())
    return {uid: {"state": everyone, "agent": SIZES[uid] + everyone, "both": 2 * everyone}[kind] for uid in SIZES}


@pytest.mark.parametrize("kind", ["state", "agent", "both"])
def test_all_observations_stand_in_for_a_state_and_it_is_said_once(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    env = Toy(tuple(SIZES), observations=SIZES, lengths=(9, 5), masks=absences, own_state=False)
    models = models_for(kind, sizes=stand_in_sizes(kind))
    critics = {uid: models[uid]["value"].net[0].weight.detach().clone() for uid in SIZES}
    agent = team(env, kind, models, spaces_given=False, learning_rate=lambda timestep, timesteps: 0.0,
                 time_limit_bootstrap=True)  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="coterie"):
        trained(env, agent, 3 * ROLLOUTS)
        trained(env, agent, 2 * ROLLOUTS)
    assert [r.getMessage() for r in caplog.records] == [
        "the environment has no state(): critics see all agents' observations together in its place"
    ]
    joined = torch.cat([agent.memories[name].get_tensor_by_name("states") for name in SIZES], dim=-1)
    for uid, weight in critics.items():
        expected = seen_by(agent, uid, kind, joined) @ weight.t()
        torch.testing.assert_close(agent.memories[uid].get_tensor_by_name("values"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spaces_given", [True, False])
def test_a_critic_that_was_built_for_a_state_which_there_is_not_is_told_so(spaces_given: bool) -> None:
    env = Toy(tuple(SIZES), observations=SIZES, own_state=False)
    agent = team(env, "state", models_for("state"), spaces_given)
    with pytest.raises(
        KeyError, match=r"infos\['shared_states'\]: .* built for a state of 4 elements.*observations.* 8"
    ):
        trained(env, agent)


def test_a_loop_of_ones_own_must_pass_the_state_on() -> None:
    env = Toy(tuple(SIZES), observations=SIZES)
    agent = team(env, "state", models_for("state"))
    agent.init()
    agent.set_running_mode("train")
    states, infos = env.reset()
    shared = env.state()
    actions, _, _ = agent.act(states, 0, 10, infos)
    following, rewards, terminated, truncated, infos = env.step(actions)
    flags = terminated, truncated
    with pytest.raises(KeyError, match=r"infos\['shared_states'\]: expected the shared state"):
        agent.record_transition(states, actions, rewards, following, *flags, infos, 0, 10)
    agent.init()  # nothing of a refused step is left
    for t in range(ROLLOUTS):
        agent.act(states, t, 10, {})
        given = {"shared_states": shared}
        if t == ROLLOUTS - 1:
            with pytest.raises(KeyError, match=r"infos\['shared_next_states'\]: expected the shared state"):
                agent.record_transition(states, actions, rewards, following, *flags, given, t, 10)
        else:  # only the last row's successor is not a row itself
            agent.record_transition(states, actions, rewards, following, *flags, given, t, 10)


# ---- critics of whole teams ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_critics_of_whole_teams_give_every_agent_its_own_value_and_leave_absent_agents_out(pooling: str) -> None:
    env = Toy(tuple(SIZES), observations=SIZES, lengths=(9, 5), masks=absences)
    models = models_for("observations")
    critic = TeamValue(env.observation_spaces, pooling, hidden=(8,), heads=2)
    for roles in models.values():
        roles["value"] = critic
    agent = team(env, "observations", models, learning_rate=lambda timestep, timesteps: 0.0)
    trained(env, agent)
    joined = torch.cat([agent.memories[uid].get_tensor_by_name("states") for uid in SIZES], dim=-1).flatten(0, 1)
    present = torch.ones(len(joined), 3, dtype=torch.bool)
    for i, uid in enumerate(SIZES):
        if uid != "a":
            present[:, i] = agent.memories[uid].get_tensor_by_name("present").flatten()
    assert not bool(present.all())
    with torch.no_grad():
        expected = critic.compute({"states": joined, "present": present})[0]
        blind = critic.compute({"states": joined, "present": None})[0]
    for i, uid in enumerate(SIZES):
        values = agent.memories[uid].get_tensor_by_name("values").flatten()
        torch.testing.assert_close(values[present[:, i]], expected[present[:, i], i], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected[present], blind[present])


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("kind", ["state", "both", "agent"])
def test_critics_of_whole_teams_are_shown_nothing_but_observations(pooling: str, kind: str) -> None:
    """A state of the same width is not taken for the observations."""
    everyone = sum(SIZES.values())
    env = Toy(tuple(SIZES), observations=SIZES, state=everyone)
    models = models_for("observations")
    for roles in models.values():
        roles["value"] = TeamValue(env.observation_spaces, pooling, hidden=(8,), heads=2)
    with pytest.raises(
        ConfigError, match=rf"'a', a TeamValue, needs all agents' observations, and '{kind}'.*critic_input"
    ):
        team(env, kind, models)
    team(env, "observations", models)


def test_critics_with_a_value_for_each_agent_may_see_the_state() -> None:
    env = Toy(tuple(SIZES), observations=SIZES)
    critic = Value(box(STATE), CHOICE, values=3, hidden=(4,))
    team(env, "state", {uid: {**roles, "value": critic} for uid, roles in models_for("state").items()})


def test_ippo_asks_for_no_state() -> None:
    assert IPPO.uses_shared_states is False
