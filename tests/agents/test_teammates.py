"""Teammates that act and are seen, but do not learn: frozen models, scripts, and policies from other teams' files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from coterie.agents import IPPO, MAPPO, MultiAgent
from coterie.agents.checkpoints import CheckpointError
from coterie.memories import RandomMemory
from coterie.models import CategoricalPolicy, Model, ScriptedPolicy, Value, build_models
from coterie.preprocessors import RunningStandardScaler, ValueNorm
from coterie.trainers import SequentialTrainer
from tests.agents.toys import OFF, Toy, box

ALGORITHMS: list[type[MultiAgent]] = [IPPO, MAPPO]
STATE = 4
NORMALISED: dict[str, Any] = {"state_preprocessor": RunningStandardScaler, "value_preprocessor": ValueNorm}


def second_choice(states: Tensor, action_masks: Tensor | None) -> Tensor:
    return torch.full((len(states), 1), 1)


def policy(env: Toy, uid: str, hidden: int = 8) -> Model:
    return CategoricalPolicy(env.observation_spaces[uid], env.action_spaces[uid], hidden=(hidden,))


def models_for(env: Toy, kind: type[MultiAgent], learners: str, hidden: int = 8) -> dict[str, dict[str, Any]]:
    """Models of their own for all; critics for the learners alone."""
    models: dict[str, dict[str, Any]] = {}
    for uid in env.possible_agents:
        models[uid] = {"policy": policy(env, uid, hidden)}
        if uid in learners:
            sees = box(env.state_size) if kind is MAPPO else env.observation_spaces[uid]
            models[uid]["value"] = Value(sees, env.action_spaces[uid], hidden=(8,))
    return models


def team(env: Toy, kind: type[MultiAgent] = IPPO, learners: str = "a", models: Any = None, **cfg: Any) -> Any:
    settings = {"rollouts": 4, "learning_epochs": 2, "mini_batches": 2, "experiment": OFF, "learning_rate": 1e-2, **cfg}
    models = models_for(env, kind, learners) if models is None else models
    if not all(uid in learners for uid in env.possible_agents):
        settings.setdefault("trainable", {uid: uid in learners for uid in env.possible_agents})
    memories = {uid: RandomMemory(4, env.num_envs) for uid in learners} or None
    spaces_of = env.observation_spaces, env.action_spaces
    return kind(env.possible_agents, models, memories, *spaces_of, cfg=settings)


def quiet(timesteps: int) -> dict[str, Any]:
    return {"timesteps": timesteps, "headless": True, "disable_progressbar": True, "close_environment_at_exit": False}


def train(env: Toy, agent: Any, timesteps: int = 12) -> None:
    SequentialTrainer(env, agent, cfg=quiet(timesteps)).train()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def normaliser(agent: Any, uid: str) -> nn.Module:
    return agent.checkpoint_modules()[agent.checkpoint_owners()[uid]["state_preprocessor"]]


# ---- frozen models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALGORITHMS)
@pytest.mark.parametrize("learners", ["a", "b", "ac"])
def test_those_that_do_not_learn_stay_as_they_are(kind: type[MultiAgent], learners: str) -> None:
    env = Toy("abc")
    agent = team(env, kind, learners, **NORMALISED)
    assert agent.learning_agents == list(learners)
    modules = {uid: (agent.models[uid]["policy"], normaliser(agent, uid)) for uid in "abc"}
    before = {uid: [state_of(m) for m in pair] for uid, pair in modules.items()}
    train(env, agent)
    for uid, pair in modules.items():
        for module, old in zip(pair, before[uid], strict=True):
            assert same(state_of(module), old) == (uid not in learners), (uid, type(module))


def test_learners_learn_the_same_beside_frozen_teammates_as_beside_learning_ones() -> None:
    """With critics of the own observation, and where nothing that others do matters."""

    def learned(learners: str) -> dict[str, Tensor]:
        torch.manual_seed(0)
        env = Toy("ab")
        models = models_for(env, IPPO, "ab")
        torch.manual_seed(1)
        # one epoch of one minibatch: the order of random numbers does not matter then
        agent = team(env, IPPO, learners, models, learning_epochs=1, mini_batches=1)
        torch.manual_seed(2)
        train(env, agent, 4)
        return state_of(agent.models["a"]["policy"])

    together, alone = learned("ab"), learned("a")
    for name, value in together.items():
        torch.testing.assert_close(alone[name], value, rtol=1e-5, atol=1e-7)


def test_who_does_not_learn_needs_no_memory_but_may_have_one() -> None:
    env = Toy("ab")
    models = models_for(env, IPPO, "ab")
    both = {uid: RandomMemory(4, 3) for uid in "ab"}
    agent = IPPO(["a", "b"], models, both, cfg={"rollouts": 4, "experiment": OFF, "trainable": {"a": True, "b": False}})
    agent.init()
    assert agent.memories is not None
    assert agent.memories["b"].get_tensor_by_name("states").shape == (4, 3, 3)
    with pytest.raises(ValueError, match=r"memories: expected exactly the agents .* missing \['a'\]"):
        IPPO(["a", "b"], models, {"b": both["b"]}, cfg={"rollouts": 4, "trainable": {"a": True, "b": False}})
    models = models_for(env, IPPO, "a")
    with pytest.raises(ValueError, match=r"expected a value model for every agent that learns or for none"):
        IPPO(["a", "b"], models, both, cfg={"rollouts": 4})


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_a_team_in_which_nobody_learns_plays_and_nothing_changes(kind: type[MultiAgent], tmp_path: Path) -> None:
    env = Toy("ab")
    agent = team(env, kind, "", **NORMALISED)
    assert agent.learning_agents == []
    before = {name: state_of(module) for name, module in agent.checkpoint_modules().items()}
    train(env, agent)
    assert SequentialTrainer(env, agent, cfg=quiet(1)).eval(episodes=3)["episodes"] == 3
    assert all(same(state_of(m), before[name]) for name, m in agent.checkpoint_modules().items())
    agent.save(tmp_path / "idle.pt")
    agent.load(tmp_path / "idle.pt")
    with pytest.raises(ValueError, match="memories: no agent learns; pass memories=None to act only"):
        kind(["a", "b"], agent.models, {}, cfg={"trainable": False})


def test_agents_that_share_a_model_must_both_learn_or_not() -> None:
    env = Toy("abc")
    models = models_for(env, IPPO, "abc")
    models["c"] = models["a"]
    with pytest.raises(
        ValueError,
        match=r"^'c' does not learn .* but shares its policy with agents that do, \['a'\]: give it a policy of its own",
    ):
        team(env, IPPO, "ab", models)
    agent = team(env, IPPO, "ac", models)
    assert agent.learning_agents == ["a", "c"]


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_an_agent_that_shares_its_policy_cannot_rest_alone(kind: type[MultiAgent]) -> None:
    """The message says what to build, and that works, whatever critic comes along with it."""
    env, algorithm = Toy("abc"), kind.__name__.lower()
    models = build_models(env, algorithm, shared=True, hidden=(6,))
    with pytest.raises(
        ValueError,
        match=r"^'a' does not learn .* shares its policy with agents that do, \['b', 'c'\]: give it a policy of its own, "
        r"such as that of build_models\(\.\.\., shared=False\)\['a'\]$",
    ):
        team(env, kind, "bc", models)
    own = build_models(env, algorithm, shared=False, hidden=(6,), agent_id=True)["a"]["policy"]
    common = models["a"]["value"]
    for roles in ({"policy": own, "value": common}, {"policy": own}, {"policy": second_choice, "value": common}):
        agent = team(env, kind, "bc", {**models, "a": roles})
        learned, resting = state_of(models["b"]["policy"]), state_of(own)
        train(env, agent)
        assert not same(state_of(models["b"]["policy"]), learned)
        assert same(state_of(own), resting)
        assert [agent.learns(learner) for learner in agent.learners].count(True) == 1


@pytest.mark.parametrize("present", [True, False])
def test_critics_see_those_that_do_not_learn(present: bool) -> None:
    """A critic of everyone's observations that passes b's last number through is told b's, or 0 where b is absent."""

    def masks(age: Tensor) -> dict[str, Any]:
        return {} if present else {"active_masks": {"b": torch.zeros(len(age), 1, dtype=torch.bool)}}

    env = Toy("abc", masks=masks, lengths=(50, 50))
    models = models_for(env, IPPO, "")
    models["b"] = {"policy": second_choice}
    models["a"]["value"] = Value(box(9), env.action_spaces["a"], hidden=())
    with torch.no_grad():
        models["a"]["value"].net[0].weight.zero_()
        models["a"]["value"].net[0].weight[0, 5] = 1.0  # of a's three, b's three, c's three
    agent = team(env, MAPPO, "a", models, critic_input="observations", learning_rate=lambda t, n: 0.0)
    train(env, agent, 4)
    values = agent.memories["a"].get_tensor_by_name("values")[..., 0]
    seen = agent._storage["b",]["states"][:, :, 0, 2]
    assert torch.allclose(values, seen, atol=1e-6)
    assert bool(seen.ne(0).all()) == present


