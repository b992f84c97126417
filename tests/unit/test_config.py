"""Lab and experiment files: bundled ones load, mistakes are named in one line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from testbed import cli, config
from testbed.core import registry
from testbed.core.config import Experiment, Lab, to_dict
from testbed.core.errors import InputError
from testbed.core.options import StageOptions

GOOD = """
schema = 1
title = "good"
rounds = 600

[radio]
carrier_hz = 5.8e9

[probing]
interval_s = 0.05

[scene.alice]
position_m = [2.0, 3.0, 1.5]

[scene.bob]
position_m = [16.0, 13.0, 1.2]

[accounting]
block_rounds = 300
"""
LAB = config.bundled(Lab)["sim"].read_text()


@pytest.mark.parametrize("name", sorted(config.bundled(Experiment)))
def test_bundled_experiments_load(name: str) -> None:
    assert config.load_experiment(name).rounds > 0


@pytest.mark.parametrize("name", sorted(config.bundled(Lab)))
def test_bundled_labs_load(name: str) -> None:
    assert config.load_lab(name).by_role("alice") == "alice"


def refusal(tmp_path: Path, text: str, lab: bool = False) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        (config.load_lab if lab else config.load_experiment)(str(path))
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "carrier_hz = 5.8e9",
            "carrier_mhz = 5800",
            ["[radio]", "'carrier_mhz'", "did you mean 'carrier_hz'", "sample_rate_hz"],
        ),
        ("carrier_hz = 5.8e9", "carrier_hz = -1.0", ["[radio]", "'carrier_hz'", "> 0"]),
        ("carrier_hz = 5.8e9", 'carrier_hz = "5.8 GHz"', ["[radio]", "'carrier_hz'", "float"]),
        ("rounds = 600", "rounds = 0", ["'rounds'", ">= 1"]),
        ("rounds = 600", "round = 600", ["'round'", "did you mean 'rounds'"]),
        ("schema = 1", "schema = 9", ["'schema'", "accepted: 1"]),
        ("rounds = 600", 'mode = "privat"', ["'mode'", "accepted: 'experiment', 'private'"]),
        (
            "[accounting]",
            '[surface]\npolicy = "randm"\n[accounting]',
            ["[surface]", "'policy'", "'randm'", "fixed,", "'none'"],
        ),
        ("[accounting]", '[scene.eve]\nnear = "bobb"\n[accounting]', ["[scene.eve]", "'near'", "'alice', 'bob'"]),
        (
            "interval_s = 0.05",
            'estimator_options = { min_snr_db = "x" }',
            ["[probing.estimator_options]", "'min_snr_db': 'x' given", "`float`", "numbers from -20 to 60"],
        ),
        (
            "[accounting]",
            "[chain]\nquantize_options = { bits = 2.5 }\n[accounting]",
            ["[chain.quantize_options]", "'bits': 2.5 given", "`int`", "1 to 4"],
        ),
        ("schema = 1", "", ["missing 'schema'"]),
        ("[scene.alice]\nposition_m = [2.0, 3.0, 1.5]", "", ["[scene]", "missing 'alice'"]),
        (
            "position_m = [2.0, 3.0, 1.5]",
            "position_m = [2.0, 3.0]",
            ["[scene.alice]", "'position_m'", "lists of 3 numbers"],
        ),
        ("position_m = [2.0, 3.0, 1.5]", "", ["[scene.alice]", "'position_m'", "'near'"]),
        (
            "[accounting]",
            '[chain]\nquantize = "scalr"\n\n[accounting]',
            ["[chain]", "'quantize'", "'scalr'", "did you mean 'scalar'"],
        ),
        (
            "[accounting]",
            "[chain]\nquantize_options = { bit = 2 }\n\n[accounting]",
            ["[chain.quantize_options]", "unknown key 'bit'", "did you mean 'bits'", "accepted: bits, guard"],
        ),
        ("[accounting]", '[surface]\npolicy = "random"\n\n[accounting]', ["[surface]", "[scene.surface]"]),
        ("interval_s = 0.05", 'schedule = "A>E B>AE"', ["[probing]", "'schedule'", "A>B"]),
        (
            "[accounting]",
            "[scene.multipath]\nroom_m = [20.0, -1.0, 3.0]\n[accounting]",
            ["[scene.multipath]", "'room_m'", "> 0"],
        ),
        (
            "[accounting]",
            "[scene.surface]\nposition_m = [0, 0, 2]\nnormal = [0, 0, 0]\n[accounting]",
            ["[scene.surface]", "'normal'", "length 0"],
        ),
        (
            "[accounting]",
            "[accounting]\nassumed_eve_correlation = 0.5\nassumed_eve_distance_wavelengths = 1.0",
            ["'accounting'", "'assumed_eve_distance_wavelengths' are both given; accepted: one of them"],
        ),
        ("schema = 1", "schema = = 1", ["not TOML", "line 2"]),
    ],
)
def test_mistakes_in_an_experiment_are_named(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    assert old in GOOD
    message = refusal(tmp_path, GOOD.replace(old, new, 1))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('role = "bob"', 'role = "alice"', ["no node has role = 'bob'"]),
        ('role = "eve"', 'role = "bob"', ["[node.bob]", "[node.eve]", "one"]),
        ('role = "eve"', 'role = "mallory"', ["[node.eve]", "'role'", "accepted: 'alice', 'bob', 'eve', 'ris'"]),
        ('role = "eve"', 'role = "eve"\nlocal = false', ["[coordinator]", "'port'", "eve"]),
        ('role = "eve"', 'role = "eve"\ntx_gain = 3', ["[node.eve]", "'tx_gain'", "did you mean 'tx_gain_db'"]),
        ('name = "sim"', 'name = "s m"', ["'name'"]),
        ('role = "bob"', 'role = "bob"\ncalibrated = true', ["[node.bob]", "calibrated", "[node.alice]", "both"]),
        ('role = "eve"', 'role = "eve"\ncalibrated = true', ["[node.eve]", "calibrated", "alice and bob"]),
        ("[world]", "[coordinator]\nlost_after_s = 0.5\n[world]", ["[coordinator]", "'lost_after_s'", "heartbeat_s"]),
        ('pace = "virtual"', 'pace = "fast"', ["[world]", "'pace'", "accepted: 'virtual', 'wall'"]),
    ],
)
def test_mistakes_in_a_lab_are_named(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    assert old in LAB
    message = refusal(tmp_path, LAB.replace(old, new, 1), lab=True)
    for word in words:
        assert word in message


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("interval_s = 0.05", "interval_s = {}", ["[probing]", "'interval_s'"]),
        ("carrier_hz = 5.8e9", "carrier_hz = {}", ["[radio]", "'carrier_hz'"]),
        ("[2.0, 3.0, 1.5]", "[2.0, {}, 1.5]", ["[scene.alice]", "'position_m'"]),
        ("[accounting]", "[scene.multipath]\ndirect_db = {}\n[accounting]", ["[scene.multipath]", "'direct_db'"]),
        (
            "interval_s = 0.05",
            "estimator_options = {{ min_snr_db = {} }}",
            ["[probing.estimator_options]", "'min_snr_db'"],
        ),
    ],
)
def test_what_is_not_a_finite_number_is_refused(
    tmp_path: Path, old: str, new: str, words: list[str], value: str
) -> None:
    assert old in GOOD
    message = refusal(tmp_path, GOOD.replace(old, new.format(value), 1))
    for word in [*words, value, "finite"]:
        assert word in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('role = "eve"', 'role = "eve"\nrx_gain_db = nan', ["[node.eve]", "'rx_gain_db'"]),
        ('role = "eve"', 'role = "eve"\noptions = { cfo_ppm = inf }', ["[node.eve.options]", "'cfo_ppm'"]),
        ("[world]", "[coordinator]\njoin_timeout_s = inf\n[world]", ["[coordinator]", "'join_timeout_s'"]),
    ],
)
def test_what_is_not_a_finite_number_is_refused_in_a_lab(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    assert old in LAB
    message = refusal(tmp_path, LAB.replace(old, new, 1), lab=True)
    for word in [*words, "finite"]:
        assert word in message


def test_a_blocked_direct_path_survives_the_records() -> None:
    """What a run writes of its experiment is read again as it was."""
    raw = tomllib.loads(GOOD + "\n[scene.multipath]\ndirect_db = -200")
    experiment = config.convert(raw, Experiment, "mine")
    written = msgspec.json.encode(to_dict(experiment))
    assert config.convert(msgspec.json.decode(written), Experiment, "again") == experiment


def test_a_name_that_is_nearly_a_bundled_one_is_suggested() -> None:
    with pytest.raises(InputError, match="mobil_room: no such experiment file; did you mean 'mobile_room'"):
        config.load_experiment("mobil_room")
    with pytest.raises(InputError, match="wire_ris959: no such lab file; did you mean 'wire_ris595'"):
        config.load_lab("wire_ris959")


def test_a_missing_file_names_the_bundled_ones() -> None:
    with pytest.raises(InputError, match="mobile_room"):
        config.load_experiment("nowhere.toml")


def test_json_schema_knows_every_table() -> None:
    text = str(config.json_schema(Experiment))
    for word in ("carrier_hz", "offset_wavelengths", "sacrifice_fraction"):
        assert word in text


def test_json_schema_holds_the_options_of_what_is_chosen() -> None:
    schema = config.json_schema(Experiment)
    scalar = schema["$defs"]["quantize.scalar"]["properties"]
    assert scalar["bits"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 4,
        "default": 2,
        "description": "Bits of a feature.",
    }
    assert not schema["$defs"]["quantize.scalar"]["additionalProperties"]
    rules = schema["$defs"]["ChainPlan"]["allOf"]
    chosen = {"properties": {"quantize": {"const": "scalar"}}, "required": ["quantize"]}
    assert [r["then"] for r in rules if r["if"] == chosen] == [
        {"properties": {"quantize_options": {"$ref": "#/$defs/quantize.scalar"}}}
    ]
    assert schema["$defs"]["policy.sweep"]["required"] == ["codebook"]
    assert "longer than the expected frame" in schema["$defs"]["ProbingPlan"]["properties"]["guard_s"]["description"]
    lab = config.json_schema(Lab)["$defs"]
    assert "Hardware serial number" in lab["radios.pluto"]["properties"]["serial"]["description"]
    assert any(r["if"]["properties"]["role"] == {"const": "ris"} for r in lab["NodePlace"]["allOf"])
    # every reference leads somewhere
    text = msgspec.json.encode(schema).decode()
    for name in set(re.findall(r'"#/\$defs/([^"]+)"', text)):
        assert name in schema["$defs"], name


def test_a_stage_that_does_not_take_its_own_options_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's stage may have a constructor that does not fit its struct."""

    class Stage:
        options_type = StageOptions

        def __init__(self) -> None:
            raise AssertionError

    monkeypatch.setattr(registry, "find", lambda kind, name: Stage)
    with pytest.raises(InputError, match=r"enhance 'deep': cannot be built from its options: depth = 'x'"):
        registry.make_stage("enhance", "deep", {"depth": "x"})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bob", ["[node.bob]", "'driver'", "radios", "sim"]),
        ("ris", ["[node.ris]", "'driver'", "boards", "sim"]),
        (None, ["[world]", "'driver'", "worlds", "sim"]),
    ],
)
def test_drivers_that_are_not_installed_are_named_before_anything_starts(name: str | None, words: list[str]) -> None:
    lab = config.load_lab("sim")
    config.check_drivers(lab, "mine.toml")
    (lab.world if name is None else lab.node[name]).driver = "smi"
    with pytest.raises(InputError) as caught:
        config.check_drivers(lab, "mine.toml")
    for word in [*words, "mine.toml", "'smi'"]:
        assert word in str(caught.value)
    config.check_drivers(lab, "mine.toml", ["alice"])
    if name is not None:
        lab.node[name].local = False
        config.check_drivers(lab, "mine.toml")
        with pytest.raises(InputError):
            config.check_drivers(lab, "mine.toml", [name])


