"""Radios and a board in the World over its sockets: what they measure, who is dropped, what stays the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from sim_backend.board import SimBoard
from sim_backend.link import Link
from sim_backend.local import world_in_thread
from sim_backend.messages import Now, Reply, decode_reply
from sim_backend.radio import SimRadio
from sim_backend.server import SimWorld
from sim_backend.world import Air
from testbed.core.config import Multipath, PlacedNode, PlacedSurface, RadioPlan, Scene
from testbed.core.errors import DeviceError, DeviceTimeout, InputError
from testbed.core.radio import RadioSettings
from testbed.core.types import SPEED_OF_LIGHT_M_S, IqBlock, SurfacePattern
from testbed.core.world import DriverContext

SETTINGS = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=40e6, tx_gain_db=0.0, rx_gain_db=20.0)
SCENE = Scene(
    alice=PlacedNode(position_m=[4.0, 8.0, 1.5]),
    bob=PlacedNode(position_m=[14.0, 8.0, 1.5]),
    eve=PlacedNode(near="bob", offset_wavelengths=2.0),
    surface=PlacedSurface(position_m=[9.0, 4.0, 1.5], normal=[0.0, 1.0, 0.0]),
)
OPEN = Scene(alice=SCENE.alice, bob=SCENE.bob, multipath=Multipath(n_scatterers=0, direct_db=0.0))


@dataclass
class Room:
    endpoint: str
    stack: ExitStack

    def radio(self, name: str, seed: int = 5, settings: RadioSettings = SETTINGS, **options: Any) -> SimRadio:
        context = DriverContext(seed=seed, world=self.endpoint, identity=None, state_dir=Path())
        radio = self.stack.enter_context(SimRadio(name, context, **options))
        radio.configure(settings)
        return radio

    def board(self, name: str = "ris", **options: Any) -> SimBoard:
        context = DriverContext(seed=5, world=self.endpoint, identity=None, state_dir=Path())
        return self.stack.enter_context(SimBoard(name, context, **options))


@contextmanager
def room(scene: Scene | None = SCENE, **options: Any) -> Iterator[Room]:
    with world_in_thread(scene, **options) as endpoint, ExitStack() as stack:
        yield Room(endpoint, stack)


def frame(n: int = 800) -> np.ndarray:
    return np.exp(2j * np.pi * np.random.default_rng(0).random(n)).astype(np.complex64)[None, :]


def device_time(radio: SimRadio, world_s: float) -> float:
    return radio._clock.reading_s(round(world_s * 1e12))


def one_probe(
    source: SimRadio, listener: SimRadio, world_s: float, x: np.ndarray, others: list[SimRadio] | None = None
) -> np.ndarray:
    """Send x at world_s; return what the listener hears from 10 µs before until 10 µs after it."""
    rate = source.settings.sample_rate_hz
    n = x.shape[1] + round(20e-6 * rate)
    source.transmit(IqBlock(x, rate, 0.0), device_time(source, world_s))
    for radio in [source, *(others or [])]:
        radio.idle_until(device_time(radio, world_s + 1e-3))
    return listener.receive(n, device_time(listener, world_s - 10e-6)).samples[0]


# ---------------------------------------------------------------- what is measured


def test_delay_gain_and_cfo_over_the_air() -> None:
    """Free space over 10 m, all devices imperfect: delay to a sample, gain to 0.5 dB, CFO as set."""
    with room(OPEN) as world:
        # phase noise alone would move the CFO seen in half a millisecond by some 80 Hz
        alice, bob = (
            world.radio(n, cfo_ppm=p, phase_noise_linewidth_hz=0.0) for n, p in (("alice", 1.25), ("bob", -0.5))
        )
        x = frame(20_000)
        y = one_probe(alice, bob, 0.01, x)
        lag = int(np.abs(np.correlate(y, x[0, :2000], "valid")).argmax())
        distance_m = 10.0
        assert lag == pytest.approx(400 + distance_m / SPEED_OF_LIGHT_M_S * 40e6, abs=1)
        heard = y[lag : lag + 20_000]
        power_dbm = 10 * np.log10(np.mean(np.abs(heard) ** 2)) - 20.0 - 20.0
        friis_db = 20 * np.log10(SPEED_OF_LIGHT_M_S / 2.4e9 / (4 * np.pi * distance_m))
        assert power_dbm == pytest.approx(friis_db, abs=0.5)
        blocks = (heard * x[0].conj()).reshape(50, 400).sum(axis=1)
        cfo_hz = np.polyfit(np.arange(50) * 400 / 40e6, np.unwrap(np.angle(blocks)), 1)[0] / (2 * np.pi)
        assert cfo_hz == pytest.approx(1.75 * 2400, abs=5)


def test_each_device_has_its_own_clock() -> None:
    """The same instant, read by two clocks: transmitted at Alice's time, the signal is found at Bob's time for the same
    instant.
    """
    with room(OPEN) as world:
        alice = world.radio("alice", clock_ppm=2.0, clock_offset_s=0.3)
        bob = world.radio("bob", clock_ppm=-1.0, clock_offset_s=-0.2)
        assert alice.now_s() == pytest.approx(0.3, abs=1e-9)
        assert bob.now_s() == pytest.approx(-0.2, abs=1e-9)
        x = frame()
        for world_s in (0.01, 10.0):
            assert device_time(alice, world_s) == pytest.approx(world_s * (1 + 2e-6) + 0.3, abs=1e-12)
            y = one_probe(alice, bob, world_s, x)
            lag = int(np.abs(np.correlate(y, x[0], "valid")).argmax())
            assert lag == pytest.approx(401.3, abs=1.5)


def test_reciprocity_is_good_but_not_perfect() -> None:
    """Same channel, two devices' chains and noise: the magnitudes agree closely, never exactly; the phases do not."""
    with room(Scene(alice=SCENE.alice, bob=SCENE.bob)) as world:
        alice, bob = world.radio("alice"), world.radio("bob")
        period = np.fft.ifft(
            np.exp(2j * np.pi * np.random.default_rng(1).random(64)) * (np.abs(np.fft.fftfreq(64)) < 0.4)
        )
        x = (np.tile(period, 12) / np.abs(period).max()).astype(np.complex64)[None, :]
        used = np.abs(np.fft.fftfreq(64)) < 0.4

        def csi(source: SimRadio, listener: SimRadio, world_s: float) -> np.ndarray:
            y = one_probe(source, listener, world_s, x)
            middle = y[500 : 500 + 64 * 8].reshape(8, 64)
            return np.asarray(np.abs(np.fft.fft(middle, axis=1)[:, used]).mean(axis=0))

        forth, back = csi(alice, bob, 0.01), csi(bob, alice, 0.0102)
        rho = np.corrcoef(forth, back)[0, 1]
        assert rho > 0.9
        assert not np.allclose(forth, back, rtol=1e-3)


