"""The air itself, as a pure object: the radios on it, what each has declared, and what each therefore receives.

No sockets and no wall clock; `server.py` gives it both. The rule (OpenAirInterface's rfsimulator): a reception up to
instant e can be computed once every radio on the air has declared everything that it starts to send before e.
Each radio's declaration is its *horizon*; it only moves forward. The *frontier* is the end of the latest reception
that was handed out: nothing before it can change any more.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sim_backend.arrays import Array, convolve, taps_of_pairs
from sim_backend.channel import Channel, taps_many
from sim_backend.mixing import common_band, reach, resample
from sim_backend.ticks import TICKS_PER_S, duration, to_seconds, to_ticks
from testbed.core.config import Attacker, Scene
from testbed.core.seeds import generator
from testbed.core.types import C64, F64, U8

SEGMENT = TICKS_PER_S // 10_000
"""The channel is evaluated once per 100 µs (a path's phase changes by 0.015 rad in that time at 3 m/s and 2.4 GHz), on
an absolute grid, so that the result does not depend on how a receiver divides its blocks."""
RETENTION = 4 * TICKS_PER_S
"""How far behind the frontier a reception may still begin …"""
RETENTION_AT_LEAST = TICKS_PER_S
"""… and how far where so much is sent that it would not fit into `MOST_KEPT`."""
MOST_KEPT = 1 << 22
"""Largest number of samples that are kept for longer than that: 32 MiB."""
LONGEST_PATH = TICKS_PER_S // 50_000
"""Largest delay of echoes that are computed: 20 µs (6 km)."""
NEARLY = 1 / 32
"""Carriers that differ by at most this share of the (equal) rate are shifted sample by sample: what leaves the band at
one end then enters it at the other, as in a receiver whose filter is too wide by that much."""
FOREVER = 1 << 62
MAX_UNHEARD = 1 << 24
"""Largest number of samples of one radio that are still to be sent: 128 MiB."""
_LEAST_UNHEARD = 4096
"""Samples that every transmission counts for at least, so that many short ones are limited as well."""


class Refused(Exception):
    """The air refuses this; `kind` is late, off_air or device."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


@dataclass(slots=True)
class Transmission:
    """Samples that one radio sends once or repeatedly."""

    radio: str
    place: str
    start: int
    """Nominal first sample; nothing is received before it."""
    shift: int
    """Actual minus nominal start (jitter)."""
    end: int
    """First tick after its last sample; FOREVER while it is repeated."""
    samples: C64
    """(sample,) in √mW; for an array (antenna, sample)."""
    sample_rate_hz: float
    carrier_hz: float
    cyclic: bool
    array: Array | None = None

    @property
    def length(self) -> int:
        """Number of samples that leave the radio, cuts and repetitions included."""
        if self.end == FOREVER:
            return FOREVER
        whole = _ceil_index(self.end - self.start, self.sample_rate_hz)
        return whole if self.cyclic else min(whole, self.samples.shape[-1])

    def take(self, first: int, stop: int) -> C64:
        """Return samples first…stop that leave the radio."""
        if not self.cyclic:
            return self.samples[..., first:stop]
        period = self.samples.shape[-1]
        first, stop = first % period, first % period + stop - first
        whole = self.samples if stop <= period else np.concatenate([self.samples] * -(-stop // period), axis=-1)
        return whole[..., first:stop]

    def stretch(self, first: int, stop: int) -> C64:
        """Return samples first…stop; they are 0 before its beginning and after its end."""
        out = np.zeros((*self.samples.shape[:-1], stop - first), np.complex64)
        begin, limit = max(first, 0), min(stop, self.length)
        if begin < limit:
            out[..., begin - first : limit - first] = self.take(begin, limit)
        return out


@dataclass(slots=True)
class Station:
    """A radio on the air."""

    place: str
    carrier_hz: float
    sample_rate_hz: float
    turnaround: int
    horizon: int
    free: bool = False
    """Whether it cannot time its transmissions; it then declares nothing, and no other radio waits for it."""
    array: Array | None = None
    """None: a single antenna."""


@dataclass(slots=True)
class _Surface:
    """The pattern as a function of time: from tick `since[i]` on, `levels[i]`, reflecting by `phasors[i]`."""

    board: str
    shape: tuple[int, int]
    phase_bits: int
    since: list[int] = field(default_factory=list)
    levels: list[U8] = field(default_factory=list)
    phasors: list[NDArray[np.complex128]] = field(default_factory=list)

    def power_up(self) -> None:
        self.since, self.levels, self.phasors = [], [], []
        self.set(0, np.zeros(self.shape, np.uint8))

    def set(self, when: int, levels: U8) -> None:
        self.since.append(when)
        self.levels.append(levels)
        self.phasors.append(np.exp(2j * np.pi / (1 << self.phase_bits) * levels.ravel()))

    def phasor_at(self, time: int) -> NDArray[np.complex128]:
        return self.phasors[max(bisect.bisect_right(self.since, time) - 1, 0)]

    def changes(self, after: int, before: int) -> list[int]:
        """Return the ticks at which the pattern changes between two others."""
        return self.since[bisect.bisect_right(self.since, after) : bisect.bisect_left(self.since, before)]

    def forget(self, before: int) -> None:
        while len(self.since) > 1 and self.since[1] < before:
            del self.since[0], self.levels[0], self.phasors[0]


@dataclass(slots=True)
class _Attacker:
    """An adversary's surface: its pattern is a function of the seed and of the end of the last transmission."""

    plan: Attacker
    seed: int
    forgotten: int = 0
    """End of the latest transmission that is no longer kept."""
    _known: dict[int, NDArray[np.complex128]] = field(default_factory=dict)

    def phasor_at(self, time: int, sent: list[Transmission]) -> NDArray[np.complex128]:
        """Return (element,) reflections at a tick; `sent` must contain all transmissions up to it."""
        return self._drawn(max((t for t in self.changes(sent) if t <= time), default=self.forgotten))

    def changes(self, sent: list[Transmission]) -> list[int]:
        """Return the ticks at which it takes new patterns because of these."""
        if self.plan.flips == "never":
            return []
        return [_ended(s) + to_ticks(self.plan.reaction_s) for s in sent if s.start < s.end < FOREVER]

    def forget(self, gone: list[Transmission]) -> None:
        self.forgotten = max([self.forgotten, *self.changes(gone)])

    def _drawn(self, since: int) -> NDArray[np.complex128]:
        found = self._known.get(since)
        if found is None:
            if len(self._known) >= 16:
                self._known.clear()
            n_levels = 1 << self.plan.phase_bits
            levels = generator(self.seed, "attacker", since).integers(0, n_levels, self.plan.rows * self.plan.columns)
            found = self._known[since] = np.exp(2j * np.pi / n_levels * levels)
        return found


def _ended(sent: Transmission) -> int:
    return sent.end + sent.shift


@dataclass(frozen=True, slots=True)
class Reception:
    """A requested reception: sample m is at tick start + shift + m / rate."""

    radio: str
    start: int
    n_samples: int
    shift: int = 0


@dataclass(slots=True)
class _Piece:
    """One transmission in samples first…stop of a reception, in which neither the channel nor a pattern changes."""

    sent: Transmission
    to: Station
    first: int
    stop: int
    time: int
    """Tick of the first of these samples."""
    offset: float
    """Samples from the reception's start to the transmission's."""
    band_hz: tuple[float, float] | None = None
    """Band that it has in common with the receiver, relative to its carrier; None: the bands are (nearly) the same."""
    lag: int = 0
    h: NDArray[np.complex128] = field(default_factory=lambda: np.empty(0, np.complex128))
    """Taps from `lag` on."""

    @property
    def middle_s(self) -> float:
        """Time for which the channel is evaluated."""
        return to_seconds(self.time // SEGMENT * SEGMENT + SEGMENT // 2)

    @property
    def alone(self) -> bool:
        """Whether both ends have a single antenna."""
        return self.sent.array is None and self.to.array is None

    @property
    def delay_rate_hz(self) -> float:
        """Rate of the taps: the receiver's; the sender's where their bands or rates differ."""
        return self.to.sample_rate_hz if self.band_hz is None else self.sent.sample_rate_hz

    def add_to(self, out: C64) -> None:
        """Add the received part to the reception."""
        if self.band_hz is not None:
            return self._mix_into(out, self.band_hz)
        sent, lag, n_taps = self.sent, self.lag, self.h.shape[-1]
        # out[m] = Σ_i h[i] x[m − lag − i], where any of these x is sent
        first, stop = max(self.first, lag), min(self.stop, lag + n_taps - 1 + sent.length)
        if first >= stop:
            return
        heard = self._through(first - lag - n_taps + 1, stop - lag)
        if sent.carrier_hz != self.to.carrier_hz:
            heard = heard * self._turn(first, stop)
        out[..., first:stop] += heard if out.ndim == heard.ndim else heard[0]

    def _mix_into(self, out: C64, band_hz: tuple[float, float]) -> None:
        """Add it if it is in another band or at another rate: first the channel at the sender's rate, then
        `resample`."""
        sent_rate, rate = self.sent.sample_rate_hz, self.to.sample_rate_hz
        n, n_taps = self.stop - self.first, self.h.shape[-1]
        # where the receiver's samples lie, in samples of the sender
        at, step = (self.time - self.sent.start - self.sent.shift) * sent_rate / TICKS_PER_S, sent_rate / rate
        half = reach(sent_rate, rate)
        low, high = math.floor(at) - half, math.ceil(at + step * n) + half + 1
        if high <= 0 or low - self.lag - n_taps >= self.sent.length:
            return
        wave = self._through(low - self.lag - n_taps + 1, high - self.lag)
        heard = resample(wave, at - low, step, n, sent_rate, rate, band_hz)
        heard *= self._turn(self.first, self.stop)
        out[..., self.first : self.stop] += heard if out.ndim == heard.ndim else heard[0]

    def _through(self, first: int, stop: int) -> C64:
        """Return what samples first…stop of the transmission become by the channel, the valid part of it."""
        x = self.sent.stretch(first, stop)
        if self.alone:
            return np.convolve(x, self.h.astype(np.complex64), "valid")
        return convolve(np.atleast_2d(x), self.h)

    def _turn(self, first: int, stop: int) -> C64:
        """Return (sample,) exp(j·phase) of the sender's carrier against the receiver's."""
        away_hz, rate = self.sent.carrier_hz - self.to.carrier_hz, self.to.sample_rate_hz
        time_s = to_seconds(self.time + duration(first, rate) - duration(self.first, rate))
        turns = (away_hz * time_s) % 1.0 + away_hz / rate * np.arange(stop - first)
        return np.asarray(np.exp(2j * np.pi * (turns % 1.0)), np.complex64)


class Air:
    """One scene, one clock, the radios on it, the board behind its surface."""

    def __init__(self) -> None:
        self.stations: dict[str, Station] = {}
        self.seed = 0
        self.frontier = 0
        self._changed = 0
        """When the air was changed last: a transmission was ordered or cut, a pattern latched, or time was let pass."""
        self._channel: Channel | None = None
        self._sent: list[Transmission] = []
        """The transmissions, by their starts."""
        self._starts: list[int] = []
        """Their starts, in the same order."""
        self._longest = 0
        """Largest duration of a transmission in ticks."""
        self._n_kept = 0
        """Number of their samples."""
        self._kept_from = 0
        """Tick before which some of what was sent is forgotten, although `RETENTION` is not over."""
        self._surface: _Surface | None = None
        self._attacker: _Attacker | None = None

    # ---------------------------------------------------------------- scene and clock

    def reset(self, scene: Scene, carrier_hz: float, seed: int, channel: Channel | None = None) -> None:
        """Start again at time 0 with new channels: radios stay on the air without transmissions, and the surface is as
        after power-up.

        `channel` replaces the one drawn from the seed.
        """
        self._channel = channel if channel is not None else Channel(scene, carrier_hz, seed)
        plan = self._channel.attacker
        self._attacker = None if plan is None else _Attacker(plan, seed)
        self.seed, self.frontier, self._changed = seed, 0, 0
        self._sent.clear()
        self._starts.clear()
        self._longest = self._n_kept = self._kept_from = 0
        for station in self.stations.values():
            station.horizon = 0
        if self._surface is not None:
            self._surface.power_up()
            self._channel.hang_surface(self._surface.shape)

    def pass_time(self, to: int) -> None:
        """Let time pass as on a wall clock: no transmission can start before `to` any more."""
        self.frontier = max(self.frontier, to)

    def let_pass(self, to: int) -> None:
        """Let time pass by order, in virtual time: no reception that is asked for later begins before `to`."""
        self.pass_time(to)
        self._changed = max(self._changed, self.frontier)

    def earliest(self, name: str) -> int:
        """Return when a free radio's reception may begin that is asked for now, in virtual time.

        Receptions of other radios let time pass meanwhile, although all of them may have been asked for at once: it
        begins no earlier than the air was changed last, and after what the radio received before.
        """
        station = self.stations.get(name)
        if station is None or not station.free or station.horizon >= FOREVER:
            return self.now(name)
        return max(station.horizon, self._changed, self.frontier - RETENTION // 2)

    def now(self, name: str) -> int:
        """Return a device's present: the earliest instant at which it could still do something."""
        station = self.stations.get(name)
        return self.frontier if station is None or station.horizon >= FOREVER else max(station.horizon, self.frontier)

    # ---------------------------------------------------------------- radios

    def tune(
        self, name: str, place: str, carrier_hz: float, sample_rate_hz: float, turnaround_s: float, free: bool = False,
        array: Array | None = None,
    ) -> None:  # fmt: skip
        """Put a radio on the air, or retune it; samples that it sent before and that were not received yet are cut."""
        self._check_place(name, place)
        old = self.stations.get(name)
        if old is not None:
            self.silence(name)
        horizon = self.frontier if old is None else old.horizon
        self.stations[name] = Station(place, carrier_hz, sample_rate_hz, to_ticks(turnaround_s), horizon, free, array)

    def n_antennas(self, name: str) -> int:
        """Return the number of antennas of a radio on the air."""
        array = self._station(name).array
        return 1 if array is None else array.n

    def leave(self, name: str) -> None:
        """Take a radio off the air; no other radio waits for it any more."""
        if name in self.stations:
            self.silence(name)
            del self.stations[name]

    def drop(self, name: str) -> None:
        """Take a silent radio off the air; its transmissions stay, because others may have received a part of them."""
        del self.stations[name]
        for sent in self._sent:
            if sent.radio == name and sent.cyclic and sent.end == FOREVER:
                sent.end = self.frontier

    def declare(self, name: str, until: int) -> None:
        """Declare that the radio starts no transmission before `until`."""
        station = self._station(name)
        station.horizon = max(station.horizon, until)

    def transmit(self, name: str, start: int, samples: C64, shift: int = 0, cyclic: bool = False) -> None:
        """Send (sample,), of an array (antenna, sample), in √mW from `start`.

        Refused as late where the radio declared silence or time has passed.
        """
        station = self._station(name)
        self._check_place(name, station.place)
        earliest = max(station.horizon, self.frontier)  # FOREVER while it repeats samples
        if start < earliest:
            raise Refused("late", f"{(earliest - start) / 1e6:.6f} µs too late")
        if self._n_kept + _LEAST_UNHEARD * len(self._sent) > MAX_UNHEARD and self._n_unheard(name) > MAX_UNHEARD:
            raise Refused("device", f"more than {MAX_UNHEARD} samples wait for reception, accepted: no more")
        end = FOREVER if cyclic else start + duration(samples.shape[-1], station.sample_rate_hz)
        sent = Transmission(
            name, station.place, start, shift, end, samples, station.sample_rate_hz, station.carrier_hz, cyclic,
            station.array,
        )  # fmt: skip
        at = bisect.bisect_right(self._starts, start)
        self._starts.insert(at, start)
        self._sent.insert(at, sent)
        self._longest = max(self._longest, end - start)
        self._changed = max(self._changed, self.frontier)
        self._n_kept += samples.size
        station.horizon = max(station.horizon, end)

    def _n_unheard(self, name: str) -> int:
        """Return how many samples of a radio are still to be sent."""
        unheard = (s for s in self._sent_between(self.frontier, FOREVER) if s.radio == name and s.end > self.frontier)
        return sum(max(s.samples.size, _LEAST_UNHEARD) for s in unheard)

    def _sent_between(self, since: int, until: int) -> list[Transmission]:
        """Return all transmissions that begin before `until` and may last beyond `since`, by their starts."""
        first = bisect.bisect_left(self._starts, since - self._longest)
        return self._sent[first : bisect.bisect_left(self._starts, until)]

    def silence(self, name: str, repeated_only: bool = False) -> None:
        """Cut all samples of a radio that no radio can have received yet, or only repeated ones."""
        cut = self.frontier
        station = self.stations.get(name)
        for sent in self._sent:
            if sent.radio == name and sent.end > cut and (sent.cyclic or not repeated_only):
                self._changed = max(self._changed, cut)
                if sent.cyclic and sent.end == FOREVER and station is not None:
                    station.horizon = max(cut, sent.start)
                sent.end = max(cut, sent.start)

    def check_reception(self, name: str, start: int, n_samples: int) -> int:
        """Return the end of a reception, declare that the radio starts nothing before it, or raise Refused."""
        station = self._station(name)
        self._check_place(name, station.place)
        kept_from = max(self.frontier - RETENTION, self._kept_from)
        if start < kept_from or start < 0:
            raise Refused(
                "device",
                f"starts {to_seconds(self.frontier - start):.6f} s back, {to_seconds(start):.6f} s after the world's "
                f"start; samples are kept for {to_seconds(self.frontier - kept_from):g} s",
            )
        end = start + duration(n_samples, station.sample_rate_hz)
        # It cannot transmit before its switch has changed over, so that time is declared as well.
        self.declare(name, end + station.turnaround)
        return end

    def undeclared(self, listener: str, until: int) -> list[str]:
        """Return the radios that must declare more before `listener` can receive up to `until`."""
        places = self._channel.places if self._channel is not None else []
        return [
            name
            for name, s in self.stations.items()
            if name != listener and not s.free and max(s.horizon, self.frontier) < until and s.place in places
        ]

    def hear(self, name: str, start: int, n_samples: int, shift: int = 0) -> C64:
        """Return (sample,) in √mW at the radio's antenna, of an array (antenna, sample).

        The caller has made sure that no declaration is missing.

        It is the sum of all transmissions, each convolved with its channel, at exact delays. It is 0 where nothing is
        received, and while this radio itself sends or changes over. Sample m is at start + shift + m / rate.
        """
        (heard,) = self.hear_many([Reception(name, start, n_samples, shift)])
        return heard

    def hear_many(self, receptions: Sequence[Reception]) -> list[C64]:
        """Return what `hear` gives for each, to the last bit; the channels of all are computed together."""
        assert self._channel is not None
        present = [self._present(r) for r in receptions]
        pieces = [self._pieces(r, sent) for r, sent in zip(receptions, present, strict=True)]
        together = [piece for of_one in pieces for piece in of_one]
        moments: dict[tuple[str, str, float], list[float]] = {}
        for piece in (p for p in together if p.alone):
            moments.setdefault((piece.sent.place, piece.to.place, piece.sent.carrier_hz), []).append(piece.middle_s)
        for (x, y, carrier_hz), times_s in moments.items():
            self._channel.prepare(x, y, times_s, carrier_hz)
        self._shape(together)
        out = [self._lay(r, of_one, sent) for r, of_one, sent in zip(receptions, pieces, present, strict=True)]
        for r in receptions:
            self.pass_time(r.start + duration(r.n_samples, self._station(r.radio).sample_rate_hz))
        self._forget()
        return out

    def _present(self, r: Reception) -> list[Transmission]:
        """Return the transmissions of which a part may be in a reception."""
        start = r.start + r.shift
        end = start + duration(r.n_samples, self._station(r.radio).sample_rate_hz)
        nearby = self._sent_between(start - LONGEST_PATH, end)
        found = [s for s in nearby if s.end > s.start and s.end > start - LONGEST_PATH]
        # The sum is in a fixed order, so that its rounding does not depend on the order of the declarations.
        return sorted(found, key=lambda s: (s.start, s.radio))

    def _pieces(self, r: Reception, present: list[Transmission]) -> list[_Piece]:
        """Return the parts of a reception: transmissions, each while neither channel nor pattern changes."""
        station = self._station(r.radio)
        rate, start = station.sample_rate_hz, r.start + r.shift
        edges = self._edges(start, r.n_samples, rate)
        out = []
        for sent in present:
            away_hz = sent.carrier_hz - station.carrier_hz
            band_hz = common_band(sent.carrier_hz, sent.sample_rate_hz, station.carrier_hz, rate)
            if sent.radio == r.radio or band_hz is None:
                continue
            if sent.sample_rate_hz == rate and abs(away_hz) <= NEARLY * rate:
                band_hz = None
            begins = _ceil_index(sent.start - start, rate)
            fades = FOREVER if sent.end == FOREVER else _ceil_index(_ended(sent) + LONGEST_PATH - start, rate)
            for first, stop in ((max(a, begins), b) for a, b in itertools.pairwise(edges)):
                if first < min(stop, fades):
                    time = start + duration(first, rate)
                    offset = (sent.start + sent.shift - start) * rate / TICKS_PER_S
                    out.append(_Piece(sent, station, first, stop, time, offset, band_hz))
        return out

    def _shape(self, pieces: list[_Piece]) -> None:
        """Compute the taps of every piece; those of single antennas with equally many paths together."""
        alike: dict[int, list[tuple[_Piece, NDArray[np.complex128], F64]]] = {}
        for piece in pieces:
            amplitude, delay_s = self._paths(piece)
            delay = delay_s * piece.delay_rate_hz + (piece.offset if piece.band_hz is None else 0.0)
            if piece.alone:
                alike.setdefault(amplitude.size, []).append((piece, amplitude, delay))
            else:
                piece.lag, piece.h = taps_of_pairs(amplitude, delay)
        for members in alike.values():
            found = taps_many(np.array([a for _, a, _ in members]), np.array([d for _, _, d in members]))
            for (piece, _, _), shaped in zip(members, found, strict=True):
                piece.lag, piece.h = shaped

    def _paths(self, piece: _Piece) -> tuple[NDArray[np.complex128], F64]:
        """Return (amplitude, delay_s) of a piece's paths, the surfaces' phases included."""
        assert self._channel is not None
        sent = piece.sent
        link = (sent.place, piece.to.place, piece.middle_s, sent.carrier_hz, sent.array, piece.to.array)
        amplitude, delay_s = self._channel.paths(*link)
        if amplitude.shape[-1] > self._channel.n_air and self._surface is not None:
            amplitude = amplitude.copy()
            amplitude[..., self._channel.n_air :] *= self._surface.phasor_at(piece.time)
        if self._attacker is not None:
            reflected, later_s = self._channel.attacked_paths(*link)
            if reflected.size:
                reflected = reflected * self._attacker.phasor_at(piece.time, self._sent)
                amplitude = np.concatenate([amplitude, reflected], axis=-1)
                delay_s = np.concatenate([delay_s, later_s], axis=-1)
        return amplitude, delay_s

    def _lay(self, r: Reception, pieces: list[_Piece], present: list[Transmission]) -> C64:
        """Return the sum of the pieces; zeros while the radio itself sends or changes over."""
        station = self._station(r.radio)
        rate, start = station.sample_rate_hz, r.start + r.shift
        shape = r.n_samples if station.array is None else (station.array.n, r.n_samples)
        out = np.zeros(shape, np.complex64)
        for piece in pieces:
            piece.add_to(out)
        for sent in present:
            if sent.radio == r.radio:
                deaf = [
                    _ceil_index(t - start, rate)
                    for t in (sent.start - station.turnaround, sent.end + station.turnaround)
                ]
                out[..., max(deaf[0], 0) : max(deaf[1], 0)] = 0.0
        return out

    def _edges(self, start: int, n_samples: int, rate: float) -> list[int]:
        """Return sample indices between which neither channel nor any pattern changes, 0 and n included."""
        end = start + duration(n_samples, rate)
        times = list(range((start // SEGMENT + 1) * SEGMENT, end, SEGMENT))
        if self._surface is not None:
            times += self._surface.changes(start, end)
        if self._attacker is not None:
            times += [t for t in self._attacker.changes(self._sent) if start < t < end]
        return sorted({0, n_samples, *(min(_ceil_index(t - start, rate), n_samples) for t in times)})

    def _forget(self) -> None:
        kept = RETENTION
        if self._n_kept > MOST_KEPT:
            kept = RETENTION_AT_LEAST
            self._kept_from = max(self._kept_from, self.frontier - kept)
        oldest = self.frontier - kept - TICKS_PER_S // 1000
        if self._longest > RETENTION:  # samples are, or were, repeated
            self._longest = max((s.end - s.start for s in self._sent), default=0)
        n = bisect.bisect_left(self._starts, oldest - self._longest)
        if n:
            if self._attacker is not None:
                self._attacker.forget(self._sent[:n])
            self._n_kept -= sum(s.samples.size for s in self._sent[:n])
            del self._sent[:n], self._starts[:n]
        if self._surface is not None:
            self._surface.forget(oldest)

    def _station(self, name: str) -> Station:
        if self._channel is None:
            raise Refused("device", "the world has no scene yet")
        if name not in self.stations:
            raise Refused("off_air", "not on the air: configure() first")
        return self.stations[name]

    def _check_place(self, name: str, place: str) -> None:
        if self._channel is not None and place not in self._channel.places:
            raise Refused(
                "device",
                f"the scene has no place {place!r} for radio {name!r}; it has: {', '.join(self._channel.places)}",
            )

    # ---------------------------------------------------------------- surface

    def hang(self, board: str, shape: tuple[int, int], phase_bits: int) -> None:
        """Put a board behind the scene's surface, every element at level 0."""
        if self._surface is not None and self._surface.board != board:
            raise Refused("device", f"the surface already hangs on board {self._surface.board!r}")
        old = self._surface
        if old is None or (old.shape, old.phase_bits) != (shape, phase_bits):
            self._surface = _Surface(board, shape, phase_bits)
            self._surface.power_up()
            if self._channel is not None:
                self._channel.hang_surface(shape)

    def latch(self, board: str, levels: U8, latency: int) -> int:
        """Change the pattern `latency` after the frontier; return the first tick with the new one."""
        surface = self._held_by(board)
        when = max(self.frontier + latency, surface.since[-1])
        surface.set(when, levels)
        self._changed = max(self._changed, when)
        return when

    def schedule(self, board: str, patterns: Sequence[U8], times: Sequence[int], latency: int) -> tuple[int, ...]:
        """Have each pattern latch at its time; the command must come `latency` before the first. Returns the times."""
        surface = self._held_by(board)
        earliest = max(self.frontier + latency, surface.since[-1])
        if times[0] < earliest:
            raise Refused("device", f"a pattern is due {to_seconds(earliest - times[0]):.6f} s before it could latch")
        for levels, when in zip(patterns, times, strict=True):
            surface.set(when, levels)
        return tuple(times)

    def pattern(self, board: str) -> U8:
        """Return (row, column) levels of the latest pattern."""
        return self._held_by(board).levels[-1]

    def _held_by(self, board: str) -> _Surface:
        if self._surface is None or self._surface.board != board:
            raise Refused("off_air", "this board holds no surface here")
        return self._surface


def _ceil_index(ticks: int, rate: float) -> int:
    """Return the first sample index whose time, to the nearest tick, is `ticks` or later."""
    return math.ceil((ticks - 0.5) * rate / TICKS_PER_S)
