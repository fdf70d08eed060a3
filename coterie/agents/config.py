"""Agents' configurations: plain dicts, merged with their defaults and checked once, at construction."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = [
    "EXPERIMENT_KEYS",
    "Config",
    "ConfigError",
    "Key",
    "boolean",
    "callable_or_none",
    "check_config",
    "integer",
    "keyword_arguments",
    "learning_rate",
    "normaliser",
    "number",
    "one_of",
    "optional",
    "pair",
    "resolve",
    "scheduled",
    "scheduled_value",
]


class ConfigError(ValueError):
    """A configuration has an unknown key, a bad value, or a per-agent dict that does not cover the agents."""


class Config(dict[str, Any]):
    """A dict whose :meth:`copy` is deep, so that editing the copy's nested dicts leaves the original alone."""

    def copy(self) -> Config:
        """Return an independent copy, nested dicts included; functions and other objects stay those that they are."""
        return Config(_copy(self))


def _copy(value: Any) -> Any:
    """Copy containers all the way down, and nothing else: a method deep-copied would bring a copy of its object along."""
    if isinstance(value, Mapping):
        return {name: _copy(item) for name, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Key:
    """What a key's value must be.

    :param expected: the requirement in words, for error messages
    :param valid: whether a value meets it
    :param per_agent: whether a dict by agent may stand in its place
    :param holds_dict: whether the value itself is a dict
    """

    expected: str
    valid: Callable[[Any], bool]
    per_agent: bool = True
    holds_dict: bool = False


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def number(low: float, high: float = math.inf, *, above: bool = False, per_agent: bool = True) -> Key:
    """A finite number in ``[low, high]``, or in ``(low, high]`` with ``above``."""
    span = f"{'above' if above else 'of at least'} {low}" + ("" if high == math.inf else f" and at most {high}")
    return Key(
        f"a number {span}",
        lambda v: _is_number(v) and (low < v if above else low <= v) and v <= high,
        per_agent,
    )


def one_of(*names: str, per_agent: bool = True) -> Key:
    """One of some words."""
    return Key(f"one of {', '.join(map(repr, names))}", lambda v: isinstance(v, str) and v in names, per_agent)


def scheduled(key: Key) -> Key:
    """What ``key`` asks for, or a schedule of it: a function ``(timestep, timesteps) -> number``."""
    expected = f"{key.expected}, or a schedule (timestep, timesteps) -> number"
    return Key(expected, lambda v: callable(v) or key.valid(v), key.per_agent)


def scheduled_value(
    name: str,
    schedule: Callable[[int, int], float],
    timestep: int,
    timesteps: int,
    *,
    above: bool = False,
    high: float = math.inf,
) -> float:
    """What a schedule gives for a time step.

    :raises ConfigError: anything but a finite number of at least 0, or above it with ``above``, and at most ``high``
    """
    value, key = schedule(timestep, timesteps), number(0.0, high, above=above)
    if not key.valid(value):
        raise ConfigError(f"{name}: expected its schedule to give {key.expected}, got {value!r} at step {timestep}")
    return float(value)


def optional(key: Key) -> Key:
    """What ``key`` asks for, or None."""
    return Key(f"{key.expected}, or None", lambda v: v is None or key.valid(v), key.per_agent)


def pair(key: Key, names: str) -> Key:
    """What ``key`` asks for, or two of it."""

    def valid(value: Any) -> bool:
        if isinstance(value, (tuple, list)):
            return len(value) == 2 and all(key.valid(v) for v in value)
        return key.valid(value)

    return Key(f"{key.expected}, or a pair of these ({names})", valid, key.per_agent)


def integer(low: int, *, per_agent: bool = True) -> Key:
    """An integer of at least ``low``."""
    return Key(
        f"an integer of at least {low}",
        lambda v: isinstance(v, numbers.Integral) and not isinstance(v, bool) and int(v) >= low,
        per_agent,
    )


def boolean(*, per_agent: bool = True) -> Key:
    """True or False."""
    return Key("True or False", lambda v: isinstance(v, bool), per_agent)


def callable_or_none(what: str) -> Key:
    """A class or function, or None."""
    return Key(f"{what}, or None", lambda v: v is None or callable(v))


def normaliser() -> Key:
    """A class of normalisers, or a function that makes one, or None; not a normaliser itself."""
    return Key(
        "a class of normalisers such as RunningStandardScaler (whose arguments go into the key that ends in _kwargs), or None",
        lambda v: v is None or (callable(v) and not isinstance(v, nn.Module)),
    )


def keyword_arguments() -> Key:
    """A dict of keyword arguments."""
    return Key(
        "a dict of keyword arguments",
        lambda v: isinstance(v, Mapping) and all(isinstance(name, str) for name in v),
        holds_dict=True,
    )


def learning_rate() -> Key:
    """A positive number or a schedule of it, or a pair of these for policy and value."""
    return pair(scheduled(number(0.0, above=True)), "policy, value")


def _interval() -> Key:
    return Key(
        "an integer of at least 0 (0: never), or 'auto'",
        lambda v: v == "auto" or (isinstance(v, int) and not isinstance(v, bool) and v >= 0),
        per_agent=False,
    )


def _text() -> Key:
    return Key("a string or a path", lambda v: isinstance(v, str) or hasattr(v, "__fspath__"), per_agent=False)


EXPERIMENT_KEYS: dict[str, Key] = {
    "directory": _text(),
    "experiment_name": _text(),
    "write_interval": _interval(),
    "checkpoint_interval": _interval(),
    "store_separately": boolean(per_agent=False),
    "wandb": boolean(per_agent=False),
    "wandb_kwargs": Key("a dict of keyword arguments", lambda v: isinstance(v, Mapping), per_agent=False),
}


def check_config(defaults: Mapping[str, Any], given: Mapping[str, Any] | None, keys: Mapping[str, Key]) -> Config:
    """Merge a configuration without per-agent values with its defaults and check it.

    :raises ConfigError: an unknown key or a bad value
    """
    config = _merge(defaults, given)
    for name, key in keys.items():
        _check(name, config[name], key)
    return config


def _merge(
    defaults: Mapping[str, Any],
    given: Mapping[str, Any] | None,
    owners: Callable[[str], Sequence[str]] = lambda key: (),
) -> Config:
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"cfg: expected a dict or None, got {type(given).__name__}")
    given = {} if given is None else given
    _known(given, defaults, "", owners)
    return Config({**_copy(defaults), **_copy(given)})


