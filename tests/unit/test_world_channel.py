"""The physical channel, sounded: delays, gains, reciprocity, correlation, Doppler, the surface."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import j0

from sim_backend.channel import Channel, responses, taps
from sim_backend.scatterers import Scatterers
from sim_backend.world import Air
from testbed.core.config import Multipath, PlacedNode, PlacedSurface, Scene
from testbed.core.geometry import element_positions
from testbed.core.types import SPEED_OF_LIGHT_M_S, SurfacePattern

CARRIER_HZ = 2.4e9
LAMBDA_M = SPEED_OF_LIGHT_M_S / CARRIER_HZ
RATE_HZ = 40e6
EMPTY = Multipath(n_scatterers=0, direct_db=0.0)
US = 10**6


def tuned(
    scene: Scene, names: tuple[str, ...] = ("alice", "bob"), rate_hz: float = RATE_HZ, seed: int = 1, **kw: Channel
) -> Air:
    air = Air()
    air.reset(scene, CARRIER_HZ, seed, **kw)
    for name in names:
        air.tune(name, name, CARRIER_HZ, rate_hz, 0.0)
    return air


def sound(air: Air, source: str, listener: str, x: np.ndarray, n: int, at: int = 100 * US) -> np.ndarray:
    """Send x at `at`, hear n samples from then on."""
    air.transmit(source, at, x.astype(np.complex64))
    air.check_reception(listener, at, n)
    return air.hear(listener, at, n)


def pulse(n: int = 256, seed: int = 3) -> np.ndarray:
    """A periodic multitone within ±40 % of the rate; the middle period of three is free of edges."""
    bins = np.fft.fftfreq(n)
    turns = np.random.default_rng(seed).random(n)
    return np.tile(np.fft.ifft(np.where(np.abs(bins) <= 0.4, np.exp(2j * np.pi * turns), 0)), 3)


def response(air: Air, source: str, listener: str, at: int = 100 * US) -> tuple[np.ndarray, np.ndarray]:
    """Return (frequency in cycles a sample, H) of a link, by sending and receiving samples."""
    x, n = pulse(), 256
    y = sound(air, source, listener, x, 3 * n, at)
    bins = np.fft.fftfreq(n)
    used = np.abs(bins) <= 0.4
    return bins[used], (np.fft.fft(y[n : 2 * n]) / np.where(used, np.fft.fft(x[n : 2 * n]), 1))[used]


@given(st.lists(st.floats(0, 40), min_size=1, max_size=6), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_taps_are_delays_to_minus_60_db(delays: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    amplitude = rng.standard_normal(len(delays)) + 1j * rng.standard_normal(len(delays))
    first, h = taps(amplitude, np.array(delays))
    f = np.linspace(-0.4, 0.4, 201)
    got = np.exp(-2j * np.pi * np.outer(f, first + np.arange(len(h)))) @ h
    wanted = np.exp(-2j * np.pi * np.outer(f, delays)) @ amplitude
    assert np.abs(got - wanted).max() < 1e-3 * np.abs(amplitude).sum()


@pytest.mark.parametrize("distance_m", [1.0, 7.5, 33.3, 300.0])
def test_delay_and_gain_of_free_space(distance_m: float) -> None:
    scene = Scene(
        alice=PlacedNode(position_m=[0, 0, 1]), bob=PlacedNode(position_m=[distance_m, 0, 1]), multipath=EMPTY
    )
    f, h = response(tuned(scene), "alice", "bob")
    slope = np.polyfit(np.sort(f), np.unwrap(np.angle(h[np.argsort(f)])), 1)[0]
    assert -slope / (2 * np.pi) == pytest.approx(distance_m / SPEED_OF_LIGHT_M_S * RATE_HZ, abs=0.01)
    friis_db = 20 * np.log10(LAMBDA_M / (4 * np.pi * distance_m))
    assert 20 * np.log10(np.abs(h)) == pytest.approx(friis_db, abs=0.05)
    turn = np.exp(-2j * np.pi * distance_m / LAMBDA_M)
    assert (
        abs(np.mean(h * np.exp(2j * np.pi * f * distance_m / SPEED_OF_LIGHT_M_S * RATE_HZ)) / abs(h[0]) - turn) < 1e-2
    )


def test_multipath_is_the_sum_of_its_geometry() -> None:
    """Independent of the code under test: paths added in the frequency domain."""
    rng = np.random.default_rng(5)
    bodies = Scatterers(rng.uniform(0, 10, (7, 3)), np.zeros((7, 3)), rng.standard_normal(7) + 0.3j)
    scene = Scene(
        alice=PlacedNode(position_m=[1, 1, 1]), bob=PlacedNode(position_m=[8, 6, 2]), multipath=Multipath(direct_db=-10)
    )
    air = tuned(scene, channel=Channel(scene, CARRIER_HZ, 1, bodies))
    f, h = response(air, "alice", "bob")
    a, b = np.array([1, 1, 1]), np.array([8, 6, 2])
    d = np.linalg.norm(bodies.position_m - a, axis=1) + np.linalg.norm(bodies.position_m - b, axis=1)
    d = np.append(d, np.linalg.norm(a - b))
    c = np.append(bodies.coefficient, 10 ** (-10 / 20))
    hz = CARRIER_HZ + f * RATE_HZ
    wanted = np.exp(-2j * np.pi * np.outer(hz, d / SPEED_OF_LIGHT_M_S)) @ (c * LAMBDA_M / (4 * np.pi * d))
    assert np.abs(h - wanted).max() < 2e-3 * np.abs(wanted).max()


def test_the_air_is_exactly_reciprocal() -> None:
    scene = Scene(
        alice=PlacedNode(position_m=[2, 3, 1], velocity_m_s=[1, 0, 0]),
        bob=PlacedNode(position_m=[8, 5, 1]),
        surface=PlacedSurface(position_m=[5, 0, 1], normal=[0, 1, 0]),
        multipath=Multipath(scatterer_speed_m_s=1.0),
    )
    channel = Channel(scene, CARRIER_HZ, 4)
    channel.hang_surface((4, 4))
    forth, back = channel.paths("alice", "bob", 0.7, CARRIER_HZ), channel.paths("bob", "alice", 0.7, CARRIER_HZ)
    for one, other in zip(forth, back, strict=True):
        np.testing.assert_array_equal(one, other)
    still = Scene(alice=PlacedNode(position_m=[2, 3, 1]), bob=scene.bob)
    (_, ab), (_, ba) = (response(tuned(still), *pair) for pair in (("alice", "bob"), ("bob", "alice")))
    np.testing.assert_array_equal(ab, ba)


def test_the_same_seed_is_the_same_room_and_another_is_not() -> None:
    scene = Scene(alice=PlacedNode(position_m=[2, 3, 1]), bob=PlacedNode(position_m=[8, 5, 1]))
    one, same, other = (response(tuned(scene, seed=s), "alice", "bob")[1] for s in (7, 7, 8))
    np.testing.assert_array_equal(one, same)
    assert np.abs(np.vdot(one, other)) / np.linalg.norm(one) / np.linalg.norm(other) < 0.9


def test_moving_scatterers_stay_in_the_room() -> None:
    plan = Multipath(room_m=[4, 3, 2], scatterer_speed_m_s=2.0, direct_db=-np.inf)
    scene = Scene(alice=PlacedNode(position_m=[1, 1, 1]), bob=PlacedNode(position_m=[1, 1, 1]), multipath=plan)
    channel = Channel(scene, CARRIER_HZ, 3)
    diagonal_m = np.linalg.norm([4, 3, 2])
    for time_s in (0.0, 10.0, 1000.0):
        _, delay_s = channel.paths("alice", "bob", time_s, CARRIER_HZ)
        assert delay_s.max() * SPEED_OF_LIGHT_M_S <= 2 * diagonal_m
    assert not np.array_equal(channel.paths("alice", "bob", 0.0, CARRIER_HZ)[1], delay_s)


# ---------------------------------------------------------------- Eve near Bob


@pytest.mark.parametrize("offset", [0.05, 0.2, 0.4, 0.5, 1.0])
def test_correlation_in_an_isotropic_ring_is_bessel(offset: float) -> None:
    """Clarke's model: |J0(2πδ/λ)| at δ from the centre of a wide ring of equal scatterers."""
    turn = np.arange(720) * 2 * np.pi / 720
    ring = np.stack([8 + 500 * np.cos(turn), 5 + 500 * np.sin(turn), np.ones(720)], axis=1)
    bodies = Scatterers(ring, np.zeros_like(ring), np.ones(720, complex))
    scene = Scene(
        alice=PlacedNode(position_m=[2, 3, 1]),
        bob=PlacedNode(position_m=[8, 5, 1]),
        eve=PlacedNode(near="bob", offset_wavelengths=offset),
        multipath=Multipath(direct_db=-np.inf),
    )
    channel = Channel(scene, CARRIER_HZ, 2, bodies)
    assert np.linalg.norm(channel.position_m("eve", 0) - channel.position_m("bob", 0)) == pytest.approx(
        offset * LAMBDA_M
    )
    bob, eve = (channel.paths("alice", who, 0.0, CARRIER_HZ)[0] for who in ("bob", "eve"))
    # independent coefficients: the expectation over them is the sum over scatterers of what each does to both
    rho = abs(np.vdot(bob, eve)) / np.linalg.norm(bob) / np.linalg.norm(eve)
    assert rho == pytest.approx(abs(j0(2 * np.pi * offset)), abs=0.01)


