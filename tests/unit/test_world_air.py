"""The rule of the air: who has to declare what before whom can hear."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim_backend import world
from sim_backend.ticks import DeviceClock, duration
from sim_backend.world import RETENTION, Air, Refused
from testbed.core.config import Multipath, PlacedNode, Scene

CARRIER_HZ, RATE_HZ = 2.4e9, 40e6
US = 10**6
SCENE = Scene(
    alice=PlacedNode(position_m=[2, 3, 1]),
    bob=PlacedNode(position_m=[8, 5, 1], velocity_m_s=[1, 0, 0]),
    eve=PlacedNode(position_m=[8, 6, 1]),
    multipath=Multipath(n_scatterers=10, scatterer_speed_m_s=1),
)


def air_of(*names: str, turnaround_s: float = 5e-6) -> Air:
    air = Air()
    air.reset(SCENE, CARRIER_HZ, 1)
    for name in names:
        air.tune(name, name, CARRIER_HZ, RATE_HZ, turnaround_s)
    return air


def burst(n: int = 400, seed: int = 1) -> np.ndarray:
    return np.exp(2j * np.pi * np.random.default_rng(seed).random(n)).astype(np.complex64)


def test_a_reception_waits_for_every_other_radio() -> None:
    air = air_of("alice", "bob", "eve")
    end = air.check_reception("bob", 10 * US, 400)
    assert end == 20 * US
    assert sorted(air.undeclared("bob", end)) == ["alice", "eve"]
    air.transmit("alice", 5 * US, burst(200))  # declares up to 10 µs
    assert sorted(air.undeclared("bob", end)) == ["alice", "eve"]
    air.declare("alice", 20 * US)
    assert air.undeclared("bob", end) == ["eve"]
    air.check_reception("eve", 9 * US, 440)  # listens just as long
    assert air.undeclared("bob", end) == []


def test_a_radio_whose_place_is_not_in_the_scene_is_not_waited_for() -> None:
    air = air_of("alice", "bob", "eve")
    air.reset(Scene(alice=SCENE.alice, bob=SCENE.bob), CARRIER_HZ, 1)
    assert air.undeclared("bob", US) == ["alice"]
    with pytest.raises(Refused, match="no place 'eve'"):
        air.check_reception("eve", 0, 100)
    with pytest.raises(Refused, match="no place 'ris'"):
        air.tune("ris", "ris", CARRIER_HZ, RATE_HZ, 0)


def test_promises_are_kept() -> None:
    air = air_of("alice", "bob")
    air.declare("alice", 100 * US)
    with pytest.raises(Refused, match="too late") as refused:
        air.transmit("alice", 100 * US - 1, burst())
    assert refused.value.kind == "late"
    air.transmit("alice", 100 * US, burst())
    air.check_reception("bob", 0, 400)  # and with it the time its switch needs
    with pytest.raises(Refused, match="too late"):
        air.transmit("bob", 15 * US - 1, burst())
    air.transmit("bob", 15 * US, burst())


def test_a_joiner_starts_at_the_frontier() -> None:
    air = air_of("alice", "bob")
    air.declare("alice", 100 * US)
    air.check_reception("bob", 10 * US, 400)
    air.hear("bob", 10 * US, 400)
    air.tune("eve", "eve", CARRIER_HZ, RATE_HZ, 0)
    assert air.now("eve") == air.frontier == 20 * US
    with pytest.raises(Refused, match="too late"):
        air.transmit("eve", 20 * US - 1, burst())


def test_the_past_is_kept_for_a_while() -> None:
    air = air_of("alice", "bob")
    sent = burst()
    air.transmit("alice", 0, sent)
    air.declare("alice", 10 * RETENTION)
    at_once = air.hear("bob", 0, 500)
    air.hear("bob", RETENTION - 100 * US, 400)
    np.testing.assert_array_equal(air.hear("bob", 0, 500), at_once)
    air.hear("bob", 2 * RETENTION, 400)
    with pytest.raises(Refused, match="kept for 4 s"):
        air.check_reception("bob", 0, 500)


def test_of_much_that_is_sent_less_of_the_past_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "MOST_KEPT", 10 * 400)
    air = air_of("alice", "bob")
    for k in range(20):  # one each 0.2 s, of 400 samples
        air.transmit("alice", k * RETENTION // 20, burst())
    air.declare("alice", 10 * RETENTION)
    heard = air.hear("bob", RETENTION // 20, 500)
    at = RETENTION - 100 * US
    air.hear("bob", at, 400)
    for start in (RETENTION // 20, RETENTION // 4):
        with pytest.raises(Refused, match="kept for 1 s"):
            air.check_reception("bob", start, 500)
    air.check_reception("bob", 16 * RETENTION // 20, 500)
    assert np.abs(air.hear("bob", 16 * RETENTION // 20, 500)).max() > 0.5 * np.abs(heard).max()
    air.hear("bob", 2 * RETENTION, 400)  # little is kept now
    air.check_reception("bob", RETENTION + 100 * US, 500)


@given(cuts=st.lists(st.integers(1, 8999), max_size=4), start=st.integers(0, 50 * US))
@settings(max_examples=20, deadline=None)
def test_how_a_receiver_cuts_its_blocks_changes_nothing(cuts: list[int], start: int) -> None:
    air = air_of("alice", "bob", "eve", turnaround_s=0.0)
    air.transmit("alice", 20 * US, burst(4000))
    air.transmit("eve", 60 * US + 1234, burst(3000, 2), shift=-777)
    start -= start % 25_000
    whole = air.hear("bob", start, 9000)
    edges = [0, *sorted(set(cuts)), 9000]
    parts = [air.hear("bob", start + a * 25_000, b - a) for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6 * np.abs(whole).max())


def test_the_order_of_declarations_changes_nothing() -> None:
    heard = []
    for order in (("alice", "eve"), ("eve", "alice")):
        air = air_of("alice", "bob", "eve")
        for name in order:
            air.transmit(name, 20 * US, burst(500, len(name)))
        heard.append(air.hear("bob", 10 * US, 1000))
    np.testing.assert_array_equal(*heard)


def test_nothing_is_heard_before_it_was_sent() -> None:
    air = air_of("alice", "bob")
    air.transmit("alice", 20 * US, burst())
    y = air.hear("bob", 0, 2000)
    assert not y[:800].any()
    assert y[800:1200].any()
    assert not y[1300:].any()


def test_a_start_between_samples_is_kept_exactly() -> None:
    """A signal sent half a sample later is received half a sample later."""
    bins = np.fft.fftfreq(256)
    used = np.abs(bins) < 0.4
    x = np.tile(np.fft.ifft(used * np.exp(2j * np.pi * np.random.default_rng(1).random(256))), 3).astype(np.complex64)
    spectra = []
    for shift in (0, 12_500):
        air = air_of("alice", "bob")
        air.transmit("alice", 10 * US, x, shift)
        spectra.append(np.fft.fft(air.hear("bob", 10 * US, 768)[256:512])[used])
    turned = spectra[0] * np.exp(-2j * np.pi * bins[used] * 0.5)
    assert np.linalg.norm(spectra[1] - turned) < 2e-3 * np.linalg.norm(turned)


def test_a_radio_is_deaf_while_it_sends_and_turns_round() -> None:
    air = air_of("alice", "bob", turnaround_s=5e-6)
    air.transmit("alice", 0, burst(4000))
    air.transmit("bob", 20 * US, burst(400))
    y = air.hear("bob", 0, 4000)
    deaf = np.flatnonzero(y == 0)
    deaf = deaf[deaf > 100]
    assert (deaf[0], deaf[-1]) == (600, 1399)  # 15 µs to 35 µs
    assert len(deaf) == 800


def test_silence_cuts_samples_that_were_not_received() -> None:
    air = air_of("alice", "bob")
    air.transmit("alice", 0, burst(4000))
    first = air.hear("bob", 0, 1000)
    air.silence("alice")
    air.declare("alice", 200 * US)
    rest = air.hear("bob", 25 * US, 2000)
    assert np.abs(first[100:]).min() > 0
    assert not rest[100:].any()
    np.testing.assert_array_equal(air.hear("bob", 0, 900), first[:900])


def test_a_cyclic_transmission_goes_on_until_silence() -> None:
    air = air_of("alice", "bob")
    air.transmit("alice", 0, burst(100), cyclic=True)
    y = air.hear("bob", 0, 4000)
    np.testing.assert_allclose(y[1000:1100], y[1100:1200], atol=1e-6)
    with pytest.raises(Refused, match="too late"):
        air.transmit("alice", 200 * US, burst())
    air.silence("alice")
    assert air.undeclared("bob", 200 * US) == ["alice"]
    assert not air.hear("bob", 100 * US, 500)[100:].any()


def test_bands_that_have_nothing_in_common_are_not_heard() -> None:
    air = air_of("alice", "bob")
    air.tune("alice", "alice", CARRIER_HZ + 40e6, RATE_HZ, 0)
    air.transmit("alice", 0, burst())
    assert not air.hear("bob", 0, 400).any()


def tone_heard(away_hz: float, sent_rate_hz: float, heard_rate_hz: float, tone_hz: float) -> tuple[float, complex]:
    """Return the frequency at which a tone is received, and its phasor there referred to the world's time 0."""
    air = air_of("alice", "bob")
    air.tune("alice", "alice", CARRIER_HZ + away_hz, sent_rate_hz, 0)
    air.tune("bob", "bob", CARRIER_HZ, heard_rate_hz, 0)
    n = round(600e-6 * sent_rate_hz)
    air.transmit("alice", 0, np.exp(2j * np.pi * tone_hz / sent_rate_hz * np.arange(n)).astype(np.complex64))
    start = 100 * US
    y = air.hear("bob", start, round(400e-6 * heard_rate_hz))
    spectrum = np.abs(np.fft.fft(y))
    found_hz = float(np.fft.fftfreq(y.size, 1 / heard_rate_hz)[np.argmax(spectrum)])
    # in double precision: the phase of 10⁵ turns counts
    time_s = 100e-6 + np.arange(y.size) / heard_rate_hz
    return found_hz, complex(np.mean(y * np.exp(-2j * np.pi * (tone_hz + away_hz) * time_s)))


