"""What holds for all tests."""

from __future__ import annotations

import pytest
import zmq


@pytest.fixture(scope="session", autouse=True)
def forgotten_contexts_end_nothing():
    """Let the collector drop a ZeroMQ context that a test forgot without closing it.

    Of a context and a socket that are collected together, the context may not find the socket any more and then waits
    for it without end, in whichever later test the collector happens to run.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zmq.Context, "__del__", lambda self: None)
        yield
