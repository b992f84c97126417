"""Benches for the contract suites: every driver needs one, and that is all a new driver adds here.

A radio's bench gives two radios in reach of each other, a board's the board, an emulator's an air, a source's files.
"""

from __future__ import annotations

import atexit
import ctypes
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
from soapy_air import SoapyAir

from firmware_ctl.radios import soapy, usrp
from sim_backend.emulators.uhd_standin import Device, UhdStandIn
from sim_backend.local import world_in_thread
from testbed.core.config import Multipath, PlacedNode, PlacedSurface, Scene
from testbed.core.radio import RadioSettings
from testbed.core.registry import find, load_driver, names
from testbed.core.ris import Board
from testbed.core.world import DriverContext
from testbed.testing import EmulatorBench, RadioBench, SourceBench
from testbed.testing.section import record

SIM_SCENE = Scene(
    alice=PlacedNode(position_m=[4.0, 8.0, 1.5]),
    bob=PlacedNode(position_m=[9.0, 8.0, 1.5]),
    surface=PlacedSurface(position_m=[6.0, 4.0, 1.5], normal=[0.0, 1.0, 0.0]),
    multipath=Multipath(n_scatterers=20, direct_db=0.0, scatter_loss_db=12.0),
)


@contextmanager
def sim_radios(state_dir: Path, **options: Any) -> Iterator[RadioBench]:
    make = load_driver("radios", "sim")
    with world_in_thread(SIM_SCENE, seed=11) as endpoint, ExitStack() as stack:
        context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=state_dir)
        radio = stack.enter_context(make("alice", context, **options))
        other = stack.enter_context(make("bob", context, **{**options, "stale_buffers": 0}))
        settings = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=20e6, tx_gain_db=0.0, rx_gain_db=15.0)
        elsewhere = RadioSettings(carrier_hz=2.5e9, sample_rate_hz=20e6, tx_gain_db=0.0, rx_gain_db=15.0)
        yield RadioBench(radio, other, settings, elsewhere, start_error_s=10e-9)


@contextmanager
def sim_radios_in_company(state_dir: Path) -> Iterator[RadioBench]:
    """Radios that could time their samples, beside one that cannot."""
    with sim_radios(state_dir, cfo_ppm=0.0) as bench:
        for radio in (bench.radio, bench.other):
            radio.use_timing(False)
        yield bench


@contextmanager
def pluto_radios(state_dir: Path) -> Iterator[RadioBench]:
    """Two emulated Plutos in the simulated air, reached through the real libiio."""
    pytest.importorskip("iio", exc_type=Exception, reason="libiio is not installed: apt-get install libiio0")
    from sim_backend.emulators.pluto import EmulatedPluto

    make = load_driver("radios", "pluto")
    # one sample apart (50 ns) and few echoes: the suite correlates at whole samples, and a capture starts anywhere
    echoes = Multipath(n_scatterers=20, direct_db=0.0, scatter_loss_db=12.0)
    scene = msgspec.structs.replace(SIM_SCENE, bob=PlacedNode(position_m=[18.99, 8.0, 1.5]), multipath=echoes)
    with world_in_thread(scene, seed=11) as endpoint, ExitStack() as stack:
        context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=state_dir)
        radios = []
        for name in ("alice", "bob"):
            # the suite correlates over 50 µs: crystals 10 ppm apart would turn the phase twice in that time
            emulated = EmulatedPluto(name, context, cfo_ppm=0.0)
            stack.callback(emulated.close)
            radios.append(stack.enter_context(make(name, context, uri=emulated.uri, serial=emulated.serial)))
        settings = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=20e6, tx_gain_db=0.0, rx_gain_db=15.0)
        elsewhere = RadioSettings(carrier_hz=2.5e9, sample_rate_hz=20e6, tx_gain_db=0.0, rx_gain_db=15.0)
        yield RadioBench(*radios, settings, elsewhere, start_error_s=0.0)


