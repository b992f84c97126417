"""The end of a process that frees nothing first waits for what the interpreter's own end waits for."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor

from testbed.core import ending

pool = ThreadPoolExecutor(1)
pool.submit(int).result()  # its thread now waits for more, and nobody shuts it down
atexit.register(print, "registered")
threading.Thread(target=lambda: (time.sleep(0.05), print("of a thread"))).start()
ending.end(5)
"""


def test_a_pool_of_threads_that_nobody_shut_down_does_not_keep_a_process_from_ending() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (5, "of a thread\nregistered\n", "")
