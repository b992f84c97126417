"""The open buffers of an emulated Pluto: the receiver's ring of blocks, which its readers share, and the transmitter's
buffer."""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim_backend.emulators.iiod import Stream
from testbed.core.types import C64

DAC_FULL_SCALE = 32768.0
SLICE = 1 << 16
"""Number of samples that are simulated at a time; a block is passed on as it grows."""
_MOST_IN_RING = 1 << 24
"""Largest number of samples in all blocks of a ring, 64 MiB: four blocks, as many as there are unless a client asks for
others, of the greatest length."""
_EAGER = 2 * SLICE
"""A ring of at most this many samples is filled before OPEN is answered, so that its age does not depend on timing.
Its blocks are filled in the client's thread."""

I16 = NDArray[np.int16]


class Block:
    """A block of samples that is being captured: (sample, 2) int16."""

    def __init__(self, n_samples: int, at_once: bool = False) -> None:
        self.samples: I16 = np.zeros((n_samples, 2), "<i2")
        self.at_once = at_once
        """Whether it is filled before `Capture.capture` returns."""
        self.filled = 0
        self.wanted = True
        """Whether a reader still waits for it."""
        self._failure: OSError | None = None
        self._grown = threading.Condition()

    def add(self, samples: I16) -> None:
        """Append the next samples."""
        with self._grown:
            self.samples[self.filled : self.filled + len(samples)] = samples
            self.filled += len(samples)
            self._grown.notify_all()

    def fail(self, failure: OSError) -> None:
        """End the block with an error: no more samples come."""
        with self._grown:
            self._failure = failure
            self._grown.notify_all()

    @property
    def whole(self) -> bool:
        return self.filled == len(self.samples)

    def wait(self, beyond: int) -> int:
        """Return the number of samples once there are more than `beyond`; raises the error that ended the capture."""
        with self._grown:
            self._grown.wait_for(lambda: self.filled > beyond or self._failure is not None)
            if self.filled <= beyond and self._failure is not None:
                raise OSError(self._failure.errno, self._failure.strerror)
            return self.filled

    def pieces(self, parts: list[int], n_bytes: int) -> Iterator[memoryview]:
        """Yield the first `n_bytes` of I, Q or both as they come in; raises OSError where no more come."""
        width, done = 2 * len(parts), 0
        while done * width < n_bytes:
            there = self.wait(done)
            piece = np.ascontiguousarray(self.samples[done:there][:, parts])
            yield piece.data.cast("B")[: n_bytes - done * width]
            done = there


class Capture(Protocol):
    """The interface that fills blocks, one after the other: the radio."""

    def capture(self, block: Block) -> None:
        """Fill a block, from now or once the ones before it are full; returns at once unless it is filled `at_once`."""

    def asked(self) -> None:
        """A client asks for a block."""

    def took(self, duration_s: float, ring_s: float) -> None:
        """A client received a block of this duration; the ring contains `ring_s` of further samples."""

    @property
    def rate_hz(self) -> float: ...
    @property
    def early_requeue(self) -> bool: ...
    @property
    def holds_back(self) -> bool: ...


