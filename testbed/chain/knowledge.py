"""What others may know of Alice's string, collected at Alice during a run.

Eve is assumed to know earlier blocks and training in full, so Alice keeps their features until the run is over. The
reports of Eve's node are public; they are sent as `HeardSeries` and can only make keys shorter. A report that cannot be
read is left out, and the block then counts as one without a measured Eve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from testbed.chain.agreement import Agreed
from testbed.core.errors import InputError
from testbed.core.outcomes import COVERAGE, HeardSeries, SurfaceRecord
from testbed.core.types import C64, F64, I64, CsiSeries, Features
from testbed.entropy.facts import C128, Earlier, Facts, Heard

MOST_CHANNELS = 8
"""Largest number of channels of complex CSI, evenly spaced over the band, that attacks get in addition to features."""
MOST_SERIES, MOST_ROUNDS, MOST_DIMENSIONS = 256, 1 << 17, 1024
_WIDER = 4
"""A series may have this many times as many features as Alice's own, whose chain Eve's node uses."""
MOST_VALUE = 1e9
"""Largest magnitude of a feature in a report; no measured feature is larger."""
_MOST_ELEMENTS = 1 << 16


def heard_series(name: str, features: Features, csi: CsiSeries | None = None) -> HeardSeries:
    """Return Eve's report of one antenna and link: features, and a few channels of CSI (rx antenna 0)."""
    values = np.ascontiguousarray(features.values, "<f4")
    channels = np.zeros((values.shape[0], 0), np.complex64) if csi is None else few_channels(csi.h)
    return HeardSeries(
        name=name,
        rounds=np.ascontiguousarray(features.rounds, "<i8").tobytes(),
        dimensions=values.shape[1],
        values=values.tobytes(),
        channels=channels.shape[1],
        csi=np.ascontiguousarray(channels, "<c8").tobytes(),
    )


def few_channels(h: C64) -> C64:
    """Return (probe, channel): every antenna pair at a few subcarriers, `MOST_CHANNELS` at most."""
    flat = h.reshape(h.shape[0], -1)
    chosen = np.unique(np.linspace(0, flat.shape[1] - 1, min(MOST_CHANNELS, flat.shape[1])).round().astype(np.int64))
    return np.ascontiguousarray(flat[:, chosen], np.complex64)


def read_heard(series: HeardSeries) -> Heard:
    """Return a reported series; raises InputError where it is malformed."""
    rounds = np.frombuffer(series.rounds, "<i8") if len(series.rounds) % 8 == 0 else np.zeros(0, np.int64)
    n, size = rounds.size, (len(series.values), len(series.csi))
    sound = 0 < n <= MOST_ROUNDS and 0 < series.dimensions <= MOST_DIMENSIONS and 0 <= series.channels <= MOST_CHANNELS
    if not sound or size != (4 * n * series.dimensions, 8 * n * series.channels):
        raise InputError(f"Eve's series {series.name[:40]!r} is not {n} rounds of {series.dimensions} features")
    values = np.frombuffer(series.values, "<f4").reshape(n, series.dimensions).astype(np.float64)
    csi = np.frombuffer(series.csi, "<c8").reshape(n, series.channels).astype(np.complex128)
    if rounds.min() < 0 or rounds.max() >= 1 << 31 or (np.abs(values) > MOST_VALUE).any():
        raise InputError(f"Eve's series {series.name[:40]!r}: rounds or features that no run has")
    return Heard(series.name, rounds.astype(np.int64), rounds.astype(np.float64), values, csi if csi.size else None)


