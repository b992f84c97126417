"""Replay over small synthetic recordings in the data sets' formats: keys where there is something, 0 bits where not."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from testbed import config
from testbed.assess import run_summary
from testbed.core.config import Experiment, to_dict
from testbed.core.errors import InputError
from testbed.entropy import attack, judge
from testbed.records import documents, reader
from testbed.records.writer import RunWriter
from testbed.replay import replay as module
from testbed.replay.replay import replay, table

NOT_REPEATABLE = ("wall_s", "rounds_per_s")
EVES = ("eve_now", "string_near")


@pytest.fixture(scope="module", autouse=True)
def few_attacks():
    """Judge with two quick Eves: the tests here are about Eve's links, not about the portfolio's quality."""
    with pytest.MonkeyPatch.context() as patch:
        only(patch, *EVES)
        yield


def only(patch, *names):
    """Leave these attacks in the portfolio."""
    everything = attack.load_attacks()[0]
    patch.setattr(judge, "load_attacks", lambda: ({name: everything[name] for name in names}, []))


@pytest.fixture(scope="module")
def openris(tmp_path_factory):
    """Two cuts, 241 positions: each place and configuration its own channel in ten bands, half shared with the next."""
    folder = tmp_path_factory.mktemp("openris")
    rng = np.random.default_rng(4)
    arrays = {"freq_hz": np.linspace(3e9, 4e9, 201)}
    for name in ("tx_90_VV", "tx_105_VV"):
        own_db = rng.normal(scale=5.0, size=(242, 11, 10, 1))
        fading_db = np.repeat((own_db[:-1] + own_db[1:]) / np.sqrt(2), 21, axis=2)[:, :, :201]
        noise_db = rng.normal(scale=1.0, size=(241, 11, 201, 2))
        arrays[name] = (10 ** ((fading_db + noise_db) / 20)).astype(np.complex64)
        arrays[f"{name}_rx_deg"] = np.arange(0, 723, 3)
    np.savez(folder / "openris_ff.npz", **arrays)
    return folder


@pytest.fixture(scope="module")
def openris_replay(openris):
    told = []
    return replay(openris, progress=lambda share, what: told.append((share, what))), told


def write_rssi(folder, stem, dbm):
    rows = np.round(dbm).astype(int).reshape(-1, 1000)
    text = "".join(";".join(map(str, row)) + ";&\r\n" for row in rows).encode()
    (folder / f"{stem}.txt.gz").write_bytes(gzip.compress(text, 1))


@pytest.fixture(scope="module")
def rssi(tmp_path_factory):
    """Sniffer: fading shared by A and B, not by Eve. Static: a slow drift under independent noise."""
    folder = tmp_path_factory.mktemp("rssi")
    rng = np.random.default_rng(6)
    n = 36_000
    fading, elsewhere = rng.normal(scale=4.0, size=(2, n))
    for stem, level in (("sniffer_nodeA_B", fading), ("sniffer_nodeB_A", fading), ("sniffer_nodeE_B", elsewhere)):
        write_rssi(folder, stem, -70 + level + rng.normal(scale=1.0, size=n))
    write_rssi(folder, "sniffer_nodeE_A", np.where(rng.random(n) < 0.95, -66, -64))
    drift = 5 * np.sin(np.arange(n) * 4 * np.pi / n)
    for stem in ("static_nodeA", "static_nodeB"):
        write_rssi(folder, stem, -70 + drift + rng.normal(scale=0.7, size=n))
    return folder


def failed(summary):
    return {entry["check"] for entry in summary["health"] if not entry["ok"]}


def test_a_surface_gives_a_key_that_goes_as_eve_comes_near(openris_replay):
    summary, _ = openris_replay
    assert summary["cut"] == "VV"
    assert [cut["cut"] for cut in summary["cuts"]] == ["tx_90_VV", "tx_105_VV", "VV"]
    eves = {eve["label"]: eve for eve in summary["eves"]}
    assert summary["csi_correlation_ab"] > 0.95
    assert eves["3deg"]["csi_correlation_ae"] == pytest.approx(0.5, abs=0.15)
    assert abs(eves["15deg"]["csi_correlation_ae"]) < 0.2
    assert summary["csi_correlation_ae"] == max(
        (e["csi_correlation_ae"] for e in eves.values() if e["assumed"] and e["measured"]), key=abs
    )
    assert summary["key_bits"] > 0
    assert (summary["keys_verified"], summary["keys_mismatched"], summary["eve_keys_recovered"]) == (1, 0, 0)
    # all that are assumed possible, together, leave no more than each of them alone
    assert summary["key_bits"] <= min(eve["key_bits"] for eve in eves.values() if eve["assumed"])
    assert 0 < eves["3deg"]["key_bits"] < summary["key_bits"]
    # equal where an attack on the string alone is the most able one, with any Eve
    assert 0 < summary["key_bits_if_eve_unmeasured"] <= summary["key_bits"]
    assert eves["3deg"]["kdr_eve"] < eves["15deg"]["kdr_eve"]
    assert summary["raw_rate_bps"] is None
    assert "15 degrees" in summary["eve_assumption"]


def test_an_eve_in_bobs_place_leaves_no_key(openris, monkeypatch):
    """The proof that Eve counts: the same data, Bob's own channel as what she is assumed to measure."""
    recording = module.sources.load(openris)
    cut = recording.cuts["VV"]
    here = module.EveLinks(from_alice=cut.bob, from_bob=None)
    changed = module.sources.Recording(
        "x", "", (), {"VV": module.sources.Cut(**{**slots(cut), "eves": {"here": here}, "assumed": ("here",)})}, "VV"
    )
    monkeypatch.setattr(module.sources, "load", lambda path: changed)
    summary = replay(openris)
    assert summary["kdr_eve"] < 0.1  # four bits a value: noise alone flips a few
    assert summary["key_bits"] == 0
    assert "blocks_give_keys" in failed(summary)
    assert "eve_distinct" in failed(summary)


