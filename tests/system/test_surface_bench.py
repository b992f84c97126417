"""The surface on the simulated bench: looked at, set, optimised; and an adversary's surface in the room."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from optimum import Optimum

from testbed import config
from testbed.coordinator.server import Coordinator
from testbed.core import patterns
from testbed.core.config import Lab, Multipath, SurfacePlan
from testbed.core.errors import InputError, TestbedError
from testbed.lab import one_process, processes, surface
from testbed.records import reader
from testbed.report import html
from testbed.surface.line_of_sight import LineOfSight


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "testbed", *arguments], capture_output=True, text=True, timeout=240)


def lab_file(folder: Path, side: int = 8, phase_bits: int = 1) -> str:
    text = config.bundled(Lab)["sim"].read_text()
    before = "options = { rows = 16, columns = 16, phase_bits = 1 }"
    assert before in text
    path = folder / "lab.toml"
    path.write_text(text.replace(before, f"options = {{ rows = {side}, columns = {side}, phase_bits = {phase_bits} }}"))
    return str(path)


def search(folder: Path, lab: str, method: str, act: Any = lambda *_: None, **given: Any) -> dict[str, Any]:
    """Search in one process, which gives the same; `testbed ris optimise`, below, has daemons."""
    plan = msgspec.structs.replace(
        config.load_experiment("static_room"), rounds=given.get("budget", 2000), seed=given.get("seed", 1)
    )
    place = config.load_lab(lab)
    objective, probes = given.get("objective", "power"), given.get("probes", 1)
    plan = surface.plan(plan, "static_room", place, method, objective, probes, given.get("start", "random(1)"),
                       given.get("model", "none"))  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "run", one_process.run)
        return surface.optimise(plan, place, lab, "static_room", given.get("save"), folder / "runs", on_coordinator=act)


def test_show_and_apply_print_the_boards_pattern(tmp_path: Path) -> None:
    lab = lab_file(tmp_path, phase_bits=2)
    held = json.loads(command("ris", "show", "--lab", lab, "--json").stdout)
    assert (held["rows"], held["columns"], held["phase_bits"]) == (8, 8, 2)
    assert held["identity"]["driver"] == "sim"
    assert held["digest"] == patterns.make("uniform", (8, 8), 2).digest
    applied = json.loads(command("ris", "apply", "beam(20, 10)", "--lab", lab, "--json").stdout)
    assert applied["digest"] == patterns.make("beam(20, 10)", (8, 8), 2).digest
    assert applied["apply_ms"] > 0


def test_a_pattern_is_drawn_without_a_board(tmp_path: Path, here: Any) -> None:
    lab = lab_file(tmp_path)
    text = here("ris", "show", "stripes(4)", "--lab", lab).stdout.splitlines()
    assert text[-1] == 8 * "·" + 8 * "█"
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "wobble"), "no pattern is called 'wobble'"),
        (("show", "0x12"), "accepted 64"),
        (("apply", "nowhere.json"), "cannot be read"),
        (("optimise", "--method", "oracle"), "accepted: conditional_mean, greedy, hadamard"),
        (("show", "stripes(999)"), "accepted 1 to 16 (columns)"),
        (("apply", "random(-1)"), "a whole number from 0"),
        (("optimise", "--start", "0x12"), "accepted 64"),
        (("optimise", "--objective", "luck"), "accepted: 'power'"),
        (("optimise", "--model", "oracle"), "accepted: start, answer, none"),
        (("optimise", "--save", "best.txt"), "accepted: a .json file"),
        (("optimise", "--save", "nowhere/best.json"), "in a folder that can be written"),
        (("optimise", "--experiment", "mobile_room"), "needs a table [scene.surface]"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], words: str, here: Any) -> None:
    done = here("ris", *arguments, "--lab", "sim")
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("lab", "status"), [("sim", 2), ("wire_ris595", 1)])
def test_a_pattern_of_another_shape_is_one_line(tmp_path: Path, lab: str, status: int) -> None:
    """Before anything starts, where the lab file or the driver knows the size; else once the board has reported it."""
    patterns.save(tmp_path / "small.json", patterns.make("random(1)", (4, 4), 1), {})
    done = command(
        "ris", "optimise", "--start", str(tmp_path / "small.json"), "--lab", lab, "--out", str(tmp_path / "runs")
    )
    assert done.returncode == status
    assert "4×4 elements of 1 bit, accepted by this board: 16×16" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "runs").exists() == (status == 1)


def test_a_driver_that_knows_its_size_refuses_another_before_anything_starts(tmp_path: Path) -> None:
    patterns.save(tmp_path / "small.json", patterns.make("random(1)", (4, 4), 1), {})
    plan, start = config.load_experiment("static_room"), str(tmp_path / "small.json")
    with pytest.raises(InputError, match="accepted by this board: 16×16"):
        surface.plan(plan, "static_room", config.load_lab("wire_ris"), "greedy", "power", 1, start)


def test_a_refused_option_of_an_emulated_board_names_file_table_and_key(tmp_path: Path) -> None:
    text = config.bundled(Lab)["wire_ris"].read_text()
    (tmp_path / "odd.toml").write_text(text.replace("[world.emulators.ris]", "[world.emulators.ris]\nspeed = 3\n#"))
    done = command("ris", "show", "--lab", str(tmp_path / "odd.toml"))
    assert done.returncode == 2
    assert f"{tmp_path / 'odd.toml'}: table [world.emulators.ris]: " in done.stderr
    assert "speed" in done.stderr
    assert "accepted: baud" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("objective", ["correlation", "key_rate", "leakage"])
def test_every_objective_is_measured_on_live_probes(tmp_path: Path, objective: str) -> None:
    found = search(tmp_path, lab_file(tmp_path, side=4), "hadamard", objective=objective, budget=120)
    assert found["status"] == "finished", found["detail"]
    assert found["confirmed"]
    assert found["patterns_tried"] > 30
    assert found["gain"] >= 0  # a result worse than the start is dropped
    assert found["after"] > {"correlation": 0.9, "key_rate": 1.0, "leakage": -1.0}[objective]
    assert patterns.load(Path(found["saved"]))[1]["objective"] == objective


def test_an_objective_that_needs_an_eve_is_refused_without_one() -> None:
    plan = config.load_experiment("static_room")
    plan = msgspec.structs.replace(plan, scene=msgspec.structs.replace(plan.scene, eve=None))
    with pytest.raises(InputError, match="needs an Eve"):
        surface.plan(plan, "static_room", config.load_lab("sim"), "greedy", "leakage", 1, "uniform")


@pytest.mark.parametrize(("method", "phase_bits"), [("greedy", 1), ("hadamard", 1), ("hadamard", 2)])
def test_optimise_gains_within_a_decibel_of_the_quantized_optimum(tmp_path: Path, method: str, phase_bits: int) -> None:
    lab = lab_file(tmp_path, phase_bits=phase_bits)
    found = search(tmp_path, lab, method)
    assert found["status"] == "finished"
    assert found["confirmed"]
    model = Optimum(config.load_experiment("static_room"), (8, 8), phase_bits)
    pattern, provenance = patterns.load(Path(found["saved"]))
    start = patterns.make("random(1)", (8, 8), phase_bits)
    gap_db = 10 * np.log10(model.best() / model.power(pattern))
    assert gap_db < 1.0
    # what the radios said of the gain is what the model says
    gain_db = 10 * np.log10(model.power(pattern) / model.power(start))
    assert found["gain"] == pytest.approx(gain_db, abs=0.5)
    assert provenance["method"] == method
    assert provenance["before"] == found["before"]
    run = reader.load(Path(found["folder"]))
    assert run.blocks == []
    # every probe pair is bound to the acknowledged pattern
    assert set(run.rounds.surface[run.rounds.kept]) <= set(run.patterns)
    assert pattern.digest in run.patterns


def test_what_the_geometry_tells_is_measured_to_be_good_within_a_few_rounds(tmp_path: Path) -> None:
    lab = lab_file(tmp_path)
    found = search(tmp_path, lab, "hadamard", model="answer")
    assert found["confirmed"]
    assert found["model"] == "answer"
    assert found["rounds"] <= 8 + 8 + 8
    model = Optimum(config.load_experiment("static_room"), (8, 8), 1)
    pattern = patterns.load(Path(found["saved"]))[0]
    assert 10 * np.log10(model.best() / model.power(pattern)) < 1.0
    refined = search(tmp_path / "further", lab, "hadamard", model="start", budget=60)
    assert refined["after"] >= found["after"] - 0.2


def test_the_radios_measure_the_power_and_correlation_that_the_geometry_predicts(tmp_path: Path) -> None:
    """A room without bodies, random patterns: predicted from the lab's geometry alone, probed by imperfect radios."""
    plan = config.load_experiment("static_room")
    bare = msgspec.structs.replace(plan.scene, multipath=Multipath(n_scatterers=0, direct_db=0.0))
    plan = msgspec.structs.replace(plan, rounds=80, scene=bare)
    lab = lab_file(tmp_path)
    run = reader.load(one_process.run(plan, config.load_lab(lab), lab, tmp_path / "run").folder)
    assert run.subcarrier_hz is not None
    probed: dict[str, Any] = {}
    predicted: dict[str, Any] = {}
    for rx in ("bob", "eve"):
        link = run.links[f"alice>{rx}"]
        assert link.csi is not None
        # over 40 MHz paths of different lengths add otherwise at each subcarrier; at the carrier alone: 0.2 to 0.35 dB
        bands = [LineOfSight.of(bare, plan.radio.carrier_hz + f, (8, 8), "alice", rx) for f in run.subcarrier_hz]
        probed[rx] = 10 * np.log10(np.mean(np.abs(link.csi) ** 2, axis=(1, 2, 3)))
        held = [run.patterns[str(d)] for d in link.surface]
        predicted[rx] = 10 * np.log10([np.mean([abs(model.response(p)) ** 2 for model in bands]) for p in held])
        offset_db = probed[rx] - predicted[rx]  # gains of the radios
        assert np.std(offset_db) < 0.1, rx
        assert np.std(predicted[rx]) > 10 * np.std(offset_db), rx
    assert abs(np.corrcoef(*probed.values())[0, 1] - np.corrcoef(*predicted.values())[0, 1]) < 0.05


