"""A writer that is killed in the middle of writing leaves every row it had committed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from testbed.records import reader, writer

CHILD = """
import sys
from pathlib import Path
import numpy as np
from testbed.records import documents
from testbed.records.writer import RunWriter

start = documents.start({"mode": "experiment"}, {}, subcarrier_hz=np.arange(64.0))
w = RunWriter(Path(sys.argv[1]), start)
r = 0
while True:
    for link in ("alice>bob", "bob>alice"):
        csi = np.full((1, 1, 64), r + 1j * len(link), dtype=np.complex64)
        w.probe(r, link.split(">")[1], link, r * 0.1, 20.0, 0.0, -30.0, "abc", csi)
    w.round(r, True, None, "abc", r * 0.1)
    if r % 7 == 0:
        w.flush()
        print(r, flush=True)
    if r == 10:
        w.event("node_lost", {"node": "eve"})
    r += 1
"""


def test_every_committed_row_survives_sigkill(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        for line in child.stdout:
            if int(line) >= 700:
                break
        live = reader.load(folder)
        assert live.state == "live"
        assert live.rounds.rounds.size >= 701
    finally:
        child.send_signal(signal.SIGKILL)
    # what it said before it died, including what was still in the pipe
    committed = max([700, *(int(line) for line in child.stdout.read().split("\n")[:-1])])
    assert child.wait() == -signal.SIGKILL

    killed = reader.load(folder)
    assert killed.state == "killed"
    assert killed.stop is None
    n = killed.rounds.rounds.size
    assert n >= committed + 1
    assert killed.rounds.rounds.tolist() == list(range(n))
    for name in ("alice>bob", "bob>alice"):
        link = killed.links[name]
        # a batch may end between a round's rows, never within one
        assert 0 <= link.rounds.size - n <= 1
        assert link.rounds.tolist() == list(range(link.rounds.size))
        assert link.csi is not None
        expected = np.broadcast_to(link.rounds[:, None, None, None] + 9j, link.csi.shape)
        np.testing.assert_array_equal(link.csi, expected)
    assert [e.kind for e in killed.events] == ["node_lost"]

    run = writer.recover(folder, lambda r: {"rounds": int(r.rounds.rounds.size)})
    assert run.state == "closed"
    assert run.stop is not None
    assert run.stop.exit_status == "killed"
    assert run.stop.reason is not None
    assert f"last round {n - 1}" in run.stop.reason
    assert run.summary == {"rounds": n}
    np.testing.assert_array_equal(run.links["alice>bob"].csi, killed.links["alice>bob"].csi)
    assert sorted(p.name for p in folder.iterdir()) == ["rounds.h5", "run.json", "summary.json"]
