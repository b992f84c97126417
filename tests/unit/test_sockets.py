"""The end of a ZeroMQ context takes a limited time, and no run leaves one open."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import zmq

from sim_backend.local import world_in_thread
from sim_backend.server import SimWorld
from testbed.core import identity
from testbed.core.sockets import end_context
from testbed.net import transport


class Forgotten(zmq.Context):
    """A context that does not know of one of its sockets, as where another thread opens one meanwhile."""

    def _add_socket(self, socket: object) -> None:
        """Forget it."""


def contexts() -> set[int]:
    """Return the contexts of this process that are open."""
    gc.collect()
    return {id(x) for x in gc.get_objects() if isinstance(x, zmq.Context) and not x.closed}


def test_a_context_with_an_open_socket_costs_its_process_a_limited_time(caplog: pytest.LogCaptureFixture) -> None:
    context = Forgotten()
    held = context.socket(zmq.DEALER)
    assert not end_context(context, linger_ms=0, within_s=0.05)
    assert "did not end within 0.05 s: a socket of it is still open" in caplog.text
    held.close(0)


def test_unsent_messages_hold_nothing_up() -> None:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect("tcp://127.0.0.1:9")
    socket.send(b"nobody is there")
    assert end_context(context, linger_ms=0)
    assert (socket.closed, context.closed) == (True, True)


def test_an_authenticator_that_does_not_start_leaves_no_context_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contexts()
    identity.make(tmp_path, "bob")

    def fails(context: zmq.Context, who: object) -> None:
        context.socket(zmq.REP)
        raise RuntimeError("Authenticator thread failed to start")

    monkeypatch.setattr(transport, "start_authenticator", fails)
    with pytest.raises(RuntimeError, match="failed to start"):
        transport.Wire(identity.load(tmp_path, "bob", []))
    assert contexts() <= before


def test_what_lets_the_time_of_an_air_pass_is_closed_in_the_end() -> None:
    with world_in_thread(None) as endpoint:
        before = contexts()
        with SimWorld.pacer(endpoint, None) as let_pass:
            let_pass(0.25)
            assert len(contexts() - before) == 1
        assert contexts() <= before
