"""IQ recordings: exact round trip, and the keys that the SigMF specification demands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from testbed.core.errors import InputError
from testbed.core.types import IqBlock
from testbed.records import sigmf


def a_block(n_antennas: int) -> IqBlock:
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(n_antennas, 100)) + 1j * rng.normal(size=(n_antennas, 100))
    return IqBlock(samples.astype(np.complex64), 40e6, 12.5, overflow=n_antennas == 2)


@pytest.mark.parametrize("n_antennas", [1, 2])
def test_round_trip_is_exact(tmp_path: Path, n_antennas: int) -> None:
    block = a_block(n_antennas)
    marks = [sigmf.Annotation(40, 60, "A>B"), sigmf.Annotation(0, 40, "preamble", "two halves")]
    data, meta = sigmf.write(tmp_path / "iq" / "round.3", block, 2.4e9, marks)
    assert (data.name, meta.name) == ("round.3.sigmf-data", "round.3.sigmf-meta")
    back, carrier_hz, found = sigmf.read(tmp_path / "iq" / "round.3")
    np.testing.assert_array_equal(back.samples, block.samples)
    assert (back.sample_rate_hz, back.time_s, back.overflow, carrier_hz) == (40e6, 12.5, n_antennas == 2, 2.4e9)
    assert found == sorted(marks, key=lambda a: a.sample_start)


def test_data_are_little_endian_floats_interleaved_by_antenna(tmp_path: Path) -> None:
    block = IqBlock(np.array([[1 + 2j, 3 + 4j], [5 + 6j, 7 + 8j]], dtype=np.complex64), 1e6, 0.0)
    data, meta = sigmf.write(tmp_path / "x", block, 1e9)
    assert np.frombuffer(data.read_bytes(), "<f4").tolist() == [1, 2, 5, 6, 3, 4, 7, 8]
    head = json.loads(meta.read_text())
    assert set(head) == {"global", "captures", "annotations"}
    assert head["global"]["core:datatype"] == "cf32_le"
    assert head["global"]["core:num_channels"] == 2
    assert head["captures"][0]["core:sample_start"] == 0
    # a namespace of our own must be declared
    assert head["global"]["core:extensions"][0]["name"] == "ris_skg"


def test_annotations_outside_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside"):
        sigmf.write(tmp_path / "x", a_block(1), 1e9, [sigmf.Annotation(90, 11, "late")])
    data, meta = sigmf.write(tmp_path / "x", a_block(1), 1e9)
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"x\.sigmf-data: its sha512"):
        sigmf.read(tmp_path / "x")
    meta.write_text("{}")
    with pytest.raises(InputError, match=r"x\.sigmf-meta"):
        sigmf.read(tmp_path / "x")
    with pytest.raises(InputError, match=r"y\.sigmf-meta"):
        sigmf.read(tmp_path / "y")
