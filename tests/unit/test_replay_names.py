"""Every stage of the chain can be picked by its name in the experiment file of a replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from testbed import config
from testbed.core import registry
from testbed.core.config import Accounting, ChainPlan
from testbed.core.types import CsiSeries
from testbed.replay import replay, sources
from testbed.replay.sources import Cut, Recording

PROBES, TRAINING, CARRIERS = 240, 100, 32
EXPERIMENT = """
schema = 1
title = "by name"
scene = { alice = { position_m = [2.0, 3.0, 1.5] }, bob = { position_m = [16.0, 13.0, 1.2] } }
"""


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording of eight taps that both ends hear alike, but for a little noise."""
    rng = np.random.default_rng(1)
    taps = rng.normal(size=(PROBES, 8, 2)) @ [1, 1j]
    h = taps @ np.exp(-2j * np.pi * np.outer(np.arange(8), np.arange(CARRIERS)) / CARRIERS) / 4

    def end() -> CsiSeries:
        noise = 0.05 * rng.normal(size=(PROBES, CARRIERS, 2)) @ [1, 1j]
        return CsiSeries(
            (h + noise)[:, None, None].astype(np.complex64), np.arange(PROBES), np.arange(CARRIERS) * 312.5e3
        )

    cut = Cut("all", end(), end(), np.zeros(PROBES, np.int64), False, ChainPlan(), Accounting())
    monkeypatch.setattr(sources, "load", lambda _: Recording("made up", "", (), {"all": cut}, "all"))


def verified(folder: Path, **chain: str) -> bool:
    """Return whether a replay by an experiment file with these stages ends with one string at both ends.

    The block is small: what is left of it for a key after its accounting may be nothing.
    """
    name = chain.get("enhance", "identity")
    trainable = registry.find("enhance", name).trainable
    lines = [f'{key} = "{value}"' for key, value in chain.items()]
    if "epochs" in registry.options_of("enhance", name):
        lines.append("enhance_options = { epochs = 1 }")
    elif name == "identity":
        lines.append("enhance_options = { step = 4 }")
    path = folder / "mine.toml"
    training = f"[training]\nrounds = {TRAINING}\n" if trainable else ""
    rounds = PROBES - TRAINING if trainable else PROBES
    accounting = f"[accounting]\nblock_rounds = {rounds}\nepsilon_log2 = 16\n"
    path.write_text(EXPERIMENT + "\n".join(["[chain]", *lines, training, accounting]))
    summary = replay.replay(folder, config.load_experiment(str(path)))
    assert summary["keys_mismatched"] == 0
    assert summary["raw_bits"] > 0
    assert ("training" in summary) == trainable
    if trainable:
        assert summary["training"]["card"]["enhance"] == name
    told = summary["reconciliation"]
    assert told["method"] == chain.get("reconcile", "cascade")
    return told["efficiency"] is not None  # known for verified strings only


@pytest.mark.parametrize("name", registry.names("enhance", ours=True))
def test_every_enhancer(tmp_path: Path, measured: None, name: str) -> None:
    assert verified(tmp_path, enhance=name) or name in UNTAUGHT


UNTAUGHT = ("crcnet", "kgnet", "autoencoder")
"""One epoch is not enough for them to agree."""


@pytest.mark.parametrize("reconcile", registry.names("reconcile", ours=True))
@pytest.mark.parametrize("quantize", registry.names("quantize", ours=True))
def test_every_quantizer_with_every_reconciler(tmp_path: Path, measured: None, quantize: str, reconcile: str) -> None:
    assert verified(tmp_path, quantize=quantize, reconcile=reconcile)
