"""The report renders every shape of run: whole, without Eve, without a surface, private, empty, failed, killed."""

from __future__ import annotations

import csv
import html.parser
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from testbed.assess import agreement
from testbed.core.errors import InputError
from testbed.core.forks import Children
from testbed.core.outcomes import AgreeReport, EveReport, KeyReport, LengthTerm
from testbed.core.types import SurfacePattern
from testbed.records import documents, files, reader, writer
from testbed.records.documents import Block
from testbed.records.writer import RunWriter
from testbed.report import bit_flow, paper, pictures
from testbed.report import html as report
from testbed.report.sections import fading
from testbed.report.view import View

N_SUBCARRIERS = 64


def agree(
    block: int, raw: int = 4000, errors: int = 12, leaked: int = 900, verified: bool = True, **change: Any
) -> AgreeReport:
    sacrificed = raw // 10
    values: dict[str, Any] = {
        "block": block,
        "probes": 200,
        "raw_bits": raw,
        "sacrificed_bits": sacrificed,
        "sacrificed_errors": errors,
        "reconciled_bits": raw - sacrificed,
        "corrected_bits": None,
        "leaked_bits": leaked,
        "leaked_by_kind": {"parities": leaked - 128, "verification tag": 128},
        "public_bytes": 5000,
        "messages": 60,
        "verified": verified,
        "failure": None if verified else "verification_failed",
    }
    return AgreeReport(**(values | change))


def key(block: int, bits: int, entropy: float = 0.5, failure: str | None = None, eve: bool = True) -> KeyReport:
    return KeyReport(block=block, key_bits=bits, min_entropy_per_bit=entropy, eve_measured=eve, failure=failure)


