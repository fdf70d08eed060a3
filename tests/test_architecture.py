"""The rules of docs/architecture.md that a program can check: who may import whom, names, sizes, docstrings.

The tables come first, then one checker for each rule (source in, complaints out), then the checkers run over the
package, then the proof that each of them bites.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "coterie"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

MAX_LINES = 500
DRAWERS = {"common", "helper", "helpers", "misc", "resources", "util", "utils"}


class Layer(NamedTuple):
    """What the modules of a layer may import besides the standard library and their own layer."""

    coterie: set[str]
    """Other layers."""

    third_party: set[str] | None = None
    """Distributions' import names; None: any."""


BORDER = {"agent_tensors", "spaces"}  # the vocabulary of the env contract: names, stacked tensors, sizes of spaces

# A layer is a top-level module or package of coterie/. Anyone may import `_version`.
LAYERS = {
    "_version": Layer(set(), set()),
    "agent_tensors": Layer(set(), {"torch"}),
    "spaces": Layer(set(), {"gymnasium", "numpy", "torch"}),
    "functional": Layer(set(), {"torch"}),
    "seeding": Layer(set(), {"numpy", "torch"}),
    "episodes": Layer(set(), {"torch"}),
    "schedulers": Layer(set(), {"torch"}),
    "noises": Layer(set(), {"torch"}),
    "preprocessors": Layer({"functional"} | BORDER),
    "memories": Layer({"functional"} | BORDER),
    "models": Layer({"functional"} | BORDER),
    "envs": Layer(BORDER),
    "agents": Layer({"episodes", "functional", "memories", "models", "noises", "preprocessors", "schedulers"} | BORDER),
    "trainers": Layer({"agents", "envs", "episodes"} | BORDER),
}

# file -> what it alone may import beyond its layer; each with its reason
EXCEPTIONS = {
    "functional/distributions.py": {"numpy"},  # the constants of a quadrature; torch has no such table
}

# shared files that list the algorithms by name
REGISTRIES = {"__init__.py", "agents/__init__.py", "models/build.py"}  # build_models takes an algorithm by name


# -- the checkers ------------------------------------------------------------------------------------------------------


