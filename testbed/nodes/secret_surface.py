"""A secret surface: its patterns are drawn at the node that holds the board and are known to no other node.

The coordinator orders "the next one" and gets an opaque number, which names a state and says nothing about it. Equal
patterns have equal numbers: on a small surface patterns recur, and a recurring pattern makes key bits only once.
"""

from __future__ import annotations

from typing import Any

from testbed.core import registry
from testbed.core.stages import SurfacePolicy
from testbed.core.types import SurfacePattern

UNKNOWN = "unknown"
"""Name of the board's state where it is none of the patterns drawn here."""


class SecretSurface:
    """Draws the patterns of one run and names them.

    seed: secret outside of rehearsals. life: distinguishes the names given by one process of the node from another's.
    Raises InputError where the policy cannot serve the board.

    >>> surface = SecretSurface("random", {}, (2, 2), 1, seed=7)
    >>> surface.name_of(surface.pattern_for(0).digest)
    'state-0-0'
    """

    def __init__(
        self, policy: str, options: dict[str, Any], shape: tuple[int, int], phase_bits: int, seed: int, life: str = "0"
    ) -> None:
        self._policy: SurfacePolicy = registry.make_stage("policy", policy, options)
        self._policy.begin(shape, phase_bits, seed)
        self._life = life
        self._names: dict[str, str] = {}
        """By digest."""

    def pattern_for(self, round: int) -> SurfacePattern:
        """Return the surface's pattern in this round; rounds ascend."""
        pattern = self._policy.pattern_for(round)
        self._names.setdefault(pattern.digest, f"state-{self._life}-{len(self._names)}")
        return pattern

    def name_of(self, digest: str) -> str:
        """Return the opaque name of a pattern that was drawn here, `UNKNOWN` for any other."""
        return self._names.get(digest, UNKNOWN)
