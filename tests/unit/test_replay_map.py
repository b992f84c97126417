"""Arrays in any layout through a map: every format gives the same channels, ends are paired, bad input is one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from testbed.chain.probing.ofdm import Ofdm
from testbed.cli import main
from testbed.config import load_chain
from testbed.core.config import ChainPlan
from testbed.core.errors import InputError
from testbed.core.types import CsiSeries, IqBlock
from testbed.lab import grid
from testbed.records import sigmf
from testbed.replay import arrays, replay, sources, wifi
from testbed.replay import map as mapping
from testbed.replay.sources import Cut, EveLinks, Recording

PROBES, CARRIERS = 40, 5
ENDS = ("alice", "bob", "eve")


def channels(seed: int = 2) -> dict[str, np.ndarray[Any, Any]]:
    """Complex (probe, subcarrier) at each end."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(PROBES, CARRIERS, 2)) @ [1, 1j]
    noise = {end: 0.1 * rng.normal(size=(PROBES, CARRIERS, 2)) @ [1, 1j] for end in ENDS}
    return {"alice": shared + noise["alice"], "bob": shared + noise["bob"], "eve": noise["eve"] * 10}


MAP = """
schema = 1
subcarrier_spacing_hz = 312500.0
[alice]
array = "alice"
[bob]
array = "bob"
[eve.near]
from_alice = { array = "eve" }
"""


def a_map(folder: Path, text: str = MAP) -> Path:
    path = folder / "map.toml"
    path.write_text(text)
    return path


def loaded(folder: Path, source: str, text: str = MAP) -> Cut:
    recording = mapping.load(folder / source, a_map(folder, text))
    sources.checked(recording, "here")
    return recording.cuts[recording.main]


def write_hdf5(path: Path, arrays: dict[str, Any]) -> None:
    with h5py.File(path, "w") as f:
        for name, values in arrays.items():
            f[name] = values


def write_mat73(path: Path, arrays: dict[str, Any]) -> None:
    """As MATLAB writes them: HDF5 behind a header, axes the other way round, complex numbers as real and imag."""
    pair = np.dtype([("real", "f8"), ("imag", "f8")])
    with h5py.File(path, "w", userblock_size=512) as f:
        for name, values in arrays.items():
            out = np.empty(values.T.shape, pair)
            out["real"], out["imag"] = values.T.real, values.T.imag
            f[name] = out
    with path.open("r+b") as f:
        f.write(b"MATLAB 7.3 MAT-file".ljust(128))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("m.npz", lambda path, arrays: np.savez(path, **arrays)),
        ("m.h5", write_hdf5),
        ("m.mat", lambda path, arrays: scipy.io.savemat(path, arrays)),
        ("v73.mat", write_mat73),
    ],
)
def test_every_array_format_gives_the_same_channels(tmp_path: Path, name: str, write: Any) -> None:
    measured = channels()
    write(tmp_path / name, measured)
    cut = loaded(tmp_path, name)
    np.testing.assert_array_equal(cut.alice.h[:, 0, 0], measured["alice"].astype(np.complex64))
    np.testing.assert_array_equal(cut.bob.h[:, 0, 0], measured["bob"].astype(np.complex64))
    heard = cut.eves["near"].from_alice
    assert heard is not None
    np.testing.assert_array_equal(heard.h[:, 0, 0], measured["eve"].astype(np.complex64))
    assert cut.eves["near"].from_bob is None
    assert cut.assumed == ("near",)
    np.testing.assert_allclose(cut.alice.subcarrier_hz, 312.5e3 * np.array([-2, -1, 0, 1, 2]))


def test_csv_of_many_columns_in_their_natural_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    h = rng.normal(size=(2, PROBES, 12, 2)) @ [1, 1j]
    for end, values in zip(("a", "b"), h, strict=True):
        columns = [f"re_{k}" for k in range(12)] + [f"im_{k}" for k in range(12)] + ["note"]
        lines = [";".join([*map(repr, map(float, row.real)), *map(repr, map(float, row.imag)), "x"]) for row in values]
        (tmp_path / f"{end}.csv").write_text("\n".join([";".join(columns), *lines]))
    ends = "".join(
        f'[{who}]\nfile = "{end}.csv"\narray = "re_*"\nimag = "im_*"\n' for who, end in (("alice", "a"), ("bob", "b"))
    )
    cut = loaded(tmp_path, ".", f"schema = 1\nsubcarrier_hz = {list(range(12))}\n" + ends)
    np.testing.assert_array_equal(cut.alice.h[:, 0, 0], h[0].astype(np.complex64))
    np.testing.assert_array_equal(cut.bob.h[:, 0, 0], h[1].astype(np.complex64))


