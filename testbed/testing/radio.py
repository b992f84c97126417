"""The contract of `core.radio.Radio`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np

from testbed.core.errors import DeviceError, LateTransmit
from testbed.core.radio import Limits, Radio, RadioSettings, Window
from testbed.core.types import IqBlock
from testbed.testing._suite import Suite, check, refused, skip


@dataclass
class RadioBench:
    """The objects that the radio suite needs."""

    radio: Radio
    """The radio under test."""
    other: Radio
    """A radio that it receives, and that receives it."""
    settings: RadioSettings
    """Settings for both radios, with which each receives the other well below clipping and well above noise."""
    elsewhere: RadioSettings
    """Settings with another carrier, at which nothing sent at `settings` is received."""
    start_error_s: float
    """Largest difference between a timed start and the requested time."""


def check_radio(make: Callable[[], AbstractContextManager[RadioBench]]) -> None:
    """Raise AssertionError unless the radios that `make` opens keep the contract."""
    check(RadioSuite, make)


N = 1024
LEAD_S = 1e-3


def noise_like(n: int = N, seed: int = 1) -> np.ndarray:
    """(1, n) constant-envelope samples of half full scale, white."""
    turns = np.random.default_rng(seed).random(n)
    return (0.5 * np.exp(2j * np.pi * turns)).astype(np.complex64)[None, :]


def match(received: np.ndarray, sent: np.ndarray) -> tuple[int, float]:
    """Return the lag of the best match and its normalised correlation in 0…1."""
    x, y = sent[0], received[0]
    lags = np.abs(np.correlate(y, x, "valid"))
    best = int(lags.argmax())
    energy = np.linalg.norm(x) * np.linalg.norm(y[best : best + x.size])
    return best, float(lags[best] / energy) if energy > 0 else 0.0


def tuned(bench: RadioBench) -> RadioBench:
    bench.radio.configure(bench.settings)
    bench.other.configure(bench.settings)
    return bench


def timed_only(bench: RadioBench) -> RadioBench:
    if not bench.radio.capabilities.timed:
        skip("this radio says that it cannot time its samples")
    return tuned(bench)


def untimed_only(bench: RadioBench) -> RadioBench:
    if bench.radio.capabilities.timed:
        skip("this radio times its samples")
    return tuned(bench)


class LongSignal:
    """`source` sends a signal of 40 N samples (or repeats it); each call of `next` receives the following part of
    it."""

    def __init__(self, bench: RadioBench, source: Radio, listener: Radio) -> None:
        self.sent, self.listener, self._rate = noise_like(), listener, bench.settings.sample_rate_hz
        self.timed, self._k = source.capabilities.timed, 0
        start_s = source.now_s() + LEAD_S
        self._hear_s = listener.now_s() + LEAD_S
        if self.timed:
            source.transmit(IqBlock(np.tile(self.sent, 40), self._rate, 0.0), start_s)
            source.idle_until(start_s + 10 * LEAD_S)
        else:
            source.transmit(IqBlock(self.sent, self._rate, 0.0))

    def next(self) -> float:
        """Return the match of the next 2 N samples with the sent signal, 0…1."""
        self._k += 4
        at_s = self._hear_s + self._k * N / self._rate
        return match(self.listener.receive(2 * N, at_s if self.timed else None).samples, self.sent)[1]


def check_no_sample_from_before_a_retune(bench: RadioBench) -> None:
    """The other radio sends at one carrier; after retuning to another one, nothing of it is received."""
    signal = LongSignal(tuned(bench), bench.other, bench.radio)
    signal.next()
    assert signal.next() > 0.7, "the bench does not carry the signal"
    bench.radio.configure(bench.elsewhere)
    for _ in range(4):
        assert signal.next() < 0.3, "samples from before the retune"
    bench.radio.configure(bench.settings)
    assert max(signal.next(), signal.next()) > 0.7, "the signal had ended before the retune"


class RadioSuite(Suite):
    """`make()` opens two radios within range of each other (`RadioBench`), and closes them when the block is left."""

    contract = "radio"

    def test_accepts_no_more_than_its_driver_states(self) -> None:
        with self.fresh() as bench:
            limits: Limits | None = type(bench.radio).limits
            for key in ("carrier_hz", "sample_rate_hz", "tx_gain_db", "rx_gain_db") if limits is not None else ():
                limit, range_ = getattr(limits, key), getattr(bench.radio.capabilities, key)
                assert limit is None or (limit[0] <= range_[0] and range_[1] <= limit[1]), (
                    f"{key}: {range_}, driver {limit}"
                )

    def test_is_a_radio_and_says_who_it_is(self) -> None:
        with self.fresh() as bench:
            assert isinstance(bench.radio, Radio)
            assert not inspect.isabstract(type(bench.radio))
            assert bench.radio.identity()["driver"]
            for low, high in (
                bench.radio.capabilities.sample_rate_hz,
                bench.radio.capabilities.carrier_hz,
                bench.radio.capabilities.tx_gain_db,
                bench.radio.capabilities.rx_gain_db,
            ):
                assert low <= high

    def test_nothing_but_time_before_configure(self) -> None:
        with self.fresh() as bench:
            radio = bench.radio
            radio.now_s()
            radio.silence()
            with refused(DeviceError, "not configured"):
                radio.receive(10)
            with refused(DeviceError, "not configured"):
                radio.transmit(IqBlock(noise_like(), 20e6, 0.0))
            with refused(DeviceError, "not configured"):
                _ = radio.settings

    def test_settings_out_of_range_raise_and_change_nothing(self) -> None:
        with self.fresh() as bench:
            for key in ("carrier_hz", "sample_rate_hz", "tx_gain_db", "rx_gain_db"):
                for side in (0, 1):
                    radio = tuned(bench).radio
                    bench.other.idle_until(bench.other.now_s() + LEAD_S)
                    before = radio.settings
                    limit = getattr(radio.capabilities, key)[side]
                    beyond = limit - abs(limit) * 0.1 - 1 if side == 0 else limit + abs(limit) * 0.1 + 1
                    with refused(DeviceError, key):
                        radio.configure(replace(bench.settings, **{key: beyond}))
                    assert radio.settings == before
                    assert radio.receive(16).samples.shape == (1, 16)

    def test_configure_answers_what_was_accepted(self) -> None:
        with self.fresh() as bench:
            accepted = bench.radio.configure(bench.settings)
            assert isinstance(accepted, RadioSettings)
            assert bench.radio.settings == accepted
            assert abs(accepted.carrier_hz / bench.settings.carrier_hz - 1) < 1e-6

    def test_a_wrong_block_raises_and_sends_nothing(self) -> None:
        with self.fresh() as bench:
            for samples, rate_factor, what in (
                (noise_like()[0], 1.0, "shape"),
                (np.zeros((1, 0), np.complex64), 1.0, "shape"),
                (np.zeros((7, 16), np.complex64), 1.0, "shape"),
                (noise_like() * 3, 1.0, "full scale"),
                (np.full((1, 8), np.nan, np.complex64), 1.0, "full scale"),
                (noise_like(), 0.5, "Hz"),
            ):
                tuned(bench)
                with refused(DeviceError, what):
                    bench.radio.transmit(IqBlock(samples, bench.settings.sample_rate_hz * rate_factor, 0.0))
                bench.radio.idle_until(bench.radio.now_s() + 10 * LEAD_S)
                heard = bench.other.receive(4 * N)
                assert match(heard.samples, noise_like())[1] < 0.3

    def test_a_reception_of_nothing_raises(self) -> None:
        with self.fresh() as bench:
            for n_samples in (0, -1):
                with refused(DeviceError, "n_samples"):
                    tuned(bench).radio.receive(n_samples)

    def test_block_has_the_promised_form(self) -> None:
        with self.fresh() as bench:
            tuned(bench)
            bench.other.idle_until(bench.other.now_s() + LEAD_S)
            block = bench.radio.receive(257)
            assert block.samples.shape == (bench.radio.capabilities.n_antennas, 257)
            assert block.samples.dtype == np.complex64
            assert block.sample_rate_hz == bench.radio.settings.sample_rate_hz
            assert np.abs(block.samples.view(np.float32)).max() <= 1.0
            assert np.isfinite(block.time_s)

    def test_clock_goes_forward(self) -> None:
        with self.fresh() as bench:
            tuned(bench)
            bench.other.idle_until(bench.other.now_s() + LEAD_S)
            before = bench.radio.now_s()
            block = bench.radio.receive(N)
            assert block.time_s >= before
            assert bench.radio.now_s() >= block.time_s + (N - 1) / bench.settings.sample_rate_hz

    def test_timed_reception_starts_when_asked(self) -> None:
        with self.fresh() as bench:
            timed_only(bench)
            rate = bench.settings.sample_rate_hz
            at_s = bench.radio.now_s() + LEAD_S + 0.3 / rate
            bench.other.idle_until(bench.other.now_s() + 2 * LEAD_S)
            assert abs(bench.radio.receive(N, at_s).time_s - at_s) <= bench.start_error_s

    def test_timed_transmission_arrives_when_sent(self) -> None:
        """Two receptions of the same repeated frame, a known time apart, find it at the same place."""
        with self.fresh() as bench:
            timed_only(bench)
            rate, sent = bench.settings.sample_rate_hz, noise_like()
            start, hear = bench.radio.now_s() + LEAD_S, bench.other.now_s() + LEAD_S
            lags = []
            for k in range(2):
                step = k * 5 * N / rate
                bench.radio.transmit(IqBlock(sent, rate, 0.0), start + step)
                bench.radio.idle_until(start + step + 4 * N / rate)
                lag, quality = match(bench.other.receive(2 * N, hear + step - 100 / rate).samples, sent)
                assert quality > 0.7
                lags.append(lag)
            assert abs(lags[0] - lags[1]) <= 1

    def test_late_transmission_raises_and_sends_nothing(self) -> None:
        with self.fresh() as bench:
            timed_only(bench)
            rate, sent = bench.settings.sample_rate_hz, noise_like()
            past_s, hear_s = bench.radio.now_s() + LEAD_S, bench.other.now_s() + LEAD_S
            bench.other.idle_until(hear_s + LEAD_S)
            bench.radio.receive(N, past_s)
            with refused(LateTransmit):
                bench.radio.transmit(IqBlock(sent, rate, 0.0), past_s)
            bench.radio.idle_until(past_s + LEAD_S)
            assert match(bench.other.receive(4 * N, hear_s - N / rate).samples, sent)[1] < 0.3

    def test_transmission_at_no_time_raises(self) -> None:
        with self.fresh() as bench:
            for at_s in (float("nan"), float("inf"), -float("inf")):
                timed_only(bench)
                with refused(LateTransmit):
                    bench.radio.transmit(IqBlock(noise_like(), bench.settings.sample_rate_hz, 0.0), at_s)

    def test_a_train_of_windows_is_received_in_order(self) -> None:
        with self.fresh() as bench:
            timed_only(bench)
            rate, first_s = bench.settings.sample_rate_hz, bench.radio.now_s() + LEAD_S
            bench.other.idle_until(bench.other.now_s() + 4 * LEAD_S)
            windows = [Window(N, first_s + k * 4 * N / rate) for k in range(3)]
            blocks = bench.radio.receive_many(windows)
            for window, block in zip(windows, blocks, strict=True):
                assert isinstance(block, IqBlock)
                assert block.samples.shape == (bench.radio.capabilities.n_antennas, N)
                assert abs(block.time_s - window.at_s) <= bench.start_error_s
            assert bench.radio.receive_many([]) == []

    def test_a_train_of_transmissions_is_sent_in_order_and_a_late_one_fails_alone(self) -> None:
        with self.fresh() as bench:
            timed_only(bench)
            rate, sent = bench.settings.sample_rate_hz, noise_like()
            now_s, hear_s = bench.radio.now_s(), bench.other.now_s() + 3 * LEAD_S
            past_s, start_s = now_s + LEAD_S, now_s + 3 * LEAD_S
            bench.other.idle_until(hear_s - LEAD_S)
            bench.radio.receive(N, past_s)
            times_s = [past_s, start_s, start_s + 4 * N / rate]
            failed = bench.radio.transmit_many([IqBlock(sent, rate, at_s) for at_s in times_s])
            assert isinstance(failed[0], LateTransmit)
            assert failed[1:] == [None, None]
            bench.radio.idle_until(start_s + LEAD_S)
            for step in (0.0, 4 * N / rate):
                assert match(bench.other.receive(2 * N, hear_s + step - 100 / rate).samples, sent)[1] > 0.7
            assert bench.radio.transmit_many([]) == []

    def test_who_was_interrupted_receives_nothing_more(self) -> None:
        with self.fresh() as bench:
            tuned(bench).radio.interrupt()
            with refused(DeviceError, "interrupted"):
                bench.radio.receive(N, bench.radio.now_s() + LEAD_S if bench.radio.capabilities.timed else None)
            bench.radio.silence()

    def test_reception_of_what_is_gone_raises(self) -> None:
        with self.fresh() as bench:
            timed_only(bench)
            with refused(DeviceError):
                bench.radio.receive(N, bench.radio.now_s() - 100.0)

    def test_half_duplex(self) -> None:
        """A radio does not receive its own transmission."""
        with self.fresh() as bench:
            timed_only(bench)
            rate, sent = bench.settings.sample_rate_hz, noise_like()
            at_s = bench.radio.now_s() + LEAD_S
            bench.other.idle_until(bench.other.now_s() + 3 * LEAD_S)
            bench.radio.transmit(IqBlock(sent, rate, 0.0), at_s)
            assert match(bench.radio.receive(2 * N, at_s - N / 2 / rate).samples, sent)[1] < 0.3

    def test_untimed_radio_refuses_times(self) -> None:
        with self.fresh() as bench:
            untimed_only(bench)
            with refused(DeviceError, "at_s must be None"):
                bench.radio.receive(N, bench.radio.now_s() + LEAD_S)
            with refused(DeviceError, "at_s must be None"):
                bench.radio.transmit(
                    IqBlock(noise_like(), bench.settings.sample_rate_hz, 0.0), bench.radio.now_s() + LEAD_S
                )

    def test_untimed_radio_repeats_until_silence(self) -> None:
        with self.fresh() as bench:
            untimed_only(bench)
            signal = LongSignal(bench, bench.radio, bench.other)
            signal.next()
            for _ in range(50):  # longer than any one block
                assert signal.next() > 0.7

    def test_timing_can_be_switched_or_switching_is_refused(self) -> None:
        with self.fresh() as bench:
            radio = bench.radio
            timed = radio.capabilities.timed
            chosen = not timed
            try:
                radio.use_timing(chosen)
            except DeviceError:
                chosen = timed
            assert radio.capabilities.timed is chosen
            radio.use_timing(timed)
            assert radio.capabilities.timed is timed

    def test_no_sample_from_before_a_retune(self) -> None:
        with self.fresh() as bench:
            check_no_sample_from_before_a_retune(bench)

    def test_silence_stops_the_transmitter(self) -> None:
        with self.fresh() as bench:
            signal = LongSignal(tuned(bench), bench.radio, bench.other)
            signal.next()
            assert signal.next() > 0.7
            bench.radio.silence()
            bench.radio.idle_until(bench.radio.now_s() + 20 * LEAD_S)
            signal.next()
            for _ in range(3):
                assert signal.next() < 0.3

    def test_close_silences_and_may_be_repeated(self) -> None:
        with self.fresh() as bench:
            tuned(bench)
            signal = LongSignal(bench, bench.radio, bench.other)
            signal.next()
            assert signal.next() > 0.7
            bench.radio.close()
            bench.radio.close()
            bench.radio.silence()
            signal.next()
            for _ in range(3):
                assert signal.next() < 0.3
            for operation in (
                lambda: bench.radio.receive(N),
                lambda: bench.radio.configure(bench.settings),
                lambda: bench.radio.transmit(IqBlock(noise_like(), bench.settings.sample_rate_hz, 0.0)),
            ):
                with refused(DeviceError, "closed"):
                    operation()

    def test_leaving_a_with_block_closes(self) -> None:
        with self.fresh() as bench:
            with refused(RuntimeError, "boom"), bench.radio as radio:
                raise RuntimeError("boom")
            assert radio.state == "closed"
