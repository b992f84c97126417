"""Nodes that stay: they wait for their air and their coordinator, serve run after run, and come back to one resumed."""

from __future__ import annotations

import os
import signal

from sites import Site, when

from testbed.records import reader


def test_nodes_that_were_started_first_wait_and_then_serve_two_runs(site: Site) -> None:
    nodes = [site.start("node", name, stays=True) for name in ("alice", "bob", "eve")]
    air = f"waiting for the simulated air at tcp://127.0.0.1:{site.world_port}"
    for node in nodes:
        assert node.stderr is not None
        assert air in node.stderr.readline()
    site.start("sim")
    assert nodes[1].stderr is not None
    assert "bob: waiting for the coordinator at tcp://127.0.0.1:" in nodes[1].stderr.readline()
    for number in (1, 2):
        coordinator = site.start_coordinator("--rounds", "30")
        _, err = coordinator.communicate(timeout=240)
        assert coordinator.returncode == 0, err
        assert len(list((site.folder / "runs").iterdir())) == number
        assert all(node.poll() is None for node in nodes)
    for run in (site.folder / "runs").iterdir():
        assert reader.load(run).rounds.kept.sum() >= 25
    for node in nodes:
        node.send_signal(signal.SIGTERM)
    assert [node.wait(timeout=240) for node in nodes] == [0, 0, 0]
    assert all("Traceback" not in node.communicate()[1] for node in nodes)


def test_nodes_that_stay_go_on_with_a_run_whose_coordinator_is_started_anew(site: Site) -> None:
    site.lab.write_text(site.lab.read_text() + "join_timeout_s = 60.0\n")
    site.start("sim")
    nodes = [site.start("node", name, stays=True) for name in ("alice", "bob", "eve")]
    coordinator = site.start_coordinator("--rounds", "300")
    when(coordinator.stderr, lambda line: "200/300" in line)
    os.kill(coordinator.pid, signal.SIGKILL)
    coordinator.wait()
    before = reader.load(site.run_folder())
    # at once: the nodes have not noticed anything, and greet because it is another process that answers them
    again = site.start("coordinator", "--resume", str(site.run_folder()), "--json")
    _, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    run = reader.load(site.run_folder())
    assert run.rounds.rounds.tolist() == list(range(300))
    n = before.rounds.rounds.size
    assert (run.rounds.reason[:n] == "measured").sum() >= 150
    assert run.rounds.kept[n + 1 :].mean() > 0.9
    assert all(node.poll() is None for node in nodes)


def test_a_node_that_the_run_does_not_need_is_told_so_and_waits_for_another(site: Site) -> None:
    site.start("sim")
    ris = site.start("node", "ris", stays=True)
    for name in ("alice", "bob", "eve"):
        site.start("node", name, stays=True)
    coordinator = site.start_coordinator("--rounds", "30")
    when(ris.stderr, lambda line: "refuses this node: not needed by this experiment; it waits" in line)
    assert coordinator.wait(timeout=240) == 0
    assert ris.poll() is None
    kinds = [(e.kind, e.data.get("node")) for e in reader.load(site.run_folder()).events]
    assert kinds.count(("refused", "ris")) == 1  # however often it asked