def layer_of(file: str) -> str:
    """Return a file's layer: the first part of its path, or "" for the package's own __init__.py."""
    first = file.partition("/")[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported_names(source: str, file: str) -> Iterator[str]:
    """Yield the dotted name of everything that is imported, also inside functions and under TYPE_CHECKING.

    ``from a import b`` gives ``a.b``: whether b is a module makes no difference to the layer.
    """
    here = ["coterie", *file.split("/")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base = base + ([node.module] if node.module else [])
            yield from (".".join([*base, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in {"import_module", "__import__"}:
                argument = node.args[0]
                # a name that is put together at run time cannot be checked: only its literal part is
                yield from (part.value for part in ast.walk(argument) if isinstance(part, ast.Constant))


def check_imports(source: str, file: str) -> list[str]:
    """Imports follow LAYERS and EXCEPTIONS."""
    layer = layer_of(file)
    if layer == "":
        return []  # the package's front door may show anything
    if layer not in LAYERS:
        return [
            f"coterie/{file}: '{layer}' has no entry in LAYERS of tests/test_architecture.py: say what it may import"
        ]
    rule, extra = LAYERS[layer], EXCEPTIONS.get(file, set())
    complaints = []
    for name in imported_names(source, file):
        top, _, rest = name.partition(".")
        if top == "coterie":
            target = rest.split(".")[0]
            if target not in {layer, "_version"} | rule.coterie | extra:
                allowed = ", ".join(sorted(rule.coterie)) or "no other layer"
                complaints.append(f"coterie/{file}: imports {name}; '{layer}' may import {allowed}")
        elif rule.third_party is not None and top not in sys.stdlib_module_names | rule.third_party | extra:
            allowed = ", ".join(sorted(rule.third_party)) or "nothing"
            complaints.append(f"coterie/{file}: imports {name}; of third parties '{layer}' may import {allowed}")
    return complaints


def check_file_name(file: str) -> list[str]:
    """No module is a drawer for whatever has no place."""
    drawers = DRAWERS & set(file.removesuffix(".py").split("/"))
    return [f"coterie/{file}: '{name}' says nothing about its contents: name the subject" for name in sorted(drawers)]


def check_docstring(source: str, file: str) -> list[str]:
    """Every module says what it is."""
    return [] if ast.get_docstring(ast.parse(source)) else [f"coterie/{file}: has no module docstring"]


def check_length(source: str, file: str) -> list[str]:
    """A file is read in one sitting."""
    lines = len(source.splitlines())
    return [f"coterie/{file}: {lines} lines, more than {MAX_LINES}: split it"] if lines > MAX_LINES else []


def check_future_annotations(source: str, file: str) -> list[str]:
    """Whatever has annotations postpones them; a file that only re-exports has none."""
    tree = ast.parse(source)
    annotated = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.AnnAssign
    if not any(isinstance(node, annotated) for node in ast.walk(tree)):
        return []
    if any(
        isinstance(node, ast.ImportFrom) and node.module == "__future__" and node.names[0].name == "annotations"
        for node in tree.body
    ):
        return []
    return [f"coterie/{file}: lacks 'from __future__ import annotations'"]


def algorithms_in(source: str, file: str) -> set[str]:
    """Return the classes that make a file of agents/ an algorithm's: those with the file's name in capitals."""
    folder, _, name = file.removesuffix(".py").rpartition("/")
    if folder != "agents":
        return set()
    wanted = name.replace("_", "").upper()
    return {n.name for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == wanted}


def check_algorithm_names(source: str, file: str, algorithms: set[str]) -> list[str]:
    """Shared code names no algorithm, neither in an identifier nor in a string that is one; prose may."""
    if file in REGISTRIES or algorithms_in(source, file):
        return []
    tree = ast.parse(source)
    wanted = {name.lower() for name in algorithms}
    complaints = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            # a string with a blank in it is a docstring or a message, not a key that could be compared
            texts = [node.value] if isinstance(node.value, str) and not re.search(r"\s", node.value) else []
        elif isinstance(node, ast.alias):
            texts = [node.name, node.asname or ""]
        else:
            # id, attr, arg, name, module: whatever holds an identifier
            texts = [value for _, value in ast.iter_fields(node) if isinstance(value, str)]
        for word in {word for text in texts for word in re.split(r"[^a-z0-9]+", text.lower())} & wanted:
            line = getattr(node, "lineno", "?")
            complaints.append(f"coterie/{file}:{line}: shared code names the algorithm '{word}', but needs a hook")
    return sorted(set(complaints))


def check_documented(module: ModuleType) -> list[str]:
    """Public classes and functions have a docstring; public methods and properties their own or an inherited one."""
    complaints = []
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        if not thing.__doc__:
            complaints.append(f"{module.__name__}.{name}: has no docstring")
        for attribute, member in vars(thing).items() if inspect.isclass(thing) else ():
            if attribute.startswith("_") or not (inspect.isroutine(member) or isinstance(member, property)):
                continue
            if not any(vars(base)[attribute].__doc__ for base in thing.__mro__ if attribute in vars(base)):
                complaints.append(f"{module.__name__}.{name}.{attribute}: has no docstring, and inherits none")
    return complaints


# -- the package -------------------------------------------------------------------------------------------------------


def read(file: str) -> str:
    return (PACKAGE / file).read_text(encoding="utf-8")


ALGORITHMS = {name for file in FILES for name in algorithms_in(read(file), file)} | {"MAPPO", "IPPO"}


@pytest.mark.parametrize("check", [check_imports, check_docstring, check_length, check_future_annotations])
def test_every_file(check):
    complaints = [complaint for file in FILES for complaint in check(read(file), file)]
    assert not complaints, "\n".join(complaints)


def test_file_names():
    complaints = [complaint for file in FILES for complaint in check_file_name(file)]
    assert not complaints, "\n".join(complaints)


def test_shared_code_names_no_algorithm():
    complaints = [complaint for file in FILES for complaint in check_algorithm_names(read(file), file, ALGORITHMS)]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("file", FILES)
def test_public_things_are_documented(file):
    dotted = ["coterie", *file.removesuffix(".py").removesuffix("__init__").strip("/").split("/")]
    try:
        module = importlib.import_module(".".join(part for part in dotted if part))
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "coterie":
            raise
        pytest.skip(f"{error.name} is not installed")
    complaints = check_documented(module)
    assert not complaints, "\n".join(complaints)


def test_layers_have_no_cycle():
    unknown = {name for rule in LAYERS.values() for name in rule.coterie} - LAYERS.keys()
    assert not unknown
    # static_order raises CycleError
    order = list(TopologicalSorter({name: rule.coterie for name, rule in LAYERS.items()}).static_order())
    assert order.index("functional") < order.index("agents") < order.index("trainers")


def test_no_exception_is_stale():
    for file, names in EXCEPTIONS.items():
        assert file in FILES, f"{file} is gone: remove it from EXCEPTIONS"
        used = {name.removeprefix("coterie.").split(".")[0] for name in imported_names(read(file), file)}
        assert names <= used, f"{file} no longer imports {names - used}: remove that from EXCEPTIONS"


def test_there_is_a_package_to_check():
    assert {"agents/__init__.py", "envs/base.py", "functional/advantages.py"} <= set(FILES)


# -- the checkers bite -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("functional/x.py", "import math\nimport torch.nn.functional as F\nfrom coterie.functional.y import z"),
        ("functional/distributions.py", "import numpy as np"),
        ("memories/x.py", "import numpy, torch\nfrom coterie.agent_tensors import AgentTensors"),
        ("models/x.py", "from coterie.models import base\nfrom . import base\nfrom .base import Model"),
        ("models/x.py", "from ..functional import gae"),
        ("envs/x.py", "import vmas\nfrom coterie import spaces"),
        ("envs/particles/x.py", "from ..base import Environment\nfrom ...spaces import flat_size"),
        ("agents/x.py", "from coterie import models, _version"),
        ("trainers/x.py", "from coterie.envs.base import Environment\nfrom coterie.agents import MultiAgent"),
        ("__init__.py", "from coterie.trainers import SequentialTrainer"),
    ],
)
def test_allowed_imports(file, source):
    assert check_imports(source, file) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("functional/x.py", "import numpy as np"),
        ("functional/x.py", "from gymnasium import spaces"),
        ("functional/x.py", "from coterie.spaces import flat_size"),
        ("memories/x.py", "from coterie.agents import MultiAgent"),
        ("memories/x.py", "from coterie import agents"),
        ("memories/x.py", "import coterie"),
        ("models/x.py", "def f():\n    import coterie.agents.base"),
        ("models/x.py", "from ..agents import base"),
        ("models/x.py", "from .. import memories"),
        ("envs/x.py", "from coterie.models import Model"),
        ("envs/particles/x.py", "from ...functional import gae"),
        (
            "agents/x.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from coterie.envs import Environment",
        ),
        ("agents/x.py", "import importlib\nimportlib.import_module('coterie.envs.base')"),
        ("agents/x.py", "from importlib import import_module\nimport_module(f'coterie.envs.{name}')"),
        ("agents/x.py", "from coterie.trainers import SequentialTrainer"),
        ("schedulers.py", "from coterie.functional import gae"),
    ],
)
def test_forbidden_imports(file, source):
    (complaint,) = check_imports(source, file)
    assert file in complaint
    assert "may import" in complaint


def test_unknown_layer_says_what_to_do():
    for file in ("novelties.py", "novelties/x.py"):
        (complaint,) = check_imports("", file)
        assert "'novelties' has no entry in LAYERS" in complaint


@pytest.mark.parametrize("file", ["utils.py", "agents/utils.py", "resources/noises.py", "models/helpers.py", "misc.py"])
def test_drawers_are_found(file):
    assert len(check_file_name(file)) == 1
    assert check_file_name("agents/base.py") == []


def test_missing_docstring_is_found():
    assert check_docstring("", "x.py")
    assert check_docstring("x = 1\n'late'", "x.py")
    assert not check_docstring("'Early.'", "x.py")


def test_long_file_is_found():
    assert not check_length("\n" * MAX_LINES, "x.py")
    assert check_length("\n" * (MAX_LINES + 1), "x.py")


@pytest.mark.parametrize("source", ["def f(): ...", "class A: ...", "x: int = 1", "import a\n\nasync def f(): ..."])
def test_missing_future_import_is_found(source):
    assert check_future_annotations(source, "x.py")
    assert check_future_annotations("from __future__ import division\n" + source, "x.py")
    assert not check_future_annotations("'Doc.'\nfrom __future__ import annotations\n" + source, "x.py")


def test_reexports_need_no_future_import():
    assert not check_future_annotations("'Doc.'\nfrom coterie.functional.x import f\n__all__ = ['f']", "x.py")


@pytest.mark.parametrize(
    "source",
    [
        "from coterie.agents.mappo import MAPPO",
        "from coterie.agents import MAPPO_DEFAULT_CONFIG",
        "if isinstance(agent, MAPPO): pass",
        "if type(agent).__name__ == 'MAPPO': pass",
        "if cfg['algorithm'] == 'mappo': pass",
        "name in {'ippo', 'x'}",
        "agent.is_mappo",
        "def update_ippo(): ...",
        "def f(mappo): ...",
        "f(mappo=1)",
        "if f'{prefix}/mappo' in tags: pass",
    ],
)
def test_algorithm_name_in_shared_code_is_found(source):
    for file in ("agents/base.py", "trainers/sequential.py", "schedulers.py"):
        assert check_algorithm_names(source, file, {"MAPPO", "IPPO"})
    assert not check_algorithm_names(source, "agents/__init__.py", {"MAPPO", "IPPO"})


@pytest.mark.parametrize(
    "source",
    [
        "'Base of MAPPO and IPPO.'",
        "class A:\n    'As in MAPPO.'\n    x = 1\n    'What IPPO calls y.'",
        "def f():\n    'MAPPO, eq. 3.'",
        "raise TypeError('expected an agent such as MAPPO')",
        "x = 1  # MAPPO",
        "from coterie.functional.ppo import clipped_surrogate_loss",
        "mappos = 'remappo'",
    ],
)
def test_algorithm_name_elsewhere_is_left_alone(source):
    assert not check_algorithm_names(source, "agents/base.py", {"MAPPO", "IPPO"})


def test_algorithm_files_are_told_from_shared_ones():
    own = "class MAPPO(MultiAgent): ...\nclass _Helper: ..."
    assert algorithms_in(own, "agents/mappo.py") == {"MAPPO"}
    assert algorithms_in(own, "agents/base.py") == set()
    assert algorithms_in(own, "models/mappo.py") == set()
    assert algorithms_in("class Rollout: ...", "agents/rollout.py") == set()
    assert not check_algorithm_names(own + "\nx = IPPO", "agents/mappo.py", {"MAPPO", "IPPO"})


def test_missing_documentation_is_found():
    module = ModuleType("synthetic")
    exec(
        "class Base:\n"
        "    'Doc.'\n"
        "    def told(self):\n"
        "        'Doc.'\n"
        "    def untold(self): ...\n"
        "    @property\n"
        "    def size(self): ...\n"
        "class Child(Base):\n"
        "    def told(self): ...\n"
        "    def _private(self): ...\n"
        "def function(): ...\n"
        "def _function(): ...\n",
        vars(module),
    )
    assert [complaint.split(":")[0] for complaint in check_documented(module)] == [
        "synthetic.Base.untold",
        "synthetic.Base.size",
        "synthetic.Child",
        "synthetic.function",
    ]