def test_a_search_that_is_stopped_keeps_the_best_so_far(tmp_path: Path) -> None:
    asked: list[Coordinator] = []

    def act(coordinator: Coordinator, crew: None) -> None:
        asked.append(coordinator)
        policy = coordinator.state.policy
        assert policy is not None
        told = policy.observe

        def observe(round: int, links: Any) -> None:
            told(round, links)
            if round == 60:
                coordinator.ask_stop("stop")

        policy.observe = observe  # type: ignore[method-assign]

    found = search(tmp_path, lab_file(tmp_path), "greedy", act)
    assert found["status"] == "stopped"
    assert not found["confirmed"]
    assert found["gain"] > 0
    assert patterns.load(Path(found["saved"]))[0].digest == found["digest"]


def test_ctrl_c_ends_the_command_with_130_and_a_saved_pattern(tmp_path: Path) -> None:
    saved = tmp_path / "best.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "testbed", "ris", "optimise", "--lab", lab_file(tmp_path, side=16), "--save", str(saved),
         "--out", str(tmp_path / "runs")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "search: best" in line:
                break
        os.kill(process.pid, signal.SIGINT)
        _, words = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130, words
    assert patterns.load(saved)[1]["status"] == "stopped"


def test_a_pattern_that_cannot_be_saved_where_it_should_is_kept_with_the_run(tmp_path: Path) -> None:
    lab = lab_file(tmp_path, side=4)
    with pytest.raises(TestbedError, match=r"gone/best.json: cannot be written: .*; the pattern is in .*best.json"):
        search(tmp_path, lab, "random_search", budget=30, save=tmp_path / "gone" / "best.json")
    (kept,) = (tmp_path / "runs").glob("*/best.json")
    assert patterns.load(kept)[1]["method"] == "random_search"