def test_surface_changes_what_is_heard_after_its_acknowledged_time() -> None:
    strong = PlacedSurface(position_m=[9.0, 4.0, 1.5], normal=[0.0, 1.0, 0.0], gain_db=40.0)
    scene = Scene(
        alice=SCENE.alice, bob=SCENE.bob, surface=strong, multipath=Multipath(n_scatterers=0, direct_db=-60.0)
    )
    quiet = {"timing_jitter_s": 0.0, "phase_noise_linewidth_hz": 0.0, "cfo_ppm": 0.0}
    with room(scene) as world:
        alice, bob = world.radio("alice", **quiet), world.radio("bob", **quiet)
        board = world.board(rows=8, columns=8, clock_ppm=0.0, clock_offset_s=0.0, latency_s=5e-3)
        applied = board.apply(SurfacePattern(np.ones((8, 8), np.uint8), 1))
        assert applied.time_s == pytest.approx(5e-3, abs=1e-12)
        start_s = applied.time_s - 10e-6
        y = one_probe(alice, bob, start_s, np.ones((1, 1600), np.complex64))
        flip = np.flatnonzero(np.diff(np.sign((y * y[600].conj()).real))[500:]) + 501
        assert flip[0] == pytest.approx(800, abs=1)  # 10 µs of guard and 10 µs until the latch


