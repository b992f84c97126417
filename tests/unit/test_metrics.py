"""The endpoint for Prometheus: what it says, to whom, and what is said where it cannot be served."""

from __future__ import annotations

import re
import socket
import urllib.request
from importlib import util
from typing import Any

import pytest

from testbed.core.errors import InputError
from testbed.live import metrics
from testbed.live.metrics import Figures

FIGURES = Figures(
    run="walk-1", phase="probing", rounds=120, kept=117, rejected={"low_snr": 2, "timeout": 1}, key_bits=384,
    snr_db=17.5, alive={"alice": True, "bob": False}, free_bytes=5 << 30,
)  # fmt: skip


def scraped(address: str) -> str:
    with urllib.request.urlopen(address, timeout=120) as answer:
        return str(answer.read().decode())


def samples(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(testbed_\S*?) (\S+)$", text, re.MULTILINE)}


def test_a_scrape_has_the_runs_figures_of_that_moment() -> None:
    pytest.importorskip("prometheus_client")
    now: list[Any] = [FIGURES]
    with metrics.served(0, lambda: now[0]) as address:
        assert samples(scraped(address)) == {
            'testbed_run{phase="probing",run="walk-1"}': 1.0,
            "testbed_rounds_total": 120.0,
            "testbed_rounds_kept": 117.0,
            'testbed_rounds_rejected{reason="low_snr"}': 2.0,
            'testbed_rounds_rejected{reason="timeout"}': 1.0,
            "testbed_key_bits_total": 384.0,
            "testbed_snr_db": 17.5,
            'testbed_node_alive{node="alice"}': 1.0,
            'testbed_node_alive{node="bob"}': 0.0,
            "testbed_disk_free_bytes": float(5 << 30),
        }
        now[0] = Figures("walk-1", "over", 121, 118, {}, 384, float("nan"), {}, 0)
        later = samples(scraped(address))
        assert later["testbed_rounds_total"] == 121.0
        assert 'testbed_run{phase="over",run="walk-1"}' in later
        port = int(address.split(":")[2].split("/")[0])
        with socket.socket() as other, pytest.raises(OSError, match="refused"):  # on loopback alone
            other.connect(("127.0.0.2", port))
        with (
            pytest.raises(InputError, match=rf"^--metrics {port}: .*; accepted: a free port, or 0 for any$"),
            metrics.served(port, lambda: now[0]),
        ):
            pass
    with socket.socket() as gone, pytest.raises(OSError, match="refused"):
        gone.connect(("127.0.0.1", port))


def test_without_its_extra_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^--metrics needs prometheus-client; accepted: pip install "):
        metrics.check()
