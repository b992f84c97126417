"""Paper D's nets: supervised on angles, trained on the rate; the study's frame around them; where torch computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed import papers
from testbed.core import seeds
from testbed.core.errors import InputError
from testbed.learning import torch_device
from testbed.papers.secrecy import coordinate as secrecy_coordinate
from testbed.papers.secrecy import levels as secrecy_levels
from testbed.papers.secrecy import study
from testbed.papers.secrecy.jobs import Size
from testbed.papers.secrecy.model import Secrecy
from testbed.papers.secrecy.nets import Scene, inputs
from testbed.papers.secrecy.rate_net import RateNet
from testbed.papers.secrecy.rate_net import design as rate_design
from testbed.papers.secrecy.supervised import SupervisedNet
from testbed.papers.secrecy.supervised import design as supervised_design

SMALL = Scene(n_antennas=2, n_elements=9, low_dbm=15.0, high_dbm=25.0)


def drawn(n: int, name: str = "train") -> Secrecy:
    return SMALL.draw(n, seeds.generator(1, "test", name))


def test_inputs_are_all_channels_and_the_power() -> None:
    model = drawn(3)
    x = inputs(model).numpy()
    assert x.shape == (3, SMALL.n_inputs)
    np.testing.assert_allclose(x[:, 4:8], np.concatenate([model.h_ae.real, model.h_ae.imag], 1), rtol=1e-6)
    np.testing.assert_allclose(x[:, -1], 10 * np.log10(model.power_w * 1e3), rtol=1e-6)
    assert (x[:, -1] >= 15).all()


def test_nets_trained_on_the_rate_beat_the_one_trained_on_angles_and_none_the_solver() -> None:
    """On the same channels, judged on others."""
    model, judged = drawn(600), drawn(200, "judged")
    labels = secrecy_coordinate.design(model, tolerance_bits=1e-5).phases_rad
    rates = {}
    supervised = SupervisedNet(SMALL).train(model, labels, epochs=15, device="cpu")
    dense = RateNet(SMALL, kind="dense", hidden=256).train(model, epochs=15, device="cpu")
    unfolded = RateNet(SMALL, steps=3, hidden=16).train(model, epochs=8, batch=30, rate=5e-3, device="cpu")
    nets: dict[str, tuple[Any, Any]] = {
        "supervised": (supervised, supervised_design), "dense": (dense, rate_design),
        "unfolded": (unfolded, rate_design),
    }  # fmt: skip
    for name, (net, design) in nets.items():
        found = design(judged, net)
        rates[name] = judged.rate(found.precoders, found.phases_rad)
        refined = design(judged, net, sweeps=3)
        assert (judged.rate(refined.precoders, refined.phases_rad) >= rates[name] - 1e-9).all()
    solver = secrecy_coordinate.design(judged)
    best = judged.rate(solver.precoders, solver.phases_rad)
    means = {name: r.mean() for name, r in rates.items()}
    assert means["supervised"] < means["dense"] < means["unfolded"] < best.mean()
    assert means["unfolded"] > 0.9 * best.mean()


def test_losses_are_noted_and_training_stops_early() -> None:
    model = drawn(200)
    labels = secrecy_coordinate.design(model, tolerance_bits=1e-4).phases_rad
    other = drawn(50, "other")
    test = other, secrecy_coordinate.design(other, tolerance_bits=1e-4).phases_rad
    net = SupervisedNet(SMALL, 4).train(model, labels, epochs=80, patience=3, test=test, device="cpu")
    assert len(net.history) == len(net.test_history) < 80
    assert net.stopped_at == len(net.history) - 3
    assert net.history[-1] < net.history[0]
    # the weights kept are those of the epoch it names: its loss on the other channels is the one that was noted
    off = net.phases(other) - test[1]
    raw = float(np.mean(np.minimum(np.abs(off), 2 * np.pi - np.abs(off)) ** 2))
    assert raw <= net.test_history[net.stopped_at - 1] + 1e-6


def test_a_seed_gives_one_net_and_another_seed_another() -> None:
    model = drawn(60)
    first, again, other = (RateNet(SMALL, s, steps=2, hidden=8).train(model, 2, device="cpu") for s in (1, 1, 2))
    np.testing.assert_array_equal(first.phases(model), again.phases(model))
    assert first.history == again.history != other.history


def test_the_unfolded_net_does_not_care_how_elements_are_numbered_nor_about_receivers_phases() -> None:
    model = drawn(20)
    net = RateNet(SMALL, 3, steps=2, hidden=8)
    phases = net.phases(model)
    order = np.random.default_rng(1).permutation(9)
    shuffled = replace(model, g=model.g[:, order], h_iu=model.h_iu[:, order], h_ie=model.h_ie[:, order])
    assert np.exp(1j * net.phases(shuffled)) == pytest.approx(np.exp(1j * phases[:, order]), abs=1e-4)
    u, e = np.exp(1j * np.random.default_rng(2).uniform(0, 6, (2, 20, 1)))
    turned = Secrecy(u * model.h_au, e * model.h_ae, model.g, u * model.h_iu, e * model.h_ie, model.power_w)
    assert np.exp(1j * net.phases(turned)) == pytest.approx(np.exp(1j * phases), abs=1e-4)


def test_a_net_answers_on_a_boards_levels() -> None:
    model = drawn(30)
    net = RateNet(SMALL, 3, steps=2, hidden=8)
    projected, climbed = rate_design(model, net, phase_bits=2), rate_design(model, net, phase_bits=2, sweeps=50)
    bits = [model.rate(d.precoders, d.phases_rad) for d in (projected, climbed)]
    assert (bits[1] >= bits[0] - 1e-12).all()
    rounded = secrecy_levels.projected(model, net.phases(model), 2)
    np.testing.assert_allclose(bits[0], model.rate(rounded.precoders, rounded.phases_rad))
    # the history is the climb's, not the training's
    assert not projected.history
    assert climbed.history[-1] == pytest.approx(bits[1].mean())
    step = climbed.phases_rad / (np.pi / 2)
    np.testing.assert_allclose(step, np.rint(step), atol=1e-9)


def test_nets_are_kept_and_nothing_else_is_taken_for_one(tmp_path: Path) -> None:
    model = drawn(20)
    net = SupervisedNet(SMALL, 2, hidden_layers=3, hidden=16).train(model, np.zeros((20, 9)), epochs=1, device="cpu")
    net.save(tmp_path / "net.pt")
    again = SupervisedNet.load(tmp_path / "net.pt")
    np.testing.assert_array_equal(again.phases(model), net.phases(model))
    assert again.history == net.history
    with pytest.raises(InputError, match=r"net\.pt: no trained rate-trained secrecy net: it is a supervised"):
        RateNet.load(tmp_path / "net.pt")
    card = json.loads((tmp_path / "net.json").read_text())
    (tmp_path / "net.json").write_text(json.dumps(card | {"options": {"hidden": "wide"}}))
    with pytest.raises(InputError, match="no trained"):
        SupervisedNet.load(tmp_path / "net.pt")
    (tmp_path / "net.json").write_text(json.dumps(card))
    for rubbish in (b"cos\nsystem\n(S'true'\ntR.", b""):
        (tmp_path / "net.pt").write_bytes(rubbish)
        with pytest.raises(InputError, match=r"net\.pt: no trained"):
            SupervisedNet.load(tmp_path / "net.pt")


def test_what_a_net_was_not_trained_for_is_refused() -> None:
    net = RateNet(SMALL, steps=1, hidden=4)
    with pytest.raises(InputError, match=r"g of shape \(5, 25, 4\); this net accepts \(channel, 9, 2\)"):
        net.phases(Secrecy.paper(5, np.random.default_rng(1)))
    with pytest.raises(InputError, match="as trained"):
        net.phases(drawn(3).take(0))
    with pytest.raises(InputError, match=r"labels of shape \(3, 8\)"):
        SupervisedNet(SMALL).train(drawn(3), np.zeros((3, 8)))
    with pytest.raises(InputError, match="finite"):
        SupervisedNet(SMALL).train(drawn(3), np.full((3, 9), np.nan))
    with pytest.raises(InputError, match="5 channels to train on"):
        SupervisedNet(SMALL).train(drawn(5), np.zeros((5, 9)), patience=2)
    with pytest.raises(InputError, match="net kind 'wide', accepted: unfolded, dense"):
        RateNet(SMALL, kind="wide")
    with pytest.raises(InputError, match="0 hidden layers"):
        SupervisedNet(SMALL, hidden_layers=0)
    for name in ("epochs", "batch", "rate"):
        with pytest.raises(InputError, match=f"training with {name} = 0, accepted: above 0"):
            net.train(drawn(3), **{name: 0})
    with pytest.raises(InputError, match="1 channels to train on"):
        net.train(drawn(1))
    with pytest.raises(InputError, match="powers from 25 to 15 dBm"):
        Scene(low_dbm=25.0, high_dbm=15.0)
    with pytest.raises(InputError, match="labels of shape"):
        SupervisedNet(SMALL).train(drawn(20), np.zeros((20, 9)), test=(drawn(5), np.zeros((4, 9))))


def test_where_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv(torch_device.VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch_device.pick() == "cpu"
    with pytest.raises(InputError, match="sees no GPU"):
        torch_device.pick("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [torch_device.pick(), torch_device.pick("cpu"), torch_device.pick("cuda")] == ["cuda", "cpu", "cuda"]
    monkeypatch.setenv(torch_device.VARIABLE, "cpu")
    assert [torch_device.pick(), torch_device.pick("auto"), torch_device.pick("cuda")] == [
        "cpu",
        "cpu",
        "cuda",
    ]  # every auto follows it
    with pytest.raises(InputError, match="'gpu', accepted: auto, cpu, cuda"):
        torch_device.pick("gpu")


def test_the_study_makes_all_its_figures_and_keeps_what_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Size(
        n_channels=20, powers_dbm=(10, 20), small=20, middle=36, large=60, n_test=20, epochs=2, patience=1,
        dense_epochs=2, unfolded_epochs=1, unfolded_batch=30, unfolded_steps=2, n_seeds=1, n_sdp=1,
        sdp_rounds=1, more_starts=1,
    )  # fmt: skip
    monkeypatch.setattr(study, "QUICK", tiny)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    results = papers.run("secrecy", tmp_path, quick=True)
    assert set(results["figures"]) == {*(f"fig{i}" for i in range(4, 14)), "quantized"}
    assert all((tmp_path / f"{name}.png").stat().st_size > 1000 for name in results["figures"])
    assert [c["claim"] for c in results["claims"] if c["must_hold"] and not c["holds"]] == []
    assert sum(c["must_hold"] for c in results["claims"]) >= 4
    means = {row["curve"]: row["20 dBm"] for row in results["tables"]["mean rate, bits"]}
    assert max(means, key=means.__getitem__) == "alternating"
