"""The radios' own chains: separated over a cable, kept by serial number, applied by the node, worth what is said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sim_backend.local import world_in_thread
from sim_backend.radio import SimRadio
from testbed.core import registry
from testbed.core.config import (
    Accounting,
    BeamPlan,
    ChainPlan,
    Multipath,
    NodePlace,
    PlacedNode,
    ProbingPlan,
    RadioPlan,
    Scene,
)
from testbed.core.errors import InputError
from testbed.core.radio import RadioSettings
from testbed.core.types import CsiFrame, IqBlock
from testbed.core.windows import repeated_windows
from testbed.core.world import DriverContext
from testbed.lab import cable
from testbed.lab.measure import Bench
from testbed.net import messages as m
from testbed.nodes import chains
from testbed.nodes.antennas import Antennas
from testbed.nodes.chains import ChainResponse
from testbed.nodes.operations import RadioWork

RATE_HZ, CARRIER_HZ, RIPPLE_DB = 20e6, 2.4e9, 0.5
SETTINGS = RadioSettings(CARRIER_HZ, RATE_HZ, tx_gain_db=0.0, rx_gain_db=20.0)
NAMES = ("alice", "bob", "eve")


def scene(n_scatterers: int) -> Scene:
    """Without scatterers the air is a cable: one path, flat over the band."""
    return Scene(
        alice=PlacedNode(position_m=[2.0, 8.0, 1.5]),
        bob=PlacedNode(position_m=[9.0, 8.0, 1.5]),
        eve=PlacedNode(position_m=[6.0, 4.0, 1.5]),
        multipath=Multipath(
            n_scatterers=n_scatterers, direct_db=-200.0 if n_scatterers else 0.0, room_m=[60.0, 40.0, 6.0]
        ),
    )


@contextmanager
def bench(where: Scene, n_antennas: int = 1) -> Iterator[Bench]:
    """The same three devices in any scene: their chains follow from the context's seed and their names."""
    with world_in_thread(where, seed=3) as endpoint:
        context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=Path())
        one = {"timed": n_antennas > 1, "chain_ripple_db": RIPPLE_DB, "noise_figure_db": 0.0}
        radios = {n: SimRadio(n, context, n_antennas=1 if n == "eve" else n_antennas, **one) for n in NAMES}
        for radio in radios.values():
            radio.configure(SETTINGS)
        yield Bench(radios, dict.fromkeys(NAMES, SETTINGS), True, ProbingPlan())
        for radio in radios.values():
            radio.close()


def channels(where: Scene, repeats: int = 4) -> tuple[dict[tuple[str, str], Any], Any]:
    pairs = [("alice", "bob"), ("bob", "alice"), ("alice", "eve"), ("bob", "eve")]
    with bench(where) as b:
        found = {p: [s.found.h[0, 0] for _ in range(repeats) if (s := b.sound(*p)).found is not None] for p in pairs}
        return {p: cable.mean_channel(h) for p, h in found.items()}, b.frame.subcarrier_hz


def test_a_cable_makes_the_directions_of_another_channel_alike() -> None:
    """Chains of 0.5 dB ripple each, four of them in a pair of directions: 1 dB apart before."""
    over_cable, axis = channels(scene(0))
    responses = cable.separate(over_cable, axis)
    in_a_room, _ = channels(scene(40))
    at_alice, at_bob = in_a_room["bob", "alice"], in_a_room["alice", "bob"]
    assert cable.apart_db(at_alice, over_cable["bob", "alice"]) > 2.0  # it is another channel
    before_db = cable.apart_db(at_alice, at_bob)
    after_db = cable.apart_db(at_alice * responses.ratio("alice"), at_bob * responses.ratio("bob"))
    assert before_db == pytest.approx(2 * RIPPLE_DB, rel=0.5)
    assert after_db < 0.2 * before_db
    # phases as well: what is left of their difference is delay and a common phase
    left_rad = cable.straightened(at_alice * responses.ratio("alice") / at_bob / responses.ratio("bob"), axis)
    before_rad = cable.straightened(at_alice / at_bob, axis)
    assert np.std(left_rad) < 0.3 * np.std(before_rad)


def test_responses_add_up_to_what_was_measured() -> None:
    rng = np.random.default_rng(1)
    axis = np.arange(-8, 8) * 1e5
    parts = {(side, n): np.exp(0.1 * (rng.normal(size=(16, 2)) @ [1, 1j])) for side in "tr" for n in "abc"}
    measured = {(i, j): (parts["t", i] * parts["r", j]).astype(np.complex64) for i in "abc" for j in "abc" if i != j}
    found = cable.separate(measured, axis)
    for (i, j), h in measured.items():
        np.testing.assert_allclose(found.tx[i][0] + found.rx[j][0], 20 * np.log10(np.abs(h)), atol=1e-4)
    # with three radios, a ratio is known up to one factor that all have in common
    ratios = {n: found.ratio(n) / np.abs(parts["t", n] / parts["r", n]) for n in "abc"}
    np.testing.assert_allclose(np.abs(ratios["a"]), np.abs(ratios["b"]), rtol=1e-4)
    np.testing.assert_allclose(np.abs(ratios["a"]), np.abs(ratios["c"]), rtol=1e-4)


