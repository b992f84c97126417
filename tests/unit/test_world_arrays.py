"""Several antennas on the simulated air: every pair of them is the link that two single antennas there would have."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from sim_backend.arrays import Array, convolve
from sim_backend.channel import Channel
from sim_backend.impairments import FrontEnd, RadioOptions
from sim_backend.world import Air
from testbed.core.config import Attacker, Multipath, PlacedNode, PlacedSurface, Scene
from testbed.core.radio import RadioSettings
from testbed.core.types import SPEED_OF_LIGHT_M_S

CARRIER_HZ, RATE_HZ, US = 2.4e9, 40e6, 10**6
LAMBDA_M = SPEED_OF_LIGHT_M_S / CARRIER_HZ
SCENE = Scene(
    alice=PlacedNode(position_m=[4.0, 3.0, 1.5]),
    bob=PlacedNode(position_m=[9.0, 4.0, 1.2]),
    eve=PlacedNode(position_m=[6.0, 7.0, 1.4], velocity_m_s=[0.0, 1.0, 0.0]),
    surface=PlacedSurface(position_m=[6.0, 0.0, 1.5], normal=[0.0, 1.0, 0.0], gain_db=30.0),
    attacker=Attacker(position_m=[5.0, 0.0, 1.0], normal=[0.0, 1.0, 0.0], rows=4, columns=4, gain_db=20.0),
    multipath=Multipath(n_scatterers=15),
)
FOUR, TWO = Array(4, 0.5, (0.0, 1.0, 0.0)), Array(2, 0.7, (1.0, 1.0, 0.0))


def air_with(scene: Scene, **arrays: Array | None) -> Air:
    air = Air()
    air.reset(scene, CARRIER_HZ, 1)
    for name, array in arrays.items():
        air.tune(name, name, CARRIER_HZ, RATE_HZ, 0.0, array=array)
    air.hang("ris", (4, 4), 1)
    air.latch("ris", np.arange(16, dtype=np.uint8).reshape(4, 4) % 2, 0)
    return air


def noise(n_antennas: int, n: int = 300) -> Any:
    rng = np.random.default_rng(n_antennas)
    return (0.3 * (rng.standard_normal((n_antennas, n)) + 1j * rng.standard_normal((n_antennas, n)))).astype(
        np.complex64
    )


def heard(air: Air, tx: str, rx: str, samples: Any) -> Any:
    for name in air.stations:
        air.declare(name, 0 if name == tx else 50 * US)
    air.transmit(tx, 10 * US, samples)
    air.declare(tx, 50 * US)
    return air.hear(rx, 9 * US, 500)


@pytest.mark.parametrize(("tx", "rx"), [("alice", "bob"), ("bob", "alice"), ("alice", "eve")])
def test_every_pair_is_the_link_of_two_single_antennas_there(tx: str, rx: str) -> None:
    arrays = {"alice": FOUR, "bob": TWO, "eve": None}
    x = noise(arrays[tx].n if arrays[tx] else 1)  # type: ignore[union-attr]
    got = np.atleast_2d(heard(air_with(SCENE, **arrays), tx, rx, x))
    wanted = np.zeros_like(got)
    for i in range(len(got)):
        for j in range(len(x)):
            placed = {}
            for name, antenna in ((tx, j), (rx, i)):
                array, node = arrays[name], getattr(SCENE, name)
                step = np.zeros(3) if array is None else array.offsets_m(LAMBDA_M)[antenna]
                placed[name] = msgspec.structs.replace(node, position_m=(np.array(node.position_m) + step).tolist())
            single = air_with(msgspec.structs.replace(SCENE, **placed), alice=None, bob=None, eve=None)
            wanted[i] += heard(single, tx, rx, x[j])
    # the adversary's surface takes its pattern from the seed and the time of the last transmission: the same here
    np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-6 * np.abs(wanted).max())
    assert np.abs(wanted).max() > 0


def test_the_first_antenna_is_where_the_place_is() -> None:
    x = np.zeros((4, 300), np.complex64)
    x[0] = noise(1)[0]
    several = heard(air_with(SCENE, alice=FOUR, bob=TWO), "alice", "bob", x)
    single = heard(air_with(SCENE, alice=None, bob=None), "alice", "bob", x[0])
    np.testing.assert_allclose(several[0], single, rtol=0, atol=1e-6 * np.abs(single).max())


def test_a_link_and_its_reverse_are_transposed() -> None:
    channel = Channel(SCENE, CARRIER_HZ, 1)
    channel.hang_surface((4, 4))
    there, back = channel.paths("alice", "bob", 0.0, CARRIER_HZ, FOUR, TWO), channel.paths(
        "bob", "alice", 0.0, CARRIER_HZ, TWO, FOUR
    )  # fmt: skip
    for one, other in zip(there, back, strict=True):
        assert one.shape[:2] == (4, 2)
        np.testing.assert_array_equal(one, other.swapaxes(0, 1))


def test_a_far_source_reaches_the_line_with_the_phases_of_a_plane_wave() -> None:
    angle = np.deg2rad(35.0)
    far = Scene(
        alice=PlacedNode(position_m=[0.0, 0.0, 1.0]),
        bob=PlacedNode(position_m=[5e4 * np.cos(angle), 5e4 * np.sin(angle), 1.0]),
        multipath=Multipath(n_scatterers=0, direct_db=0.0),
    )
    amplitude, _ = Channel(far, CARRIER_HZ, 1).paths("alice", "bob", 0.0, CARRIER_HZ, FOUR, None)
    steps = np.angle(amplitude[1:, 0, 0] / amplitude[:-1, 0, 0])
    np.testing.assert_allclose(steps, np.pi * np.sin(angle), atol=1e-3)


def test_the_convolution_is_numpys() -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((3, 97)) + 1j * rng.standard_normal((3, 97))).astype(np.complex64)
    h = rng.standard_normal((3, 2, 26)) + 1j * rng.standard_normal((3, 2, 26))
    wanted = [sum(np.convolve(x[t], h[t, r], "valid") for t in range(3)) for r in range(2)]
    np.testing.assert_allclose(convolve(x, h), wanted, rtol=0, atol=1e-4)


def test_the_first_antennas_parts_and_noise_are_those_of_a_radio_that_has_no_other() -> None:
    settings = RadioSettings(CARRIER_HZ, RATE_HZ, 0.0, 20.0)
    options = {"gain_step_db": 6.0, "gain_step_probability": 0.5, "overflow_probability": 0.5}
    one, four = (FrontEnd("alice", RadioOptions(n_antennas=n, **options), 1, 2, settings) for n in (1, 4))  # type: ignore[arg-type]
    x = noise(4)
    np.testing.assert_array_equal(four.send(x, 5 * US)[0], one.send(x[0], 5 * US))
    for k in range(6):  # a fault of one converter affects all: they share clock and gain
        (got, lost), (wanted, also) = four.hear(x * 1e-4, k * US), one.hear(x[0] * 1e-4, k * US)
        np.testing.assert_array_equal(got[0], wanted)
        assert lost == also
    sent = four.send(np.tile(x[:1], (4, 1)), 0)
    assert len({row.tobytes() for row in sent}) == 4  # chains differ …
    np.testing.assert_allclose(sent[1], sent[0], atol=0.3 * np.abs(sent[0]).max())  # … by a ripple
    quiet, _ = four.hear(np.zeros((4, 4000), np.complex64), 0)
    assert np.abs(np.corrcoef(quiet)[0, 1:]).max() < 0.1
