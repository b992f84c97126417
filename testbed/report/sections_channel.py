"""Sections on the air: channel, reciprocity, surface, radio."""

from __future__ import annotations

import re
from html import escape

import numpy as np

from testbed.core.types import F64
from testbed.core.words import counted
from testbed.report import pictures
from testbed.report.pieces import figure, missing, picture
from testbed.report.view import View, called, no_eve

MAX_POINTS = 1200
MAX_PATTERNS = 16


def _no_csi(v: View) -> str | None:
    if any(link.magnitude_db is not None for link in v.links.values()):
        return None
    if v.run.start.private:
        return "Not recorded: in private mode nodes report metrics only, never the channel."
    if not v.links:
        return "No probe was received by anybody."
    return "No channel estimate was recorded."


def channel(v: View) -> str:
    axis = v.run.subcarrier_hz
    if (why := _no_csi(v)) is not None or axis is None:
        return missing(why or "The frequency axis was not recorded.")
    shown = [link for link in v.links.values() if link.magnitude_db is not None][:4]
    svg = v.draw.heat_maps(
        shown,
        axis,
        "Heat maps of channel magnitude over rounds and frequency: " + "; ".join(link.title for link in shown),
    )
    antennas = any(r.csi is not None and r.csi.shape[1] * r.csi.shape[2] > 1 for r in v.run.links.values())
    caption = (
        "Magnitude of every channel estimate, each link relative to its own median, all on the same scale. "
        "Reciprocity shows as Alice’s and Bob’s pictures being alike; gaps are rounds without an estimate. "
        "Frequency is the offset from the carrier."
    )
    if antennas:
        caption += " First antenna of each radio."
    if pictures.decimated(shown):
        caption += f" Of a run this long, {pictures.MAX_COLUMNS} evenly spaced rounds are shown."
    return picture(svg, caption) + no_eve(v)


def reciprocity(v: View) -> str:
    if (why := _no_csi(v)) is not None:
        return missing(why)
    s, panels = v.summary, []
    at_alice, at_bob = f"{v.bob}>{v.alice}", f"{v.alice}>{v.bob}"
    best = {b.eve.best_link for b in v.run.blocks if b.eve is not None}
    # which of her two links serves her: her own word, else the one that shares Bob's transmitter
    from_bob = bool(best) and all(re.search(rf"\b(bob|{re.escape(str(v.bob))})\b", link) for link in best)
    at_eve = f"{v.bob if from_bob else v.alice}>{v.eve}"
    text = []
    for other, role, name, key in (
        (at_bob, "bob", "Bob", "csi_correlation_ab"),
        (at_eve, "eve", "Eve", "csi_correlation_ae"),
    ):
        points = _points(v, at_alice, other)
        if points is None:
            if role == "bob":
                return missing("There is no round in which both Alice and Bob have an estimate.")
            continue
        value = s.get(key)
        quoted = "correlation not measured" if value is None else f"correlation {figure(value)}"
        label = f"at {name}, dB" if role == "bob" else f"at {name} (hearing {called(v.run, other.split('>')[0])}), dB"
        panels.append((f"Alice – {name}: {quoted}", role, *points, label))
        text.append(f"Alice against {name}, {quoted}")
    svg = v.draw.scatter(panels, "Scatter plots of channel magnitude: " + "; ".join(text))
    detrended = s.get("csi_correlation_ab_detrended")
    caption = (
        "Magnitude of the same subcarrier in the same kept round at two nodes, relative to each link’s median; "
        f"at most {MAX_POINTS:,} points, evenly picked. Correlations are quoted from the summary"
        + ("." if detrended is None else f"; Alice – Bob with slow drift removed: {figure(detrended)}.")
    )
    return picture(svg, caption) + no_eve(v)


def _points(v: View, first: str, second: str) -> tuple[F64, F64] | None:
    a, b = v.links.get(first), v.links.get(second)
    if a is None or b is None or a.magnitude_db is None or b.magnitude_db is None:
        return None
    rounds, in_a, in_b = np.intersect1d(a.rounds, b.rounds, return_indices=True)
    table = v.run.rounds
    if table.rounds.size:
        kept = np.isin(rounds, table.rounds[table.kept])
        in_a, in_b = in_a[kept], in_b[kept]
    x, y = a.magnitude_db[in_a].ravel(), b.magnitude_db[in_b].ravel()
    both = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if not both.size:
        return None
    take = both[np.unique(np.linspace(0, both.size - 1, MAX_POINTS).astype(int))]
    return x[take], y[take]


def surface(v: View) -> str:
    return _adversary(v) + _patterns(v)


def _adversary(v: View) -> str:
    """Say that the scene held an adversary's surface, '' where it did not."""
    attacker = v.run.start.experiment.get("scene", {}).get("attacker")
    if not attacker or v.run.start.lab.get("world") is None:
        return ""
    does = (
        "holds one pattern" if attacker["flips"] == "never" else "takes a fresh random pattern after each transmission"
    )
    return (
        f'<p class="alarm">The simulated scene holds an adversary’s surface of {attacker["rows"]} × '
        f"{attacker['columns']} elements, which {does}. Nobody in the run is told of it; see the health check "
        "<code>reciprocity</code>.</p>"
    )


def _patterns(v: View) -> str:
    patterns = v.run.patterns
    if not patterns:
        policy = v.run.start.experiment.get("surface", {}).get("policy")
        if v.run.node("ris") is None and policy in (None, "none"):
            return missing("No surface took part in this run.")
        if policy == "none":
            return missing("The surface was left alone: the experiment’s policy is “none”.")
        return missing("No pattern was acknowledged by the surface.")
    images = []
    for i, (digest, pattern) in enumerate(list(patterns.items())[:MAX_PATTERNS]):
        n_rows, n_columns = pattern.levels.shape
        alt = f"Surface pattern {digest}: {n_rows} by {n_columns} elements of {pattern.phase_bits} bits"
        n = int(np.count_nonzero(v.run.rounds.surface == digest))
        drawn, shown = pictures.pattern_image(pattern, alt), counted(n, "round")
        images.append(f"<div>{drawn}<code>{escape(digest[:12])}</code><br>{shown}</div>")
        if i == 0:
            depth = "1 bit" if pattern.phase_bits == 1 else f"{pattern.phase_bits} bits"
            size = f"{n_rows} × {n_columns} elements, {depth} of phase"
    more = f" The first {MAX_PATTERNS} are shown." if len(patterns) > MAX_PATTERNS else ""
    caption = f"{len(patterns):,} pattern{'s' if len(patterns) > 1 else ''}, {size}; light is phase 0, dark is π.{more}"
    return f'<figure><div class="patterns">{"".join(images)}</div><figcaption>{caption}</figcaption></figure>'


def over_time(v: View) -> str:
    if not v.links:
        return missing("No probe was received by anybody.")
    svg = v.draw.over_time(
        list(v.links.values())[:6],
        "Signal-to-noise ratio and carrier frequency offset of every link over rounds",
    )
    times = v.run.rounds.t0_s[np.isfinite(v.run.rounds.t0_s)]
    lasted = f" The rounds span {times[-1] - times[0]:.4g} s." if times.size > 1 else ""
    return picture(svg, f"Mean over subcarriers, as each receiver measured it.{lasted} Gaps: no estimate.") + no_eve(v)
