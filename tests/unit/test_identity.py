"""Transport keys on several machines: each makes its own pairs, public halves are exchanged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from testbed import cli, config
from testbed.core import identity
from testbed.core.errors import InputError
from testbed.lab import processes

LAB = """
schema = 1
name = "two"
[coordinator]
port = 45000
[node.alice]
role = "alice"
driver = "sim"
port = 45010
[node.bob]
role = "bob"
driver = "sim"
local = false
"""


def copy_public(source: Path, target: Path) -> None:
    for path in source.glob("*.public"):
        shutil.copy(path, target)


def test_two_machines_make_their_own_pairs_and_exchange_public_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lab.toml"
    path.write_text(LAB)
    lab = config.load_lab(str(path))
    folders = {}
    for machine, names in (("here", []), ("there", ["bob"])):
        monkeypatch.setenv("TESTBED_STATE", str(tmp_path / machine))
        cli.app(["keygen-certs", "--lab", str(path), *names], standalone_mode=False)
        folders[machine] = Path(capsys.readouterr().out.strip())
    assert {p.name for p in folders["here"].glob("*.secret")} == {"coordinator.secret", "alice.secret"}
    assert {p.name for p in folders["there"].glob("*.secret")} == {"bob.secret"}
    copy_public(folders["here"], folders["there"])
    copy_public(folders["there"], folders["here"])
    bob = processes.load_identity(lab, "bob") if processes.make_keys(lab, ["bob"]) else None
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "here"))
    processes.make_keys(lab, processes.local_names(lab))
    alice, coordinator = (processes.load_identity(lab, name) for name in ("alice", "coordinator"))
    assert alice is not None
    assert bob is not None
    assert coordinator is not None
    assert alice.known == {**bob.known, "alice": alice.public} == coordinator.known
    assert len(set(alice.known.values())) == 3
    with pytest.raises(InputError, match="accepted: coordinator, alice, bob"):
        cli.app(["keygen-certs", "--lab", str(path), "carol"], standalone_mode=False)


def test_a_public_key_overwritten_by_another_machines_is_reported(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        identity.make(folder, "bob")
    copy_public(here, there)
    with pytest.raises(InputError, match=r"bob\.public does not belong to .*bob\.secret"):
        identity.load(there, "bob", [])
    (there / "bob.public").unlink()
    identity.make(there, "bob")
    assert identity.load(there, "bob", []).public != identity.load(here, "bob", []).public


def test_no_pair_is_made_for_who_runs_elsewhere(tmp_path: Path) -> None:
    identity.make(tmp_path / "here", "bob")
    (tmp_path / "there").mkdir()
    copy_public(tmp_path / "here", tmp_path / "there")
    with pytest.raises(InputError, match="another machine"):
        identity.make(tmp_path / "there", "bob")


def test_processes_that_make_the_same_pair_at_once_agree_on_one(tmp_path):
    """The first start of a lab: every daemon makes what is missing."""
    import subprocess
    import sys

    code = (
        "from pathlib import Path; from testbed.core import identity as i; "
        f"f = Path({str(tmp_path)!r}); i.make(f, 'world'); i.load(f, 'world', [])"
    )
    makers = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(6)]
    for maker in makers:
        _, err = maker.communicate(timeout=240)
        assert maker.returncode == 0, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["world.public", "world.secret"]