# ---------------------------------------------------------------- kept and applied


def response(serial: str = "1044", carrier_hz: float = CARRIER_HZ, ripple_db: float = 1.0) -> ChainResponse:
    axis = np.linspace(-8e6, 8e6, 9)
    wave = ripple_db * np.cos(np.arange(9))
    return ChainResponse(
        serial=serial, carrier_hz=carrier_hz, sample_rate_hz=RATE_HZ, measured_at="now", subcarrier_hz=axis.tolist(),
        rx_db=wave.tolist(), rx_rad=[0.1] * 9, rx_level_db=-20.0, tx_db=(-wave).tolist(), tx_rad=[0.3] * 9,
    )  # fmt: skip


def test_what_is_kept_belongs_to_a_device_a_carrier_and_a_rate(tmp_path: Path) -> None:
    for one in (response(), response(carrier_hz=5.8e9), response(serial="other"), response(ripple_db=2.0)):
        chains.write(tmp_path, one)
    found = chains.find(tmp_path, {"serial": "1044"}, CARRIER_HZ, RATE_HZ)
    assert found.rx_db[0] == 2.0  # the later one
    assert chains.find(tmp_path, {"serial": "1044"}, 5.8e9, RATE_HZ).rx_db[0] == 1.0
    with pytest.raises(InputError, match=r"'1044' at 2400 MHz and 10 MS/s: run `testbed doctor --cable"):
        chains.find(tmp_path, {"serial": "1044"}, CARRIER_HZ, 10e6)
    with pytest.raises(InputError, match="serial number 'third'"):
        chains.find(tmp_path, {"serial": "third"}, CARRIER_HZ, RATE_HZ)


def test_a_ratio_is_interpolated_and_applied() -> None:
    one = response()
    ratio = one.ratio(np.array([-8e6, 0.0, 9e6]))
    np.testing.assert_allclose(20 * np.log10(np.abs(ratio)), [-2.0, -2 * np.cos(4), -2 * np.cos(8)], atol=1e-4)
    np.testing.assert_allclose(np.angle(ratio), 0.2, atol=1e-5)
    csi = CsiFrame(np.ones((1, 1, 3), np.complex64), np.zeros(3), np.zeros(3), 0.0, 0.0, -20.0)
    np.testing.assert_allclose(chains.levelled(csi, ratio).h[0, 0], ratio)


def work_of(radio: SimRadio, calibrated: bool, folder: Path) -> RadioWork:
    place = NodePlace(role="bob", driver="sim", rx_gain_db=20.0, calibrated=calibrated)
    return RadioWork(radio, place, folder, lambda _: None)


PLAN = m.Configure(
    radio=RadioPlan(carrier_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ), probing=ProbingPlan(), chain=ChainPlan(),
    accounting=Accounting(), experiment_mode=True, record_iq=False, seed=1, timed=False,
)  # fmt: skip


def test_a_node_applies_it_where_it_is_asked_to(tmp_path: Path) -> None:
    heard = {}
    for calibrated in (False, True):
        with bench(scene(0)) as b:
            alice, bob = b._radios["alice"], b._radios["bob"]
            serial = str(bob.identity().get("serial") or "")
            chains.write(tmp_path, response(serial))
            work = work_of(bob, calibrated, tmp_path)  # type: ignore[arg-type]
            work.configure(PLAN, "run", 1)
            alice.transmit(b._block(alice, 0.0))
            done: Any = work.step(m.Step(round=0, step=0, action="receive", tx="alice", last=True))
            (link,) = done.reports[0].rounds[0].links
            heard[calibrated] = np.abs(np.frombuffer(link.csi, np.complex64))
            ratio = response().ratio(b.frame.subcarrier_hz)
    np.testing.assert_allclose(heard[True] / heard[False], np.abs(ratio), rtol=0.02)


def test_a_node_that_was_never_calibrated_says_so(tmp_path: Path) -> None:
    with bench(scene(0)) as b, pytest.raises(InputError, match="no measurement over a cable for the device"):
        work_of(b._radios["bob"], True, tmp_path).configure(PLAN, "run", 1)  # type: ignore[arg-type]


