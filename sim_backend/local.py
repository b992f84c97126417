"""A World in a thread of this process: for tests and notebooks. A lab runs it as a process (`server.SimWorld`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sim_backend.server import SimWorld, serve
from testbed.core.config import RadioPlan, Scene


@contextmanager
def world_in_thread(
    scene: Scene | None,
    seed: int = 1,
    pace: str = "virtual",
    peer_timeout_s: float = 2.0,
    radio: RadioPlan | None = None,
) -> Iterator[str]:
    """Serve on a free loopback port until the block is left; yields the endpoint. `scene` None: a client sets it."""
    stop, ready = threading.Event(), threading.Event()
    endpoints: list[str] = []

    def note(endpoint: str) -> None:
        endpoints.append(endpoint)
        ready.set()

    thread = threading.Thread(target=serve, args=("tcp://127.0.0.1:0", None, pace, peer_timeout_s, note, stop))
    thread.start()
    try:
        if not ready.wait(5.0):
            raise RuntimeError("the world did not start within 5 s")
        if scene is not None:
            SimWorld.reset(endpoints[0], None, scene, radio or RadioPlan(), seed, timeout_s=5.0)
        yield endpoints[0]
    finally:
        stop.set()
        thread.join()
