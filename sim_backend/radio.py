"""A simulated radio: a thin client of the World with its own clock, oscillator, chains and converter."""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sim_backend import messages as m
from sim_backend.impairments import FrontEnd, RadioOptions, device_clock, oscillator_ppm
from sim_backend.link import ANSWER_S, Link, NewWorld, OffAir, Replaced, link_for
from sim_backend.messages import MAX_SAMPLES, MAX_WINDOWS, Now, Receive, Reply, Silence, Transmit, Tune
from sim_backend.ticks import duration, to_ticks
from testbed.core.errors import DeviceError, DeviceTimeout, InputError, LateTransmit
from testbed.core.options import driver_options
from testbed.core.radio import Limits, Radio, RadioCapabilities, RadioSettings, Window
from testbed.core.types import C64, IqBlock
from testbed.core.world import DriverContext

_HASTE = 50
"""Largest number of attempts at a transmission "now", each of which fails if its time passes before it is ordered."""


_QUEUE = 4096
"""Number of transmissions that the World keeps until their time."""
_LEAD_S = 0.5e-3
"""On the wall clock, lead time of a transmission "now" that was too late without one."""
_LONGEST_LEAD_S = 64e-3
"""Largest lead time, after several transmissions that were still too late."""


_RANGES: dict[str, Any] = {
    "carrier_hz": (70e6, 6e9),
    "sample_rate_hz": (0.2e6, 61.44e6),
    "tx_gain_db": (-80.0, 20.0),
    "rx_gain_db": (0.0, 70.0),
}