# ---- scripts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALGORITHMS)
@pytest.mark.parametrize("form", ["function", "object", "callable object"])
def test_scripts_act_beside_learners(kind: type[MultiAgent], form: str) -> None:
    class Rule:
        def __call__(self, states: Tensor, action_masks: Tensor | None) -> Tensor:
            return second_choice(states, action_masks)

    env = Toy("ab", observations={"a": 3, "b": 2})
    script: Any = {
        "function": second_choice,
        "object": ScriptedPolicy(env.observation_spaces["b"], env.action_spaces["b"], second_choice),
        "callable object": Rule(),
    }[form]
    models = {**models_for(env, kind, "a"), "b": {"policy": script}}
    agent = team(env, kind, "a", models, **NORMALISED, trainable=True)  # scripts never learn
    assert agent.learning_agents == ["a"]
    before = state_of(agent.models["a"]["policy"])
    train(env, agent)
    assert not same(state_of(agent.models["a"]["policy"]), before)
    assert all(taken["b"].eq(1).all() for taken in env.taken)
    SequentialTrainer(env, agent, cfg=quiet(1)).eval(episodes=3)
    assert all(taken["b"].eq(1).all() for taken in env.taken)


def test_scripts_see_observations_and_masks_and_zeros_where_they_are_absent() -> None:
    calls: list[tuple[Tensor, Tensor | None]] = []

    def note(states: Tensor, action_masks: Tensor | None) -> Tensor:
        calls.append((states.clone(), action_masks))
        return torch.zeros(len(states), 1, dtype=torch.int64)

    env = Toy("ab", actions={"a": spaces.Discrete(4), "b": spaces.Discrete(2)})
    agent = team(env, IPPO, "a", {**models_for(env, IPPO, "a"), "b": {"policy": note}}, trainable=True)
    states, _ = env.reset()
    agent.act(states, 0, 1)
    allowed = torch.tensor([[True, False]] * 3)
    absent = torch.tensor([[True], [False], [True]])
    agent.act(states, 0, 1, {"action_masks": {"b": allowed}, "active_masks": {"b": absent}})
    assert calls[0][1] is None
    assert torch.equal(calls[0][0], states["b"])
    assert torch.equal(calls[1][0], states["b"] * absent)
    assert calls[1][1] is not None
    assert calls[1][1].tolist() == [[True, False], [True, True], [True, False]]


