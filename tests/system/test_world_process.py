"""The World as it is run: a process of its own, authenticated, whose clients may die."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from testbed.core import identity
from testbed.core.config import PlacedNode, RadioPlan, Scene
from testbed.core.errors import DeviceTimeout, KeyRefused
from testbed.core.identity import Identity
from testbed.core.radio import RadioSettings
from testbed.core.registry import load_driver
from testbed.core.types import IqBlock
from testbed.core.world import DriverContext, World

SETTINGS = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=40e6, tx_gain_db=0.0, rx_gain_db=20.0)
SCENE = Scene(alice=PlacedNode(position_m=[4.0, 8.0, 1.5]), bob=PlacedNode(position_m=[14.0, 8.0, 1.5]))
NAMES = ["alice", "bob", "coordinator", "world"]
spawn = mp.get_context("spawn")


def keys(folder: Path) -> dict[str, Identity]:
    for name in NAMES:
        identity.make(folder, name)
    return {name: identity.load(folder, name, NAMES) for name in NAMES}


def _serve(who: Identity | None, pipe: Connection, peer_timeout_s: float) -> None:
    load_driver("worlds", "sim").serve("tcp://127.0.0.1:0", who, "virtual", peer_timeout_s, pipe.send)
    pipe.send("served")


def _hold(context: DriverContext, pipe: Connection) -> None:
    """A node that puts its radio on the air and then does nothing."""
    radio = load_driver("radios", "sim")("bob", context)
    radio.configure(SETTINGS)
    pipe.send("on the air")
    pipe.recv()


@contextmanager
def world_process(who: Identity | None, peer_timeout_s: float = 0.4) -> Iterator[tuple[str, int, Connection]]:
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(who, theirs, peer_timeout_s), daemon=True)
    process.start()
    try:
        assert ours.poll(60.0), "the world did not start"
        assert process.pid is not None
        yield ours.recv(), process.pid, ours
    finally:
        process.kill()
        process.join(60)


def context(endpoint: str, who: Identity | None) -> DriverContext:
    return DriverContext(seed=3, world=endpoint, identity=who, state_dir=Path())


def test_a_killed_node_does_not_stall_the_others_and_sigterm_ends_the_world(tmp_path: Path) -> None:
    who = keys(tmp_path)
    sim: type[World] = load_driver("worlds", "sim")
    assert issubclass(sim, World)
    with world_process(who["world"]) as (endpoint, pid, pipe):
        sim.reset(endpoint, who["coordinator"], SCENE, RadioPlan(), 1, 60.0)
        ours, theirs = spawn.Pipe()
        node = spawn.Process(target=_hold, args=(context(endpoint, who["bob"]), theirs), daemon=True)
        node.start()
        assert ours.poll(60.0)
        assert ours.recv() == "on the air"
        assert node.pid is not None
        os.kill(node.pid, signal.SIGKILL)
        node.join(60)
        assert node.exitcode == -signal.SIGKILL
        with load_driver("radios", "sim")("alice", context(endpoint, who["alice"])) as alice:
            alice.configure(SETTINGS)
            assert alice.receive(100, timeout_s=60.0).samples.shape == (1, 100)
            # and Bob's node comes back
            with load_driver("radios", "sim")("bob", context(endpoint, who["bob"])) as bob:
                bob.configure(SETTINGS)
                start_s = alice.now_s() + 1e-3
                alice.transmit(IqBlock(np.full((1, 4000), 0.5, np.complex64), 40e6, 0.0), start_s)
                alice.idle_until(start_s + 10e-3)
                assert np.abs(bob.receive(50_000).samples).max() > 0.005
        os.kill(pid, signal.SIGTERM)
        assert pipe.poll(60.0)
        assert pipe.recv() == "served"


def test_a_stranger_hears_nothing(tmp_path: Path) -> None:
    """Wrong key or no key: the World sends no answer, the client times out."""
    from sim_backend.link import Link
    from sim_backend.messages import PROTOCOL, Attach

    who = keys(tmp_path / "lab")
    strange = keys(tmp_path / "elsewhere")
    knows_the_door = Identity("eve", strange["bob"].public, strange["bob"].secret, {"world": who["world"].public})
    with world_process(who["world"]) as (endpoint, _, _):
        for stranger in (knows_the_door, strange["alice"], None):
            link = Link("eve", endpoint, stranger)
            with pytest.raises(DeviceTimeout):
                link.ask(Attach(id=1, protocol=PROTOCOL, name="eve", kind="radio"), "open", timeout_s=0.3)
            link.close("open")
        friend = Link("alice", endpoint, who["alice"])
        friend.attach("radio", "open")
        assert friend.session
        friend.close("open")


def test_a_wrong_key_of_the_world_or_for_it_is_named(tmp_path: Path) -> None:
    """It looked like a world that is absent."""
    from sim_backend.link import Link
    from sim_backend.messages import PROTOCOL, Attach

    who, strange = keys(tmp_path / "lab"), keys(tmp_path / "elsewhere")
    unknown = Identity("eve", strange["bob"].public, strange["bob"].secret, {"world": who["world"].public})
    outdated = Identity("bob", who["bob"].public, who["bob"].secret, {"world": strange["world"].public})
    with world_process(who["world"]) as (endpoint, _, _):
        for pair, said in (
            (unknown, "the world does not have this public key: copy eve.public to its machine"),
            (outdated, "the world takes no greeting: world.public is not its key"),
        ):
            link = Link(pair.name, endpoint, pair)
            deadline_s, told = time.monotonic() + 120.0, ""
            while said not in told and time.monotonic() < deadline_s:
                with pytest.raises(DeviceTimeout) as late:
                    link.ask(Attach(id=1, protocol=PROTOCOL, name="eve", kind="radio"), "open", timeout_s=0.3)
                told = str(late.value)
            assert said in told
            assert isinstance(late.value, KeyRefused)
            link.close("open")


def test_nobody_attaches_under_anothers_name_or_resets_the_world(tmp_path):
    """Eve has a key of the lab; it makes her neither Bob nor the coordinator."""
    import threading

    import pytest

    from sim_backend.radio import SimRadio
    from sim_backend.server import SimWorld, serve
    from testbed.core import identity
    from testbed.core.config import PlacedNode, RadioPlan, Scene
    from testbed.core.errors import DeviceError
    from testbed.core.world import DriverContext

    names = ["coordinator", "world", "bob", "eve"]
    for name in names:
        identity.make(tmp_path, name)
    who = {name: identity.load(tmp_path, name, names) for name in names}
    stop, endpoints, there = threading.Event(), [], threading.Event()

    def ready(endpoint):
        endpoints.append(endpoint)
        there.set()

    thread = threading.Thread(target=serve, args=("tcp://127.0.0.1:0", who["world"], "virtual", 4.0, ready, stop))
    thread.start()
    try:
        assert there.wait(120)
        scene = Scene(alice=PlacedNode(position_m=[0.0, 0.0, 0.0]), bob=PlacedNode(position_m=[5.0, 0.0, 0.0]))
        SimWorld.reset(endpoints[0], who["coordinator"], scene, RadioPlan(), 1, 60.0)
        with pytest.raises(DeviceError, match="eve may not"):
            SimWorld.reset(endpoints[0], who["eve"], scene, RadioPlan(), 2, 60.0)
        with pytest.raises(DeviceError, match="eve may not"):
            SimRadio("bob", DriverContext(seed=1, world=endpoints[0], identity=who["eve"], state_dir=tmp_path))
        SimRadio("bob", DriverContext(seed=1, world=endpoints[0], identity=who["bob"], state_dir=tmp_path)).close()
    finally:
        stop.set()
        thread.join(60)
