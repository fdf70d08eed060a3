from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from coterie.agents import IPPO, IPPO_DEFAULT_CONFIG, MAPPO, MAPPO_DEFAULT_CONFIG
from coterie.agents.config import (
    EXPERIMENT_KEYS,
    Config,
    ConfigError,
    Key,
    check_config,
    number,
    one_of,
    optional,
    pair,
    resolve,
    scheduled,
    scheduled_value,
)
from coterie.models import CategoricalPolicy, Value
from coterie.preprocessors import RunningStandardScaler, ValueNorm
from coterie.schedulers import KLAdaptiveLR, LinearSchedule
from coterie.trainers import SEQUENTIAL_TRAINER_DEFAULT_CONFIG
from coterie.trainers.sequential import _KEYS as TRAINER_KEYS

AGENTS = ["red", "blue"]
ALGORITHMS = [MAPPO, IPPO]

NAN, INF = math.nan, math.inf
NO_NUMBER = ["1", None, True, [1], {1}, NAN, INF, -INF, 1j, np.ones(1)]
NO_INTEGER = [*NO_NUMBER, 1.0, 0.5]
NO_BOOLEAN = [0, 1, "True", None, 1.0, NAN, []]
NO_CLASS = [1, "RunningStandardScaler", True, [RunningStandardScaler], NAN]
NO_KEYWORDS = [None, 1, "size=3", [("size", 3)], {1: 2}, True, NAN]

#: for each key: values that must be refused, and values that must be taken
TABLE: dict[str, tuple[list[Any], list[Any]]] = {
    "rollouts": ([*NO_INTEGER, 0, -1], [1, 1000]),
    "learning_epochs": ([*NO_INTEGER, 0, -1], [1, 50]),
    "mini_batches": ([*NO_INTEGER, 0, -1], [1, 64]),
    "discount_factor": ([*NO_NUMBER, -0.01, 1.01, 7], [0, 0.0, 0.99, 1, 1.0]),
    "lambda": ([*NO_NUMBER, -0.01, 1.01, 7], [0, 0.0, 0.95, 1.0]),
    "learning_rate": (
        [*NO_NUMBER, 0, 0.0, -1e-3, (1e-3,), (1e-3, 0), (1e-3, 1e-3, 1e-3), (1e-3, NAN), (1e-3, "1")],
        [1e-3, 1, (1e-3, 2e-3), [1e-3, 2e-3], LinearSchedule(1e-3, 0.0), (1e-3, LinearSchedule(1e-3, 0.0))],
    ),
    "learning_rate_scheduler": (NO_CLASS, [None, KLAdaptiveLR, torch.optim.lr_scheduler.StepLR]),
    "learning_rate_scheduler_kwargs": (NO_KEYWORDS, [{}, {"kl_threshold": 0.01}]),
    "state_preprocessor": (NO_CLASS, [None, RunningStandardScaler]),
    "state_preprocessor_kwargs": (NO_KEYWORDS, [{}, {"size": 3}]),
    "shared_state_preprocessor": (NO_CLASS, [None, RunningStandardScaler]),
    "shared_state_preprocessor_kwargs": (NO_KEYWORDS, [{}, {"size": 3}]),
    "value_preprocessor": (NO_CLASS, [None, RunningStandardScaler]),
    "value_preprocessor_kwargs": (NO_KEYWORDS, [{}, {"size": 1}]),
    "random_timesteps": ([*NO_INTEGER, -1], [0, 100]),
    "learning_starts": ([*NO_INTEGER, -1], [0, 100]),
    "grad_norm_clip": ([*NO_NUMBER, -0.1], [0, 0.5, 10]),
    "ratio_clip": (
        [*NO_NUMBER, 0, -0.2, (0.2,), (0.2, 0), (0.2, "x"), (0.1, 0.2, 0.3)],
        [0.2, 1, (0.2, 0.3), LinearSchedule(0.2, 0.1), [0.2, LinearSchedule(0.2, 0.1)]],
    ),
    "value_clip": ([*NO_NUMBER, 0, -0.2], [0.2, 10, LinearSchedule(0.2, 0.1)]),
    "clip_predicted_values": (NO_BOOLEAN, [True, False]),
    "huber_delta": ([*NO_NUMBER, -0.1], [0, 10.0]),
    "advantage_normalization": ([None, True, 1, "agents", ["agent"]], ["agent", "group", "off"]),
    "entropy_loss_scale": ([*NO_NUMBER, -0.1], [0, 0.01, LinearSchedule(0.1, 0.0)]),
    "value_loss_scale": ([*NO_NUMBER, -0.1], [0, 2.0]),
    "exploration_std": ([*[v for v in NO_NUMBER if v is not None], 0, -0.1], [None, 0.5, LinearSchedule(1.0, 0.1)]),
    "kl_threshold": ([*NO_NUMBER, -0.1], [0, 0.02]),
    "kl_estimator": ([None, True, 3, "k4", ["k1"]], ["k1", "k2", "k3"]),
    "rewards_shaper": ([1, "x", True, NAN], [None, lambda rewards, timestep, timesteps: rewards]),
    "time_limit_bootstrap": (NO_BOOLEAN, [True, False]),
    "mixed_precision": (NO_BOOLEAN, [True, False]),
    "trainable": (NO_BOOLEAN, [True, False]),
    "critic_input": ([None, True, 1, "states", ["state"]], ["state", "observations", "agent", "both"]),
    "experiment": ([None, 1, "runs", [], True], [{}, {"directory": "x"}]),
}

