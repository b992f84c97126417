"""Front ends work on a train of windows at once: what each window gives is what it gives alone, to the last bit."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from test_world_radio import SCENE, SETTINGS, Room, device_time, frame

from sim_backend.impairments import FrontEnd, RadioOptions
from sim_backend.local import held
from sim_backend.radio import SimRadio
from sim_backend.server import SimWorld
from testbed.core.clock import VirtualClock
from testbed.core.config import RadioPlan
from testbed.core.errors import DeviceError, DeviceTimeout, LateTransmit
from testbed.core.radio import Window
from testbed.core.types import IqBlock
from testbed.core.world import DriverContext

MS = 10**9
SIZES = [500] * 6 + [800] + [500] * 3 + [40_000, 40_000]


@pytest.mark.parametrize(
    "options",
    [
        RadioOptions(),
        RadioOptions(phase_noise_linewidth_hz=0.0),
        RadioOptions(n_antennas=2, overflow_probability=0.5, gain_step_probability=0.5, gain_step_db=3.0),
    ],
    ids=["usual", "no phase noise", "two antennas with faults"],
)
def test_a_window_gives_the_same_in_a_train_and_alone(options: RadioOptions) -> None:
    rng = np.random.default_rng(3)
    fields = [(1e-4 * rng.standard_normal((options.n_antennas, n, 2)) @ [1, 1j]).astype(np.complex64) for n in SIZES]
    starts = [50 * MS * k + 123_457 * k for k in range(len(SIZES))]
    train, alone = (FrontEnd("bob", options, 1, 2, SETTINGS) for _ in range(2))
    heard = train.hear_many(fields, starts)
    sent = train.send_many(fields, starts)
    for k in reversed(range(len(SIZES))):  # in another order, too
        one, lost = alone.hear(fields[k], starts[k])
        assert (one.tobytes(), lost) == (heard[k][0].tobytes(), heard[k][1])
        assert alone.send(fields[k], starts[k]).tobytes() == sent[k].tobytes()
    assert any(lost for _, lost in heard) == (options.overflow_probability > 0)
    assert np.abs(heard[-1][0]).max() > 1e-4


class Alone:
    """Turns of a process in which nobody else has anything to do: time passes."""

    def __init__(self) -> None:
        self.clock = VirtualClock(1.0)
        self.given = 0

    def now_s(self) -> float:
        return self.clock.now_s()

    def give_way(self) -> None:
        self.given += 1
        self.clock.advance(self.now_s() + 0.1)


def test_a_train_of_transmissions_is_on_the_air_like_one_after_the_other() -> None:
    found = []
    for together in (True, False):
        with held(Alone(), 2.0) as endpoint, ExitStack() as stack:
            SimWorld.reset(endpoint, None, SCENE, RadioPlan(), 1, 5.0)
            room = Room(endpoint, stack)
            alice, bob = room.radio("alice"), room.radio("bob")
            blocks = [IqBlock(frame(), 40e6, device_time(alice, 0.01 * k)) for k in range(1, 9)]
            if together:
                assert alice.transmit_many(blocks) == [None] * 8
            else:
                for block in blocks:
                    alice.transmit(block, block.time_s)
            alice.idle_until(device_time(alice, 0.1))
            windows = [Window(900, device_time(bob, 0.01 * k)) for k in range(1, 9)]
            found.append([x.samples for x in bob.receive_many(windows) if isinstance(x, IqBlock)])
    assert len(found[0]) == 8
    assert min(np.abs(x).max() for x in found[0]) > 1e-3
    np.testing.assert_array_equal(found[0], found[1])


def test_a_transmission_that_begins_in_another_is_late_and_the_others_are_sent() -> None:
    with held(Alone(), 2.0) as endpoint, ExitStack() as stack:
        SimWorld.reset(endpoint, None, SCENE, RadioPlan(), 1, 5.0)
        alice = Room(endpoint, stack).radio("alice")
        times_s = (0.01, 0.02, 0.020001, 0.03)
        out = alice.transmit_many([IqBlock(frame(), 40e6, device_time(alice, t)) for t in times_s])
        assert [type(x) for x in out] == [type(None), type(None), LateTransmit, type(None)]


def test_who_waits_in_vain_for_a_silent_radio_waits_in_virtual_time_only() -> None:
    turns = Alone()
    with held(turns, 30.0) as endpoint, ExitStack() as stack:
        SimWorld.reset(endpoint, None, SCENE, RadioPlan(), 1, 5.0)
        room = Room(endpoint, stack)
        _, bob = room.radio("alice"), room.radio("bob")
        with pytest.raises(DeviceTimeout, match=r"no samples within 5 s; waiting for alice"):
            bob.receive(100, device_time(bob, 0.01))
        assert 45 < turns.given < 60


def test_an_air_of_this_process_ends_with_its_block() -> None:
    with held(Alone(), 2.0) as endpoint:
        context = DriverContext(seed=1, world=endpoint, identity=None, state_dir=Path())
        radio = SimRadio("alice", context)
        radio.close()
        with pytest.raises(DeviceError, match="the link to the world is closed"):
            radio.now_s()
    with pytest.raises(DeviceError, match="has one no more"):
        SimRadio("alice", context)