# ---------------------------------------------------------------- the same again


def story(order: list[str], seed: int = 4) -> dict[str, list[np.ndarray]]:
    """Two rounds with a surface change between, every radio in its thread, started in the given order."""
    heard: dict[str, list[np.ndarray]] = {}
    x = frame()
    with room(SCENE, seed=seed) as world:
        radios = {name: world.radio(name, gain_step_db=1.0, gain_step_probability=0.3) for name in order}
        board = world.board()

        def play(name: str, k: int) -> None:
            radio, slot = radios[name], 0.02 * (k + 1)
            for sender, start_s in (("alice", slot), ("bob", slot + 150e-6)):
                if name == sender:
                    radio.transmit(IqBlock(x, 40e6, 0.0), device_time(radio, start_s))
                else:
                    block = radio.receive(1600, device_time(radio, start_s - 10e-6))
                    heard.setdefault(name, []).append(block.samples)
            radio.idle_until(device_time(radio, slot + 1e-3))

        for k in range(2):
            board.apply(SurfacePattern(np.random.default_rng(k).integers(0, 2, (16, 16)).astype(np.uint8), 1))
            threads = [threading.Thread(target=play, args=(name, k)) for name in order]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60.0)
    return heard


def test_same_seed_same_samples_whoever_asks_first() -> None:
    one, two = story(["alice", "bob", "eve"]), story(["eve", "bob", "alice"])
    assert {n: len(v) for n, v in one.items()} == {"alice": 2, "bob": 2, "eve": 4}
    for name, blocks in one.items():
        for a, b in zip(blocks, two[name], strict=True):
            np.testing.assert_array_equal(a, b)
    other = story(["alice", "bob", "eve"], seed=5)
    assert not np.array_equal(one["bob"][0], other["bob"][0])


def test_reset_gives_the_same_run_to_attached_devices() -> None:
    x = frame()
    with room(SCENE, seed=9) as world:
        alice, bob = world.radio("alice"), world.radio("bob")
        runs = []
        for seed in (4, 9, 4):
            SimWorld.reset(world.endpoint, None, SCENE, RadioPlan(), seed, 5.0)
            runs.append(one_probe(alice, bob, 0.01, x))
        np.testing.assert_array_equal(runs[0], runs[2])
        assert not np.array_equal(runs[0], runs[1])
    with room(SCENE, seed=4) as world:
        np.testing.assert_array_equal(one_probe(world.radio("alice"), world.radio("bob"), 0.01, x), runs[0])


def test_gains_that_were_accepted_are_in_force() -> None:
    with room(OPEN) as world:
        alice, bob = world.radio("alice"), world.radio("bob")
        powers_db = []
        for k, (tx_db, rx_db) in enumerate([(0.0, 20.0), (-6.0, 20.0), (0.0, 30.0)]):
            alice.configure(replace(SETTINGS, tx_gain_db=tx_db))
            bob.configure(replace(SETTINGS, rx_gain_db=rx_db))
            heard = one_probe(alice, bob, 0.01 * (k + 1), frame())
            powers_db.append(10 * np.log10(np.mean(np.abs(heard[450:1150]) ** 2)))
        assert np.diff(powers_db) == pytest.approx([-6.0, 16.0], abs=0.2)


# ---------------------------------------------------------------- who does not play


