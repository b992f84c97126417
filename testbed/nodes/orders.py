"""Checks a coordinator's orders to a node before anything acts on them.

A coordinator schedules, and is not trusted beyond that. Sizes, ranges and names of an order were checked when it was
decoded (`net.messages`); the checks here depend on the node's role, on its earlier orders, and on the demands of its
own lab table.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any

from testbed.core.config import Floors, radio_out_of_range
from testbed.net import messages as m
from testbed.nodes import floors as demands
from testbed.nodes.events import OrderRefused

_ANYBODY = (m.Welcome, m.Refused, m.Pulse, m.Configure, m.ReadClock, m.Finish)
_RADIO = (m.Probe, m.Step, m.Abandon)
_END = (*_RADIO, m.Distil, m.Amplify, m.KeepKeys)
_BY_ROLE: dict[str, tuple[type, ...]] = {
    "alice": _END, "bob": _END, "eve": (*_RADIO, m.Attack, m.GuessKey),
    "ris": (m.Apply, m.ApplyNext, m.Schedule, m.ReadSurface, m.Abandon),
}  # fmt: skip
_NEED_A_PLAN = (m.Distil, m.Amplify, m.Attack, m.GuessKey)
_NEED_THE_DEVICE = (m.Probe, m.Step, m.Apply, m.ApplyNext, m.Schedule, m.ReadSurface)
"""Orders to a device. One that is still set up as for an earlier run would report as that run's mode allows."""


MOST_TRAINS = 64
"""Largest number of trains that were ordered and are not reported yet; a coordinator orders two or three ahead."""


class BlockNumbers:
    """Checks that block numbers strictly rise within a run, also after a second welcome, so that no block is begun
    twice.

    Remembers the `most` latest runs of its process.
    """

    def __init__(self, most: int = 256) -> None:
        self._highest: OrderedDict[str, int] = OrderedDict()
        self._most = most

    def known(self, run: str, block: int) -> None:
        """Take note of a block that an earlier process of this node began."""
        self._highest[run] = max(block, self._highest.get(run, -1))
        self._highest.move_to_end(run)
        while len(self._highest) > self._most:
            self._highest.popitem(last=False)

    def take(self, run: str, block: int) -> str | None:
        """Begin a block; returns in one line why it cannot be begun, or None."""
        last = self._highest.get(run, -1)
        if block <= last:
            return f"block {block} was begun before: the block numbers of a run must rise, accepted from {last + 1}"
        self.known(run, block)
        return None


class Orders:
    """The orders that one node accepts. `private`: its lab file says that it takes part in no experiment."""

    def __init__(self, role: str, floors: Floors, authenticated: bool = True, private: bool = False) -> None:
        self.role, self.floors, self._authenticated, self._private = role, floors, authenticated, private
        self.blocks = BlockNumbers()

    def check(self, body: Any, run: str, configured: bool, tuned: bool, trains: int = 0) -> None:
        """Raise OrderRefused, one line, for an order that the node must not follow.

        `run` is the one that the node was welcomed to, '' before; `configured` says whether it accepted a plan for it,
        `tuned` whether its device did. `trains`: number of trains that are not reported yet.
        """
        if isinstance(body, m.Probe) and trains >= MOST_TRAINS:
            raise OrderRefused(f"{trains} trains are under way, accepted up to {MOST_TRAINS}")
        if (why := self.refusal(body, run, configured, tuned)) is not None:
            raise OrderRefused(why)

    def refusal(self, body: Any, run: str, configured: bool, tuned: bool = True) -> str | None:
        """Return in one line why an order must not be followed; None where it may. See `check`."""
        if not isinstance(body, (*_ANYBODY, *_BY_ROLE[self.role])):
            return f"{type(body).__name__} is no order for {self.role}"
        if not run and not isinstance(body, (m.Welcome, m.Refused, m.Pulse, m.Finish)):
            return "not welcomed to a run yet"
        if (isinstance(body, _NEED_A_PLAN) and not configured) or (isinstance(body, _NEED_THE_DEVICE) and not tuned):
            return "not configured for this run yet"
        match body:
            case m.Configure(accounting=accounting, experiment_mode=experiment):
                if (wrong := radio_out_of_range(body.radio)) is not None:
                    return wrong
                if experiment and self._private:
                    return "this node is private by its lab file: it takes part in private mode only"
                if not experiment and not self._authenticated:
                    return (
                        "private mode needs an authenticated discussion: accepted with curve = true or "
                        "wegman_carter = true in the lab file"
                    )
                return demands.refusal(self.floors, accounting, experiment)
            case m.Distil(block=block, rounds=rounds):
                if any(b <= a for a, b in pairwise(rounds)):
                    return f"rounds of block {block} repeat or are out of order"
                return self.blocks.take(run, block)
        return None