class SimRadio(Radio):
    """A radio in the simulated air. Options: the fields of `impairments.RadioOptions`."""

    options_type = RadioOptions
    needs_world = True
    limits = Limits(**_RANGES, device="simulated radio")

    def __init__(self, name: str, context: DriverContext, **options: Any) -> None:
        super().__init__(name)
        self._options = driver_options(options, RadioOptions, name)
        if not any(self._options.antenna_axis):
            raise InputError(f"table [node.{name}.options]: key 'antenna_axis': of length 0, accepted: a direction")
        self._seed = context.seed
        self._timed = self._options.timed
        self._capabilities: RadioCapabilities | None = None
        """The cached capabilities; None where timing has changed since."""
        self._clock = device_clock(name, self._options, context.seed)
        self._front: FrontEnd | None = None
        self._world_seed = -1
        self._old: C64 | None = None
        self._stale = 0
        self._promised = 0
        """A tick before which the World knows that this radio transmits nothing; it may know a later one."""
        self._time_runs = False
        self._first = True
        """Whether nothing was transmitted yet, at these settings in this world."""
        self._unheard: list[tuple[IqBlock, float | None]] = []
        """The transmissions since the World's last answer, with their times."""
        self._link = self._make_link(context)
        try:
            self._link.attach("radio", self.state)
        except BaseException:
            self._link.close(self.state)
            raise

    def _make_link(self, context: DriverContext) -> Link:
        return link_for(self.name, context)

    @property
    def capabilities(self) -> RadioCapabilities:
        if self._capabilities is None:
            self._capabilities = self._describe()
        return self._capabilities

    def _describe(self) -> RadioCapabilities:
        return RadioCapabilities(
            timed=self._timed,
            n_antennas=self._options.n_antennas,
            **_RANGES,
            turnaround_s=self._options.turnaround_s,
            can_transmit=not getattr(self._options, "receive_only", False),
            queue=_QUEUE,
        )

    @classmethod
    def limits_of(cls, options: Mapping[str, Any]) -> Limits:
        return replace(cls.limits, can_transmit=options.get("receive_only") is not True)

    def use_timing(self, timed: bool) -> None:
        if timed and not self._options.timed:
            super().use_timing(timed)
        self._timed, self._capabilities = timed, None

    def identity(self) -> dict[str, Any]:
        return {
            "driver": "sim",
            "serial": f"sim-{self.name}-{self._seed}",
            "firmware": "none",
            "clock_ppm": self._clock.ppm,
            "cfo_ppm": oscillator_ppm(self.name, self._options, self._seed),
        }

    def now_s(self) -> float:
        """Return the clock's reading at the end of everything that the device has declared, which is its present time
        in virtual time."""
        return self._clock.reading_s(self._now())

    def idle_until(self, time_s: float) -> None:
        """Promise not to transmit before device time `time_s`; other radios' receptions may wait for this."""
        until = self._clock.world_ticks(time_s)
        if self.state == "configured" and until > self._promised:
            self._link.declare(until, self.state)
            self._promised = until

    def _do_configure(self, settings: RadioSettings) -> RadioSettings:
        self._link.forget_told()
        try:
            reply = self._tune(settings)
        except OffAir:  # dropped, or the world was restarted
            self._link.attach("radio", self.state)
            reply = self._tune(settings)
        self._front, self._world_seed, self._promised = None, reply.seed, reply.now
        self._time_runs = reply.runs
        self._first = True
        self._unheard.clear()
        self._stale = self._options.stale_buffers
        return settings

    def _nominal_hz(self, settings: RadioSettings) -> float:
        """Return the carrier on the air without the radio's own error; a correction counts as part of that error."""
        if not self.correction_ppm:
            return settings.carrier_hz
        return round(settings.carrier_hz * (1.0 + 1e-6 * self.correction_ppm), 3)

    def _tune(self, settings: RadioSettings) -> Reply:
        request = Tune(
            id=self._link.next_id(),
            session=self._link.session,
            place=self._options.place or self.name,
            carrier_hz=self._nominal_hz(settings),
            sample_rate_hz=settings.sample_rate_hz,
            turnaround_s=self._options.turnaround_s,
            free=not self._timed,
            n_antennas=self._options.n_antennas,
            spacing_wavelengths=self._options.antenna_spacing_wavelengths,
            axis=self._options.antenna_axis,
        )
        return self._link.ask(request, self.state)[0]

    def _do_transmit(self, block: IqBlock, at_s: float | None) -> None:
        cyclic = not self._timed
        try:
            self._transmit(block, at_s, cyclic)
        except NewWorld as exc:
            self._enter(exc.seed)
            self._transmit(block, at_s, cyclic)
        except OffAir as exc:
            self._come_back(exc)
            self._transmit(block, at_s, cyclic)
        self._stale = self._options.stale_buffers

    def _transmit(self, block: IqBlock, at_s: float | None, cyclic: bool) -> None:
        if at_s is not None:
            self._transmit_at(self._clock.world_ticks(at_s), block, cyclic, at_s)
            return
        lead_s = 0.0
        for _ in range(_HASTE):
            try:
                self._transmit_at(self._now() + to_ticks(lead_s), block, cyclic, at_s)
                time.sleep(lead_s)  # so that it is on the air when this returns
                return
            except LateTransmit:
                # A reception of another radio has let time pass. On the wall clock, a lead time is needed.
                if self._time_runs:
                    lead_s = min(max(2 * lead_s, _LEAD_S), _LONGEST_LEAD_S)
        raise DeviceError(self.name, "transmit", self.state, f"time passed between question and order {_HASTE} times")

    def _do_transmit_many(self, blocks: Sequence[IqBlock]) -> list[DeviceError | None]:
        """Have the World answer all transmissions together: a train must not wait for each one. In virtual time, only
        the first one needs an answer."""
        if len(blocks) < 2 or self._clock.world_ticks(blocks[0].time_s) < 0:
            return super()._do_transmit_many(blocks)
        out = super()._do_transmit_many(blocks[:1])  # shows whether the connection works
        if isinstance(out[0], OffAir | NewWorld):
            return out * len(blocks)
        if not self._time_runs:
            return out + self._tell_many(blocks[1:])
        starts = [self._clock.world_ticks(x.time_s) for x in blocks[1:]]
        made = self._transmissions(starts, blocks[1:], cyclic=False, answer=True)
        for found in self._link.ask_many([request for request, _ in made], [x for _, x in made], self.state):
            if isinstance(found, DeviceError):
                out.append(found)
            else:
                self._heard_from(found[0])
                out.append(None)
        return out

    def _tell_many(self, blocks: Sequence[IqBlock]) -> list[DeviceError | None]:
        """Transmit one after the other in virtual time, without an answer (`_transmit_at`), in as few messages as can
        be."""
        rate = self.settings.sample_rate_hz
        starts = [self._clock.world_ticks(x.time_s) for x in blocks]
        ends = [start + duration(x.samples.shape[-1], rate) for start, x in zip(starts, blocks, strict=True)]
        free_from = [self._promised, *ends[:-1]]
        size = sum(x.samples.size for x in blocks)
        if not self._timed or self._first or size > MAX_SAMPLES or any(map(operator.lt, starts, free_from)):
            return super()._do_transmit_many(blocks)
        front = self._front_end()
        shifts = [front.jitter("tx", start) for start in starts]
        samples = front.send_many(
            [np.asarray(x.samples, np.complex64) for x in blocks], list(map(operator.add, starts, shifts))
        )
        request = m.TransmitMany(
            id=self._link.next_id(), session=self._link.session, seed=self._world_seed,
            frames=[
                m.Window(start=start, shift=shift, n_samples=x.shape[-1])
                for start, shift, x in zip(starts, shifts, samples, strict=True)
            ],
        )  # fmt: skip
        self._link.tell(request, self.state, np.concatenate([x.ravel() for x in samples]))
        self._unheard += [(x, x.time_s) for x in blocks]
        self._promised = ends[-1]
        self._stale = self._options.stale_buffers
        return [None] * len(blocks)

    def _transmit_at(self, start: int, block: IqBlock, cyclic: bool, at_s: float | None) -> None:
        # In virtual time only the first transmission waits for its answer: later ones cannot be late if they start
        # after the promised time, and other errors (dropped, a new world) come with the next answer.
        answer = at_s is None or self._time_runs or self._first or start < self._promised
        request, samples = self._transmission(start, block, cyclic, answer)
        if answer:
            self._heard_from(self._link.ask(request, self.state, samples)[0])
            self._first = False
        else:
            self._link.tell(request, self.state, samples)
            self._unheard.append((block, at_s))
            self._promised = start + duration(samples.shape[-1], self.settings.sample_rate_hz)

    def _transmission(self, start: int, block: IqBlock, cyclic: bool, answer: bool) -> tuple[Transmit, C64]:
        """Return the request for a transmission from tick `start` on, and its samples as they leave the antenna."""
        if start < 0:
            raise LateTransmit(self.name, "transmit", self.state, "before the world began")
        (made,) = self._transmissions([start], [block], cyclic, answer)
        return made

    def _transmissions(
        self, starts: Sequence[int], blocks: Sequence[IqBlock], cyclic: bool, answer: bool
    ) -> list[tuple[Transmit, C64]]:
        front = self._front_end()
        shifts = [front.jitter("tx", start) for start in starts]
        samples = front.send_many(
            [np.asarray(x.samples, np.complex64) for x in blocks], list(map(operator.add, starts, shifts))
        )
        return [
            (
                Transmit(
                    id=self._link.next_id(), session=self._link.session, start=start, shift=shift, cyclic=cyclic,
                    answer=answer, seed=self._world_seed,
                ),
                x,
            )
            for start, shift, x in zip(starts, shifts, samples, strict=True)
        ]  # fmt: skip

    def _do_receive(self, n_samples: int, at_s: float | None, timeout_s: float) -> IqBlock:
        if n_samples > MAX_SAMPLES:
            raise DeviceError(
                self.name, "receive", self.state, f"n_samples = {n_samples}, accepted up to {MAX_SAMPLES}"
            )
        try:
            block = self._receive(n_samples, at_s, timeout_s)
        except NewWorld as exc:
            self._begin_again(exc.seed)
            block = self._receive(n_samples, at_s, timeout_s)
        except OffAir as exc:
            self._come_back(exc)
            block = self._receive(n_samples, at_s, timeout_s)
        if self._stale > 0 and self._old is not None:
            self._stale -= 1
            return replace(block, samples=np.stack([np.resize(row, n_samples) for row in self._old]))
        self._old = block.samples
        return block

    def _receive(self, n_samples: int, at_s: float | None, timeout_s: float, back_s: float = 0.0) -> IqBlock:
        """Receive from `at_s`, or from `back_s` before now."""
        if at_s is not None:
            start = self._clock.world_ticks(at_s)
        else:
            start = max(0, self._now(receiving=not back_s) - to_ticks(back_s))
        front = self._front_end()
        shift = front.jitter("rx", start)
        request = Receive(
            id=self._link.next_id(),
            session=self._link.session,
            start=start,
            shift=shift,
            n_samples=n_samples,
            timeout_s=timeout_s,
            seed=self._world_seed,
        )
        reply, raw = self._link.ask(request, self.state, timeout_s=timeout_s + ANSWER_S, check=self.check_interrupted)
        self._heard_from(reply)
        field = np.frombuffer(raw, np.complex64).reshape(self._options.n_antennas, -1)
        samples, overflow = front.hear(field, start + shift)
        time_s = self._clock.reading_s(start) if at_s is None else at_s
        return IqBlock(samples, self.settings.sample_rate_hz, time_s, overflow)

    def _do_receive_many(self, windows: Sequence[Window], timeout_s: float) -> list[IqBlock | DeviceError]:
        """Ask for as many windows as fit into an answer; the samples are those of one reception after the other."""
        if self._stale > 0:
            return super()._do_receive_many(windows, timeout_s)
        out: list[IqBlock | DeviceError] = []
        for some in _fitting(windows, MAX_SAMPLES // self._options.n_antennas):
            try:
                out += self._receive_many(some, timeout_s)
                continue
            except NewWorld as exc:
                self._begin_again(exc.seed)
            except OffAir as exc:
                self._come_back(exc)
            out += self._receive_many(some, timeout_s)
        return out

    def _receive_many(self, windows: Sequence[Window], timeout_s: float) -> list[IqBlock | DeviceError]:
        front = self._front_end()
        starts = [self._clock.world_ticks(w.at_s) for w in windows]
        shifts = [front.jitter("rx", start) for start in starts]
        asked = [
            m.Window(start=start, shift=shift, n_samples=w.n_samples)
            for start, shift, w in zip(starts, shifts, windows, strict=True)
        ]
        within_s = timeout_s + (windows[-1].at_s - windows[0].at_s)
        request = m.ReceiveMany(
            id=self._link.next_id(), session=self._link.session, windows=asked, timeout_s=within_s,
            seed=self._world_seed,
        )  # fmt: skip
        reply, raw = self._link.ask(request, self.state, timeout_s=within_s + ANSWER_S, check=self.check_interrupted)
        self._heard_from(reply)
        failed = {f.window: f for f in reply.failed}
        samples, used = np.frombuffer(raw, np.complex64), 0
        fields, took = [], [i for i in range(len(windows)) if i not in failed]
        for i in took:
            size = windows[i].n_samples * self._options.n_antennas
            fields.append(samples[used : used + size].reshape(self._options.n_antennas, -1))
            used += size
        heard = front.hear_many(fields, [starts[i] + shifts[i] for i in took])
        if heard:
            self._old = heard[-1][0]
        rest = iter(heard)
        out: list[IqBlock | DeviceError] = []
        for i, window in enumerate(windows):
            if i in failed:
                kind = DeviceTimeout if failed[i].error == "timeout" else DeviceError
                out.append(kind(self.name, "receive", self.state, failed[i].detail))
            else:
                block, overflow = next(rest)
                out.append(IqBlock(block, self.settings.sample_rate_hz, window.at_s, overflow))
        return out

    def _do_silence(self) -> None:
        self._link.forget_told()
        try:
            request = Silence(id=self._link.next_id(), session=self._link.session, final=self.is_interrupted)
            self._link.ask(request, self.state, timeout_s=2.0)
        except OffAir:
            pass  # the radio transmits nothing

    def _do_close(self) -> None:
        self._link.forget_told()
        self._link.close(self.state)

    def _now(self, receiving: bool = False) -> int:
        """Return the radio's present; `receiving`: from when on it may receive."""
        request = Now(id=self._link.next_id(), session=self._link.session, receiving=receiving)
        try:
            reply = self._link.ask(request, self.state)[0]
        except NewWorld as exc:  # earlier transmissions were not received
            self._begin_again(exc.seed)
            reply = self._link.ask(request, self.state)[0]
        except OffAir as exc:
            self._come_back(exc)
            return self._promised
        self._heard_from(reply)
        return reply.now

    def _come_back(self, dropped: OffAir) -> None:
        """Attach and tune again after the World dropped this radio because it was silent.

        Raises `dropped` afterwards if transmissions were lost, because their round is then lost as well; the next round
        works. Raises it at once where another process has taken this radio's name, or before `configure`.
        """
        if isinstance(dropped, Replaced) or self._settings is None:
            raise dropped
        is_lost = bool(self._unheard)
        self._do_configure(self._settings)
        if is_lost:
            raise dropped

    def _heard_from(self, reply: Reply) -> None:
        """Take note of an answer: requests are served in order, so all earlier transmissions are on the air."""
        self._promised = reply.now
        self._unheard.clear()

    def _begin_again(self, world_seed: int) -> None:
        """Enter a new world, and repeat there the transmissions that the old one did not deliver."""
        unheard = self._unheard[:]
        self._enter(world_seed)
        for block, at_s in unheard:
            self._transmit(block, at_s, cyclic=False)

    def _enter(self, world_seed: int) -> None:
        """Start again in a world that was reset: this run's noise and phases come from its seed."""
        self._world_seed, self._front, self._old = world_seed, None, None
        self._promised, self._first = 0, True
        self._unheard.clear()

    def _front_end(self) -> FrontEnd:
        if self._front is None:
            self._front = FrontEnd(self.name, self._options, self._seed, self._world_seed, self.settings)
            self._front.oscillator.offset_hz -= 1e-6 * self.correction_ppm * self.settings.carrier_hz
        return self._front


def _fitting(windows: Sequence[Window], most: int) -> Iterator[list[Window]]:
    """Yield the windows in parts of at most `most` samples, and of at most the windows that a message may have."""
    part: list[Window] = []
    for window in windows:
        if part and (len(part) == MAX_WINDOWS or sum(w.n_samples for w in part) + window.n_samples > most):
            yield part
            part = []
        part.append(window)
    yield part
