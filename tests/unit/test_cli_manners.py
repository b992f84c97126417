"""How the commands behave towards a person and a pipe: -h, --quiet, no broken lines, runs side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import typer

from testbed import benchmarks
from testbed.assess.compare import several
from testbed.assess.summary import note_on_eves
from testbed.benchmarks._endurance import Endured
from testbed.cli import app, main
from testbed.cli.runs import _is_done_now
from testbed.cli.terminal import ProgressBar, Steps, _eves, _show, conclude, console, on_signals, plain
from testbed.coordinator.server import Progress
from testbed.coordinator.state import TRANSITIONS
from testbed.records import documents
from testbed.records.writer import RunWriter

ROOT = Path(__file__).resolve().parents[2]


def said(monkeypatch: Any, capsys: Any, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["testbed", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    out = capsys.readouterr()
    return int(left.value.code or 0), out.out, out.err


def a_run(folder: Path, **summary: Any) -> Path:
    lab = {"node": {n: {"role": n} for n in ("alice", "bob")}}
    w = RunWriter(folder, documents.start({"title": "t"}, lab))
    w.close(documents.stop("ok"), {"raw_bits": 1000, **summary} if summary else None)
    return folder


@pytest.mark.parametrize("command", [[], ["run"], ["replay"], ["ris", "apply"], ["live"]])
def test_help_by_its_short_name(monkeypatch: Any, capsys: Any, command: list[str]) -> None:
    status, out, _ = said(monkeypatch, capsys, *command, "-h")
    assert status == 0
    assert out.startswith("Usage: ")
    assert "-h, --help" in out


def test_runs_side_by_side(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    runs = [
        a_run(tmp_path / "first", key_bits=100, kdr_raw=0.02, raw_rate_bps=50.0),
        a_run(
            tmp_path / "a_run_with_a_name_longer_than_most_terminals_would_give_it_in_a_table",
            key_bits=250,
            kdr_raw=0.01,
        ),
        a_run(tmp_path / "third", key_bits=0),
    ]
    names = [str(run) for run in runs]
    status, out, _ = said(monkeypatch, capsys, "compare", *names, "--json")
    told = json.loads(out)
    assert (status, told["runs"]) == (0, names)
    rows = {row["name"]: row for row in told["figures"]}
    assert rows["key bits"]["values"] == [100, 250, 0]
    assert rows["key bits"]["ratios"] == [None, 2.5, 0]
    assert rows["raw rate"]["values"] == [50.0, None, None]
    assert rows["raw disagreement Alice–Bob"]["ratios"] == [None, None, None], "a ratio of these says nothing"
    status, out, _ = said(monkeypatch, capsys, "compare", *names)
    line = next(line for line in out.splitlines() if "key bits" in line)
    assert "250 (× 2.5)" in line
    assert runs[1].name in out, "in a pipe no line is broken"


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    whole, empty = a_run(tmp_path / "a", key_bits=1), a_run(tmp_path / "b")
    assert said(monkeypatch, capsys, "compare", str(whole))[0] == 2
    status, _, err = said(monkeypatch, capsys, "compare", str(whole), str(empty))
    assert status == 2
    accepted = f"a run that has ended (`testbed report {empty}` closes a killed one)"
    assert err == f"testbed: {empty}: has no summary yet; accepted: {accepted}\n"
    assert said(monkeypatch, capsys, "compare", str(whole), str(tmp_path / "none"))[0] == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key_bits", "128"), ("key_rate_bps", []), ("kdr_raw", "0.1"), ("raw_bits", -5), ("kdr_raw", 2.0),
        ("key_bits", True),
    ],
)  # fmt: skip
def test_a_summary_that_somebody_else_wrote_is_compared_or_named(
    tmp_path: Path, monkeypatch: Any, capsys: Any, name: str, value: Any
) -> None:
    good = {"raw_rate_bps": 50.0, "kdr_raw": 0.1, "raw_bits": 1000}
    whole, bad = a_run(tmp_path / "a", **good), a_run(tmp_path / "b", **{**good, name: value})
    for folders in ((whole, bad), (bad, whole)):
        status, _, err = said(monkeypatch, capsys, "compare", *map(str, folders))
        assert status == 2
        assert err.startswith(f"testbed: {bad}: its summary cannot be compared: damaged: ")
        assert err.count("\n") == 1


def test_an_error_that_repeats_a_long_text_is_cut(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f"[chain]\nquantize = '{'x' * 100_000}'\n")
    status, _, err = said(monkeypatch, capsys, "replay", str(tmp_path), "--chain", str(path))
    assert status == 2
    assert "no quantizer is called" in err
    assert 1000 < len(err) < 5000


def test_ratios_are_to_the_first() -> None:
    rows = several([{"key_bits": 4}, {"key_bits": 2}, {"key_bits": 8}])
    assert next(r for r in rows if r["name"] == "key bits")["ratios"] == [None, 0.5, 2.0]


def test_one_key_is_one_key(capsys: Any, tmp_path: Path) -> None:
    summary: dict[str, Any] = dict.fromkeys(
        ("keys_mismatched", "eve_keys_recovered", "rounds_per_s", "kdr_raw", "kdr_eve", "min_entropy_per_bit",
         "key_rate_bps")
    )  # fmt: skip
    summary |= {
        "keys_verified": 1,
        "key_bits": 128,
        "rounds": 9,
        "pairs_kept": 9,
        "pairs_rejected": {},
        "raw_bits": 400,
    }
    pace = {"start_s": 1.5, "probe_s": 10.0, "distil_s": None}
    _show(SimpleNamespace(summary={**summary, "health": [], "pace": pace}), tmp_path / "report.html", 2.06)
    shown = capsys.readouterr().out
    assert shown.startswith("1 verified key, 128 bits ")
    assert "time: start 1.5 s, probing 10.0 s, report 2.1 s\n" in shown, "what is not known is left out"


def test_quiet_shows_no_progress(capsys: Any) -> None:
    def told(quiet: bool) -> str:
        with ProgressBar(quiet) as bar:
            for n in range(0, 401, 100):
                bar.update(a_progress(n))
        return str(capsys.readouterr().err)

    assert told(False).count("rounds/s on average") >= 2
    assert told(True) == ""


def test_a_distillation_is_told_once(capsys: Any) -> None:
    with ProgressBar() as bar:
        for phase in ("probing", "distilling", "distilling", "probing"):
            bar.update(a_progress(10, phase))
    assert capsys.readouterr().err == "10/400 rounds  distilling a block\n"


def a_progress(n: int, phase: str = "probing") -> Progress:
    values: dict[str, Any] = {
        "phase": phase, "round": n, "rounds": 400, "kept": n, "snr_db": 9.0, "rounds_per_s": 50.0, "key_bits": 0,
    }  # fmt: skip
    return Progress(**values)


def test_the_last_line_of_rounds_has_the_bits_of_the_last_block(capsys: Any) -> None:
    with ProgressBar() as bar:
        bar.update(a_progress(400))
        bar.update(a_progress(400, "distilling"))
        bar.update(replace(a_progress(400, "finishing"), key_bits=1856))
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("key bits 0")
    assert said[1:] == ["400/400 rounds  distilling a block", said[0].replace("key bits 0", "key bits 1856")]


def test_what_is_done_after_the_last_round_is_told_with_the_time_left(capsys: Any) -> None:
    """The audit of a run's keys took 5 s a block without a word."""
    now_s = [0.0]
    with ProgressBar(clock=lambda: now_s[0]) as bar:
        bar.update(a_progress(10, "distilling"))
        now_s[0] = 12.0
        bar._steps.look()
        for now_s[0], share, what in ((20.0, 0.0, "a"), (26.0, 0.5, "b"), (26.1, 1.0, "c")):
            bar.update(replace(a_progress(10, "over"), share=share, what=what))
    said = capsys.readouterr().err.splitlines()
    assert said == ["10/400 rounds  distilling a block", "distilling a block … 12 s so far", " 50% b, 6 s left"]


