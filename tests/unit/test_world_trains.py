"""Trains of receptions: one message, the samples of one reception after the other, and faults that cost one window."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from test_world_radio import SCENE, SETTINGS, Room, device_time, frame, room

from sim_backend.radio import SimRadio
from sim_backend.server import SimWorld
from testbed.core.config import PlacedNode, RadioPlan, Scene
from testbed.core.errors import DeviceError, DeviceTimeout
from testbed.core.radio import Radio, Window
from testbed.core.types import IqBlock, SurfacePattern

N = 1000
ROUNDS = 12
Hear = Callable[[SimRadio, list[Window]], list[IqBlock | DeviceError]]


def one_by_one(radio: SimRadio, windows: list[Window]) -> list[IqBlock | DeviceError]:
    return Radio._do_receive_many(radio, windows, 5.0)


def together(radio: SimRadio, windows: list[Window]) -> list[IqBlock | DeviceError]:
    return radio.receive_many(windows)


def two_way(world: Room, hear: Hear, n_antennas: int = 1) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return what Eve hears of Alice and of Bob in `ROUNDS` rounds of two slots, all queued ahead."""
    alice, bob = world.radio("alice", seed=6, n_antennas=n_antennas), world.radio("bob", seed=7)
    eve = world.radio("eve", seed=8, overflow_probability=0.2)
    starts_s = 0.01 + 2e-3 * np.arange(ROUNDS)
    for source, later_s in ((alice, 0.0), (bob, 3e-4)):
        block = IqBlock(np.repeat(frame(), source.capabilities.n_antennas, axis=0), SETTINGS.sample_rate_hz, 0.0)
        for start_s in starts_s:
            source.transmit(block, device_time(source, start_s + later_s + 5e-6))
        source.idle_until(device_time(source, 0.05))
    slots = [start_s + later_s for start_s in starts_s for later_s in (0.0, 3e-4)]
    found = hear(eve, [Window(N, device_time(eve, at_s)) for at_s in slots])
    blocks = [x for x in found if isinstance(x, IqBlock)]
    assert len(blocks) == 2 * ROUNDS
    assert any(x.overflow for x in blocks)
    assert [x.time_s for x in blocks] == [device_time(eve, at_s) for at_s in slots]
    return [x.samples for x in blocks[::2]], [x.samples for x in blocks[1::2]]


@pytest.mark.parametrize("n_antennas", [1, 2])
def test_a_train_has_the_samples_of_one_reception_after_the_other(n_antennas: int) -> None:
    walking = PlacedNode(position_m=[14.0, 8.0, 1.5], velocity_m_s=[0.5, 1.0, 0.0])
    scene = SCENE if n_antennas == 2 else Scene(alice=SCENE.alice, bob=walking, eve=SCENE.eve)
    heard = []
    for hear in (one_by_one, together):
        with room(scene) as world:
            heard.append(two_way(world, hear, n_antennas))
    for one, many in zip(heard[0][0] + heard[0][1], heard[1][0] + heard[1][1], strict=True):
        assert np.abs(one).max() > 1e-4
        np.testing.assert_array_equal(one, many)


def test_several_radios_hear_the_same_train() -> None:
    with room() as world:
        alice, bob, eve = (world.radio(name) for name in ("alice", "bob", "eve"))
        block = IqBlock(frame(), SETTINGS.sample_rate_hz, 0.0)
        for k in range(5):
            alice.transmit(block, device_time(alice, 0.01 + k * 1e-3))
        for radio in (alice, bob, eve):
            radio.idle_until(device_time(radio, 0.02))
        for radio in (bob, eve):
            windows = [Window(N, device_time(radio, 0.01 + k * 1e-3)) for k in range(5)]
            assert all(isinstance(x, IqBlock) and np.abs(x.samples).max() > 1e-4 for x in radio.receive_many(windows))


def test_a_window_that_is_over_fails_alone() -> None:
    with room() as world:
        alice, bob = world.radio("alice"), world.radio("bob")
        for radio in (alice, bob):
            radio.idle_until(device_time(radio, 8.0))
        bob.receive(10, device_time(bob, 7.0))  # samples are kept for four seconds
        found = bob.receive_many([Window(N, device_time(bob, at_s)) for at_s in (2.0, 3.5, 7.5)])
        assert isinstance(found[0], DeviceError)
        assert "samples are kept for 4 s" in str(found[0])
        assert [isinstance(x, IqBlock) for x in found] == [False, True, True]