def test_an_eve_who_walks_a_step_behind_bob_leaves_no_key(openris, monkeypatch):
    """She is never where Bob is, and receives at each key probe his channel of the one before."""
    recording = module.sources.load(openris)
    cut = recording.cuts["VV"]
    behind = module.CsiSeries(cut.bob.h.copy(), cut.bob.rounds, cut.bob.subcarrier_hz)
    behind.h[cut.key_probes[1:]] = cut.bob.h[cut.key_probes[:-1]]
    changed = module.sources.Cut(
        **{**slots(cut), "eves": {"behind": module.EveLinks(behind, None)}, "assumed": ("behind",)}
    )
    monkeypatch.setattr(
        module.sources, "load", lambda path: module.sources.Recording("x", "", (), {"VV": changed}, "VV")
    )
    unaware = replay(openris)
    assert unaware["kdr_eve"] == pytest.approx(0.5, abs=0.05)
    assert unaware["key_bits"] > 0
    only(monkeypatch, *EVES, "eve_shifted")
    aware = replay(openris)
    assert aware["key_bits"] == aware["eves"][0]["key_bits"] == 0
    assert aware["secrecy"]["limiting"] == "eve_shifted"
    assert aware["secrecy"]["eves"][0]["guess_probability"] > 0.6  # four bits a label, through noise


def test_eves_correlations_are_given_over_her_own_displacement(openris, monkeypatch):
    """Where she stands on Bob's other side she counts in the key, not in the correlation."""
    recording = module.sources.load(openris)
    cut = recording.cuts["VV"]
    nowhere = module.EveLinks(cut.bob, None, told_over=np.zeros(cut.groups.size, bool))
    changed = module.sources.Cut(**{**slots(cut), "eves": {"x": nowhere}, "assumed": ("x",)})
    monkeypatch.setattr(
        module.sources, "load", lambda path: module.sources.Recording("x", "", (), {"VV": changed}, "VV")
    )
    summary = replay(openris)
    assert summary["eves"][0]["csi_correlation_ae"] is None
    assert summary["csi_correlation_ae"] is None
    assert summary["kdr_eve"] < 0.1  # four bits a value: noise alone flips a few