@pytest.mark.parametrize(
    ("kind", "phase", "words"),
    [
        ("stop", "probing", "finishing the rounds on the air, and a block of those that are in none (Ctrl-C again "),
        ("stop", "distilling", "finishing the block that is being distilled (Ctrl-C again drops it)"),
        ("abort", "distilling", "dropping the block (Ctrl-C again halts the transmitters)"),
        ("stop", "finishing", "the run has ended, and its nodes stop"),
        ("halt", "finishing", "halting all transmitters"),
        ("stop", "over", "the run is over, and its record is being closed"),
        ("halt", "over", "the run is over, and its record is being closed"),
    ],
)
def test_a_signal_says_what_is_really_done(kind: str, phase: str, words: str) -> None:
    assert _is_done_now(kind, phase).startswith(words)


def test_every_phase_of_a_run_has_words_for_a_signal() -> None:
    assert [_is_done_now(kind, phase) for kind in ("stop", "abort", "halt") for phase in TRANSITIONS].count("") == 0


def test_a_signal_while_the_report_is_drawn_leaves_out_the_report_only(
    capsys: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr("testbed.report.html.make", interrupted)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    outcome = SimpleNamespace(folder=tmp_path / "run", summary={"key_bits": 7}, status="finished", detail="")
    try:
        with pytest.raises(typer.Exit) as ended:
            conclude(outcome, as_json=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.value.exit_code == 130
    said = capsys.readouterr()
    assert said.out == '{"key_bits":7}\n'
    assert said.err.splitlines()[1:] == [
        f"the run is complete, its report is not: `testbed report {tmp_path / 'run'}` makes it"
    ]


def test_what_takes_over_two_seconds_says_how_long_it_will_take(capsys: Any) -> None:
    times = iter([100.0, 101.0, 110.0, 111.0, 130.0])
    steps = Steps(clock=lambda: next(times))
    for share, what in ((0.0, "a"), (0.25, "b"), (0.5, "c"), (0.75, "d")):
        steps.tell(share, what)
    assert capsys.readouterr().err == " 25% b, 30 s left\n 75% d, 10 s left\n"
    quiet = Steps(quiet=True, clock=lambda: 0.0)
    quiet.tell(0.5, "a")
    assert capsys.readouterr().err == ""


def test_a_step_that_lasts_is_told_again_with_how_long_it_has_taken(capsys: Any) -> None:
    now_s = [0.0]
    steps = Steps(clock=lambda: now_s[0])
    steps.look()
    assert capsys.readouterr().err == "", "no step has begun"
    steps.tell(0.0, "a")
    for now_s[0] in (1.0, 2.0, 3.0, 11.9, 12.0, 13.0):
        steps.look()
    assert capsys.readouterr().err == "  0% a … 2 s so far\n  0% a … 12 s so far\n"
    with Steps() as ticking:
        assert ticking._ticking is not None
        assert ticking._ticking.is_alive()
    assert not ticking._ticking.is_alive()


def test_a_run_without_a_terminal_says_how_long_it_will_take(capsys: Any) -> None:
    with ProgressBar() as bar:
        bar.update(a_progress(200))
    assert "200/400 rounds  4 s left" in capsys.readouterr().err


def commands_of(group: Any, name: str = "testbed") -> Iterator[tuple[str, set[str]]]:
    """Yield (name, options) of everything that can be called."""
    options = {option for parameter in group.params for option in parameter.opts}
    if not hasattr(group, "commands"):
        yield name, options
        return
    if group.invoke_without_command and name != "testbed":  # the bare program has --version and nothing to tell
        yield name, options
    for key, command in group.commands.items():
        yield from commands_of(command, f"{name} {key}")


def test_quiet_and_json_are_everywhere() -> None:
    commands = dict(commands_of(typer.main.get_command(app)))
    assert {"testbed run", "testbed keys", "testbed keys pool", "testbed ris apply", "testbed watch"} <= commands.keys()
    assert {
        c: {"--quiet", "--json", "-q"} - o for c, o in commands.items() if not {"--quiet", "--json", "-q"} <= o
    } == {}


def test_what_every_cheap_command_prints_is_one_object_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    a, b = (str(a_run(tmp_path / name, key_bits=1)) for name in "ab")
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    (tmp_path / "bits.txt").write_text("01" * 500)
    grid = tmp_path / "walk.csv"
    grid.write_bytes((ROOT / "docs" / "data" / "walk.csv").read_bytes())
    data = ["--map", str(ROOT / "docs" / "data" / "map.toml"), "--chain", str(ROOT / "docs" / "data" / "chain.toml")]
    answers = {
        "list": {"quantize", "labs"},
        "list quantize scalar": {"scalar"},
        **{f"schema {kind}": {"$ref", "$defs"} for kind in ("experiment", "lab", "map", "chain", "grid")},
        f"compare {a} {b}": {"runs", "figures"},
        f"report {a}": {"report", "figures"},
        f"watch {a}": {"state", "paused", "correlation", "snr_db"},
        f"randomness {tmp_path}/bits.txt --format text": {"source", "format"},
        f"replay {grid} {' '.join(data)}": {"key_bits", "health"},
        "keygen-certs": {"folder", "daemons"},
        "keys": {"keys", "rehearsals", "unreadable"},
        "keys pool": {"alice", "bob"},
        "keys pool --show": {"alice", "bob"},
    }
    for command, keys in answers.items():
        status, out, err = said(monkeypatch, capfd, *command.split(), "--json", "--quiet")
        assert (status, err) == (0, ""), command
        assert keys <= json.loads(out).keys(), command


def test_what_there_is_as_data(monkeypatch: Any, capsys: Any) -> None:
    told = json.loads(said(monkeypatch, capsys, "list", "--json")[1])
    assert "scalar" in told["quantize"]
    assert "static_room" in told["experiments"]
    scalar = json.loads(said(monkeypatch, capsys, "list", "quantize", "scalar", "--json")[1])["scalar"]
    assert {o["name"]: o["default"] for o in scalar["options"]} == {"bits": "2", "guard": "0.1"}
    assert said(monkeypatch, capsys, "list", "nothing", "--json")[0] == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_the_commands(shell: str) -> None:
    asked = {"_TESTBED_COMPLETE": f"complete_{shell}", "COMP_WORDS": "testbed sw", "COMP_CWORD": "1"}
    asked |= {"_TYPER_COMPLETE_ARGS": "testbed sw", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    told = subprocess.run(
        [str(Path(sys.executable).with_name("testbed"))], env=os.environ | asked, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "sweep" in told.stdout
    assert "replay" not in told.stdout


def test_what_nodes_say_is_no_markup_and_moves_no_cursor(capsys: Any, tmp_path: Path) -> None:
    """A peer's reason "[/x]" was a traceback at the end of the run; one with an escape sequence cleared the screen."""
    bad = "peer_failed: [/x] \x1b[2J [red]\nmore"
    summary: dict[str, Any] = dict.fromkeys(
        ("keys_mismatched", "eve_keys_recovered", "rounds_per_s", "kdr_raw", "kdr_eve", "min_entropy_per_bit",
         "key_rate_bps")
    )  # fmt: skip
    summary |= {
        "keys_verified": 1, "key_bits": 128, "rounds": 9, "pairs_kept": 9, "pairs_rejected": {bad: 1}, "raw_bits": 400,
        "health": [{"check": bad, "ok": False, "detail": bad}],
        "secrecy": {
            "eves": [{"name": bad, "knows": bad, "guess_probability": None, "upper_bound": None, "key_bits": 1}],
            "sensitivity": [{"name": bad, "knows": bad, "key_bits": 1}],
        },
    }  # fmt: skip
    _show(SimpleNamespace(summary=summary), tmp_path / "report.html", 1.0)
    shown = capsys.readouterr().out
    assert shown.count("peer_failed: [/x] ?[2J [red]?more") == 7
    assert "\x1b" not in shown
    assert plain("[/x]") == "\\[/x]"


def test_the_table_of_eves_shows_by_what_it_is_sorted(capsys: Any) -> None:
    """Without the limits, its rows looked unsorted, and `together` worse than an Eve whom she contains."""
    rows = [("eve_now", 0.170, 0.301, 4416), ("string_near", 0.171, 0.295, 4480), ("together", 0.169, 0.29, 4544)]
    keys = ("name", "guess_probability", "upper_bound", "key_bits")
    eves = [{"knows": "x", **dict(zip(keys, row, strict=True))} for row in rows]
    console().print(_eves({"eves": eves, "sensitivity": []}))
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "at most",
        "30.1%",
        "29.5%",
        "Sorted by the key that each Eve leaves",
        "she may guess fewer than one",
    ):
        assert words in shown
    assert "together:" not in note_on_eves(eves[:2])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "static_room", "--rounds", "x"), "--rounds: 'x' given; accepted: a whole number from 1 (see `"),
        (("run", "static_room", "--rounds=-3"), "--rounds: '-3' given; accepted: a whole number from 1 (see `"),
        (("live", ".", "--port", "1e9"), "--port: '1e9' given; accepted: a whole number from 0 to 65535 (see "),
        (("bench", "soak", "--minutes", "nan"), "--minutes: 'nan' given; accepted: a number from 0.1 (see `"),
        (("run", "--seed", "\x1b[2J" + "9" * 500), "--seed: '?[2J999"),
    ],
)
def test_a_wrong_number_is_told_with_what_is_accepted(
    monkeypatch: Any, capsys: Any, arguments: tuple[str, ...], says: str
) -> None:
    """pydantic's own words ("Input should be a valid integer, unable to parse string") do not say what was given."""
    pytest.importorskip("typer._coercion", reason="an older typer, which has words of its own")
    status, out, err = said(monkeypatch, capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"testbed: {says}")
    assert err.count("\n") == 1
    assert len(err) < 250


