"""The contract of a simulated air, and the context that every driver gets when it is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from testbed.core.config import RadioPlan, Scene
from testbed.core.identity import Identity
from testbed.core.types import F64, SurfacePattern


@dataclass(frozen=True, slots=True)
class DriverContext:
    """Given to every driver: `Driver(name, context, **options of its lab table)`."""

    seed: int
    """Seed of a simulated device's imperfections."""
    world: str | None
    """Endpoint of the simulated air, e.g. `tcp://127.0.0.1:40001`; None in a lab without one."""
    identity: Identity | None
    """This process's transport identity; None where the lab switched authentication off."""
    state_dir: Path
    """A folder of this node's own (calibration, caches)."""


class Turns(Protocol):
    """The order in which the parties of a run in one process act, and their common clock."""

    def now_s(self) -> float:
        """Return seconds since an arbitrary origin. The clock advances only while nobody has anything to do."""

    def give_way(self) -> None:
        """Let another party act once; if none has anything to do, advance the clock."""


@dataclass(frozen=True, slots=True)
class Equipment:
    """An emulated device in this process."""

    options: dict[str, Any]
    """Options for the driver, in addition to the lab's: they select this device."""
    idle_until: Callable[[float], None]
    """Function that passes the driver's promise (`Radio.idle_until`) to the air; the vendor's library has no function
    for this."""


class Emulator(ABC):
    """An emulated device on the simulated air, found by entry point `testbed.emulators` under its driver's name.

    Made as `Class(name, context, **options)` of the table `[world.emulators.NAME]`; refused options raise InputError.
    The air at `context.world` is needed from the emulator's first use on, not when it is made; if it is None, nothing
    is radiated or reflected, but the emulator works. It refuses orders, loses data and answers late as the device does.
    Faults that its options request are drawn from `context.seed`.

    The driver reaches most emulators over its own wire, at `uri`. An emulator of the vendor's library (`in_process`)
    is installed in the driver's process by `equip` instead. Two emulators are two devices if their nodes' folders
    (`context.state_dir`) differ; after `close` the driver no longer finds the device.

    >>> class Nowhere(Emulator):
    ...     def __init__(self, name, context):
    ...         self.uri = f"nowhere:{name}"
    ...     def close(self): ...
    >>> Nowhere("ris", None).uri
    'nowhere:ris'
    """

    options_type: ClassVar[type[Struct] | None] = None
    """The keys of its table, so that they can be listed and checked before anything starts."""
    in_process: ClassVar[bool] = False
    uri: str
    """Where the driver finds the device; given to it as its option `uri`."""

    @abstractmethod
    def close(self) -> None:
        """Release the wire and the air; may be called twice."""

    @classmethod
    def equip(cls, name: str, context: DriverContext, options: Mapping[str, Any]) -> Equipment:
        """Install the emulator in place of the vendor's library; raises InputError for refused options."""
        raise NotImplementedError(f"{cls.__name__} is reached by wire")


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
    def hold(turns: Turns, peer_timeout_s: float) -> AbstractContextManager[str] | None:
        """Hold the air in virtual time in this process, without sockets, for a run in one process.

        Returns a context manager that yields the endpoint for devices of this process, for `reset` and for `pacer`.
        A device that waits for an answer calls `turns.give_way`. Returns None if this world needs a process of its own.
        """
        return None

    @staticmethod
    def check(scene: Scene) -> None:
        """Raise InputError for a scene that cannot be made here, e.g. because a library is missing. Quick: nothing is
        made.
        """

    @staticmethod
    @abstractmethod
    def reset(
        endpoint: str, identity: Identity | None, scene: Scene, radio: RadioPlan, seed: int, timeout_s: float
    ) -> None:
        """Put a scene into the running world: time 0, new channels from `seed`; attached devices stay attached."""

    @staticmethod
    @abstractmethod
    def pacer(endpoint: str, identity: Identity | None) -> AbstractContextManager[Callable[[float], None]]:
        """Return a context manager that yields a function which lets the running world's time pass up to an instant (s
        after its reset); leaving it closes the connection to the world.

        For labs whose radios cannot time their samples, so that no time passes between rounds. It has no effect in wall
        pace, where time passes by itself.
        """

    @staticmethod
    @abstractmethod
    def responses(
        scene: Scene, carrier_hz: float, seed: int, time_s: F64, subcarrier_hz: F64, pattern: SurfacePattern | None
    ) -> dict[str, NDArray[np.complex128]]:
        """Return the noiseless frequency responses (time, subcarrier) of a scene's links, by "tx>rx" in lower case.

        They are what perfect radios would measure at instants (time,) in s and offsets from the carrier (subcarrier,)
        in Hz, with the surface holding `pattern` throughout, or without the surface where that is None. Reciprocal
        links are given once.
        """

    @staticmethod
    @abstractmethod
    def emulate(name: str, driver: str, context: DriverContext, options: Mapping[str, Any]) -> Any:
        """Start an emulated device on the world at `context.world`, for a driver that reaches it by its own wire.

        Returns an object with `uri`, where the driver finds it, and `close()`; None for a driver whose device is made
        by `equip`. It needs the world from its first use on, not when it is made. Raises InputError for refused
        options.
        """

    @staticmethod
    def implied_options(name: str, driver: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the driver options that follow from an emulated device, such as its model, for `Radio.limits_of`.

        `options` are the emulated device's. Raises InputError for refused ones, as `emulate` does.
        """
        return {}

    @staticmethod
    @abstractmethod
    def equip(name: str, driver: str, context: DriverContext, options: Mapping[str, Any]) -> Equipment | None:
        """Emulate a device in the driver's own process, behind the vendor's library, before the driver is made.

        None for a driver that reaches its emulated device by wire (`emulate`). Raises InputError for refused options.
        """
