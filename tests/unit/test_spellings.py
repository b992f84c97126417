"""The search for secrets finds what is there: a leak is planted in every kind of place, in every encoding."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import subprocess
import sys
from pathlib import Path

import h5py
import msgspec
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "system"))
import spellings as sp

BITS = np.random.default_rng(1).integers(0, 2, 400).astype(np.uint8)
PACKED = np.packbits(BITS).tobytes()
SECRET = {"the key": sp.wanted(BITS)}


def found(text: bytes) -> set[str]:
    return {how for _, _, how in sp.leaks([("here", text)], SECRET)}


def test_there_are_many_encodings_and_each_is_found_where_it_stands() -> None:
    names = sp.spellings(BITS)
    assert len(names) > 100
    for name, text in names.items():
        assert len(text) >= 15, name
        assert name in found(b"before" + text + b"after"), name


def test_nothing_is_found_where_nothing_is() -> None:
    other = np.random.default_rng(2).integers(0, 2, 400).astype(np.uint8)
    noise = b"".join(sp.wanted(other).values()) + bytes(5000) + b"0, 0, 0, 1" * 500 + b"\1" * 500
    assert found(noise) == set()


LEAKS: dict[str, bytes] = {
    "raw bytes": PACKED,
    "packed, last bit first": np.packbits(BITS, bitorder="little").tobytes(),
    "a byte a bit": BITS.tobytes(),
    "hex": PACKED.hex().encode(),
    "upper hex": PACKED.hex().upper().encode(),
    "base64": b"a" + base64.b64encode(PACKED),
    "base64 in the middle of something": base64.b64encode(b"xy" + PACKED + b"z"),
    "base64url": base64.urlsafe_b64encode(b"x" + PACKED),
    "a decimal list": str(list(PACKED)).encode(),
    "a JSON list": json.dumps({"bits": BITS.tolist()}).encode(),
    "a tight JSON list": msgspec.json.encode(BITS.tolist()),
    "msgpack": msgspec.msgpack.encode({"bits": BITS.tolist(), "x": PACKED}),
    "Python's repr": repr(PACKED).encode(),
    "a repr of a list": repr(BITS.tolist()).encode(),
    "npy": sp.as_npy(BITS),
    "npy of int64": sp.as_npy(BITS.astype(np.int64)),
    "npy of float64": sp.as_npy(BITS.astype(float)),
    "npy of bool": sp.as_npy(BITS.astype(bool)),
    "npy of packed bits": sp.as_npy(np.packbits(BITS)),
    "reversed": BITS[::-1].tobytes(),
    "reversed and packed": np.packbits(BITS[:128][::-1]).tobytes(),
    "bytes reversed": PACKED[:16][::-1],
    "the complement": (1 - BITS).tobytes(),
    "the complement, packed": bytes(255 - b for b in PACKED),
    "the complement in hex": bytes(255 - b for b in PACKED).hex().encode(),
    "the end only": np.packbits(BITS[-128:]).tobytes(),
    "packed from the fourth bit": np.packbits(BITS[3:]).tobytes(),
    "digits": "".join(map(str, BITS)).encode(),
    "numpy's print": np.array2string(BITS, max_line_width=10_000, threshold=10_000).encode(),
}


@pytest.mark.parametrize("how", LEAKS)
def test_a_planted_leak_is_found_in_a_file_a_log_a_record_a_message_and_an_argument(how: str, tmp_path: Path) -> None:
    leak = LEAKS[how]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"header" + leak)
    assert {place for place, _, _ in sp.leaks(sp.files(tmp_path), SECRET)} == {str(tmp_path / "sub" / "file")}
    assert found(msgspec.msgpack.encode({"type": "agreed", "raw_bits": leak}))
    if leak.isascii():
        handler = logging.FileHandler(tmp_path / "node.log")
        logging.getLogger("planted").addHandler(handler)
        logging.getLogger("planted").warning("bits %s", leak.decode())
        handler.close()
        logging.getLogger("planted").removeHandler(handler)
        assert str(tmp_path / "node.log") in {place for place, _, _ in sp.leaks(sp.files(tmp_path), SECRET)}


def test_leaks_in_compressed_records_pages_and_arguments_are_found(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "rounds.h5", "w") as file:
        file.create_dataset("bits/0/alice/raw", data=BITS, compression="gzip")
        file.create_dataset("other", data=np.zeros(5))
    page = base64.b64encode(gzip.compress(BITS.tobytes()))
    (tmp_path / "report.html").write_bytes(b'<img src="data:x;base64,' + page + b'">')
    places = {place for place, _, _ in sp.leaks(sp.files(tmp_path), SECRET)}
    assert places == {f"{tmp_path / name}, unpacked" for name in ("rounds.h5", "report.html")}
    wait = "import sys; print('here', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", wait, PACKED.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"here\n"
            assert sp.leaks([("arguments", b"\n".join(sp.arguments()))], SECRET)
        finally:
            process.kill()


def test_files_that_may_hold_keys_are_left_out_and_no_others(tmp_path: Path) -> None:
    for name in ("a.key", "b.keys", "key"):
        (tmp_path / name).write_bytes(PACKED)
    found_in = {Path(place).name for place, _, _ in sp.leaks(sp.files(tmp_path), SECRET)}
    assert found_in == {"b.keys", "key"}