def test_continuous_scripts_stand_beside_agents_of_the_same_spaces() -> None:
    from coterie.models import GaussianPolicy

    bounded: gymnasium.Space = spaces.Box(-1.0, 1.0, (2,))
    env = Toy("ab", actions=bounded)
    models: dict[str, Any] = {
        "a": {"policy": GaussianPolicy(box(3), bounded, hidden=(4,)), "value": Value(box(3), bounded, hidden=(4,))},
        "b": {"policy": lambda states, masks: torch.full((len(states), 2), 0.25)},
    }
    agent = team(env, IPPO, "a", models, trainable=True)
    train(env, agent)
    assert all(taken["b"].eq(0.25).all() for taken in env.taken)
    assert len(agent.groups) == 2


def test_a_function_needs_the_spaces_it_acts_in() -> None:
    env = Toy("ab")
    models = {**models_for(env, IPPO, "a"), "b": {"policy": second_choice}}
    with pytest.raises(ValueError, match=r"models\['b'\]\['policy'\] is a function: pass observation_spaces"):
        IPPO(["a", "b"], models, cfg={"experiment": OFF})
    partial = {"a": env.observation_spaces["a"]}
    with pytest.raises(ValueError, match=r"models\['b'\]\['policy'\] is a function: pass observation_spaces"):
        IPPO(["a", "b"], models, None, partial, env.action_spaces, cfg={"experiment": OFF})


def test_a_scripts_actions_are_wanted_where_the_others_are() -> None:
    env = Toy("ab")
    for order in (["a", "b"], ["b", "a"]):  # a script says nothing of where the team is computed
        learner = {"policy": CategoricalPolicy(box(3), spaces.Discrete(4), "meta", hidden=(4,))}
        agent = IPPO(
            order, {"a": learner, "b": {"policy": second_choice}}, None, env.observation_spaces, env.action_spaces,
            cfg={"experiment": OFF},
        )  # fmt: skip
        assert agent.device.type == "meta"
        assert agent.models["b"]["policy"].device.type == "meta"


