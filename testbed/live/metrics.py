"""A run's figures for Prometheus: an endpoint on this machine alone, read while the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from testbed.core.errors import InputError


@dataclass(frozen=True, slots=True)
class Figures:
    """Where a run is."""

    run: str
    phase: str
    rounds: int
    """Over, kept or rejected."""
    kept: int
    rejected: Mapping[str, int]
    """By reason."""
    key_bits: int
    snr_db: float
    alive: Mapping[str, bool]
    """By node."""
    free_bytes: int
    """On the disk of the run's folder."""


def check() -> None:
    """Raise InputError where the extra `metrics` is not installed."""
    from importlib.util import find_spec

    if find_spec("prometheus_client") is None:
        raise InputError("--metrics needs prometheus-client; accepted: pip install 'ris-skg-testbed[metrics]'")


@contextmanager
def served(port: int, read: Callable[[], Figures]) -> Iterator[str]:
    """Serve what `read` returns at each scrape, in a thread, on 127.0.0.1; yields the address. Port 0: a free one.

    Raises InputError where the port is taken.
    """
    import prometheus_client

    registry = prometheus_client.CollectorRegistry()
    collector: Any = _Collector(read)  # of the library's kind by its methods alone
    registry.register(collector)
    try:
        server, thread = prometheus_client.start_http_server(port, "127.0.0.1", registry)
    except OSError as exc:
        raise InputError(f"--metrics {port}: {exc.strerror}; accepted: a free port, or 0 for any") from exc
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5.0)


class _Collector:
    """Makes the families of one scrape."""

    def __init__(self, read: Callable[[], Figures]) -> None:
        self._read = read

    def describe(self) -> list[Any]:
        """Nothing is read before the first scrape."""
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        f = self._read()
        run = GaugeMetricFamily("testbed_run", "1, with the run's name and its phase.", labels=["run", "phase"])
        run.add_metric([f.run, f.phase], 1.0)
        yield run
        yield CounterMetricFamily("testbed_rounds", "Rounds that are over.", value=f.rounds)
        # kept rounds may be withdrawn, so that this number may fall
        yield GaugeMetricFamily("testbed_rounds_kept", "Rounds that were kept.", value=f.kept)
        rejected = GaugeMetricFamily("testbed_rounds_rejected", "Rounds that were rejected.", labels=["reason"])
        for reason, n in sorted(f.rejected.items()):
            rejected.add_metric([reason], n)
        yield rejected
        yield CounterMetricFamily("testbed_key_bits", "Bits of all keys so far.", value=f.key_bits)
        yield GaugeMetricFamily("testbed_snr_db", "Mean SNR of the links.", value=f.snr_db)
        alive = GaugeMetricFamily("testbed_node_alive", "Whether a node answers.", labels=["node"])
        for node, answers in f.alive.items():
            alive.add_metric([node], float(answers))
        yield alive
        yield GaugeMetricFamily("testbed_disk_free_bytes", "Space on the disk of the run.", value=f.free_bytes)