def test_a_mirrored_spectrum_is_told_from_no_frame_at_all() -> None:
    """I and Q exchanged at one end: what was sent is there, and no estimator finds it."""
    with bench(scene(0)) as b:
        sounding = b.sound("alice", "bob")
        assert sounding.found is not None
        block = sounding.block
        swapped = replace(block, samples=block.samples.conj())
        found, _ = b._find(repeated_windows(swapped, b.frame.samples.size))
        assert found is None
        assert b.is_mirrored(replace(sounding, block=swapped, found=None))
        noise = np.random.default_rng(1).normal(size=(*block.samples.shape, 2)) @ [0.1, 0.1j]
        assert not b.is_mirrored(replace(sounding, block=replace(block, samples=noise.astype(np.complex64))))


# ---------------------------------------------------------------- several antennas


def random_ratios(rng: np.random.Generator, n: int, axis: Any) -> Any:
    """Return (antenna, subcarrier) T/R with any phases between the antennas, smooth over frequency."""
    level = 1 + 0.2 * rng.normal(size=(n, 1)) + 0.1 * np.cos(axis / 3e6 + rng.uniform(0, 6, (n, 1)))
    return level * np.exp(1j * (rng.uniform(-3, 3, (n, 1)) + 0.1 * np.sin(axis / 4e6)))


def both_ways(rng: np.random.Generator, a: Any, b: Any) -> tuple[Any, Any]:
    """Return one channel as two arrays measure it of one another: chains, an oscillators' phase and a delay."""
    n_a, n_b, n = len(a), len(b), a.shape[1]
    h = rng.normal(size=(n_b, n_a, n, 2)) @ [1, 1j]
    turn = np.exp(1j * (rng.uniform(0, 6) + rng.uniform(-0.1, 0.1) * np.arange(n)))
    return h * a[None] * turn, (h * b[:, None]).transpose(1, 0, 2)  # all of T/R on the side that sends


@pytest.mark.parametrize(("n_a", "n_b"), [(4, 4), (4, 1), (2, 3)])
def test_antennas_are_told_apart_whatever_is_between_them(n_a: int, n_b: int) -> None:
    rng = np.random.default_rng(n_a)
    axis = np.linspace(-8e6, 8e6, 33)
    a, b = random_ratios(rng, n_a, axis), random_ratios(rng, n_b, axis)
    seen = [both_ways(rng, a, b) for _ in range(3)]
    found_a, found_b = cable.of_antennas([x for x, _ in seen], [y for _, y in seen], axis)
    # both up to one factor that they have in common, at each frequency
    common = found_a[0] / a[0]
    np.testing.assert_allclose(np.abs(found_a / a), np.abs(common)[None].repeat(n_a, 0), rtol=0.01)
    np.testing.assert_allclose(np.abs(found_b / b), np.abs(common)[None].repeat(n_b, 0), rtol=0.01)
    for found, true in ((found_a, a), (found_b, b)):
        relative = found * true[0] / (true * found[0])
        np.testing.assert_allclose(relative, np.ones_like(relative), atol=0.01)
    # another channel: its two directions are alike with both corrected, and are not without
    there, back = both_ways(rng, a, b)
    corrected = (there * found_b[:, None], (back * found_a[:, None]).transpose(1, 0, 2))
    assert cable.apart_db(there, back.transpose(1, 0, 2)) > 0.5
    assert cable.apart_db(*corrected) < 0.03
    turns = np.unwrap(np.angle(corrected[0] / corrected[1]), axis=2)
    assert np.ptp(turns - turns[:1, :1], axis=(0, 1)).max() < 0.02


def array_response(ratio: Any, axis: Any, serial: str = "array") -> ChainResponse:
    return ChainResponse(
        serial=serial, carrier_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ, measured_at="now", subcarrier_hz=axis.tolist(),
        rx_db=[], rx_rad=[], rx_level_db=0.0, ratio_db=(20 * np.log10(np.abs(ratio))).tolist(),
        ratio_rad=np.angle(ratio).tolist(),
    )  # fmt: skip


def test_a_response_fits_a_radio_with_as_many_antennas(tmp_path: Path) -> None:
    axis = np.linspace(-8e6, 8e6, 9)
    chains.write(tmp_path, array_response(random_ratios(np.random.default_rng(1), 3, axis), axis))
    found = chains.find(tmp_path, {"serial": "array"}, CARRIER_HZ, RATE_HZ, n_antennas=3)
    assert found.ratios(np.zeros(1)).shape == (3, 1)
    for n in (1, 4):
        with pytest.raises(InputError, match=r"'array' at 2400 MHz and 20 MS/s.*run `testbed doctor --cable"):
            chains.find(tmp_path, {"serial": "array"}, CARRIER_HZ, RATE_HZ, n_antennas=n)


