"""The OpenRIS loader, over small synthetic files in the published layout and in the packed one."""

import numpy as np
import pytest

from testbed.core.errors import InputError
from testbed.replay import sources
from testbed.replay.sources import openris_vna

HEAD = "!CSV A.01.01\n!Keysight Technologies,N5247A,US0,A.10\n\nBEGIN CH1_DATA\n"


def channels(n_positions=12, n_configurations=11, n_frequencies=201, seed=3):
    """Return (position, configuration, frequency, direction): reciprocal but for 1 % of noise."""
    rng = np.random.default_rng(seed)

    def noise(*shape):
        return rng.normal(size=shape) + 1j * rng.normal(size=shape)

    h = noise(n_positions, n_configurations, n_frequencies, 1) + 0.01 * noise(
        n_positions, n_configurations, n_frequencies, 2
    )
    return (1e-3 * h).astype(np.complex64)


def pack(path, **changes):
    h = channels()
    arrays = {
        "freq_hz": np.linspace(3e9, 4e9, 201),
        "tx_105_VV": h,
        "tx_105_VV_rx_deg": np.arange(0, 36, 3),
        **changes,
    }
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return h


def publish(folder, h, rx_deg):
    """Write the published tree: tx_105_VV/rx_<deg>/<configuration>.csv with S34 and S43 in dB and degrees."""
    frequencies = np.linspace(3e9, 4e9, h.shape[2])
    for place, angle in zip(h, rx_deg, strict=True):
        there = folder / "tx_105_VV" / f"rx_{angle}"
        there.mkdir(parents=True)
        for number, sweep in enumerate(place, start=1):
            db, degrees = 20 * np.log10(np.abs(sweep)), np.degrees(np.angle(sweep))
            lines = [
                f"{f:.0f},-10,170,{d[0]:.6f},{a[0]:.6f},{d[1]:.6f},{a[1]:.6f},-18,-165"
                for f, d, a in zip(frequencies, db, degrees, strict=True)
            ]
            body = "\n".join([openris_vna._COLUMNS, *lines, "END", ""])
            (there / f"{number}.csv").write_text(HEAD + body, encoding="ascii")


def test_shapes_and_band(tmp_path):
    pack(tmp_path / "openris_ff.npz")
    recording = sources.load(tmp_path)
    cut = recording.cuts["tx_105_VV"]
    assert recording.name == "openris_vna"
    assert recording.main == "tx_105_VV"
    assert cut.alice.h.shape == (132, 1, 1, 41)
    assert cut.alice.subcarrier_hz[0] == pytest.approx(-100e6)
    assert cut.alice.subcarrier_hz[-1] == pytest.approx(100e6)
    assert cut.interval_s is None
    assert cut.groups.tolist() == np.repeat(np.arange(12), 11).tolist()


def test_only_what_the_surface_changes_is_left(tmp_path):
    """A factor on a whole position, whatever its frequency response, must not show."""
    h = pack(tmp_path / "a.npz")
    rng = np.random.default_rng(5)
    common = 10 ** rng.normal(size=(12, 1, 201, 1))
    pack(tmp_path / "b.npz", tx_105_VV=(h * common).astype(np.complex64))
    a, b = (sources.load(tmp_path / name).cuts["tx_105_VV"] for name in ("a.npz", "b.npz"))
    np.testing.assert_allclose(np.abs(a.alice.h), np.abs(b.alice.h), rtol=1e-4)
    level_db = 20 * np.log10(np.abs(a.bob.h.reshape(12, 11, 41)))
    np.testing.assert_allclose(level_db.mean(axis=1), 0.0, atol=1e-4)


def test_eve_is_bob_elsewhere(tmp_path):
    pack(tmp_path / "openris_ff.npz")
    cut = sources.load(tmp_path).cuts["tx_105_VV"]
    bob = cut.bob.h.reshape(12, 11, 41)
    eve = cut.eves["6deg"].from_alice.h.reshape(12, 11, 41)
    np.testing.assert_array_equal(eve[:10], bob[2:])
    np.testing.assert_array_equal(eve[10:], bob[8:10])  # past the end of the arc she is on the other side
    assert cut.eves["6deg"].from_bob is None
    assert cut.eves["6deg"].told_over.tolist() == [True] * 110 + [False] * 22


def test_a_missing_position_is_not_paired_with_a_neighbour(tmp_path):
    """Positions go by angle, not by index: 6 degrees from 0 is missing in this file, and not at 9."""
    rx_deg = np.array([0, 3, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36])
    pack(tmp_path / "openris_ff.npz", tx_105_VV_rx_deg=rx_deg)
    eve = sources.load(tmp_path).cuts["tx_105_VV"].eves["6deg"].from_alice.h.reshape(12, 11, 41)
    assert np.isnan(eve[0]).all()
    assert np.isfinite(eve[1]).all()


def test_key_probes_leave_out_predictable_positions(tmp_path):
    pack(tmp_path / "openris_ff.npz")
    cut = sources.load(tmp_path).cuts["tx_105_VV"]
    position, configuration = np.divmod(cut.key_probes, 11)
    assert len(set(cut.key_probes.tolist())) == cut.key_probes.size > 0
    assert set((position * 3 % openris_vna.KEY_STEP_DEG).tolist()) == {0}
    assert 10 not in configuration
    assert (np.abs(position * 3 - 15 * (configuration + 1)) > 15).all()
    assert (np.diff(configuration) >= 0).all()  # neighbours in place are neighbours in the series