def test_keys_that_differ_are_found(openris, monkeypatch):
    class Broken(module.KeyChain):
        """Bob's key has a bit flipped after everything was verified."""

        def amplify(self, role, agreed, decided, seed):
            key, report = yield from super().amplify(role, agreed, decided, seed)
            if key is not None and role == "bob":
                key.bits[0] ^= 1
            return key, report

    monkeypatch.setattr(module, "KeyChain", Broken)
    summary = replay(openris, cut="tx_90_VV")
    assert (summary["keys_verified"], summary["keys_mismatched"], summary["key_bits"]) == (0, 1, 0)
    assert "keys_equal" in failed(summary)


def slots(instance):
    return {name: getattr(instance, name) for name in instance.__slots__}


def test_fading_gives_a_key_and_drift_does_not(rssi):
    summary = replay(rssi)
    sniffer, static = summary["cuts"]
    assert (summary["cut"], sniffer["cut"], static["cut"]) == ("sniffer", "sniffer", "static")
    assert sniffer["csi_correlation_ab"] > 0.9
    assert abs(sniffer["csi_correlation_ae"]) < 0.05
    assert sniffer["key_bits"] > 0
    assert sniffer["kdr_eve"] == pytest.approx(0.5, abs=0.05)
    assert sniffer["key_rate_bps"] == pytest.approx(sniffer["key_bits"] / (36_000 * 0.21))
    assert "receiver_eve_hearing_alice" in failed(sniffer)
    assert static["csi_correlation_ab"] > 0.9
    assert abs(static["csi_correlation_ab_detrended"]) < 0.1
    assert "slow_drift" in failed(static)
    assert "eve_measured" in failed(static)
    assert static["key_bits"] == 0
    assert static["kdr_eve"] is None


def test_drift_gives_no_key_even_where_it_is_not_removed(rssi):
    """Without the high-pass Alice and Bob agree well on the drift: only the entropy estimate stands in the way."""
    experiment = an_experiment(enhance_options={"step": 1}, quantize_options={"bits": 1, "guard": 0.3})
    summary = replay(rssi, experiment, "static")
    assert summary["kdr_raw"] < 0.05
    assert summary["min_entropy_per_bit"] == pytest.approx(0, abs=1e-3)
    assert summary["key_bits"] == 0


def an_experiment(**chain):
    raw = {
        "schema": 1,
        "title": "t",
        "seed": 5,
        "scene": {"alice": {"position_m": [0, 0, 1]}, "bob": {"position_m": [3, 0, 1]}},
        "chain": chain,
        "accounting": {"block_rounds": 3000},
    }
    return config.convert(raw, Experiment, "test")


def test_a_recorded_run(tmp_path):
    """Rejected rounds and missing estimates are counted; chain, block length and seed are the run's own."""
    rng = np.random.default_rng(9)
    experiment = to_dict(an_experiment(enhance_options={"step": 2}, quantize_options={"bits": 2, "guard": 0.1}))
    lab = {"node": {n: {"role": n} for n in ("alice", "bob")}}
    writer = RunWriter(tmp_path, documents.start(experiment, lab, subcarrier_hz=[0.0, 1e6]))
    for r in range(3100):
        h = rng.normal(size=(2, 2)) @ [1, 1j]
        for link in ("alice>bob", "bob>alice"):
            noisy = (h + 0.01 * rng.normal(size=2)).astype(np.complex64).reshape(1, 1, 2)
            writer.probe(r, link.split(">")[1], link, r * 0.1, 40.0, 0.0, -30.0, None, None if r == 7 else noisy)
        writer.round(r, r % 50 != 3, "low_snr" if r % 50 == 3 else None, None, r * 0.1)
    writer.close(documents.stop("ok"), {})
    summary = replay(tmp_path)
    live = run_summary.summary_of(reader.load(tmp_path))
    for name in ("csi_correlation_ab", "csi_correlation_ab_detrended", "csi_correlation_ae"):
        assert live[name] == summary[name], name
    assert (summary["source"], summary["cut"], summary["rounds"]) == ("run_folder", "run", 3100)
    assert summary["pairs_rejected"] == {"low_snr": 62, "missing": 1}
    assert summary["pairs_kept"] == 3037
    assert summary["csi_correlation_ab"] > 0.99
    assert summary["key_bits"] == summary["key_bits_if_eve_unmeasured"] > 0
    assert summary["kdr_eve"] is None
    assert summary["eve_measured"] is False
    assert summary["probing_s"] == pytest.approx(310)


