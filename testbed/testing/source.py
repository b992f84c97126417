"""The contract of a data source (`replay.sources`)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from testbed.core import registry
from testbed.core.errors import InputError
from testbed.core.types import CsiSeries
from testbed.replay.sources import Cut, Recording, checked
from testbed.testing._suite import Suite, check


@dataclass
class SourceBench:
    """The objects that the source suite needs."""

    source: Any
    """The module, or object."""
    path: Path
    """A recording that this source reads."""
    empty: Path
    """An empty folder, in which nothing is a recording."""


def check_source(make: Callable[[], AbstractContextManager[SourceBench]]) -> None:
    """Raise AssertionError unless the sources of the benches that `make` opens keep the contract."""
    check(SourceSuite, make)


class SourceSuite(Suite):
    """`make()` opens a `SourceBench`."""

    contract = "data source"

    def test_says_in_one_line_what_it_reads(self) -> None:
        with self.fresh() as bench:
            assert bench.source.ACCEPTS
            assert "\n" not in bench.source.ACCEPTS

    def test_knows_its_own_and_nothing_else(self) -> None:
        with self.fresh() as bench:
            assert bench.source.matches(bench.path) is True
            (bench.empty / "notes.txt").write_text("nothing of the kind\n")
            (bench.empty / "zeros.bin").write_bytes(bytes(100))
            others = [bench.empty, bench.empty / "gone", *bench.empty.iterdir()]
            assert [path for path in others if bench.source.matches(path)] == []

    def test_gives_what_a_replay_needs(self) -> None:
        with self.fresh() as bench:
            recording = bench.source.load(bench.path)
            assert isinstance(recording, Recording)
            checked(recording, "the recording")
            assert recording.main in recording.cuts
            for name, cut in recording.cuts.items():
                assert cut.name == name
                self.is_whole(cut)

    def is_whole(self, cut: Cut) -> None:
        n = cut.alice.h.shape[0]
        for series in (cut.alice, cut.bob):
            self.is_series(series, n)
        np.testing.assert_array_equal(cut.alice.rounds, cut.bob.rounds)
        assert cut.alice.h.shape[-1] == cut.bob.h.shape[-1]
        assert np.isfinite(cut.alice.h).any()
        assert np.isfinite(cut.bob.h).any()
        assert cut.groups.shape == (n,)
        for eve in cut.eves.values():
            assert eve.from_alice is not None or eve.from_bob is not None
            for series in (s for s in (eve.from_alice, eve.from_bob) if s is not None):
                self.is_series(series, n)
        assert set(cut.assumed) <= set(cut.eves)
        if cut.key_probes is not None:
            assert cut.key_probes.size == np.unique(cut.key_probes).size
            assert not cut.key_probes.size or (cut.key_probes.min() >= 0 and cut.key_probes.max() < n)
        for kind in ("enhance", "quantize", "reconcile"):
            registry.make_stage(kind, getattr(cut.chain, kind), getattr(cut.chain, f"{kind}_options"))

    def is_series(self, series: CsiSeries, n: int) -> None:
        assert series.h.ndim == 4
        assert series.h.shape[0] == series.rounds.size == n
        assert series.h.dtype == np.complex64
        assert (np.diff(series.rounds) > 0).all()
        assert series.subcarrier_hz.shape == (series.h.shape[-1],)

    def test_is_deterministic(self) -> None:
        with self.fresh() as bench:
            one, two = (bench.source.load(bench.path) for _ in range(2))
            assert list(one.cuts) == list(two.cuts)
            for name, cut in one.cuts.items():
                np.testing.assert_array_equal(cut.alice.h, two.cuts[name].alice.h)

    def test_what_is_damaged_is_named_in_one_line(self) -> None:
        with self.fresh() as bench:
            files = [bench.path] if bench.path.is_file() else sorted(p for p in bench.path.rglob("*") if p.is_file())
            for file in files:
                content = file.read_bytes()
                file.write_bytes(content[: len(content) // 3])
                try:
                    if bench.source.matches(bench.path):
                        bench.source.load(bench.path)
                except InputError as exc:
                    assert "\n" not in str(exc)
                    assert str(bench.path.parent) in str(exc)
                finally:
                    file.write_bytes(content)