def test_windows_that_wait_for_a_silent_radio_time_out_alone() -> None:
    with room(peer_timeout_s=60.0) as world:
        alice, bob = world.radio("alice"), world.radio("bob")
        alice.idle_until(device_time(alice, 0.015))
        began = time.monotonic()
        found = bob.receive_many([Window(N, device_time(bob, at_s)) for at_s in (0.01, 0.02, 0.03)], timeout_s=0.1)
        assert time.monotonic() - began < 5.0
        assert isinstance(found[0], IqBlock)
        assert all(isinstance(x, DeviceTimeout) and "waiting for alice" in str(x) for x in found[1:])


def test_a_train_after_the_world_was_made_anew_is_heard_there() -> None:
    with room() as world:
        alice, bob = world.radio("alice"), world.radio("bob")
        bob.receive_many([Window(N, device_time(bob, 0.0))], timeout_s=0.1)
        SimWorld.reset(world.endpoint, None, SCENE, RadioPlan(carrier_hz=2.4e9), 77, 5.0)
        alice.transmit(IqBlock(frame(), SETTINGS.sample_rate_hz, 0.0), device_time(alice, 0.01))
        for radio in (alice, bob):
            radio.idle_until(device_time(radio, 0.02))
        (found,) = bob.receive_many([Window(N, device_time(bob, 0.01))])
        assert isinstance(found, IqBlock)
        assert np.abs(found.samples).max() > 1e-4


@pytest.mark.parametrize(
    ("windows", "says"),
    [
        ([Window(100, 0.02), Window(100, 0.01)], "begins before the one before it ends"),
        ([Window(100, 0.01), Window(100, 0.01 + 2.4e-6)], "begins before the one before it ends"),
        ([Window(0, 0.01)], "n_samples = 0, accepted > 0"),
        ([Window(10, float("nan"))], "at_s = nan"),
    ],
)
def test_impossible_trains_are_refused(windows: list[Window], says: str) -> None:
    with room() as world, pytest.raises(DeviceError, match=says):
        world.radio("bob").receive_many(windows)


def test_a_radio_that_cannot_time_has_no_trains_and_an_empty_one_is_nothing() -> None:
    with room() as world:
        with pytest.raises(DeviceError, match="cannot time its samples"):
            world.radio("bob", timed=False).receive_many([Window(10, 0.1)])
        assert world.radio("alice").receive_many([]) == []


# ---------------------------------------------------------------- patterns that latch by time


def test_every_round_of_a_train_sees_its_own_pattern() -> None:
    """The same samples as with each pattern applied just before its round."""
    levels = np.random.default_rng(3).integers(0, 2, (4, 16, 16)).astype(np.uint8)
    patterns = [SurfacePattern(x, 1) for x in levels]
    starts_s = [0.01 + 5e-3 * k for k in range(4)]
    heard: list[list[np.ndarray]] = []
    for scheduled in (True, False):
        with room() as world:
            alice, bob = world.radio("alice", seed=6), world.radio("bob", seed=7)
            board = world.board(latency_s=1e-3)
            block = IqBlock(frame(), SETTINGS.sample_rate_hz, 0.0)
            blocks: list[np.ndarray] = []
            if scheduled:
                board.schedule(patterns, [board._clock.reading_s(round((at_s - 2e-3) * 1e12)) for at_s in starts_s])
            for pattern, at_s in zip(patterns, starts_s, strict=True):
                for radio in (alice, bob):
                    radio.idle_until(device_time(radio, at_s - 3e-3))
                bob.receive(10, device_time(bob, at_s - 3.5e-3))
                if not scheduled:
                    board.apply(pattern)
                alice.transmit(block, device_time(alice, at_s))
                for radio in (alice, bob):
                    radio.idle_until(device_time(radio, at_s + 1e-3))
                blocks.append(bob.receive(N, device_time(bob, at_s)).samples)
            heard.append(blocks)
    for one, other in zip(*heard, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.allclose(heard[0][0], heard[0][1], atol=1e-3 * np.abs(heard[0][0]).max())


def test_a_pattern_that_cannot_latch_in_time_is_refused_with_all_others() -> None:
    with room() as world:
        board = world.board(latency_s=1e-3)
        before = board.readback().digest
        wanted = SurfacePattern(np.ones((16, 16), np.uint8), 1)
        soon_s = board.now_s() + 0.5e-3
        with pytest.raises(DeviceError, match=r"a pattern is due 0\.000500 s before it could latch"):
            board.schedule([wanted, wanted], [soon_s, soon_s + 0.01])
        assert board.readback().digest == before