@pytest.mark.parametrize(
    ("quantity", "stored", "extra"),
    [
        ("csi", lambda h: {"alice": h}, ""),
        ("csi", lambda h: {"alice": np.stack([h.real, h.imag], -1)}, 'axes = ["probe", "subcarrier", "part"]'),
        ("csi", lambda h: {"alice": h.T}, 'axes = ["subcarrier", "probe"]'),
        ("csi", lambda h: {"alice": h.real, "q": h.imag}, 'imag = "q"'),
        ("amplitude", lambda h: {"alice": np.abs(h), "p": np.angle(h)}, 'phase_rad = "p"'),
        ("rssi_db", lambda h: {"alice": 20 * np.log10(np.abs(h)), "p": np.degrees(np.angle(h))}, 'phase_deg = "p"'),
    ],
)
def test_complex_numbers_however_they_are_stored(tmp_path: Path, quantity: str, stored: Any, extra: str) -> None:
    h = channels()["alice"]
    np.savez(tmp_path / "m.npz", **stored(h))
    text = f'schema = 1\nquantity = "{quantity}"\nsubcarrier_spacing_hz = 1.0\n'
    text += "".join(f'[{end}]\narray = "alice"\n{extra}\n' for end in ("alice", "bob"))
    np.testing.assert_allclose(loaded(tmp_path, "m.npz", text).alice.h[:, 0, 0], h, rtol=1e-5)


@pytest.mark.parametrize(
    ("quantity", "store"),
    [("amplitude", np.abs), ("power", lambda h: np.abs(h) ** 2), ("rssi_db", lambda h: 20 * np.log10(np.abs(h)))],
)
def test_levels_without_phases(tmp_path: Path, quantity: str, store: Any) -> None:
    h = channels()["alice"][:, 0]
    values = store(h)
    values[3] = -999.0
    np.savez(tmp_path / "m.npz", rssi=values)
    text = f'schema = 1\nquantity = "{quantity}"\n'
    text += "".join(f'[{end}]\narray = "rssi"\nmissing = [-999.0]\n' for end in ("alice", "bob"))
    cut = loaded(tmp_path, "m.npz", text)
    assert np.isnan(cut.alice.h[3]).all()
    known = np.delete(cut.alice.h[:, 0, 0, 0], 3)
    np.testing.assert_allclose(known, np.delete(np.abs(h), 3), rtol=1e-5)
    assert not known.imag.any()


def keyed(**changes: Any) -> dict[str, Any]:
    """Ends that lost other probes each: Alice every 7th, Bob every 5th, and Bob has one twice."""
    h, number = channels(), np.arange(PROBES)
    alice, bob = number % 7 != 3, np.append(number[number % 5 != 1], 2)
    return {
        "alice": h["alice"][alice], "ia": number[alice], "ta": number[alice] * 0.1,
        "bob": h["bob"][bob], "ib": bob, "tb": bob * 0.1 + 0.004,
        "eve": h["eve"][::2], "ie": number[::2], "te": number[::2] * 0.1 + 0.004, **changes,
    }  # fmt: skip


def keyed_map(by: str, head: str = "") -> str:
    key = {"index": "i", "time": "t"}[by]
    return f"""
schema = 1
subcarrier_spacing_hz = 1.0
{head}
[alice]
array = "alice"
{by} = "{key}a"
[bob]
array = "bob"
{by} = "{key}b"
[eve.near]
from_alice = {{ array = "eve", {by} = "{key}e" }}
"""


@pytest.mark.parametrize("by", ["index", "time"])
def test_ends_of_unequal_length_are_paired_and_the_rest_is_counted(tmp_path: Path, by: str) -> None:
    np.savez(tmp_path / "m.npz", **keyed())
    cut = loaded(tmp_path, "m.npz", keyed_map(by))
    number = np.arange(PROBES)
    both = number[(number % 7 != 3) & (number % 5 != 1)]
    h = channels()
    np.testing.assert_array_equal(cut.alice.h[:, 0, 0], h["alice"][both].astype(np.complex64))
    np.testing.assert_array_equal(cut.bob.h[:, 0, 0], h["bob"][both].astype(np.complex64))
    heard = cut.eves["near"].from_alice
    assert heard is not None
    np.testing.assert_array_equal(np.isnan(heard.h[:, 0, 0, 0]), both % 2 == 1)
    np.testing.assert_array_equal(heard.h[both % 2 == 0, 0, 0], h["eve"][both[both % 2 == 0]].astype(np.complex64))
    only_alice = int(((number % 7 != 3) & (number % 5 == 1)).sum())
    only_bob = int(((number % 7 == 3) & (number % 5 != 1)).sum())
    twice = {"duplicate": 1} if by == "index" else {}
    assert cut.rejected == {"only_alice": only_alice, "only_bob": only_bob + (by == "time"), **twice}


def test_sequence_numbers_that_start_again(tmp_path: Path) -> None:
    h, number = channels(), np.arange(PROBES)
    np.savez(
        tmp_path / "m.npz", **keyed(alice=h["alice"], ia=number % 16, bob=h["bob"], ib=number % 16, ie=number[::2] % 16)
    )
    cut = loaded(tmp_path, "m.npz", keyed_map("index", "index_modulus = 16"))
    np.testing.assert_array_equal(cut.bob.h[:, 0, 0], h["bob"].astype(np.complex64))
    assert cut.rejected == {}