def test_codebook_eve_knows_the_beam_and_nothing_of_this_cut(tmp_path):
    """Beams of one shape in two cuts, with independent noise: learnt from the one, they predict the other."""
    rng = np.random.default_rng(8)
    rx_deg = np.arange(0, 183, 3)
    off = np.abs(rx_deg[:, None] - 15 * np.arange(1, 12))
    beam_db = np.where(off < 10, 12.0, 0.0)[..., None, None]
    noise_db = {f"tx_{tx}_VV": rng.normal(size=(61, 11, 201, 2)) for tx in (105, 120)}
    cuts = {name: 10 ** ((beam_db + noise) / 20) for name, noise in noise_db.items()}
    np.savez(
        tmp_path / "openris_ff.npz",
        freq_hz=np.linspace(3e9, 4e9, 201),
        **{name: h.astype(np.complex64) for name, h in cuts.items()},
        **{f"{name}_rx_deg": rx_deg for name in cuts},
    )
    recording = sources.load(tmp_path)
    cut = recording.cuts["tx_105_VV"]
    eve = cut.eves["codebook"]
    assert not eve.measured
    expected_db = 20 * np.log10(np.abs(eve.from_alice.h.reshape(61, 11, 41)))
    in_beam = off < 10
    assert expected_db[in_beam].mean() - expected_db[~in_beam].mean() == pytest.approx(12.0, abs=0.5)
    own_noise_db = noise_db["tx_105_VV"][:, :, 96:137, 0]
    assert abs(np.corrcoef(own_noise_db.ravel(), expected_db.ravel())[0, 1]) < 0.03
    pooled = recording.cuts["VV"]
    assert recording.main == "VV"
    assert pooled.alice.h.shape[0] == 2 * cut.alice.h.shape[0]
    assert pooled.groups[-1] == 121
    np.testing.assert_array_equal(pooled.alice.h[pooled.key_probes[: cut.key_probes.size]], cut.alice.h[cut.key_probes])
    np.testing.assert_array_equal(
        pooled.eves["9deg"].from_alice.h[671:], recording.cuts["tx_120_VV"].eves["9deg"].from_alice.h
    )


def test_published_tree_and_packed_file_agree(tmp_path):
    h = channels(n_positions=3)
    publish(tmp_path / "tree", h, [0, 3, 102])
    (tmp_path / "tree" / "tx_105_VV" / "rx_3" / "8 - error.csv").write_text("set aside upstream")
    pack(tmp_path / "p.npz", tx_105_VV=h, tx_105_VV_rx_deg=np.array([0, 3, 102]))
    tree, packed = sources.load(tmp_path / "tree").cuts["tx_105_VV"], sources.load(tmp_path / "p.npz").cuts["tx_105_VV"]
    np.testing.assert_allclose(tree.alice.h, packed.alice.h, rtol=2e-5)
    np.testing.assert_allclose(tree.bob.h, packed.bob.h, rtol=2e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"freq_hz": None}, "no array freq_hz"),
        ({"tx_105_VV_rx_deg": None}, "no array tx_105_VV_rx_deg"),
        ({"tx_105_VV": None}, "tx_<deg>_<pol>"),
        ({"tx_105_VV": np.ones((12, 11, 200, 2), np.complex64)}, "accepted: complex of shape"),
        ({"tx_105_VV": np.full((12, 11, 201, 2), "x")}, "accepted: complex"),
        ({"tx_105_VV": np.zeros((12, 11, 201, 2), np.complex64)}, "finite values other than 0"),
        ({"tx_105_VV": np.full((12, 11, 201, 2), np.nan, np.complex64)}, "finite values"),
        ({"freq_hz": np.full(201, "3 GHz")}, "accepted: real"),
        ({"tx_105_VV_rx_deg": np.array([None] * 12, dtype=object)}, "cannot be read"),
        ({"freq_hz": np.linspace(5e9, 6e9, 201)}, "3.48"),
    ],
)
def test_bad_arrays(tmp_path, changes, says):
    pack(tmp_path / "openris_ff.npz", **changes)
    refused(tmp_path, says, "openris_ff.npz")


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_truncated_npz(tmp_path, keep):
    pack(tmp_path / "openris_ff.npz")
    whole = (tmp_path / "openris_ff.npz").read_bytes()
    (tmp_path / "openris_ff.npz").write_bytes(whole[:keep])
    refused(tmp_path, "truncated", "openris_ff.npz")


def test_bad_csv(tmp_path):
    publish(tmp_path, channels(n_positions=2), [0, 3])
    file = tmp_path / "tx_105_VV" / "rx_3" / "2.csv"
    text = file.read_text(encoding="ascii")
    for broken, says in (
        (text.replace("END", ""), "END"),
        (text.replace("-10,170", "-10,abc", 1), "abc"),
        (text.replace("S34(DB)", "S21(DB)"), "columns"),
        (text.replace("3005000000", "3005000001"), "the same frequencies"),
    ):
        file.write_text(broken, encoding="ascii")
        refused(tmp_path, says, "2.csv")
    file.unlink()
    refused(tmp_path, "10 CSV files", "rx_3")


def refused(path, says, names):
    with pytest.raises(InputError) as caught:
        sources.load(path)
    message = str(caught.value)
    assert says in message
    assert names in message
    assert "accepted" in message
    assert "\n" not in message
