"""Daemons started by hand, as on several machines: they find one another, come back, and leave in order."""

from __future__ import annotations

import json
import os
import signal

from sites import Site, when

from testbed.records import reader


def test_daemons_started_by_hand_in_any_order_find_one_another(site: Site) -> None:
    nodes = [site.start("node", name) for name in ("bob", "eve")]  # before there is a coordinator
    coordinator = site.start_coordinator("--rounds", "80")
    nodes.append(site.start("node", "alice"))
    site.start("sim")
    out, err = coordinator.communicate(timeout=240)
    assert coordinator.returncode == 0, err
    summary = json.loads(out)
    assert summary["rounds"] == 80
    assert summary["eve_measured"]
    for node in nodes:
        assert node.wait(timeout=240) == 0


def test_a_killed_bob_who_is_started_again_takes_part_again(site: Site) -> None:
    site.start("sim")
    bob = site.start("node", "bob")
    for name in ("alice", "eve"):
        site.start("node", name)
    coordinator = site.start_coordinator("--rounds", "800")
    when(coordinator.stderr, lambda line: "200/800" in line)
    bob.kill()
    bob.wait()
    site.start("node", "bob")
    assert coordinator.wait(timeout=240) == 0
    run = reader.load(site.run_folder())
    kinds = [e.kind for e in run.events]
    assert "lost" in kinds
    assert "rejoined" in kinds
    assert run.summary is not None
    assert run.summary["pairs_rejected"]["node_lost"] >= 1
    assert run.summary["rounds"] == 800
    # rounds after he came back are good ones
    lost = run.rounds.rounds[[reason == "node_lost" for reason in run.rounds.reason]]
    assert (run.rounds.rounds[run.rounds.kept] > lost.max()).sum() > 50
    assert run.summary["keys_mismatched"] == 0


def test_interrupting_the_coordinator_finishes_the_round_and_all_nodes(site: Site) -> None:
    site.start("sim")
    nodes = [site.start("node", name) for name in ("alice", "bob", "eve")]
    coordinator = site.start_coordinator("--rounds", "100000")
    when(coordinator.stderr, lambda line: "200/100000" in line)
    os.kill(coordinator.pid, signal.SIGINT)
    assert coordinator.wait(timeout=240) == 130
    for node in nodes:
        assert node.wait(timeout=240) == 0
    run = reader.load(site.run_folder())
    assert run.stop is not None
    assert run.stop.exit_status == "aborted"


def test_a_coordinator_that_vanishes_is_missed(site: Site) -> None:
    """Nodes do not wait without limit: they end with a reason and a silent transmitter."""
    site.lab.write_text(site.lab.read_text().replace("rejoin_timeout_s = 60.0", "rejoin_timeout_s = 1.0"))
    site.start("sim")
    nodes = [site.start("node", name) for name in ("alice", "bob", "eve")]
    coordinator = site.start_coordinator("--rounds", "100000")
    when(coordinator.stderr, lambda line: "200/100000" in line)
    coordinator.kill()
    for node in nodes:
        assert node.wait(timeout=240) == 3
        assert "coordinator silent" in node.communicate()[1]


def test_a_wrong_lab_key_is_named_by_the_node(site: Site) -> None:
    site.lab.write_text(site.lab.read_text().replace("phase_bits = 1", "phase_bit = 1"))
    ris = site.start("node", "ris")
    _, err = ris.communicate(timeout=240)
    assert ris.returncode == 2
    assert "phase_bit" in err
    assert len(err.strip().splitlines()) == 1