def test_one_table_for_all_and_time_in_other_units(tmp_path: Path) -> None:
    lines = ["node,ms,rssi"]
    for i in range(20):
        lines += [f"a,{i * 100},{-60 - i}", f"b,{i * 100 + 3},{-70 - i}"]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
    text = 'schema = 1\nquantity = "rssi_db"\n' + "".join(
        f'[{end}]\narray = "rssi"\ntime = "ms"\ntime_unit = "ms"\nwhere = {{ node = "{end[0]}" }}\n'
        for end in ("alice", "bob")
    )
    cut = loaded(tmp_path, "m.csv", text)
    np.testing.assert_allclose(20 * np.log10(np.abs(cut.alice.h.ravel())), -60 - np.arange(20), atol=1e-4)
    np.testing.assert_allclose(20 * np.log10(np.abs(cut.bob.h.ravel())), -70 - np.arange(20), atol=1e-4)
    assert cut.interval_s == pytest.approx(0.1)
    with pytest.raises(InputError, match="0 pairs of 20 probes of Alice and 20 of Bob, by time"):
        loaded(tmp_path, "m.csv", text.replace("schema = 1", "schema = 1\ntolerance_s = 0.001"))


def test_null_subcarriers_are_found_and_named(tmp_path: Path) -> None:
    h = channels()
    for end in ("alice", "bob"):
        h[end][:, 2] = 0
    np.savez(tmp_path / "m.npz", **h)
    recording = mapping.load(
        tmp_path / "m.npz", a_map(tmp_path, MAP.replace("schema = 1", "schema = 1\nleave_out = [4]"))
    )
    assert recording.cuts["mapped"].alice.h.shape[3] == 3
    assert "subcarriers left out, always zero or NaN at an end: 2" in recording.caveats
    np.testing.assert_allclose(recording.cuts["mapped"].alice.subcarrier_hz, 312.5e3 * np.array([-2, -1, 1]))


def bfee(count: int, h: np.ndarray[Any, Any]) -> bytes:
    """A beamforming record of the Linux 802.11n CSI Tool: one antenna each, 30 subcarriers, 3 bits before each."""
    bits = ""
    for value in h:
        bits += "000" + "".join(f"{int(part) & 0xFF:08b}"[::-1] for part in (value.real, value.imag))
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    payload = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
    head = struct.pack("<IHHBBBBBbBBHH", count * 1000, count, 0, 1, 1, 40, 0, 0, -90, 30, 0, len(payload), 0x1101)
    record = b"\xbb" + head + payload
    return struct.pack(">H", len(record)) + record


def test_a_wifi_capture_of_the_intel_5300(tmp_path: Path) -> None:
    pytest.importorskip("csiread", reason="the extra `wifi` is not installed")
    rng = np.random.default_rng(3)
    h = rng.integers(-100, 100, size=(2, 20, 30)) + 1j * rng.integers(-100, 100, size=(2, 20, 30))
    for end, values, lost in (("a", h[0], 4), ("b", h[1], 9)):
        (tmp_path / f"{end}.dat").write_bytes(b"".join(bfee(i, v) for i, v in enumerate(values) if i != lost))
    text = "schema = 1\n" + "".join(
        f'[{who}]\nfile = "{end}.dat"\nformat = "intel"\noptions = {{ nrxnum = 1, ntxnum = 1 }}\nindex = "bfee_count"\n'
        for who, end in (("alice", "a"), ("bob", "b"))
    )
    cut = loaded(tmp_path, ".", text)
    both = np.delete(np.arange(20), [4, 9])
    np.testing.assert_array_equal(cut.alice.h[:, 0, 0], h[0][both])
    np.testing.assert_array_equal(cut.bob.h[:, 0, 0], h[1][both])
    assert cut.rejected == {"only_alice": 1, "only_bob": 1}
    assert cut.alice.subcarrier_hz[0] == -28 * 312.5e3
    (tmp_path / "a.dat").write_bytes(b"\x00\x01no capture")
    with pytest.raises(InputError, match=r"a\.dat"):
        loaded(tmp_path, ".", text)


def nexmon(numbers: Any, h: np.ndarray[Any, Any]) -> bytes:
    """A pcap of nexmon_csi: UDP to port 5500, int16 pairs, subcarriers from 0 up and then the negative ones."""
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for number, values in zip(numbers, h, strict=True):
        pairs = np.stack([values.real, values.imag], axis=-1).astype("<i2").tobytes()
        head = b"\x11\x11" + bytes([200, 0, 1, 2, 3, 4, 5, 6]) + struct.pack("<HHHH", number, 0, 0x1001, 0x6A00)
        udp = struct.pack(">HHHH", 5500, 5500, 8 + len(head) + len(pairs), 0) + head + pairs
        ip = struct.pack(">BBHHHBBHII", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, 0, 0)
        packet = b"\xff" * 6 + b"NEXMON" + b"\x08\x00" + ip + udp
        out += struct.pack("<IIII", number, 0, len(packet), len(packet)) + packet
    return out