@dataclass(slots=True)
class Knowledge:
    """What others may know of one run so far. Alice's node has one such object; a replay has one for each Eve.

    most_series: of how many antennas and links Eve's measurements are judged. The judge's time grows with their number.
    """

    most_series: int = MOST_SERIES
    _earlier: list[tuple[str, Features, bool]] = field(default_factory=list)
    _states: dict[int, int] = field(default_factory=dict)
    """Round → opaque number of the surface's state."""
    _heard: dict[str, list[HeardSeries]] = field(default_factory=dict)
    """As they were reported, which takes half of the memory of `Heard`."""
    refused_series: int = 0
    """Number of Eve's series that could not be read."""

    def add_features(self, name: str, features: Features, same_run: bool = True) -> None:
        """Add features that count as known from now on: those of a training, a finished block, or another run."""
        self._earlier.append((name, features, same_run))

    def add_states(self, rounds: I64, states: I64) -> None:
        """Add the surface's states: (round,) opaque numbers, equal for equal states."""
        self._states |= dict(zip(rounds.tolist(), states.tolist(), strict=True))

    def add_heard(self, series: Sequence[HeardSeries], last_round: int | None = None) -> None:
        """Add what Eve's node reports of the rounds until now; last_round: the last one that there was."""
        for one in series[:MOST_SERIES]:
            try:
                self._add(one, last_round)
            except InputError:
                self.refused_series += 1
        self.refused_series += max(0, len(series) - MOST_SERIES)

    def _add(self, series: HeardSeries, last_round: int | None) -> None:
        """Add a series as it came; raises InputError for one that contradicts earlier ones, or is one too many."""
        heard = read_heard(series)
        if last_round is not None and heard.rounds[-1] > last_round:
            raise InputError("rounds that there were not yet")
        if heard.name not in self._heard and len(self._heard) >= self.most_series:
            raise InputError("more series than are judged")
        before = self._heard.setdefault(heard.name, [])
        if before and heard.rounds[0] <= np.frombuffer(before[-1].rounds, "<i8")[-1]:
            raise InputError("rounds were reported before")
        before.append(series)

    def facts(self, agreed: Agreed, surface: SurfaceRecord | None = None, rounds: I64 | None = None) -> Facts:
        """Return all facts by which a block's length is judged.

        surface: the surface's states in the block's rounds. rounds: (probe,) round numbers that replace those of the
        features.
        """
        raw, features = agreed.raw, agreed.features
        assert raw is not None
        assert features is not None
        if rounds is not None:
            features = Features(features.values, rounds)
        published = np.zeros(raw.values.size, np.bool_)
        published[agreed.sacrificed] = True
        states, patterns, responses = _surface(surface, features.rounds)
        if states is not None:
            self.add_states(features.rounds, states)
        if surface is not None:
            if len(surface.other_rounds) != len(surface.other_states):
                raise InputError("the number of other rounds differs from that of their states")
            self._states |= dict(zip(surface.other_rounds, surface.other_states, strict=True))
        return Facts.of_bits(
            raw,
            published,
            features.rounds,
            features.rounds.astype(np.float64),
            np.asarray(features.values, np.float64),
            columns=agreed.columns,
            csi=few_channels(agreed.csi.h).astype(np.complex128),
            heard=self._telling(_WIDER * features.values.shape[1]),
            states=states,
            patterns=patterns,
            responses=responses,
            state_bits=None if surface is None or not surface.elements else _visible_bits(surface),
            earlier=tuple(self._before(name, f, same_run, features) for name, f, same_run in self._earlier),
        )

    def _telling(self, most_features: int) -> tuple[Heard, ...]:
        """Return Eve's series over all blocks that may tell something; wider ones are no features of this chain."""
        joined = [_joined([read_heard(one) for one in parts]) for parts in self._heard.values() if parts]
        fitting = [heard for heard in joined if heard.values.shape[1] <= most_features]
        self.refused_series += len(joined) - len(fitting)
        return tuple(told for heard in fitting if (told := _telling(heard)) is not None)

    def _before(self, name: str, earlier: Features, same_run: bool, now: Features) -> Earlier:
        known = [self._states.get(r, -1 - i) if same_run else -1 - i for i, r in enumerate(earlier.rounds.tolist())]
        states = np.array(known, np.int64) if self._states else None
        columns = _columns(np.asarray(earlier.values, np.float64), now.values.shape[1])
        return Earlier(name, same_run, earlier.rounds, earlier.rounds.astype(np.float64), columns, states)


def _visible_bits(surface: SurfaceRecord) -> int:
    """Return the number of bits of a state that affect a channel; a phase that all elements have in common does not."""
    return (surface.elements - 1) * surface.phase_bits


def covered(facts: Facts) -> bool:
    """Return whether some Eve received most of the block; otherwise the block counts as one without a measured Eve."""
    for series in facts.heard:
        rows = np.isfinite(series.values).any(axis=1)
        if np.isin(facts.rounds, series.rounds[rows]).mean() >= COVERAGE:
            return True
    return False


def _joined(parts: list[Heard]) -> Heard:
    """Return one series over all blocks; dimensions that a block lacks are NaN."""
    width = max(p.values.shape[1] for p in parts)
    channels = {0 if p.csi is None else p.csi.shape[1] for p in parts}
    csi = None
    if len(channels) == 1 and 0 not in channels:
        csi = np.concatenate([p.csi for p in parts if p.csi is not None])
    rounds = np.concatenate([p.rounds for p in parts])
    values = np.concatenate([_columns(p.values, width) for p in parts])
    return Heard(parts[0].name, rounds, rounds.astype(np.float64), values, csi)


def _telling(heard: Heard) -> Heard | None:
    """Return a series without its constant features; None where all are constant, as of an antenna that is not
    connected."""
    least = np.where(np.isnan(heard.values), np.inf, heard.values).min(axis=0)
    most = np.where(np.isnan(heard.values), -np.inf, heard.values).max(axis=0)
    if (most > least).all():
        return heard
    values = np.where(most > least, heard.values, np.nan)
    return None if np.isnan(values).all() else replace(heard, values=values)


def _columns(values: F64, width: int) -> F64:
    if values.shape[1] >= width:
        return values[:, :width]
    return np.pad(values, ((0, 0), (0, width - values.shape[1])), constant_values=np.nan)


def _surface(surface: SurfaceRecord | None, rounds: I64) -> tuple[I64 | None, C128 | None, C128 | None]:
    """Return opaque states (probe,) and, where they are public, reflection coefficients (probe, element), responses."""
    if surface is None:
        return None, None, None
    if len(surface.states) != rounds.size:
        raise InputError(f"{len(surface.states)} states of the surface; accepted: one for each of {rounds.size} rounds")
    states = np.array(surface.states, np.int64)
    if surface.levels is None:
        return states, None, None
    n = len(surface.levels) // max(rounds.size, 1)
    if not 0 < n <= _MOST_ELEMENTS or n * rounds.size != len(surface.levels) or not 1 <= surface.phase_bits <= 8:
        raise InputError(
            "patterns of the surface do not fit the block's rounds; accepted: a level an element and round"
        )
    levels = np.frombuffer(surface.levels, np.uint8).reshape(rounds.size, n)
    patterns = np.exp(2j * np.pi / (1 << surface.phase_bits) * levels)
    if surface.responses is None or len(surface.responses) != 8 * rounds.size:
        return states, patterns, None
    responses = np.frombuffer(surface.responses, "<c8").astype(np.complex128)[:, None]
    return states, patterns, responses if np.isfinite(responses).all() else None