EXPERIMENT_TABLE: dict[str, tuple[list[Any], list[Any]]] = {
    "directory": ([None, 1, True, []], ["", "runs", Path("runs")]),
    "experiment_name": ([None, 1, True, []], ["", "first"]),
    "write_interval": ([None, 1.0, -1, True, "often", NAN, INF], ["auto", 0, 250]),
    "checkpoint_interval": ([None, 1.0, -1, True, "often", NAN, INF], ["auto", 0, 250]),
    "store_separately": (NO_BOOLEAN, [True, False]),
    "wandb": (NO_BOOLEAN, [True, False]),
    "wandb_kwargs": ([None, 1, "x", []], [{}, {"project": "x"}]),
}

TRAINER_TABLE: dict[str, tuple[list[Any], list[Any]]] = {
    "timesteps": ([*NO_INTEGER, -1], [0, 100]),
    "headless": (NO_BOOLEAN, [True, False]),
    "disable_progressbar": (NO_BOOLEAN, [True, False]),
    "close_environment_at_exit": (NO_BOOLEAN, [True, False]),
    "environment_info": ([None, 1, True, NAN], ["episode"]),
    "stochastic_evaluation": (NO_BOOLEAN, [True, False]),
    "evaluation_interval": ([*NO_INTEGER, -1], [0, 100]),
    "evaluation_episodes": ([*NO_INTEGER, 0, -1], [1, 100]),
    "evaluation_timesteps": ([*NO_INTEGER, 0, -1], [1, 100]),
}


def cases(table: Mapping[str, tuple[list[Any], list[Any]]], which: int) -> list[tuple[str, Any]]:
    return [(key, value) for key, entry in table.items() for value in entry[which]]


def brief(value: Any) -> str:
    """Name a case; the same in every run, so without addresses."""
    if isinstance(value, (int, float)):
        return f"{type(value).__name__} {value}"
    return value if isinstance(value, str) else type(value).__name__


def solve(given: Any, agents: list[str] = AGENTS) -> tuple[Config, dict[str, dict[str, Any]]]:
    return resolve(MAPPO_DEFAULT_CONFIG, given, MAPPO.KEYS, agents)


def with_class(name: str) -> dict[str, Any]:
    """For keyword arguments, the class that they are for."""
    owner = name.removesuffix("_kwargs")
    return {owner: TABLE[owner][1][-1]} if owner != name else {}


