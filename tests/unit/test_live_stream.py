"""CSI for other programs: every probe of a running run, bit for bit, and an end message."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from testbed.core.errors import InputError
from testbed.live import stream
from testbed.records import documents
from testbed.records.writer import RunWriter


def a_run(folder: Path) -> RunWriter:
    lab = {"node": {n: {"role": n} for n in ("alice", "bob")}}
    return RunWriter(folder, documents.start({"title": "t"}, lab, subcarrier_hz=[0.0, 1e5]))


def csi(r: int) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(r).normal(size=(2, 1, 2, 2)) @ [1, 1j]).astype(np.complex64)


def test_every_probe_arrives_as_it_was_measured(tmp_path: Path) -> None:
    w = a_run(tmp_path / "run")
    where = f"ipc://{tmp_path}/csi"
    bound, told = threading.Event(), []
    publisher = threading.Thread(
        target=lambda: told.append(stream.publish(tmp_path / "run", where, lambda _: bound.set()))
    )
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.RCVTIMEO, 30_000)
        socket.connect(where)
        socket.subscribe("")
        publisher.start()
        assert bound.wait(120)
        # a subscription takes a moment to arrive: rounds are written until one has been received
        first, written = None, 0
        while first is None:
            w.probe(written, "bob", "alice>bob", 0.0, 20.0, 5.0, -30.0, "d", csi(written))
            w.flush()
            written += 1
            if socket.poll(200):
                first = socket.recv_multipart()
        for r in range(written, written + 5):
            w.probe(r, "bob", "alice>bob", 0.0, 20.0, 5.0, -30.0, "d", None if r == written + 1 else csi(r))
        w.close(documents.stop("ok"), {})
        heard = [first]
        while heard[-1][0] != b"end":
            heard.append(socket.recv_multipart())
    publisher.join(30)
    assert told == [json.loads(heard[-1][1])["probes"]]
    rounds = []
    for topic, head, values in heard[:-1]:
        probe = json.loads(head)
        rounds.append(probe["round"])
        assert (topic, probe["link"], probe["snr_db"], probe["cfo_hz"]) == (b"alice>bob", "alice>bob", 20.0, 5.0)
        assert (probe["surface"], probe["subcarrier_hz"], probe["run"]) == ("d", [0.0, 1e5], w.start.uid)
        if probe["shape"] is None:
            assert values == b""
            continue
        h = np.frombuffer(values, probe["dtype"]).reshape(probe["shape"])
        np.testing.assert_array_equal(h, csi(probe["round"]))
    assert rounds == list(range(rounds[0], written + 5)), "nothing is missed, nor what came last"


def test_rows_written_while_the_run_closes_are_passed_on_too(tmp_path: Path) -> None:
    w = a_run(tmp_path / "run")
    w.probe(0, "bob", "alice>bob", 0.0, 20.0, 5.0, -30.0, "d", csi(0))
    w.probe(0, "alice", "bob>alice", 0.0, 20.0, 5.0, -30.0, "d", csi(100))
    w.flush()
    heard: list[Any] = []

    def send(message: list[bytes]) -> None:
        heard.append((json.loads(message[1]), message[2]))
        if len(heard) == 1:  # the run goes on and ends before the next look
            w.probe(1, "bob", "alice>bob", 0.0, float("nan"), 5.0, -30.0, "d", None)
            w.probe(2, "bob", "alice>bob", 0.0, 20.0, 5.0, -30.0, "d", csi(2))
            w.close(documents.stop("ok"), {})

    assert stream._follow(tmp_path / "run", send) == 4
    told = [(head["link"], head["round"]) for head, _ in heard]
    assert told == [("alice>bob", 0), ("bob>alice", 0), ("alice>bob", 1), ("alice>bob", 2)]
    assert (heard[2][0]["snr_db"], heard[2][0]["shape"], heard[2][1]) == (None, None, b"")
    assert heard[3][1] == csi(2).tobytes()


def test_it_stays_on_this_machine_and_needs_a_run_that_goes(tmp_path: Path) -> None:
    w = a_run(tmp_path / "run")
    for endpoint in ("tcp://0.0.0.0:5570", "tcp://*:5570", "udp://127.0.0.1:1"):
        with pytest.raises(InputError, match="accepted: tcp://127"):
            stream.publish(tmp_path / "run", endpoint)
    w.close(documents.stop("ok"), {})
    with pytest.raises(InputError, match="contains no run that is going on"):
        stream.publish(tmp_path / "run", "tcp://127.0.0.1:0")
