"""The surface patterns that were used."""

from __future__ import annotations

from html import escape

import numpy as np

from testbed.core.words import counted
from testbed.report import pictures
from testbed.report.pieces import missing
from testbed.report.section import Section
from testbed.report.view import View

MAX_PATTERNS = 16


class Surface(Section):
    """The surface patterns that were used."""

    order = 100
    short = "Surface"
    title = "The surface"

    def html(self, v: View) -> str:
        return _adversary(v) + _patterns(v)


def _adversary(v: View) -> str:
    """Return a paragraph on the adversary's surface in the scene, '' if there is none."""
    attacker = v.run.start.experiment.get("scene", {}).get("attacker")
    if not attacker or v.run.start.lab.get("world") is None:
        return ""
    does = (
        "holds one pattern" if attacker["flips"] == "never" else "takes a fresh random pattern after each transmission"
    )
    return (
        f'<p class="alarm">The simulated scene contains an adversary’s surface of {attacker["rows"]} × '
        f"{attacker['columns']} elements, which {does}. No node of the run knows of it; see the health check "
        "<code>reciprocity</code>.</p>"
    )


def _patterns(v: View) -> str:
    patterns = v.run.patterns
    if not patterns:
        policy = v.run.start.experiment.get("surface", {}).get("policy")
        if v.run.node("ris") is None and policy in (None, "none"):
            return missing("No surface took part in this run.")
        if policy == "none":
            return missing("The surface kept its pattern: the experiment’s policy is “none”.")
        return missing("The surface acknowledged no pattern.")
    images = []
    for i, (digest, pattern) in enumerate(list(patterns.items())[:MAX_PATTERNS]):
        n_rows, n_columns = pattern.levels.shape
        alt = f"Surface pattern {digest}: {n_rows} by {n_columns} elements of {pattern.phase_bits} bits"
        n = int(np.count_nonzero(v.run.rounds.surface == digest))
        images.append(
            f"<div>{pictures.pattern_image(pattern, alt)}<code>{escape(digest[:12])}</code>"
            f"<br>{counted(n, 'round')}</div>"
        )
        if i == 0:
            depth = "1 bit" if pattern.phase_bits == 1 else f"{pattern.phase_bits} bits"
            size = f"{n_rows} × {n_columns} elements, {depth} of phase"
    more = f" The first {MAX_PATTERNS} are shown." if len(patterns) > MAX_PATTERNS else ""
    caption = f"{len(patterns):,} pattern{'s' if len(patterns) > 1 else ''}, {size}; light is phase 0, dark is π.{more}"
    links = v.draw.patterns(dict(list(patterns.items())[:MAX_PATTERNS]))
    shown = f'<div class="patterns">{"".join(images)}</div>{links}'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"