class Ring:
    """Blocks that are filled in turn. A block is filled as soon as it is queued, and queued again after it was read."""

    def __init__(self, radio: Capture) -> None:
        self.radio = radio
        self._lock = threading.Lock()
        self._blocks: deque[Block] = deque()
        self._current: Block | None = None
        self._given: set[object] = set()
        """Readers that have received the current block."""
        self._spent = False
        """Whether the block that was read last must still be queued again."""
        self._n = self._n_blocks = 0
        self.readers: list[object] = []

    def join(self, reader: object, n_samples: int, n_blocks: int) -> None:
        """Start again with one more reader; blocks get the largest length that any reader requested.

        A buffer's CLOSE may come after the next one's OPEN, so samples captured for the old one are discarded here.
        """
        with self._lock:
            longest = max(n_samples, self._n) if self.readers else n_samples
            if longest * n_blocks > _MOST_IN_RING:
                raise OSError(errno.ENOMEM, "buffers too large")
            self._n = longest
            self._n_blocks = n_blocks
            self.readers.append(reader)
            self._drop()
            for _ in range(n_blocks):
                self._queue()
            blocks = list(self._blocks)
        if self._n * n_blocks <= _EAGER:
            for block in blocks:
                block.wait(self._n - 1)
        self.radio.took(self.lasts_s, self.lasts_s)

    def leave(self, reader: object) -> None:
        """Remove a reader; after the last one, nothing is captured."""
        with self._lock:
            if reader in self.readers:
                self.readers.remove(reader)
            if not self.readers:
                self._drop()

    @property
    def lasts_s(self) -> float:
        """Return the total duration of the blocks that wait for a reader."""
        return (self._n_blocks - self._spent) * self._n / self.radio.rate_hz

    def take(self, reader: object) -> Block:
        """Return the next block; readers that ask while another one waits for a block get the same."""
        waited = not self._lock.acquire(blocking=False)
        if waited:
            self._lock.acquire()
        try:
            current = self._current
            if current is not None and (waited or not current.whole) and reader not in self._given:
                self._given.add(reader)
                return current
            if self._spent or not self._blocks:
                self._queue()
            self._current = block = self._blocks.popleft()
            self._given = {reader}
            self._spent = not self.radio.early_requeue
            if self.radio.early_requeue:
                self._queue()
            block.wait(0 if self._n > SLICE else self._n - 1)
            return block
        finally:
            self._lock.release()

    def _queue(self) -> None:
        block = Block(self._n, self._n * self._n_blocks <= _EAGER)
        self._blocks.append(block)
        self.radio.capture(block)
        if block.at_once and len(self._blocks) > 1:
            block.wait(self._n - 1)

    def _drop(self) -> None:
        for block in self._blocks:
            block.wanted = False
        if self._current is not None:
            self._current.wanted = False
        self._blocks.clear()
        self._current, self._spent = None, False


class Troubles(Protocol):
    """Possible faults of a read (`pluto.Faults`)."""

    hang_s: float
    silent: bool
    dribble_s: float
    failing_reads: int
    disconnect_reads: int


class RxStream(Stream):
    """One reader of the ring."""

    def __init__(self, ring: Ring, faults: Troubles, n_samples: int, parts: list[int], n_blocks: int) -> None:
        self._ring, self._faults, self._parts = ring, faults, parts
        try:
            ring.join(self, n_samples, n_blocks)
        except BaseException:
            ring.leave(self)
            raise

    def read(self, n_bytes: int, timeout_s: float) -> tuple[int, Iterator[memoryview]] | None:
        faults = self._faults
        self._ring.radio.asked()
        if faults.hang_s:
            time.sleep(faults.hang_s)
        if faults.silent or self._ring.radio.holds_back:
            time.sleep(timeout_s)
            raise OSError(errno.ETIMEDOUT, "no samples")
        self.dribble_s = faults.dribble_s
        if faults.failing_reads:
            faults.failing_reads -= 1
            raise OSError(errno.EIO, "failed")
        if faults.disconnect_reads:
            faults.disconnect_reads -= 1
            return None
        block = self._ring.take(self)
        length = min(n_bytes, len(block.samples) * 2 * len(self._parts))
        return length, self._pieces(block, length)

    def _pieces(self, block: Block, length: int) -> Iterator[memoryview]:
        yield from block.pieces(self._parts, length)
        radio = self._ring.radio
        radio.took(len(block.samples) / radio.rate_hz, self._ring.lasts_s)

    def close(self) -> None:
        self._ring.leave(self)


class Player(Protocol):
    """The interface that sends: the radio."""

    def play(self, samples: C64, cyclic: bool) -> None: ...
    def stop(self) -> None: ...


class TxStream(Stream):
    """A transmission; closing it, or the end of the client, ends a repetition."""

    def __init__(self, player: Player, n_samples: int, parts: list[int], cyclic: bool) -> None:
        self._player, self._parts, self._cyclic = player, parts, cyclic
        self.longest_write = n_samples * 2 * len(parts)

    def write(self, data: bytes) -> None:
        width = 2 * len(self._parts)
        if len(data) % width:
            raise OSError(errno.EINVAL, "not whole samples")
        levels = np.zeros((len(data) // width, 2), np.float32)
        levels[:, self._parts] = np.frombuffer(data, "<i2").reshape(-1, len(self._parts)) / DAC_FULL_SCALE
        self._player.play(levels.view(np.complex64)[:, 0], self._cyclic)

    def close(self) -> None:
        self._player.stop()