def test_a_silent_radio_does_not_stall_the_air_and_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[str] = []
    drop = Air.drop
    monkeypatch.setattr(Air, "drop", lambda air, name: dropped.append(name) or drop(air, name))
    with room(SCENE, peer_timeout_s=1.0) as world:
        alice, bob, eve = (world.radio(name) for name in ("alice", "bob", "eve"))
        began = time.monotonic()
        assert np.abs(one_probe(alice, bob, 0.01, frame())).max() > 0.001
        assert time.monotonic() - began > 0.9
        one_probe(alice, bob, 0.03, frame())
        assert dropped == ["eve"], "the air waits once for a radio that is silent"
        # by itself, without another configure
        heard = one_probe(alice, eve, 0.05, frame(), others=[bob])
        assert np.abs(heard).max() > 0.001
        assert np.abs(one_probe(eve, bob, 0.07, frame(), others=[alice])).max() > 0.001


def test_the_result_of_an_unawaited_transmission_comes_with_the_next_answer() -> None:
    with room(SCENE, peer_timeout_s=0.2) as world:
        alice, bob = world.radio("alice"), world.radio("bob")
        one_probe(alice, bob, 0.01, frame())  # the first one is answered
        bob.receive(100, device_time(bob, 0.05))  # ends when Alice, who declares nothing, is dropped
        alice.transmit(IqBlock(frame(), 40e6, 0.0), device_time(alice, 0.1))
        with pytest.raises(DeviceError, match=r"alice: transmit .*dropped from the air"):
            alice.receive(100, device_time(alice, 0.2))
        assert np.abs(one_probe(alice, bob, 0.3, frame())).max() > 0.001


def test_a_radio_that_itself_waits_is_not_silent() -> None:
    """Bob waits long for Alice; Eve, waiting for later than Bob, must not have him dropped."""
    with room(SCENE, peer_timeout_s=1.0) as world:
        alice, bob, eve = (world.radio(name) for name in ("alice", "bob", "eve"))
        got: dict[str, Any] = {}

        def listen(radio: SimRadio, at_s: float) -> None:
            got[radio.name] = radio.receive(100, device_time(radio, at_s))

        threads = [threading.Thread(target=listen, args=a) for a in ((bob, 0.01), (eve, 0.02))]
        for thread in threads:
            thread.start()
        threads[0].join(60.0)  # ends when Alice, who declares nothing, is dropped
        assert "bob" in got
        bob.receive(10)
        bob.idle_until(device_time(bob, 0.03))
        threads[1].join(60.0)
        assert "eve" in got
        for radio in (bob, eve):
            radio.idle_until(device_time(radio, 0.05))
        assert alice.receive(10, device_time(alice, 0.04)).samples.shape == (1, 10)


def test_a_reception_that_waits_for_a_silent_radio_times_out_and_names_it() -> None:
    with room(SCENE, peer_timeout_s=60.0) as world:
        world.radio("alice")
        bob = world.radio("bob")
        with pytest.raises(DeviceTimeout, match=r"waiting for alice \(0.000"):
            bob.receive(100, timeout_s=0.1)
        bob.idle_until(bob.now_s())


def test_one_thread_may_silence_what_another_is_using() -> None:
    with room(SCENE, peer_timeout_s=60.0) as world:
        alice, bob = world.radio("alice"), world.radio("bob")
        failed: list[BaseException] = []

        def wait() -> None:
            try:
                bob.receive(100, timeout_s=60.0)
            except BaseException as exc:
                failed.append(exc)

        thread = threading.Thread(target=wait)
        thread.start()
        bob.silence()
        assert thread.is_alive(), "it did not wait for the samples"
        alice.idle_until(device_time(alice, 1.0))
        thread.join(60.0)
        assert not failed


def test_a_second_process_under_the_same_name_takes_over() -> None:
    with room() as world:
        old, new = world.radio("alice"), world.radio("alice")
        with pytest.raises(DeviceError, match="another process attached"):
            old.receive(10)
        assert new.receive(10).samples.shape == (1, 10)