def test_correlation_of_received_samples_follows_from_the_geometry() -> None:
    """Many draws of the coefficients in one room, heard as samples by Bob and Eve."""
    rng = np.random.default_rng(9)
    where = rng.uniform(0, 1, (40, 3)) * [20, 16, 3]
    scene = Scene(
        alice=PlacedNode(position_m=[4, 8, 1.5]),
        bob=PlacedNode(position_m=[14, 8, 1.5]),
        eve=PlacedNode(near="bob", offset_wavelengths=0.25),
        multipath=Multipath(direct_db=-np.inf),
    )
    tone = np.ones(64, np.complex64)
    heard = []
    for _ in range(300):
        c = rng.standard_normal(40) + 1j * rng.standard_normal(40)
        channel = Channel(scene, CARRIER_HZ, 2, Scatterers(where, np.zeros((40, 3)), c))
        air = tuned(scene, ("alice", "bob", "eve"), channel=channel)
        air.transmit("alice", 0, tone)
        heard.append([air.hear(who, US, 1)[0] for who in ("bob", "eve")])
    bob, eve = np.array(heard).T
    measured = np.vdot(bob, eve) / np.linalg.norm(bob) / np.linalg.norm(eve)
    legs = []
    for who in ("bob", "eve"):
        at = channel.position_m(who, 0)
        d = np.linalg.norm(where - [4, 8, 1.5], axis=1) + np.linalg.norm(where - at, axis=1)
        legs.append(np.exp(-2j * np.pi * d / LAMBDA_M) / d)
    theory = np.vdot(*legs) / np.linalg.norm(legs[0]) / np.linalg.norm(legs[1])
    assert abs(measured - theory) < 4 / np.sqrt(300)
    assert abs(theory) > 0.3


