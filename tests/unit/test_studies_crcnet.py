"""The study of paper B's reciprocity schemes on a walk of four taps, without the channel library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from testbed.papers.reciprocity import study_crcnet as crcnet
from testbed.papers.reciprocity import uma_walk


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("uma")
    rng = np.random.default_rng(1)
    taps = (rng.normal(size=(WALK.n_probes, 4, 2)) @ [1, 1j]) / np.sqrt(8)
    h = taps @ np.exp(-2j * np.pi * np.outer(np.arange(4), np.arange(64)) / 64)
    np.savez(folder / uma_walk.file_name(WALK), ab=h.astype(np.complex64))
    return folder


WALK = uma_walk.Walk(n_probes=260, bandwidth_hz=10e6)


def judge(cache: Path, scheme: str, **changes: object) -> dict[str, float]:
    plan = uma_walk.Impairments(snr_db=30.0, ripple_db=1.5, free_running=bool(changes.pop("free", False)))
    values: dict[str, object] = {"n_train": 160, "guard": 20, "epochs": 1, **changes}
    return crcnet._judge(crcnet.Point(WALK, str(cache), plan, scheme, **values))  # type: ignore[arg-type]


@pytest.mark.parametrize("free", [False, True])
def test_learning_the_hardware_lowers_the_disagreement(cache: Path, free: bool) -> None:
    none, ours = judge(cache, "none", free=free), judge(cache, "calibrated", free=free)
    assert ours["kdr"] < 0.6 * none["kdr"]
    assert ours["mse"] < 0.5 * none["mse"]
    assert ours["rho"] > none["rho"]


def test_every_scheme_gives_as_many_features_to_the_quantizers(cache: Path) -> None:
    for scheme in ("PCA", "WAKG", "SGF", "CCA", "linear MMSE"):
        found = judge(cache, scheme)
        assert 0.0 < found["kdr"] < 0.4, scheme
        assert 0.3 < found["rho"] < 1.0, scheme  # four taps: half of 16 components are noise


def test_a_random_split_judges_other_snapshots(cache: Path) -> None:
    assert judge(cache, "PCA")["kdr"] != judge(cache, "PCA", random_split=True)["kdr"]


def test_disagreement_is_0_of_equal_features_and_a_half_of_others() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(96, 16)), rng.normal(size=(96, 16))
    for quantizer in crcnet.QUANTIZERS:
        assert crcnet.kdr(quantizer, x, x) == 0.0
        assert crcnet.kdr(quantizer, x, y) == pytest.approx(0.5, abs=0.05)
    assert crcnet.kdr("scalar", np.zeros((96, 16)), y) == 0.5


def test_what_is_compared_holds_all_that_the_claims_ask_for() -> None:
    wanted = crcnet._wanted([10.0, 30.0], quick=True)
    assert len(wanted) == len(set(wanted))
    assert {s for k, s, _, _ in wanted if k == "locked"} == set(crcnet.SCHEMES)
    assert set(crcnet.KDR_AT_30_DB) == set(crcnet.PAPERS) <= set(crcnet.SCHEMES)
