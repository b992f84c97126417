"""Brings the subcarriers of all receivers of a recording into Alice's order if a receiver numbers them differently.

The right order is found from the levels alone, without phases. There is one decision for a whole recording. It is a
property of the receiver and therefore counts as public.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from testbed.assess import agreement
from testbed.assess.checks.bin_order import Order, other_order
from testbed.chain.enhance._features import aligned
from testbed.core.antennas import canonical_antennas
from testbed.core.stages import Verdict
from testbed.core.types import C64, F64, CsiSeries
from testbed.replay.sources import Cut


def in_order(cut: Cut) -> tuple[Cut, list[Verdict]]:
    """Return the cut with Bob's and every Eve's bins in Alice's order, and a verdict for each receiver whose order was
    changed.

    Bins that a shift leaves without a value are NaN.
    """
    verdicts = []
    pairs = cut.alice.h.shape[1] * cut.alice.h.shape[2]
    alice_db = agreement.level_db(cut.alice.h)
    bob_db = agreement.level_db(canonical_antennas(cut.bob, "bob").h)
    found = other_order(alice_db, bob_db, pairs)
    if found is not None:
        order, r, r0 = found
        cut = replace(cut, bob=_taken(cut.bob, order, canonical_antennas(cut.alice, "bob")))
        verdicts.append(_verdict("bin_order_bob", "Bob", order, r, r0))
    eves = {}
    for label, eve in cut.eves.items():
        links: dict[str, Any] = {}
        for link, reference_db in (("from_alice", bob_db), ("from_bob", alice_db)):
            series: CsiSeries | None = getattr(eve, link)
            order_of_hers = None if series is None else _eves_order(series, alice_db, reference_db)
            if series is not None and order_of_hers is not None:
                order, r, r0 = order_of_hers
                links[link] = _taken(series, order, None)
                verdicts.append(_verdict(f"bin_order_{label}_{link}", f"Eve {label!r} ({link})", order, r, r0))
        eves[label] = replace(eve, **links, every=None) if links else eve
    return (replace(cut, eves=eves) if eves else cut), verdicts


def _eves_order(series: CsiSeries, alice_db: F64, reference_db: F64) -> tuple[Order, float, float] | None:
    """Return the order in which an Eve's bins best resemble Alice's or Bob's levels."""
    own_db = agreement.level_db(series.h)
    found = [
        f for db in (alice_db, reference_db) if db.shape == own_db.shape and (f := other_order(db, own_db)) is not None
    ]
    return max(found, key=lambda f: f[1], default=None)


def _taken(series: CsiSeries, order: Order, like: CsiSeries | None) -> CsiSeries:
    """Return a series with its bins taken in another order."""
    h = series.h[..., ::-1] if order.mirrored else series.h
    if order.mirrored and like is not None:
        h = _conjugated(h, like, series)
    out = np.full_like(h, np.nan)
    n, s = h.shape[-1], order.shift
    out[..., max(0, -s) : n - max(0, s)] = h[..., max(0, s) : n - max(0, -s)]
    return replace(series, h=out)


def _conjugated(h: C64, like: CsiSeries, series: CsiSeries) -> C64:
    """Return h, or its conjugate where that resembles `like` more: exchanged I and Q reverse the phases."""
    if h.shape != like.h.shape:
        return h
    fits = []
    for candidate in (h, h.conj()):
        a, b = aligned(like), aligned(replace(series, h=candidate))
        both = np.isfinite(a) & np.isfinite(b)
        fits.append(float(np.abs(np.where(both, a.conj() * b, 0).sum(axis=-1)).sum()))
    return np.asarray(h if fits[0] >= fits[1] else h.conj())


def _verdict(name: str, who: str, order: Order, r: float, r0: float) -> Verdict:
    detail = (
        f"The spectrum at {who} was {order.words} against Alice's (correlation {r0:.2f} as recorded, {r:.2f} in her "
        "order); its bins were put in her order before anything was computed."
    )
    return Verdict(name.replace("°", "deg"), False, detail, {"r": r0, "r_reordered": r})
