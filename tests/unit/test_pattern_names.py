"""Patterns by name: their levels, refused names, and that a beam has its stated direction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim_backend.channel import Channel
from testbed.core import patterns
from testbed.core.config import Multipath, PlacedNode, PlacedSurface, Scene
from testbed.core.errors import InputError
from testbed.core.types import SurfacePattern

CARRIER_HZ = 5.8e9
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(shapes, st.integers(1, 3), st.integers(0, 2**31))
def test_hexadecimal_is_read_back_as_it_was(shape: tuple[int, int], bits: int, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(0, 1 << bits, shape, dtype=np.uint8)
    text = patterns.to_hex(SurfacePattern(levels, bits))
    assert np.array_equal(patterns.make(text, shape, bits).levels, levels)
    assert np.array_equal(patterns.make(text.upper().replace("0X", "0x"), shape, bits).levels, levels)


@given(
    shapes,
    st.integers(1, 3),
    st.sampled_from(
        ["uniform", "uniform(1)", "random(3)", "stripes(1)", "stripes(1, rows)", "beam(20, -10)", "beam(0,0,30,5)",
         "hadamard(0)"]
    ),
)  # fmt: skip
def test_every_name_fits_every_board(shape: tuple[int, int], bits: int, spec: str) -> None:
    made = patterns.make(spec, shape, bits)
    assert made.levels.shape == shape
    assert made.levels.dtype == np.uint8
    assert made.levels.max() < 1 << bits
    assert made.digest == patterns.make(spec, shape, bits).digest


def test_element_1_is_the_most_significant_and_top_left() -> None:
    levels = np.zeros((16, 16), np.uint8)
    levels[0, 0] = 1
    assert patterns.to_hex(SurfacePattern(levels, 1)) == "0x8" + 63 * "0"
    levels[0, 0], levels[0, 1] = 0, 1
    assert patterns.to_hex(SurfacePattern(levels, 1)) == "0x4" + 63 * "0"
    assert patterns.to_hex(SurfacePattern(np.array([[3, 0, 1]], np.uint8), 2)) == "0xc4"


def test_what_the_names_are() -> None:
    def levels(spec: str, bits: int = 2) -> list[list[int]]:
        found: list[list[int]] = patterns.make(spec, (2, 4), bits).levels.tolist()
        return found

    assert levels("uniform(3)") == [[3] * 4] * 2
    assert levels("stripes(2)") == [[0, 0, 2, 2]] * 2
    assert levels("stripes(1, rows)") == [[0] * 4, [2] * 4]
    assert levels("hadamard(1)", 1) == [[0, 1, 0, 1]] * 2
    rows = [1 - 2.0 * np.ravel(levels(f"hadamard({i})", 1)) for i in range(8)]
    assert np.array_equal(np.array(rows) @ np.array(rows).T, 8 * np.eye(8))
    assert levels("random(1)") != levels("random(2)")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("wobble", "wobble"),
        ("random", "0 arguments, accepted 1"),
        ("beam(1)", "1 argument, accepted 2 to 4"),
        ("random(x)", "a whole number"),
        ("uniform(2)", "accepted 0 to 1"),
        ("random(-1)", "a whole number from 0"),
        ("random(1_0)", "a whole number from 0"),
        ("uniform(-1)", "a whole number from 0"),
        ("stripes(0)", "accepted 1 to 4"),
        ("stripes(999)", "accepted 1 to 4 \\(columns\\)"),
        ("stripes(5, rows)", "accepted 1 to 4 \\(rows\\)"),
        ("stripes(1, diagonals)", "rows, columns"),
        ("beam(91, 0)", "−90 to 90"),
        ("beam(1e999, 0)", "−90 to 90"),
        ("beam(nan, 0)", "a number of degrees"),
        ("hadamard(16)", "accepted 0 to 15"),
        ("0x12g4", "not hexadecimal"),
        ("0x123", "accepted 4"),
        ("0x", "not hexadecimal"),
        ("nowhere.json", "cannot be read"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_is_accepted(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        patterns.make(spec, (4, 4), 1)
    assert "\n" not in str(refused.value)


def test_bits_beyond_the_last_element_are_refused() -> None:
    assert patterns.make("0xe", (1, 3), 1).levels.tolist() == [[1, 1, 1]]
    with pytest.raises(InputError, match="beyond the last element"):
        patterns.make("0xf", (1, 3), 1)


def test_a_saved_pattern_keeps_its_provenance_and_shows_damage(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    made = patterns.make("random(5)", (4, 4), 2)
    patterns.save(path, made, {"method": "greedy", "gain": 3.5})
    found, provenance = patterns.load(path)
    assert np.array_equal(found.levels, made.levels)
    assert provenance == {"method": "greedy", "gain": 3.5}
    patterns.check(str(path))
    with pytest.raises(InputError, match="accepted by this board: 8×8"):
        patterns.make(str(path), (8, 8), 2)
    document = json.loads(path.read_text())
    document["levels"] = "0x" + 8 * "0"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="damaged"):
        patterns.check(str(path))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rows", None, "rows"), ("rows", 1e999, "rows"), ("columns", 0, "columns"), ("phase_bits", 0, "phase_bits"),
        ("levels", "best.json", "levels"), ("levels", "0x12", "accepted 8"), ("provenance", "abc", "provenance"),
        ("digest", 7, "digest"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_saved_pattern_is_one_line_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, words: str
) -> None:
    monkeypatch.chdir(tmp_path)  # where a file that names itself would be found
    path = Path("best.json")
    patterns.save(path, patterns.make("random(5)", (4, 4), 2), {})
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError, match=f"best.json: .*{words}") as refused:
        patterns.check(str(path))
    assert "\n" not in str(refused.value)
    for text in ("{}", "[1]", "{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError, match="no saved pattern"):
            patterns.check(str(path))


def reflected(azimuth_deg: float, elevation_deg: float, from_deg: tuple[float, float], spec: str, bits: int) -> float:
    """Power by way of a 12 × 10 surface between two far places at these angles, seen by an observer facing it."""
    normal, right, up = np.array([0.0, 1.0, 0.0]), np.array([-1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])

    def at(az_deg: float, el_deg: float) -> list[float]:
        az, el = np.deg2rad([az_deg, el_deg])
        toward = np.cos(el) * (np.cos(az) * normal + np.sin(az) * right) + np.sin(el) * up
        return [float(x) for x in 300 * toward]

    scene = Scene(
        alice=PlacedNode(position_m=at(*from_deg)),
        bob=PlacedNode(position_m=at(azimuth_deg, elevation_deg)),
        surface=PlacedSurface(position_m=[0.0, 0.0, 0.0], normal=[float(x) for x in normal]),
        multipath=Multipath(n_scatterers=0, direct_db=-200.0),
    )
    channel = Channel(scene, CARRIER_HZ, 1)
    channel.hang_surface((12, 10))
    amplitude, _ = channel.paths("alice", "bob", 0.0, CARRIER_HZ)
    elements = amplitude[channel.n_air :]
    phasor = np.exp(1j * patterns.make(spec, (12, 10), bits).phases_rad.ravel())
    return float(np.abs(elements @ phasor) ** 2 / np.abs(elements[0]) ** 2)


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize(
    ("towards", "source"), [((35, 0), (0, 0)), ((-20, 15), (0, 0)), ((25, -30), (-50, 10)), ((10, 40), (30, -20))]
)
def test_a_beam_goes_where_it_says(towards: tuple[float, float], source: tuple[float, float], bits: int) -> None:
    n = 120
    beam = f"beam({towards[0]}, {towards[1]}, {source[0]}, {source[1]})"
    # N² times the mean loss by quantization to b bits, sinc²(1/2^b); random patterns give N
    expected = n**2 * np.sinc(1 / (1 << bits)) ** 2
    found = reflected(*towards, source, beam, bits)
    assert abs(10 * np.log10(found / expected)) < 1.0
    randoms = np.mean([reflected(*towards, source, f"random({i})", bits) for i in range(30)])
    assert found > 0.3 * n * randoms
    if bits > 1:  # one bit cannot tell a direction from its mirror image
        mirrored = f"beam({-towards[0]}, {-towards[1]}, {-source[0]}, {-source[1]})"
        assert reflected(*towards, source, mirrored, bits) < 0.2 * found
