"""Beams: the closed form, what a node does with its antennas, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sim_backend.emulators._options import emulator_options
from sim_backend.emulators.pluto import PlutoOptions
from sim_backend.server import SimWorld
from testbed import config
from testbed.chain.csi.least_squares import LeastSquares
from testbed.chain.probing.ofdm import Ofdm
from testbed.core import registry
from testbed.core.config import BeamPlan, Experiment
from testbed.core.errors import InputError, ProbeRejected, Reject
from testbed.core.options import driver_options
from testbed.core.types import CsiFrame, IqBlock
from testbed.nodes.antennas import Antennas

FRAME = Ofdm().frame(40e6)
BOTH = {"alice": 4, "bob": 3, "eve": 1}
SVD = BeamPlan(policy="svd", sound_every=5)


def gaussian(seed: int, *shape: int) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)


def csi(h: Any) -> CsiFrame:
    n = h.shape[-1]
    return CsiFrame(h.astype(np.complex64), np.arange(n) * 1e5, np.full(n, 20.0), 0.0, 0.0, -20.0)


def beam_of(antennas: Antennas, round: int = 1) -> Any:
    sent = antennas.outgoing(round, sounding=False)
    return sent @ FRAME.samples.conj() / np.vdot(FRAME.samples, FRAME.samples)


def test_both_ends_find_the_pair_of_singular_vectors_each_on_its_own() -> None:
    for seed in range(5):
        h = np.repeat(gaussian(seed, 3, 4)[:, :, None], 8, axis=2)  # (Bob, Alice, subcarrier)
        ends = {role: Antennas(role, BOTH, SVD, FRAME, 1) for role in ("alice", "bob")}
        # each with the phase and the delay of its own measurement
        ends["alice"].hear(0, {"bob": csi(h.swapaxes(0, 1) * np.exp(1j * (0.3 + 0.2 * np.arange(8))))})
        ends["bob"].hear(0, {"alice": csi(h * np.exp(1j * (2.0 - 0.1 * np.arange(8))))})
        w_a, w_b = (beam_of(ends[role]) for role in ("alice", "bob"))
        assert np.linalg.norm(w_a) == pytest.approx(1.0, abs=1e-5)
        assert abs(w_b @ h[:, :, 0] @ w_a) == pytest.approx(np.linalg.norm(h[:, :, 0], 2), rel=1e-5)


def test_the_beam_is_the_same_both_ways_so_that_the_link_is() -> None:
    h = gaussian(3, 3, 4)
    ends = {role: Antennas(role, BOTH, SVD, FRAME, 1) for role in ("alice", "bob")}
    ends["alice"].hear(0, {"bob": csi(gaussian(4, 4, 3, 8))})  # any CSI, even if it does not fit
    ends["bob"].hear(0, {"alice": csi(gaussian(5, 3, 4, 8))})
    measured = {}
    for tx, rx, channel in (("alice", "bob", h), ("bob", "alice", h.T)):
        sent = 0.02 * channel @ ends[tx].outgoing(1, sounding=False)
        block = IqBlock(np.pad(sent, ((0, 0), (60, 80))).astype(np.complex64), 40e6, 0.0)
        (found,) = ends[rx].estimate_many(LeastSquares(), [1], [block])
        assert isinstance(found, CsiFrame)
        assert found.h.shape == (1, 1, 64)
        measured[rx] = np.abs(found.h).mean()
    assert measured["alice"] == pytest.approx(measured["bob"], rel=1e-4)


def test_without_a_policy_and_before_a_sounding_the_first_antenna_is_used() -> None:
    for plan in (BeamPlan(), SVD):
        np.testing.assert_allclose(beam_of(Antennas("alice", BOTH, plan, FRAME, 1)), [1, 0, 0, 0], atol=1e-6)
    node = Antennas("alice", BOTH, SVD, FRAME, 1)
    node.hear(0, {})  # the sounding was lost
    np.testing.assert_allclose(beam_of(node), [1, 0, 0, 0], atol=1e-6)
    block = IqBlock(gaussian(1, 4, 900).astype(np.complex64) * 0.01, 40e6, 0.0)
    block.samples[0, 40:840] += 0.3 * FRAME.samples
    (got,) = Antennas("alice", BOTH, BeamPlan(), FRAME, 1).estimate_many(LeastSquares(), [1], [block])
    assert isinstance(got, CsiFrame)
    alone = LeastSquares().estimate(IqBlock(block.samples[:1], 40e6, 0.0), FRAME)
    np.testing.assert_allclose(got.h, alone.h, rtol=1e-4, atol=1e-6)


def test_soundings_take_every_antenna_and_eve_listens_to_keys_only() -> None:
    alice, eve = (Antennas(role, BOTH, SVD, FRAME, 1) for role in ("alice", "eve"))
    assert alice.outgoing(0, sounding=True).shape[0] == 4
    assert alice.n_samples("bob", sounding=True) < alice.n_samples("alice", sounding=True)
    assert alice.n_samples("eve", sounding=True) == alice.n_samples("eve", sounding=False) == FRAME.samples.size
    assert alice.listens(("alice",), True)
    assert not eve.listens(("eve",), True)
    assert eve.listens(("eve",), False)


def test_a_clipped_antenna_is_seen_although_the_sum_hides_it() -> None:
    block = IqBlock(np.zeros((4, 900), np.complex64), 40e6, 0.0)
    block.samples[:, 40:840] = 0.1 * FRAME.samples
    block.samples[3, 100:120] = 1.0
    (found,) = Antennas("alice", BOTH, BeamPlan(), FRAME, 1).estimate_many(LeastSquares(), [1], [block])
    assert isinstance(found, ProbeRejected)
    assert found.reason == Reject.CLIPPED


def test_an_unknown_policy_is_refused_in_one_line(tmp_path: Path) -> None:
    text = config.bundled(Experiment)["mimo_walk"].read_text()
    path = tmp_path / "mine.toml"
    for before, after, words in (
        ('policy = "svd"', 'policy = "psychic"', r"table \[beams\].*accepted: .*svd"),
        ("sound_every = 25", "sound_every = 1", r"table \[beams\]: key 'sound_every'"),
        (
            'policy = "svd"',
            'policy = "svd"\noptions = { taps = 3 }',
            r"table \[beams\.options\]: unknown key 'taps'; accepted: none",
        ),
    ):
        path.write_text(text.replace(before, after))
        with pytest.raises(InputError, match=words) as refused:
            config.load_experiment(str(path))
        assert "\n" not in str(refused.value)


def test_emulated_and_real_radios_have_one_antenna_and_say_so() -> None:
    with pytest.raises(InputError, match=r"emulators.alice.*n_antennas"):
        emulator_options("alice", {"n_antennas": 4}, PlutoOptions)
    with pytest.raises(InputError, match=r"emulators.bob.*n_antennas"):
        SimWorld.emulate("bob", "usrp", None, {"n_antennas": 4})  # type: ignore[arg-type]
    for driver in ("pluto", "usrp"):
        kind = registry.load_driver("radios", driver).options_type
        with pytest.raises(InputError, match=r"node.alice.*n_antennas"):
            driver_options({"n_antennas": 4}, kind, "alice")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"n_antennas": 0}, "n_antennas"), ({"n_antennas": 4, "antenna_axis": [0.0, 1.0]}, "antenna_axis"),
     ({"antenna_spacing_wavelengths": 0.0}, "antenna_spacing_wavelengths")],
)  # fmt: skip
def test_impossible_arrays_are_refused_before_anything_starts(options: dict[str, Any], words: str) -> None:
    lab = config.load_lab("sim_mimo")
    lab.node["alice"] = msgspec.structs.replace(lab.node["alice"], options=options)
    with pytest.raises(InputError, match=words):
        config.check_drivers(lab, "lab.toml")
