"""Private runs of a file: no pattern of the surface anywhere but on the board, and nothing in common from run to run.

The processes of a run are overheard from inside: a module that Python loads at their start writes down what the board's
node drew, what was quantized, and every message that is sent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import spellings as sp

from testbed import config
from testbed.coordinator.server import Outcome
from testbed.core.types import SurfacePattern
from testbed.lab import processes
from testbed.net import messages
from testbed.records import reader
from testbed.report import html

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
        keep("string-" + self._side, agreed.values.tobytes())
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
            self.arguments: set[bytes] = set()

            def look(*_: Any) -> None:
                if not self.arguments:
                    self.arguments = sp.arguments()

            self.outcome: Outcome = processes.run(plan, config.load_lab("sim"), "sim", folder / "run", look)

    @property
    def patterns(self) -> np.ndarray[Any, Any]:
        """(drawn, element) levels."""
        (file,) = self.tap.glob("patterns-*")
        (shapes,) = self.tap.glob("shape-*")
        rows, columns = json.loads(shapes.read_text().splitlines()[0].replace("(", "[").replace(")", "]"))
        self.shape = (rows, columns)
        return np.unique(np.frombuffer(file.read_bytes(), np.uint8).reshape(-1, rows * columns), axis=0)

    def bits(self, kind: str, side: str) -> np.ndarray[Any, Any]:
        """(bit,) raw bits, or the string that was verified, of one side."""
        (file,) = self.tap.glob(f"{kind}-{side}-*")
        return np.frombuffer(file.read_bytes(), np.uint8)

    @cached_property
    def texts(self) -> list[tuple[str, bytes]]:
        """Every file that is left of the run, compressed parts unpacked, every message, and all arguments."""
        found = [("arguments", b"|".join(self.arguments))]
        html.make(self.outcome.folder)
        for name, text in sp.files(self.outcome.folder, self.folder / "state", self.tap):
            place = name.removeprefix(f"{self.folder}/")
            if not place.startswith("tap/") or place.startswith("tap/wire"):
                found.append((place, text))
        return found


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
    texts = run.texts
    assert sum(name.startswith("tap/wire") for name, _ in texts) >= 4  # coordinator, alice, bob, the board's node
    patterns = {f"pattern {n}": sp.usual(levels) for n, levels in enumerate(drawn)}
    patterns |= {f"pattern {n}, every way": sp.wanted(levels) for n, levels in enumerate(drawn[:2])}
    patterns |= {
        f"name of pattern {n}": {"digest": SurfacePattern(levels.reshape(run.shape), 1).digest.encode()}
        for n, levels in enumerate(drawn)
    }
    assert {name.split("/")[0] for name, _ in texts} >= {"run", "state", "tap", "arguments"}
    assert any(name.endswith("report.html") for name, _ in texts)
    assert sp.leaks(texts, patterns) == set()
    # what stands there instead
    everything = b"".join(text for _, text in texts)
    assert everything.count(b"state-") > 100
    recorded = reader.load(run.outcome.folder)
    assert recorded.patterns == {}


def test_a_private_run_has_its_raw_bits_nowhere_but_at_its_ends(runs: list[Run]) -> None:
    """What was quantized at either end, and the string that was left of it without the sacrificed bits."""
    run = runs[0]
    texts, secrets = run.texts, {}
    for side in ("alice", "bob"):
        for kind in ("raw", "string"):
            bits = run.bits(kind, side)
            assert bits.size > 300
            secrets |= {f"{kind} of {side} from {start}": sp.wanted(bits[start:]) for start in (0, bits.size // 2)}
    assert sp.leaks(texts, secrets) == set()
    leaked = [*texts, ("planted", b"x" + np.packbits(run.bits("string", "bob")).tobytes())]
    assert {place for place, _, _ in sp.leaks(leaked, secrets)} == {"planted"}


def test_two_private_runs_of_one_file_have_no_key_material_in_common(runs: list[Run]) -> None:
    one, two = runs
    both = np.concatenate([one.patterns, two.patterns])
    assert np.unique(both, axis=0).shape[0] == both.shape[0]
    a, b = one.bits("raw", "alice"), two.bits("raw", "alice")
    n = min(a.size, b.size)
    assert n > 300
    assert 0.4 < np.mean(a[:n] != b[:n]) < 0.6
    # the ends of one run, for comparison, nearly agree
    assert np.mean(one.bits("raw", "alice") != one.bits("raw", "bob")) < 0.15
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
