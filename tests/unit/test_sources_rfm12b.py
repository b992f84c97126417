"""The RFM12B loader, over small synthetic files in the published format."""

import gzip

import numpy as np
import pytest

from testbed.core.errors import InputError
from testbed.replay import sources

SNIFFER = ("sniffer_nodeA_B", "sniffer_nodeB_A", "sniffer_nodeE_A", "sniffer_nodeE_B")
STATIC = ("static_nodeA", "static_nodeB")


def write(folder, stem, dbm, compressed=True):
    text = "".join(";".join(str(v) for v in row) + ";&\r\n" for row in dbm).encode()
    if compressed:
        (folder / f"{stem}.txt.gz").write_bytes(gzip.compress(text))
    else:
        (folder / f"{stem}.txt").write_bytes(text)


def fill(folder, stems=SNIFFER + STATIC, **options):
    rng = np.random.default_rng(2)
    written = {}
    for stem in stems:
        written[stem] = rng.integers(-90, -60, size=(3, 20))
        write(folder, stem, written[stem], **options)
    return written


@pytest.mark.parametrize("compressed", [True, False])
def test_dbm_comes_back_from_the_csi(tmp_path, compressed):
    written = fill(tmp_path, compressed=compressed)
    recording = sources.load(tmp_path)
    assert (recording.name, recording.main) == ("rfm12b_rssi", "sniffer")
    cut = recording.cuts["sniffer"]
    eve = cut.eves["node31"]
    for series, stem in zip((cut.alice, cut.bob, eve.from_alice, eve.from_bob), SNIFFER, strict=True):
        assert series.h.shape == (60, 1, 1, 1)
        np.testing.assert_allclose(20 * np.log10(np.abs(series.h.ravel())), written[stem].ravel(), atol=1e-4)
    assert cut.groups.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    assert recording.cuts["static"].eves == {}


def test_published_layout(tmp_path):
    flat, published = tmp_path / "flat", tmp_path / "1_RSS_RAWdataFile_Conditioning"
    flat.mkdir()
    fill(flat, compressed=False)
    for stem in SNIFFER + STATIC:
        kind, node = stem.split("_", 1)
        folder = (
            published / {"sniffer": "Proc_SnifferData", "static": "Proc_Static"}[kind] / "RSS_conditionedDataSample"
        )
        folder.mkdir(parents=True, exist_ok=True)
        (flat / f"{stem}.txt").rename(folder / f"{node}.txt")
    recording = sources.load(published)
    assert set(recording.cuts) == {"sniffer", "static"}
    assert recording.cuts["sniffer"].eves["node31"].from_bob is not None


def test_missing_value_is_nan(tmp_path):
    written = fill(tmp_path, STATIC)
    written["static_nodeB"][1, 4] = 0
    write(tmp_path, "static_nodeB", written["static_nodeB"])
    recording = sources.load(tmp_path)
    assert recording.main == "static"
    assert np.flatnonzero(np.isnan(recording.cuts["static"].bob.h.ravel())).tolist() == [24]


def test_without_eve_none_is_invented(tmp_path):
    fill(tmp_path, SNIFFER[:2])
    cut = sources.load(tmp_path).cuts["sniffer"]
    assert cut.eves == {}
    assert cut.assumed == ()


def test_one_link_of_eve(tmp_path):
    fill(tmp_path, SNIFFER[:3])
    eve = sources.load(tmp_path).cuts["sniffer"].eves["node31"]
    assert eve.from_alice is not None
    assert eve.from_bob is None


def test_missing_partner(tmp_path):
    fill(tmp_path, SNIFFER[:1])
    refused(tmp_path, "missing", "sniffer_nodeB_A")


@pytest.mark.parametrize("keep", [0, 5, 60])
def test_truncated_gzip(tmp_path, keep):
    fill(tmp_path)
    file = tmp_path / "sniffer_nodeB_A.txt.gz"
    file.write_bytes(file.read_bytes()[:keep])
    refused(tmp_path, "truncated" if keep else "no values", file.name)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("-70;-71;x;&", "line 2"),
        ("-70;-71;-70.5;&", "-70.5"),
        ("-70;-71;&", "2 values"),
        ("-70;+71;-70;&", "71 dBm"),
        ("-70;-200;-70;&", "-200 dBm"),
        ("-70;;-70;&", "line 2"),
    ],
)
def test_bad_line(tmp_path, line, says):
    text = f"-70;-71;-72;&\r\n{line}\r\n".encode()
    for stem in STATIC:
        (tmp_path / f"{stem}.txt").write_bytes(text)
    refused(tmp_path, says, "static_nodeA.txt")


def test_different_number_of_rows(tmp_path):
    written = fill(tmp_path)
    write(tmp_path, "sniffer_nodeE_B", written["sniffer_nodeE_B"][:2])
    refused(tmp_path, "2 rows", "sniffer_nodeE_B")


def refused(path, says, names):
    with pytest.raises(InputError) as caught:
        sources.load(path)
    message = str(caught.value)
    assert says in message
    assert names in message
    assert "accepted" in message
    assert "\n" not in message
