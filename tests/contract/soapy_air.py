"""The air behind the SoapySDR module of `soapy_loopback.cpp`: each of its devices is a radio in the simulated World.

In virtual time a device's clock goes on as it reads samples; when it is tuned, it is the World's frontier. A device
that streams without times (a repeated frame) is waited for by all who receive, and its writer is held up while it is
further ahead of the frontier than `_AHEAD`; one that does not stream and cannot time its samples is waited for by
nobody.
"""

from __future__ import annotations

import ctypes as c
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
from msgspec import Struct

from sim_backend.impairments import RadioOptions, device_clock
from sim_backend.link import Link
from sim_backend.messages import Now
from sim_backend.radio import SimRadio
from sim_backend.ticks import TICKS_PER_S, duration
from testbed.core.errors import DeviceTimeout, LateTransmit
from testbed.core.options import driver_options
from testbed.core.radio import RadioSettings
from testbed.core.types import IqBlock
from testbed.core.world import DriverContext, Emulator, Equipment

log = logging.getLogger("testbed.tests")
_OFFSET_S = 1.0
"""What the device's clock shows beyond the simulated radio's, so that it is never negative."""
_TOP_DB = 60.0
"""Transmit gain at which a full-scale sample leaves with 0 dBm."""
_AHEAD = TICKS_PER_S // 200
_POLL_S = 1e-3
TIMEOUT, STREAM_ERROR, TIME_ERROR = -1, -2, -6
_SIGNATURES = {
    "tune": c.CFUNCTYPE(c.c_int, *[c.c_double] * 4),
    "now_s": c.CFUNCTYPE(c.c_double),
    "burst": c.CFUNCTYPE(c.c_int, c.POINTER(c.c_float), c.c_longlong, c.c_double),
    "write_on": c.CFUNCTYPE(c.c_int, c.POINTER(c.c_float), c.c_longlong, c.c_double),
    "read": c.CFUNCTYPE(c.c_int, c.POINTER(c.c_float), c.c_longlong, c.c_double, c.POINTER(c.c_double)),
    "quiet": c.CFUNCTYPE(None),
}


class _Functions(c.Structure):
    _fields_ = list(_SIGNATURES.items())


class _Station(SimRadio):
    """A simulated radio whose samples follow one another without a gap where that is asked for."""

    def read(self, n_samples: int, at_s: float | None) -> IqBlock:
        return self._receive(n_samples, at_s, 5.0)

    def write(self, start: int, samples: Any) -> None:
        self._transmit_at(start, IqBlock(samples[None], self.settings.sample_rate_hz, 0.0), False, None)

    def present(self) -> int:
        return self._now()