def test_the_antennas_of_radios_on_the_air_are_levelled() -> None:
    """What is measured in one place corrects the channel in another one."""

    def sounded(where: Scene) -> tuple[Any, Any, Any]:
        with bench(where, n_antennas=2) as b:
            both = [(b.sound_antennas("alice", "bob"), b.sound_antennas("bob", "alice")) for _ in range(4)]
            there, back = ([s.found.h for s in side if s.found is not None] for side in zip(*both, strict=True))
            assert len(there) == len(back) == 4
            return there, back, b.frame.subcarrier_hz

    at_alice, at_bob = cable.of_antennas(*sounded(scene(0)))
    there, back, _ = sounded(scene(40))
    before_db = cable.apart_db(there[0], back[0].transpose(1, 0, 2))
    after_db = cable.apart_db(there[0] * at_bob[:, None], (back[0] * at_alice[:, None]).transpose(1, 0, 2))
    assert before_db == pytest.approx(2 * RIPPLE_DB, rel=0.5)
    assert after_db < 0.4 * before_db


def test_a_node_with_several_antennas_applies_it(tmp_path: Path) -> None:
    axis, heard = np.linspace(-9e6, 9e6, 33), {}
    ratio = random_ratios(np.random.default_rng(2), 2, axis)
    for calibrated in (False, True):
        with bench(scene(0), n_antennas=2) as b:
            alice, bob = b._radios["alice"], b._radios["bob"]
            chains.write(tmp_path, array_response(ratio, axis, str(bob.identity()["serial"])))
            work = work_of(bob, calibrated, tmp_path)  # type: ignore[arg-type]
            work.configure(msgspec.structs.replace(PLAN, timed=True, antennas={"alice": 2, "bob": 2}), "run", 1)
            wave = b._block(alice, 0.0).samples
            alice.transmit(IqBlock(wave, RATE_HZ, 0.0), b._base_s["alice"] + 0.01)
            for name in ("alice", "eve"):
                b._radios[name].idle_until(b._base_s[name] + 0.1)
            block = bob.receive(wave.shape[1] + 400, b._base_s["bob"] + 0.01 - 200 / RATE_HZ)
            tuned = work._ready()
            (found,) = tuned.antennas.estimate_many(tuned.estimator, [0], [block])
            assert isinstance(found, CsiFrame)
            heard[calibrated] = np.abs(found.h[0, 0])
            expected = np.abs(array_response(ratio, axis).ratios(b.frame.subcarrier_hz)[0])
    np.testing.assert_allclose(heard[True] / heard[False], expected, rtol=0.02)


def test_a_beam_is_reciprocal_where_the_antennas_are_levelled() -> None:
    """Alice sends and receives by one beam: without the T/R of her chains, Bob measures another channel than she."""
    rng = np.random.default_rng(4)
    frame = registry.make_stage("probing", "ofdm", {}).frame(RATE_HZ)
    estimator = registry.make_stage("csi", "least_squares", {})
    axis = frame.subcarrier_hz
    t, r = random_ratios(rng, 4, axis), random_ratios(rng, 4, axis)
    paths = rng.normal(size=(4, 2)) @ [1, 1j]
    size = 2 * frame.samples.size

    def through(samples: Any, response: Any) -> Any:
        """Filter (antenna, sample) by a response that is known at the subcarriers."""
        bins = np.fft.fftfreq(size, 1 / RATE_HZ)
        filters = np.array([np.interp(bins, axis, row) for row in np.broadcast_to(response, (4, axis.size))])
        return np.fft.ifft(np.fft.fft(samples, size) * filters)

    beams = Antennas("alice", {"alice": 4, "bob": 1}, BeamPlan(policy="svd"), frame, 1)
    levelled = Antennas(
        "alice", {"alice": 4, "bob": 1}, BeamPlan(policy="svd"), frame, 1, chains.Leveller(array_response(t / r, axis))
    )
    for one in (beams, levelled):
        one.hear(0, {"bob": CsiFrame(np.tile(paths[:, None, None], (1, 1, axis.size)).astype(np.complex64), axis, axis,
                                     0.0, 0.0, 0.0)})  # fmt: skip
    shift = np.exp(-2j * np.pi * np.fft.fftfreq(size) * 20)  # the frame begins a little later
    at_bob = paths @ np.fft.ifft(np.fft.fft(through(beams.outgoing(1, False), t)) * shift)
    (bob,) = estimator.estimate_many([IqBlock(0.1 * at_bob[None].astype(np.complex64), RATE_HZ, 0.0)], frame)
    sent = np.fft.ifft(np.fft.fft(frame.samples, size) * shift)
    at_alice = through(paths[:, None] * sent[None], r)
    block = IqBlock((0.1 * at_alice).astype(np.complex64), RATE_HZ, 0.0)
    apart = [
        cable.apart_db(one.estimate_many(estimator, [1], [block])[0].h[0, 0], bob.h[0, 0])  # type: ignore[union-attr]
        for one in (beams, levelled)
    ]
    assert apart[0] > 0.3
    assert apart[1] < 0.1 * apart[0]
