"""The controller's firmware: its own unit tests under sanitizers, and that it builds for the controllers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "firmware_ctl" / "firmware"


def make(target: str, build: Path, **variables: str | int) -> str:
    command = ["make", "-C", SOURCES, target, f"BUILD={build}", *(f"{k}={v}" for k, v in variables.items())]
    environment = {k: v for k, v in os.environ.items() if k not in ("CFLAGS", "LDFLAGS", "MAKEFLAGS")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not (shutil.which("cc") and shutil.which("make")), reason="no C compiler: apt-get install gcc make")
def test_the_core_passes_its_own_tests_under_sanitizers(tmp_path: Path) -> None:
    said = make("test", tmp_path)
    checks = re.search(r"(\d+) checks passed", said)
    assert checks is not None
    assert int(checks[1]) > 10_000  # the fuzz loop ran


@pytest.mark.skipif(not shutil.which("avr-gcc"), reason="no cross compiler: apt-get install gcc-avr avr-libc")
@pytest.mark.parametrize(
    ("mcu", "flash", "ram", "geometry"),
    [
        ("atmega1284p", 128 * 1024, 16 * 1024, {"ROWS": 16, "COLUMNS": 16, "PHASE_BITS": 1, "BAUD": 500000}),
        ("atmega328p", 32 * 1024, 2 * 1024, {"ROWS": 8, "COLUMNS": 8, "PHASE_BITS": 2, "BAUD": 115200}),
    ],
)
def test_it_fits_the_controllers(tmp_path: Path, mcu: str, flash: int, ram: int, geometry: dict[str, int]) -> None:
    said = make("avr", tmp_path, MCU=mcu, **geometry)
    text, data, bss = map(int, re.findall(r"^\s*(\d+)\s+(\d+)\s+(\d+)", said, re.MULTILINE)[-1])
    print(f"{mcu}: {text + data} of {flash} bytes of flash, {data + bss} of {ram} bytes of RAM")
    assert text + data < flash
    assert data + bss < ram - 256  # the stack needs some, too
