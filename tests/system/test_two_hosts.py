"""Two hosts, each a network namespace of its own with a cable between them: README's steps, and the cable pulled.

Bob's machine has his keys, his node and nothing else; the other has the rest. Only root can make such hosts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sites import when

from testbed import config
from testbed.core.config import Experiment
from testbed.records import reader

HERE, THERE = "10.213.7.1", "10.213.7.2"
LAB = f"""
schema = 1
name = "hosts"
[coordinator]
host = "{HERE}"
port = 21500
join_timeout_s = 120.0
rejoin_timeout_s = 40.0
[world]
driver = "sim"
host = "{HERE}"
port = 21501
[node.alice]
role = "alice"
driver = "sim"
host = "{HERE}"
port = 21502
tx_gain_db = -6.0
[node.eve]
role = "eve"
driver = "sim"
host = "{HERE}"
tx_gain_db = -6.0
[node.bob]
role = "bob"
driver = "sim"
local = false
host = "{THERE}"
tx_gain_db = -6.0
"""


class Host:
    """A network namespace with a state folder of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.keys = folder / "state" / "hosts" / "transport"
        folder.mkdir()
        (folder / "lab.toml").write_text(LAB)
        text = config.find(Experiment, "mobile_room").read_text()
        (folder / "room.toml").write_text(text.replace("block_rounds = 800", "block_rounds = 250"))
        self.children: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-m", "testbed", *arguments, "--lab", "lab.toml"],
            cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "TESTBED_STATE": str(self.folder / "state")},
        )  # fmt: skip
        self.children.append(child)
        return child

    def run(self, *arguments: str) -> tuple[int, str]:
        child = self.start(*arguments)
        out, err = child.communicate(timeout=240)
        return child.returncode, out + err

    def cable(self, state: str) -> None:
        subprocess.run(["ip", "-n", self.name, "link", "set", "eth0", state], check=True)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    names = [f"testbed-{os.getpid()}-{i}" for i in range(2)]
    made = []
    try:
        for name in names:
            done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"a network namespace cannot be made here: {done.stderr.strip()}")
            made.append(name)
        cable = ["ip", "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "eth0", "netns", names[1]]
        done = subprocess.run(cable, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a cable between two namespaces cannot be made here: {done.stderr.strip()}")
        for name, address in zip(names, (HERE, THERE), strict=True):
            for words in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"],
                          ["link", "set", "lo", "up"]):  # fmt: skip
                subprocess.run(["ip", "-n", name, *words], check=True)
        both = Host(names[0], tmp_path / "here"), Host(names[1], tmp_path / "there")
        yield both
        for host in both:
            for child in host.children:
                if child.poll() is None:
                    child.kill()
                child.communicate()
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)


def exchange_keys(here: Host, there: Host) -> None:
    """Follow README: each machine makes the keys of its own daemons, and the public ones are copied."""
    assert here.run("keygen-certs")[0] == 0
    assert there.run("keygen-certs", "bob")[0] == 0
    for source, sink in ((here, there), (there, here)):
        for path in source.keys.glob("*.public"):
            if not (sink.keys / path.name).exists():
                shutil.copy(path, sink.keys)


def findings(words: str) -> list[str]:
    return [line for line in words.splitlines() if line.startswith("fix ")]


@pytest.mark.long
def test_a_run_on_two_hosts_survives_a_cable_that_is_pulled_for_10_s_and_ends_with_keys(
    hosts: tuple[Host, Host],
) -> None:
    here, there = hosts
    # the doctor is right about each machine: before the keys are copied it asks for those and no others
    assert there.run("keygen-certs", "bob")[0] == 0
    status, words = there.run("doctor")
    assert status == 1
    assert "coordinator.public" in words
    assert "alice.secret" not in words
    assert "alice: elsewhere: not on this machine" in words
    assert "world: elsewhere: not on this machine" in words
    assert {line.split(":")[0] for line in findings(words)} == {
        f"fix {n}" for n in ("coordinator", "world", "alice", "eve")
    }
    assert not (there.keys / "world.secret").exists()  # it makes nobody else's keys
    exchange_keys(here, there)
    status, words = there.run("doctor")
    assert (status, findings(words)) == (0, []), words
    status, words = here.run("doctor")
    assert findings(words) == [], words
    assert "bob: elsewhere: not on this machine" in words
    assert "alice: elsewhere" not in words

    bob = there.start("node", "bob")
    run = here.start("run", "room.toml", "--rounds", "700", "--out", "runs", "--json")
    when(run.stderr, lambda line: "400/700" in line)
    there.cable("down")
    threading.Timer(10.0, there.cable, ["up"]).start()
    began_s = time.monotonic()
    assert run.wait(timeout=240) == 0
    assert time.monotonic() - began_s > 10.0
    record = reader.load(next((here.folder / "runs").iterdir()))
    assert record.rounds.rounds.size == 700
    assert record.summary is not None
    kinds = [e.kind for e in record.events]
    assert kinds.count("silent") == 1
    assert record.summary["keys_mismatched"] == 0
    assert record.summary["keys_verified"] >= 1
    after = record.rounds.rounds > 600  # two trains of 64 were under way
    assert record.rounds.kept[after].mean() > 0.9
    assert bob.poll() is None  # he stays