# ---- every key has rules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_default_has_a_rule_and_every_rule_a_default(algorithm: type[MAPPO]) -> None:
    assert {*algorithm.KEYS, "experiment"} == set(algorithm.DEFAULT_CONFIG)
    assert set(EXPERIMENT_KEYS) == set(algorithm.DEFAULT_CONFIG["experiment"])


def test_the_tables_here_cover_every_key() -> None:
    assert set(TABLE) == set(MAPPO_DEFAULT_CONFIG)
    only_mappo = {"critic_input", "shared_state_preprocessor", "shared_state_preprocessor_kwargs"}
    assert set(TABLE) == {*IPPO_DEFAULT_CONFIG, *only_mappo}
    assert set(EXPERIMENT_TABLE) == set(EXPERIMENT_KEYS)
    assert set(TRAINER_TABLE) == set(SEQUENTIAL_TRAINER_DEFAULT_CONFIG) == set(TRAINER_KEYS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_default_meets_its_rule(algorithm: type[MAPPO]) -> None:
    for name, key in algorithm.KEYS.items():
        assert key.valid(algorithm.DEFAULT_CONFIG[name]), name
    for name, key in EXPERIMENT_KEYS.items():
        assert key.valid(algorithm.DEFAULT_CONFIG["experiment"][name]), name


# ---- bad values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), cases(TABLE, 0), ids=brief)
def test_a_bad_value_is_refused_with_key_value_and_expectation(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        solve({name: value})
    message = str(error.value)
    assert name in message
    assert repr(value) in message
    assert "expected" in message


@pytest.mark.parametrize(("name", "value"), cases(TABLE, 1), ids=brief)
def test_a_good_value_is_taken_for_every_agent(name: str, value: Any) -> None:
    config, by_agent = solve({**with_class(name), name: value})
    if name == "experiment":
        assert config[name] == {**MAPPO_DEFAULT_CONFIG["experiment"], **value}
    else:
        assert config[name] == value
        assert by_agent[name] == {"red": value, "blue": value}


@pytest.mark.parametrize(("name", "value"), cases(EXPERIMENT_TABLE, 0), ids=brief)
def test_a_bad_experiment_value_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"experiment\.{name}: expected"):
        solve({"experiment": {name: value}})


@pytest.mark.parametrize(("name", "value"), cases(EXPERIMENT_TABLE, 1), ids=brief)
def test_a_good_experiment_value_leaves_its_neighbours_at_their_defaults(name: str, value: Any) -> None:
    config, _ = solve({"experiment": {name: value}})
    assert config["experiment"] == {**MAPPO_DEFAULT_CONFIG["experiment"], name: value}


@pytest.mark.parametrize(("name", "value"), cases(TRAINER_TABLE, 0), ids=brief)
def test_a_bad_trainer_value_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}: expected"):
        check_config(SEQUENTIAL_TRAINER_DEFAULT_CONFIG, {name: value}, TRAINER_KEYS)


@pytest.mark.parametrize(("name", "value"), cases(TRAINER_TABLE, 1), ids=brief)
def test_a_good_trainer_value_is_taken(name: str, value: Any) -> None:
    config = check_config(SEQUENTIAL_TRAINER_DEFAULT_CONFIG, {name: value}, TRAINER_KEYS)
    assert config == {**SEQUENTIAL_TRAINER_DEFAULT_CONFIG, name: value}


# ---- misspelt keys --------------------------------------------------------------------------------------------------


def misspellings(name: str) -> list[str]:
    middle = len(name) // 2
    return [name[:middle] + name[middle + 1 :], name[:middle] + "x" + name[middle:], name[:-1] + "q"]


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_misspelt_key_is_refused_with_the_nearest(name: str) -> None:
    for wrong in misspellings(name):
        with pytest.raises(ConfigError, match=rf"unknown key {wrong!r}: did you mean {name!r}\?"):
            solve({wrong: MAPPO_DEFAULT_CONFIG[name]})


