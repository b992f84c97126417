"""The contract of `core.world.Emulator`: a device's emulator, which its driver uses over its own wire."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from testbed.core.errors import DeviceError, InputError
from testbed.core.ris import Board
from testbed.core.types import SurfacePattern
from testbed.core.world import DriverContext
from testbed.testing._suite import Suite, check, refused, skip


@dataclass
class EmulatorBench:
    """The objects that the emulator suite needs."""

    twin: Any
    """The class of the emulator, an `Emulator`."""
    driver: Any
    """The class of the emulated device's driver: a `Radio` or a `Board`."""
    context: DriverContext
    """Context with a simulated air that runs during the block."""
    name: str = "alice"
    """Name of the node: one for which the air's scene has a place, or `ris`."""


def check_emulator(make: Callable[[], AbstractContextManager[EmulatorBench]]) -> None:
    """Raise AssertionError unless the emulators of the benches that `make` opens keep the contract."""
    check(EmulatorSuite, make)


class EmulatorSuite(Suite):
    """`make()` opens an `EmulatorBench`: an air, the emulator's class and the driver's."""

    contract = "emulator"

    def twin(self, bench: EmulatorBench, name: str | None = None) -> Any:
        if bench.twin.in_process:
            skip("it is installed in the driver's process and has no wire")
        if name is None:
            return bench.twin(bench.name, bench.context)
        folder = bench.context.state_dir / name  # a node's folder is its own
        folder.mkdir()
        return bench.twin(name, replace(bench.context, state_dir=folder))

    def test_unknown_options_are_refused_by_table_and_key(self) -> None:
        with self.fresh() as bench:
            words = rf"table \[world\.emulators\.{bench.name}\]: unknown key 'no_such_option'.*accepted"
            with refused(InputError, words):
                if bench.twin.in_process:
                    bench.twin.equip(bench.name, bench.context, {"no_such_option": 1})
                else:
                    bench.twin(bench.name, bench.context, no_such_option=1)

    def test_its_driver_finds_it_and_it_says_who_it_is(self) -> None:
        with self.fresh() as bench:
            twin = self.twin(bench)
            try:
                assert isinstance(twin.uri, str)
                with bench.driver(bench.name, bench.context, uri=twin.uri) as device:
                    assert device.identity()["driver"]
            finally:
                twin.close()

    def test_a_board_does_what_it_is_told(self) -> None:
        with self.fresh() as bench:
            if not issubclass(bench.driver, Board):
                skip("no board")
            twin = self.twin(bench)
            try:
                with bench.driver(bench.name, bench.context, uri=twin.uri) as board:
                    rng = np.random.default_rng(1)
                    levels = rng.integers(0, 1 << board.phase_bits, board.shape).astype(np.uint8)
                    wanted = SurfacePattern(levels, board.phase_bits)
                    assert board.apply(wanted).digest == wanted.digest
                    assert board.readback().digest == wanted.digest
            finally:
                twin.close()

    def test_two_are_two_devices(self) -> None:
        with self.fresh() as bench:
            one = self.twin(bench)
            try:
                two = self.twin(bench, "bob" if bench.name != "ris" else "ris2")
                try:
                    assert one.uri != two.uri
                finally:
                    two.close()
            finally:
                one.close()

    def test_once_closed_it_is_gone(self) -> None:
        with self.fresh() as bench:
            twin = self.twin(bench)
            uri = twin.uri
            twin.close()
            twin.close()
            with refused(DeviceError):
                bench.driver(bench.name, bench.context, uri=uri)
