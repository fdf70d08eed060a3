"""What a team carries from one step to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from coterie.agents.masks import Masks

__all__ = ["ActingState", "Choice"]


@dataclass(frozen=True)
class Choice:
    """What one group chose at a step, until the step is recorded."""

    actions: Tensor  # [E, A, n], as the environment takes them
    latent: Tensor  # [E, A, k], as they were drawn
    log_prob: Tensor  # [E, A, 1]
    before: Tensor | None = None  # [E, A, W], the recurrent state that they were chosen from
    after: Tensor | None = None  # the one that it became


@dataclass
class ActingState:
    """Where a team stands in its episodes; training and an evaluation have one each. Groups go by their agents' names."""

    #: of the present states
    masks: Masks = field(default_factory=Masks)
    #: recurrent states [E, A, W] from which the next actions are chosen
    memory: dict[tuple[str, ...], Tensor] = field(default_factory=dict)
    #: the present states, observations [E, A, F]
    seen: Mapping[tuple[str, ...], Tensor] = field(default_factory=dict)
    #: what was chosen for them, until it is recorded
    choices: dict[tuple[str, ...], Choice] = field(default_factory=dict)

    def keep(self, rows: int) -> None:
        """Forget what is remembered of another number of environments: these are new ones."""
        self.memory = {names: state for names, state in self.memory.items() if state.shape[0] == rows}

    def move_on(self) -> None:
        """Let the policies remember what they chose from last."""
        self.memory |= {names: choice.after for names, choice in self.choices.items() if choice.after is not None}