@pytest.mark.parametrize("name", sorted(EXPERIMENT_KEYS))
def test_a_misspelt_experiment_key_is_refused_with_the_nearest(name: str) -> None:
    for wrong in misspellings(name):
        with pytest.raises(ConfigError, match=rf"unknown key 'experiment\.{wrong}': did you mean {name!r}\?"):
            solve({"experiment": {wrong: 1}})


@pytest.mark.parametrize("name", sorted(TRAINER_TABLE))
def test_a_misspelt_trainer_key_is_refused_with_the_nearest(name: str) -> None:
    for wrong in misspellings(name):
        with pytest.raises(ConfigError, match=rf"unknown key {wrong!r}: did you mean {name!r}\?"):
            check_config(SEQUENTIAL_TRAINER_DEFAULT_CONFIG, {wrong: 1}, TRAINER_KEYS)


def test_a_key_like_none_is_refused_with_all() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'zzz': the keys are \['advantage_normalization', "):
        solve({"zzz": 1})
    with pytest.raises(ConfigError, match="unknown key '3'"):
        solve({3: 1})


@pytest.mark.parametrize("given", [1, "cfg", [("rollouts", 3)], True])
def test_a_configuration_that_is_no_dict_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="cfg: expected a dict or None"):
        solve(given)


# ---- values by agent ------------------------------------------------------------------------------------------------

PER_AGENT = sorted(name for name, key in MAPPO.KEYS.items() if key.per_agent)


def test_all_but_the_rollout_and_the_critics_input_may_differ_between_agents() -> None:
    assert set(MAPPO.KEYS) - set(PER_AGENT) == {"rollouts", "critic_input"}
    with pytest.raises(ConfigError, match="rollouts: expected an integer of at least 1, the same for all agents"):
        solve({"rollouts": {"red": 8, "blue": 16}})


@pytest.mark.parametrize("name", PER_AGENT)
def test_a_value_for_each_agent(name: str) -> None:
    first, second = TABLE[name][1][0], TABLE[name][1][-1]
    _, by_agent = solve({**with_class(name), name: {"blue": second, "red": first}})
    assert by_agent[name] == {"red": first, "blue": second}
    assert list(by_agent[name]) == AGENTS


@pytest.mark.parametrize("name", PER_AGENT)
def test_a_bad_value_of_one_agent_is_named(name: str) -> None:
    bad, good = TABLE[name][0], TABLE[name][1]
    for value in bad:
        with pytest.raises(ConfigError, match=rf"{name}\['blue'\]: expected"):
            solve({name: {"red": good[0], "blue": value}})


@pytest.mark.parametrize("name", PER_AGENT)
@pytest.mark.parametrize(
    ("agents", "message"),
    [
        (["red"], r"missing \['blue'\], unknown \[\]"),
        (["red", "blue", "green"], r"missing \[\], unknown \['green'\]"),
        (["red", "bleu"], r"missing \['blue'\], unknown \['bleu'\]"),
    ],
)
def test_a_dict_that_does_not_cover_the_agents_is_refused(name: str, agents: list[str], message: str) -> None:
    good = TABLE[name][1][0]
    with pytest.raises(ConfigError, match=message):
        solve({name: dict.fromkeys(agents, good)})


@pytest.mark.parametrize("name", [n for n in PER_AGENT if not MAPPO.KEYS[n].holds_dict])
def test_an_empty_dict_is_no_value_for_anyone(name: str) -> None:
    with pytest.raises(ConfigError, match=r"missing \['red', 'blue'\]"):
        solve({name: {}})


