import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kstest

from testbed import cli
from testbed.assess import randomness as r
from testbed.assess import sp800_22
from testbed.core.errors import InputError

RUNS_128 = (
    "1100110000010101011011000100110011100000000000100100110101010001"
    "0001001111010110100000001101011111001100111001101101100010110010"
)


def bits(text: str) -> np.ndarray:
    return np.array([[int(c) for c in text]], dtype=np.uint8)


def ideal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, shape, np.uint8)


def test_many_sequences_at_once_are_the_same_as_one_by_one() -> None:
    many = ideal(1, 600, 1024)  # more than one chunk
    together = r.p_values(many)
    assert len(together) == 10
    for i in (0, 1, 511, 512, 599):
        for test, p in r.p_values(many[i : i + 1]).items():
            assert p[0] == pytest.approx(together[test][i])


def test_ideal_bits_pass_with_uniform_p_values() -> None:
    many = ideal(2, 1000, 1024)
    found = r.p_values(many)
    for test, p in found.items():
        assert 0.975 <= np.mean(p >= r.ALPHA) <= 1.0, test
        if test not in ("spectral", "runs", "longest_run"):  # coarse at this length
            assert kstest(p, "uniform").pvalue > 1e-3, test
    for test, line in r.combine(found).items():
        assert line["pass_ratio"] == np.mean(found[test] >= r.ALPHA)


