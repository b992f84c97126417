"""Trains of rounds on emulated Plutos, through the driver and the real libiio."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from plutos import emulated

from firmware_ctl.radios.pluto import Pluto
from sim_backend.emulators.pluto_tree import PHY
from testbed import config
from testbed.core.config import Accounting, ChainPlan, Lab, NodePlace, ProbingPlan, RadioPlan
from testbed.core.world import DriverContext
from testbed.lab import processes
from testbed.net import messages as m
from testbed.nodes.operations import RadioWork
from testbed.records import reader

pytest.importorskip("iio", exc_type=Exception, reason="libiio is not installed: apt-get install libiio0")

TX_POWERDOWN = (PHY, "out_altvoltage1_TX_LO_powerdown")
WAVEFORM = {"n_fft": 32, "n_subcarriers": 24, "n_cp": 8, "n_symbols": 8}


def place(role: str) -> NodePlace:
    return NodePlace(role=role, driver="pluto", tx_gain_db=-3.0, rx_gain_db=5.0)


@pytest.mark.parametrize(("rounds", "period"), [(7, 2001), (7, 0), (1, 0)])
def test_five_steps_measure_all_rounds_of_a_train_at_both_ends(rounds: int, period: int) -> None:
    """2001 samples: the DMA engine sends a buffer of an odd length twice, which must not change the period."""
    with emulated() as devices, ExitStack() as stack:
        nodes = {}
        for role, device in zip(("alice", "bob"), devices, strict=True):
            context = DriverContext(seed=1, world=None, identity=None, state_dir=Path())
            radio = stack.enter_context(Pluto(role, context, uri=device.uri))
            nodes[role] = RadioWork(radio, place(role), Path(), lambda body: None)
            nodes[role].configure(
                m.Configure(
                    radio=RadioPlan(carrier_hz=2.4e9, sample_rate_hz=20e6),
                    probing=ProbingPlan(waveform_options=WAVEFORM), chain=ChainPlan(),
                    accounting=Accounting(epsilon_log2=32), experiment_mode=True, record_iq=False, seed=5, timed=False,
                ),
                "run",
                1,
            )  # fmt: skip
        done: dict[str, Any] = {}
        for number, (role, action, tx, last) in enumerate(
            [
                ("alice", "transmit", "alice", False), ("bob", "receive", "alice", False),
                ("alice", "silence", "alice", False), ("bob", "transmit", "bob", False),
                ("alice", "receive", "bob", True), ("bob", "silence", "bob", True),
            ]
        ):  # fmt: skip
            order = m.Step(round=4, rounds=rounds, period=period, step=number, action=action, tx=tx, last=last)  # type: ignore[arg-type]
            done[role] = nodes[role].step(order)
        assert [d.tree.values[TX_POWERDOWN] for d in devices] == ["1", "1"]
        results = {role: [r for x in done[role].reports for r in x.rounds] for role in done}
        for found in results.values():
            assert [(r.round, r.fault, [x.reason for x in r.links]) for r in found] == [
                (4 + i, None, [None]) for i in range(rounds)
            ]
            times_s = [r.links[0].device_time_s for r in found]
            assert np.allclose(np.diff(times_s), (period or 360) / 20e6, atol=2e-8)
        h = [
            np.stack([done[x].csi[4 + i][y].h.ravel() for i in range(rounds)])
            for x, y in (("bob", "alice"), ("alice", "bob"))
        ]
        # the scene stands still: what is left is the phase of the oscillators
        match = np.abs(np.sum(h[0].conj() * h[1], axis=1)) / np.linalg.norm(h[0], axis=1) / np.linalg.norm(h[1], axis=1)
        assert match.min() > 0.95


def test_a_run_in_trains_loses_the_rounds_of_the_trains_whose_captures_were_lost(tmp_path: Path) -> None:
    """Bob's connection drops in his first two captures, each of a whole train."""
    text = config.find(Lab, "wire").read_text(encoding="utf-8")
    lab = tmp_path / "faulty.toml"
    lab.write_text(text.replace("[world.emulators.bob]", "[world.emulators.bob]\nfaults = { disconnect_reads = 2 }"))
    plan = config.load_experiment("onair_first_key")
    probing = msgspec.structs.replace(plan.probing, interval_s=1e-3)
    plan = msgspec.structs.replace(plan, rounds=33, probing=probing)
    outcome = processes.run(plan, config.load_lab(str(lab)), str(lab), tmp_path / "run", lambda _: None)
    assert outcome.status == "finished"
    assert outcome.summary["pairs_rejected"] == {"device": 10}
    assert outcome.summary["pairs_kept"] == 23
    run = reader.load(outcome.folder)
    starts_s = run.rounds.t0_s[np.argsort(run.rounds.rounds)]
    assert np.allclose(np.diff(starts_s)[np.arange(32) % 5 != 4], 1e-3)
    for link in ("alice>bob", "bob>alice"):
        record = run.links[link]
        gaps_s = np.diff(record.time_s)[record.rounds[1:] % 5 != 0]  # not between two trains
        assert gaps_s.size == {"alice>bob": 18, "bob>alice": 26}[link]
        # by the receiver's own crystal, which is up to 32 ppm away from the other's
        assert np.allclose(gaps_s, 1e-3, atol=1e-6)
