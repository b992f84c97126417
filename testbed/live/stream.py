"""A run's CSI for other programs, as it is measured: a ZeroMQ PUB socket on this machine.

A message is three parts: the link ("alice>bob", to subscribe by), a JSON object (run, link, round, snr_db, cfo_hz,
surface, shape, dtype, subcarrier_hz), and the values, little-endian complex64 in the order of `shape` (rx antenna, tx
antenna, subcarrier); the values are empty where a probe was rejected. The last message of a run has the topic "end".
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from testbed.core.errors import InputError
from testbed.live.feed import probe_rows
from testbed.records import files, reader
from testbed.records.documents import Start
from testbed.records.journal import JournalTail

PERIOD_S = 0.1
"""Time between two reads of the journal, which is written in batches of half a second."""
MOST_QUEUED = 10_000
"""Number of messages that are kept for a program that reads slowly; it misses further ones. The run never waits."""


def message(row: tuple[Any, ...], start: Start | None) -> list[bytes]:
    """Return the message for a row of `Grown.probes`."""
    round, link, snr_db, cfo_hz, surface, *shape, csi = row
    head: dict[str, Any] = {"link": link, "round": round, "snr_db": snr_db, "cfo_hz": cfo_hz, "surface": surface}
    head |= {"shape": None if csi is None else shape, "dtype": "<c8"}
    if start is not None:
        head |= {"run": start.uid, "subcarrier_hz": start.subcarrier_hz}
    return [link.encode(), json.dumps(head).encode(), csi or b""]


def publish(folder: Path, endpoint: str, ready: Callable[[str], None] = lambda _: None) -> int:
    """Publish a run that is going on, until it is over; returns the number of probes. `ready` receives the endpoint.

    Raises InputError where the folder holds no live run, or for an endpoint that is not on this machine.
    """
    import zmq

    if not (folder / files.JOURNAL).exists():
        hint = files.newest_inside(folder)
        raise InputError(f"{folder}: contains no run that is going on; testbed.open reads one that has ended{hint}")
    if not endpoint.startswith(("tcp://127.0.0.1:", "ipc://")):
        raise InputError(
            f"{endpoint}: CSI makes keys, so it stays on this machine; accepted: tcp://127.0.0.1:PORT or ipc://PATH"
        )
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.setsockopt(zmq.SNDHWM, MOST_QUEUED)
        socket.setsockopt(zmq.LINGER, 2000)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as exc:
            raise InputError(f"{endpoint}: {exc.strerror}; accepted: an endpoint that is free") from exc
        ready(socket.getsockopt_string(zmq.LAST_ENDPOINT))
        told = _follow(folder, socket.send_multipart)
        socket.send_multipart([b"end", json.dumps({"probes": told}).encode(), b""])
        return told


def _follow(folder: Path, send: Callable[[list[bytes]], Any]) -> int:
    tail, start = JournalTail(folder), None
    told: Counter[str] = Counter()
    while True:
        held = files.held(folder)  # before the journal is read, so that the last rows of a process are not missed
        grown = tail.read()
        if grown is None:
            break
        for kind, body in grown.documents:
            if kind == "start":
                start = msgspec.json.decode(body, type=Start)
        for row in grown.probes:
            send(message(row, start))
            told[row[1]] += 1
        if not held and not grown.probes:
            return told.total()
        time.sleep(PERIOD_S)
    # The run was closed between two reads: the other probes are in its lasting files.
    run = reader.load(folder)
    seen: Counter[str] = Counter()
    for row in probe_rows(run):
        seen[row[1]] += 1
        if seen[row[1]] > told[row[1]]:
            send(message(_plain(row), run.start))
    return seen.total()


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row with None in place of NaN, and None for CSI of NaN, as in the journal."""
    *head, csi = (None if isinstance(value, float) and math.isnan(value) else value for value in row)
    nothing = csi is not None and np.isnan(np.frombuffer(csi, "<c8")).all()
    return (*head, None if nothing else csi)