def wifi_map(kind: str, index: str, suffix: str) -> str:
    options = 'options = { chip = "43455c0", bw = 20 }\n' if kind == "nexmon" else ""
    return "schema = 1\n" + "".join(
        f'[{who}]\nfile = "{end}.{suffix}"\nformat = "{kind}"\n{options}index = "{index}"\n'
        for who, end in (("alice", "a"), ("bob", "b"))
    )


def test_a_wifi_capture_of_nexmon_ascends_in_frequency(tmp_path: Path) -> None:
    pytest.importorskip("csiread", reason="the extra `wifi` is not installed")
    rng = np.random.default_rng(3)
    h = rng.integers(-1000, 1000, size=(2, 12, 64)) + 1j * rng.integers(-1000, 1000, size=(2, 12, 64))
    for end, values in zip(("a", "b"), h, strict=True):
        (tmp_path / f"{end}.pcap").write_bytes(nexmon(range(12), values))
    cut = loaded(tmp_path, ".", wifi_map("nexmon", "sec", "pcap"))
    np.testing.assert_array_equal(cut.alice.h[:, 0, 0, 32:], h[0][:, :32])
    np.testing.assert_array_equal(cut.alice.h[:, 0, 0, :32], h[0][:, 32:])
    assert (cut.alice.subcarrier_hz[0], cut.alice.subcarrier_hz[32]) == (-10e6, 0.0)


@pytest.mark.parametrize("dialect", ["tool", "tool without a heading", "espressif"])
def test_a_log_of_an_esp32(tmp_path: Path, dialect: str) -> None:
    """Imaginary part first; other output between the lines, a torn line, one with CSI of another length."""
    rng = np.random.default_rng(3)
    h = rng.integers(-50, 50, size=(2, 12, 64)) + 1j * rng.integers(-50, 50, size=(2, 12, 64))
    for end, values in zip(("a", "b"), h, strict=True):
        lines = ["I (312) wifi: connected, channel 6"]
        if dialect == "tool":
            lines.append(",".join(wifi._ESP32_TOOL))
        elif dialect == "espressif":
            lines.append("type,id,mac,rssi,local_timestamp,len,first_word,data")
        for i, row in enumerate(values):
            parts = np.stack([row.imag, row.real], axis=-1).astype(int).ravel()
            if i == 7:
                parts = parts[:20]
            if dialect == "espressif":
                lines.append(f'CSI_DATA,{i},1a:00,-50,{i * 1000},{parts.size},0,"[{",".join(map(str, parts))}]"')
            else:
                rest = f"-50,11,1,0,1,1,1,0,0,0,0,-92,0,6,1,{i * 1000},0,70,0,1,{i * 0.1:.1f},{parts.size}"
                lines.append(f"CSI_DATA,AP,3C:71,{rest},[{' '.join(map(str, parts))} ]")
        lines.append("CSI_DATA,AP,3C")
        (tmp_path / f"{end}.log").write_text("\n".join(lines))
    cut = loaded(tmp_path, ".", wifi_map("esp32", "local_timestamp", "log"))
    assert np.isnan(cut.alice.h[7]).all()
    rest = np.delete(np.arange(12), 7)
    np.testing.assert_array_equal(cut.alice.h[rest, 0, 0], np.fft.fftshift(h[0], axes=1)[rest])
    np.testing.assert_array_equal(cut.bob.h[rest, 0, 0], np.fft.fftshift(h[1], axes=1)[rest])
    (tmp_path / "a.log").write_text("nothing of the kind")
    with pytest.raises(InputError, match="no line CSI_DATA of 26 columns"):
        loaded(tmp_path, ".", wifi_map("esp32", "local_timestamp", "log"))


def test_iq_with_the_waveform_given(tmp_path: Path) -> None:
    rate_hz = 20e6
    frame = Ofdm().frame(rate_hz)
    rng = np.random.default_rng(4)
    gains = rng.normal(size=(2, 6, 2)) @ [1, 1j] * 0.2
    for end, values in zip(("a", "b"), gains, strict=True):
        for i, gain in enumerate(values):
            if (end, i) == ("b", 2):
                continue
            samples = np.concatenate([np.zeros(300), gain * frame.samples, np.zeros(300)])
            samples = samples + 1e-4 * rng.normal(size=(samples.size, 2)) @ [1, 1j]
            block = IqBlock(samples[None].astype(np.complex64), rate_hz, i * 0.1)
            sigmf.write(tmp_path / f"round-{i:06d}-{end}", block, 2.4e9)
    text = "schema = 1\n[waveform]\n" + "".join(
        f'[{who}]\nfile = "round-*-{end}.sigmf-meta"\nformat = "sigmf"\n' for who, end in (("alice", "a"), ("bob", "b"))
    )
    cut = loaded(tmp_path, ".", text)
    both = [0, 1, 3, 4, 5]
    assert cut.rejected == {"only_alice": 1}
    np.testing.assert_allclose(np.abs(cut.alice.h).mean(axis=(1, 2, 3)), np.abs(gains[0][both]), rtol=0.02)
    np.testing.assert_allclose(np.abs(cut.bob.h).mean(axis=(1, 2, 3)), np.abs(gains[1][both]), rtol=0.02)
    assert cut.alice.h.shape[3] == frame.bins.size


