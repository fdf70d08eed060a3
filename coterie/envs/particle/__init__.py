"""The particle tasks, in torch: any number of copies, on any device.

They follow mpe2 1.1.1 (simple_spread_v3, simple_speaker_listener_v4, simple_reference_v3, simple_tag_v3) step for step.
"""

from __future__ import annotations

from coterie.envs.particle.base import ParticleEnv
from coterie.envs.particle.simple_reference import SimpleReference
from coterie.envs.particle.simple_speaker_listener import SimpleSpeakerListener
from coterie.envs.particle.simple_spread import SimpleSpread
from coterie.envs.particle.simple_tag import SimpleTag

__all__ = ["TASKS", "ParticleEnv", "SimpleReference", "SimpleSpeakerListener", "SimpleSpread", "SimpleTag"]

#: every task, by its name in mpe2
TASKS: dict[str, type[SimpleReference] | type[SimpleSpeakerListener] | type[SimpleSpread] | type[SimpleTag]] = {
    "simple_reference": SimpleReference,
    "simple_speaker_listener": SimpleSpeakerListener,
    "simple_spread": SimpleSpread,
    "simple_tag": SimpleTag,
}
