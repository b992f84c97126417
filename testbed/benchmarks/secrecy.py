"""Paper D's phases and precoder: coordinate ascent compared with the published SDP method on the same channels."""

from __future__ import annotations

import importlib
import time

from testbed.benchmarks import BenchRow
from testbed.core.errors import InputError
from testbed.core.seeds import generator
from testbed.papers.secrecy import coordinate as secrecy_coordinate
from testbed.papers.secrecy import sdp
from testbed.papers.secrecy.model import Secrecy

CHANNELS, COMMON, POWER_DBM = 1000, 3, 20.0
"""Channels of the batch, and how many of them the SDP method solves, too."""


def run() -> list[BenchRow]:
    """Return rows for one channel among many and for one alone; raises InputError without cvxpy."""
    try:
        importlib.import_module("cvxpy")  # the seconds of this import must not count as the peer's
    except ImportError as exc:
        raise InputError(f"bench secrecy: {exc}; install its peer: pip install '.[sdp]'") from exc
    model = Secrecy.paper(CHANNELS, generator(1, "bench", "secrecy"), POWER_DBM)
    common = model.take(slice(0, COMMON))
    secrecy_coordinate.design(common)

    began_s = time.perf_counter()
    together = secrecy_coordinate.design(model)
    batch_s = (time.perf_counter() - began_s) / CHANNELS
    began_s = time.perf_counter()
    for i in range(COMMON):
        secrecy_coordinate.design(model.take(i))
    alone_s = (time.perf_counter() - began_s) / COMMON
    began_s = time.perf_counter()
    peer = sdp.design(common, generator(1, "bench", "secrecy", "draws"))
    peer_s = (time.perf_counter() - began_s) / COMMON

    ours = model.rate(together.precoders, together.phases_rad)
    theirs = common.rate(peer.precoders, peer.phases_rad)
    least = float((ours[:COMMON] / theirs - 1).min())
    note = (
        f"{ours[:COMMON].mean():.4f} bits, peer {theirs.mean():.4f} on the same {COMMON} channels (worst of them "
        f"{100 * least:+.3f} %), N = {model.n_elements}, {POWER_DBM:g} dBm; peer: {len(peer.history)} rounds at most"
    )
    return [
        BenchRow(
            name=f"secrecy, phases and precoder, {what}",
            ours_s=ours_s,
            peer="SDP route (cvxpy, SCS)",
            peer_s=peer_s,
            ratio=peer_s / ours_s,
            note=f"{1e3 * ours_s:.2f} ms a channel; {note}",
        )
        for what, ours_s in ((f"a channel among {CHANNELS}", batch_s), ("one channel alone", alone_s))
    ]