@pytest.mark.parametrize(
    ("away_hz", "sent_rate_hz", "heard_rate_hz", "tone_hz"),
    [
        (10e6, RATE_HZ, RATE_HZ, -5e6),  # overlapping bands
        (-13e6, RATE_HZ, RATE_HZ, 9e6),
        (0.0, RATE_HZ, RATE_HZ / 4, 1e6),  # rates of a simple ratio, down and up
        (0.0, RATE_HZ / 4, RATE_HZ, 1e6),
        (0.0, 2.5e6, 3.84e6, -0.7e6),  # … and of none
        (1.5e6, 30.72e6, 4e6, -2.5e6),
        (-1e6, 0.6e6, 5e6, 0.2e6),
    ],
)
def test_a_tone_is_heard_where_it_belongs_whatever_carrier_and_rate_it_was_sent_with(
    away_hz: float, sent_rate_hz: float, heard_rate_hz: float, tone_hz: float
) -> None:
    found_hz, phasor = tone_heard(away_hz, sent_rate_hz, heard_rate_hz, tone_hz)
    assert found_hz == pytest.approx(tone_hz + away_hz, abs=2500)
    # sent the plain way by a radio that is tuned to it: free space differs by the ratio of the carriers
    _, plain = tone_heard(0.0, RATE_HZ, RATE_HZ, tone_hz + away_hz)
    assert abs(phasor) == pytest.approx(abs(plain), rel=2e-3 + 1.5 * abs(away_hz) / CARRIER_HZ)


