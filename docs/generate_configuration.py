"""Write ``configuration.md`` from the default configurations, whose trailing comments describe the keys."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLES = {
    "MAPPO and IPPO": ("coterie/agents/ppo_config.py", "PPO_DEFAULT_CONFIG"),
    "MAPPO only": ("coterie/agents/mappo.py", "MAPPO_DEFAULT_CONFIG"),
    "SequentialTrainer": ("coterie/trainers/sequential.py", "SEQUENTIAL_TRAINER_DEFAULT_CONFIG"),
}
HEAD = """# Configuration

Copy a default (`cfg = MAPPO_DEFAULT_CONFIG.copy()`; the copy is deep), edit it, and pass it to the agent; a dict with only
what differs will do, too. Any value of an agent's configuration but `rollouts` and `experiment` may be a dict by agent, which
must name exactly the agents. Unknown keys, wrong types and values out of range are errors at construction.
"""


def rows(path: str, name: str) -> list[tuple[str, str, str]]:
    """Key, default and comment of each entry of the dict assigned to ``name``."""
    source = (ROOT / path).read_text()
    body = source[re.search(rf"^{name}\b", source, re.MULTILINE).start() :]
    found = []
    section = ""
    for line in body.splitlines()[1:]:
        if line.startswith(("}", ")")):
            break
        opened = re.match(r'\s+"(\w+)": \{$', line)
        if opened:
            section = opened.group(1) + "."
        entry = re.match(r'\s+"(\w+)": (.+?),\s*# (.+)$', line)
        if entry:
            found.append((section + entry.group(1), entry.group(2), entry.group(3)))
    return found


def defaults(path: str, name: str) -> set[str]:
    """Keys of the dict literal assigned to ``name``, nested ones with their section."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            (literal,) = node.value.args
            return set(_keys(literal, ""))
    raise LookupError(name)


def _keys(literal: ast.Dict, section: str) -> list[str]:
    keys = []
    for key, value in zip(literal.keys, literal.values, strict=True):
        if key is None:
            continue
        if isinstance(value, ast.Dict) and value.keys:
            keys += _keys(value, f"{key.value}.")
        else:
            keys.append(section + key.value)
    return keys


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, (path, name) in TABLES.items():
        table = rows(path, name)
        missing = defaults(path, name) - {key for key, _, _ in table}
        if missing:
            raise ValueError(f"{path}: no comment behind {sorted(missing)}")
        lines = [f"| `{key}` | `{default}` | {comment} |" for key, default, comment in table]
        parts.append("\n".join([f"## {title}\n", "| key | default | meaning |", "|---|---|---|", *lines]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "configuration.md").write_text(page())
