"""The contract over environments of every kind, as they are and inside of what changes one."""

from __future__ import annotations

import pytest

from coterie.envs import DiscreteActions, LastAction, MultiAgentEnv
from tests.envs.contract import check_contract, check_snapshots
from tests.envs.games import ALL, DISCRETE

# VMAS brings a legacy gym that complains about NumPy 2, and about more on import
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

#: what is met on the way: at least this often
MET = {
    "tictactoe": {"forbidden": 50, "waiting": 100},
    "knights": {"absent": 100, "truncated": 5, "final dead": 5},
    "knights in turn": {"absent": 20, "waiting": 100, "truncated": 3, "final waiting": 5},
    "errands": {"forbidden": 100, "absent": 10, "truncated": 10, "final forbidden": 50, "final dead": 10},
    "taxi": {"truncated": 10, "final forbidden": 10},
    "spread": {"truncated": 10},
    "vmas": {"truncated": 10},
}
STEPS = {"knights": 200, "knights in turn": 280}

LAYERS = {
    "as it is": lambda env: env,
    "discrete": lambda env: DiscreteActions(env, bins=3),
    "last action": LastAction,
    "both": lambda env: LastAction(DiscreteActions(env, bins=3)),
    "both, the other way round": lambda env: DiscreteActions(LastAction(env)),
}


def build(name: str, layers: str) -> MultiAgentEnv:
    return LAYERS[layers](ALL[name]())


def fits(name: str, layers: str) -> bool:
    return name in DISCRETE or name == "errands" or layers in ("as it is", "discrete", "both")


CASES = [(name, layers) for name in ALL for layers in LAYERS if fits(name, layers)]


@pytest.mark.parametrize(("name", "layers"), CASES)
def test_the_contract(name: str, layers: str) -> None:
    env = build(name, layers)
    met = check_contract(env, STEPS.get(name, 60))
    assert met["over"] >= 4
    for what, least in MET.get(name, {}).items():
        assert met[what] >= least, (what, met)
    env.close()
    env.close()


@pytest.mark.parametrize(
    ("name", "layers"),
    [c for c in CASES if c[0] in ("spread", "tag", "speaker", "matrix", "recall", "continuous spread")],
)
def test_snapshots(name: str, layers: str) -> None:
    check_snapshots(build(name, layers), build(name, layers), steps=5)
