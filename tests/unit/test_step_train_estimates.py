"""Frames of a train in one capture that begins anywhere in their repetition, as a node estimates from them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_node_trains import Node
from test_world_radio import room

from testbed.core.errors import DeviceError, InputError
from testbed.core.types import C64, IqBlock
from testbed.core.windows import PERIODS, FrameTrain
from testbed.net import messages as m
from testbed.nodes import operations

K = 5
SPARE = 700
"""Samples of silence between two frames."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[dict[str, Node]]:
    with room() as world:
        yield {role: Node(world, role) for role in ("bob", "eve")}


def train_of(node: Node, period: int | None = None, count: int = K) -> FrameTrain:
    size = node.work._ready().frame.samples.size
    return FrameTrain(size, size + SPARE if period is None else period, count)


def gain(number: int) -> complex:
    """Return the channel of the frame `number` of a repetition: each has its own."""
    return complex(0.005 * (number + 3) * np.exp(0.7j * number))


def capture(node: Node, train: FrameTrain, phase: int, ppm: float = 0.0) -> C64:
    """Return a capture (1, sample): frame 0 of the repetition begins `phase` samples after it does, and the frame
    before it begins before it. `ppm`: by how much the transmitter's clock is too fast."""
    frame = node.work._ready().frame.samples
    rng = np.random.default_rng(phase)
    out = 1e-5 * (rng.standard_normal(train.n_samples) + 1j * rng.standard_normal(train.n_samples))
    for number in range(-1, train.count + 2):
        start = round(phase + number * train.period * (1 - ppm * 1e-6))
        first, stop = max(start, 0), min(start + frame.size, out.size)
        if first < stop:
            out[first:stop] += gain(number) * frame[first - start : stop - start]
    return out.astype(np.complex64)[None]


def estimated(node: Node, train: FrameTrain, samples: C64) -> tuple[list[m.RoundResult], list[complex | None]]:
    """Return what a node reports of a train, and its mean channel in each round relative to the first sample."""
    order = m.Step(round=10, rounds=train.count, period=train.period, step=1, action="receive", tx="alice", last=True)
    node.radio.receive = lambda n: IqBlock(samples[:, :n], node.radio.settings.sample_rate_hz, 2.0)  # type: ignore[method-assign]
    node.work._part = operations._Part(-1)
    done: Any = node.work.step(order)
    results = [r for report in done.reports for r in report.rounds]
    assert [r.round for r in results] == list(range(10, 10 + train.count))
    return results, [amplitude(node, done.csi[r.round].get("alice")) for r in results]


def amplitude(node: Node, found: Any) -> complex | None:
    """Return the number of the frame that was found, by its channel's magnitude; None where there is none."""
    if found is None:
        return None
    unit = amplitude_of_unit(node)
    return round(float(np.abs(found.h).mean()) / unit / 0.005, 1) - 3


def amplitude_of_unit(node: Node) -> float:
    """Return the magnitude that the estimator gives for a channel of 1."""
    tuned = node.work._ready()
    block = IqBlock(np.pad(tuned.frame.samples, 40)[None, :], tuned.frame.sample_rate_hz, 0.0)
    (found,) = tuned.estimator.estimate_many([block], tuned.frame)
    return float(np.abs(found.h).mean())  # type: ignore[union-attr]


def test_wherever_a_capture_begins_its_rounds_are_frames_in_a_row(nodes: dict[str, Node]) -> None:
    train = train_of(nodes["bob"])
    phases = {0, 1, train.margin - 1, train.margin, train.margin + 1, train.period - 1, train.period - train.frame}
    firsts = set()
    for phase in sorted({*phases, *range(0, train.period, 97)}):
        results, numbers = estimated(nodes["bob"], train, capture(nodes["bob"], train, phase))
        assert [link.reason for r in results for link in r.links] == [None] * K
        first = numbers[0]
        assert first in (0, 1), phase
        assert numbers == [first + i for i in range(K)], phase
        firsts.add(first)
        times_s = [r.links[0].device_time_s for r in results]
        period_s = train.period / nodes["bob"].radio.settings.sample_rate_hz
        assert np.allclose(np.diff(times_s), period_s, atol=2e-8)
        assert times_s[0] >= 2.0
    assert firsts == {0, 1}


def test_frames_without_a_gap_are_told_apart(nodes: dict[str, Node]) -> None:
    train = train_of(nodes["bob"], period=nodes["bob"].work._ready().frame.samples.size)
    for phase in range(0, train.period, 61):
        results, numbers = estimated(nodes["bob"], train, capture(nodes["bob"], train, phase))
        assert [link.reason for r in results for link in r.links] == [None] * K, phase
        assert numbers == [numbers[0] + i for i in range(K)], phase  # type: ignore[operator]


@pytest.mark.parametrize("ppm", [-50.0, 50.0])
def test_crystals_that_run_apart_are_followed(nodes: dict[str, Node], ppm: float) -> None:
    """Over this train they are apart by more than the margin of the windows in which a frame is looked for."""
    train = train_of(nodes["bob"], period=40_000, count=90)
    assert train.margin < 40_000 * 90 * 50e-6
    assert train.together < 30
    results, numbers = estimated(nodes["bob"], train, capture(nodes["bob"], train, 12_345, ppm))
    assert [link.reason for r in results for link in r.links] == [None] * 90
    assert numbers == [float(i) for i in range(90)]


