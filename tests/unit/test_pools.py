"""The secret of one-time authentication gets to both ends, by command, and to nobody else."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from testbed import config
from testbed.cli import app
from testbed.core.config import Lab
from testbed.core.errors import InputError
from testbed.lab import pools
from testbed.nodes import pool_file


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state" / "sim"


def lab(**local: bool) -> Lab:
    found = config.load_lab("sim")
    for name, here in local.items():
        found.node[name].local = here
    return found


def test_a_run_makes_the_secret_where_both_ends_are_local_and_never_replaces_one(state: Path) -> None:
    pools.prepare(lab(), "sim")
    files = [state / name / pool_file.NAME for name in ("alice", "bob")]
    before = [path.read_bytes() for path in files]
    assert before[0] == before[1]
    pools.prepare(lab(), "sim")
    assert [path.read_bytes() for path in files] == before
    files[1].unlink()
    with pytest.raises(
        InputError, match=r"sim: key 'wegman_carter': 'bob' has no pool .* `testbed keys pool --lab sim`"
    ):
        pools.prepare(lab(), "sim")


def test_an_end_that_is_elsewhere_gets_a_file_to_carry(state: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'alice' has no pool"):
        pools.prepare(lab(bob=False), "sim")
    made = pools.make(lab(bob=False), ["alice"], 1024, tmp_path / "usb")
    assert made == {"alice": state / "alice" / pool_file.NAME, "bob": tmp_path / "usb"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in made.values())
    assert not (state / "bob").exists()
    with pytest.raises(InputError, match="the name of a new file"):
        pools.make(lab(bob=False), ["alice"], 1024, tmp_path / "usb")
    assert pools.take(lab(), "bob", tmp_path / "usb") == state / "bob" / pool_file.NAME
    assert not (tmp_path / "usb").exists()
    ends = [pools.of(lab(), name) for name in ("alice", "bob")]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].dump() == ends[1].dump()
    assert ends[0].pairs == 4


def test_a_pool_that_a_node_is_using_is_not_replaced(state: Path) -> None:
    pools.prepare(lab(), "sim")
    before = (state / "bob" / pool_file.NAME).read_bytes()
    held = pool_file.PoolFile(state / "bob")
    try:
        with pytest.raises(InputError, match="another process is using this pool"):
            pools.make(lab(), ["alice", "bob"], 1024, None)
    finally:
        held.close()
    assert (state / "bob" / pool_file.NAME).read_bytes() == before == (state / "alice" / pool_file.NAME).read_bytes()


def test_the_command_says_where_pools_are_and_how_much_is_left_and_never_a_bit(state: Path) -> None:
    run = CliRunner()
    made = run.invoke(app, ["keys", "pool", "--lab", "sim", "--bits", "2560"])
    assert (made.exit_code, made.stdout.count("pool.json")) == (0, 2)
    shown = run.invoke(app, ["keys", "pool", "--show"])
    assert shown.stdout.splitlines() == [f"{name}: 2560 bits are left, 10 blocks" for name in ("alice", "bob")]
    secret = msgspec.json.decode((state / "bob" / pool_file.NAME).read_bytes())["point"]
    assert secret not in made.stdout + shown.stdout
    listed = run.invoke(app, ["keys", "--json"])
    assert json.loads(listed.stdout)["keys"] == []
    for wrong in (["eve"], ["--take", "nowhere"], ["bob", "--take", "nowhere"], ["alice", "--out", "no/such/folder"]):
        assert isinstance(run.invoke(app, ["keys", "pool", *wrong]).exception, InputError)


def test_private_mode_needs_one_of_the_two_authentications() -> None:
    private = msgspec.structs.replace(config.load_experiment("static_room"), mode="private")
    for curve, wegman_carter, accepted in (
        (True, True, True), (True, False, True), (False, True, True), (False, False, False),
    ):  # fmt: skip
        place = msgspec.structs.replace(lab(), curve=curve, wegman_carter=wegman_carter)
        if accepted:
            config.check_mode(private, place, "sim")
        else:
            with pytest.raises(InputError, match="wegman_carter = true"):
                config.check_mode(private, place, "sim")


def test_it_is_an_option_of_the_lab_file_and_of_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    text = config.find(Lab, "sim").read_text(encoding="utf-8")
    path.write_text(text.replace('name = "sim"', 'name = "sim"\nwegman_carter = true\ncurve = false'))
    assert config.load_lab(str(path)).wegman_carter
    assert not config.load_lab("sim").wegman_carter
    assert "one-time tags" in str(config.json_schema(Lab)["$defs"]["Lab"]["properties"]["wegman_carter"])
    # links without authentication stay on this machine, whatever the discussion is authenticated by
    path.write_text(path.read_text().replace('role = "bob"', 'role = "bob"\nhost = "192.168.1.2"'))
    with pytest.raises(InputError, match="curve = false"):
        config.load_lab(str(path))
