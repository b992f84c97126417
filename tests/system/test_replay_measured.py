"""Replay over the measured data sets themselves. They are not shipped (docs/datasets.md): set TESTBED_DATASETS."""

import os
from pathlib import Path

import pytest

from testbed.replay.replay import replay


def dataset(name):
    root = os.environ.get("TESTBED_DATASETS")
    if root is None:
        pytest.skip("TESTBED_DATASETS is not set: docs/datasets.md says where to get the measured data sets")
    if not (Path(root) / name).is_dir():
        pytest.skip(f"TESTBED_DATASETS = {root} holds no {name}: docs/datasets.md says where to get it")
    return Path(root) / name


@pytest.fixture(scope="module")
def openris():
    return replay(dataset("openris_vna"))


@pytest.fixture(scope="module")
def rfm12b():
    return replay(dataset("rfm12b_rssi"))


def test_openris_correlations_are_the_published_channels(openris):
    cut = next(c for c in openris["cuts"] if c["cut"] == "tx_105_VV")
    assert cut["csi_correlation_ab"] == pytest.approx(0.989, abs=0.005)
    eves = {eve["label"]: eve["csi_correlation_ae"] for eve in cut["eves"]}
    for label, expected in {"3deg": 0.73, "6deg": 0.54, "9deg": 0.40, "15deg": 0.11, "30deg": -0.06}.items():
        assert eves[label] == pytest.approx(expected, abs=0.015), label


def test_openris_gives_a_key_that_goes_as_eve_comes_near(openris):
    assert openris["cut"] == "VV"
    assert openris["key_bits"] > 100
    assert openris["keys_mismatched"] == 0
    assert openris["eve_keys_recovered"] == 0
    key_bits = [eve["key_bits"] for eve in openris["eves"] if eve["label"] in ("3deg", "6deg", "9deg", "15deg")]
    assert key_bits == sorted(key_bits)
    assert key_bits[0] == 0
    # one place of the transmitter alone has too few independent probes
    assert all(cut["key_bits"] == 0 for cut in openris["cuts"] if cut["cut"] != "VV")


def test_rfm12b_moving_gives_a_key(rfm12b):
    assert rfm12b["cut"] == "sniffer"
    assert rfm12b["csi_correlation_ab"] == pytest.approx(0.848, abs=0.005)
    assert rfm12b["csi_correlation_ab_per_group"] == pytest.approx(0.820, abs=0.005)
    assert rfm12b["csi_correlation_ae"] == pytest.approx(0.117, abs=0.01)
    assert rfm12b["kdr_eve"] == pytest.approx(0.49, abs=0.03)
    assert rfm12b["key_bits"] > 1000
    assert rfm12b["keys_mismatched"] == 0
    assert "receiver_eve_hearing_alice" in {e["check"] for e in rfm12b["health"] if not e["ok"]}


def test_rfm12b_static_is_recognised_as_drift(rfm12b):
    static = next(c for c in rfm12b["cuts"] if c["cut"] == "static")
    assert static["csi_correlation_ab"] == pytest.approx(0.916, abs=0.005)
    assert static["csi_correlation_ab_per_group"] == pytest.approx(0.366, abs=0.02)
    assert static["csi_correlation_ab_detrended"] < 0.3
    assert "slow_drift" in {e["check"] for e in static["health"] if not e["ok"]}
    assert static["key_bits"] == 0
