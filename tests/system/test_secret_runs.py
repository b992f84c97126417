"""Private runs of a file: no pattern of the surface anywhere but on the board, and nothing in common from run to run.

The processes of a run are overheard from inside: a module that Python loads at their start writes down what the board's
node drew, what was quantized, and every message that is sent.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest

from testbed import config
from testbed.coordinator.server import Outcome
from testbed.core.types import SurfacePattern
from testbed.lab import processes
from testbed.net import messages
from testbed.records import reader

ROUNDS = 110
TAP = """
import os
from pathlib import Path

folder = Path(os.environ["TESTBED_TEST_TAP"])

def keep(kind, data):
    with open(folder / f"{kind}-{os.getpid()}", "ab") as file:
        file.write(data)

from testbed.net import messages
from testbed.nodes import key_maker, secret_surface

encode, draw = messages.encode, secret_surface.SecretSurface.pattern_for
report = key_maker.KeyMaker._report_agreement

def heard(message):
    data = encode(message)
    keep("wire", data)
    return data

def drawn(self, round):
    pattern = draw(self, round)
    keep("patterns", pattern.levels.tobytes())
    keep("shape", repr(pattern.levels.shape).encode() + b"\\n")
    return pattern

def agreed(self, agreed, failure):
    if agreed is not None and agreed.raw is not None:
        keep("raw-" + self._side, agreed.raw.values.tobytes())
    return report(self, agreed, failure)

messages.encode = heard
secret_surface.SecretSurface.pattern_for = drawn
key_maker.KeyMaker._report_agreement = agreed
"""


class Run:
    """A private run of static_room, its board small enough for a short block, and what was overheard of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.tap = folder / "tap"
        site = folder / "site"
        for path in (self.tap, site):
            path.mkdir(parents=True)
        (site / "sitecustomize.py").write_text(TAP)
        plan = config.load_experiment("static_room")
        accounting = msgspec.structs.replace(plan.accounting, block_rounds=ROUNDS, epsilon_log2=32)
        plan = msgspec.structs.replace(plan, mode="private", rounds=ROUNDS, accounting=accounting)
        own = messages.encode

        def heard(message: Any) -> bytes:
            data = own(message)
            with open(self.tap / "wire-coordinator", "ab") as file:
                file.write(data)
            return data

        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(Path(__file__).parents[2])]))
            patch.setenv("TESTBED_TEST_TAP", str(self.tap))
            patch.setenv("TESTBED_STATE", str(folder / "state"))
            patch.setattr(messages, "encode", heard)
            self.outcome: Outcome = processes.run(plan, config.load_lab("sim"), "sim", folder / "run")

    @property
    def patterns(self) -> np.ndarray[Any, Any]:
        """(drawn, element) levels."""
        (file,) = self.tap.glob("patterns-*")
        (shapes,) = self.tap.glob("shape-*")
        rows, columns = json.loads(shapes.read_text().splitlines()[0].replace("(", "[").replace(")", "]"))
        self.shape = (rows, columns)
        return np.unique(np.frombuffer(file.read_bytes(), np.uint8).reshape(-1, rows * columns), axis=0)

    def raw(self, side: str) -> np.ndarray[Any, Any]:
        (file,) = self.tap.glob(f"raw-{side}-*")
        return np.frombuffer(file.read_bytes(), np.uint8)

    def texts(self) -> Iterator[tuple[str, bytes]]:
        """Yield every file that is left of the run, compressed parts unpacked, and every message."""
        for where in (self.outcome.folder, self.folder / "state", self.tap):
            for path in sorted(p for p in where.rglob("*") if p.is_file()):
                if path.parent == self.tap and not path.name.startswith("wire"):
                    continue
                yield str(path.relative_to(self.folder)), path.read_bytes()
                if path.suffix == ".h5":
                    yield str(path.relative_to(self.folder)), unpacked(path)


def unpacked(path: Path) -> bytes:
    parts: list[bytes] = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "iufb":
            parts.append(np.ascontiguousarray(item[...]).tobytes())

    with h5py.File(path) as file:
        file.visititems(visit)
    return b"|".join(parts)