def test_keyword_arguments_are_told_from_keyword_arguments_by_agent() -> None:
    name = "learning_rate_scheduler_kwargs"
    kind = {"learning_rate_scheduler": KLAdaptiveLR}
    plain = {"kl_threshold": 0.01}
    assert solve({**kind, name: plain})[1][name] == {"red": plain, "blue": plain}
    assert solve({**kind, name: {}})[1][name] == {"red": {}, "blue": {}}
    mine = {"red": {"kl_threshold": 0.01}, "blue": {}}
    assert solve({**kind, name: mine})[1][name] == mine
    assert solve({**kind, name: {"red": {}, "blue": {}}})[1][name] == {"red": {}, "blue": {}}
    with pytest.raises(ConfigError, match=r"missing \['blue'\]"):
        solve({**kind, name: {"red": {"kl_threshold": 0.01}}})
    with pytest.raises(ConfigError, match=r"missing \['blue'\], unknown \['bleu'\]"):
        solve({**kind, name: {"red": {"kl_threshold": 0.01}, "bleu": {}}})
    with pytest.raises(ConfigError, match=r"missing \['blue'\], unknown \['kl_threshold'\]"):
        solve({**kind, name: {"red": {}, "kl_threshold": 0.01}})


KWARGS = [name for name in MAPPO.KEYS if name.endswith("_kwargs")]


@pytest.mark.parametrize("name", KWARGS)
def test_arguments_of_a_class_that_is_not_there_are_refused(name: str) -> None:
    owner = name.removesuffix("_kwargs")
    with pytest.raises(
        ConfigError, match=rf"{name}: got {{'a': 1}} for 'red', .* since {owner} is None; expected a class in {owner}"
    ):
        solve({name: {"a": 1}})
    with pytest.raises(ConfigError, match=rf"{name}: got {{'a': 1}} for 'blue'"):
        solve({owner: {"red": ValueNorm, "blue": None}, name: {"red": {"a": 1}, "blue": {"a": 1}}})
    solve({owner: {"red": ValueNorm, "blue": None}, name: {"red": {"a": 1}, "blue": {}}})


@pytest.mark.parametrize("name", KWARGS)
def test_arguments_that_say_nothing_may_stay_where_a_class_is_left_out(name: str) -> None:
    for given in ({}, {"size": 3, "device": "cpu"}, {"red": {"size": 3}, "blue": {}}):
        assert solve({name: given})[0][name] == given


def test_false_and_zero_of_one_agent_are_values() -> None:
    _, by_agent = solve({"clip_predicted_values": {"red": False, "blue": True}, "kl_threshold": {"red": 0, "blue": 1}})
    assert by_agent["clip_predicted_values"] == {"red": False, "blue": True}
    assert by_agent["kl_threshold"] == {"red": 0, "blue": 1}


# ---- the parts that requirements are made of -------------------------------------------------------------------------


def test_requirements_are_put_together_with_their_words() -> None:
    clip = pair(scheduled(number(0.0, above=True)), "below, above")
    assert clip.expected == (
        "a number above 0.0, or a schedule (timestep, timesteps) -> number, or a pair of these (below, above)"
    )
    assert optional(number(0.0, 1.0)).expected == "a number of at least 0.0 and at most 1.0, or None"
    assert one_of("x", "y").expected == "one of 'x', 'y'"
    alone = number(0.0, per_agent=False)
    assert not any(key.per_agent for key in (pair(alone, "x, y"), scheduled(alone), optional(alone)))
    assert not one_of("x", per_agent=False).per_agent
    assert all(key.per_agent for key in (clip, optional(clip), one_of("x")))


def test_requirements_are_put_together_with_their_checks() -> None:
    clip = pair(scheduled(number(0.0, above=True)), "below, above")
    fade = LinearSchedule(1.0, 0.0)
    for good in (1, 0.5, fade, (0.5, fade), [fade, fade], lambda timestep, timesteps: -1.0):
        assert clip.valid(good), good
    for bad in (0.0, None, "x", (), (1.0,), (1.0, 0.0), (1.0, None), (1.0, 1.0, 1.0), ((1.0, 1.0), 1.0), {1.0, 2.0}):
        assert not clip.valid(bad), bad
    maybe = optional(number(0.0, 1.0))
    assert [maybe.valid(value) for value in (None, 0.0, 1.0, 1.5, fade, (0.5, 0.5))] == [True] * 3 + [False] * 3
    word = one_of("x", "y")
    assert [word.valid(value) for value in ("x", "y", "z", None, ["x"], 0)] == [True] * 2 + [False] * 4