# ---------------------------------------------------------------- one line for everything that is wrong


def bad(folder: Path, text: str = MAP, **arrays: Any) -> str:
    np.savez(folder / "m.npz", **{**channels(), **arrays})
    with pytest.raises(InputError) as caught:
        loaded(folder, "m.npz", text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('array = "alice"', 'array = "alicia"'), "no array 'alicia'; accepted: alice (40, 5) complex128, bob"),
        (('array = "alice"', ""), "table [alice]: missing 'array'"),
        (("[bob]", "[bert]"), "unknown key 'bert'"),
        (("schema = 1", 'schema = 1\nquantity = "dbm"'), "'csi', 'amplitude', 'power', 'rssi_db'"),
        (("schema = 1", 'schema = 1\nquantity = "rssi_db"'), "is complex; accepted: real numbers"),
        (("schema = 1", 'schema = 1\npair_by = "time"'), "[alice] has no time"),
        (('array = "alice"', 'array = "alice"\nfile = "none.npz"'), "none.npz: no such file"),
        (('array = "alice"', 'array = "alice"\nrx = [1]'), "rx = [1]; accepted: antennas from 0 to 0"),
        (('array = "alice"', 'array = "alice"\naxes = ["probe"]'), "accepted: its 2 axes"),
        (('array = "alice"', 'array = "alice"\nindex = "bob"'), "accepted: one value per probe, (40,)"),
        (('array = "alice"', 'array = "alice"\nwhere = { alice = 7 }'), "accepted: one value per probe, (40,)"),
        (("subcarrier_spacing_hz = 312500.0", ""), "5 subcarriers; accepted: subcarrier_hz or subcarrier_spacing_hz"),
        (("schema = 1", "schema = 1\nleave_out = [5]"), "subcarriers 0 to 4"),
        (('{ array = "eve" }', "{ }"), "table [eve.near.from_alice]: missing 'array'"),
        (("from_alice", "#from_alice"), "accepted: from_alice, from_bob or both"),
        (('array = "alice"', 'array = "alice"\nformat = "sigmf"'), "a table [waveform]"),
        (("schema = 1", "schema = "), "not TOML"),
    ],
)
def test_a_wrong_map_is_one_line(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    assert says in bad(tmp_path, MAP.replace(*change, 1))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (
            {"bob": np.ones((39, 5), complex)},
            "ends of unequal length (alice 40, bob 39, eve.near.from_alice 40 probes)",
        ),
        ({"bob": np.ones((40, 4), complex)}, "subcarriers differ: alice 5, bob 4"),
        ({"bob": np.ones((40, 5))}, "array 'bob' is real (float64)"),
        (
            {"bob": np.full((40, 5), np.inf, complex)},
            "m.npz: array 'bob'[0, 0]: inf+0j; accepted: finite numbers up to",
        ),
        ({"bob": np.full((40, 5), np.nan, complex)}, "no subcarrier is left"),
        ({"bob": np.ones((40, 0), complex)}, "at least one value"),
        ({"bob": np.array(["1"] * 7 + ["x"] * 33)}, "m.npz: array 'bob'[7]: 'x'; accepted: numbers"),
        ({"bob": np.array(["1"] * 40)}, "table [bob]: "),
        ({"bob": np.array([{}] * 40, dtype=object)}, "damaged, or not a .npz file"),
    ],
)
def test_wrong_numbers_are_one_line(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    assert says in bad(tmp_path, **arrays)


@pytest.mark.parametrize("name", ["m.npz", "m.h5", "m.mat", "m.npy", "m.csv"])
def test_a_damaged_file_is_one_line(tmp_path: Path, name: str, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04" + bytes(range(256)) * 4)
    monkeypatch.setattr("sys.argv", ["testbed", "replay", str(tmp_path / name), "--map", str(a_map(tmp_path))])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("testbed: ")
    assert "\n" not in said


def test_an_array_that_would_fill_the_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as f:
        f.create_dataset("alice", shape=(1 << 20, 1 << 12), dtype="c16", chunks=(1, 1 << 12))
    with pytest.raises(InputError, match=r"array 'alice': 64\.0 GiB; accepted: up to 2 GiB"):
        loaded(tmp_path, "m.h5")


def test_other_peoples_npz_is_not_taken_for_openris_and_its_arrays_are_listed(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", **channels())
    with pytest.raises(InputError, match=r"m\.npz contains alice \(40, 5\) complex128, .*--map MAP\.toml"):
        sources.load(tmp_path / "m.npz")


# ---------------------------------------------------------------- what a source returns


def a_recording(**changes: Any) -> Recording:
    h = channels()["alice"].astype(np.complex64)[:, None, None]
    series = CsiSeries(h, np.arange(PROBES), np.arange(CARRIERS) * 1.0)
    fields = {"alice": series, "bob": series, "groups": np.zeros(PROBES, np.int64), **changes}
    cut = Cut(name="x", per_group=False, chain=ChainPlan(), accounting=replay.Accounting(), **fields)
    return Recording("x", "", (), {"x": cut}, "x")


def series_of(shape: tuple[int, ...] = (PROBES, 1, 1, CARRIERS), **changes: Any) -> CsiSeries:
    fields = {
        "h": np.ones(shape, np.complex64),
        "rounds": np.arange(shape[0]),
        "subcarrier_hz": np.arange(shape[-1]) * 1.0,
    }
    return CsiSeries(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bob": series_of((39, 1, 1, CARRIERS))}, "as many probes and subcarriers"),
        ({"bob": series_of((PROBES, 2, 1, CARRIERS))}, "antennas the other way round"),
        (
            {"alice": series_of(h=np.ones((PROBES, CARRIERS)))},
            "Alice: float64 (40, 5); accepted: complex (probe, rx, tx",
        ),
        ({"alice": series_of(rounds=np.zeros(PROBES, int))}, "rounds do not ascend"),
        ({"alice": series_of(rounds=np.arange(3))}, "rounds: (3,); accepted: (40,)"),
        ({"alice": series_of(subcarrier_hz=np.arange(2.0))}, "subcarrier_hz: (2,); accepted: (5,)"),
        ({"alice": series_of(h=np.full((PROBES, 1, 1, CARRIERS), np.nan, np.complex64))}, "0 of 40 probes have CSI"),
        ({"alice": series_of(h=np.full((PROBES, 1, 1, CARRIERS), np.inf, np.complex64))}, "infinite values"),
        (
            {"eves": {"e": EveLinks(series_of((39, 1, 1, CARRIERS)), None)}},
            "Eve 'e' hearing Alice: probes: 39; accepted: 40",
        ),
        ({"assumed": ("e",)}, "assumed Eve 'e'; accepted: none"),
        ({"groups": np.zeros(3, np.int64)}, "groups: (3,); accepted: (40,)"),
        ({"key_probes": np.array([0, 40])}, "key_probes 0 to 40; accepted: 0 to 39, each once"),
        ({"interval_s": 0.0}, "interval_s = 0.0; accepted: above 0, or None"),
    ],
)
def test_what_a_source_returns_is_checked(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        sources.checked(a_recording(**changes), "x.dat")
    assert str(caught.value).startswith("x.dat")
    assert says in str(caught.value)


def test_a_broken_source_takes_nothing_else_down(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    (tmp_path / "broken_one.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "stumbling.py").write_text(
        'ACCEPTS = "x"\ndef matches(path): return path.suffix == ".odd"\ndef load(path): return 1 / 0\n'
    )
    (tmp_path / "a.odd").write_text("")
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path)])
    with pytest.raises(InputError, match=r"a\.odd: source 'stumbling' failed: ZeroDivisionError"):
        sources.load(tmp_path / "a.odd")
    assert "data source 'broken_one' cannot be used: " in caplog.text
    assert "broken_one.py: ModuleNotFoundError" in caplog.text


# ---------------------------------------------------------------- the chain's file


def test_a_chain_file_needs_three_tables_only(tmp_path: Path) -> None:
    path = tmp_path / "chain.toml"
    path.write_text('[chain]\nenhance = "linear_mmse"\n[training]\nrounds = 100\n[accounting]\nblock_rounds = 500\n')
    chain = load_chain(str(path))
    assert (chain.chain.enhance, chain.training.rounds, chain.accounting.block_rounds) == ("linear_mmse", 100, 500)
    path.write_text('[chain]\nenhance = "linear_mmse"\n')
    with pytest.raises(InputError, match=r"table \[training\]: key 'rounds': 0"):
        load_chain(str(path))
    path.write_text('[chain]\nenhance = "nothing"\n')
    with pytest.raises(
        InputError, match=r"chain\.toml: table \[chain\]: key 'enhance': no enhancer is called 'nothing'"
    ):
        load_chain(str(path))
    path.write_text("[accounting]\nblock_round = 5\n")
    with pytest.raises(InputError, match="did you mean 'block_rounds'"):
        load_chain(str(path))
    assert load_chain("mobile_room").chain is not None, "a whole experiment serves as well"


def test_tables_that_are_missing_stay_the_sources(tmp_path: Path) -> None:
    cut = a_recording().cuts["x"]
    path = tmp_path / "chain.toml"
    path.write_text("seed = 7\n[accounting]\nblock_rounds = 9\n")
    planned = replay._as_planned(cut, load_chain(str(path)), None)
    assert (planned.chain, planned.training) == (cut.chain, cut.training)
    assert (planned.accounting.block_rounds, planned.seed) == (9, 7)
    assert replay._as_planned(cut, load_chain(str(path)), 11).seed == 11


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('"seq"', '"sek"'), "map.toml: table [alice]: index: m.csv: no array 'sek'; accepted: seq, node, rssi"),
        (
            ('"rssi"', '"node"'),
            "m.csv: line 2: column 'node': 'a'; accepted: numbers, and empty cells where nothing was received "
            "(map.toml: table [alice])",
        ),
        (('"rssi"', '"rsi"'), "no array 'rsi'; accepted: seq, node, rssi; did you mean 'rssi'?"),
        (('"a"', '"c"'), "[alice]: where: node = 'c' leaves no probe; accepted: values that occur: 'a', 'b'"),
    ],
)
def test_a_wrong_column_of_a_table_is_one_line(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    lines = ["seq,node,rssi"] + [f"{i},{node},-60.5" for i in range(40) for node in "ab"]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    text = 'schema = 1\nquantity = "rssi_db"\n' + "".join(
        f'[{end}]\narray = "rssi"\nindex = "seq"\nwhere = {{ node = "{node}" }}\n'
        for end, node in (("alice", "a"), ("bob", "b"))
    )
    with pytest.raises(InputError) as caught:
        loaded(tmp_path, "m.csv", text.replace(*change, 1))
    assert says in str(caught.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "7,0.7,-60,-6O",
            "line 11: column 'b': '-6O'; accepted: numbers, and empty cells where nothing was received (",
        ),
        (
            "7.5,0.7,-60,-61",
            "line 11: column 'seq': 7.5; accepted: sequence numbers, which are whole (map.toml: table ",
        ),
        (",0.7,-60,-61", "line 11: column 'seq': nan; accepted: finite real numbers (map.toml: table [alice]: index)"),
        ("7,inf,-60,-61", "line 11: column 't': inf; accepted: finite real numbers (map.toml: table [alice]: time)"),
        ("7,0.7,-60,-6100", "line 11: column 'b': -6100 dB; accepted: -300 to 300 dB, other values in the key 'miss"),
        ("7,0.7,-60", "line 11: 3 cells; accepted: 4, as in the first"),
        ("7,noon,-60,-61", "line 11: column 't': 'noon'; accepted: numbers (map.toml: table [alice]: time)"),
    ],
)
def test_a_wrong_cell_is_named_by_its_line_in_the_file(tmp_path: Path, line: str, says: str) -> None:
    """Comments and empty lines count, as in an editor."""
    lines = ["# made by hand", "seq,t,a,b", ""] + [f"{i},{i / 10},-60,-61" for i in range(40)]
    lines[10] = line
    (tmp_path / "m.csv").write_text("\n".join(lines))
    text = 'schema = 1\nquantity = "rssi_db"\n' + "".join(
        f'[{end}]\narray = "{end[0]}"\nindex = "seq"\ntime = "t"\n' for end in ("alice", "bob")
    )
    with pytest.raises(InputError) as caught:
        loaded(tmp_path, "m.csv", text)
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(f"m.csv: {says}")


