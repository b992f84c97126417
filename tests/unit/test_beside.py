"""Devices emulated in the World's process: calls in place of messages, with the same results."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim_backend import beside
from sim_backend.link import Link
from sim_backend.local import world_in_thread
from sim_backend.radio import SimRadio
from testbed.core.config import PlacedNode, Scene
from testbed.core.errors import LateTransmit
from testbed.core.radio import RadioSettings
from testbed.core.types import IqBlock
from testbed.core.world import DriverContext

SCENE = Scene(alice=PlacedNode(position_m=[2.0, 8.0, 1.5]), bob=PlacedNode(position_m=[7.0, 8.0, 1.5]))
SETTINGS = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=4e6, tx_gain_db=0.0, rx_gain_db=20.0)
FRAME = np.exp(2j * np.pi * 0.1 * np.arange(300)).astype(np.complex64)[None, :]


class Beside(SimRadio):
    def _make_link(self, context: DriverContext) -> Link:
        return beside.link_beside(self.name, context)


def made(kind: type[SimRadio], name: str, endpoint: str, **options: Any) -> SimRadio:
    context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=Path())
    radio = kind(name, context, clock_ppm=0.0, clock_offset_s=0.0, **options)
    radio.configure(SETTINGS)
    return radio


def test_without_a_socket_the_samples_are_the_same() -> None:
    found = []
    for kind in (SimRadio, Beside):
        with world_in_thread(SCENE, seed=11) as endpoint:
            alice, bob = (made(kind, name, endpoint) for name in ("alice", "bob"))
            assert isinstance(alice._link, beside._Beside) == (kind is Beside)
            alice.transmit(IqBlock(FRAME, SETTINGS.sample_rate_hz, 0.0), 0.0)
            alice.idle_until(1.0)
            found.append(bob.receive(400, 0.0).samples)
            alice.close()
            bob.close()
    assert np.abs(found[0]).max() > 0.01
    np.testing.assert_array_equal(*found)


def test_on_the_wall_clock_samples_are_given_when_their_time_has_passed() -> None:
    with world_in_thread(SCENE, seed=11, pace="wall") as endpoint:
        bob = made(Beside, "bob", endpoint, timed=False)
        began_s = time.monotonic()
        assert bob.receive(400_000).samples.shape == (1, 400_000)
        assert time.monotonic() - began_s >= 0.1
        bob.close()


def test_what_the_world_refuses_is_raised() -> None:
    with world_in_thread(SCENE, seed=11) as endpoint:
        alice = made(Beside, "alice", endpoint)
        alice.idle_until(1.0)
        with pytest.raises(LateTransmit):
            alice.transmit(IqBlock(FRAME, SETTINGS.sample_rate_hz, 0.0), 0.0)
        alice.close()


def test_a_client_of_the_socket_is_answered_when_a_device_of_this_process_declares_what_it_waits_for() -> None:
    with world_in_thread(SCENE, seed=11, peer_timeout_s=60.0) as endpoint:
        alice, bob = made(Beside, "alice", endpoint), made(SimRadio, "bob", endpoint)
        heard: list[IqBlock] = []
        listening = threading.Thread(target=lambda: heard.append(bob.receive(400, 0.0, timeout_s=30.0)))
        listening.start()
        listening.join(0.2)
        assert not heard
        alice.idle_until(1.0)
        listening.join(10.0)
        assert heard[0].samples.shape == (1, 400)
        alice.close()
        bob.close()