@pytest.mark.parametrize("name", ["alice", "ris"])
def test_a_simulated_device_without_simulated_air_is_refused_before_anything_starts(name: str) -> None:
    lab = config.load_lab("sim")
    lab.world = None
    with pytest.raises(InputError) as caught:
        config.check_drivers(lab, "mine.toml", [name])
    assert f"mine.toml: table [node.{name}]: key 'driver': 'sim' is a simulated device" in str(caught.value)
    assert "accepted: with a table [world]" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("carrier_hz", 7e9, ["table [radio]: key 'carrier_hz': 7e+09", "7e+07 to 6e+09", "'sim'", "[node.alice]"]),
        ("sample_rate_hz", 1e3, ["table [radio]: key 'sample_rate_hz': 1000", "200000 to 6.144e+07"]),
    ],
)
def test_what_no_device_of_a_driver_can_be_tuned_to_is_refused_before_the_run(
    key: str, value: float, words: list[str]
) -> None:
    lab, plan = config.load_lab("sim"), config.load_experiment("static_room")
    config.check_run(plan, "mine.toml", lab)
    setattr(plan.radio, key, value)
    config.check_run(plan, "mine.toml")
    with pytest.raises(InputError) as caught:
        config.check_run(plan, "mine.toml", lab)
    for word in ["mine.toml", "lab sim", *words]:
        assert word in str(caught.value)
    for place in lab.node.values():
        place.driver = "not-installed-here"
    config.check_run(plan, "mine.toml", lab)