@contextmanager
def usrp_radios(state_dir: Path) -> Iterator[RadioBench]:
    """Two USRPs through the stand-in for UHD; what they promise to the simulated air, their bench passes on."""

    class WiredUsrp(usrp.Usrp):
        device: Device

        def idle_until(self, time_s: float) -> None:
            self.device.idle_until(time_s)

    with world_in_thread(SIM_SCENE, seed=11) as endpoint, ExitStack() as stack:
        context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=state_dir)
        shelf = UhdStandIn(context, Device("30AB", "alice"), Device("30CD", "bob"))
        stack.callback(shelf.power_off)
        radios = []
        with patch.object(usrp, "load_uhd", lambda: shelf):
            for device in shelf.devices.values():
                radio = stack.enter_context(WiredUsrp(device.name, context, serial=device.serial))
                radio.device = device
                radios.append(radio)
        settings = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=20e6, tx_gain_db=79.75, rx_gain_db=15.0)
        elsewhere = RadioSettings(carrier_hz=2.5e9, sample_rate_hz=20e6, tx_gain_db=79.75, rx_gain_db=15.0)
        # time stamps count ticks of the 60 MHz master clock
        yield RadioBench(radios[0], radios[1], settings, elsewhere, start_error_s=10e-9)


@cache
def _soapy_module() -> tuple[Any, Any]:
    """Return SoapySDR, and the library of `soapy_loopback.cpp` that is loaded as a module of it."""
    try:
        import SoapySDR
    except ImportError:  # a package of the operating system's Python, which an environment of its own does not see
        sys.path.append("/usr/lib/python3/dist-packages")
        try:
            SoapySDR = pytest.importorskip("SoapySDR", reason="not installed: apt-get install python3-soapysdr")
        finally:
            sys.path.pop()
    compiler = shutil.which("g++")
    if compiler is None or not Path("/usr/include/SoapySDR/Device.hpp").exists():
        pytest.skip("no C++ compiler or no headers: apt-get install g++ libsoapysdr-dev")
    library = Path(tempfile.mkdtemp(prefix="soapy-")) / "libloopback.so"
    source = Path(__file__).with_name("soapy_loopback.cpp")
    build = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "-o", str(library), str(source), "-lSoapySDR"]
    subprocess.run(build, check=True, timeout=200)
    assert SoapySDR.loadModule(str(library)) == ""
    atexit.register(shutil.rmtree, library.parent, ignore_errors=True)
    return SoapySDR, ctypes.CDLL(str(library))


def soapy_loopback() -> Any:
    """Return SoapySDR with our module loaded; skips where it or a compiler is not installed."""
    return _soapy_module()[0]


def soapy_library() -> str:
    """Return the path of our module, built; skips as `soapy_loopback` does."""
    return str(_soapy_module()[1]._name)


class WiredSoapy(soapy.Soapy):
    """A radio behind SoapySDR on the simulated air: what SoapySDR has no function for, its bench passes on."""

    air: SoapyAir

    def idle_until(self, time_s: float) -> None:
        self.air.idle_until(time_s)

    def use_timing(self, timed: bool) -> None:
        super().use_timing(timed)
        self.air.timed = timed


@contextmanager
def soapy_lab(
    state_dir: Path, arguments: Mapping[str, str], scene: Scene = SIM_SCENE, timed: bool = True, **options: Any
) -> Iterator[dict[str, WiredSoapy]]:
    """Radios behind SoapySDR by name, each where the scene has it. `arguments`: of each device, beside its label."""
    _, library = _soapy_module()
    with (
        patch.object(soapy, "load_soapy", soapy_loopback), world_in_thread(scene, seed=11) as endpoint,
        ExitStack() as stack,
    ):  # fmt: skip
        radios = {}
        for name, extra in arguments.items():
            context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=state_dir)
            air = stack.enter_context(SoapyAir(library, name, context, timed, **options))
            args = f"driver=testbed_loopback,timed={int(timed)},label={name}{extra}"
            radios[name] = stack.enter_context(WiredSoapy(name, context, args=args, settle_s=1e-4))
            radios[name].air = air
        yield radios


@contextmanager
def soapy_radios(state_dir: Path, timed: bool = True, arguments: str = "", **options: Any) -> Iterator[RadioBench]:
    """Two radios behind SoapySDR. `arguments`: of the one under test."""
    # the suite correlates over 50 µs: crystals a few ppm apart would turn the phase by half in that time
    with soapy_lab(state_dir, {"alice": arguments, "bob": ""}, timed=timed, cfo_ppm=0.0, **options) as radios:
        settings = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=20e6, tx_gain_db=60.0, rx_gain_db=15.0)
        elsewhere = replace(settings, carrier_hz=2.5e9)
        yield RadioBench(radios["alice"], radios["bob"], settings, elsewhere, start_error_s=30e-9)


