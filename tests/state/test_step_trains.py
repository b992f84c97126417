"""Trains of rounds of radios that cannot time their samples, on paper: five steps for all rounds."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from test_coordinator import LAB
from test_steps import Untimed

from testbed.coordinator import events as e
from testbed.coordinator.steps import Pace
from testbed.net import messages as m

RATE_HZ = 1e6
FIXED = {"policy": "none"}
FIVE = ["transmit", "receive", "silence+transmit", "receive", "silence"]


class Trains(Untimed):
    """`heard`: (node, round) → why that node receives nothing in it."""

    def __init__(
        self, script: Any = lambda node, body: None, longest_capture: int = 0,
        limited: tuple[str, ...] = ("alice", "bob", "eve"), **changes: Any,
    ) -> None:  # fmt: skip
        self.longest_capture, self.limited = longest_capture, limited
        self.heard: dict[tuple[str, int], str] = {}
        probing = {"interval_s": 1e-3, **changes.pop("probing", {})}
        usual = {"surface": FIXED, "radio": {"sample_rate_hz": RATE_HZ}, "accounting": {"block_rounds": 40}}
        super().__init__(script, probing=probing, **{"rounds": 22, **usual, **changes})

    def says(self, name: str, body: Any) -> e.Received:
        received = super().says(name, body)
        if isinstance(body, m.Hello) and self.longest_capture and name in self.limited:
            fields = {f: getattr(received.body, f) for f in received.body.__struct_fields__}
            return e.Received(
                name, received.incarnation, m.Hello(**{**fields, "longest_capture": self.longest_capture})
            )
        return received

    def result(self, node: str, number: int) -> m.RoundResult:
        why = self.heard.get((node, number))
        links = [m.LinkResult(tx=tx, reason=why, snr_db=20.0) for tx in ("alice", "bob") if tx != node]
        return m.RoundResult(round=number, links=links)

    @property
    def trains(self) -> list[tuple[int, int, int]]:
        """(first round, rounds, period) of each train."""
        steps = [b for _, b in self.told if isinstance(b, m.Step)]
        return list(dict.fromkeys((b.round, b.rounds, b.period) for b in steps))

    @property
    def reasons(self) -> list[str | None]:
        """Why each round was rejected, or withdrawn later; None where it was kept."""
        latest = {r.round: r.reason for r in self.rounds}
        return [latest[number] for number in sorted(latest)]


def test_a_train_takes_the_five_steps_of_a_round() -> None:
    stage = Trains()
    stage.join()
    # 5 ms of the radios and 0.1 ms of the experiment: as long as 5 periods of 1 ms
    assert stage.trains == [(0, 5, 1000), (5, 5, 1000), (10, 5, 1000), (15, 5, 1000), (20, 2, 1000)]
    assert stage.orders(5) == [
        ("alice", "transmit", False),
        ("bob", "receive", False),
        ("eve", "receive", False),
        ("alice", "silence", False),
        ("bob", "transmit", False),
        ("alice", "receive", True),
        ("eve", "receive", True),
        ("bob", "silence", True),
    ]
    assert stage.reasons == [None] * 22
    assert stage.over is not None
    assert stage.over.status == "finished"


def test_rounds_of_a_train_begin_a_period_apart_and_the_next_train_after_it() -> None:
    stage = Trains()
    stage.join()
    starts = [r.start_s for r in stage.rounds]
    gaps_ms = [round(1e3 * (b - a), 3) for a, b in pairwise(starts)]
    # two slots, each of 5 periods, a frame and the margins, 5.012 ms, and of 5.1 ms of turn-around
    assert gaps_ms[:6] == [1.0, 1.0, 1.0, 1.0, 16.224, 1.0]


@pytest.mark.parametrize(
    ("probing", "train"),
    [
        ({"interval_s": 0.25}, 1),
        ({"interval_s": 2.6e-3}, 1),
        ({"interval_s": 2.5e-3}, 2),
        ({"interval_s": 0.5e-3}, 10),
        ({"interval_s": 1e-3, "turnaround_s": 20e-3}, 25),
        ({"interval_s": 1e-6}, 256),  # the frame of 10 samples is longer, and is sent without a gap
        ({"interval_s": 1e-3, "train": 1}, 1),
        ({"interval_s": 1e-3, "train": 40}, 40),
        ({"interval_s": 0.1, "train": 8}, 8),
        ({"interval_s": 0.1, "turnaround_s": 3.0}, 8),  # no train is longer than 0.8 s
    ],
)
def test_how_many_rounds_a_train_has(probing: dict[str, Any], train: int) -> None:
    stage = Trains(probing=probing, rounds=300, accounting={"block_rounds": 300})
    stage.join()
    first, rounds, period = stage.trains[0]
    assert (first, rounds) == (0, train)
    assert period == (0 if train == 1 else max(10, round(probing["interval_s"] * RATE_HZ)))


def test_what_cannot_be_kept_is_said_once_before_the_first_round() -> None:
    notes = {}
    for interval_s in (1e-3, 6e-3, 0.05):
        stage = Trains(probing={"interval_s": interval_s})
        stage.join()
        notes[interval_s] = [n.detail["detail"] for n in stage.notes if n.kind == "interval_too_short"]
    assert notes[0.05] == []
    assert notes[1e-3] == [
        "probing.interval_s = 0.001 s, but radios that cannot time their samples need 0.0051 s between two slots: "
        "trains of 5 rounds, 0.001 s apart, begin every 0.0202 s; a round's slots are 0.0101 s apart"
    ]
    assert "rounds follow one another every 0.0103 s" in notes[6e-3][0]


def test_a_train_that_no_buffer_holds_is_refused_before_anything_is_set_up() -> None:
    stage = Trains(probing={"train": 40}, longest_capture=20_000)
    stage.join()
    assert stage.over == e.RunOver(
        "failed",
        "probing.train = 40: a reception of 40012 samples, 40 frames 0.001 s apart, but the radios accept 20000 "
        "samples: accepted up to 19",
    )
    assert not [b for _, b in stage.told if isinstance(b, (m.Configure, m.Step))]


def test_a_train_that_lasts_longer_than_a_reception_may_take_is_refused() -> None:
    """A Pluto gives a reception up after 3 s, so that every round of such a train would fail."""
    stage = Trains(probing={"interval_s": 0.05, "train": 64})
    stage.join()
    assert stage.over == e.RunOver(
        "failed",
        "probing.train = 64: rounds 0.05 s apart, but radios that cannot time their samples have trains of 0.8 s at "
        "most: accepted up to 16",
    )


def test_without_a_stated_length_a_train_fits_into_the_buffer() -> None:
    stage = Trains(longest_capture=4_500)
    stage.join()
    assert [rounds for _, rounds, _ in stage.trains] == [4, 4, 4, 4, 4, 2]
    assert stage.reasons == [None] * 22


def test_eves_node_may_make_trains_shorter_but_ends_no_run() -> None:
    stage = Trains(longest_capture=1, limited=("eve",))
    stage.join()
    assert {rounds for _, rounds, _ in stage.trains} == {1}
    stage = Trains(probing={"train": 9}, longest_capture=1, limited=("eve",))
    stage.join()
    assert [rounds for _, rounds, _ in stage.trains] == [9, 9, 4]
    assert stage.reasons == [None] * 22


def test_a_frame_that_was_not_received_costs_its_round_only() -> None:
    stage = Trains()
    stage.heard = {("bob", 2): "clipped", ("alice", 9): "low_snr", ("eve", 4): "no_preamble"}
    stage.join()
    assert {i: why for i, why in enumerate(stage.reasons) if why} == {2: "clipped", 9: "low_snr"}


def test_a_device_that_fails_in_a_train_costs_the_rounds_of_the_train() -> None:
    def script(node: str, body: Any) -> list[Any] | None:
        if not (isinstance(body, m.Step) and node == "bob" and body.round == 5 and body.last):
            return None
        results = [m.RoundResult(round=n, links=[], fault="device", detail="no samples") for n in range(5, 10)]
        return [m.Stepped(round=5, step=body.step), m.Probed(rounds=results)]

    stage = Trains(script)
    stage.join()
    assert stage.reasons == [None] * 5 + ["device"] * 5 + [None] * 12
    (fault,) = [n for n in stage.notes if n.kind == "fault"]
    assert fault.detail["rounds"] == list(range(5, 10))


def test_a_node_that_hangs_in_a_train_costs_its_rounds_and_all_fall_silent_once() -> None:
    def script(node: str, body: Any) -> list[Any] | None:
        hangs = isinstance(body, m.Step) and body.round == 5 and node == "bob" and body.action == "receive"
        return [] if hangs else None

    stage = Trains(script)
    stage.join()
    assert stage.state.rounds.on_air
    stage.wait(11.0)
    assert [n.detail["node"] for n in stage.notes if n.kind == "no_answer"] == ["bob"]
    assert stage.reasons == [None] * 5 + ["timeout"] * 5 + [None] * 12
    assert [o for o in stage.orders(5) if o[1] == "silence"] == [(n, "silence", True) for n in ("alice", "bob", "eve")]


@pytest.mark.parametrize(("node", "reasons"), [("bob", ["measured", "node_lost"]), ("eve", [None, None])])
def test_a_node_that_dies_in_a_train(node: str, reasons: list[str | None]) -> None:
    """Eve's death costs nothing; with Bob's process his measurements of the earlier train are lost, too."""

    def script(who: str, body: Any) -> list[Any] | None:
        is_there = not isinstance(body, m.Step) or body.round != 5 or who != node or body.action == "transmit"
        return None if is_there else []

    stage = Trains(script)
    stage.join()
    stage.take(e.ProcessEnded(node, "killed", is_final=False))
    if node == "bob":
        stage.lives["bob"] += 1
        stage.join("bob")
    assert stage.reasons[:10] == [why for why in reasons for _ in range(5)]
    assert stage.reasons[10:] == [None] * 12
    assert stage.over is not None


def test_a_halt_in_a_train_silences_every_node_at_once() -> None:
    stage = Trains(lambda node, body: [] if isinstance(body, m.Step) and body.action == "receive" else None)
    stage.join()
    first, *_ = stage.state.handle(e.StopAsked("halt"))
    assert isinstance(first, e.HaltNode)
    dropped = [x for x in stage.state.handle(e.Tick(1.0)) if isinstance(x, e.RoundOver)]
    assert not dropped
    assert stage.state.rejected == {"aborted": 5}


@pytest.mark.parametrize(("policy", "train"), [("random", 1), ("none", 5)])
def test_a_pattern_that_changes_ends_a_train(policy: str, train: int) -> None:
    stage = Trains(surface={"policy": policy})
    stage.join()
    assert {rounds for _, rounds, _ in stage.trains[:2]} == {train}
    surfaces = [r.surface for r in stage.rounds]
    assert len(set(surfaces)) == (22 if policy == "random" else 1)


def test_a_train_ends_with_its_block() -> None:
    stage = Trains(accounting={"block_rounds": 8})
    stage.join()
    assert [rounds for _, rounds, _ in stage.trains] == [5, 3, 5, 3, 5, 1]
    assert [b.rounds for b in stage.blocks] == [list(range(8)), list(range(8, 16)), list(range(16, 22))]


def test_on_the_wall_clock_a_train_begins_when_the_one_before_is_over_and_its_interval_has_passed() -> None:
    stage = Trains(lab={**LAB, "world": {"pace": "wall"}}, probing={"interval_s": 0.04, "train": 10}, rounds=40)
    stage.join()
    assert len(stage.rounds) == 10
    stage.now_s = 0.39
    stage.take(e.Tick(0.39))
    assert len(stage.rounds) == 10
    stage.take(e.Tick(0.4))
    assert len(stage.rounds) == 20
    assert [round(r.start_s, 9) for r in stage.rounds[9:11]] == [0.36, 0.4]


def test_the_turn_around_that_drivers_state_is_what_a_train_adds_to_a_round_at_most() -> None:
    """Also on a host that needs 20 ms for it."""
    for period in (400, 1000, 3000, 7000):
        pace = Pace(360, 1e6, period * 1e-6, 20e-3, 5e-3, 0, 4_000_000, 4_000_000)
        added_s = pace.train * pace.period_s
        assert pace.train == 1 or added_s <= 5e-3
        assert added_s + pace.period_s > 5e-3


def test_a_radio_that_cannot_capture_even_one_frame_is_named_with_what_helps() -> None:
    short = Pace(360, 1e6, 1e-3, 20e-3, 5e-3, 0, 500, 500)
    assert short.misfit == (
        "a frame of 360 samples needs a reception of 1080, but the radios accept 500 samples; accepted: a shorter frame"
    )
    four, five = (Pace(360, 1e6, 1e-3, 20e-3, 5e-3, asked, 5000, 5000) for asked in (4, 5))
    assert four.misfit is None
    assert str(five.misfit).endswith("accept 5000 samples: accepted up to 4")