def test_nothing_of_what_lies_outside_the_receivers_band_folds_into_it() -> None:
    _, inside = tone_heard(0.0, RATE_HZ, RATE_HZ / 8, 0.5e6)
    air = air_of("alice", "bob")
    air.tune("bob", "bob", CARRIER_HZ, RATE_HZ / 8, 0)
    for tone_hz in (3.0e6, -4.0e6, 9.0e6):
        begin, n = max(air.now("alice"), air.now("bob")), round(600e-6 * RATE_HZ)
        wave = np.exp(2j * np.pi * tone_hz / RATE_HZ * np.arange(n)).astype(np.complex64)
        air.transmit("alice", begin, wave)
        y = air.hear("bob", begin + 200 * US, 500)  # clear of where it begins and ends, which is heard everywhere
        assert np.abs(y).max() < 3e-4 * abs(inside)  # −70 dB


def test_a_wave_in_halves_is_the_wave_whole() -> None:
    """How a receiver cuts its blocks changes nothing, at other rates either."""
    heard = []
    for cuts in ([400], [150, 250]):
        air = air_of("alice", "bob")
        air.tune("bob", "bob", CARRIER_HZ + 1e6, 7e6, 0)
        air.transmit("alice", 0, burst(4000))
        at, parts = 0, []
        for n in cuts:
            parts.append(air.hear("bob", round(at / 7e6 * 1e12), n))
            at += n
        heard.append(np.concatenate(parts))
    np.testing.assert_allclose(heard[0], heard[1], atol=2e-3 * np.abs(heard[0]).max())