def test_checkpoints_of_a_team_with_frozen_and_scripted_teammates(tmp_path: Path) -> None:
    def build(seed: int) -> tuple[Toy, Any]:
        torch.manual_seed(seed)
        env = Toy("abc")
        models = {**models_for(env, IPPO, "a"), "c": {"policy": second_choice}}
        return env, team(env, IPPO, "a", models, **NORMALISED, trainable={"a": True, "b": False, "c": False})

    env, agent = build(1)
    train(env, agent)
    agent.save(tmp_path / "team.pt")
    other_env, other = build(2)
    other.load(tmp_path / "team.pt")
    for name, module in agent.checkpoint_modules().items():
        assert same(state_of(module), state_of(other.checkpoint_modules()[name])), name
    for one_env, one in ((env, agent), (other_env, other)):
        torch.manual_seed(3)
        one_env.generator.manual_seed(5)
        train(one_env, one)
    assert same(state_of(agent.models["a"]["policy"]), state_of(other.models["a"]["policy"]))


# ---- policies from other teams -----------------------------------------------------------------------------------------


def act_alike(agent: Any, uid: str, other: Any, source: str) -> bool:
    """Whether two agents' policies, with their normalisers, see the same in the same."""
    states = torch.randn(50, 3)
    logits = []
    for one, name in ((agent, uid), (other, source)):
        group = next(group for group in one.groups if name in group.names)
        observed = torch.zeros(50, group.size, 3)
        observed[:, group.names.index(name)] = states
        networks = one.networks[group.names]
        distribution, _ = networks.distribution(networks.normalised(observed))
        logits.append(distribution.mean[:, group.names.index(name)])
    return torch.equal(*logits)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("kind", ALGORITHMS)
def test_teammates_come_from_another_teams_file_under_other_names(
    kind: type[MultiAgent], normalised: bool, tmp_path: Path
) -> None:
    cfg = NORMALISED if normalised else {}
    source_env = Toy(("north", "south"), seed=3)
    source = team(source_env, MAPPO, ("north", "south"), **cfg)  # type: ignore[arg-type]
    train(source_env, source)
    source.save(tmp_path / "source.pt")
    env = Toy("abc")
    agent = team(env, kind, "a", **cfg)
    own = {uid: state_of(agent.models[uid]["policy"]) for uid in "ac"}
    assert not act_alike(agent, "b", source, "south")
    agent.load_teammates(tmp_path / "source.pt", {"b": "south"})
    assert act_alike(agent, "b", source, "south")
    assert all(same(state_of(agent.models[uid]["policy"]), own[uid]) for uid in "ac")
    train(env, agent)
    assert act_alike(agent, "b", source, "south")
    agent.load_teammates(str(tmp_path / "source.pt"), {"b": "north", "c": "north"})
    assert act_alike(agent, "b", source, "north")
    assert act_alike(agent, "c", source, "north")


@pytest.mark.parametrize("normalised", [True, False])
def test_shared_policies_in_the_file_and_here(normalised: bool, tmp_path: Path) -> None:
    cfg = NORMALISED if normalised else {}
    source_env = Toy("pqr", seed=3)
    models = models_for(source_env, IPPO, "pqr")
    models["q"] = models["p"]
    source = team(source_env, IPPO, "pqr", models, **cfg)
    train(source_env, source)
    source.save(tmp_path / "source.pt")
    env = Toy("abc")
    apart = team(env, IPPO, "a", **cfg)
    apart.load_teammates(tmp_path / "source.pt", {"b": "q", "c": "p"})
    assert act_alike(apart, "b", source, "p")
    assert act_alike(apart, "c", source, "q")
    models = models_for(env, IPPO, "a")
    models["c"] = models["b"]
    together = team(env, IPPO, "a", models, **cfg)
    before = state_of(models["b"]["policy"])
    with pytest.raises(CheckpointError, match=r"'b' shares its policy with \['c'\]"):
        together.load_teammates(tmp_path / "source.pt", {"b": "p"})
    with pytest.raises(
        CheckpointError, match=r"'c' from 'r': it shares its policy with one that is to have 'models/p/policy'"
    ):
        together.load_teammates(tmp_path / "source.pt", {"b": "p", "c": "r"})
    assert same(state_of(models["b"]["policy"]), before)
    together.load_teammates(tmp_path / "source.pt", {"b": "p", "c": "q"})
    assert act_alike(together, "c", source, "p")