def test_one_cut_and_the_same_seed_twice(openris):
    first, again, other = (replay(openris, cut="tx_90_VV", seed=seed) for seed in (3, 3, 4))
    for summary in (first, again, other):
        assert len(summary["cuts"]) == 1
        for part in (summary, *summary["cuts"]):
            for name in NOT_REPEATABLE:
                part.pop(name)
    assert first == again
    assert first != other
    # the seed chooses what is sacrificed and the hash; what was quantized does not depend on it
    (block,), (otherwise,) = first["block_digests"], other["block_digests"]
    assert block["raw_sha256"] == otherwise["raw_sha256"]
    assert block["key_sha256"]["alice"] == block["key_sha256"]["bob"] != otherwise["key_sha256"]["alice"]
    assert block["key_bits"] == {"alice": first["key_bits"], "bob": first["key_bits"]}
    assert block["leaked_bits"]["alice"] == first["reconciliation"]["leaked_bits"]


def test_the_command_takes_a_seed_and_tells_digests_but_no_bits(tmp_path):
    """A command of its own judges by the whole portfolio: over a short run, and twice the same."""
    rng = np.random.default_rng(9)
    experiment = to_dict(an_experiment(enhance_options={"step": 1}, quantize_options={"bits": 2, "guard": 0.1}))
    experiment["accounting"]["block_rounds"] = 150
    lab = {"node": {n: {"role": n} for n in ("alice", "bob")}}
    writer = RunWriter(tmp_path, documents.start(experiment, lab, subcarrier_hz=np.arange(12) * 1e6))
    for r in range(150):
        h = rng.normal(size=(12, 2)) @ [1, 1j]
        for link in ("alice>bob", "bob>alice"):
            noisy = (h + 0.01 * rng.normal(size=12)).astype(np.complex64).reshape(1, 1, 12)
            writer.probe(r, link.split(">")[1], link, r * 0.1, 40.0, 0.0, -30.0, None, noisy)
        writer.round(r, True, None, None, r * 0.1)
    writer.close(documents.stop("ok"), {})
    told = []
    for _ in range(2):
        arguments = ["replay", str(tmp_path), "--seed", "3", "--json"]
        done = subprocess.run([sys.executable, "-m", "testbed", *arguments], capture_output=True, text=True, check=True)
        told.append(json.loads(done.stdout))
    assert told[0]["block_digests"] == told[1]["block_digests"]
    (block,) = told[0]["block_digests"]
    assert {len(digest) for digest in block["raw_sha256"].values() if digest is not None} == {64}
    assert block["key_bits"]["alice"] == block["key_bits"]["bob"] == told[0]["key_bits"] > 0
    assert len(told[0]["secrecy"]["eves"]) > 3


def test_an_unknown_cut_is_refused(openris):
    with pytest.raises(InputError, match="no cut 'xx'; accepted: tx_90_VV, tx_105_VV, VV"):
        replay(openris, cut="xx")


def test_progress_and_table(openris_replay):
    summary, told = openris_replay
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    rows = table(summary)
    assert {len(row) for row in rows} == {8}
    assert [row[0] for row in rows if row[0]] == ["cut", "tx_90_VV", "tx_105_VV", "VV"]
    own = next(row for row in rows if row[0] == "VV")
    assert own[-1] == str(summary["key_bits"])
