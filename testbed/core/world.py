"""The contract of a simulated air, and what every driver is given when it is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed.core.config import RadioPlan, Scene
from testbed.core.identity import Identity


@dataclass(frozen=True, slots=True)
class DriverContext:
    """Given to every driver: `Driver(name, context, **options of its lab table)`."""

    seed: int
    """For a simulated device's own imperfections."""
    world: str | None
    """Endpoint of the simulated air, e.g. `tcp://127.0.0.1:40001`; None in a lab without one."""
    identity: Identity | None
    """This process's transport identity; None where the lab switched authentication off."""
    state_dir: Path
    """A folder of this node's own (calibration, caches)."""


class World(ABC):
    """A simulated air: serves radios and boards in its own process."""

    @staticmethod
    @abstractmethod
    def serve(
        endpoint: str,
        identity: Identity | None,
        pace: str,
        peer_timeout_s: float,
        ready: Callable[[str], None],
    ) -> None:
        """Bind to `endpoint`, call `ready(actual endpoint)`, serve until SIGTERM/SIGINT. `pace`: virtual or wall."""

    @staticmethod
    @abstractmethod
    def reset(
        endpoint: str, identity: Identity | None, scene: Scene, radio: RadioPlan, seed: int, timeout_s: float
    ) -> None:
        """Put a scene into the running world: time 0, new channels from `seed`; attached devices stay attached."""