def test_a_saved_pattern_serves_an_experiment(tmp_path: Path) -> None:
    lab = lab_file(tmp_path)
    found = search(tmp_path, lab, "random_search", budget=40)
    assert found["rounds"] <= 40
    plan = config.load_experiment("static_room")
    options = {"pattern": found["saved"]}
    plan = msgspec.structs.replace(plan, rounds=5, surface=SurfacePlan(policy="fixed", options=options))
    outcome = one_process.run(plan, config.load_lab(lab), lab, tmp_path / "run")
    assert set(reader.load(outcome.folder).rounds.surface) == {found["digest"]}


def attack(folder: Path, flips: str) -> tuple[dict[str, Any], Path]:
    plan = config.load_experiment("flip_attack")
    assert plan.scene.attacker is not None
    attacker = msgspec.structs.replace(plan.scene.attacker, flips=flips)
    scene = msgspec.structs.replace(plan.scene, attacker=attacker)
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=120)
    plan = msgspec.structs.replace(plan, rounds=120, scene=scene, accounting=accounting)
    outcome = one_process.run(plan, config.load_lab("sim"), "sim", folder / flips)
    return outcome.summary, outcome.folder


def test_a_flip_attack_is_refused_and_named_and_an_idle_adversary_is_not(tmp_path: Path) -> None:
    s, folder = attack(tmp_path, "after_transmission")
    assert s["pairs_kept"] == 120
    assert s["csi_correlation_ab"] < 0.2
    assert s["key_bits"] == s["keys_verified"] == 0
    named = next(h for h in s["health"] if h["check"] == "reciprocity")
    assert not named["ok"]
    assert "adversary" in named["detail"]
    run = reader.load(folder)
    assert len(set(run.rounds.surface)) == 120  # each pair under its own acknowledged pattern
    for link in run.links.values():
        assert np.array_equal(link.surface, run.rounds.surface[link.rounds])
    page = html.make(folder).read_text()
    assert "adversary’s surface" in page
    assert "The channel is not reciprocal" in page
    s, _ = attack(tmp_path, "never")
    assert s["csi_correlation_ab"] > 0.9
    assert next(h for h in s["health"] if h["check"] == "reciprocity")["ok"]


def test_random_patterns_give_the_static_room_a_key_that_it_has_not_without(tmp_path: Path) -> None:
    plan = config.load_experiment("static_room")
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=400, epsilon_log2=32)
    plan = msgspec.structs.replace(plan, rounds=400, accounting=accounting)
    fixed = msgspec.structs.replace(plan, surface=SurfacePlan(policy="fixed"))
    ours, baseline = (
        one_process.run(p, config.load_lab("sim"), "sim", tmp_path / name)
        for p, name in ((plan, "random"), (fixed, "fixed"))
    )
    assert ours.summary["keys_verified"] > 0
    assert ours.summary["keys_mismatched"] == 0
    assert baseline.summary["keys_verified"] == baseline.summary["key_bits"] == 0
    assert next(h for h in ours.summary["health"] if h["check"] == "reciprocity")["ok"]
    page = html.make(ours.folder, baseline.folder).read_text()
    section = page.split('id="baseline"')[1].split("</section>")[0]
    assert "none without" in section
    assert "surface.policy" in section