def test_what_a_schedule_gives_is_checked() -> None:
    assert scheduled_value("rate", LinearSchedule(1.0, 0.0), 3, 4) == 0.25
    value = scheduled_value("rate", lambda timestep, timesteps: np.float32(timestep), 3, 4)
    assert (value, type(value)) == (3.0, float)
    assert scheduled_value("rate", lambda timestep, timesteps: 0, 3, 4) == 0.0
    for bad in (-0.1, NAN, INF, None, "1", True, (1.0, 2.0)):
        with pytest.raises(
            ConfigError, match=r"rate: expected its schedule to give a number of at least 0\.0, got .* at step 3"
        ):
            scheduled_value("rate", lambda timestep, timesteps, bad=bad: bad, 3, 4)
    with pytest.raises(ConfigError, match=r"a number above 0\.0, got 0 at step 3"):
        scheduled_value("rate", lambda timestep, timesteps: 0, 3, 4, above=True)


# ---- whose dict is whose --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, {}])
def test_nothing_means_the_defaults(given: Any) -> None:
    config, by_agent = solve(given)
    assert config == MAPPO_DEFAULT_CONFIG
    assert set(by_agent) == set(MAPPO.KEYS)
    assert all(set(values) == set(AGENTS) for values in by_agent.values())
    assert check_config(SEQUENTIAL_TRAINER_DEFAULT_CONFIG, given, TRAINER_KEYS) == SEQUENTIAL_TRAINER_DEFAULT_CONFIG


@pytest.mark.parametrize("defaults", [MAPPO_DEFAULT_CONFIG, IPPO_DEFAULT_CONFIG, SEQUENTIAL_TRAINER_DEFAULT_CONFIG])
def test_a_copy_is_deep(defaults: Config) -> None:
    before = copy.deepcopy(dict(defaults))
    mine = defaults.copy()
    assert type(mine) is Config
    assert mine == defaults
    for name, value in mine.items():
        if isinstance(value, dict):
            value["added"] = 1
        else:
            mine[name] = "changed"
    assert defaults == before


def test_the_users_dict_is_left_alone_and_later_edits_have_no_effect() -> None:
    given: dict[str, Any] = {
        "ratio_clip": {"red": 0.1, "blue": 0.2},
        "learning_rate": [1e-3, 2e-3],
        "state_preprocessor_kwargs": {"size": 3},
        "experiment": {"directory": "here"},
    }
    before = copy.deepcopy(given)
    config, by_agent = solve(given)
    assert given == before
    given["ratio_clip"]["red"] = 9.0
    given["learning_rate"][0] = 9.0
    given["state_preprocessor_kwargs"]["size"] = 9
    given["experiment"]["directory"] = "there"
    assert config["experiment"]["directory"] == "here"
    assert by_agent["ratio_clip"]["red"] == 0.1
    assert by_agent["learning_rate"]["red"] == [1e-3, 2e-3]
    assert by_agent["state_preprocessor_kwargs"]["blue"] == {"size": 3}
    config["experiment"]["directory"] = "elsewhere"
    assert MAPPO_DEFAULT_CONFIG["experiment"]["directory"] == ""


class Shaper:
    """A user's object, which can't be copied: copying it would detach it from its owner."""

    def __init__(self) -> None:
        self.calls = 0

    def __deepcopy__(self, memo: Any) -> Shaper:
        raise AssertionError("copied")

    def shape(self, rewards: Any, timestep: int, timesteps: int) -> Any:
        self.calls += 1
        return rewards


