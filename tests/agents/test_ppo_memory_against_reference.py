"""Updates of agents with a memory against the slow reference: chunks, resets, frozen states, and what critics remember."""

from __future__ import annotations

from typing import Any

import pytest

from coterie.preprocessors import PopArt, RunningStandardScaler, ValueNorm
from coterie.schedulers import KLAdaptiveLR
from tests.agents.ppo_memory_models import remembering
from tests.agents.ppo_runs import CLASSES, CUTS, ENDINGS, Case, Run, T, run_by_both
from tests.agents.ppo_teams import Team, alike, built, mixed

NORMALISERS = {
    "state_preprocessor": RunningStandardScaler, "value_preprocessor": ValueNorm, "value_preprocessor_kwargs": {"beta": 0.9},
}  # fmt: skip
SHARED_SCALER = {"shared_state_preprocessor": RunningStandardScaler}
POPART = {"value_preprocessor": PopArt, "value_preprocessor_kwargs": {"beta": 0.6}}
BOTH = ("mappo", "ippo")
# the first agent is terminated alone while the others go on; memories are zeroed agent by agent
ALONE = (
    {"first": [(2, 0), (7, 1), (3, 1)], "truncated": [(4, 2)], "terminated": [(6, 0)]},
    {"first": [(0, 0), (4, 2)], "truncated": [(3, 1), (7, 0)], "mixed": [(5, 2)]},
)


def ready(rnn: str, **kwargs: Any) -> Any:
    """Ready-made models with a memory."""
    options = {"rnn": rnn, "rnn_size": 5, "sequence_length": 3, "hidden": (6,), **kwargs}
    return lambda team, algorithm: built(team, algorithm, **options)


def mixture(team: Any, algorithm: str) -> Any:
    """The first and the last agent share, the others have their own."""
    models = remembering()(team, algorithm)
    return {**models, team.possible_agents[-1]: models[team.possible_agents[0]]}


def pairs(team: Any, algorithm: str) -> Any:
    """Two sets of one architecture, whose agents alternate."""
    models = remembering(policy="library gru", value="library lstm")(team, algorithm)
    a = team.possible_agents
    return {**models, a[2]: models[a[0]], a[3]: models[a[1]]}


def chain(team: Any, algorithm: str) -> Any:
    """0 and 1 share a policy, 1 and 2 a critic."""
    models = remembering()(team, algorithm)
    a, b, c = team.possible_agents
    return {
        a: models[a],
        b: {"policy": models[a]["policy"], "value": models[b]["value"]},
        c: {"policy": models[c]["policy"], "value": models[b]["value"]},
    }


def kinds_of_one() -> Team:
    """A team in which no two agents are of one kind."""
    return Team({"a0": "discrete", "b0": "gaussian", "c0": "multidiscrete"})


def one_normalised(name: str, **kwargs: Any) -> Case:
    """One critic of all kinds, with everything normalised."""
    everything = {**NORMALISERS, **SHARED_SCALER}
    return case(name, mixed, remembering("gru", "library gru", shared_critic=True), everything, ("mappo",), **kwargs)


def case(name: str, team: Any, models: Any, cfg: Any = None, algorithms: Any = BOTH, **kwargs: Any) -> Case:
    return Case(name, team, models, cfg or {}, algorithms, **kwargs)


LIVES: dict[str, Any] = {"style": "lives", "masked": True}