@contextmanager
def sim_board(state_dir: Path) -> Iterator[Board]:
    with (
        world_in_thread(SIM_SCENE, seed=11) as endpoint,
        load_driver("boards", "sim")(
            "ris",
            DriverContext(seed=5, world=endpoint, identity=None, state_dir=state_dir),
            rows=4,
            columns=6,
            phase_bits=2,
        ) as board,
    ):
        yield board


@contextmanager
def serial_board(driver: str, state_dir: Path, **options: Any) -> Iterator[Board]:
    """Through pyserial on the pty of its twin, whose pattern is on the air."""
    with world_in_thread(SIM_SCENE, seed=11) as endpoint, ExitStack() as stack:
        context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=state_dir)
        twin = load_driver("worlds", "sim").emulate("ris", driver, context, options)
        stack.callback(twin.close)
        yield stack.enter_context(load_driver("boards", driver)("ris", context, uri=twin.uri))


# driver → variant → bench
RADIO_BENCHES: dict[str, dict[str, Callable[[Path], Any]]] = {
    "sim": {
        "timed": sim_radios,
        # the suite correlates over 50 µs: crystals a few ppm apart would turn the phase by half in that time
        "untimed": lambda path: sim_radios(path, timed=False, cfo_ppm=0.0),
        "timing left out": sim_radios_in_company,
    },
    "pluto": {"libiio": pluto_radios},
    "usrp": {"stand-in": usrp_radios},
    "soapy": {"timed": soapy_radios, "untimed": lambda path: soapy_radios(path, timed=False)},
}
BOARD_BENCHES: dict[str, Callable[[Path], Any]] = {
    "sim": sim_board,
    "opensourceris": partial(serial_board, "opensourceris"),
    "ris595": partial(serial_board, "ris595", rows=5, columns=7, phase_bits=3),
}


@contextmanager
def emulator(driver: str, state_dir: Path) -> Iterator[EmulatorBench]:
    """A twin and its driver on an air of their own."""
    kind = "boards" if driver in names("boards") else "radios"
    if driver == "pluto":
        pytest.importorskip("iio", exc_type=Exception, reason="libiio is not installed: apt-get install libiio0")
    with world_in_thread(SIM_SCENE, seed=11) as endpoint:
        context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=state_dir)
        name = "ris" if kind == "boards" else "alice"
        yield EmulatorBench(find("emulators", driver), load_driver(kind, driver), context, name)


# ---------------------------------------------------------------- sources


def write_rfm12b(folder: Path) -> Path:
    rng = np.random.default_rng(2)
    for stem in (
        "sniffer_nodeA_B",
        "sniffer_nodeB_A",
        "sniffer_nodeE_A",
        "sniffer_nodeE_B",
        "static_nodeA",
        "static_nodeB",
    ):
        rows = rng.integers(-90, -60, size=(3, 20))
        (folder / f"{stem}.txt").write_text("".join(";".join(map(str, row)) + ";&\r\n" for row in rows))
    return folder


def write_openris(folder: Path) -> Path:
    rng = np.random.default_rng(3)
    shape = (12, 11, 201, 1)
    h = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    both = h + 0.01 * (rng.normal(size=(*shape[:3], 2)) + 1j * rng.normal(size=(*shape[:3], 2)))
    path = folder / "openris_ff.npz"
    np.savez(
        path, freq_hz=np.linspace(3e9, 4e9, 201), tx_105_VV=(1e-3 * both).astype(np.complex64),
        tx_105_VV_rx_deg=np.arange(0, 36, 3),
    )  # fmt: skip
    return path


def write_run(folder: Path) -> Path:
    record(folder / "run", 30)
    return folder / "run"


SOURCE_FILES: dict[str, Callable[[Path], Path]] = {
    "rfm12b_rssi": write_rfm12b,
    "openris_vna": write_openris,
    "run_folder": write_run,
}


@contextmanager
def source(name: str, folder: Path) -> Iterator[SourceBench]:
    here, empty = folder / "recording", folder / "empty"
    here.mkdir()
    empty.mkdir()
    yield SourceBench(find("sources", name), SOURCE_FILES[name](here), empty)
