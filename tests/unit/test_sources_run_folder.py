"""A recorded run as a source: what was recorded comes back on the rounds that were kept."""

import numpy as np
import pytest

from testbed.core.errors import InputError
from testbed.core.types import CsiSeries
from testbed.records import documents
from testbed.records.writer import RunWriter
from testbed.replay import sources
from testbed.replay.replay import _measured_of, _Probes, _surface

SUBCARRIERS = 4
EXPERIMENT = {
    "schema": 1,
    "title": "t",
    "seed": 7,
    "scene": {"alice": {"position_m": [0, 0, 1]}, "bob": {"position_m": [3, 0, 1]}},
    "accounting": {"block_rounds": 50},
}


def record(folder, experiment=EXPERIMENT, eve=True, close=True, with_csi=True, held=(None,) * 6, patterns=(), **nodes):
    """Record rounds 0 to 5: 2 is rejected, in 4 Alice's estimate is missing."""
    lab = {"node": {n: {"role": n} | nodes.get(n, {}) for n in ("alice", "bob", "eve")}}
    start = documents.start(experiment, lab, subcarrier_hz=np.arange(SUBCARRIERS) * 1e5)
    writer = RunWriter(folder, start)
    for name, levels in patterns:
        writer.pattern(name, np.array(levels, np.uint8), 1)
    for r in range(6):
        for link, shift in (("alice>bob", 0), ("bob>alice", 100), ("alice>eve", 200)):
            if link == "alice>eve" and not eve:
                continue
            h = np.full((1, 1, SUBCARRIERS), r + shift + 1j, np.complex64)
            missing = not with_csi or (link == "bob>alice" and r == 4)
            writer.probe(r, link.split(">")[1], link, r * 0.1, 20.0, 0.0, -30.0, None, None if missing else h)
        writer.round(r, r != 2, "low_snr" if r == 2 else None, held[r], r * 0.25)
    if close:
        writer.close(documents.stop("ok"), {})
    else:
        writer.flush()


@pytest.mark.parametrize("close", [True, False])
def test_kept_rounds_come_back(tmp_path, close):
    record(tmp_path, close=close)
    recording = sources.load(tmp_path)
    cut = recording.cuts["run"]
    assert recording.name == "run_folder"
    assert bool(recording.caveats) != close
    assert cut.alice.rounds.tolist() == cut.bob.rounds.tolist() == [0, 1, 3, 4, 5]
    assert cut.bob.h[:, 0, 0, 0].real.tolist() == [0, 1, 3, 4, 5]
    assert np.isnan(cut.alice.h[3]).all()
    assert cut.alice.h[[0, 1, 2, 4], 0, 0, 0].real.tolist() == [100, 101, 103, 105]
    assert cut.eves["eve"].from_alice.h[2, 0, 0, 0].real == 203
    assert cut.eves["eve"].from_bob is None
    assert cut.rejected == {"low_snr": 1}
    assert cut.interval_s == pytest.approx(0.25)
    assert (cut.seed, cut.accounting.block_rounds) == (7, 50)


BOARD = [("one", [[0, 1]]), ("two", [[1, 1]])]
HELD = ("one", "two", "two", "one", "two", "two")


def with_surface(secret):
    surface = {"policy": "random", "secret": secret}
    return {
        **EXPERIMENT,
        "surface": surface,
        "scene": {**EXPERIMENT["scene"], "surface": {"position_m": [1, -1, 1], "normal": [0, 1, 0]}},
    }


def test_public_patterns_come_back_and_secret_ones_only_as_numbers(tmp_path):
    """A replay that forgot them granted a static room hundreds of bits that the run itself had refused."""
    for secret in (False, True):
        folder = tmp_path / str(secret)
        record(folder, with_surface(secret), held=HELD, patterns=BOARD)
        cut = sources.load(folder).cuts["run"]
        held = cut.surface
        assert held.states.tolist() == [0, 1, 0, 1, 1]
        assert (held.elements, held.phase_bits) == (2, 1)
        told = _surface(cut, _Probes(np.arange(5), 1, 3))
        assert (told.states, told.elements, told.phase_bits) == ((1, 0, 1), 2, 1)
        if secret:
            assert held.levels is None
            assert told.levels is None
        else:
            assert held.levels.tolist() == [[0, 1], [1, 1], [0, 1], [1, 1], [1, 1]]
            assert told.levels == bytes([1, 1, 0, 1, 1, 1])


def test_a_run_whose_patterns_are_not_on_record_is_not_replayed(tmp_path):
    record(tmp_path, with_surface(False), held=HELD, patterns=BOARD[:1])
    with pytest.raises(InputError, match="pattern of round 1 is not on record"):
        sources.load(tmp_path)


def test_keys_that_the_runs_nodes_would_refuse_as_too_short_are_none_in_its_replay_either(tmp_path):
    record(tmp_path / "usual")
    record(tmp_path / "strict", bob={"floors": {"key_bits": 512}})
    assert sources.load(tmp_path / "usual").cuts["run"].least_key_bits == 128  # the default of a lab without a table
    assert sources.load(tmp_path / "strict").cuts["run"].least_key_bits == 512


def test_without_eve(tmp_path):
    record(tmp_path, eve=False)
    assert sources.load(tmp_path).cuts["run"].eves == {}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"experiment": {**EXPERIMENT, "mode": "private"}, "with_csi": False}, "private mode"),
        ({"with_csi": False}, "no CSI"),
        ({"experiment": {"title": "t"}}, "missing"),
    ],
)
def test_what_cannot_be_replayed_is_refused(tmp_path, options, says):
    record(tmp_path, **options)
    with pytest.raises(InputError, match=says):
        sources.load(tmp_path)


def test_what_is_accepted_is_said_where_nothing_matches(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "absent"):
        with pytest.raises(InputError) as caught:
            sources.load(path)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        assert "; accepted: " in message
        if path.is_dir():
            assert all(name in message for name in ("openris_vna", "rfm12b_rssi", "run_folder"))


def test_an_eve_of_a_run_reports_every_round_that_she_measured_up_to_the_blocks_end() -> None:
    """Rounds 2 and 5 were rejected; of 5 she received one link, of 6 the other."""
    h = np.ones((6, 1, 1, 2), np.complex64) * np.arange(6).reshape(6, 1, 1, 1)
    axis = np.arange(2.0)
    every = CsiSeries(h, np.array([0, 1, 2, 3, 4, 6]), axis), CsiSeries(h[:3], np.array([2, 5, 7]), axis)
    second = _Probes(np.arange(6), 2, 3, np.array([0, 1, 3, 4, 6, 7]))
    assert second.reported.tolist() == [2, 3, 4, 5, 6]
    from_alice, from_bob = _measured_of(every, second.reported, second.places)
    assert from_alice is not None
    assert from_bob is not None
    assert from_alice.rounds.tolist() == from_bob.rounds.tolist() == [2, 3, 4, 5, 6]
    assert np.isnan(from_alice.h[3]).all()
    assert from_alice.h[[0, 1, 2, 4], 0, 0, 0].tolist() == [2, 3, 4, 5]
    assert np.isnan(from_bob.h[[1, 2, 4]]).all()
