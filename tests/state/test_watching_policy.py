"""A policy that watches: what it hears of each round, and when a run that exists for its sake ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_coordinator import Stage

from testbed import config
from testbed.coordinator import events as e
from testbed.core.config import Experiment
from testbed.core.errors import InputError
from testbed.net import messages as m


def answering(lost: tuple[int, ...] = (), broken: tuple[int, ...] = ()) -> Any:
    """Nodes that measure the round's number on every subcarrier."""

    def script(node: str, body: Any) -> list[Any] | None:
        if not isinstance(body, m.Probe):
            return None
        csi = np.full((1, 1, 4), body.round + 1, np.complex64).tobytes()
        spoilt = body.round in lost and node == "bob"
        links = [
            m.LinkResult(
                tx=slot.tx,
                reason="low_snr" if spoilt else None,
                snr_db=20.0,
                shape=(1, 1, 4),
                csi=None if spoilt else csi[:7] if body.round in broken else csi,
            )
            for slot in body.rounds[0].slots
            if node in slot.rx
        ]
        return [m.Captured(round=body.round), m.Probed(rounds=[m.RoundResult(round=body.round, links=links)])]

    return script


def watching(stage: Stage) -> list[tuple[int, dict[str, Any]]]:
    """Record what the stage's policy hears."""
    heard: list[tuple[int, dict[str, Any]]] = []
    policy = stage.state.policy
    assert policy is not None
    told = policy.observe

    def observe(round: int, links: Any) -> None:
        heard.append((round, dict(links)))
        told(round, links)

    policy.observe = observe  # type: ignore[method-assign]
    return heard


def loop(**options: Any) -> dict[str, Any]:
    return {"policy": "closed_loop", "options": {"search": "random_search", "confirm": 2, **options}}


def test_it_hears_every_round_in_order_by_roles_before_the_next_pattern_is_chosen() -> None:
    stage = Stage(answering(), surface=loop())
    heard = watching(stage)
    stage.join()
    assert [r for r, _ in heard] == list(range(6))
    for r, links in heard:
        assert list(links) == ["alice>bob", "alice>eve", "bob>alice", "bob>eve"]
        assert all(np.array_equal(h, np.full((1, 1, 4), r + 1)) for h in links.values())
    assert stage.over == e.RunOver("finished", "6 rounds")
    assert len(stage.blocks) == 2  # an ordinary run: keys are distilled meanwhile


def test_lost_and_malformed_rounds_tell_nothing() -> None:
    stage = Stage(answering(lost=(2,), broken=(3,)), surface=loop())
    heard = watching(stage)
    stage.join()
    assert {r for r, links in heard if not links} == {2, 3}
    assert [r.kept for r in stage.rounds] == [True, True, False, True, True, True]


def test_a_round_that_never_started_is_reported_as_lost() -> None:
    refused = [True]

    def script(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Apply) and refused.pop() if refused else False:
            return [m.Failed(operation="apply", state="ready", detail="loose cable")]
        return answering()(node, body)

    stage = Stage(script, surface=loop())
    heard = watching(stage)
    stage.join()
    assert heard[0] == (0, {})
    assert [r for r, _ in heard] == list(range(6))


def test_a_run_for_its_search_only_ends_with_it_and_distils_nothing() -> None:
    stage = Stage(answering(), rounds=100, surface=loop(search_options={"trials": 5}, search_only=True))
    stage.join()
    assert stage.over is not None
    assert stage.over.status == "finished"
    assert len(stage.rounds) == 2 + 6 + 2
    assert stage.blocks == []
    assert [n.detail["rounds"] for n in stage.notes if n.kind == "rounds_unused"] == [10]
    assert not any(isinstance(body, m.Distil) for _, body in stage.told)


def test_a_run_for_its_search_only_that_is_stopped_distils_nothing_either() -> None:
    stage = Stage(rounds=1000, surface=loop(search_only=True))
    asked = answering()

    def script(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and body.round == 4 and node == "bob":
            stage.state.handle(e.StopAsked("stop"))
        return asked(node, body)

    stage.script = script
    stage.join()
    assert stage.over is not None
    assert stage.over.status == "stopped"
    assert len(stage.rounds) == 5
    assert stage.blocks == []


def test_the_same_probes_lead_to_the_same_patterns() -> None:
    runs = []
    for _ in range(2):
        stage = Stage(answering(), rounds=30, surface=loop())
        stage.join()
        runs.append([r.surface for r in stage.rounds])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 10


def test_in_private_mode_a_watching_policy_is_refused_in_one_line(tmp_path: Any) -> None:
    text = config.bundled(Experiment)["static_room"].read_text()
    text = text.replace('policy = "random"', 'policy = "closed_loop"', 1)
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert config.load_experiment(str(path)).surface.policy == "closed_loop"
    path.write_text(text.replace("rounds = 1000", 'rounds = 1000\nmode = "private"', 1))
    with pytest.raises(InputError, match=r"table \[surface\].*private mode.*accepted: mode = 'experiment'") as refused:
        config.load_experiment(str(path))
    assert "\n" not in str(refused.value)
