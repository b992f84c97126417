"""Emulated Plutos for tests that go through the real libiio."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sim_backend.emulators.pluto import EmulatedPluto
from sim_backend.local import world_in_thread
from testbed.core.config import Multipath, PlacedNode, Scene
from testbed.core.radio import RadioSettings
from testbed.core.world import DriverContext

# no echoes, one sample apart at 20 MS/s
SCENE = Scene(
    alice=PlacedNode(position_m=[2.0, 8.0, 1.5]),
    bob=PlacedNode(position_m=[16.99, 8.0, 1.5]),
    multipath=Multipath(n_scatterers=0, direct_db=0.0),
)
SETTINGS = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=20e6, tx_gain_db=-3.0, rx_gain_db=15.0)


@contextmanager
def emulated(**options: Any) -> Iterator[tuple[EmulatedPluto, EmulatedPluto]]:
    """Alice's and Bob's, on crystals that agree."""
    with world_in_thread(SCENE, seed=11) as endpoint, ExitStack() as stack:
        both = []
        for name in ("alice", "bob"):
            context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=Path())
            both.append(EmulatedPluto(name, context, **{"cfo_ppm": 0.0, **options}))
            stack.callback(both[-1].close)
        yield both[0], both[1]