def test_eve_walks_along_with_bob() -> None:
    scene = Scene(
        alice=PlacedNode(position_m=[2, 3, 1]),
        bob=PlacedNode(position_m=[8, 5, 1], velocity_m_s=[0.5, -1, 0]),
        eve=PlacedNode(near="bob", offset_wavelengths=0.3),
    )
    channel = Channel(scene, CARRIER_HZ, 2)
    gaps = [channel.position_m("eve", t) - channel.position_m("bob", t) for t in (0.0, 3.0)]
    np.testing.assert_allclose(gaps[0], gaps[1], atol=1e-12)
    assert gaps[0][2] == 0.0


@pytest.mark.parametrize("velocity_m_s", [-10.0, 3.0, 30.0])
def test_doppler(velocity_m_s: float) -> None:
    scene = Scene(
        alice=PlacedNode(position_m=[0, 0, 1]),
        bob=PlacedNode(position_m=[100, 0, 1], velocity_m_s=[velocity_m_s, 0, 0]),
        multipath=EMPTY,
    )
    rate_hz, n = 1e6, 50_000
    y = sound(tuned(scene, rate_hz=rate_hz), "alice", "bob", np.ones(n), n)[1000:-1000]
    slope = np.polyfit(np.arange(len(y)) / rate_hz, np.unwrap(np.angle(y)), 1)[0] / (2 * np.pi)
    assert slope == pytest.approx(-velocity_m_s / LAMBDA_M, rel=1e-3)


# ---------------------------------------------------------------- the surface


def mirror_scene(normal: list[float], spacing: float = 0.5, gain_db: float = 0.0) -> Scene:
    return Scene(
        alice=PlacedNode(position_m=[2, 4, 1.2]),
        bob=PlacedNode(position_m=[7, 3, 1.6]),
        surface=PlacedSurface(position_m=[5, 0, 1.5], normal=normal, spacing_wavelengths=spacing, gain_db=gain_db),
        multipath=Multipath(n_scatterers=0, direct_db=-np.inf),
    )


def test_element_grid() -> None:
    placed = PlacedSurface(position_m=[5, 0, 1.5], normal=[0, 2, 0], spacing_wavelengths=0.5)
    grid = element_positions(placed, (3, 4), LAMBDA_M).reshape(3, 4, 3)
    np.testing.assert_allclose(grid.reshape(-1, 3).mean(axis=0), [5, 0, 1.5], atol=1e-12)
    np.testing.assert_allclose(grid[0, 0] - grid[1, 0], [0, 0, LAMBDA_M / 2], atol=1e-12)  # row 0 on top
    # an observer in front at y > 0 looks along −y: to the right is −x
    np.testing.assert_allclose(grid[0, 1] - grid[0, 0], [-LAMBDA_M / 2, 0, 0], atol=1e-12)


