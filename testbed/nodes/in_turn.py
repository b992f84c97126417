"""A node that shares its process with the coordinator and all other nodes, and takes turns with them."""

from __future__ import annotations

import time
from pathlib import Path

from testbed.core.config import Lab
from testbed.net.switchboard import Switchboard
from testbed.nodes import events as e
from testbed.nodes.daemon import NodeDaemon
from testbed.nodes.device_thread import DeviceThread, DeviceTurns


class NodeInTurn(NodeDaemon):
    """Call `begin`, then `take_turn` repeatedly, then `end`. The node has no thread and never waits for a message.

    Its device may have to wait for other devices, because a reception is complete only when all others have declared
    what they send. Meanwhile the simulated air gives the other nodes turns.
    """

    def __init__(self, lab: Lab, name: str, air: str, state_dir: Path, shared: Switchboard) -> None:
        super().__init__(lab, name, "", air, None, state_dir, shared)
        self._ticked_s = 0.0
        self._device_turns: DeviceTurns

    away_s = 0.0
    """For how long others had turns while this node's own turn was not over."""

    def _own_time_s(self) -> float:
        return time.monotonic() - self.away_s

    def _device_thread(self) -> DeviceThread | DeviceTurns:
        self._device_turns = DeviceTurns()
        return self._device_turns

    def begin(self) -> None:
        self._greet()

    @property
    def ending(self) -> e.Exit | None:
        """The status and reason with which the node has left the run; None while it takes part."""
        return self._exit

    def take_turn(self) -> bool:
        """Handle one message or one piece of device work; False if there is none. An error ends this node."""
        if self._exit is not None:
            return False
        try:
            return self._take_turn()
        except Exception as exc:
            self._give_up(exc)
            return True

    def _take_turn(self) -> bool:
        if (now_s := self._now_s()) > self._ticked_s:
            self._ticked_s = now_s
            self._take(e.Tick(now_s))
            if now_s > self._next_word_s:
                self._next_word_s = now_s + self.lab.coordinator.heartbeat_s
                self._link.say_here()
        # Only one at a time: a node that waits for this node's device must continue before the next order is begun.
        if self._thread.has_over:
            self._take_captures()
        elif self._link.waiting():
            self._from_coordinator()
        elif (public := next((x for x in self._public.values() if x.socket.waiting), None)) is not None:
            self._from_discussion(public)
        else:
            return self._device_turns.work()
        return True

    def end(self) -> None:
        self._close()