def test_a_state_folder_that_is_a_file_is_one_line(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    """`testbed keys` said that there are no keys, with status 0."""
    (tmp_path / "state").write_text("")
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    for command in (["keys"], ["keygen-certs"], ["doctor"]):
        status, out, err = said(monkeypatch, capsys, *command)
        assert (status, out) == (2, "")
        assert err == (
            f"testbed: variable TESTBED_STATE: {tmp_path / 'state'} is a file; accepted: a folder, or the name of a "
            "new one\n"
        )


def test_every_benchmark_prints_a_list_of_rows_with_the_same_keys(monkeypatch: Any, capsys: Any) -> None:
    row = benchmarks.BenchRow(name="cascade", ours_s=1.0, peer="them", peer_s=2.0, ratio=2.0, note="n")
    monkeypatch.setattr(benchmarks, "run", lambda name, tell: [row])
    monkeypatch.setattr(benchmarks, "endure", lambda *_: Endured(name="kills", figures={"kills": 2}, findings=[]))
    (compared,) = json.loads(said(monkeypatch, capsys, "bench", "cascade", "--json")[1])
    (endured,) = json.loads(said(monkeypatch, capsys, "bench", "kills", "--json")[1])
    assert compared == msgspec.to_builtins(row)
    assert endured.keys() - compared.keys() == {"figures", "findings"}
    assert compared.keys() <= endured.keys()
    assert (endured["name"], endured["peer"], endured["note"]) == ("kills", None, "every invariant held")
    assert endured["figures"] == {"kills": 2}


@pytest.mark.parametrize("command", ["live", "watch", "report", "audit", "stream", "compare"])
def test_the_folder_of_all_runs_is_answered_with_the_newest(
    command: str, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("tuesday", "monday")):
        a_run(Path("runs") / name)
        os.utime(Path("runs") / name, (1000 - i, 1000 - i))
    status, _, err = said(monkeypatch, capsys, command, *["runs"] * (2 if command == "compare" else 1))
    assert status == 2
    assert err.rstrip().endswith("; the newest run in it: runs/tuesday")


def test_a_signal_that_was_ignored_before_stays_ignored() -> None:
    """`nohup testbed run …` ended with its terminal, because the run set a handler of its own."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for ignored in (True, False):
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
            on_signals(handler := lambda *_: None)
            expected = [handler, handler, signal.SIG_IGN if ignored else handler]
            assert [signal.getsignal(number) for number in numbers] == expected
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
