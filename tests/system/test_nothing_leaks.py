"""No key leaves its node: every file, log, report, message, argument is searched for its bits, in every spelling."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from testbed import config
from testbed.core.config import Lab
from testbed.lab import processes
from testbed.net import messages as m
from testbed.net import transport
from testbed.records import reader
from testbed.report import html


def spellings(bits: np.ndarray) -> dict[str, bytes]:
    """Return what a stretch of 128 bits of a key looks like, by encoding; long enough never to be met by chance."""
    bits = bits[:128].astype(np.uint8)
    packed = np.packbits(bits).tobytes()
    number = int.from_bytes(packed, "big")
    out = {
        "bytes": packed,
        "bytes, last bit first": np.packbits(bits, bitorder="little").tobytes(),
        "bytes backwards": packed[::-1],
        "bytes inverted": bytes(255 - b for b in packed),
        "a byte a bit": bits.tobytes(),
        "hex": packed.hex().encode(),
        "HEX": packed.hex().upper().encode(),
        "hex, parted": packed.hex(" ").encode(),
        "hex, colons": packed.hex(":").encode(),
        "digits": "".join(map(str, bits)).encode(),
        "list": ", ".join(map(str, bits)).encode(),
        "JSON list": ",".join(map(str, bits)).encode(),
        "JSON list of bytes": ",".join(map(str, packed)).encode(),
        "decimal": str(number).encode(),
        "decimal, backwards": str(int.from_bytes(packed, "little")).encode(),
        "base85": base64.b85encode(packed),
        "ascii85": base64.a85encode(packed),
        "base32": base64.b32encode(packed).rstrip(b"=")[:-1],
        "repr": repr(packed)[2:-1].encode(),
        "floats": ", ".join(f"{b}.0" for b in bits).encode(),
        "numpy": bits.astype("<f8").tobytes(),
        "int32": bits.astype("<i4").tobytes(),
        "int64": bits.astype("<i8").tobytes(),
    }
    for shift in range(3):  # wherever in a longer text it begins
        text = base64.b64encode(bytes(shift) + packed)[4 if shift else 0 : -4]
        out[f"base64 + {shift}"] = text[1:]
        out[f"base64url + {shift}"] = text[1:].replace(b"+", b"-").replace(b"/", b"_")
    return out


def found(where: bytes, bits: np.ndarray) -> list[str]:
    return [name for name, text in spellings(bits).items() if text in where]


def test_every_spelling_is_noticed() -> None:
    """A search that finds nothing must be one that would."""
    bits = np.random.default_rng(1).integers(0, 2, 256)
    names = spellings(bits)
    assert len(names) >= 10
    for name, text in names.items():
        assert len(text) >= 15
        assert name in found(b"before" + text + b"after", bits)
    assert "base64 + 1" in found(base64.b64encode(b"x" + np.packbits(bits).tobytes()), bits)
    assert not found(b"".join(names.values())[::-1], np.random.default_rng(2).integers(0, 2, 256))


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
        self.join(10)
        self._wire.close()


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".key":
            yield str(path), path.read_bytes()


@pytest.mark.parametrize("mode", ["private", "experiment"])
def test_no_key_leaves_its_node(tmp_path: Path, mode: Any, monkeypatch: Any, capfd: Any) -> None:
    plan = config.load_experiment("mobile_room")
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=450, epsilon_log2=32)
    plan = msgspec.structs.replace(plan, rounds=450, accounting=accounting, mode=mode, seed=3)
    lab = config.load_lab("sim")
    said: list[bytes] = []
    received: list[Any] = []
    arguments: set[bytes] = set()
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
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                arguments.add(path.read_bytes())
            except OSError:
                continue

    outcome = processes.run(plan, lab, "sim", tmp_path / "run", look, lambda *_: look())
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
        "printed": (printed.out + printed.err).encode(), **dict(everything(tmp_path)),
    }  # fmt: skip
    assert len(listeners[0].heard) > 5
    assert any(name.endswith("report.html") for name in places)
    assert any(name.endswith("alice.log") for name in places)
    for name, content in places.items():
        for start in (0, keys[0].size - 128):
            assert not found(content, keys[0][start:]), name
    if mode == "private":
        assert_nothing_of_the_channel(received, outcome.folder)


def assert_nothing_of_the_channel(received: list[Any], folder: Path) -> None:
    """What nodes tell in private mode: no CSI, no raw bits, no guesses, no digests of keys, no levels of patterns."""
    for body in received:
        match body:
            case m.Probed(links=links):
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