@pytest.mark.parametrize("first", ["", "# seq; a; b\n", "seq a b\n"])
def test_columns_that_are_divided_by_spaces(tmp_path: Path, first: str) -> None:
    """As numpy.savetxt and MATLAB write them; a comment before them does not decide how they are divided."""
    rows = [f" {i:.1f}  {-60 - i % 7:.2f} {-61 - i % 5:.2f}" for i in range(40)]
    (tmp_path / "m.txt").write_text(first + "\n".join(rows))
    names = ("seq", "a", "b") if first.startswith("seq") else ("0", "1", "2")
    text = 'schema = 1\nquantity = "rssi_db"\n' + "".join(
        f'[{end}]\narray = "{name}"\nindex = "{names[0]}"\n'
        for end, name in zip(("alice", "bob"), names[1:], strict=True)
    )
    cut = loaded(tmp_path, "m.txt", text)
    np.testing.assert_allclose(20 * np.log10(np.abs(cut.alice.h.ravel())), -60 - np.arange(40) % 7, atol=1e-4)
    np.testing.assert_allclose(20 * np.log10(np.abs(cut.bob.h.ravel())), -61 - np.arange(40) % 5, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "names"),
    [('"rssi"\n1\n2\n', ["rssi"]), ("rssi dBm\n-40\n-41\n", ["rssi dBm"]), (" # made by hand\na,b\n1,2\n", ["a", "b"])],
)
def test_one_column_may_have_spaces_in_its_name(tmp_path: Path, text: str, names: list[str]) -> None:
    (tmp_path / "m.csv").write_text(text)
    with arrays._csv(tmp_path / "m.csv") as table:
        assert sorted(table.names) == names


