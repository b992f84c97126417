"""`testbed init` against emulated Plutos, through the real libiio."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from testbed import config
from testbed.cli import main
from testbed.core import registry
from testbed.lab import init
from tests.system.plutos import emulated

pytest.importorskip("iio", exc_type=Exception, reason="libiio is not installed: apt-get install libiio0")


@pytest.fixture(autouse=True)
def only_plutos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out stand-ins of other radios that earlier tests have put in their libraries' place."""
    plutos = {"pluto": registry.usable("radios")["pluto"]}
    monkeypatch.setattr(init, "registry", SimpleNamespace(usable=lambda kind: plutos))


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["testbed", "init", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_lab_is_written_from_what_answers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bench.toml"
    with emulated() as devices:
        serials = [d.serial for d in devices]
        uris = [d.uri for d in devices]
        # one of them is named twice, as a device on USB is found by its network address, too
        at = [x for uri in (*uris, uris[0]) for x in ("--at", uri)]
        assert command(monkeypatch, "--out", str(path), "--yes", "--json", *at, "--at", "ip:127.0.0.1:1") == 0
        told = json.loads(capfd.readouterr().out)
        lab = config.load_lab(str(path))
        assert [lab.node[n].role for n in lab.node] == ["alice", "bob"]
        assert {p.options["serial"] for p in lab.node.values()} == set(serials)
        assert sorted(p.options["uri"] for p in lab.node.values()) == sorted(uris)
        assert {p.options["variant"] for p in lab.node.values()} == {"ad9363a"}  # as sold
        assert told["nodes"]["alice"]["serial"] == lab.node["alice"].options["serial"]
        assert (lab.node["bob"].tx_gain_db, lab.node["bob"].rx_gain_db) == (-10.0, 34.0)
        # what is there is not written over
        assert command(monkeypatch, "--out", str(path), "--yes", *at) == 2
        assert ": exists; accepted: a new file" in capfd.readouterr().err


def test_where_nothing_answers_nothing_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(monkeypatch, "--out", str(tmp_path / "b.toml"), "--yes", "--at", "ip:127.0.0.1:1") == 2
    assert "no radio answers on this machine" in capfd.readouterr().err
    assert not (tmp_path / "b.toml").exists()


def test_one_radio_is_one_end_and_the_other_is_elsewhere(tmp_path: Path) -> None:
    with emulated() as (device, _):
        seen = init.look([device.uri])
    roles = init.assign(seen, lambda question, proposed, accepted: "bob")
    assert list(roles) == ["bob"]
    path = tmp_path / "lab.toml"
    init.write(path, "mine", roles, seen)
    lab = config.load_lab(str(path))
    assert not lab.node["alice"].local
    assert lab.node["bob"].local
