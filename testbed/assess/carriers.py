"""The carrier offsets between a run's radios, their drift, and the frames that were lost because of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from testbed.core import registry
from testbed.core.config import Experiment
from testbed.core.errors import InputError
from testbed.core.stages import Verdict
from testbed.core.words import counted
from testbed.records.recorded import RecordedRun

Offsets = dict[str, dict[str, Any]]
_LEAST_FRAMES = 20
"""With fewer frames no drift is computed."""


def offsets(run: RecordedRun, experiment: Experiment) -> Offsets:
    """Return link → carrier offset (transmitter's minus receiver's) of received and of rejected frames, and its drift.

    frames, cfo_hz, cfo_ppm: number and median offset of received frames; rejected, rejected_cfo_hz, rejected_cfo_ppm:
    the same of frames beyond the estimator's range. drift_ppm: median of the last tenth of the received frames minus
    that of the first tenth; None with too few frames, or if a radio was retuned. Values that were not measured are
    None.
    """
    lost = next((e.data for e in reversed(run.events) if e.kind == "offsets_rejected"), {})
    retuned = {node for node, _ in retunings(run)}
    out: Offsets = {}
    for link in sorted({*run.links, *lost}):
        kept_hz = run.links[link].cfo_hz if link in run.links else np.zeros(0)
        lost_hz = np.asarray(lost.get(link, {}).get("cfo_hz", []), np.float64)
        tenth = kept_hz.size // 10
        drift_hz = None
        if kept_hz.size >= _LEAST_FRAMES and not retuned & set(link.split(">")):
            drift_hz = float(np.median(kept_hz[-tenth:]) - np.median(kept_hz[:tenth]))
        to_ppm = 1e6 / experiment.radio.carrier_hz
        kept, rejected = (float(np.median(x)) if x.size else None for x in (kept_hz, lost_hz))
        out[link] = {
            "frames": int(kept_hz.size),
            "cfo_hz": kept,
            "cfo_ppm": None if kept is None else kept * to_ppm,
            "drift_ppm": None if drift_hz is None else drift_hz * to_ppm,
            "rejected": int(lost_hz.size),
            "rejected_cfo_hz": rejected,
            "rejected_cfo_ppm": None if rejected is None else rejected * to_ppm,
        }
    return out


def retunings(run: RecordedRun) -> list[tuple[str, float]]:
    """Return (node, correction in ppm) each time that a node followed Alice's carrier."""
    return [(e.data["node"], float(e.data["correction_ppm"])) for e in run.events if e.kind == "retuned"]


def verdict(run: RecordedRun, experiment: Experiment, found: Offsets) -> list[Verdict]:
    """Return a verdict with the offsets and, if frames were lost because of them, the option to set and its value."""
    if not found:
        return []
    told = [words for link, c in found.items() for words in _words(link, c)]
    advice = []
    for link, c in found.items():
        tx, rx = link.split(">")
        if c["rejected_cfo_ppm"] is not None and run.start.role(tx) == "alice":
            now_ppm = float(run.start.drivers.get(rx, {}).get("correction_ppm", 0.0))
            advice.append(f"correction_ppm = {now_ppm - c['rejected_cfo_ppm']:.2f} in [node.{rx}]")
    retuned = ", ".join(f"{node} to {ppm:+.2f} ppm" for node, ppm in retunings(run))
    detail = f"Carrier offsets{_range(experiment)}: {'; '.join(told)}."
    detail += f" Retuned during the run: {retuned}." if retuned else ""
    detail += f" Set {' and '.join(advice)}, or run `testbed doctor`, which stores it." if advice else ""
    return [Verdict("carriers", not any(c["rejected"] for c in found.values()), detail)]


def _words(link: str, c: dict[str, Any]) -> list[str]:
    arrow = link.replace(">", " → ")
    out = []
    if c["cfo_hz"] is not None:
        drift = "" if c["drift_ppm"] is None else f", drift {c['drift_ppm']:+.2f} ppm"
        out.append(f"{arrow} {c['cfo_hz']:+.0f} Hz ({c['cfo_ppm']:+.2f} ppm{drift})")
    if c["rejected"]:
        out.append(f"{arrow} {counted(c['rejected'], 'frame')} lost at {c['rejected_cfo_hz']:+.0f} Hz")
    return out


def _range(experiment: Experiment) -> str:
    """Return the range of offsets in which frames are found, as text; '' if the run's stages are not installed here."""
    probing = experiment.probing
    try:
        sounder = registry.make_stage("probing", probing.waveform, probing.waveform_options)
        estimator = registry.make_stage("csi", probing.estimator, probing.estimator_options)
        return (
            f" (frames are found within ± {estimator.range_hz(sounder.frame(experiment.radio.sample_rate_hz)):.0f} Hz)"
        )
    except InputError:
        return ""
