"""Actions that do not fit, and what the messages say."""

from __future__ import annotations

import warnings

import pytest
import torch

from coterie.agent_tensors import AgentTensors
from coterie.envs.base import EnvError
from coterie.envs.particle import SimpleReference, SimpleSpeakerListener, SimpleSpread


def started(cls, num_envs=4, **kwargs):
    env = cls(num_envs, seed=0, **kwargs)
    env.reset()
    return env


def zeros(env):
    dtype = torch.float32 if env.continuous_actions else torch.int64
    return {
        name: torch.zeros(env.num_envs, *(space.shape if env.continuous_actions else (1,)), dtype=dtype)
        for name, space in env.action_spaces.items()
    }


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(4, dtype=torch.int64), ["shape [4]", "[4, 1]", "Discrete(5)"]),
        (torch.zeros(3, 1, dtype=torch.int64), ["shape [3, 1]", "[4, 1]"]),
        (torch.zeros(4, 1), ["torch.float32", "integer"]),
        (torch.zeros(4, 1, dtype=torch.bool), ["torch.bool", "integer"]),
        (torch.tensor([[0], [0], [5], [0]]), ["is 5", "sub-environment 2", "0 to 4"]),
        (torch.tensor([[0], [-1], [0], [0]]), ["is -1", "sub-environment 1", "0 to 4"]),
        ([[0]] * 4, ["list", "tensor"]),
        (torch.zeros(4, 1, dtype=torch.int64, device="meta"), ["meta", "cpu"]),
    ],
)
def test_bad_discrete_actions(value, words):
    env = started(SimpleSpread)
    before = env.state()
    with pytest.raises(EnvError) as error:
        env.step(zeros(env) | {"agent_1": value})
    for word in ["actions['agent_1']", *words]:
        assert word in str(error.value)
    assert env.state() is before
    env.step(zeros(env))  # it goes on as if nothing had been tried


def test_missing_and_unknown_agents():
    env = started(SimpleSpread)
    actions = zeros(env)
    with pytest.raises(EnvError, match=r"'agent_2' is missing"):
        env.step({name: actions[name] for name in ("agent_0", "agent_1")})
    with pytest.raises(EnvError, match=r"actions\['bob'\].*unknown"):
        env.step(actions | {"bob": actions["agent_0"]})
    with pytest.raises(EnvError, match="expected a mapping"):
        env.step(torch.zeros(4, 3))


def test_bounds_of_agents_that_differ():
    env = started(SimpleSpeakerListener)
    env.step({"speaker_0": torch.full((4, 1), 2), "listener_0": torch.full((4, 1), 4)})
    with pytest.raises(EnvError, match=r"actions\['speaker_0'\].* is 3 .*0 to 2"):
        env.step({"speaker_0": torch.full((4, 1), 3), "listener_0": torch.full((4, 1), 4)})
    stacked = AgentTensors.single(["speaker_0", "listener_0"], torch.full((4, 2, 1), 3))
    with pytest.raises(EnvError, match=r"actions\['speaker_0'\].* is 3 .*0 to 2"):
        env.step(stacked)
    assert SimpleReference().action_spaces["agent_0"].n == 50


def test_continuous_stacks_of_the_wrong_width():
    env = started(SimpleSpeakerListener, continuous_actions=True)
    with pytest.raises(EnvError, match=r"actions\['listener_0'\] has shape \[4, 3\]; expected \[4, 5\]"):
        env.step(AgentTensors.single(["speaker_0", "listener_0"], torch.zeros(4, 2, 3)))
    with pytest.raises(EnvError, match=r"actions\['speaker_0'\] has dtype torch.int64; expected a floating dtype"):
        env.step({"speaker_0": torch.zeros(4, 3).long(), "listener_0": torch.zeros(4, 5)})


@pytest.mark.parametrize("form", ["dict", "stack", "stack of part"])
def test_forms_of_a_mapping_give_the_same_bits(form):
    one, two = started(SimpleSpread, continuous_actions=True), started(SimpleSpread, continuous_actions=True)
    stack = torch.rand(4, 3, 5)
    names = one.possible_agents
    actions = {
        "dict": {name: stack[:, i] for i, name in reversed(list(enumerate(names)))},
        "stack": AgentTensors.single(names, stack.transpose(0, 1).contiguous().transpose(0, 1)),
        "stack of part": AgentTensors({(names[1],): stack[:, 1:2], (names[0], names[2]): stack[:, 0::2]}),
    }[form]
    one.step(AgentTensors.single(names, stack))
    two.step(actions)
    assert torch.equal(one.state(), two.state())


@pytest.mark.parametrize("deferred", [False, True])
def test_numbers_out_of_bounds_are_clipped_with_one_warning(deferred):
    env, inside = (started(SimpleSpread, continuous_actions=True, deferred_checks=deferred) for _ in range(2))
    actions = zeros(env)
    actions["agent_1"][2, 4] = 7.0
    actions["agent_2"][0, 1] = -float("inf")
    clipped = {name: value.clamp(0, 1) for name, value in actions.items()}

    def step_and_settle():
        env.step(actions)
        env._reader.flush()

    with pytest.warns(
        UserWarning, match=r"actions\['agent_1'\] of agent 'agent_1', entry 4, is 7.0 .*clipped"
    ) as caught:
        step_and_settle()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step_and_settle()
    for _ in range(2):
        inside.step(clipped)
    assert torch.equal(env.state(), inside.state())
    assert actions["agent_1"][2, 4] == 7.0  # the caller's tensor is as it was


def test_nan_is_an_error_even_beside_a_number_out_of_bounds():
    env = started(SimpleSpread, continuous_actions=True)
    actions = zeros(env)
    actions["agent_0"][0, 0] = 9.0
    actions["agent_2"][3, 1] = float("nan")
    with pytest.raises(EnvError, match=r"actions\['agent_2'\].* entry 1, is nan in sub-environment 3"):
        env.step(actions)


def test_deferred_checks_raise_later_and_clamp_until_then(monkeypatch):
    env = started(SimpleSpread, deferred_checks=True)
    monkeypatch.setattr(type(env._reader), "PERIOD", 3)
    actions = zeros(env) | {"agent_1": torch.full((4, 1), 8)}
    env.step(actions)
    assert env.get_state()["velocities"][:, 1, 1].tolist() == pytest.approx([0.5] * 4)  # clamped to 4: up
    env.step(zeros(env))
    with pytest.raises(EnvError, match=r"actions\['agent_1'\].* is 8 in the last 3 steps"):
        env.step(zeros(env))
    env.step(zeros(env))  # reported once
    env.step(actions)
    with pytest.raises(EnvError, match="is 8"):
        env.close()
    env.close()


def test_deferred_nan():
    env = started(SimpleSpread, continuous_actions=True, deferred_checks=True)
    env.step(zeros(env) | {"agent_0": torch.full((4, 5), float("nan"))})
    with pytest.raises(EnvError, match=r"actions\['agent_0'\].* is nan"):
        env.reset()


def test_no_gradient_flows_through_a_step():
    env = started(SimpleSpread, continuous_actions=True)
    actions = {name: value.requires_grad_() for name, value in zeros(env).items()}
    states, rewards, *_ = env.step(actions)
    assert not states["agent_0"].requires_grad
    assert not rewards["agent_0"].requires_grad