def test_a_frame_that_is_clipped_or_missing_costs_its_round_only(nodes: dict[str, Node]) -> None:
    bob = nodes["bob"]
    train = train_of(bob)
    samples = capture(bob, train, 300)
    for number, spoil in ((0, "clipped"), (2, "missing")):
        start = 300 + number * train.period
        part = samples[0, start : start + train.frame]
        part[:] = (1 + 1j) * np.sign(part.real) if spoil == "clipped" else 1e-4 * part
    results, numbers = estimated(bob, train, samples)
    assert [r.links[0].reason for r in results] == ["clipped", None, "no_preamble", None, None]
    assert numbers == [None, 1, None, 3, 4]
    assert [r.fault for r in results] == [None] * K


def test_a_capture_without_frames_rejects_every_round_for_a_reason(nodes: dict[str, Node]) -> None:
    bob = nodes["bob"]
    train = train_of(bob)
    noise = capture(bob, train, 10 * train.n_samples)[:, : train.n_samples]
    results, numbers = estimated(bob, train, noise)
    assert [r.links[0].reason for r in results] == ["no_preamble"] * K
    assert numbers == [None] * K


def test_eve_takes_the_nearest_frame_where_hers_was_not_received(nodes: dict[str, Node]) -> None:
    train = train_of(nodes["eve"])
    samples = capture(nodes["eve"], train, 300)
    for number in (1, 2, 4):
        start = 300 + number * train.period
        samples[0, start : start + train.frame] *= 1e-4
    results, numbers = estimated(nodes["eve"], train, samples)
    assert [r.links[0].reason for r in results] == [None] * K
    assert numbers == [0, 0, 3, 3, 3]
    assert results[1].links[0].device_time_s == results[0].links[0].device_time_s  # it is not said to be later


def test_an_eve_who_receives_few_frames_is_not_taken_for_one_who_measured_all(nodes: dict[str, Node]) -> None:
    train = train_of(nodes["eve"])
    samples = capture(nodes["eve"], train, 300)
    for number in (1, 2, 3, 4):
        start = 300 + number * train.period
        samples[0, start : start + train.frame] *= 1e-4
    results, numbers = estimated(nodes["eve"], train, samples)
    assert [r.links[0].reason for r in results] == [None, None, "no_preamble", "no_preamble", "no_preamble"]
    assert numbers == [0, 0, None, None, None]


def test_a_capture_that_failed_rejects_all_rounds_of_the_train_and_no_other(nodes: dict[str, Node]) -> None:
    bob = nodes["bob"]
    train = train_of(bob)

    def fail(n: int) -> IqBlock:
        raise DeviceError("bob", "receive", "configured", "no samples in time")

    bob.work._part = operations._Part(-1)
    bob.radio.receive = fail  # type: ignore[method-assign]
    done: Any = bob.work.step(
        m.Step(round=3, rounds=K, period=train.period, step=1, action="receive", tx="alice", last=True)
    )
    results = [r for report in done.reports for r in report.rounds]
    assert [(r.round, r.fault) for r in results] == [(n, "device") for n in range(3, 3 + K)]
    again, _ = estimated(bob, train, capture(bob, train, 5))
    assert [r.fault for r in again] == [None] * K


def test_a_train_of_one_is_captured_as_a_single_round(nodes: dict[str, Node]) -> None:
    """By an order of before there were trains: the frame without a gap, three periods of it."""
    bob = nodes["bob"]
    asked: list[int] = []
    frame = bob.work._ready().frame

    def receive(n: int) -> IqBlock:
        asked.append(n)
        return IqBlock(np.tile(0.1 * frame.samples, PERIODS)[None, :], frame.sample_rate_hz, 0.0)

    bob.radio.receive = receive  # type: ignore[method-assign]
    bob.work._part = operations._Part(-1)
    done: Any = bob.work.step(m.Step(round=3, step=1, action="receive", tx="alice", last=True))
    assert asked == [PERIODS * frame.samples.size]
    assert done.reports[0].rounds[0].links[0].reason is None
    sent = bob.work._repeated(bob.work._ready(), operations._Part(3))
    assert np.array_equal(sent, frame.samples[None, :])


@pytest.mark.parametrize(
    ("rounds", "period", "words"),
    [
        (3, 5, "a frame every 5 samples, accepted from"),
        (256, 1 << 20, r"\d+ samples of one reception, accepted up to 4000000"),
    ],
)
def test_a_train_that_cannot_be_is_refused(nodes: dict[str, Node], rounds: int, period: int, words: str) -> None:
    bob = nodes["bob"]
    for action in ("transmit", "receive"):
        bob.work._part = operations._Part(-1)
        order = m.Step(round=3, rounds=rounds, period=period, step=1, action=action, tx="alice", last=True)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=words):
            bob.work.step(order)


def test_captures_of_one_train_have_a_limit_together(nodes: dict[str, Node], monkeypatch: pytest.MonkeyPatch) -> None:
    bob = nodes["bob"]
    train = train_of(bob)
    monkeypatch.setattr(operations, "MAX_TRAIN_SAMPLES", 2 * train.n_samples)
    samples = capture(bob, train, 5)
    bob.radio.receive = lambda n: IqBlock(samples, 40e6, 0.0)  # type: ignore[method-assign]
    bob.work._part = operations._Part(-1)

    def receive() -> Any:
        return bob.work.step(
            m.Step(round=3, rounds=K, period=train.period, step=1, action="receive", tx="alice", last=False)
        )

    receive()
    receive()
    with pytest.raises(InputError, match="samples of one train, accepted: no more"):
        receive()