def spellings(levels: np.ndarray[Any, Any], shape: tuple[int, int]) -> dict[str, bytes]:
    """Return how a pattern may stand in a file: all of it where it is short, a good piece of it where it is long."""
    piece, packed = levels[:64].tobytes(), np.packbits(levels[:128]).tobytes()
    text = [str(v) for v in levels[:48].tolist()]
    digest = SurfacePattern(levels.reshape(shape), 1).digest
    out = {
        "raw": piece,
        "hex": piece.hex().encode(),
        "packed": packed,
        "packed hex": packed.hex().encode(),
        "packed the other way": np.packbits(levels[:128], bitorder="little").tobytes(),
        "digits": "".join(text).encode(),
        "list": ", ".join(text).encode(),
        "short list": ",".join(text).encode(),
        "digest": digest.encode(),
    }
    for name, data in (("base64", piece), ("packed base64", packed)):
        for skipped in range(3):  # wherever it begins in what was encoded
            out[f"{name} {skipped}"] = base64.b64encode(data[skipped : len(data) - (len(data) - skipped) % 3])
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Run]]:
    """Two private runs of one file."""
    with pytest.MonkeyPatch.context() as patch:
        yield [Run(tmp_path_factory.mktemp(name), patch) for name in ("one", "two")]


def test_a_private_run_has_its_patterns_nowhere_but_on_the_board(runs: list[Run]) -> None:
    run = runs[0]
    assert (run.outcome.status, run.outcome.detail) == ("finished", f"{ROUNDS} rounds")
    assert run.outcome.summary["pairs_kept"] > 100
    drawn = run.patterns
    assert drawn.shape[0] > 100
    texts = list(run.texts())
    assert sum(name.startswith("tap/wire") for name, _ in texts) >= 4  # coordinator, alice, bob, the board's node
    wanted = [spelling for levels in drawn for spelling in spellings(levels, run.shape).items()]
    found = {(how, name) for name, text in texts for how, spelling in wanted if spelling in text}
    assert found == set()
    # what stands there instead
    everything = b"".join(text for _, text in texts)
    assert everything.count(b"state-") > 100
    recorded = reader.load(run.outcome.folder)
    assert recorded.patterns == {}


def test_the_search_finds_a_pattern_that_is_there() -> None:
    levels = np.random.default_rng(1).integers(0, 2, 256).astype(np.uint8)
    wanted = spellings(levels, (16, 16))
    assert len(wanted) == 15
    files = {
        "raw": b"head" + levels.tobytes(),
        "hex": levels.tobytes().hex().encode(),
        "packed": b"x" + np.packbits(levels).tobytes(),
        "packed hex": np.packbits(levels).tobytes().hex().encode(),
        "packed the other way": np.packbits(levels, bitorder="little").tobytes(),
        "digits": "".join(map(str, levels.tolist())).encode(),
        "list": json.dumps({"levels": levels.tolist()}).encode(),
        "short list": msgspec.json.encode({"levels": levels.tolist()}),
        "digest": json.dumps(SurfacePattern(levels.reshape(16, 16), 1).digest).encode(),
    }
    for how, text in files.items():
        assert wanted[how] in text, how
    for name, data in (("base64", levels.tobytes()), ("packed base64", np.packbits(levels).tobytes())):
        for head in range(3):
            text = base64.b64encode(b"h" * head + data)
            assert any(wanted[f"{name} {skipped}"] in text for skipped in range(3)), (name, head)


def test_two_private_runs_of_one_file_have_no_key_material_in_common(runs: list[Run]) -> None:
    one, two = runs
    both = np.concatenate([one.patterns, two.patterns])
    assert np.unique(both, axis=0).shape[0] == both.shape[0]
    a, b = one.raw("alice"), two.raw("alice")
    n = min(a.size, b.size)
    assert n > 300
    assert 0.4 < np.mean(a[:n] != b[:n]) < 0.6
    # the ends of one run, for comparison, nearly agree
    assert np.mean(one.raw("alice") != one.raw("bob")) < 0.15
    keys = [{p.read_text() for p in (r.folder / "state").rglob("*.key")} for r in runs]
    assert not keys[0] & keys[1]


def test_private_runs_say_nothing_of_what_alice_judged(runs: list[Run]) -> None:
    for run in runs:
        assert run.outcome.summary["secrecy"] is None
        assert run.outcome.summary["min_entropy_per_bit"] is None
        assert run.outcome.summary["keys_reproducible"] == 0
        for block in reader.load(run.outcome.folder).blocks:
            for report in block.key.values():
                assert report == report.public()