# fmt: off
CASES = [
    # every kind of memory, by all that act and learn always
    *(
        case(f"{kind}, {name}", lambda: alike(3), remembering(kind, kind, share), algorithms=(algorithm,))
        for kind, name, share, algorithm in (
            ("gru", "distinct", False, "mappo"), ("gru", "shared", True, "ippo"),
            ("lstm", "distinct", False, "ippo"), ("lstm", "shared", True, "mappo"),
            ("library gru", "distinct", False, "ippo"), ("library gru", "shared", True, "mappo"),
            ("library lstm", "distinct", False, "mappo"), ("library lstm", "shared", True, "ippo"),
        )
    ),
    case("two layers", lambda: alike(3), remembering("gru", "lstm", layers=2), algorithms=("ippo",)),
    case("two layers of the library", lambda: alike(3), remembering("library lstm", "library gru", True, layers=2)),
    case("many by hand", lambda: alike(6), remembering("gru", "gru"), algorithms=("ippo",)),
    case("ready-made gru, shared", lambda: alike(3), ready("gru", shared=True)),
    case("ready-made gru, distinct", lambda: alike(3), ready("gru", shared=False)),
    case("ready-made lstm, shared", lambda: alike(3), ready("lstm", shared=True, rnn_layers=2)),
    case("ready-made lstm, distinct", lambda: alike(3), ready("lstm", shared=False, rnn_layers=2)),
    case("ready-made gaussian", lambda: alike(3, "gaussian"), ready("gru", shared=False), algorithms=("ippo",)),
    case("ready-made multidiscrete", lambda: alike(3, "multidiscrete"), ready("gru", shared=True), algorithms=("mappo",)),
    case("ready-made, two groups", mixed, ready("gru", shared=True)),
    # lengths: of one row, of all, of more than all, that divide the rollout and that don't
    *(
        case(f"length {length}", lambda: alike(2), remembering("library gru", "library gru", length=length), algorithms=(a,))
        for length, a in ((1, "mappo"), (2, "ippo"), (4, "mappo"), (5, "ippo"), (7, "mappo"), (8, "ippo"), (99, "mappo"))
    ),
    # who remembers
    *(
        case(f"{who} remembers, {name}", lambda: alike(3), remembering(policy, value, share), cfg)
        for who, policy, value in (("policy", "gru", None), ("critic", None, "gru"))
        for name, share, cfg in (("shared", True, {}), ("distinct", False, NORMALISERS))
    ),
    # ends of single agents' lives
    case("ends alone, shared", lambda: alike(3), remembering(share=True), endings=ALONE),
    case("ends alone, distinct", lambda: alike(3), remembering("lstm", "lstm"), endings=ALONE),
    case("ends alone, library", lambda: alike(3), remembering("library lstm", "library gru"), endings=ALONE),
    case("a whole kind ends alone, one critic", mixed, remembering(None, "gru", shared_critic=True), {}, ("mappo",),
         endings=ALONE),
    # masks and absence
    *(
        case(f"{style}, {kind}, {name}", lambda: alike(3), remembering(kind, kind, share), cfg,
             style=style, masked=True)
        for style in ("lives", "turns", "waits")
        for kind, name, share, cfg in (
            ("gru", "distinct", False, {}), ("library lstm", "shared", True, NORMALISERS),
            ("library gru", "distinct", False, NORMALISERS),
        )
    ),
    case("lives, one memory per environment", lambda: alike(3), remembering(None, "gru", shared_critic=True), {},
         ("mappo",), **LIVES),
    case("lives, ids", lambda: alike(3), remembering(share=True, ids=True), **LIVES),
    case("lives, not told again", lambda: alike(3), remembering("library gru", "gru"), told=False, **LIVES),
    case("lives, ready-made", lambda: alike(3), ready("gru", shared=True), NORMALISERS, **LIVES),
    case("lives, ready-made, distinct", lambda: alike(3), ready("lstm", shared=False), NORMALISERS, **LIVES),
    case("lives, ready-made, two groups", mixed, ready("lstm", shared=True), {**NORMALISERS, **SHARED_SCALER}, ("mappo",),
         **LIVES),
    case("lives, two groups", mixed, remembering("gru", "lstm", share=True), NORMALISERS, **LIVES),
    case("lives, two groups, one critic", mixed, remembering(None, "gru", shared_critic=True), {}, ("mappo",), **LIVES),
    case("lives, mixture", lambda: alike(4), mixture, NORMALISERS, **LIVES),
    case("lives, pairs", lambda: alike(4), pairs, {**NORMALISERS, **SHARED_SCALER}, ("mappo",), **LIVES),
    case("lives, chain", lambda: alike(3), chain, NORMALISERS, **LIVES),
    case("lives, one agent", lambda: alike(1), remembering(), NORMALISERS, style="waits"),
    case("lives, multidiscrete", lambda: alike(3, "multidiscrete"), remembering("library gru", "gru", True), **LIVES),
    # absent at the end of an episode, and cut off while others go on
    case("leaves", lambda: alike(3), remembering("gru", "gru"), style="leaves", masked=True),
    case("leaves, shared", mixed, remembering("library lstm", "gru", True), NORMALISERS, style="leaves", masked=True),
    *(
        case(f"cut alone, {style}, critic sees {sees}", lambda: alike(4), remembering("gru", "gru", share, sees=sees), {
            "critic_input": sees,
        }, ("mappo",), style=style, masked=True, endings=CUTS)
        for style, sees, share in (("lives", "observations", True), ("leaves", "agent", False), ("waits", "both", False))
    ),
    # rollouts that are not learned from are remembered
    case("learns later", lambda: alike(3), remembering("gru", "gru"), {"learning_starts": T}),
    case("learns later, shared", lambda: alike(3), remembering(None, "library lstm", True), {"learning_starts": T}),
    case("learns later, lives", mixed, remembering("lstm", "gru", True), {"learning_starts": T}, **LIVES),
    case("some learn later", lambda: alike(3), remembering("gru", "lstm"), {
        "learning_starts": {"a0": T, "a1": 0, "a2": T},
    }, **LIVES),
    # what critics see and remember
    *(
        case(f"critic sees {sees}, {name}", lambda: alike(3), remembering("gru", "gru", share, sees=sees), {
            "critic_input": sees, **cfg,
        }, ("mappo",), **LIVES)
        for sees in ("state", "observations", "agent", "both")
        for name, share, cfg in (("shared", True, {}), ("distinct", False, {**NORMALISERS, **SHARED_SCALER}))
    ),
    # one agent of each kind: what its critic sees decides on what it remembers, and until when
    *(
        case(f"kinds of one, {name}, critic sees {sees}, {ends}", kinds_of_one,
             remembering("gru", kind, shared_critic=one, sees=sees), {"critic_input": sees}, ("mappo",),
             style=style, endings=endings)
        for name, kind, one, inputs in (
            ("own critics", "gru", False, ("state", "agent")), ("one critic", "library lstm", True, ("state", "both")),
        )
        for sees in inputs
        for ends, style, endings in (("lives", "lives", ENDINGS), ("ends alone", None, ALONE), ("waits", "waits", ALONE))
    ),
    case("kinds of one, own critics", kinds_of_one, remembering("gru", "gru"), NORMALISERS, ("ippo",), **LIVES),
    one_normalised("two groups, one critic, normalised"),
    one_normalised("two groups, one critic, normalised, lives", **LIVES),
    one_normalised("two groups, one critic, normalised, ends alone", endings=ALONE, style="waits"),
    # the rest of the configuration
    case("no bootstrap", lambda: alike(3), remembering(), {"time_limit_bootstrap": False}, **LIVES),
    case("popart", lambda: alike(3), remembering("library gru", "library gru"), POPART, **LIVES),
    case("popart, shared", lambda: alike(3), remembering("gru", "lstm", True), POPART, **LIVES),
    case("group's advantages, huber", lambda: alike(3), remembering(share=True), {
        "advantage_normalization": "group", "huber_delta": 0.5, "ratio_clip": (0.02, 0.1),
    }, **LIVES),
    case("uneven minibatches", lambda: alike(3), remembering(share=True), {"mini_batches": 4}, **LIVES),
    case("one minibatch", lambda: alike(3), remembering(), {"mini_batches": 1}, **LIVES),
    case("adaptive rate", lambda: alike(3), remembering(share=True, length=2), {
        "mini_batches": 3, "learning_rate_scheduler": KLAdaptiveLR, "learning_rate_scheduler_kwargs": {"kl_threshold": 1e-3},
    }, **LIVES),
    case("two rates", lambda: alike(3), remembering(), {"learning_rate": (1e-3, 6e-3), "grad_norm_clip": 0.1}, ("mappo",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "algorithm"), [pytest.param(c, a, id=f"{c.name}-{a}") for c in CASES for a in c.algorithms]
)
def test_two_updates_equal_the_reference(case: Case, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_by_both(case, algorithm, monkeypatch).movement() > 1e-3


@pytest.mark.parametrize("algorithm", CLASSES)
@pytest.mark.parametrize("kind", ["gru", "library lstm"])
def test_memories_make_a_difference(kind: str, algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the data of these tests: a reference that forgets everything finds other parameters."""
    run = Run(Case("forgetful", lambda: alike(3), remembering(kind, kind), **LIVES), algorithm, monkeypatch)
    starts = run.reference._starts
    run.rollout()
    assert run.difference() < 1e-5

    def forgetful(uid: str, role: str, e: int) -> Any:
        return [0 * state for state in starts(uid, role, e)]

    monkeypatch.setattr(run.reference, "_starts", forgetful)
    run.rollout()
    assert run.difference() > 1e-3
