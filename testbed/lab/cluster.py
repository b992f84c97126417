"""The Dask cluster on which studies and sweeps may compute (extra `cluster`)."""

from __future__ import annotations

from typing import Any

from testbed.core.errors import InputError, TestbedError


def connect(address: str) -> Any:
    """Return a client of the scheduler at `address`.

    Raises InputError where Dask is not installed, TestbedError where no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError as exc:
        raise InputError("--scheduler needs Dask: pip install 'ris-skg-testbed[cluster]'") from exc
    try:
        return Client(address, timeout="10s")
    except (OSError, ValueError) as exc:
        raise TestbedError(f"--scheduler {address}: no Dask scheduler answers there ({exc})") from exc