@pytest.mark.parametrize(("key", "value"), [("tx_gain_db", 20.5), ("rx_gain_db", -1.0)])
def test_gains_beyond_a_drivers_limits_are_refused_before_the_run(key: str, value: float) -> None:
    lab = config.load_lab("sim")
    setattr(lab.node["bob"], key, value)
    with pytest.raises(InputError, match=rf"mine.toml: table \[node.bob\]: key '{key}': {value:g}, accepted: .*'sim'"):
        config.check_drivers(lab, "mine.toml")
    config.check_drivers(lab, "mine.toml", ["alice"])


def test_the_command_checks_drivers_before_it_makes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(LAB.replace('driver = "sim"\ntx_gain_db', 'driver = "smi"\ntx_gain_db', 1))
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    for arguments in (["run", "static_room", "--out", str(tmp_path / "runs")], ["node", "alice"]):
        with pytest.raises(InputError, match=r"table \[node.alice\]: key 'driver'"):
            cli.app([*arguments, "--lab", str(path)], standalone_mode=False)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(
    ("driver", "options", "words"),
    [
        ("sim", "noise_figur_db = 3", ["noise_figur_db", "noise_figure_db"]),
        ("pluto", 'sreial = "1234"', ["sreial", "did you mean 'serial'", "accepted: serial, timeout_s, uri"]),
        ("pluto", 'timeout_s = "long"', ["timeout_s", "float"]),
        ("usrp", 'adr = "type=b200"', ["adr", "did you mean 'addr'"]),
    ],
)
def test_the_command_checks_options_before_it_makes_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str, options: str, words: list[str]
) -> None:
    path = tmp_path / "mine.toml"
    table = f'driver = "{driver}"\noptions = {{ {options} }}\ntx_gain_db'
    path.write_text(LAB.replace('driver = "sim"\ntx_gain_db', table, 1))
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    for arguments in (["run", "static_room", "--out", str(tmp_path / "runs")], ["node", "alice"]):
        with pytest.raises(InputError) as caught:
            cli.app([*arguments, "--lab", str(path)], standalone_mode=False)
        for word in ["mine.toml: table [node.alice.options]", "accepted", *words]:
            assert word in str(caught.value)
        assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.toml"]
