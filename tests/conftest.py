"""What holds for all tests."""

from __future__ import annotations

import zmq

# Let the collector drop a ZeroMQ context that a test forgot without closing it. Of a context and a socket that are
# collected together, the context may not find the socket any more and then waits for it without end, in whichever later
# test the collector happens to run. This holds to the end of the process, because pytest collects once more after the
# last test, where no limit of time holds.
zmq.Context.__del__ = lambda self: None  # type: ignore[method-assign]