def build(
    folder: Path,
    *,
    n_rounds: int = 60,
    eve: bool = True,
    surface: bool = True,
    private: bool = False,
    n_blocks: int = 2,
    names: tuple[str, str, str] = ("alice", "bob", "eve"),
    n_antennas: int = 1,
    key_bits: int = 772,
    training: int = 0,
) -> RunWriter:
    """Record a made-up run: a channel that drifts, Bob's estimate close to Alice's, Eve's a channel of her own."""
    rng = np.random.default_rng(5)
    alice, bob, eavesdropper = names
    roles = dict(zip(names, ("alice", "bob", "eve"), strict=True))
    if not eve:
        del roles[eavesdropper]
    if surface:
        roles["wall"] = "ris"
    lab = {"name": "made_up", "node": {n: {"role": r, "driver": "sim"} for n, r in roles.items()}}
    experiment = {
        "title": "Made up <room> & more",
        "mode": "private" if private else "experiment",
        "accounting": {"block_rounds": 200, "epsilon_log2": 64},
        "surface": {"policy": "random" if surface else "none"},
        "training": {"rounds": training},
    }
    start = documents.start(
        experiment,
        lab,
        radios={n: {"carrier_hz": 2.4e9, "rx_gain_db": 10.0} for n in roles},
        drivers={n: {"driver": "sim", "serial": "<none>"} for n in roles},
        seeds={"experiment": 1},
        subcarrier_hz=np.r_[-32:0, 1:33] * 625e3,
    )
    w = RunWriter(folder, start)
    w.event("node_joined", {"node": bob, "note": "<script>alert(1)</script>"})

    def fading(n_paths: int = 12) -> np.ndarray[Any, Any]:
        delay, doppler = rng.exponential(0.1e-6, n_paths), rng.uniform(-0.04, 0.04, n_paths)
        gain = rng.normal(size=n_paths) + 1j * rng.normal(size=n_paths)
        t, f = np.arange(n_rounds), np.asarray(start.subcarrier_hz)
        return np.einsum(
            "p,pt,pf->tf", gain, np.exp(2j * np.pi * np.outer(doppler, t)), np.exp(-2j * np.pi * np.outer(delay, f))
        )

    truth, hers = fading(), fading()
    shape = (n_antennas, 1, N_SUBCARRIERS)

    def seen(h: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        noise = 0.2 * (rng.normal(size=shape) + 1j * rng.normal(size=shape))
        return (np.broadcast_to(h, shape) + noise).astype(np.complex64)

    digest = None
    for r in range(n_rounds):
        if surface and r % 40 == 0:
            levels = rng.integers(0, 4, (8, 16), dtype=np.uint8)
            digest = SurfacePattern(levels, 2).digest
            w.pattern(digest, levels, 2)
        lost = r % 17 == 3
        links = [(alice, bob, truth[r]), (bob, alice, truth[r])]
        links += [(alice, eavesdropper, hers[r]), (bob, eavesdropper, hers[r])] if eve else []
        for tx, rx, h in links:
            if not (lost and rx == bob):
                snr = 22.0 + rng.normal() - 5 * (rx == eavesdropper)
                w.probe(r, rx, f"{tx}>{rx}", r * 0.05, snr, 800.0 + r, -25.0, digest, None if private else seen(h))
        w.round(r, not lost, "no_preamble" if lost else None, digest, r * 0.05)
    for k in range(n_blocks):
        eve_report = EveReport(
            block=k,
            sacrificed_bits=400,
            covered_bits=400,
            sacrificed_errors=188,
            best_link=alice,
            transcript_complete=k != 1,
        )
        w.block(
            Block(
                block=k,
                agree={alice: agree(k), bob: agree(k, corrected_bits=120)},
                eve=eve_report if eve else None,
                key={alice: key(k, key_bits, eve=eve), bob: key(k, key_bits, eve=eve)},
            )
        )
        if not private:
            bits = rng.integers(0, 2, 4000, dtype=np.uint8)
            w.bits(k, alice, "raw", bits)
            w.bits(k, bob, "raw", bits ^ (rng.random(4000) < 0.03).astype(np.uint8))
            if eve:
                w.bits(k, eavesdropper, "guess", rng.integers(0, 2, 4000, dtype=np.uint8))
    w.flush()
    return w


SECRECY: dict[str, Any] = {
    "eves": [
        {
            "name": "eve_now", "knows": "her own signals <now>", "guess_probability": 0.2713, "upper_bound": 0.3154,
            "key_bits": 1544,
        },
        {
            "name": "assumed", "knows": "one antenna a wavelength away", "guess_probability": None,
            "upper_bound": None, "key_bits": 1792,
        },
    ],
    "sensitivity": [
        {
            "name": "8 antennas", "knows": "a row of eight", "guess_probability": None, "upper_bound": None,
            "key_bits": 64,
        },
    ],
    "limiting": "eve_now",
    "epsilon_log2": {"total": -64.0, "estimation": -66.0, "correction": -66.0, "amplification": -66.0},
    "assumptions": ["no Eve is better than the 18 attacks that were tried", "the surface's patterns are secret"],
}  # fmt: skip


def summary(**change: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "rounds": 120,
        "pairs_kept": 112,
        "pairs_rejected": {"no_preamble": 8},
        "wall_s": 3.1,
        "rounds_per_s": 38.7,
        "csi_correlation_ab": 0.9713,
        "csi_correlation_ae": 0.0461,
        "csi_correlation_ab_detrended": 0.9655,
        "raw_bits": 8000,
        "kdr_raw": 0.0301,
        "kdr_eve": 0.471,
        "min_entropy_per_bit": 0.5,
        "reconciliation": {"method": "cascade", "efficiency": 1.12, "leaked_bits": 1800, "frame_failures": 0},
        "key_bits": 1544,
        "keys_verified": 2,
        "keys_mismatched": 0,
        "raw_rate_bps": 1333.0,
        "key_rate_bps": 257.3,
        "key_bits_per_round": 12.9,
        "randomness": {"monobit": {"pass_ratio": 1.0, "p_value": 0.41}},
        "secrecy": SECRECY,
        "keys_exposed": 0,
        "keys_reproducible": 0,
        "health": [
            {"check": "reciprocity", "ok": True, "detail": "A–B 0.97"},
            {"check": "drift", "ok": False, "detail": "slow <drift>"},
        ],
    }
    return values | change


class Checker(html.parser.HTMLParser):
    """Balanced tags, unique ids, nothing loaded from outside, every picture described."""

    VOID = frozenset(("meta", "br", "img", "link", "hr"))

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href", "xlink:href"):
            value = values.get(name)
            assert value is None or value.startswith(("#", "data:image/png;base64,")), (tag, value)
        if tag == "img" or (tag == "svg" and "role" in values):
            assert values.get("alt") or values.get("aria-label")
        if "id" in values:
            self.ids.append(str(values["id"]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style",):
            self.text.append(data)


def rendered(folder: Path) -> tuple[str, str]:
    """Return (page, visible text) of a checked report."""
    page = report.make(folder).read_text(encoding="utf-8")
    assert len(page.encode()) < 3_000_000
    assert "url(http" not in page
    assert "@import" not in page
    # every placeholder colour became a variable, every variable is defined
    assert "#0102" not in page
    used, defined = set(re.findall(r"var\(--([a-z-]+)\)", page)), set(re.findall(r"--([a-z-]+):", page))
    assert used <= defined
    return page, " ".join(Checker(page).text)


def n_pictures(page: str) -> int:
    return page.count('role="img"')


def test_a_whole_run_shows_everything_and_quotes_the_summary(tmp_path: Path) -> None:
    build(tmp_path).close(documents.stop("ok"), summary())
    page, text = rendered(tmp_path)
    assert n_pictures(page) == 9
    assert page.count("<img") == 2
    for quoted in (
        "1,544 secret bits",
        "0.971",
        "0.0461",
        "0.966 detrended",
        "47.1 %",
        "3.01 %",
        "no_preamble",
        "f = 1.12",
    ):
        assert quoted in text, quoted
    assert "the strongest correlation is 0.0461" in text
    run = reader.load(tmp_path)
    kept = run.rounds.rounds[run.rounds.kept]
    level = {n: 20 * np.log10(np.abs(link.csi[np.isin(link.rounds, kept), 0, 0])) for n, link in run.links.items()}
    of_the_panel = f"{agreement.correlation(level['bob>alice'], level['alice>eve']):.3g}"
    assert f"Alice – Eve: correlation {of_the_panel}" in text, "a number over a figure is of that figure"
    assert "12 of 400 (1.72–5.17 %)" in text, "a rate has its confidence"
    assert "Made up <room> & more" in text
    assert "slow <drift>" in text
    assert "<script>" in text  # as text: the checker refuses the tag
    assert 'class="missing"' not in page
    assert report.make(tmp_path, children=Children(2)).read_text() == page


def test_where_the_time_of_a_round_goes_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    parts = {"order": (0.5, 0.125), "air": (1.5, 0.0), "estimate": (0.25, 3.5), "message": (0.75, 0), "journal": (1, 0)}
    told = {name: {"time_s": 1e-3 * own, "beside_s": 1e-3 * beside} for name, (own, beside) in parts.items()}
    pace = {"probe_s": None, "round": {"rounds": 112, "mean_s": 4e-3, **told}}
    build(tmp_path / "new", n_rounds=5).close(documents.stop("ok"), summary(pace=pace))
    section = rendered(tmp_path / "new")[0].split('id="pace"')[1].split("</section>")[0]
    assert "4 ms from round to round" in section
    assert "112 rounds" in section
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in section.split("<tr>")[2:]]
    assert [(row[0], *row[2:]) for row in cells] == [
        ("order", "0.5", "12.5 %", "0.125"), ("air", "1.5", "37.5 %", "0"), ("estimate", "0.25", "6.25 %", "3.5"),
        ("message", "0.75", "18.8 %", "0"), ("journal", "1", "25 %", "0"),
    ]  # fmt: skip
    for name, change in (("old", {}), ("older", {"pace": None}), ("resumed", {"pace": {"round": None}})):
        build(tmp_path / name, n_rounds=5).close(documents.stop("ok"), summary(**change))
        assert 'id="pace"' not in rendered(tmp_path / name)[0]


def test_the_secrecy_section_has_a_row_per_eve(tmp_path: Path) -> None:
    build(tmp_path, n_rounds=5).close(documents.stop("ok"), summary(keys_exposed=2, keys_reproducible=3))
    section = rendered(tmp_path)[0].split('id="secrecy"')[1].split("</section>")[0]
    for quoted in (
        "<strong>eve_now</strong>", "her own signals &lt;now&gt;", "27.1 %", "31.5 %", "1,544", "1,792", "8 antennas",
        "the surface&#x27;s patterns are secret", "2^−64", "2^−66", "2 keys are exposed", "3 keys follow",
    ):  # fmt: skip
        assert quoted in section, quoted


@pytest.mark.parametrize(
    ("shape", "stop", "told", "says"),
    [
        (
            {"eve": False, "surface": False},
            "ok",
            {"kdr_eve": None, "csi_correlation_ae": None},
            ["no node with that role", "Eve was not measured", "No surface took part"],
        ),
        ({"private": True}, "ok", {}, ["In private mode nodes", "they never leave the nodes"]),
        (
            {"n_blocks": 0, "n_rounds": 30},
            "failed",
            {"key_bits": 0, "raw_bits": 0},
            ["No key. No block was complete", "28 rounds were kept, and a block takes 200", "bob: lost"],
        ),
        (
            {"n_rounds": 0, "n_blocks": 0},
            "aborted",
            None,
            ["No node received a probe", "No round was finished", "without a summary"],
        ),
        ({"n_rounds": 1, "n_blocks": 1}, "ok", {}, []),
        (
            {"names": ("pluto-1", "pluto-2", "usrp"), "n_antennas": 2, "n_blocks": 30},
            "ok",
            {},
            ["Bob (pluto-2) hears Alice (pluto-1)", "First antenna of each radio"],
        ),
        (
            {"key_bits": 9000},
            "ok",
            {"keys_mismatched": 1},
            ["1 key believed verified by both sides differs", "more than their own reports allow"],
        ),
    ],
    ids=["no eve, no surface", "private", "no block", "no round", "one round", "names, antennas, blocks", "wrong keys"],
)
def test_what_is_missing_is_said(
    tmp_path: Path, shape: dict[str, Any], stop: documents.ExitStatus, told: dict[str, Any] | None, says: list[str]
) -> None:
    reason = None if stop == "ok" else "bob: lost"
    build(tmp_path, **shape).close(documents.stop(stop, reason), None if told is None else summary(**told))
    _, text = rendered(tmp_path)
    for words in says:
        assert words.lower() in text.lower(), words


def test_a_live_a_killed_and_a_recovered_run(tmp_path: Path) -> None:
    w = build(tmp_path, n_rounds=40, n_blocks=1, private=True)
    _, text = rendered(tmp_path)
    assert "still running" in text
    assert "No figures yet" in text
    # the process dies: the kernel only releases its lock
    w._lock.release(remove=False)
    w._journal._db.close()
    page, text = rendered(tmp_path)
    assert "killed, not recovered" in text
    assert n_pictures(page) == 3
    assert "killed before it wrote its summary" in text
    assert "no_preamble" in text
    writer.recover(tmp_path, lambda run: summary())
    _, text = rendered(tmp_path)
    assert "the coordinator's process died: last round 39" in text
    assert "1,544 secret bits" in text


def test_a_failed_block_tells_why_and_its_bits_are_lost(tmp_path: Path) -> None:
    w = build(tmp_path, n_blocks=0, n_rounds=5)
    w.block(Block(block=0, agree={"alice": agree(0, verified=False), "bob": agree(0, verified=False)}))
    w.close(documents.stop("ok"), summary(key_bits=0, keys_verified=0))
    _, text = rendered(tmp_path)
    assert "No key. Verification_failed" in text
    assert "n/a" in text


def test_a_folder_without_a_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        report.make(tmp_path)


def test_probes_that_all_failed_are_drawn_as_gaps(tmp_path: Path) -> None:
    with RunWriter(tmp_path, documents.start({"title": "x"}, {}, subcarrier_hz=np.arange(4.0))) as w:
        for r in range(3):
            nothing = np.full((1, 1, 4), np.nan, dtype=np.complex64)
            w.probe(r, "bob", "alice>bob", 0.0, float("nan"), float("nan"), float("nan"), None, nothing)
        w.close(documents.stop("ok"), summary(csi_correlation_ab=None, key_bits=None))
    _, text = rendered(tmp_path)
    assert "No channel estimate was recorded" in text


@given(
    raw=st.integers(0, 5000),
    errors=st.integers(0, 10),
    leaked=st.integers(128, 9000),
    verified=st.booleans(),
    entropy=st.floats(0, 1),
    bits=st.integers(0, 2000),
    epsilon_log2=st.integers(8, 128),
)
def test_the_flow_of_bits_adds_up(
    raw: int, errors: int, leaked: int, verified: bool, entropy: float, bits: int, epsilon_log2: int
) -> None:
    told = agree(0, raw=raw, errors=errors, leaked=leaked, verified=verified)
    delivered = bits if verified else 0
    block = Block(
        block=0, agree={"alice": told}, key={"alice": key(0, delivered, entropy), "bob": key(0, bits, entropy)}
    )
    steps = bit_flow.flow([block], epsilon_log2)
    assert bit_flow.raw_bits([block]) - sum(s.bits for s in steps) == bit_flow.key_bits(block) == delivered
    assert all(s.bits >= 0 for s in steps[:-1])


def test_the_flow_follows_the_length_rule() -> None:
    # ℓ = ⌊n·h − leaked − 2·(64 + 2) − log2(57)⌋ of n = 3600 kept bits in steps of 64: 1800 − 900 − 132 − 5.8 = 762.2
    terms = tuple(LengthTerm(name=n, bits=b, why="") for n, b in (("hashing", -132.0), ("lengths", -np.log2(57))))
    alice = structs.replace(key(0, 704), terms=terms)
    block = Block(block=0, agree={"alice": agree(0)}, key={"alice": alice, "bob": key(0, 704)})
    assert [s.bits for s in bit_flow.flow([block], 64)] == [400, 0, 900, 1800, 138, 58]


@given(st.sets(st.integers(0, 5000), min_size=1, max_size=60))
def test_picture_columns_show_rounds_where_they_are(found: set[int]) -> None:
    rounds = np.array(sorted(found))
    first, last = int(rounds[0]), int(rounds[-1])
    column = pictures.columns(rounds, first, last)
    assert len(column) == min(pictures.MAX_COLUMNS, last - first + 1)
    there = np.flatnonzero(column >= 0)
    span = (last - first + 1) / len(column)
    # every shown round lies in its column, and a column with a round shows its first
    assert np.all(np.floor((rounds[column[there]] - first) / span + 1e-9) == there)
    assert set(np.floor((rounds - first) / span + 1e-9).astype(int)) == set(there.tolist())


def test_a_baseline_is_held_against_the_run_with_ratios(tmp_path: Path) -> None:
    for name, bits, surface in (("ours", 772, True), ("fixed", 0, False)):
        w = build(tmp_path / name, surface=surface, key_bits=bits)
        rate_bps = 90.0 if surface else 30.0
        w.close(documents.stop("ok", None), {"key_bits": bits, "raw_rate_bps": rate_bps, "kdr_raw": 0.1})
    page = report.make(tmp_path / "ours", tmp_path / "fixed").read_text()
    section = page.split('id="baseline"')[1].split("</section>")[0]
    assert "none without" in section
    assert "3 ×" in section
    assert "<code>surface.policy</code>" in section
    assert 'id="baseline"' not in report.make(tmp_path / "ours").read_text()
    with pytest.raises(InputError, match="no such folder"):
        report.make(tmp_path / "ours", tmp_path / "gone")


def test_an_adversarys_surface_is_reported(tmp_path: Path) -> None:
    w = build(tmp_path)
    w.close(documents.stop("ok", None), {})
    run = reader.load(tmp_path)
    run.start.experiment["scene"] = {"attacker": {"rows": 32, "columns": 16, "flips": "after_transmission"}}
    assert "adversary" not in report._render(View(run))  # a real lab: the scene only describes the plan
    run.start.lab["world"] = {}
    assert "adversary’s surface of 32 × 16 elements" in report._render(View(run))


LESSON: dict[str, Any] = {
    "blocks": 2, "rounds": 800, "guard_rounds": 20, "failures": {"untrainable (<few>)": 1}, "public_bytes": 410_400,
    "model": "0123456789abcdef", "nmse_before": 0.31, "nmse_after": 0.0421, "file": "models/run-1.npz",
    "card": {
        "enhance": "crcnet", "parameters": {"align": True, "filters": 4}, "recipe": {"epochs": 100},
        "history": {"epochs": 52, "best_epoch": 37, "validation_first": 0.25, "validation_best": 0.0123},
        "data": {"train": 632, "validate": 160, "alice_sha256": "a1" * 32, "bob_sha256": "b2" * 32},
    },
}  # fmt: skip


def test_a_training_is_shown_if_there_was_one(tmp_path: Path) -> None:
    build(tmp_path / "trained", training=800).close(documents.stop("ok"), summary(training=LESSON))
    page, text = rendered(tmp_path / "trained")
    section = page.split('id="training"')[1].split("</section>")[0]
    for quoted in (
        "crcnet (align = True, filters = 4)", "800 rounds", "410 kB", "20 further rounds",
        "632 pairs, validated on 160",
        "epoch 37 of 52 was best; at most 100", "0.0123 after training, 0.25 before",
        "0.0421 on the later pairs, 0.31 without",
        "a1a1a1a1a1a1a1a1…", "b2b2b2b2b2b2b2b2…", "0123456789abcdef", "models/run-1.npz", "2, of which 1 failed",
        "1 × untrainable (&lt;few&gt;)",
    ):  # fmt: skip
        assert quoted in section, quoted
    assert "Training of the enhancer" in text
    build(tmp_path / "plain").close(documents.stop("ok"), summary())
    assert 'id="training"' not in rendered(tmp_path / "plain")[0]


def test_a_training_that_failed_or_never_came_claims_no_model(tmp_path: Path) -> None:
    failed = LESSON | {"model": None, "nmse_before": None, "nmse_after": None, "card": None, "file": None}
    build(tmp_path / "failed", training=800).close(documents.stop("ok"), summary(training=failed))
    section = rendered(tmp_path / "failed")[0].split('id="training"')[1].split("</section>")[0]
    assert "1 × untrainable" in section
    assert "later pairs" not in section
    build(tmp_path / "live", training=800)
    assert "still being written" in rendered(tmp_path / "live")[0].split('id="training"')[1].split("</section>")[0]


def test_every_figure_is_a_file_for_a_paper(tmp_path: Path) -> None:
    build(tmp_path).close(documents.stop("ok"), summary())
    page = report.make(tmp_path, figures=True).read_text(encoding="utf-8")
    made = {path.name for path in (tmp_path / paper.FOLDER).iterdir()}
    names = ["channel", "reciprocity", "autocorrelation", "levels", "delay_profile"]
    names += ["disagreement", "bit_flow", "snr_cfo", "bits", "patterns"]
    assert made == {f"{name}.{end}" for name in names for end in ("svg", "pdf", "csv")} | {"tables.tex"}
    for name in made:
        content = (tmp_path / paper.FOLDER / name).read_bytes()
        assert f'href="{paper.FOLDER}/{name}"' in page
        assert content.startswith(b"%PDF") == name.endswith(".pdf")
        assert b"#0102" not in content, f"{name}: a colour of the page's, not of a paper"
    rows = list(csv.reader((tmp_path / paper.FOLDER / "bit_flow.csv").open(encoding="utf-8")))
    assert rows[0] == ["step", "bits"]
    assert rows[1] == ["raw bits", "8000"]
    assert rows[-1] == ["key", "1544"]
    assert sum(int(bits) for _, bits in rows[1:-1]) == 1544, "what is left of the raw bits is the key"
    channel = list(csv.reader((tmp_path / paper.FOLDER / "channel.csv").open(encoding="utf-8")))
    assert len(channel[0]) == 2 + N_SUBCARRIERS
    bits = list(csv.reader((tmp_path / paper.FOLDER / "bits.csv").open(encoding="utf-8")))
    assert bits[0] == ["bit", "Alice", "Bob", "Eve"]
    assert {len(row) for row in bits} == {4}
    assert [row[0] for row in bits[1:]] == [str(i) for i in range(512)]
    patterns = list(csv.reader((tmp_path / paper.FOLDER / "patterns.csv").open(encoding="utf-8")))
    assert patterns[0] == ["pattern", "row", "column", "level", "phase, degrees"]
    assert {(row[3], row[4]) for row in patterns[1:]} <= {
        ("0", "0"),
        ("1", "180"),
        ("2", "180"),
        ("1", "90"),
        ("3", "270"),
    }
    tables = (tmp_path / paper.FOLDER / "tables.tex").read_text(encoding="utf-8")
    assert r"key bits & 1544 \\" in tables
    assert r"eve\_now & her own signals <now> & 0.2713 & 0.3154 & 1544 \\" in tables
    assert tables.count(r"\begin{tabular}") == tables.count(r"\end{tabular}") == 3
    assert files.hashes(tmp_path).keys() == {"rounds.h5", "summary.json"}, "the report's figures are no records"


def test_latex_reads_no_command_in_a_text() -> None:
    assert paper.tex("a_b & 3 % of {x} ~ \\y^2") == (
        r"a\_b \& 3 \% of \{x\} \textasciitilde{} \textbackslash{}y\textasciicircum{}2"
    )


def test_autocorrelation_of_noise_and_of_a_wave() -> None:
    rng = np.random.default_rng(3)
    assert np.abs(fading.autocorrelation(rng.normal(size=(2000, 8)))[1:]).max() < 0.05
    wave = np.sin(2 * np.pi * np.arange(400) / 20)[:, None]
    r = fading.autocorrelation(wave)
    assert r[0] == pytest.approx(1.0)
    assert r[10] == pytest.approx(-0.975, abs=0.01), "half a period: −1, less the share of pairs that are missing"


def test_a_path_is_seen_at_its_delay() -> None:
    hz = np.r_[-32:0, 1:33] * 1e6
    h = np.exp(-2j * np.pi * hz * 4 / 65e6)[None, :].repeat(3, axis=0)
    found = fading.delay_profile(h, hz)
    assert found is not None
    delay_us, power_db = found
    assert delay_us[np.argmax(power_db)] == pytest.approx(4 / 65)
    assert fading.delay_profile(h, hz + np.arange(64) * 3e5 % 7e5) is None, "no even grid"


def test_the_density_of_rayleigh_fading_is_one() -> None:
    level_db = np.linspace(-80, 20, 20001)
    density = fading.rayleigh_db(level_db)
    assert np.trapezoid(density, level_db) == pytest.approx(1.0, abs=1e-6)
    assert np.trapezoid(density[level_db <= 0], level_db[level_db <= 0]) == pytest.approx(0.5, abs=1e-3), "median 0 dB"


def test_levels_of_one_frequency_are_drawn_without_a_warning() -> None:
    rounds = np.arange(20)
    nothing = np.full(20, np.nan)
    level_db = np.random.default_rng(1).normal(size=(20, 1))
    link = pictures.LinkPicture("Alice hears Bob", "alice", rounds, level_db, nothing, nothing, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "<svg" in pictures.Pictures(rounds, 0.1 * rounds).heat_maps([link], np.zeros(1), "levels")
