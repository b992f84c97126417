"""No key leaves its node: every file, log, report, message, argument is searched for its bits, in every spelling.

What else a private run keeps to itself, raw bits and patterns of a surface, is searched for in `test_secret_runs`; that
the search finds what is there, in `tests/unit/test_spellings.py`.
"""

from __future__ import annotations

import json
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import spellings as sp

from testbed import config
from testbed.chain.wegman_carter import Pool
from testbed.core.config import Lab
from testbed.lab import pools, processes
from testbed.net import messages as m
from testbed.net import transport
from testbed.nodes import pool_file
from testbed.records import reader
from testbed.report import html


class Listener(threading.Thread):
    """Reads the public discussion as any node of the lab may."""

    def __init__(self, lab: Lab, endpoint: str) -> None:
        super().__init__(daemon=True)
        self.heard: list[bytes] = []
        self._over = threading.Event()
        self._wire = transport.Wire(processes.load_identity(lab, "eve"))
        self._endpoint = endpoint

    def run(self) -> None:
        ear = transport.Eavesdropper(self._wire, self._endpoint, "alice")
        while not self._over.is_set():
            if ear.socket.poll(50):
                self.heard.append(ear.socket.recv())
        ear.socket.close()

    def stop(self) -> None:
        self._over.set()
        self.join(60)
        self._wire.close()


@pytest.fixture
def cores_are_allowed() -> Iterator[None]:
    """Let new processes leave core files, as a user may have it."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.mark.usefixtures("cores_are_allowed")
@pytest.mark.parametrize("mode", ["private", "experiment"])
def test_no_key_leaves_its_node(tmp_path: Path, mode: Any, monkeypatch: Any, capfd: Any) -> None:
    plan = config.load_experiment("mobile_room")
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=450, epsilon_log2=32)
    plan = msgspec.structs.replace(plan, rounds=450, accounting=accounting, mode=mode, seed=3)
    lab = config.load_lab("sim")
    if mode == "private":  # with secrets of its own, which belong nowhere either
        lab = msgspec.structs.replace(lab, wegman_carter=True)
        text = config.find(Lab, "sim").read_text(encoding="utf-8")
        name = str(tmp_path / "tagged.toml")
        Path(name).write_text(text.replace('name = "sim"', 'name = "sim"\nwegman_carter = true'))
        pools.prepare(lab, name)
    else:
        name = "sim"
    said: list[bytes] = []
    received: list[Any] = []
    arguments: set[bytes] = set()
    cores: dict[str, str] = {}
    listeners: list[Listener] = []
    decode, encode = m.decode, m.encode

    def note_decoded(data: bytes) -> m.Envelope:
        said.append(data)
        envelope = decode(data)
        received.append(envelope.body)
        return envelope

    def note_encoded(message: Any) -> bytes:
        said.append(encode(message))
        body = getattr(message, "body", None)
        if isinstance(body, m.Configure) and not listeners:
            listeners.append(Listener(lab, body.transcript))
            listeners[0].start()
        return said[-1]

    monkeypatch.setattr(m, "decode", note_decoded)
    monkeypatch.setattr(m, "encode", note_encoded)

    def look(*_: Any) -> None:
        arguments.update(sp.arguments())
        cores.update(sp.core_limits(os.getpid()))

    pads = pool_bits(lab)
    outcome = processes.run(plan, lab, name, tmp_path / "run", look, lambda *_: look())
    listeners[0].stop()
    html.make(outcome.folder)
    assert outcome.summary["keys_verified"] == 1
    kind = "keys" if mode == "private" else "rehearsals"
    keys = []
    for node in ("alice", "bob"):
        (path,) = (tmp_path / "state" / "sim" / node / kind).rglob("*.key")
        told = json.loads(path.read_text())
        keys.append(np.unpackbits(np.frombuffer(bytes.fromhex(told["hex"]), np.uint8), count=told["bits"]))
    assert np.array_equal(*keys)
    assert keys[0].size >= 128
    printed = capfd.readouterr()
    places = {
        "messages": b"\n".join(said), "discussion": b"\n".join(listeners[0].heard), "arguments": b"\n".join(arguments),
        "printed": (printed.out + printed.err).encode(),
    }  # fmt: skip
    places |= dict(sp.files(tmp_path))
    assert len(listeners[0].heard) > 5
    assert cores == dict.fromkeys(("alice", "bob", "eve"), "0")  # a process that is aborted writes no file either
    assert any(name.endswith("report.html") for name in places)
    assert any(name.endswith("alice.log") for name in places)
    assert sp.leaks(places.items(), {"key": sp.wanted(keys[0])}) == set()
    places = {name: content for name, content in places.items() if not name.endswith(pool_file.NAME)}
    assert sp.leaks(places.items(), {f"pads {n}": sp.wanted(bits) for n, bits in enumerate(pads)}) == set()
    assert len(pads) == (2 if mode == "private" else 0)
    if mode == "private":
        assert outcome.summary["authentication"] == {
            "by": ["curve", "wegman_carter"], "spent_bits": 256, "refill_bits": 256,
            "hashed_bits": outcome.summary["key_bits"] + 256,
        }  # fmt: skip
        left = [pools.of(lab, node) for node in ("alice", "bob")]
        assert left[0] is not None
        assert left[1] is not None
        assert left[0].dump() == left[1].dump()  # both in step
        assert left[0].pairs == 256
        refill = left[0].take(left[0].offer()[0][0], 0)
        assert sp.leaks(places.items(), {"refill": sp.wanted(np.unpackbits(np.frombuffer(refill, np.uint8)))}) == set()
    if mode == "private":
        assert_nothing_of_the_channel(received, outcome.folder)


def pool_bits(lab: Lab) -> list[np.ndarray[Any, Any]]:
    """Return the first pads of Alice's pool, which the run uses, and later ones; none where there is no pool."""
    pool = pools.of(lab, "alice") if lab.wegman_carter else None
    if pool is None:
        return []
    copy = Pool.load(pool.dump())
    ((name, _, _),) = copy.offer()
    return [np.unpackbits(np.frombuffer(copy.take(name, n), np.uint8)) for n in (0, 9)]


def assert_nothing_of_the_channel(received: list[Any], folder: Path) -> None:
    """What nodes tell in private mode: no CSI, no raw bits, no guesses, no digests of keys, no levels of patterns."""
    for body in received:
        match body:
            case m.Probed(rounds=rounds):
                links = [x for r in rounds for x in r.links]
                assert all(x.csi is None and (x.snr_db, x.cfo_hz, x.rssi_dbfs) == (0, 0, 0) for x in links)
            case m.Agreed():
                assert body.raw_bits is None
            case m.Attacked():
                assert body.guess is None
            case m.Amplified():
                assert (body.digest, body.p_values) == (None, {})
            case m.Applied():
                assert body.levels is None
    kinds = {type(body) for body in received}
    assert {m.Probed, m.Agreed, m.Amplified} <= kinds
    run = reader.load(folder)
    assert not run.bits
    assert not run.patterns
    assert all(link.csi is None for link in run.links.values())