@pytest.mark.parametrize("length", [2048, 20_544, 40_000])
def test_tests_are_uniform_from_their_least_length_on(length: int) -> None:
    found = sp800_22.run(ideal(5, 4_000_000 // length, length))
    for test in ("serial_2", "approximate_entropy", "rank", "non_overlapping_template_000000001"):
        if test in found:
            assert kstest(found[test], "uniform").pvalue > 1e-3, test
    assert ("rank" in found) == (length >= 38_912)
    assert ("non_overlapping_template_000000001" in found) == (length >= 20_544)


@pytest.mark.parametrize(
    ("flaw", "caught_by"),
    [
        (lambda x: x * 0 + 1, "frequency"),
        (lambda x: x & np.roll(x, 1), "frequency"),
        (lambda x: np.repeat(x[:, ::2], 2, axis=1), "runs"),
        (lambda x: np.tile(x[:, :8], (1, 128)), "approximate_entropy"),
        (lambda x: np.tile([0, 1, 1, 0], (x.shape[0], x.shape[1] // 4)).astype(np.uint8), "spectral"),
        (lambda x: np.sort(x, axis=1), "longest_run"),
        (lambda x: np.sort(x, axis=1), "cumulative_sums_forward"),
        (lambda x: np.sort(x, axis=1), "block_frequency"),
        (lambda x: np.repeat(x[:, ::2], 2, axis=1), "serial_1"),
        (lambda x: np.tile([0, 0, 1, 0, 1, 1, 1, 0], (x.shape[0], x.shape[1] // 8)).astype(np.uint8), "serial_2"),
    ],
)
def test_flaws_are_caught(flaw, caught_by: str) -> None:  # type: ignore[no-untyped-def]
    x = flaw(ideal(3, 4, 1024))
    assert (r.p_values(x)[caught_by] < r.ALPHA).all()


def test_only_tests_that_mean_something_at_a_length_are_run() -> None:
    assert r.p_values(np.zeros((3, 99), np.uint8)) == {}
    at_100 = r.p_values(ideal(4, 1, 100))
    assert {"spectral", "longest_run", "approximate_entropy"}.isdisjoint(at_100)
    assert "longest_run" in r.p_values(bits(RUNS_128))
    at_256 = r.p_values(ideal(4, 2, 256))
    assert set(at_256) == set(r.p_values(bits(RUNS_128))) | {"approximate_entropy"}


def test_combination_of_p_values() -> None:
    assert r.combine({"t": np.array([0.3])})["t"] == {"pass_ratio": 1.0, "p_value": pytest.approx(0.3)}
    bad = r.combine({"t": np.full(20, 0.02)})["t"]
    assert bad["pass_ratio"] == 1.0
    assert bad["p_value"] < 1e-4
    assert r.combine({"t": (np.arange(100) + 0.5) / 100})["t"]["p_value"] == pytest.approx(1.0)
    assert r.combine({"t": np.full(100, 0.5)})["t"]["p_value"] < 1e-6
    assert r.combine({"t": np.zeros(0)}) == {}
    assert r.combine({"t": np.array([np.nan, 0.3])}) == r.combine({"t": np.array([0.3])})
    assert r.combine({"t": np.array([np.nan])}) == {}


def test_both_criteria_decide() -> None:
    """4.2.1: at 1000 sequences 0.980561 must pass; 4.2.2: p-values must be uniform."""
    assert r.least_pass_ratio(1000) == pytest.approx(0.980561, abs=1e-6)
    rows = {row["statistic"]: row for row in r.assess(ideal(6, 400, 256))["tests"]}
    assert rows["frequency"]["ok"] is True
    assert rows["rank"] == {
        "test": "rank", "statistic": "rank", "pass_ratio": None, "p_value": None, "sequences": 0, "ok": None,
        "reason": "needs 38912 bits a sequence",
    }  # fmt: skip
    assert {row["test"] for row in rows.values()} == set(sp800_22.LEAST_BITS)
    few_bad = ideal(6, 400, 256)
    few_bad[:20] = 1
    bad = {row["statistic"]: row for row in r.assess(few_bad)["tests"]}["frequency"]
    assert bad["pass_ratio"] < 0.96
    assert bad["ok"] is False
    too_even = np.tile(bits("01"), (400, 128))  # every sequence passes the frequency test with p = 1
    even = {row["statistic"]: row for row in r.assess(too_even)["tests"]}["frequency"]
    assert (even["pass_ratio"], even["ok"]) == (1.0, False)


def test_one_failure_among_many_templates_is_chance() -> None:
    def line(p: list[float], sequences: int = 1) -> tuple[str, ...]:
        rows = [
            {"test": "non_overlapping_template", "statistic": f"non_overlapping_template_{i}", "p_value": x,
             "pass_ratio": float(x >= 0.01), "sequences": sequences, "ok": x >= 0.01, "reason": None}
            for i, x in enumerate(p)
        ]  # fmt: skip
        rows += [{"test": t, "reason": "short"} for t in sp800_22.LEAST_BITS if t != "non_overlapping_template"]
        return next(x for x in r.table({"alpha": 0.01, "tests": rows}) if x[0] == "non_overlapping_template")

    # one sequence passes or not: a ratio of 0 beside "ok" would look like a failure
    assert line([0.5] * 147 + [0.005])[1:] == (
        "147/148",
        "–",
        "0.005000",
        "ok",
        "worst: 147; up to 5 failures are expected by chance",
    )
    assert line([0.5] * 148, 2)[2:] == ("1.0000", "0.500000", "ok", "worst: 0")
    assert line([0.5] * 143 + [0.005] * 5)[4] == "ok"
    assert line([0.5] * 142 + [0.005] * 6)[4] == "not ok"
    assert line([0.5] * 140 + [0.005] * 8)[4] == "not ok"
    assert line([0.5] * 147 + [1e-9])[4] == "not ok"


# ---------------------------------------------------------------- files


def test_formats_give_the_same_bits(tmp_path: Path) -> None:
    x = ideal(7, 1000)
    packed = np.packbits(x).tobytes()
    text = "".join(map(str, x))
    (tmp_path / "raw").write_bytes(packed)
    (tmp_path / "text").write_text("\n".join(text[i : i + 64] for i in range(0, 1000, 64)))
    (tmp_path / "hex").write_text(packed.hex().upper() + "\n")
    keys = tmp_path / "node" / "keys" / "run1"
    keys.mkdir(parents=True)
    for block, part in enumerate((x[:300], x[300:])):
        stored = {"bits": int(part.size), "hex": np.packbits(part).tobytes().hex()}
        (keys / f"block-{block:04d}.key").write_text(json.dumps(stored))
    for kind in ("raw", "text", "hex"):
        for asked in ("auto", kind):
            read, found = r.load(tmp_path / kind, asked)
            assert found == kind
            assert np.array_equal(read, x[None])
    for folder in (keys, tmp_path / "node" / "keys", tmp_path / "node"):
        read, found = r.load(folder)
        assert found == "keys"
        assert np.array_equal(read, x[None])
    assert np.array_equal(r.load(keys / "block-0000.key")[0], x[None, :300])
    assert np.array_equal(r.load(tmp_path / "raw", bits_per_sequence=300)[0], x[:900].reshape(3, 300))


@pytest.mark.parametrize(
    ("name", "content", "options", "says"),
    [
        ("none", None, {}, "no such file"),
        ("short", b"\x01\x80", {}, "16 bits"),
        ("few", b"\x01\x80" * 10, {"bits_per_sequence": 500}, "500 a sequence; accepted: 100 to 160"),
        ("typo", b"0101" * 99 + b"x", {}, "accepted: one of these, or --format raw"),
        ("letters", b"hello" * 99, {"kind": "text"}, "other characters"),
        ("odd", b"abc" * 99, {"kind": "hex"}, "even number"),
        ("bad.key", b"{}", {}, "not a key file"),
        ("x", b"01" * 99, {"kind": "octal"}, "accepted: auto"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, name: str, content: bytes | None, options: dict, says: str) -> None:  # type: ignore[type-arg]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        r.load(tmp_path / name, **options)
    assert "\n" not in str(caught.value)


def test_keys_of_two_nodes_are_not_mixed(tmp_path: Path) -> None:
    for name in ("alice", "bob"):
        folder = tmp_path / name / "keys" / "run"
        folder.mkdir(parents=True)
        (folder / "block-0000.key").write_text(json.dumps({"bits": 128, "hex": "00" * 16}))
    with pytest.raises(InputError, match="several nodes"):
        r.load(tmp_path)
    with pytest.raises(InputError, match=r"no \*.key"):
        r.load(_empty(tmp_path))


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def test_command_prints_json_and_table(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bits"
    path.write_bytes(np.packbits(ideal(8, 4096)).tobytes())

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["testbed", "randomness", *args])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return (int(left.value.code or 0), *capfd.readouterr())

    status, out, _ = call(str(path), "--bits-per-sequence", "1024", "--json")
    told = json.loads(out)
    assert (status, told["format"], told["sequences"], told["bits_per_sequence"]) == (0, "raw", 4, 1024)
    assert {row["test"] for row in told["tests"]} == set(sp800_22.LEAST_BITS)
    status, out, _ = call(str(path))
    assert status == 0
    assert "universal" in out
    status, out, err = call(str(tmp_path / "nowhere"))
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_a_byte_order_mark_is_not_bits(tmp_path):
    path = tmp_path / "bits.txt"
    text = "01" * 100
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    bits, kind = r.load(path)
    assert kind == "text"
    assert "".join(map(str, bits.ravel())) == text


@pytest.mark.parametrize(
    "content",
    [
        "0101 x 1010 " * 20, "schlüssel: zufällig, größer als null " * 5, "ключ из случайных битов " * 5,
        "01" * 100 + "é",
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_never_tested_as_if_it_were_bits(tmp_path, content, encoding):
    path = tmp_path / "notes.txt"
    path.write_bytes(content.encode(encoding))
    with pytest.raises(InputError, match="printable text"):
        r.load(path)


def test_random_bytes_are_bits(tmp_path):
    path = tmp_path / "key.bin"
    rng = np.random.default_rng(5)
    for _ in range(200):
        path.write_bytes(rng.bytes(64))
        assert r.load(path)[1] == "raw"