@pytest.mark.parametrize("wrap", [lambda s: s.shape, lambda s: functools.partial(Shaper.shape, s)])
def test_functions_are_not_copied(wrap: Any) -> None:
    shaper = Shaper()
    mine = MAPPO_DEFAULT_CONFIG.copy()
    mine["rewards_shaper"] = wrap(shaper)
    _, by_agent = solve(mine.copy())
    by_agent["rewards_shaper"]["red"](0, 0, 0)
    assert shaper.calls == 1


def test_a_rule_without_values_by_agent_checks_dicts_as_values() -> None:
    keys = {"table": Key("a dict", lambda v: isinstance(v, dict), per_agent=False, holds_dict=True)}
    assert check_config({"table": {}}, {"table": {"red": 1}}, keys) == {"table": {"red": 1}}


# ---- agents refuse what the rules refuse ----------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_agent_checks_its_configuration(algorithm: type[MAPPO]) -> None:
    space, actions = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)
    models = {uid: {"policy": CategoricalPolicy(space, actions), "value": Value(space, actions)} for uid in AGENTS}
    agent = algorithm(AGENTS, models, cfg={"ratio_clip": {"red": 0.1, "blue": 0.3}})
    assert agent.agent_cfg["ratio_clip"] == {"red": 0.1, "blue": 0.3}
    with pytest.raises(ConfigError, match="did you mean 'discount_factor'"):
        algorithm(AGENTS, models, cfg={"discount_factr": 0.9})
    with pytest.raises(ConfigError, match=r"discount_factor: expected a number of at least 0.0 and at most 1.0, got 7"):
        algorithm(AGENTS, models, cfg={"discount_factor": 7})


def test_ippo_knows_nothing_of_shared_states() -> None:
    with pytest.raises(ConfigError, match="unknown key 'shared_state_preprocessor'"):
        resolve(IPPO_DEFAULT_CONFIG, {"shared_state_preprocessor": None}, IPPO.KEYS, AGENTS)


@pytest.mark.parametrize("key", ["critic_input", "td_lambda", "mixer_input"])
def test_a_key_of_another_algorithm_is_told_from_a_misspelt_one(key: str) -> None:
    models = {uid: {"policy": CategoricalPolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(2))} for uid in AGENTS}
    owners = {"critic_input": "MAPPO", "td_lambda": "IQL, QMIX, VDN", "mixer_input": "QMIX"}
    with pytest.raises(ConfigError, match=rf"unknown key '{key}': it belongs to {owners[key]}; leave it out"):
        IPPO(AGENTS, models, cfg={key: 0})

    class Mine(MAPPO):
        """A user's own: no message names it."""

        DEFAULT_CONFIG = Config({**MAPPO_DEFAULT_CONFIG, "mine": 1})

    with pytest.raises(ConfigError, match="unknown key 'mine': "):
        IPPO(AGENTS, models, cfg={"mine": 0})
    with pytest.raises(ConfigError, match=r"'critic_input': it belongs to MAPPO;"):
        IPPO(AGENTS, models, cfg={"critic_input": 0})


@pytest.mark.parametrize("key", ["value_preprocessor", "state_preprocessor", "shared_state_preprocessor"])
def test_a_normaliser_in_place_of_its_class_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: expected a class of normalisers .*_kwargs.*, got ValueNorm\(\)"):
        solve({key: ValueNorm(1)})
    solve({key: functools.partial(ValueNorm, beta=0.9)})


def test_numpy_numbers_are_numbers() -> None:
    given = {"rollouts": np.int64(8), "learning_rate": np.float32(1e-3), "discount_factor": np.float64(0.9)}
    config, by_agent = resolve(MAPPO_DEFAULT_CONFIG, given, MAPPO.KEYS, ["a"])
    assert config["rollouts"] == 8
    assert by_agent["learning_rate"]["a"] == pytest.approx(1e-3)