def test_a_place_that_the_scene_lacks_is_an_error_at_configure() -> None:
    with room(OPEN) as world:
        with pytest.raises(DeviceError, match=r"no place 'eve'.*alice, bob"):
            world.radio("eve")
        assert world.radio("somebody", place="bob").settings == SETTINGS


def test_no_world_is_a_timeout_not_a_hang() -> None:
    link = Link("alice", "tcp://127.0.0.1:9", None)
    began = time.monotonic()
    with pytest.raises(DeviceTimeout, match="did not answer"):
        link.ask(Now(id=1), "open", timeout_s=0.2)
    link.close("open")
    assert time.monotonic() - began < 30.0
    with pytest.raises(DeviceError, match=r"\[world\]"):
        SimRadio("alice", DriverContext(seed=1, world=None, identity=None, state_dir=Path()))


def test_a_link_that_is_closed_ends_the_requests_of_other_threads_before_their_sockets() -> None:
    link, told = Link("alice", "tcp://127.0.0.1:9", None), []

    def wait() -> None:
        try:
            link.ask(Now(id=1), "open", timeout_s=600.0)
        except BaseException as exc:
            told.append((str(exc), link._context.closed))

    thread = threading.Thread(target=wait)
    thread.start()
    while not link._asking:
        time.sleep(0.01)
    link.close("open")
    thread.join(60.0)
    assert told == [("alice: now: the link to the world is closed", False)]
    with pytest.raises(DeviceError, match="the link to the world is closed"):
        link.ask(Now(id=2), "open")


def test_wrong_board_options_and_a_second_board() -> None:
    with room() as world:
        world.board("ris")
        with pytest.raises(DeviceError, match="already hangs on board 'ris'"):
            world.board("other")
        with pytest.raises(InputError, match=r"unknown key 'row'; did you mean 'rows'\?; accepted: .*phase_bits, rows"):
            world.board("ris", row=3)


def test_on_the_wall_clock_a_radio_without_timing_is_on_the_air_when_it_says_so() -> None:
    """Every order is late for the instant at which it was given."""
    n = 2000
    tone = np.exp(2j * np.pi * 0.1 * np.arange(n)).astype(np.complex64)
    with room(OPEN, pace="wall") as world:
        alice, bob = (world.radio(name, timed=False, cfo_ppm=0.0) for name in ("alice", "bob"))
        for _ in range(3):
            alice.transmit(IqBlock(0.9 * tone[None, :], SETTINGS.sample_rate_hz, 0.0))
            heard = bob.receive(n).samples[0]
            assert abs(np.vdot(tone, heard)) > 0.9 * np.linalg.norm(tone) * np.linalg.norm(heard)
            alice.silence()


def test_wall_pace_never_runs_ahead_of_the_wall() -> None:
    with room(OPEN, pace="wall") as world:
        began = time.monotonic()
        alice, bob = world.radio("alice"), world.radio("bob")
        one_probe(alice, bob, 0.4, frame())
        assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize(
    "junk",
    [
        [b""],
        [b"\xc1"],
        [b"\xff" * 100],
        [msgspec.msgpack.encode({"type": "nonsense", "id": 3})],
        [
            msgspec.msgpack.encode(
                {"type": "receive", "id": 3, "start": 0, "n_samples": 1 << 60, "timeout_s": 1.0, "seed": 1}
            )
        ],
        [msgspec.msgpack.encode({"type": "now", "id": 3, "session": "no such"})],
        [msgspec.msgpack.encode({"type": "transmit", "id": 3, "start": 0, "seed": 1}), b"123"],
    ],
)
def test_nonsense_is_answered_and_the_world_goes_on(junk: list[bytes]) -> None:
    with room(OPEN) as world:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.connect(world.endpoint)
        socket.send_multipart(junk)
        assert socket.poll(60_000)
        reply: Reply = decode_reply(socket.recv_multipart()[0])
        assert reply.error in ("device", "off_air")
        assert reply.detail
        context.destroy(linger=0)
        assert world.radio("alice").receive(10).samples.shape == (1, 10)