def test_a_decimal_comma_is_named(tmp_path: Path) -> None:
    """It is not guessed: 1,234 may be a number of four digits."""
    (tmp_path / "m.csv").write_text("a;b\n" + "-60,5;-61,25\n" * 40)
    text = 'schema = 1\nquantity = "rssi_db"\nalice = { array = "a" }\nbob = { array = "b" }\n'
    with pytest.raises(
        InputError, match=r"m\.csv: line 2: column 'a': '-60,5'; accepted: numbers with a decimal point,"
    ):
        loaded(tmp_path, "m.csv", text)


def test_a_cell_of_several_columns_is_named_by_its_own(tmp_path: Path) -> None:
    lines = ["b1,b10,b2"] + ["1,2,3"] * 40
    lines[4] = "1,none,3"
    (tmp_path / "m.csv").write_text("\n".join(lines))
    text = 'schema = 1\nquantity = "amplitude"\nalice = { array = "b*" }\nbob = { array = "b1" }\n'
    with pytest.raises(InputError, match=r"m\.csv: line 5: column 'b10': 'none'; accepted: numbers, and empty"):
        loaded(tmp_path, "m.csv", text)


def test_a_table_without_a_probe_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("seq,a,b\n")
    with pytest.raises(InputError, match=r"m\.csv: no line below the column names; accepted: one line per probe below"):
        loaded(tmp_path, "m.csv", 'schema = 1\nquantity = "rssi_db"\nalice = { array = "a" }\nbob = { array = "b" }\n')


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_a_map_that_is_no_utf8_says_how_to_save_it(tmp_path: Path, encoding: str) -> None:
    np.savez(tmp_path / "m.npz", **channels())
    (tmp_path / "map.toml").write_text(MAP.replace("schema = 1", 'schema = 1\ntitle = "Möbius"'), encoding=encoding)
    with pytest.raises(InputError, match=r"map\.toml: not UTF-8 text.*; accepted: UTF-8: save it as UTF-8"):
        mapping.load(tmp_path / "m.npz", tmp_path / "map.toml")


