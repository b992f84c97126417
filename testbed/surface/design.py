"""The result type of every designer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from testbed.core.types import F64


@dataclass(frozen=True, slots=True)
class Design:
    """Phases and precoders for one model, or for a batch of them (leading axes)."""

    phases_rad: F64
    """(…, element)."""
    precoders: NDArray[Any]
    """(…, antenna, stream) complex; the model defines the meaning of each axis."""
    history: list[float] = field(default_factory=list)
    """The objective in bits after each iteration (mean over the batch), the start first; empty where nothing iterates.
    A net's training history is kept with the net.
    """