class SoapyAir(AbstractContextManager["SoapyAir"]):
    """One device of the module on the World at `context.world`. `options`: of the simulated radio."""

    def __init__(self, library: Any, label: str, context: DriverContext, timed: bool, **options: Any) -> None:
        options = {"timing_jitter_s": 0.0, "turnaround_s": 0.0, **options}
        assert context.world is not None
        self._library, self._label, self.timed = library, label, timed
        self._station = _Station(label, context, **options)
        self._clock = device_clock(label, driver_options(options, RadioOptions, label), context.seed)
        self._watch = Link(f"{label}-clock", context.world, context.identity)
        self._watch.attach("radio", "open")
        self._lock = threading.Lock()
        self._next: int | None = None
        """Tick after the last sample of a stream; None: nothing is streamed."""
        self._passed = 0
        """The device's present, a tick."""
        calls = {name: kind(getattr(self, f"_{name}")) for name, kind in _SIGNATURES.items()}
        self._functions = _Functions(**calls)  # must live as long as the module may call them
        library.loopback_wire(label.encode(), c.byref(self._functions))

    def __exit__(self, *_: object) -> None:
        self._library.loopback_wire(self._label.encode(), None)
        self._station.close()
        self._watch.close("open")

    def idle_until(self, time_s: float) -> None:
        """Promise for the driver that it sends nothing before device time `time_s`: the World waits for this."""
        if self.timed:
            self._station.idle_until(time_s - _OFFSET_S)

    # ---------------------------------------------------------------- called by the module

    def _tune(self, carrier_hz: float, rate_hz: float, tx_db: float, rx_db: float) -> int:
        settings = RadioSettings(carrier_hz, rate_hz, tx_db - _TOP_DB, rx_db)
        self._passed = max(self._passed, self._frontier())
        return _code(lambda: self._on_air(settings, self.timed))

    def _now_s(self) -> float:
        return self._clock.reading_s(self._passed) + _OFFSET_S

    def _burst(self, iq: Any, n: int, at_s: float) -> int:
        when = None if math.isnan(at_s) else at_s - _OFFSET_S
        block = IqBlock(_copied(iq, n)[None], self._station.settings.sample_rate_hz, 0.0)
        return _code(lambda: self._station.transmit(block, when))

    def _write_on(self, iq: Any, n: int, timeout_s: float) -> int:
        samples, deadline = _copied(iq, n), time.monotonic() + timeout_s

        def write() -> int:
            while time.monotonic() < deadline:
                with self._lock:
                    if self._next is None:
                        self._on_air(self._station.settings, True)  # from now on, receivers wait for its samples
                        self._next = self._station.present()
                    if self._next <= (present := self._frontier()) + _AHEAD:
                        start = max(self._next, present)
                        self._station.write(start, samples)
                        self._next = start + duration(n, self._station.settings.sample_rate_hz)
                        return n
                time.sleep(_POLL_S)
            return TIMEOUT

        return _code(write)

    def _read(self, iq: Any, n: int, at_s: float, began_s: Any) -> int:
        def read() -> None:
            block = self._station.read(n, None if math.isnan(at_s) else at_s - _OFFSET_S)
            np.ctypeslib.as_array(iq, (2 * n,))[:] = block.samples[0].view(np.float32)
            began_s[0] = block.time_s + _OFFSET_S
            end = self._clock.world_ticks(block.time_s) + duration(n, block.sample_rate_hz)
            self._passed = max(self._passed, end)

        return _code(read)

    def _quiet(self) -> None:
        with self._lock:
            streamed, self._next = self._next is not None, None
            if streamed:
                _code(lambda: self._on_air(self._station.settings, self.timed))
            elif self._station.state == "configured":
                _code(self._station.silence)

    def _on_air(self, settings: RadioSettings, waited_for: bool) -> None:
        """Tune the radio, which cuts what nobody has received yet; others wait for its declarations or do not."""
        if self._station.state == "configured":
            self._station.silence()
        self._station.use_timing(waited_for)
        self._station.configure(replace(settings))

    def _frontier(self) -> int:
        """Return the end of the latest reception of any radio: the World's answer to who is not on the air."""
        return self._watch.ask(Now(id=self._watch.next_id(), session=self._watch.session), "open")[0].now


def _copied(iq: Any, n: int) -> Any:
    return np.ctypeslib.as_array(iq, (2 * n,)).copy().view(np.complex64)


def _code(job: Callable[[], int | None]) -> int:
    """Return what the module answers: the job's number, or SoapySDR's code of its error."""
    try:
        return job() or 0
    except LateTransmit:
        return TIME_ERROR
    except DeviceTimeout as exc:
        log.info("%s", exc)
        return TIMEOUT
    except Exception:
        log.exception("the air of a SoapySDR device")
        return STREAM_ERROR


# ---------------------------------------------------------------- for a lab

MODULE = "TESTBED_TEST_SOAPY_MODULE"
"""Variable that names the built module, for the processes of nodes."""


class EmulatedSoapyOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    timed: bool = True
    rx_only: bool = False


class EmulatedSoapy(Emulator):
    """Devices of the module in the nodes' own processes: installed by the test's entry point, in no package of ours."""

    options_type = EmulatedSoapyOptions
    in_process = True

    def close(self) -> None:
        """Nothing was opened here."""

    @classmethod
    def equip(cls, name: str, context: DriverContext, options: Mapping[str, Any]) -> Equipment:
        sys.path.append("/usr/lib/python3/dist-packages")
        import SoapySDR

        given = EmulatedSoapyOptions(**options)
        path = os.environ[MODULE]
        assert SoapySDR.loadModule(path) == ""
        air = SoapyAir(c.CDLL(path), name, context, given.timed)
        args = f"driver=testbed_loopback,timed={int(given.timed)},rx_only={int(given.rx_only)},label={name}"
        return Equipment({"args": args}, air.idle_until)
