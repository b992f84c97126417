"""A simulated surface controller: a thin client of the World that holds its one surface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from sim_backend.link import OffAir, link_for
from sim_backend.messages import MAX_PATTERNS, Apply, Hang, Now, Readback, Reply, Schedule
from sim_backend.ticks import DeviceClock, to_ticks
from testbed.core.errors import DeviceError
from testbed.core.options import driver_options
from testbed.core.ris import Board, BoardCapabilities
from testbed.core.seeds import generator
from testbed.core.types import AppliedPattern, SurfacePattern
from testbed.core.world import DriverContext


class BoardOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Properties of a simulated board; every field is a key of `options` in its lab table."""

    rows: Annotated[int, Meta(ge=1, le=256)] = 16
    columns: Annotated[int, Meta(ge=1, le=256)] = 16
    phase_bits: Annotated[int, Meta(ge=1, le=8)] = 1
    latency_s: Annotated[float, Meta(ge=0)] = 1e-3
    """Time from the command to the outputs' latch."""
    clock_ppm: float | None = None
    """Default: drawn within ±20 (a microcontroller's crystal)."""
    clock_offset_s: float | None = None
    """Default: drawn within ±1 ms."""


class SimBoard(Board):
    """The board of the scene's surface; where the scene has none, its patterns have no effect."""

    options_type = BoardOptions
    needs_world = True

    def __init__(self, name: str, context: DriverContext, **options: Any) -> None:
        super().__init__(name)
        self._options = driver_options(options, BoardOptions, name)
        rng = generator(context.seed, name, "clock")
        ppm, offset_s = float(rng.uniform(-20, 20)), float(rng.uniform(-1e-3, 1e-3))
        self._clock = DeviceClock(
            ppm if self._options.clock_ppm is None else self._options.clock_ppm,
            offset_s if self._options.clock_offset_s is None else self._options.clock_offset_s,
        )
        self._seed = context.seed
        self._link = link_for(name, context)
        try:
            self._attach()
        except BaseException:
            self._link.close(self.state)
            raise

    @property
    def shape(self) -> tuple[int, int]:
        return self._options.rows, self._options.columns

    @property
    def phase_bits(self) -> int:
        return self._options.phase_bits

    @property
    def capabilities(self) -> BoardCapabilities:
        return BoardCapabilities(timed=True, schedule_size=MAX_PATTERNS, latency_s=self._options.latency_s)

    def identity(self) -> dict[str, Any]:
        return {"driver": "sim", "serial": f"sim-{self.name}-{self._seed}", "firmware": "none"}

    def now_s(self) -> float:
        reply, _ = self._link.ask(Now(id=self._link.next_id(), session=self._link.session), self.state)
        return self._clock.reading_s(reply.now)

    def _attach(self) -> None:
        self._link.attach("board", self.state)
        rows, columns = self.shape
        hang = Hang(
            id=self._link.next_id(), session=self._link.session, rows=rows, columns=columns, phase_bits=self.phase_bits
        )
        self._link.ask(hang, self.state)

    def _do_apply(self, pattern: SurfacePattern, timeout_s: float) -> AppliedPattern:
        levels = np.ascontiguousarray(pattern.levels, dtype=np.uint8)
        try:
            reply = self._ask_apply(levels, timeout_s)
        except OffAir:  # the world was restarted
            self._attach()
            reply = self._ask_apply(levels, timeout_s)
        return AppliedPattern(pattern.digest, self._clock.reading_s(reply.time))

    def _ask_apply(self, levels: np.ndarray, timeout_s: float) -> Reply:
        latency = to_ticks(self._options.latency_s)
        request = Apply(id=self._link.next_id(), session=self._link.session, latency=latency)
        return self._link.ask(request, self.state, levels, timeout_s)[0]

    def _do_schedule(
        self, patterns: Sequence[SurfacePattern], times_s: Sequence[float], timeout_s: float
    ) -> list[AppliedPattern]:
        levels = np.stack([np.ascontiguousarray(pattern.levels, dtype=np.uint8) for pattern in patterns])
        times = [self._clock.world_ticks(time_s) for time_s in times_s]
        try:
            reply = self._ask_schedule(levels, times, timeout_s)
        except OffAir:  # the world was started anew
            self._attach()
            reply = self._ask_schedule(levels, times, timeout_s)
        at_s = [self._clock.reading_s(when) for when in reply.times]
        return [AppliedPattern(x.digest, time_s) for x, time_s in zip(patterns, at_s, strict=True)]

    def _ask_schedule(self, levels: np.ndarray, times: list[int], timeout_s: float) -> Reply:
        latency = to_ticks(self._options.latency_s)
        request = Schedule(id=self._link.next_id(), session=self._link.session, times=times, latency=latency)
        return self._link.ask(request, self.state, levels, timeout_s)[0]

    def _do_readback(self, timeout_s: float) -> SurfacePattern:
        request = Readback(id=self._link.next_id(), session=self._link.session)
        _, raw = self._link.ask(request, self.state, timeout_s=timeout_s)
        if len(raw) != self.n_elements:
            raise DeviceError(self.name, "readback", self.state, f"{len(raw)} levels, expected {self.n_elements}")
        return SurfacePattern(np.frombuffer(raw, np.uint8).reshape(self.shape), self.phase_bits)

    def _do_close(self) -> None:
        self._link.close(self.state)
