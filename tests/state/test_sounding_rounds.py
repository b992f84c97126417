"""Rounds that sound the antennas: when, for how long, and that nothing of them reaches a key or the records."""

from __future__ import annotations

from typing import Any

from test_coordinator import Stage

from testbed.net import messages as m

BEAMS = {"policy": "svd", "sound_every": 3}


def stage(n_eve: int = 1, timed: bool = True, **changes: Any) -> Stage:
    out = Stage(rounds=7, surface={"policy": "none"}, beams=BEAMS, **changes)
    for name, node in out.state.nodes.items():
        n = n_eve if name == "eve" else 4
        hello = m.Hello(role=node.role, identity={}, pid=1, discussion_port=1, n_antennas=n, timed=timed)  # type: ignore[arg-type]
        out.take(out.says(name, hello))
    return out


def test_every_so_many_rounds_are_for_the_beams_and_no_key_is_made_of_them() -> None:
    done = stage()
    assert [r.reason for r in done.rounds] == ["sounding" if i % 3 == 0 else None for i in range(7)]
    assert {b.round: b.sounding for _, b in done.told if isinstance(b, m.Probe)} == {i: i % 3 == 0 for i in range(7)}
    assert [b.rounds for b in done.blocks] == [[1, 2, 4], [5]]
    assert all(not links for r in done.rounds if r.reason for links in r.links.values())
    assert done.over is not None
    assert done.over.status == "finished"


def test_all_nodes_receive_the_numbers_of_antennas() -> None:
    told = [body for _, body in stage().told if isinstance(body, m.Configure)]
    assert all(body.antennas == {"alice": 4, "bob": 4, "eve": 1} and body.beams.policy == "svd" for body in told)


def test_beams_of_single_antennas_are_noted_in_one_line() -> None:
    def notes(n_antennas: int) -> list[str]:
        out = Stage(rounds=7, surface={"policy": "none"}, beams=BEAMS)
        for name, node in out.state.nodes.items():
            hello = m.Hello(role=node.role, identity={}, pid=1, discussion_port=1, n_antennas=n_antennas)  # type: ignore[arg-type]
            out.take(out.says(name, hello))
        return [note.detail["detail"] for note in out.notes if note.kind == "beams_without_effect"]

    assert notes(4) == []
    (text,) = notes(1)
    assert "'svd'" in text
    assert "one antenna each" in text


def test_slots_leave_time_for_a_sounding() -> None:
    def slots(**changes: Any) -> list[float]:
        out = stage(**changes)
        return [s.start_s for _, b in out.told if isinstance(b, m.Probe) and b.round == 1 for s in b.rounds[0].slots][
            :2
        ]

    def gap(starts: list[float]) -> float:
        return starts[1] - starts[0]

    plain = Stage(rounds=7, surface={"policy": "none"})
    assert plain.state.timetable.antenna_s == 0.0
    one = gap(slots())
    longer = Stage(rounds=7, surface={"policy": "none"}, beams=BEAMS)
    longer.state.timetable.antenna_s = 30e-6
    for name, node in longer.state.nodes.items():
        longer.take(
            longer.says(
                name,
                m.Hello(role=node.role, identity={}, pid=1, discussion_port=1, n_antennas=4 if name != "eve" else 1),
            )
        )  # type: ignore[arg-type]
    starts = [s.start_s for _, b in longer.told if isinstance(b, m.Probe) and b.round == 1 for s in b.rounds[0].slots][
        :2
    ]
    assert abs(gap(starts) - one - 3 * 30e-6) < 1e-9


def test_an_eve_with_several_antennas_takes_part_and_is_reported() -> None:
    done = stage(n_eve=8)
    assert done.over is not None
    assert done.over.status == "finished"
    told = [body for _, body in done.told if isinstance(body, m.Configure)]
    assert all(body.antennas == {"alice": 4, "bob": 4, "eve": 8} for body in told)


def test_an_eve_with_several_antennas_takes_part_in_every_round() -> None:
    done = stage(n_eve=2)
    assert done.over is not None
    assert done.over.status == "finished"
    assert [body.round for node, body in done.told if node == "eve" and isinstance(body, m.Probe)] == list(range(7))


def test_beams_need_radios_that_can_time_their_samples() -> None:
    done = stage(timed=False)
    assert done.over is not None
    assert "accepted with these: policy = 'none'" in done.over.detail
