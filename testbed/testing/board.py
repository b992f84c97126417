"""The contract of `core.ris.Board`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import numpy as np

from testbed.core.errors import DeviceError
from testbed.core.ris import Board
from testbed.core.types import SurfacePattern
from testbed.testing._suite import Suite, check, refused


def check_board(make: Callable[[], AbstractContextManager[Board]]) -> None:
    """Raise AssertionError unless the boards that `make` opens keep the contract; a `Board` is its own context."""
    check(BoardSuite, make)


def pattern(board: Board, seed: int = 1) -> SurfacePattern:
    """Return a random pattern that the board takes."""
    levels = np.random.default_rng(seed).integers(0, 1 << board.phase_bits, board.shape).astype(np.uint8)
    return SurfacePattern(levels, board.phase_bits)


class BoardSuite(Suite):
    """`make()` opens a board, real or emulated, and closes it when the block is left."""

    contract = "board"

    def test_says_what_it_is(self) -> None:
        with self.fresh() as board:
            assert board.n_elements == board.shape[0] * board.shape[1] > 0
            assert board.phase_bits >= 1
            assert board.identity()["driver"]

    def test_apply_acknowledges_with_a_time_and_readback_agrees(self) -> None:
        with self.fresh() as board:
            last_s = -np.inf
            for seed in range(3):
                wanted = pattern(board, seed)
                applied = board.apply(wanted)
                assert applied.digest == wanted.digest
                assert applied.time_s >= last_s
                last_s = applied.time_s
                held = board.readback()
                assert held.digest == wanted.digest
                np.testing.assert_array_equal(held.levels, wanted.levels)

    def test_a_wrong_pattern_raises_and_changes_nothing(self) -> None:
        with self.fresh() as board:
            wanted = pattern(board)
            board.apply(wanted)
            rows, columns = board.shape
            too_high = wanted.levels.copy()
            too_high[0, 0] = 1 << board.phase_bits
            wrong: list[Any] = [
                SurfacePattern(np.zeros((rows + 1, columns), np.uint8), board.phase_bits),
                SurfacePattern(np.zeros((columns, rows + 1), np.uint8), board.phase_bits),
                SurfacePattern(wanted.levels.ravel(), board.phase_bits),
                SurfacePattern(too_high, board.phase_bits),
                SurfacePattern(wanted.levels.astype(int), board.phase_bits),
                SurfacePattern(np.asarray(wanted.levels + 0.5, np.float64), board.phase_bits),
                SurfacePattern(wanted.levels, board.phase_bits + 1),
            ]
            for bad in wrong:
                with refused(DeviceError, "accepted"):
                    board.apply(bad)
                assert board.readback().digest == wanted.digest

    def test_the_caller_may_reuse_its_array(self) -> None:
        with self.fresh() as board:
            wanted = pattern(board)
            levels = wanted.levels.copy()
            board.apply(SurfacePattern(levels, board.phase_bits))
            levels[:] = 0
            assert board.readback().digest == wanted.digest

    def test_close_may_be_repeated_and_ends_operations(self) -> None:
        with self.fresh() as board:
            board.close()
            board.close()
            with refused(DeviceError, "closed"):
                board.apply(pattern(board))
            with refused(DeviceError, "closed"):
                board.readback()

    def test_what_is_queued_latches_on_the_trigger(self) -> None:
        with self.fresh() as board:
            before, wanted = pattern(board, 1), pattern(board, 2)
            board.apply(before)
            if not board.capabilities.can_queue:
                with refused(DeviceError, "cannot queue"):
                    board.queue(wanted)
                return
            board.queue(wanted)
            assert board.readback().digest == before.digest
            assert board.trigger().digest == wanted.digest
            assert board.readback().digest == wanted.digest

    def test_patterns_latch_at_their_times(self) -> None:
        with self.fresh() as board:
            wanted = [pattern(board, seed) for seed in range(3)]
            start_s = board.now_s() + board.capabilities.latency_s + 0.5
            times_s = [start_s + 0.01 * k for k in range(3)]
            if not board.capabilities.schedule_size:
                with refused(DeviceError, "none by time"):
                    board.schedule(wanted, times_s)
                return
            with refused(DeviceError, "ascending"):
                board.schedule(wanted, times_s[::-1])
            with refused(DeviceError):
                board.schedule(wanted, [board.now_s() - 100.0, *times_s[1:]])
            found = board.schedule(wanted, times_s)
            assert [x.digest for x in found] == [x.digest for x in wanted]
            assert all(abs(x.time_s - at_s) < 1e-6 for x, at_s in zip(found, times_s, strict=True))

    def test_a_codebook_is_chosen_from_by_index(self) -> None:
        with self.fresh() as board:
            size = board.capabilities.codebook_size
            codebook = [pattern(board, seed) for seed in range(min(size, 3) or 1)]
            if not size:
                with refused(DeviceError, "no codebook"):
                    board.upload(codebook)
                return
            board.upload(codebook)
            for index, wanted in enumerate(codebook):
                assert board.apply_index(index).digest == wanted.digest
                assert board.readback().digest == wanted.digest
            with refused(DeviceError):
                board.apply_index(size)

    def test_many_patterns_are_acknowledged_in_order(self) -> None:
        with self.fresh() as board:
            wanted = [pattern(board, seed) for seed in range(20)]
            applied = list(board.apply_many(wanted))
            assert [a.digest for a in applied] == [p.digest for p in wanted]
            assert all(a.time_s <= b.time_s for a, b in pairwise(applied))
            assert board.readback().digest == wanted[-1].digest
            if not board.capabilities.codebook_size:
                with refused(DeviceError, "no codebook"):
                    board.apply_many([0])
                return
            board.upload(wanted[:3])
            steps: list[Any] = [0, 2, wanted[5], 1, 1, wanted[6], 0] * 5
            expected = [wanted[x].digest if isinstance(x, int) else x.digest for x in steps]
            assert [a.digest for a in board.apply_many(steps)] == expected
            assert board.readback().digest == wanted[0].digest

    def test_of_many_a_wrong_one_is_refused_before_any_is_set(self) -> None:
        with self.fresh() as board:
            before = pattern(board, 1)
            board.apply(before)
            with refused(DeviceError, "accepted"):
                board.apply_many([pattern(board, 2), SurfacePattern(before.levels, board.phase_bits + 1)])
            assert board.readback().digest == before.digest

    def test_many_may_be_given_up_halfway(self) -> None:
        with self.fresh() as board:
            steps = board.apply_many([pattern(board, seed) for seed in range(20)])
            next(steps)
            next(steps)
            steps.close()
            board.apply(last := pattern(board, 99))
            assert board.readback().digest == last.digest