def resolve(
    defaults: Mapping[str, Any],
    given: Mapping[str, Any] | None,
    keys: Mapping[str, Key],
    agents: Sequence[str],
    owners: Callable[[str], Sequence[str]] = lambda key: (),
) -> tuple[Config, dict[str, dict[str, Any]]]:
    """Merge a user's configuration with the defaults and check every value.

    :param defaults: the complete default configuration
    :param given: what the user passed, left unchanged; None and ``{}`` mean the defaults
    :param keys: the requirement of each key but ``experiment``
    :param agents: the agents' names
    :param owners: which algorithms have a key, for messages about one that this algorithm does not have

    :return: the merged configuration, and for each key that agents may differ in a dict with every agent's value

    :raises ConfigError: see the class
    """
    config = _merge(defaults, given, owners)
    experiment = config["experiment"]
    if not isinstance(experiment, Mapping):
        raise ConfigError(f"experiment: expected a dict, got {experiment!r}")
    _known(experiment, EXPERIMENT_KEYS, "experiment.")
    config["experiment"] = {**_copy(defaults["experiment"]), **experiment}
    for name, key in EXPERIMENT_KEYS.items():
        _check(f"experiment.{name}", config["experiment"][name], key)
    by_agent: dict[str, dict[str, Any]] = {}
    for name, key in keys.items():
        value = config[name]
        if _is_per_agent(value, key, agents):
            if not key.per_agent:
                raise ConfigError(f"{name}: expected {key.expected}, the same for all agents, got a dict")
            _covers(name, value, agents)
            by_agent[name] = {uid: value[uid] for uid in agents}
            for uid in agents:
                _check(f"{name}[{uid!r}]", value[uid], key)
        else:
            _check(name, value, key)
            by_agent[name] = dict.fromkeys(agents, value)
    _check_arguments(by_agent)
    return config, by_agent


def _check_arguments(by_agent: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse keyword arguments of a class that is not there. Those that would be filled in say nothing, and may stay.

    :raises ConfigError: see above
    """
    for name, arguments in by_agent.items():
        owner = name.removesuffix("_kwargs")
        if owner == name or owner not in by_agent:
            continue
        for uid, given in arguments.items():
            if by_agent[owner][uid] is None and set(given) - {"size", "device"}:
                raise ConfigError(
                    f"{name}: got {given!r} for {uid!r}, which has no effect since {owner} is None; expected a class in "
                    f"{owner}, or {{}}"
                )


def _known(
    given: Iterable[Any], known: Iterable[str], prefix: str, owners: Callable[[str], Sequence[str]] = lambda key: ()
) -> None:
    known = list(known)
    for name in given:
        if name not in known:
            others = owners(str(name))
            if others:
                raise ConfigError(
                    f"unknown key {prefix + str(name)!r}: it belongs to {', '.join(others)}; leave it out"
                )
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"the keys are {sorted(known)}"
            raise ConfigError(f"unknown key {prefix + str(name)!r}: {hint}")


def _is_per_agent(value: Any, key: Key, agents: Sequence[str]) -> bool:
    if not isinstance(value, Mapping):
        return False
    if not key.holds_dict:
        return True
    # keyword arguments are a dict themselves: one by agent has agents as keys, or dicts (or nothing) as values throughout
    names_agents = any(name in agents for name in value)
    return names_agents or (len(value) > 0 and all(v is None or isinstance(v, Mapping) for v in value.values()))


def _covers(name: str, value: Mapping[str, Any], agents: Sequence[str]) -> None:
    missing = [uid for uid in agents if uid not in value]
    unknown = [uid for uid in value if uid not in agents]
    if missing or unknown:
        raise ConfigError(
            f"{name}: a dict by agent must have exactly the agents {list(agents)}; missing {missing}, unknown {unknown}"
        )


def _check(name: str, value: Any, key: Key) -> None:
    if not key.valid(value):
        raise ConfigError(f"{name}: expected {key.expected}, got {value!r}")