def test_a_normaliser_that_is_shared_is_not_loaded_for_one_alone(tmp_path: Path) -> None:
    """Policies apart, one critic: b and c have one normaliser of observations."""
    source_env = Toy("pq", seed=3)
    source = team(source_env, IPPO, "pq", **NORMALISED)
    train(source_env, source)
    source.save(tmp_path / "source.pt")
    env = Toy("abc")
    models = models_for(env, IPPO, "abc")
    models["c"]["value"] = models["b"]["value"]
    agent = team(env, IPPO, "abc", models, **NORMALISED)
    before = state_of(normaliser(agent, "c"))
    with pytest.raises(CheckpointError, match=r"'b' shares its state_preprocessor with \['c'\]"):
        agent.load_teammates(tmp_path / "source.pt", {"b": "p"})
    assert same(state_of(normaliser(agent, "c")), before)


def test_every_misfit_is_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    source_env = Toy("pqr", observations={"p": 3, "q": 3, "r": 5}, seed=3)
    source = team(source_env, IPPO, "pqr", **NORMALISED)
    train(source_env, source)
    source.save(tmp_path / "source.pt")
    env = Toy("abcdef", actions={**dict.fromkeys("abcde", spaces.Discrete(4)), "f": spaces.Discrete(4)})
    models = {**models_for(env, IPPO, "a"), "f": {"policy": second_choice}}
    agent = team(env, IPPO, "a", models, **NORMALISED)
    before = {name: state_of(module) for name, module in agent.checkpoint_modules().items()}
    sources = {"b": "p", "c": "r", "d": "nobody", "x": "q", "f": "q"}
    with pytest.raises(CheckpointError) as caught:
        agent.load_teammates(tmp_path / "source.pt", sources)
    message = str(caught.value)
    for part in (
        "does not fit these agents",
        "policy 'c', 'net.0.weight': expected [8, 3], the file has [8, 5]",
        "state_preprocessor 'c', 'running_mean'",
        "'d' from 'nobody': expected one of ['a', 'b', 'c', 'd', 'e', 'f'] from one of ['p', 'q', 'r']",
        "'x' from 'q'",
        "policy 'f', 'net.0.weight': expected nothing",
        "'f' from 'q': only the file has a state_preprocessor",
    ):
        assert part in message, part
    assert "'b'" not in message.replace(str(list("abcdef")), "")  # it fits
    for name, module in agent.checkpoint_modules().items():
        assert same(state_of(module), before[name]), name


@pytest.mark.parametrize(("mine", "theirs", "who"), [({}, NORMALISED, "the file"), (NORMALISED, {}, "this agent")])
def test_a_policy_without_its_normaliser_is_refused(mine: Any, theirs: Any, who: str, tmp_path: Path) -> None:
    source = team(Toy("pq"), IPPO, "pq", **theirs)
    source.save(tmp_path / "source.pt")
    agent = team(Toy("ab"), IPPO, "a", **mine)
    with pytest.raises(CheckpointError, match=f"'b' from 'p': only {who} has a state_preprocessor"):
        agent.load_teammates(tmp_path / "source.pt", {"b": "p"})


def test_bad_files_are_refused(tmp_path: Path) -> None:
    agent = team(Toy("ab"), IPPO, "a")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        agent.load_teammates(tmp_path / "missing.pt", {"b": "a"})
    torch.save({"format": 1}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="is not a checkpoint of a team"):
        agent.load_teammates(tmp_path / "other.pt", {"b": "a"})


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_playing_against_a_past_self(kind: type[MultiAgent], tmp_path: Path) -> None:
    """The file is this very team's: what a has learned, b plays from then on, while a goes on."""
    env = Toy("ab")
    agent = team(env, kind, "a", **NORMALISED)
    files = [tmp_path / f"{i}.pt" for i in range(3)]
    past = []
    for file in files:
        train(env, agent)
        agent.save(file)
        agent.load_teammates(file, {"b": "a"})
        assert act_alike(agent, "b", agent, "a")
        past.append(state_of(agent.models["b"]["policy"]))
        assert same(past[-1], state_of(agent.models["a"]["policy"]))
        train(env, agent)
        assert same(past[-1], state_of(agent.models["b"]["policy"]))
        assert not act_alike(agent, "b", agent, "a")
    assert not any(same(x, y) for x, y in itertools.combinations(past, 2))
    agent.load_teammates(files[0], {"b": "a"})
    assert same(state_of(agent.models["b"]["policy"]), past[0])
