"""Bad input and bad environments: each is stopped, and the message names agent, copy, moment and value."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from gymnasium import spaces

from coterie.agent_tensors import AgentTensors
from coterie.envs.base import EnvError
from coterie.envs.wrappers import PettingZooEnv


def zeros(env, names=("ada", "bob")):
    return {name: torch.zeros(env.num_envs, 1, dtype=torch.int64) for name in names}


def put(key, value, agent="bob"):
    """Return a fault that changes one entry of what step 2 returns."""

    def spoil(step, result):
        if step == 2:
            result[key][agent] = value
        return tuple(result)

    return spoil


def drop(key):
    def spoil(step, result):
        if step == 2:
            del result[key]["bob"]
        return tuple(result)

    return spoil


def instead(value):
    return lambda step, result: value if step == 2 else tuple(result)


HERE = r"copy 1, step 2"
FAULTS = {
    "observation broadcasts": (put(0, np.ones(1, np.float32)), rf"{HERE}.*'bob' has shape \(1,\); expected \(4,\)"),
    "observation too long": (put(0, np.ones(5, np.float32)), rf"{HERE}.*'bob' has shape \(5,\); expected \(4,\)"),
    "observation of rank 0": (put(0, 1.0), rf"{HERE}.*'bob' has shape \(\)"),
    "observation None": (put(0, None), rf"{HERE}.*'bob' is a NoneType of object"),
    "observation of objects": (put(0, np.array([None] * 4)), rf"{HERE}.*'bob' is a ndarray of object"),
    "observation ragged": (put(0, [1, [2, 3]]), rf"{HERE}.*'bob' is no array"),
    "observation NaN": (
        put(0, np.array([0, 0, np.nan, 0], np.float32)),
        r"step 2: the observation of agent 'bob' in copy 1 is nan at element \[2\]",
    ),
    "observation infinite": (
        put(0, np.array([-np.inf, 0, 0, np.inf], np.float32)),
        r"step 2: the observation of agent 'bob' in copy 1 is -inf at element \[0\]",
    ),
    "reward NaN": (put(1, float("nan")), rf"{HERE}: the reward of agent 'bob' is nan"),
    "reward infinite": (put(1, np.float64("inf")), rf"{HERE}: the reward of agent 'bob' is inf"),
    "reward too large for float32": (put(1, 1e39), rf"{HERE}: the reward of agent 'bob' is 1e\+39"),
    "reward of text": (put(1, "1.0"), rf"{HERE}: the reward of agent 'bob' is '1.0'; expected one number"),
    "reward of several": (put(1, np.ones(2)), rf"{HERE}: the reward of agent 'bob'"),
    "reward None": (put(1, None), rf"{HERE}: the reward of agent 'bob' is None"),
    "termination None": (put(2, None), rf"{HERE}.*'bob' is None; expected True or False"),
    "truncation of text": (put(3, "no"), rf"{HERE}.*'bob' is 'no'"),
    "observation missing": (drop(0), rf"{HERE}: agent 'bob' is missing from the observations"),
    "reward missing": (drop(1), rf"{HERE}: agent 'bob' is missing from the rewards"),
    "termination missing": (drop(2), rf"{HERE}: agent 'bob' is missing from the terminations"),
    "truncation missing": (drop(3), rf"{HERE}: agent 'bob' is missing from the truncations"),
    "unknown agent observes": (put(0, np.ones(4), "zzz"), rf"{HERE}: unknown agent 'zzz' in the observations"),
    "unknown agent earns": (put(1, 1.0, "zzz"), rf"{HERE}: unknown agent 'zzz' in the rewards"),
    "four values": (instead((1, 2, 3, 4)), rf"{HERE}: expected step\(\) to return .* got 4 values"),
    "no tuple": (instead(None), rf"{HERE}: expected step\(\) to return .* got a NoneType"),
    "rewards in a list": (instead(({}, [1], {}, {}, {})), rf"{HERE}: agent 'ada' is missing from the observations"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_environment_is_named(scripted, fault):
    spoil, message = FAULTS[fault]
    env = PettingZooEnv([scripted(0, 9), scripted(1, 9, spoil=spoil)])
    env.reset()
    env.step(zeros(env))
    with pytest.raises(EnvError, match=message):
        env.step(zeros(env))


def test_rewards_that_are_no_mapping(scripted):
    def spoil(step, result):
        result[1] = [0.0, 0.0]
        return tuple(result)

    env = PettingZooEnv([scripted(spoil=spoil)])
    env.reset()
    with pytest.raises(EnvError, match="copy 0, step 1: expected a mapping of rewards by agent name, got list"):
        env.step(zeros(env))


def test_huge_finite_numbers_pass(scripted):
    env = PettingZooEnv([scripted(spoil=put(0, np.full(4, 3e38, np.float32)))])
    env.reset()
    env.step(zeros(env))
    states = env.step(zeros(env))[0]
    assert torch.equal(states["bob"], torch.full((1, 4), 3e38))


def test_a_bad_last_observation_is_found(scripted):
    # the reset hides it from next_states
    env = PettingZooEnv([scripted(length=2, spoil=put(0, np.full(4, np.nan, np.float32)))])
    env.reset()
    env.step(zeros(env))
    with pytest.raises(EnvError, match="step 2: the observation of agent 'bob' in copy 0 is nan"):
        env.step(zeros(env))


class Fussy(Exception):
    def __init__(self, code, text):
        super().__init__(code, text)


def test_an_environment_that_raises(scripted):
    def explode(step, result):
        raise Fussy(3, "boom")

    env = PettingZooEnv([scripted(0), scripted(1, spoil=explode)])
    env.reset()
    with pytest.raises(
        EnvError, match=r"copy 1, step 1: the environment's step\(\) raised Fussy: \(3, 'boom'\)"
    ) as info:
        env.step(zeros(env))
    assert isinstance(info.value.__cause__, Fussy)


def test_a_reset_that_raises(scripted):
    class Broken(scripted):
        def reset(self, seed=None, options=None):
            if self.episode == 0:
                raise ValueError("no more")
            return super().reset(seed)

    env = PettingZooEnv([scripted(0), Broken(1, 1)])
    env.reset()
    with pytest.raises(EnvError, match=r"copy 1, .*reset\(\) raised ValueError: no more"):
        env.step(zeros(env))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.zeros(3), r"expected reset\(\) to return \(observations, infos\), got a ndarray"),
        (({"ada": np.zeros(4)}, {}), "agent 'bob' is missing from the observations"),
        (({"ada": np.zeros(4), "bob": np.zeros(1)}, {}), r"'bob' has shape \(1,\); expected \(4,\)"),
        (({"ada": np.zeros(4), "bob": np.full(4, np.nan)}, {}), "agent 'bob' in copy 0 is nan"),
    ],
)
def test_a_bad_reset(scripted, returned, message):
    class Broken(scripted):
        def reset(self, seed=None, options=None):
            self.agents = self.possible_agents[:]
            return returned

    with pytest.raises(EnvError, match=message):
        PettingZooEnv([Broken()]).reset()


def test_a_bad_state(scripted):
    class Stateful(scripted):
        state_space = spaces.Box(-1, 1, (2,))
        value = np.zeros(2)

        def state(self):
            if isinstance(self.value, Exception):
                raise self.value
            return self.value

    for value, message in [
        (np.zeros(3), "copy 0, step 0: expected a state of 2 numbers, got 3"),
        (np.array([0, np.nan]), r"the shared state of copy 0 is nan at element 1"),
        (KeyError("x"), r"copy 0, step 0: the environment's state\(\) raised KeyError: 'x'"),
    ]:
        bare = Stateful()
        env = PettingZooEnv([bare])
        env.reset()
        bare.value = value
        with pytest.raises(EnvError, match=message):
            env.state()


def test_different_copies(scripted):
    with pytest.raises(EnvError, match=r"copy 1: the observation space of agent 'bob' is Box.*expected that of copy 0"):
        PettingZooEnv([scripted(), scripted(widths=(4, 3))])
    with pytest.raises(EnvError, match=r"copy 2: the action space of agent 'ada' is Discrete\(2\)"):
        PettingZooEnv([scripted(), scripted(), scripted(action_space=spaces.Discrete(2))])
    with pytest.raises(EnvError, match=r"copy 1 has the agents \['x', 'y'\]"):
        PettingZooEnv([scripted(), scripted(names=("x", "y"))])


def test_spaces_that_are_not_supported(scripted):
    class Text(scripted):
        def observation_space(self, agent):
            return spaces.Dict({"observation": spaces.Text(3), "action_mask": spaces.MultiBinary(3)})

    with pytest.raises(TypeError, match=r"observation space of agent 'ada': expected a space of kind .*, got Text"):
        PettingZooEnv([Text()])
    with pytest.raises(
        TypeError, match="expected a Box, Discrete, MultiDiscrete or MultiBinary action space, got Text"
    ):
        PettingZooEnv([scripted(action_space=spaces.Text(3))])
    with pytest.raises(
        TypeError, match="expected a Box, Discrete, MultiDiscrete or MultiBinary action space, got Dict"
    ):
        PettingZooEnv([scripted(action_space=spaces.Dict({"a": spaces.Discrete(3)}))])


def discrete(value):
    return torch.tensor(value)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ({"ada": discrete([[0], [0]])}, "agent 'bob' is missing from the actions"),
        ({n: discrete([[0], [0]]) for n in ("ada", "bob", "zed")}, "unknown agent 'zed' in the actions"),
        ([discrete([[0], [0]])] * 2, "expected a mapping of actions by agent name, got list"),
        ({"ada": discrete([[0], [0]]), "bob": discrete([0, 0])}, r"'bob' has shape \[2\].*expected integer .*\[2, 1\]"),
        ({"ada": discrete([[0], [0]]), "bob": discrete([[0]])}, r"'bob' has shape \[1, 1\].*\[2, 1\]"),
        ({n: discrete([[0]]) for n in ("ada", "bob")}, r"'ada' has shape \[1, 1\].*\[2, 1\]"),
        ({"ada": discrete([[0], [0]]), "bob": discrete([[0.0], [0.0]])}, r"'bob' has .*float32; expected integer"),
        ({"ada": discrete([[0], [0]]), "bob": [[0], [0]]}, "'bob' is a list; expected integer tensor"),
        ({"ada": discrete([[0], [0]]), "bob": discrete([[0], [3]])}, r"'bob' in copy 1 is \[3\]; .* allows 0 to 2"),
        ({"ada": discrete([[-1], [0]]), "bob": discrete([[0], [0]])}, r"'ada' in copy 0 is \[-1\]; .* allows 0 to 2"),
    ],
)
def test_bad_discrete_actions(scripted, actions, message):
    env = PettingZooEnv([scripted(0), scripted(1)])
    env.reset()
    with pytest.raises(EnvError, match=message):
        env.step(actions)


def test_bad_stacked_actions(scripted):
    env = PettingZooEnv([scripted(0), scripted(1)])
    env.reset()
    stacks = {
        ("ada",): (torch.zeros(2, 1, 1, dtype=torch.int64), "agent 'bob' is missing"),
        ("ada", "zed"): (torch.zeros(2, 2, 1, dtype=torch.int64), "agent 'bob' is missing"),
        ("ada", "bob"): (torch.tensor([[[0], [0]], [[0], [3]]]), r"'bob' in copy 1 is \[3\]"),
        ("bob", "ada"): (torch.zeros(3, 2, 1, dtype=torch.int64), r"'ada' has shape \[3, 1\]"),
    }
    for names, (stack, message) in stacks.items():
        with pytest.raises(EnvError, match=message):
            env.step(AgentTensors.single(names, stack))


def test_bad_multi_discrete_action(scripted):
    env = PettingZooEnv([scripted(action_space=spaces.MultiDiscrete([2, 4]))])
    env.reset()
    good = torch.tensor([[1, 3]])
    env.step({"ada": good, "bob": good})
    with pytest.raises(EnvError, match=r"'bob' in copy 0 is \[2, 3\]; .* allows 0 to 1 at element 0"):
        env.step({"ada": good, "bob": torch.tensor([[2, 3]])})


def test_bad_multi_binary_action(scripted):
    bare = scripted(action_space=spaces.MultiBinary((2, 2)))
    env = PettingZooEnv([bare])
    env.reset()
    good = torch.tensor([[1, 0, 0, 1]])
    env.step({"ada": good, "bob": 1 - good})
    assert bare.actions[0]["ada"].tolist() == [[1, 0], [0, 1]]
    for bad in (2, -1):
        with pytest.raises(EnvError, match=rf"'bob' in copy 0 is \[1, 0, {bad}, 1\]; .* allows 0 to 1 at element 2"):
            env.step({"ada": good, "bob": torch.tensor([[1, 0, bad, 1]])})
    for wrong in (good.float(), good.bool(), good[:, :2]):
        with pytest.raises(EnvError, match=r"'ada' has .*expected integer tensor of shape \[1, 4\] for MultiBinary"):
            env.step({"ada": wrong, "bob": wrong})


def test_box_actions(scripted, caplog):
    bare = scripted(length=9, action_space=spaces.Box(-1, 1, (2,)))
    env = PettingZooEnv([bare])
    env.reset()
    inside = torch.tensor([[1.0, -1.0]])
    with caplog.at_level(logging.WARNING):
        env.step({"ada": inside, "bob": inside})
        assert not caplog.records
        outside = torch.tensor([[0.5, 1.25]], requires_grad=True)
        env.step({"ada": inside, "bob": outside})
        env.step({"ada": outside, "bob": outside})
    assert bare.actions[1]["bob"].tolist() == [0.5, 1.0]
    assert bare.actions[2]["ada"].tolist() == [0.5, 1.0]
    assert outside.tolist() == [[0.5, 1.25]]
    assert len(caplog.records) == 1  # once for each environment
    assert re.search(r"step 2: the action of agent 'bob' in copy 0 is 1.25 at element 1", caplog.text)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(EnvError, match=rf"the action of agent 'ada' in copy 0 is {bad} at element \[0\]"):
            env.step({"ada": torch.tensor([[bad, 0.0]]), "bob": inside})
    with pytest.raises(EnvError, match=r"'ada' has shape \[1, 2\], torch.int64; expected float tensor"):
        env.step({"ada": torch.zeros(1, 2, dtype=torch.int64), "bob": torch.zeros(1, 2, dtype=torch.int64)})


def test_step_and_state_before_reset(scripted):
    env = PettingZooEnv([scripted()])
    with pytest.raises(EnvError, match=r"before reset\(\)"):
        env.step(zeros(env))
    with pytest.raises(EnvError, match=r"before reset\(\)"):
        env.state()
