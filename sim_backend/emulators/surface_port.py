"""Connects an emulated board's outputs with the surface in the simulated air."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sim_backend.link import Link, OffAir, link_for
from sim_backend.messages import Apply, Hang, Now, Readback, Reply, Schedule
from sim_backend.ticks import to_ticks
from testbed.core.types import U8
from testbed.core.world import DriverContext


class SurfacePort:
    """The board's connection to the air. Without an air nothing is reflected and the time is always 0.

    Raises DeviceError where the air does not confirm an order: the board must then not acknowledge it either.
    """

    def __init__(
        self, name: str, context: DriverContext, shape: tuple[int, int], phase_bits: int, latency_s: float = 0.0
    ) -> None:
        """`latency_s`: time of the air from a command until the outputs are latched."""
        self._latency = to_ticks(latency_s)
        self._name, self._context, self._shape, self._phase_bits = name, context, shape, phase_bits
        self._link: Link | None = None

    def latch(self, levels: U8) -> int:
        """Set the surface's (row, column) levels from now on; return the tick of the first sample with them."""
        reply, _ = self._ask(
            lambda link: Apply(id=link.next_id(), session=link.session, latency=self._latency), levels.tobytes()
        )
        return reply.time

    def latch_at(self, levels: U8, when: int) -> None:
        """Set the levels from a tick on; they are refused, as by any error of the air, where it is too late."""
        self._ask(
            lambda link: Schedule(id=link.next_id(), session=link.session, times=[when], latency=self._latency),
            levels.tobytes(),
        )

    def held(self, levels: U8) -> U8:
        """Return the levels that the air's surface has, which may differ from `levels`: a new scene resets the surface,
        and the air executes an order even if its confirmation comes too late.
        """
        if self._context.world is None:
            return levels
        _, raw = self._ask(lambda link: Readback(id=link.next_id(), session=link.session))
        return np.frombuffer(raw, np.uint8).reshape(self._shape)

    def now(self) -> int:
        """Return the air's time in ticks."""
        return self._ask(lambda link: Now(id=link.next_id(), session=link.session))[0].now

    def close(self) -> None:
        """Leave the air; may be called twice."""
        link, self._link = self._link, None
        if link is not None:
            link.leave("closed")

    def _ask(self, request: Callable[[Link], Any], payload: bytes | None = None) -> tuple[Reply, bytes]:
        if self._context.world is None:
            return Reply(id=0), b""
        link = self._link = self._link or self._attached()
        try:
            return link.ask(request(link), "open", payload)
        except OffAir:  # the air was restarted
            link = self._link = self._attached()
            return link.ask(request(link), "open", payload)

    def _attached(self) -> Link:
        link = link_for(self._name, self._context)
        (rows, columns), bits = self._shape, self._phase_bits
        try:
            link.attach("board", "open")
            hang = Hang(id=link.next_id(), session=link.session, rows=rows, columns=columns, phase_bits=bits)
            link.ask(hang, "open")
        except BaseException:
            link.leave("open")
            raise
        return link
