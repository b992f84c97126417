"""Full disks, wrong keys, odd terminals and early signals: one line that says what to do, and nothing lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sites import Site, when

from testbed import config
from testbed.core import identity
from testbed.core.config import Lab
from testbed.lab import processes
from testbed.records import files, reader


def cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "testbed", *arguments], capture_output=True, text=True, timeout=240, errors="replace",
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB of its own; only root can make one."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leave_bytes: int) -> Path:
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as f:  # the run writes beside us
        while (room := files.free_bytes(disk) - leave_bytes) > 0:
            f.write(bytes(min(room, 1 << 20)))
    return filler


def begun(
    cleared: list[subprocess.Popen[str]], disk: Path, lab: str = "sim", rounds: int = 1500
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "testbed", "run", "mobile_room", "--lab", lab, "--rounds", str(rounds), "--out",
         str(disk / "runs")],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    cleared.append(process)
    until_told(process, "200/")
    return process


def until_told(process: subprocess.Popen[str], words: str) -> str:
    """Return the line that says so; where there is none, the run has ended."""
    assert process.stderr is not None
    return next((line for line in process.stderr if words in line), "")


@pytest.fixture
def impatient(tmp_path: Path) -> str:
    """Return a lab whose runs do not wait for space."""
    lab = tmp_path / "impatient.toml"
    lab.write_text(config.find(Lab, "sim").read_text() + "\n[coordinator]\ndisk_wait_s = 0.1\n")
    return str(lab)


def test_a_run_that_does_not_fit_on_its_disk_is_refused_before_it_starts(small_disk: Path) -> None:
    done = cli("run", "mobile_room", "--rounds", "100000", "--out", str(small_disk / "runs"))
    assert done.returncode == 2
    assert "MB free, this run needs about" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list((small_disk / "runs").iterdir())


def test_a_full_disk_pauses_the_run_which_goes_on_when_there_is_space(
    small_disk: Path, cleared: list[subprocess.Popen[str]]
) -> None:
    """Not a row fits any more. `test_faulty_run` has disks that still have room to close the records."""
    process = begun(cleared, small_disk, rounds=360)
    filler = fill(small_disk, 0)
    assert "MB on the disk of " in until_told(process, "disk full: free ")
    filler.unlink()
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "there is space again: the run goes on after " in err
    assert "Traceback" not in err
    run = reader.load(next((small_disk / "runs").iterdir()))
    assert run.rounds.rounds.tolist() == list(range(360))
    assert run.rounds.kept.mean() > 0.95
    assert any(e.kind == "disk_was_full" for e in run.events)


def test_a_disk_that_stays_full_ends_the_run_in_order(
    small_disk: Path, impatient: str, cleared: list[subprocess.Popen[str]]
) -> None:
    process = begun(cleared, small_disk, impatient)
    fill(small_disk, 16 << 20)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    last = err.strip().splitlines()[-1]
    assert "disk full: free " in last
    assert "the run was paused for " in last
    assert "Traceback" not in err
    run = reader.load(next((small_disk / "runs").iterdir()))
    assert run.state == "closed"
    assert run.rounds.rounds.size >= 200


def test_a_disk_that_is_full_at_once_is_one_line_and_the_run_is_recovered(
    small_disk: Path, impatient: str, cleared: list[subprocess.Popen[str]]
) -> None:
    process = begun(cleared, small_disk, impatient)
    filler = fill(small_disk, 0)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    folder = next((small_disk / "runs").iterdir())
    last = err.strip().splitlines()[-1]
    assert "disk full: free " in last
    assert last.endswith(f"MB, then `testbed report {folder}`")
    assert "Traceback" not in err
    filler.unlink()
    done = cli("report", str(folder))
    assert done.returncode == 0, done.stderr
    assert reader.load(folder).rounds.rounds.size >= 150


def test_keys_names_a_bad_file_and_lists_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "sim" / "bob" / "keys" / "run-1"
    folder.mkdir(parents=True)
    (folder / "block-0000.key").write_text(json.dumps({"bits": 7, "hex": "fe"}))
    for n, content in enumerate([b"", b"{}", b"[]", b'{"bits": null}', b"\xff\xfe"]):
        (folder / f"block-{n + 1:04d}.key").write_bytes(content)
    done = cli("keys", "--json")
    assert [row["block"] for row in json.loads(done.stdout)["keys"]] == [0]
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 5
    assert all(f"block-{n + 1:04d}.key: no key file" in line for n, line in enumerate(lines))


def other_key(folder: Path, name: str) -> str:
    """Return the public key of another pair of this name: one that was made anew, on the other machine."""
    identity.make(folder, name)
    return (folder / f"{name}.public").read_text()


def test_an_unknown_key_is_reported_on_both_sides(site: Site) -> None:
    text = site.lab.read_text()
    keys = processes.lab_folder(config.load_lab(str(site.lab))) / "transport"
    known = (keys / "bob.public").read_text()
    (keys / "bob.secret").unlink()
    (keys / "bob.public").unlink()
    identity.make(keys, "bob")
    when(site.start("sim").stdout, lambda line: "endpoint" in line)
    site.lab.write_text(text + "join_timeout_s = 200.0\n")  # for Bob, who waits for a coordinator that loads slowly
    bob = site.start("node", "bob")
    assert until_told(bob, "waiting for the coordinator")
    (keys / "bob.public").write_text(known)
    site.lab.write_text(text + "join_timeout_s = 8.0\n")
    coordinator = site.start_coordinator("--rounds", "10")
    _, err = bob.communicate(timeout=240)
    assert bob.returncode == 1
    assert f"copy {keys / 'bob.public'} to its machine" in err
    assert coordinator.wait(timeout=240) == 1
    run = reader.load(site.run_folder())
    assert run.stop is not None
    assert f"whose key is in no {keys}/NAME.public" in str(run.stop.reason)


def test_a_stale_key_of_the_coordinator_is_reported_by_the_node(site: Site, tmp_path: Path) -> None:
    text = site.lab.read_text()
    site.lab.write_text(text + "join_timeout_s = 200.0\n")  # for the coordinator, while Bob loads slowly
    keys = processes.lab_folder(config.load_lab(str(site.lab))) / "transport"
    when(site.start("sim").stdout, lambda line: "endpoint" in line)
    coordinator = site.start_coordinator("--rounds", "10")
    when(coordinator.stderr, lambda line: "waiting for" in line)
    (keys / "coordinator.public").write_text(other_key(tmp_path / "stale", "coordinator"))
    site.lab.write_text(text + "join_timeout_s = 8.0\n")
    bob = site.start("node", "bob")
    _, err = bob.communicate(timeout=240)
    assert bob.returncode == 3
    assert f"{keys / 'coordinator.public'} is not its key" in err


def test_a_terminal_without_the_characters_is_no_failure(tmp_path: Path) -> None:
    done = cli("run", "mobile_room", "--rounds", "60", "--out", str(tmp_path / "runs"), PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert "rounds 60" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("after", ["importlib", "'numpy'", "'testbed.coordinator.server'"])
def test_a_signal_in_the_first_seconds_is_130_without_a_traceback(
    tmp_path: Path, number: signal.Signals, after: str
) -> None:
    """It comes when a certain module begins to be loaded."""
    code = (
        "import os, signal, sys\n"
        # the tests' parent process may ignore some signals, which children inherit
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {after if after.startswith(chr(39)) else repr('typer')}:\n"
        f"            os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from testbed.__main__ import main\n"
        f"sys.argv = ['testbed', 'run', 'mobile_room', '--rounds', '10', '--out', {str(tmp_path / 'runs')!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())
