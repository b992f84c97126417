"""The controller's own binary on a simulated chip, driven by the unmodified driver: its pins compared bit by bit.

The board is `firmware_ctl/firmware/tests/chip.c`: libsimavr runs what `avr-gcc` built, its UART is a pty, and a chain
of 74HC595 hangs on its SPI and latch pins.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from firmware_ctl.boards.ris595 import Ris595
from testbed.core import patterns
from testbed.core.errors import DeviceError
from testbed.core.types import SurfacePattern
from testbed.core.world import DriverContext

SOURCES = Path(__file__).parents[2] / "firmware_ctl" / "firmware"
MISSING = [
    package
    for package, there in {
        "gcc-avr avr-libc": shutil.which("avr-gcc"),
        "gcc make": shutil.which("cc") and shutil.which("make"),
        "libsimavr-dev": Path("/usr/include/simavr/sim_avr.h").exists(),
        "libelf-dev": Path("/usr/include/libelf.h").exists(),
    }.items()
    if not there
]  # fmt: skip
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no simulated chip: apt-get install {' '.join(MISSING)}")
PATIENCE_S = 60.0
"""For a chip that is simulated on a busy machine."""


@dataclass(frozen=True)
class Kind:
    """A controller, and the surface that hangs on it."""

    mcu: str
    baud: int
    rows: int
    columns: int
    phase_bits: int
    pins: int
    """Outputs of port B: latch, MOSI, SCK."""

    @property
    def n_registers(self) -> int:
        return (self.rows * self.columns * self.phase_bits + 7) // 8

    def pattern(self, seed: int) -> SurfacePattern:
        return patterns.make(f"random({seed})", (self.rows, self.columns), self.phase_bits)

    def outputs(self, pattern: SurfacePattern) -> str:
        """Return what the chain's outputs must be, QA of the first register first."""
        steps = np.arange(self.phase_bits - 1, -1, -1)
        bits = (pattern.levels.reshape(-1, 1) >> steps & 1).ravel()
        return "".join(map(str, bits)).ljust(8 * self.n_registers, "0")


KINDS = [
    Kind("atmega1284p", 500_000, 16, 16, 1, 1 << 4 | 1 << 5 | 1 << 7),
    Kind("atmega328p", 115_200, 8, 8, 2, 1 << 2 | 1 << 3 | 1 << 5),
    Kind("atmega328p", 115_200, 5, 3, 1, 1 << 2 | 1 << 3 | 1 << 5),  # a chain that ends within a register
]