def test_without_a_scene_there_is_no_air() -> None:
    air = Air()
    air.tune("alice", "alice", CARRIER_HZ, RATE_HZ, 0)
    with pytest.raises(Refused, match="no scene"):
        air.transmit("alice", 0, burst())


def test_reset_begins_again() -> None:
    air = air_of("alice", "bob")
    air.hang("ris", (2, 2), 1)
    air.latch("ris", np.ones((2, 2), np.uint8), 0)
    air.transmit("alice", 0, burst())
    before = air.hear("bob", 0, 400)
    assert before.any()
    air.reset(SCENE, CARRIER_HZ, 1)
    assert air.frontier == 0
    assert not air.pattern("ris").any()
    assert not air.hear("bob", 0, 400).any()


@given(ppm=st.floats(-50, 50), offset_s=st.floats(-1, 1), ticks=st.integers(0, 100 * 10**12))
def test_device_clock_round_trip(ppm: float, offset_s: float, ticks: int) -> None:
    clock = DeviceClock(ppm, offset_s)
    assert abs(clock.world_ticks(clock.reading_s(ticks)) - ticks) <= 40  # a double holds 100 s to 14 ps


def test_duration() -> None:
    assert duration(40, 40e6) == US
    assert duration(1, 30.72e6) == 32552


def test_free_radios_that_are_asked_while_nothing_else_happens_receive_the_same_stretch_of_time() -> None:
    air = Air()
    air.reset(SCENE, CARRIER_HZ, 1)
    for name in ("alice", "bob", "eve"):
        air.tune(name, name, CARRIER_HZ, RATE_HZ, 0.0, free=True)
    air.let_pass(100 * US)
    air.transmit("alice", 100 * US, burst(), cyclic=True)
    heard = {}
    for name in ("bob", "eve"):
        start = air.earliest(name)
        air.check_reception(name, start, 4000)
        heard[name] = start, float(np.abs(air.hear(name, start, 4000)).mean())
    assert heard["bob"][0] == heard["eve"][0] == 100 * US
    assert heard["eve"][1] > 0
    assert air.frontier == 200 * US
    assert air.earliest("bob") == 200 * US  # after what it received itself
    air.silence("alice")
    assert [air.earliest(name) for name in ("alice", "bob", "eve")] == [200 * US] * 3
    air.let_pass(300 * US)
    assert air.earliest("eve") == 300 * US


def test_a_free_radio_that_was_away_for_long_does_not_ask_for_samples_that_are_gone() -> None:
    air = Air()
    air.reset(SCENE, CARRIER_HZ, 1)
    for name in ("bob", "eve"):
        air.tune(name, name, CARRIER_HZ, RATE_HZ, 0.0, free=True)
    air.check_reception("bob", 0, 3 * 40_000_000)
    air.pass_time(3_000_000 * US)
    start = air.earliest("eve")
    assert start == air.frontier - RETENTION // 2
    air.check_reception("eve", start, 400)


def test_radios_that_declare_receive_from_their_own_present_on() -> None:
    air = air_of("alice", "bob")
    air.declare("bob", 50 * US)
    assert air.earliest("bob") == air.now("bob") == 50 * US
