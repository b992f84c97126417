"""Starts the live page beside a run, in a process of its own that ends with the run's."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed.core.errors import InputError

ASKS = ("pause", "unpause", "stop", "halt")
"""The requests of a page to its run."""
_END_S = 5.0
_NICE = 5
"""Lower priority of the page's process, so that the run has precedence on a shared processor."""


class Beside:
    """The page's process. `ask` is called, in a separate thread, with each request of a page. A context manager."""

    def __init__(self, say: Callable[[str], None], port: int = 0) -> None:
        self._say, self._port = say, port
        self._process: subprocess.Popen[str] | None = None
        self.ask: Callable[[str], None] = lambda what: None

    @staticmethod
    def check() -> None:
        """Raise InputError where the extra `live` is not installed."""
        from importlib.util import find_spec

        for name in ("starlette", "uvicorn"):
            if find_spec(name) is None:
                raise InputError(f"--live needs {name}; accepted: pip install 'ris-skg-testbed[live]'")

    def start(self, folder: Path) -> None:
        """Start the page of a run's folder, without waiting for it; `say` prints its address once it is served."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "testbed", "live", str(folder), "--supervised", "--port", str(self._port)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICE)
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def pid(self) -> int:
        """Number of the page's process; 0 before it was started."""
        return 0 if self._process is None else self._process.pid

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                told = json.loads(line)
                if "url" in told:
                    self._say(f"live: {told['url']}")
                elif told.get("ask") in ASKS:
                    self.ask(told["ask"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_END_S)