def make(target: str, build: Path, **variables: str | int) -> None:
    command = ["make", "-C", SOURCES, target, f"BUILD={build}", *(f"{k}={v}" for k, v in variables.items())]
    environment = {k: v for k, v in os.environ.items() if k not in ("CFLAGS", "LDFLAGS", "MAKEFLAGS")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Chip:
    """The simulated board: its port, and what its outputs latched."""

    def __init__(self, folder: Path, kind: Kind, noise_percent: int = 0) -> None:
        arguments = [kind.mcu, kind.n_registers, 0x1A2B3C4D, noise_percent, 7]
        self._child = subprocess.Popen(
            [folder / "chip", folder / f"{kind.mcu}.elf", *map(str, arguments)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._child.stdout is not None
        self.uri = next(line.split()[1] for line in self._child.stdout if line.startswith("pty "))
        self.latched: list[str] = []
        self.latched_us: list[float] = []
        """When, by the chip's crystal of 16 MHz, since it was switched on."""
        self.directions: set[int] = set()
        self.resets = 0
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            with self._news:
                if found := re.fullmatch(r"latch (\d+) ([0-9a-f]+) ([01]+)\n", line):
                    self.latched_us.append(int(found[1]) / 16)
                    self.directions.add(int(found[2], 16))
                    self.latched.append(found[3])
                elif line.startswith("reset "):
                    self.resets += 1
                self._news.notify_all()

    def wait_for(self, outputs: str) -> None:
        """Return once the outputs are these; the child's report comes on another way than the board's answer."""
        with self._news:
            assert self._news.wait_for(lambda: self.latched[-1:] == [outputs], PATIENCE_S), self.latched[-1:]

    def close(self) -> None:
        self._child.kill()
        self._child.wait(60)
        self._thread.join(60)
        for end in (self._child.stdin, self._child.stdout):
            assert end is not None
            end.close()


@pytest.fixture(scope="module", params=KINDS, ids=lambda k: f"{k.mcu}-{k.rows}x{k.columns}x{k.phase_bits}")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Kind]:
    kind: Kind = request.param
    folder = tmp_path_factory.mktemp("chip")
    make("chip", folder)
    make("avr", folder, MCU=kind.mcu, BAUD=kind.baud, ROWS=kind.rows, COLUMNS=kind.columns, PHASE_BITS=kind.phase_bits)
    return folder, kind


def context(folder: Path) -> DriverContext:
    return DriverContext(seed=3, world=None, identity=None, state_dir=folder)


def opened(chip: Chip, kind: Kind, folder: Path) -> Ris595:
    return Ris595("ris", context(folder), uri=chip.uri, baud=kind.baud, open_timeout_s=PATIENCE_S)


@pytest.fixture
def chip(built: tuple[Path, Kind]) -> Iterator[Chip]:
    chip = Chip(*built)
    yield chip
    chip.close()


def test_it_says_who_it_is_and_starts_with_every_output_low(
    built: tuple[Path, Kind], chip: Chip, tmp_path: Path
) -> None:
    _, kind = built
    with opened(chip, kind, tmp_path) as board:
        assert (*board.shape, board.phase_bits) == (kind.rows, kind.columns, kind.phase_bits)
        assert board.identity()["serial"] == "1a2b3c4d"  # from its EEPROM
        chip.wait_for("0" * 8 * kind.n_registers)
        assert not board.readback().levels.any()


def test_every_pattern_is_on_the_pins_bit_by_bit(built: tuple[Path, Kind], chip: Chip, tmp_path: Path) -> None:
    _, kind = built
    with opened(chip, kind, tmp_path) as board:
        chip.wait_for("0" * 8 * kind.n_registers)
        before = len(chip.latched)
        wanted = [kind.pattern(seed) for seed in range(12)]
        for pattern in wanted:
            assert board.apply(pattern, timeout_s=PATIENCE_S).digest == pattern.digest
            assert board.readback(timeout_s=PATIENCE_S).digest == pattern.digest
        chip.wait_for(kind.outputs(wanted[-1]))
        assert chip.latched[before:] == [kind.outputs(p) for p in wanted]  # each once, in order, and nothing else
        assert chip.directions == {kind.pins}


def test_queue_trigger_and_a_codebook(built: tuple[Path, Kind], chip: Chip, tmp_path: Path) -> None:
    _, kind = built
    with opened(chip, kind, tmp_path) as board:
        board.apply(kind.pattern(1), timeout_s=PATIENCE_S)
        chip.wait_for(kind.outputs(kind.pattern(1)))
        before = len(chip.latched)
        board.queue(kind.pattern(2), timeout_s=PATIENCE_S)
        assert len(chip.latched) == before
        board.trigger(timeout_s=PATIENCE_S)
        chip.wait_for(kind.outputs(kind.pattern(2)))
        book = [kind.pattern(seed) for seed in range(10, 18)]
        board.upload(book, timeout_s=PATIENCE_S)
        for index in (7, 0, 3):
            board.apply_index(index, timeout_s=PATIENCE_S)
            chip.wait_for(kind.outputs(book[index]))


def test_a_schedule_is_latched_to_the_microsecond(built: tuple[Path, Kind], chip: Chip, tmp_path: Path) -> None:
    _, kind = built
    with opened(chip, kind, tmp_path) as board:
        size = board.capabilities.schedule_size
        assert size == {"atmega1284p": 64, "atmega328p": 320 // (4 + kind.n_registers)}[kind.mcu]
        wanted = [kind.pattern(seed) for seed in range(8)]
        chip.wait_for("0" * 8 * kind.n_registers)
        before = len(chip.latched)
        start_s = board.now_s() + 1.0
        # 33 ms is the period of its timer; libsimavr takes 100 µs to shift a byte, of which a pattern has up to 64
        times_s = [start_s + at_s for at_s in (0.0, 0.01, 0.02, 0.0345, 0.0445, 0.2, 0.21, 0.301)]
        found = board.schedule(wanted, times_s, timeout_s=PATIENCE_S)
        assert [x.digest for x in found] == [x.digest for x in wanted]
        chip.wait_for(kind.outputs(wanted[-1]))
        assert chip.latched[before:] == [kind.outputs(p) for p in wanted]
        gaps_us = np.diff(chip.latched_us[before:])
        assert np.abs(gaps_us - 1e6 * np.diff([x.time_s for x in found])).max() < 25  # an interrupt or two come first
        assert board.readback(timeout_s=PATIENCE_S).digest == wanted[-1].digest
        with pytest.raises(DeviceError, match="too_late"):
            board.schedule(wanted[:1], [board.now_s() - 1e-3], timeout_s=PATIENCE_S)


def test_the_watchdog_clears_the_pins_of_a_silent_line(built: tuple[Path, Kind], chip: Chip, tmp_path: Path) -> None:
    _, kind = built
    with opened(chip, kind, tmp_path) as board:
        board.apply(kind.pattern(1), timeout_s=PATIENCE_S)
        chip.wait_for(kind.outputs(kind.pattern(1)))  # what is all zero from then on was cleared
        board.set_watchdog(0.3, timeout_s=PATIENCE_S)
        chip.wait_for("0" * 8 * kind.n_registers)
        assert not board.readback(timeout_s=PATIENCE_S).levels.any()
        assert chip.resets == 0


def test_a_chip_that_started_anew_is_noticed(built: tuple[Path, Kind], chip: Chip, tmp_path: Path) -> None:
    _, kind = built
    with opened(chip, kind, tmp_path) as board:
        board.apply(kind.pattern(1), timeout_s=PATIENCE_S)
        board.upload([kind.pattern(5)], timeout_s=PATIENCE_S)
        board.reset(timeout_s=PATIENCE_S)
        chip.wait_for("0" * 8 * kind.n_registers)
        assert chip.resets == 1  # its own watchdog did it
        with pytest.raises(DeviceError, match="upload"):
            board.apply_index(0, timeout_s=PATIENCE_S)
        board.apply(kind.pattern(2), timeout_s=PATIENCE_S)
        chip.wait_for(kind.outputs(kind.pattern(2)))


def test_with_three_frames_in_ten_damaged_every_apply_is_exact(built: tuple[Path, Kind], tmp_path: Path) -> None:
    folder, kind = built
    noisy = Chip(folder, kind, noise_percent=30)
    try:
        with opened(noisy, kind, tmp_path) as board:
            began_s, done = time.monotonic(), 0
            while done < 40 and (done < 8 or time.monotonic() - began_s < 30.0):
                board.apply(kind.pattern(done), timeout_s=PATIENCE_S)
                noisy.wait_for(kind.outputs(kind.pattern(done)))
                done += 1
            wanted = [kind.outputs(kind.pattern(seed)) for seed in range(done)]
        # a request sent twice was executed once, and nothing else ever reached the pins
        assert [x for x in noisy.latched if "1" in x][: len(wanted)] == wanted
    finally:
        noisy.close()