def test_focusing_gain_is_the_closed_form() -> None:
    """Aligned phases add the element amplitudes: N² in power; 8-bit phases lose less than 0.01 dB of it."""
    scene = mirror_scene([0, 1, 0], gain_db=20.0)
    shape = (8, 8)
    grid = element_positions(scene.surface, shape, LAMBDA_M)  # type: ignore[arg-type]
    d1, d2 = (np.linalg.norm(grid - at, axis=1) for at in ([2, 4, 1.2], [7, 3, 1.6]))
    best = np.mod(2 * np.pi * (d1 + d2) / LAMBDA_M, 2 * np.pi)
    levels = (np.rint(best / (2 * np.pi) * 256).astype(int) % 256).astype(np.uint8).reshape(shape)
    air = tuned(scene)
    air.hang("ris", shape, 8)
    air.latch("ris", levels, 0)
    _, h = response(air, "alice", "bob")
    wanted = 10 * np.sum((LAMBDA_M / (4 * np.pi)) ** 2 / (d1 * d2))
    assert 20 * np.log10(np.abs(h)) == pytest.approx(20 * np.log10(wanted), abs=0.1)


def test_nothing_is_reflected_behind_the_surface() -> None:
    air = tuned(mirror_scene([0, -1, 0]))
    air.hang("ris", (4, 4), 1)
    assert not sound(air, "alice", "bob", np.ones(100), 100).any()


@given(offset=st.integers(1, 20_000_000), latency=st.integers(0, 10_000_000))
@settings(max_examples=25, deadline=None)
def test_a_change_is_seen_at_its_sample(offset: int, latency: int) -> None:
    """All elements turn by π: the sign of a constant carrier flips at the first sample that is not before the latch."""
    scene = mirror_scene([0, 1, 0])
    air = tuned(scene)
    air.hang("ris", (4, 4), 1)
    air.transmit("alice", 0, np.ones(4000, np.complex64))
    air.check_reception("bob", 0, 10)
    air.declare("alice", 10**9)
    air.hear("bob", offset, 400)
    when = air.latch("ris", np.ones((4, 4), np.uint8), latency)
    assert when == air.frontier + latency
    start = when - 7 * 25_000 - offset % 25_000
    y = air.hear("bob", start, 40)
    first = -(-(when - start) // 25_000)
    np.testing.assert_allclose(y[:first], y[0], rtol=1e-5)
    np.testing.assert_allclose(y[first:], -y[0], rtol=1e-5)
    assert abs(y[0]) > 0


def test_responses_are_what_ideal_probing_measures() -> None:
    """Against the taps that signals are convolved with, at the same instant and pattern."""
    scene = Scene(
        alice=PlacedNode(position_m=[4.0, 8.0, 1.5]),
        bob=PlacedNode(position_m=[9.0, 8.0, 1.5], velocity_m_s=[1.0, 0.0, 0.0]),
        surface=PlacedSurface(position_m=[6.0, 4.0, 1.5], normal=[0.0, 1.0, 0.0], gain_db=30.0),
    )
    pattern = SurfacePattern(np.arange(16, dtype=np.uint8).reshape(4, 4) % 4, 2)
    time_s, subcarrier_hz = np.array([0.0, 0.7]), np.linspace(-8e6, 8e6, 9)
    got = responses(Channel(scene, 2.4e9, 3), 2.4e9, time_s, subcarrier_hz, pattern)
    assert list(got) == ["alice>bob"]
    channel = Channel(scene, 2.4e9, 3)
    channel.hang_surface((4, 4))
    for i, t in enumerate(time_s):
        amplitude, delay_s = channel.paths("alice", "bob", float(t), 2.4e9)
        amplitude = amplitude.copy()
        amplitude[channel.n_air :] *= np.exp(1j * pattern.phases_rad.ravel())
        first, h = taps(amplitude, delay_s * 40e6)
        lag = (first + np.arange(h.size)) / 40e6
        wanted = np.exp(-2j * np.pi * subcarrier_hz[:, None] * lag) @ h
        np.testing.assert_allclose(got["alice>bob"][i], wanted, rtol=0, atol=2e-3 * np.abs(wanted).max())
    bare = responses(Channel(scene, 2.4e9, 3), 2.4e9, time_s, subcarrier_hz, None)["alice>bob"]
    assert np.abs(bare - got["alice>bob"]).max() > 0.05 * np.abs(bare).max()
