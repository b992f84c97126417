"""A daemon leaves when its starter dies, also in the middle of something that looks at no signal."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import hashlib, signal, sys, time
from testbed.lab import supervision
supervision.GRACE_S = 0.5
left = []
signal.signal(signal.SIGTERM, lambda *_: left.append(1))
supervision.watch_parent(lambda: print("silenced", flush=True))
print("ready", flush=True)
{work}
"""
BUSY = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**30)"  # half an hour in C, without the interpreter
PROMPT = "\nwhile not left: time.sleep(0.01)\nsys.exit(7)"


@pytest.mark.parametrize(("work", "status", "said"), [(BUSY, 1, b"silenced\n"), (PROMPT, 7, b"")])
def test_a_daemon_whose_starter_dies_is_gone_soon(work: str, status: int, said: bytes) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CODE.format(work=work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.stdin.close()
        assert child.wait(timeout=240) == status
        assert child.stdout.read() == said
    finally:
        child.kill()