def test_how_far_apart_clocks_are_is_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", **keyed(tb=keyed()["tb"] + 9e4))
    with pytest.raises(InputError, match=r"0 pairs of .* nearest 9e\+04 s apart, tolerance_s = 0\.01\); accepted"):
        loaded(tmp_path, "m.npz", keyed_map("time"))


def test_a_table_that_a_spreadsheet_wrote_as_utf16(tmp_path: Path) -> None:
    lines = ["seq\ta\tb"] + [f"{i}\t{-60 - i % 7}\t{-61 - i % 7}" for i in range(40)]
    (tmp_path / "m.txt").write_text("\n".join(lines), encoding="utf-16")
    text = 'schema = 1\nquantity = "rssi_db"\n[alice]\narray = "a"\n[bob]\narray = "b"\n'
    cut = loaded(tmp_path, "m.txt", text)
    np.testing.assert_allclose(20 * np.log10(np.abs(cut.alice.h[:3].ravel())), [-60, -61, -62], rtol=1e-6)


def test_likely_mistakes_are_noted_with_every_result(tmp_path: Path) -> None:
    h = channels()
    np.savez(tmp_path / "m.npz", alice=h["alice"].T, bob=h["bob"].T)
    text = MAP.partition("[eve.near]")[0]
    told = mapping.load(tmp_path / "m.npz", a_map(tmp_path, text)).caveats
    assert any(f"{CARRIERS} probes of {PROBES} subcarriers: if these are exchanged, give axes" in c for c in told)
    told = mapping.load(tmp_path / "m.npz", a_map(tmp_path, text.replace('"bob"', '"alice"'))).caveats
    assert any(c.startswith("every value of Bob equals Alice's") for c in told)


def test_rssi_of_a_table_goes_through_the_whole_chain(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """From a CSV to a summary by the command line, with a trained enhancer, every probe accounted for."""
    rng = np.random.default_rng(8)
    n = 260
    level = -60 + 4 * rng.normal(size=n)
    lines = ["seq,a,b"]
    lines += [f"{i},{level[i] + rng.normal():.2f},{level[i] - 5 + rng.normal():.2f}" for i in range(n)]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    text = 'schema = 1\nquantity = "rssi_db"\n[alice]\narray = "a"\nindex = "seq"\n[bob]\narray = "b"\nindex = "seq"\n'
    chain = tmp_path / "chain.toml"
    chain.write_text(
        '[chain]\nenhance = "linear_mmse"\nquantize_options = { bits = 1, guard = 0.2 }\n'
        "[training]\nrounds = 60\n[accounting]\nblock_rounds = 180\n"
    )
    command = ["testbed", "replay", str(tmp_path / "m.csv"), "--map", str(a_map(tmp_path, text)), "--chain", str(chain)]
    monkeypatch.setattr("sys.argv", [*command, "--json"])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    summary = json.loads(capsys.readouterr().out)
    assert summary["pairs_kept"] == n
    assert summary["csi_correlation_ab"] == pytest.approx(16 / 17, abs=0.03)
    assert summary["kdr_raw"] < 0.12
    assert summary["training"]["card"]["levels"] is True
    assert summary["keys_mismatched"] == 0


def test_the_example_of_the_documentation_is_read(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[2] / "docs" / "data"
    recording = sources.checked(mapping.load(folder / "walk.csv", folder / "map.toml"), "here")
    cut = recording.cuts[recording.main]
    assert 350 < len(cut.alice.h) < 375, "of 400 packets each end lost about 5 %"
    assert set(cut.rejected) == {"only_alice", "only_bob"}
    assert len(cut.alice.h) + sum(cut.rejected.values()) <= 400
    level = [20 * np.log10(np.abs(end.h.ravel())) for end in (cut.alice, cut.bob)]
    assert np.corrcoef(*level)[0, 1] > 0.95
    assert load_chain(str(folder / "chain.toml")).chain is not None
    assert len(grid.load(folder / "grid.toml").jobs) == 8
